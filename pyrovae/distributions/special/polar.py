r"""The polar angle of directional laws: how it moves with the concentration.

On the unit sphere in d dimensions the density :math:`\propto e^{\kappa\cos\theta}`, with
:math:`\theta` the angle to the mean, gives the angle the density
:math:`f(\theta) \propto \sin^{d - 2}\theta\,e^{\kappa\cos\theta}` on :math:`[0, \pi]`. At a fixed
cdf, with :math:`A = E[\cos\theta]`,

.. math::

    \frac{d\theta}{d\kappa}
    = -\frac{1}{f(\theta)} \int_0^\theta (\cos s - A)\,f(s)\,ds
    = \frac{1}{f(\theta)} \int_\theta^\pi (\cos s - A)\,f(s)\,ds .

The first integrand has one sign where :math:`\cos\theta > A`, the second where it is not: nothing
cancels. A cosine near 1 keeps its digits as :math:`1 - 2\sin^2(s/2)`. The interval ends where the
density has fallen by :math:`e^{-L}`: on the left at the root of a parabola, for the curvature of
log f only grows there; on the right after Newton steps in :math:`h = \sin^2(s/2)`, in which log f
is concave, so that every step is beyond the point that is sought.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyrovae.distributions.special.bessel import bessel_ratio_complement
from pyrovae.distributions.special.quadrature import (
    MEDIUM,
    ROUGH,
    Rule,
    integrate,
    known,
    nodes,
    result_dtype,
)

__all__ = ["pathwise_polar", "polar_slope", "slope_at"]


def _beyond(dim: int, concentration: Tensor, h: Tensor, drop: float) -> Tensor:
    """Return an h to the right of which the density is below exp(-drop) of that at h."""
    rate, c = 2 * concentration, 0.5 * (dim - 2)
    if dim == 2:
        return (h + drop / rate).clamp_max(1.0)
    h = h.clamp(1e-290, 1 - 1e-13)
    slope, bend = rate - c * (1 / h - 1 / (1 - h)), c * (1 / h**2 + 1 / (1 - h) ** 2)
    step = 2 * drop / (slope + torch.sqrt(slope**2 + 2 * drop * bend))
    p = (h + step).clamp_max(1 - 1e-13)
    for _ in range(3):
        fall = rate * (p - h) - c * (torch.log(p / h) + torch.log((1 - p) / (1 - h)))
        p = p + (drop - fall) / (rate - c * (1 / p - 1 / (1 - p)))
        p = torch.maximum(p, h).clamp_max(1 - 1e-13)
    return p


def _interval(dim: int, concentration: Tensor, theta: Tensor, left: Tensor, drop: float) -> Tensor:
    """Return the signed length of the interval to integrate over, from theta."""
    h = torch.sin(0.5 * theta).square()
    right = 2 * torch.asin(_beyond(dim, concentration, h, drop).sqrt()) - theta
    sin, cos = theta.sin().clamp_min(1e-150), theta.cos()  # its square is a number too
    slope = (dim - 2) * cos / sin - concentration * sin
    bend = (dim - 2) / sin**2 + concentration * cos.clamp_min(0.0)
    step = 2 * drop / (slope + torch.sqrt(slope**2 + 2 * drop * bend))
    return torch.where(left, -torch.minimum(step, theta), right.clamp_min(0.0))


def slope_at(dim: int, concentration: Tensor, theta: Tensor, rule: Rule) -> Tensor:
    """Return d theta / d kappa of angles in [0, pi] at a fixed cdf; float64."""
    start = torch.sin(0.5 * theta)
    rest = bessel_ratio_complement(0.5 * dim - 1, concentration)
    left = 2 * start * start < rest
    with torch.no_grad():
        end = _interval(dim, concentration, theta, left, rule.drop)
    v, weights = nodes(rule, theta)
    angle = torch.addcmul(theta, end, v)
    half = torch.sin(0.5 * angle)
    exponent = 2 * concentration * (start - half) * (start + half)
    if dim > 2:
        sines = angle.sin().clamp_min(1e-290) / theta.sin().clamp_min(1e-290)
        exponent = exponent + (dim - 2) * sines.log()
    total = integrate(weights[:1], exponent.exp() * (rest - 2 * half * half))[0]
    return end * total


def _rule(dtype: torch.dtype) -> Rule:
    return ROUGH if dtype == torch.float32 else MEDIUM


def polar_slope(dim: int, concentration: Tensor, theta: Tensor) -> Tensor:
    r"""Return the pathwise derivative :math:`d\theta/d\kappa`, relative error 1e-6 or 1e-11."""
    dtype = result_dtype(concentration, theta)
    pair = (x.double() for x in torch.broadcast_tensors(concentration, theta))
    return slope_at(dim, *pair, _rule(dtype)).to(dtype)


def pathwise_polar(dim: int, draw: Callable[[Tensor], Tensor], concentration: Tensor) -> Tensor:
    """Return the angles `draw(concentration)` as a function of the concentration.

    On the circle (`dim` 2) they may have a sign.
    """
    dtype = concentration.dtype
    rule = _rule(dtype)

    def value(concentration: Tensor) -> Tensor:
        return draw(concentration.to(dtype))

    def partials(needed: tuple[bool, ...], theta: Tensor, concentration: Tensor) -> tuple:
        slope = slope_at(dim, concentration, theta.abs(), rule)
        return (torch.where(theta < 0, -slope, slope),)

    return known(value, partials, concentration, rules=(None, rule), dtype=dtype)
