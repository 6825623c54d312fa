r"""Maps from what a network says onto the domain of a parameter, safe in float32.

The two usual maps onto the positive numbers break: softplus underflows (a pre-activation of -50
gives a scale of 2e-22, whose square is 0, whose gradient is NaN) and exp overflows at 89. With

.. math::

    s(a) = c \tanh(a / c), \quad c = 10, \qquad
    \text{positive: } e^{s(a)}, \qquad
    \text{unit interval: } \sigma(s(a)), \qquad
    \text{simplex: } \mathrm{softmax}(s(a)), \qquad
    \text{sphere: } a / |a|,

a scale lives in :math:`[4.5 \cdot 10^{-5},\, 2.2 \cdot 10^{4}]` whatever the network says, all
derivatives are finite, and near zero nothing is changed (:math:`s(0) = 0`, :math:`s'(0) = 1`). A
real parameter, such as a location or the logits of a Bernoulli, stays as it is.

:func:`safe_map` looks the map up by the constraint; what it does not know it says, rather than
guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions import constraints as pyro_constraints
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

__all__ = [
    "Map",
    "bounded_positive",
    "interval_end",
    "is_circle",
    "safe_map",
    "squash",
    "tril",
    "unit_vector",
]

#: the raw numbers of one parameter, and the parameters built before it -> the parameter
Map = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


def squash(a: Tensor, bound: float = 10.0) -> Tensor:
    r"""Return :math:`c \tanh(a / c)`: the identity near zero, within `[-bound, bound]` always."""
    return bound * torch.tanh(a / bound)


def bounded_positive(a: Tensor, bound: float = 10.0) -> Tensor:
    r"""Map the reals smoothly onto positive numbers that float32 can square and invert.

    .. math:: f(a) = \exp(c \tanh(a / c)), \qquad f(0) = f'(0) = 1.

    Args:
        a: pre-activations, any shape.
        bound: :math:`c`; the result lies within :math:`[e^{-c}, e^{c}]`.

    >>> bounded_positive(torch.tensor([-50.0, 0.0, 90.0])).log().round().tolist()
    [-10.0, 0.0, 10.0]
    """
    return squash(a, bound).exp()


def _unit(a: Tensor) -> Tensor:
    return torch.sigmoid(squash(a))


def unit_vector(a: Tensor) -> Tensor:
    """Divide vectors `[..., d]` by their lengths.

    A vector shorter than 0.001 is read as an offset from the first axis: no network output has a
    slope above 1000, and none, zero included, has a slope of 0 or NaN.

    >>> unit_vector(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    tensor([[1.0000, 0.0000],
            [0.6000, 0.8000]])
    """
    short = a.detach().square().sum(-1, keepdim=True) < 1e-6
    first = torch.zeros_like(a)
    first[..., 0] = 1.0
    v = a + torch.where(short, first, 0.0)
    return v / torch.linalg.vector_norm(v, dim=-1, keepdim=True)


def _angle(a: Tensor) -> Tensor:
    """Return the angles of plane vectors `[..., 2]`: continuous all around the circle."""
    cos, sin = unit_vector(a).unbind(-1)
    return torch.atan2(sin, cos)


def is_circle(domain: Any) -> bool:
    """Whether a constraint is the angles from -pi to pi, whose ends are one point."""
    low, high = (getattr(domain, name, None) for name in ("lower_bound", "upper_bound"))
    numbers = isinstance(low, float) and isinstance(high, float)
    return numbers and (low, high) == (-math.pi, math.pi)


def tril(a: Tensor, n: int) -> Tensor:
    """Fill lower triangles `[..., n, n]` with positive diagonals from `[..., n (n + 1) / 2]`.

    The first n numbers are the diagonal (through :func:`bounded_positive`), the others what is
    below it, row by row.
    """
    diagonal, below = a.split([n, n * (n - 1) // 2], -1)
    matrix = torch.diag_embed(bounded_positive(diagonal))
    if n == 1:
        return matrix
    rows, columns = torch.tril_indices(n, n, -1, device=a.device)
    position = torch.full((n, n), rows.numel(), device=a.device)
    position[rows, columns] = torch.arange(rows.numel(), device=a.device)
    padded = torch.cat([below, below.new_zeros(*below.shape[:-1], 1)], -1)
    return matrix + padded[..., position]


def interval_end(name: str, domain: Constraint) -> Map:
    """Return the map of `low` or `high` where both are predicted: `low < high` by construction.

    Inside `domain` where it has two ends, else anywhere on the line. A `peak` lies between them.
    """
    lower, upper = getattr(domain, "lower_bound", None), getattr(domain, "upper_bound", None)
    bounded = lower is not None and upper is not None

    def low(a: Tensor, _: Mapping[str, Tensor]) -> Tensor:
        return lower + 0.5 * (upper - lower) * _unit(a) if bounded else a

    def high(a: Tensor, built: Mapping[str, Tensor]) -> Tensor:
        start = built["low"]
        return start + ((upper - start) * _unit(a) if bounded else bounded_positive(a))

    def peak(a: Tensor, built: Mapping[str, Tensor]) -> Tensor:
        return torch.lerp(built["low"], built["high"], _unit(a))

    return {"low": low, "high": high, "peak": peak}[name]


def safe_map(domain: Constraint, n: int) -> tuple[tuple[int, ...], Map] | None:
    """Return the shape of the raw numbers (event part) and their map into the domain.

    Args:
        domain: a constraint of `torch.distributions.constraints` or Pyro's.
        n: size of the event's last dimension, for vectors and matrices.

    Returns:
        None where no map is known.
    """
    if isinstance(domain, constraints.independent):
        base = safe_map(domain.base_constraint, n)
        if base is None:
            return None
        sizes = getattr(domain, "sizes", (n,) * domain.reinterpreted_batch_ndims)
        return sizes + base[0], base[1]
    if isinstance(domain, type(constraints.lower_cholesky)):
        return (n * (n + 1) // 2,), lambda a, _: tril(a, n)
    if isinstance(domain, type(constraints.simplex)):
        return (n,), lambda a, _: squash(a).softmax(-1)
    if isinstance(domain, type(pyro_constraints.sphere)):
        return (n,), lambda a, _: unit_vector(a)
    if is_circle(domain):
        return (2,), lambda a, _: _angle(a)
    scalar = _scalar_map(domain)
    return None if scalar is None else ((), lambda a, _: scalar(a))


def _scalar_map(domain: Any) -> Callable[[Tensor], Tensor] | None:
    if isinstance(domain, type(constraints.real)):
        return lambda a: a
    if isinstance(domain, constraints.greater_than | constraints.greater_than_eq):
        low = domain.lower_bound
        if not isinstance(low, Tensor) and low == 0:
            return bounded_positive
        return lambda a: low + bounded_positive(a)
    if isinstance(domain, constraints.less_than):
        return lambda a: domain.upper_bound - bounded_positive(a)
    if isinstance(domain, constraints.interval | constraints.half_open_interval):
        return _interval_map(domain.lower_bound, domain.upper_bound)
    return None


def _interval_map(lower: float | Tensor, upper: float | Tensor) -> Callable[[Tensor], Tensor]:
    """Return a sigmoid onto an interval, with a slope near 1 where it starts if it is wide.

    A wide positive interval starts at 1, as an unbounded positive parameter does; others start in
    the middle.
    """
    width = upper - lower
    if isinstance(width, Tensor) or width <= 4:
        return lambda a: lower + width * _unit(a)
    if lower == 0:
        return lambda a: upper * torch.sigmoid(squash(a) - math.log(upper - 1))
    return lambda a: lower + width * _unit(a * (4 / width))
