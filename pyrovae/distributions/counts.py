r"""Bernoulli and Binomial pixels, summed over the event in few passes.

For an image of D pixels with logits :math:`l` the log-likelihood of counts
:math:`x \in \{0..n\}^D` is

.. math::

    \log p(x) = \sum_d \Big[ x_d l_d - n\,\mathrm{softplus}(l_d) + \log\tbinom{n}{x_d} \Big],
    \qquad n = 1 \text{ for Bernoulli},

and it is most of what a VAE on images computes. Two exact rewritings make it cheap:

.. math::

    \sum_d \mathrm{softplus}(l_d) = \sum_d \max(l_d, 0)
    - \sum_{\text{blocks}} \log \prod_{d \in \text{block}} \sigma(|l_d|).

Each factor lies in [1/2, 1], so the product of up to 120 of them cannot underflow in float32, and
one logarithm replaces a hundred. The gradient, :math:`x - n\,\sigma(l)`, is written down instead
of recorded. The coefficient depends on x alone: a table of n + 1 numbers, looked up on x's own
shape before it meets the particles.

:class:`Bernoulli` and :class:`Binomial` are Pyro's (KL, enumeration, sampling are theirs); only
`to_event` returns the summed version, and only when they were given `logits`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

__all__ = ["Bernoulli", "Binomial"]

_BLOCK = 120  # factors in [1/2, 1]: 2^-120 is above float32's smallest normal number, 2^-126
_SMALL = 20_000  # fewer elements: calls cost more than passes, and torch's own kernel is quicker


class _SummedLogits(torch.autograd.Function):
    """Sum over the last dimension of x l - n softplus(l), with its gradient in closed form."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, logits: Tensor, n: float) -> Tensor:
        ctx.n = n
        ctx.save_for_backward(x, logits)
        return _forward(x, logits, n)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, logits = ctx.saved_tensors
        grad_x = logits * g.unsqueeze(-1) if ctx.needs_input_grad[0] else None
        grad_l = _slope(x, logits, ctx.n, g.unsqueeze(-1)) if ctx.needs_input_grad[1] else None
        return grad_x, grad_l, None


def _may_reuse_memory() -> bool:
    """Whether one buffer can be written over: a graph being captured wants new results."""
    return not torch.compiler.is_compiling() and get_proxy_mode() is None


def _forward(x: Tensor, logits: Tensor, n: float) -> Tensor:
    """Return the sum; of the result and its parts nothing is differentiated.

    What max(l, 0) misses of x l cancels elementwise, not in the sums. Memory is what this costs:
    with one buffer instead of four it takes a third of the time.
    """
    size = logits.shape[-1]
    block = -(-size // -(-size // _BLOCK))  # the fewest blocks, as equal as they can be
    whole = size - size % block
    if _may_reuse_memory():
        buffer = logits.clamp_min(0)
        if n == 1:
            miss = buffer.addcmul_(x, logits, value=-1).sum(-1)
        else:
            miss = buffer.mul_(n).sub_(x * logits).sum(-1)
        factors = torch.abs(logits, out=buffer).sigmoid_()
    else:
        miss = (n * logits.clamp_min(0) - x * logits).sum(-1)
        factors = torch.sigmoid(logits.abs())
    logs = factors[..., :whole].unflatten(-1, (-1, block)).prod(-1).log().sum(-1)
    if whole != size:
        logs = logs + factors[..., whole:].prod(-1).log()
    return n * logs - miss


def _slope(x: Tensor, logits: Tensor, n: float, g: Tensor) -> Tensor:
    p = torch.sigmoid(logits)
    if torch.is_grad_enabled() or not _may_reuse_memory():
        return (x - n * p) * g
    return torch.sub(x, p, alpha=n, out=p).mul_(g)


def sum_log_prob(x: Tensor, logits: Tensor, n: float = 1) -> Tensor:
    r"""Return :math:`\sum_d x_d l_d - n\,\mathrm{softplus}(l_d)`, `[..., D]` to `[...]`.

    Any real x is allowed (soft labels); the binomial coefficient is not included.
    """
    if max(x.numel(), logits.numel()) < _SMALL and n == 1 and x.shape == logits.shape:
        return -binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
    if max(x.numel(), logits.numel()) < _SMALL or torch._C._are_functorch_transforms_active():
        return (x * logits + n * logsigmoid(-logits)).sum(-1)  # torch.func has its own gradients
    if x.shape != logits.shape:
        x, logits = torch.broadcast_tensors(x, logits)
    if torch.is_grad_enabled():
        return _SummedLogits.apply(x, logits, n)
    return _forward(x, logits, n)


def log_choose(x: Tensor, n: int) -> Tensor:
    """Return the log of n over x, elementwise; minus infinity where x is not one of 0..n."""
    table = torch.tensor(_log_row(n), dtype=x.dtype, device=x.device)
    index = x.clamp(0, n).long()
    return torch.where(index == x, table[index], -math.inf)


@lru_cache(maxsize=64)
def _log_row(n: int) -> tuple[float, ...]:
    """Return the logarithms of row n of Pascal's triangle."""
    return tuple(
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)
    )


class _Summed(dist.Independent):
    """Pyro's Independent whose log_prob is computed for the whole event at once."""

    def log_prob(self, value: Tensor) -> Tensor:
        base, d = self.base_dist, self.reinterpreted_batch_ndims
        logits = base.logits
        if (
            min(value.dim(), logits.dim()) < d
            or value.shape[value.dim() - d :] != logits.shape[-d:]
        ):
            return super().log_prob(value)  # Pyro's own broadcasting, or its error
        if base._validate_args:
            base._validate_sample(value)
        n = base.fixed_count
        flat = value.flatten(-d)
        if n == 1:
            return sum_log_prob(flat, logits.flatten(-d))
        return sum_log_prob(flat, logits.flatten(-d), n) + log_choose(flat, n).sum(-1)


class Bernoulli(dist.Bernoulli):
    r"""Pyro's Bernoulli; over an event of logits its log-density is summed in few passes.

    .. math:: \log p(x) = \sum_d x_d l_d - \mathrm{softplus}(l_d).

    >>> Bernoulli(logits=torch.zeros(100, 784)).to_event(1).log_prob(torch.ones(784)).shape
    torch.Size([100])
    """

    fixed_count = 1

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> dist.Independent:
        return _to_event(self, reinterpreted_batch_ndims, super().to_event)


class Binomial(dist.Binomial):
    r"""Pyro's Binomial; with an integer `total_count`, an event of logits is summed in few passes.

    .. math:: \log p(x) = \sum_d x_d l_d - n\,\mathrm{softplus}(l_d) + \log\tbinom{n}{x_d}.

    >>> Binomial(16, logits=torch.zeros(100, 64)).to_event(1).log_prob(torch.ones(64)).shape
    torch.Size([100])
    """

    fixed_count: int | None = None

    def __init__(
        self,
        total_count: int | Tensor = 1,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if isinstance(total_count, int):
            self.fixed_count = total_count
        super().__init__(total_count, probs, logits, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> Binomial:
        new = Binomial.__new__(Binomial) if _instance is None else _instance
        new.fixed_count = self.fixed_count
        return super().expand(batch_shape, new)

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> dist.Independent:
        return _to_event(self, reinterpreted_batch_ndims, super().to_event)


def _to_event(base: Any, n: int | None, otherwise: Any) -> Any:
    n = len(base.batch_shape) if n is None else n
    if (
        n < 1
        or "logits" not in base.__dict__
        or base.fixed_count is None
        or type(base) not in (Bernoulli, Binomial)
    ):
        return otherwise(n)
    return _Summed(base, n)
