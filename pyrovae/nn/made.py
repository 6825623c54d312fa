r"""A masked autoregressive network: one pass gives every conditional of a binary vector.

The chain rule writes any distribution of n binary numbers as

.. math:: \log p(x \mid c) = \sum_{d=1}^n \log p(x_d \mid x_1 \dots x_{d-1}, c).

A multilayer perceptron gives all n factors at once if no path leads from :math:`x_e` to the logit
of :math:`x_d` for :math:`e \ge d`. Every hidden unit k gets a degree :math:`m_k \in 0 \dots n - 1`
and reads only what is of its degree or less; the d-th logit reads units of degree below d:

.. math:: W_{kd} = 0 \text{ unless } m_k \ge d, \qquad
    W_{jk} = 0 \text{ unless } m_j \ge m_k, \qquad
    V_{dk} = 0 \text{ unless } d > m_k.

Germain, Gregor, Murray and Larochelle (2015, arXiv:1502.03509). Here the degrees are evenly
spaced in every layer and the order is that of the data (an image's rows, one after the other). The
context c, such as what a decoder has made of z, is added without a mask in every layer, as
Pyro's conditional network adds it in the first; x and c meet only there, so that x `[B, n]` goes
through the first layer once for all particles of c `[K, B, C]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from pyro.nn import MaskedLinear
from torch import Tensor, nn

from pyrovae.nn.networks import Shape, as_shape, linear

__all__ = ["MADE"]


class MADE(nn.Module):
    r"""Logits of :math:`p(x_d \mid x_{<d}, c)` for all d, from binary x and a context c.

    Args:
        n: how many numbers x has.
        context: width of c.
        hidden: width of the hidden layers, one integer or one per layer.
        activation: class of the nonlinearity.
        skip: add direct weights from :math:`x_{<d}` to the d-th logit.
        init: "glorot" or "normal".

    Raises:
        ValueError: a width below 1; an input of another size.

    >>> net = MADE(784, context=20, hidden=500)
    >>> net(torch.zeros(100, 784), torch.zeros(5, 100, 20)).shape
    torch.Size([5, 100, 784])

    Source: Germain, Gregor, Murray & Larochelle (2015), arXiv:1502.03509.
    """

    def __init__(
        self,
        n: int,
        context: int,
        hidden: Shape = 500,
        activation: Callable[[], nn.Module] = nn.ReLU,
        *,
        skip: bool = False,
        init: str = "glorot",
    ) -> None:
        super().__init__()
        widths = as_shape(hidden)
        if min(n, context, *widths) < 1 or not widths:
            raise ValueError(
                f"MADE: every width must be at least 1 and there must be a hidden layer, got n = "
                f"{n}, context {context}, hidden {widths}"
            )
        self.n, self.context_features = n, context
        degrees = [torch.arange(1, n + 1), *(_degrees(n, width) for width in widths)]
        pairs = list(zip(degrees[:-1], degrees[1:], strict=True))
        masks = [after[:, None] >= before for before, after in pairs]
        masks.append(degrees[0][:, None] > degrees[-1])
        self.layers = nn.ModuleList(_masked(mask, init) for mask in masks)
        self.contexts = nn.ModuleList(linear(context, width, init) for width in (*widths, n))
        self.skip = _masked(degrees[0][:, None] > degrees[0], init) if skip else None
        self.activation = activation()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return the logits `[..., n]` of x `[..., n]` given c `[..., C]`; the rest broadcasts."""
        if x.shape[-1] != self.n or context.shape[-1] != self.context_features:
            raise ValueError(
                f"MADE: x has shape {tuple(x.shape)} and the context {tuple(context.shape)}; "
                f"expected [..., {self.n}] and [..., {self.context_features}]"
            )
        h = x
        for layer, given in zip(self.layers[:-1], self.contexts[:-1], strict=True):
            h = self.activation(layer(h) + given(context))
        logits = self.layers[-1](h) + self.contexts[-1](context)
        return logits if self.skip is None else logits + self.skip(x)

    @torch.no_grad()
    def sample(self, context: Tensor) -> Tensor:
        """Draw x `[..., n]` for contexts `[..., C]`, one number after the other.

        A number is fed back into the first layer alone, and only its own logit is computed: n
        steps cost about as much as a few passes where there is one hidden layer.
        """
        x = context.new_zeros(*context.shape[:-1], self.n)
        given = [layer(context) for layer in self.contexts]
        first, *deeper = self._weights(self.layers[:-1])
        ((last, bias),) = self._weights(self.layers[-1:])
        ((direct, offset),) = self._weights([self.skip]) if self.skip else ((None, None),)
        a = given[0] + first[1]
        for d in range(self.n):
            h = self.activation(a)
            for (weight, shift), c in zip(deeper, given[1:-1], strict=True):
                h = self.activation(nn.functional.linear(h, weight, shift) + c)
            logit = h @ last[d] + bias[d] + given[-1][..., d]
            if direct is not None:
                logit = logit + x @ direct[d] + offset[d]
            x[..., d] = torch.bernoulli(logit.sigmoid())
            a = a + x[..., d, None] * first[0][:, d]
        return x

    @torch.no_grad()
    def set_bias(self, value: Tensor) -> None:
        """Start the logits at `value` `[n]`, which are exact where all weights are zero."""
        self.layers[-1].bias.copy_(value)

    @staticmethod
    def _weights(layers: nn.ModuleList | list[nn.Module]) -> Iterator[tuple[Tensor, Tensor]]:
        for layer in layers:
            yield layer.weight * layer.mask, layer.bias

    def extra_repr(self) -> str:
        return f"n={self.n}, context={self.context_features}"


def _degrees(n: int, width: int) -> Tensor:
    """Evenly spaced degrees from 0 (the context alone) to n - 1."""
    return torch.arange(width) * n // width


def _masked(mask: Tensor, init: str) -> MaskedLinear:
    """A masked layer, started as :func:`linear` starts one."""
    layer = MaskedLinear(mask.shape[1], mask.shape[0], mask.to(torch.get_default_dtype()))
    start = linear(mask.shape[1], mask.shape[0], init)
    with torch.no_grad():
        layer.weight.copy_(start.weight)
        layer.bias.copy_(start.bias)
    return layer
