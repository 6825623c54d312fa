r"""The von Mises law of an angle about 0: density, pathwise derivative, masses of arcs.

With :math:`f(s) = e^{\kappa\cos s} / 2\pi I_0(\kappa)` and :math:`A = E[\cos s]`,

.. math::

    \frac{d\theta}{d\kappa}
    = -\frac{1}{f(\theta)} \int_0^\theta (\cos s - A)\,f(s)\,ds
    = \frac{1}{f(\theta)} \int_\theta^\pi (\cos s - A)\,f(s)\,ds .

The first integrand has one sign where :math:`\cos\theta > A`, the second where it is not: nothing
cancels. A cosine near 1 keeps its digits as :math:`1 - 2\sin^2(s/2)`, so the exponent is
:math:`\kappa(\cos s - \cos\theta) = 2\kappa(\sin^2\tfrac\theta2 - \sin^2\tfrac s2)`.
"""

from __future__ import annotations

import math
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

__all__ = ["log_von_mises_density", "pathwise_von_mises", "von_mises_slope"]


def _slope(concentration: Tensor, theta: Tensor, rule: Rule) -> Tensor:
    """Return d theta / d kappa at a fixed cdf; float64."""
    t = theta.abs()
    start = torch.sin(0.5 * t)
    rest = bessel_ratio_complement(0.0, concentration)
    left = 2 * start * start < rest
    top = (start.square() + 0.5 * rule.drop / concentration).clamp_max(1.0)
    end = torch.where(left, -t, 2 * torch.asin(top.sqrt()) - t).detach()
    v, weights = nodes(rule, t)
    half = torch.sin(0.5 * torch.addcmul(t, end, v))
    weight = torch.exp(2 * concentration * (start - half) * (start + half))
    total = integrate(weights[:1], weight * (rest - 2 * half * half))[0]
    return torch.where(theta < 0, -end, end) * total


def von_mises_slope(concentration: Tensor, theta: Tensor) -> Tensor:
    r"""Return the pathwise derivative :math:`d\theta/d\kappa` of a draw about 0."""
    dtype = result_dtype(concentration, theta)
    rule = ROUGH if dtype == torch.float32 else MEDIUM
    pair = torch.broadcast_tensors(concentration, theta)
    return _slope(*(x.double() for x in pair), rule).to(dtype)


def pathwise_von_mises(draw: Callable[[Tensor], Tensor], concentration: Tensor) -> Tensor:
    """Return `draw(concentration)`, angles about 0, as a function of the concentration."""
    dtype = concentration.dtype
    rule = ROUGH if dtype == torch.float32 else MEDIUM

    def value(concentration: Tensor) -> Tensor:
        return draw(concentration.to(dtype))

    def partials(needed: tuple[bool, ...], theta: Tensor, concentration: Tensor) -> tuple:
        return (_slope(concentration, theta, rule),)

    return known(value, partials, concentration, rules=(None, rule), dtype=dtype)


def log_von_mises_density(concentration: Tensor, theta: Tensor) -> Tensor:
    r"""Return :math:`-2\kappa\sin^2\tfrac\theta2 - \log 2\pi e^{-\kappa} I_0(\kappa)`."""
    dtype = result_dtype(concentration, theta)

    def value(concentration: Tensor, theta: Tensor) -> Tensor:
        far = -2 * concentration * torch.sin(0.5 * theta).square()
        return far - torch.log(2 * math.pi * torch.special.i0e(concentration))

    def partials(
        needed: tuple[bool, ...], out: Tensor, concentration: Tensor, theta: Tensor
    ) -> tuple:
        per_kappa = None
        if needed[0]:
            far = 2 * torch.sin(0.5 * theta).square()
            per_kappa = bessel_ratio_complement(0.0, concentration) - far
        return per_kappa, -concentration * theta.sin()

    return known(value, partials, concentration, theta, dtype=dtype)
