r"""Networks from features to features, which read any number of leading dimensions.

A multilayer perceptron is :math:`h_{i+1} = g(W_i h_i + b_i)` with :math:`h_0` the datum,
flattened. Where its weights start decides much of the first epochs: Burda, Grosse and
Salakhutdinov (2016, arXiv 1509.00519) draw them Glorot-uniform with biases at zero, Kingma and
Welling (2014, arXiv 1312.6114) draw everything from :math:`\mathcal N(0, 0.01)`. Both are offered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["MLP", "Fold", "OnCircle", "Shape", "as_shape", "linear"]

Shape = int | Sequence[int]


def as_shape(shape: Shape) -> tuple[int, ...]:
    """Return `shape` as a tuple: an integer is one dimension."""
    return (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)


def linear(n_in: int, n_out: int, init: str = "glorot") -> nn.Linear:
    """Return a linear layer, started "glorot" (uniform, zero bias) or "normal" (all N(0, 0.01)).

    Raises:
        ValueError: another name.
    """
    layer = nn.Linear(n_in, n_out)
    if init == "glorot":
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    elif init == "normal":
        nn.init.normal_(layer.weight, std=0.1)  # variance 0.01
        nn.init.normal_(layer.bias, std=0.1)
    else:
        raise ValueError(f'init must be "glorot" or "normal", got {init!r}')
    return layer


class MLP(nn.Module):
    r"""A multilayer perceptron :math:`h_{i+1} = g(W_i h_i + b_i)` over the last event dimensions.

    Args:
        in_shape: shape of one datum, `784` or `(28, 28)`; it is flattened.
        hidden: width of the hidden layers, one integer or one per layer.
        out: width of a last, linear layer; None to end after the last hidden activation.
        activation: class of the nonlinearity :math:`g`.
        init: "glorot" or "normal".
        input_scale: the input is multiplied by this number (1/16 for counts up to 16).

    Raises:
        ValueError: a width below 1; an input whose trailing dimensions are not `in_shape`.

    >>> import torch
    >>> MLP((28, 28), (200, 200))(torch.zeros(5, 100, 28, 28)).shape
    torch.Size([5, 100, 200])
    """

    def __init__(
        self,
        in_shape: Shape,
        hidden: Shape,
        out: int | None = None,
        activation: Callable[[], nn.Module] = nn.Tanh,
        *,
        init: str = "glorot",
        input_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.in_shape = as_shape(in_shape)
        self.input_scale = float(input_scale)
        widths = [math.prod(self.in_shape), *as_shape(hidden)]
        if min(widths) < 1 or (out is not None and out < 1):
            raise ValueError(
                f"MLP: every width must be at least 1, got input and hidden {widths}, out {out}"
            )
        layers: list[nn.Module] = []
        for n_in, n_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [linear(n_in, n_out, init), activation()]
        if out is not None:
            layers.append(linear(widths[-1], out, init))
        self.layers = nn.Sequential(*layers)
        self.out_features = widths[-1] if out is None else out

    def forward(self, x: Tensor) -> Tensor:
        n = len(self.in_shape)
        lead, event = x.shape[: x.dim() - n], tuple(x.shape[x.dim() - n :])
        if event != self.in_shape:
            raise ValueError(
                f"MLP: the input has shape {tuple(x.shape)}, the network reads trailing "
                f"dimensions {self.in_shape}; build it with in_shape={event}, or reshape the input"
            )
        if n > 1:
            x = x.reshape(*lead, -1)
        if self.input_scale != 1.0:
            x = x * self.input_scale
        return self.layers(x)


class Fold(nn.Module):
    """Wrap a network that reads one batch dimension so that it reads any number of them.

    `[K, B, *event]` becomes `[K * B, *event]`, goes through `net`, and returns as `[K, B, *rest]`.

    Args:
        net: a module from one tensor to one tensor.
        event_dim: how many trailing dimensions belong to one datum (3 for an image with channels).

    >>> import torch
    >>> Fold(nn.Conv2d(1, 4, 3), event_dim=3)(torch.zeros(5, 100, 1, 8, 8)).shape
    torch.Size([5, 100, 4, 6, 6])
    """

    def __init__(self, net: nn.Module, event_dim: int = 1) -> None:
        super().__init__()
        self.net = net
        self.event_dim = event_dim

    def forward(self, x: Tensor) -> Tensor:
        lead = x.shape[: x.dim() - self.event_dim]
        y = self.net(x.reshape(-1, *x.shape[len(lead) :]))
        return y.reshape(*lead, *y.shape[1:])


class OnCircle(nn.Module):
    r"""Angles as points of the plane: :math:`z \mapsto (\cos z, \sin z)`.

    To a network that reads an angle as a number, :math:`-\pi` and :math:`\pi` are far apart; to
    one that reads the point they are the same. `[..., n]` becomes `[..., 2 n]`, cosines first.

    >>> import torch
    >>> OnCircle()(torch.tensor([0.0, torch.pi / 2])).round().tolist()
    [1.0, -0.0, 0.0, 1.0]
    """

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z.cos(), z.sin()], -1)
