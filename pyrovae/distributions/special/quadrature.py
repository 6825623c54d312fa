r"""Tail integrals by Gauss-Legendre nodes, and functions whose derivatives are written down.

Every function of this package is a ratio of the same kind. In a coordinate y in which the density
f is log-concave (log z for Gamma, logit x for Beta, log \|t\| for Student's t), the tail beyond y
seen from y itself is

.. math:: \frac{1}{f(y)} \int_0^{V} h(y \mp v)\, f(y \mp v)\,dv,

with h = 1 for the cdf and :math:`h = \partial_\theta \log f` for its derivative in a parameter.
On the side where the tail falls, the integrand is smooth, of one sign, and has dropped to
:math:`e^{-L}` at a V that is known in closed form. So a fixed number of nodes gives the cdf, its
logarithm and every derivative to a relative accuracy that does not depend on how far in the tail
y lies, in every regime of the parameters; where small parameters make the tail long, one step of
the recurrence in the parameter shortens it first.

:func:`known` makes a differentiable function of a value and its partial derivatives. The partials
are differentiable torch code again, so second derivatives are right; the interval V is a constant
to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

__all__ = ["FINE", "MEDIUM", "ROUGH", "Rule", "in_chunks", "known", "nodes", "wide"]

Partials = Callable[..., tuple[Tensor, ...]]


class Rule:
    """How many nodes, and the exponent L at which the tail is cut."""

    def __init__(self, count: int, drop: float) -> None:
        self.count, self.drop = count, drop


ROUGH = Rule(12, 20.0)  # relative error below 1e-7: enough where float32 is asked for
MEDIUM = Rule(20, 32.0)  # near 1e-11
FINE = Rule(32, 40.0)  # near 1e-15


@lru_cache(maxsize=8)
def _legendre(n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return nodes and weights of the Gauss-Legendre rule on [0, 1], by Newton's method."""
    points, weights = [], []
    for k in range(n):
        x = math.cos(math.pi * (k + 0.75) / (n + 0.5))
        for _ in range(8):
            before, now = 1.0, x
            for j in range(2, n + 1):
                before, now = now, ((2 * j - 1) * x * now - (j - 1) * before) / j
            slope = n * (x * now - before) / (x * x - 1)
            x -= now / slope
        points.append((1 - x) / 2)
        weights.append(1 / ((1 - x * x) * slope * slope))
    return tuple(points), tuple(weights)


@lru_cache(maxsize=8)
def _clustered(n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the rule after v = s (1 + s) / 2, whose nodes are denser where the tail is high."""
    points, weights = _legendre(n)
    return (
        tuple(s * (1 + s) / 2 for s in points),
        tuple(w * (0.5 + s) for s, w in zip(points, weights, strict=True)),
    )


def nodes(rule: Rule, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return nodes and weights on [0, 1], shaped `[K, 1, ...]` to broadcast against `like`."""
    points, weights = _clustered(rule.count)
    shape = (rule.count,) + (1,) * like.dim()
    return (
        torch.tensor(points, dtype=like.dtype, device=like.device).view(shape),
        torch.tensor(weights, dtype=like.dtype, device=like.device).view(shape),
    )


def wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in float64 and broadcast: float32 results are rounded once, at the end."""
    return torch.broadcast_tensors(*(t.double() for t in tensors))


def in_chunks(
    fn: Callable[..., tuple[Tensor, ...]], rule: Rule, *tensors: Tensor
) -> tuple[Tensor, ...]:
    """Apply an elementwise `fn` in pieces that stay in the cache with all their nodes.

    A graph that is being captured, mapped or differentiated gets it whole.
    """
    size = tensors[0].numel()
    most = (1 << 26) if tensors[0].is_cuda else (1 << 16)
    piece = max(most // rule.count, 1024)
    if (
        size <= piece
        or torch.compiler.is_compiling()
        or get_proxy_mode() is not None
        or torch._C._are_functorch_transforms_active()
        or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
    ):
        return fn(*tensors)
    flat = [t.reshape(-1) for t in tensors]
    parts = [fn(*(t[i : i + piece] for t in flat)) for i in range(0, size, piece)]
    return tuple(torch.cat(column).view(tensors[0].shape) for column in zip(*parts, strict=True))


class _Known(torch.autograd.Function):
    """A value with given partials: `partials(needed, output, *inputs)`, differentiable again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Callable[..., Tensor], partials: Partials, *inputs: Tensor) -> Tensor:
        return value(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.partials = inputs[1]
        ctx.save_for_backward(output, *inputs[2:])
        ctx.save_for_forward(output, *inputs[2:])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        output, *inputs = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        slopes = ctx.partials(needed, output, *inputs)
        grads = (
            torch.where(g == 0, torch.zeros_like(g), g * s) if n else None
            for n, s in zip(needed, slopes, strict=True)
        )
        return (None, None, *grads)

    @staticmethod
    def jvp(ctx: Any, _value: Any, _partials: Any, *tangents: Tensor | None) -> Tensor:
        output, *inputs = ctx.saved_tensors
        needed = tuple(t is not None for t in tangents)
        slopes = ctx.partials(needed, output, *inputs)
        total = torch.zeros_like(output)
        for tangent, slope, n in zip(tangents, slopes, needed, strict=True):
            if n:
                total = total + tangent * slope
        return total


def known(value: Callable[..., Tensor], partials: Partials, *inputs: Tensor) -> Tensor:
    """Return `value(*inputs)` with these derivatives.

    Args:
        value: the function, of tensors of one shape; nothing in it is recorded.
        partials: `partials(needed, output, *inputs)` returns one tensor for each input; where
            `needed` is False anything may stand. It is differentiated for second derivatives.
        inputs: tensors of one shape and dtype; broadcast them before.
    """
    return _Known.apply(value, partials, *inputs)
