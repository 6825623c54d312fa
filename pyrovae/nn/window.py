r"""A masked convolution: each pixel is predicted from those just above and to the left of it.

In images the neighbours say most. Pixel d sees the window of radius r around it as far as it comes
before d in reading order, :math:`w_d \in \{0, 1\}^{2 r (r + 1)}`, with zeros beyond the border,
and a context c through a few maps :math:`m_d(c)` over the image:

.. math::

    h_d = g(W w_d + U m_d(c) + b), \qquad h'_d = g(W' h_d + b'), \ \dots \qquad
    \mathrm{logit}_d = v^\top h_d + l_d(c),

with the same weights W, U, v at every pixel. This is the first layer of a PixelCNN (van den Oord,
Kalchbrenner & Kavukcuoglu 2016, arXiv:1601.06759) and 1x1 convolutions after it. What lies outside
of the window can reach a pixel through c alone: such a decoder draws sharp strokes by itself and
leaves to z what is global (Chen et al. 2017, arXiv:1611.02731).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyrovae.nn.networks import Shape, as_shape, linear

__all__ = ["CausalWindow"]


class CausalWindow(nn.Module):
    r"""Logits of :math:`p(x_d \mid w_d, c)` for all pixels d of a binary image.

    Args:
        shape: height and width.
        context: width of c.
        radius: r; pixel d sees r rows above and r pixels to either side.
        channels: width of the hidden layers at each pixel.
        layers: how many.
        maps: how many numbers a pixel c is turned into, for the first hidden layer.
        activation: class of the nonlinearity g.
        init: "glorot" or "normal".

    Raises:
        ValueError: a shape that is no image's, a size below 1, an input of another size.

    >>> net = CausalWindow((28, 28), context=20)
    >>> net(torch.zeros(100, 784), torch.zeros(5, 100, 20)).shape
    torch.Size([5, 100, 784])
    """

    def __init__(
        self,
        shape: Shape,
        context: int,
        radius: int = 3,
        channels: int = 32,
        layers: int = 1,
        maps: int = 4,
        activation: Callable[[], nn.Module] = nn.ReLU,
        *,
        init: str = "glorot",
    ) -> None:
        super().__init__()
        self.shape = as_shape(shape)
        if len(self.shape) != 2:
            raise ValueError(
                f"CausalWindow: expected an image, (height, width), got a shape of {self.shape}; "
                "for other arrays take MADE"
            )
        if min(*self.shape, context, radius, channels, layers, maps) < 1:
            raise ValueError(
                f"CausalWindow: every size must be at least 1, got shape {self.shape}, context "
                f"{context}, radius {radius}, channels {channels}, layers {layers}, maps {maps}"
            )
        self.n, self.context_features = math.prod(self.shape), context
        self.radius, self.maps = radius, maps
        self.window = linear(2 * radius * (radius + 1), channels, init)
        self.to_maps = linear(context, self.n * maps, init)
        self.from_maps = nn.Linear(maps, channels, bias=False)
        self.deeper = nn.ModuleList(linear(channels, channels, init) for _ in range(layers - 1))
        self.last = linear(channels, 1, init)
        self.to_logits = linear(context, self.n, init)
        self.activation = activation()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return the logits `[..., n]` of x `[..., n]` given c `[..., C]`; the rest broadcasts."""
        if x.shape[-1] != self.n or context.shape[-1] != self.context_features:
            raise ValueError(
                f"CausalWindow: x has shape {tuple(x.shape)} and the context "
                f"{tuple(context.shape)}; expected [..., {self.n}] and "
                f"[..., {self.context_features}]"
            )
        h = self.window(self._windows(x)) + self._given(context)
        return self._logits(h) + self.to_logits(context)

    def _windows(self, x: Tensor) -> Tensor:
        """What each pixel sees of x `[..., n]`: `[..., n, 2 r (r + 1)]`."""
        r = self.radius
        images = x.reshape(-1, 1, *self.shape)
        padded = nn.functional.pad(images, (r, r, r, 0))
        seen = nn.functional.unfold(padded, (r + 1, 2 * r + 1))  # the last r + 1 are not yet known
        return seen[:, : -(r + 1)].transpose(1, 2).reshape(*x.shape, -1)

    def _given(self, context: Tensor) -> Tensor:
        """What c adds to the first hidden layer, `[..., n, channels]`."""
        return self.from_maps(self.to_maps(context).unflatten(-1, (self.n, self.maps)))

    def _logits(self, a: Tensor) -> Tensor:
        h = self.activation(a)
        for layer in self.deeper:
            h = self.activation(layer(h))
        return self.last(h).squeeze(-1)

    @torch.no_grad()
    def sample(self, context: Tensor) -> Tensor:
        """Draw x `[..., n]` for contexts `[..., C]`, pixel by pixel."""
        (height, width), r = self.shape, self.radius
        lead = context.shape[:-1]
        given, offset = self._given(context), self.to_logits(context)
        x = context.new_zeros(*lead, height + r, width + 2 * r)
        for d in range(self.n):
            i, j = divmod(d, width)
            seen = x[..., i : i + r + 1, j : j + 2 * r + 1].flatten(-2)[..., : -(r + 1)]
            logit = self._logits(self.window(seen) + given[..., d, :]) + offset[..., d]
            x[..., i + r, j + r] = torch.bernoulli(logit.sigmoid())
        return x[..., r:, r:-r].flatten(-2)

    @torch.no_grad()
    def set_bias(self, value: Tensor) -> None:
        """Start the logits at `value` `[n]`, which are exact where all weights are zero."""
        self.to_logits.bias.copy_(value)

    def extra_repr(self) -> str:
        return f"shape={self.shape}, radius={self.radius}"
