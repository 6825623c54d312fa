r"""An autoregressive likelihood of binary data: pixels know z and all pixels before them.

.. math:: \log p(x \mid z) = \sum_{d=1}^D \log p(x_d \mid x_1 \dots x_{d-1}, h(z)),

with h the features that a decoder has made of z and the D factors the Bernoullis of one pass of a
network: :class:`pyrovae.nn.MADE`, which sees all pixels before d, or
:class:`pyrovae.nn.CausalWindow`, which sees the near ones. It is an exact, normalized distribution
of x for every z, observed at one site. Unlike a likelihood of independent pixels it can model
much of x without z, which leaves z less to say, or nothing: a decoder with which posteriors
collapse (Chen et al. 2017, arXiv:1611.02731).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from pyrovae.nn import MADE, CausalWindow

__all__ = ["AutoregressiveBernoulli", "AutoregressiveHead", "made_head", "window_head"]


class AutoregressiveBernoulli(TorchDistribution):
    r"""Binary arrays, each number a Bernoulli given those before it and a context.

    Args:
        net: the network of the logits; called with x `[..., D]` and the context, it returns
            `[..., D]`, and `net.sample(context)` draws x.
        context: what it is told besides, `[*batch, C]`.
        event_shape: shape of one draw; its numbers are in the order of a flattened tensor.

    >>> d = AutoregressiveBernoulli(MADE(6, context=2, hidden=9), torch.zeros(5, 2), (2, 3))
    >>> d.log_prob(torch.ones(5, 2, 3)).shape
    torch.Size([5])
    """

    arg_constraints = {"context": constraints.real_vector}
    has_rsample = False

    def __init__(
        self,
        net: MADE | CausalWindow,
        context: Tensor,
        event_shape: tuple[int, ...],
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.net, self.context = net, context
        super().__init__(context.shape[:-1], torch.Size(event_shape), validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """Arrays of zeros and ones."""
        return constraints.independent(constraints.boolean, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> AutoregressiveBernoulli:
        new = self._get_checked_instance(AutoregressiveBernoulli, _instance)
        batch_shape = torch.Size(batch_shape)
        context = self.context.expand(*batch_shape, self.context.shape[-1])
        new.net, new.context = self.net, context
        TorchDistribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        x = value.flatten(-len(self.event_shape))
        logits = self.net(x, self.context)
        # log p(x_d) = -softplus((1 - 2 x_d) logit_d)
        return -nn.functional.softplus((1 - 2 * x) * logits).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw pixel by pixel: as many steps as an event has numbers."""
        context = self.context.expand(*sample_shape, *self.context.shape)
        return self.net.sample(context).unflatten(-1, self.event_shape)

    @property
    def mean(self) -> Tensor:
        raise NotImplementedError(
            "AutoregressiveBernoulli: the mean of x given z has no closed form (it is a sum over "
            "all images). Try: the mean of draws, d.sample((100,)).mean(0)."
        )


class AutoregressiveHead(nn.Module):
    """The last layer of a decoder: features `[..., H]` to an :class:`AutoregressiveBernoulli`."""

    def __init__(self, net: MADE | CausalWindow, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.net, self.shape = net, shape

    def forward(self, features: Tensor) -> AutoregressiveBernoulli:
        return AutoregressiveBernoulli(self.net, features, self.shape)

    def set_bias(self, name: str, value: Tensor) -> None:
        self.net.set_bias(value.flatten())


def made_head(
    features: int,
    shape: tuple[int, ...],
    init: str,
    *,
    hidden: int = 500,
    layers: int = 1,
    skip: bool = False,
) -> AutoregressiveHead:
    """A head whose pixels see all pixels before them."""
    net = MADE(math.prod(shape), features, (hidden,) * layers, skip=skip, init=init)
    return AutoregressiveHead(net, shape)


def window_head(
    features: int,
    shape: tuple[int, ...],
    init: str,
    *,
    radius: int = 3,
    channels: int = 32,
    layers: int = 1,
    maps: int = 4,
) -> AutoregressiveHead:
    """A head whose pixels see their neighbours before them."""
    return AutoregressiveHead(
        CausalWindow(shape, features, radius, channels, layers, maps, init=init), shape
    )
