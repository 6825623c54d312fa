r"""The von Mises law of an angle: density, masses of arcs, and their ends.

An arc between two angles meets up to four half turns counted from the mode; on each the density
is monotone, and the mass is an integral from its higher end, relative to the density there, in
the half angles of :mod:`~pyrovae.distributions.special.polar`. The arc's mass is the sum, so both
tails keep their digits wherever the cut at -pi lies. The mass between -pi and z has the derivative
:math:`f(z)` in z, :math:`f(-\pi) - f(z)` in the location, and :math:`f h` at -pi less that at z in
the concentration, with h the pathwise derivative of an angle.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrovae.distributions.special.bessel import bessel_ratio_complement
from pyrovae.distributions.special.polar import slope_at
from pyrovae.distributions.special.quadrature import (
    FINE,
    MEDIUM,
    integrate,
    known,
    nodes,
    result_dtype,
)

__all__ = [
    "log_von_mises_density",
    "von_mises_quantile",
    "von_mises_tail",
]

_STEPS = 10


def _log_density(concentration: Tensor, theta: Tensor) -> Tensor:
    far = -2 * concentration * torch.sin(0.5 * theta).square()
    return far - torch.log(2 * math.pi * torch.special.i0e(concentration))


def log_von_mises_density(concentration: Tensor, theta: Tensor) -> Tensor:
    r"""Return :math:`-2\kappa\sin^2\tfrac\theta2 - \log 2\pi e^{-\kappa} I_0(\kappa)`."""
    dtype = result_dtype(concentration, theta)

    def partials(
        needed: tuple[bool, ...], out: Tensor, concentration: Tensor, theta: Tensor
    ) -> tuple:
        per_kappa = None
        if needed[0]:
            far = 2 * torch.sin(0.5 * theta).square()
            per_kappa = bessel_ratio_complement(0.0, concentration) - far
        return per_kappa, -concentration * theta.sin()

    return known(_log_density, partials, concentration, theta, dtype=dtype)


# -- masses of arcs, and their ends --------------------------------------------------------------


def _wrapped(angle: Tensor) -> Tensor:
    """Return the angle modulo 2 pi, between -pi and pi; float64."""
    return angle - 2 * math.pi * torch.round(angle.detach() / (2 * math.pi))


def _log_piece(concentration: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log of the mass between 0 <= a <= b <= pi, and its ratio to the density at a."""
    start = torch.sin(0.5 * a)
    top = (start.square() + 0.5 * FINE.drop / concentration).clamp_max(1.0)
    width = torch.minimum(2 * torch.asin(top.sqrt()), b) - a
    v, weights = nodes(FINE, a)
    half = torch.sin(0.5 * torch.addcmul(a, width, v))
    weight = torch.exp(2 * concentration * (start - half) * (start + half))
    ratio = width.clamp_min(0.0) * integrate(weights[:1], weight)[0]
    return _log_density(concentration, a) + ratio.log(), ratio


def _log_mass(concentration: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the log of the mass of the arc from low to high, within two turns around 0.

    It is the sum over the half turns it meets; on each the density is monotone.
    """
    pieces = []
    for turn, mirrored in ((-1, False), (0, True), (0, False), (1, True)):
        a, b = low - 2 * math.pi * turn, high - 2 * math.pi * turn
        a, b = (-b, -a) if mirrored else (a, b)
        pieces.append(_log_piece(concentration, a.clamp(0, math.pi), b.clamp(0, math.pi))[0])
    return torch.stack(pieces).logsumexp(0)


def _signed_slope(concentration: Tensor, theta: Tensor) -> Tensor:
    slope = slope_at(2, concentration, theta.abs(), MEDIUM)
    return torch.where(theta < 0, -slope, slope)


def _moved(
    needed: tuple[bool, ...], loc: Tensor, concentration: Tensor, z: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the derivatives of the mass between -pi and z, in the three."""
    low, high = _wrapped(-math.pi - loc), _wrapped(z - loc)
    at_cut = _log_density(concentration, low).exp()
    at_z = _log_density(concentration, high).exp()
    per_kappa = at_z
    if needed[1]:
        per_kappa = at_cut * _signed_slope(concentration, low)
        per_kappa = per_kappa - at_z * _signed_slope(concentration, high)
    return at_cut - at_z, per_kappa, at_z


def von_mises_tail(
    loc: Tensor, concentration: Tensor, z: Tensor, *, log: bool, lower: bool
) -> Tensor:
    """Return the mass between -pi and z (`lower`) or z and pi, or its log."""
    dtype = result_dtype(loc, concentration, z)

    def value(loc: Tensor, concentration: Tensor, z: Tensor) -> Tensor:
        loc = _wrapped(loc)
        below = _log_mass(concentration, -math.pi - loc, z - loc)
        above = _log_mass(concentration, z - loc, math.pi - loc)
        this, other = (below, above) if lower else (above, below)
        logs = torch.where(this < -0.5, this, torch.log1p(-other.exp().clamp_max(0.5)))
        return logs if log else logs.exp()

    def partials(
        needed: tuple[bool, ...], out: Tensor, loc: Tensor, concentration: Tensor, z: Tensor
    ) -> tuple:
        scale = torch.exp(-out) if log else torch.ones_like(out)
        scale = scale if lower else -scale
        return tuple(scale * slope for slope in _moved(needed, loc, concentration, z))

    return known(value, partials, loc, concentration, z, rules=(FINE, MEDIUM)).to(dtype)


def _half_quantile(concentration: Tensor, tail: Tensor) -> Tensor:
    """Return the x in [0, pi] beyond which lies the mass `tail` <= 1/2, by Newton's method."""
    low, high = torch.zeros_like(tail), torch.full_like(tail, math.pi)
    t = tail.clamp(5e-324, 0.5)
    normal = -torch.special.ndtri(t) / (2 * concentration.sqrt())
    wide = (math.pi * (1 - 2 * t)).clamp_max(3.0)
    x = torch.where(normal < 0.7, 2 * torch.asin(normal.clamp(0, 0.7)), wide)
    for _ in range(_STEPS):
        log_mass, ratio = _log_piece(concentration, x, torch.full_like(x, math.pi))
        off = log_mass - t.log()
        low, high = torch.where(off > 0, x, low), torch.where(off > 0, high, x)
        # in the logarithm where the tail falls exponentially, else in the mass itself
        new = x + ratio * off
        new = torch.where(new < high, new, x - ratio * torch.expm1(-off))
        new = torch.where((new >= low) & (new <= high), new, 0.5 * (low + high))
        x = torch.where(log_mass == -math.inf, x, new)  # at pi by rounding
    return x.masked_fill(tail <= 0, math.pi)


def von_mises_quantile(loc: Tensor, concentration: Tensor, u: Tensor, *, lower: bool) -> Tensor:
    """Return the z in [-pi, pi] below (`lower`) or above which lies the mass u."""
    dtype = result_dtype(loc, concentration, u)

    def value(loc: Tensor, concentration: Tensor, u: Tensor) -> Tensor:
        loc = _wrapped(loc)
        # the mass between -pi and the antipode of loc, negative if that comes first
        cut = _log_mass(concentration, math.pi - loc.abs(), torch.full_like(loc, math.pi)).exp()
        cut = torch.where(loc > 0, -cut, cut)
        p, q = (u, 1 - u) if lower else (1 - u, u)
        below, above = p + cut, q - cut
        left = below <= above
        tail = torch.where(left, below, above)
        x = _half_quantile(concentration, tail.abs().clamp_max(0.5))
        x = torch.where(tail < 0, 2 * math.pi - x, x)
        z = (loc + torch.where(left, -x, x)).clamp(-math.pi, math.pi)
        z = z.masked_fill(p <= 0, -math.pi).masked_fill(q <= 0, math.pi)
        return z.masked_fill((u < 0) | (u > 1) | u.isnan(), math.nan)

    def partials(
        needed: tuple[bool, ...], z: Tensor, loc: Tensor, concentration: Tensor, u: Tensor
    ) -> tuple:
        per_loc, per_kappa, at_z = _moved(needed, loc, concentration, z)
        return -per_loc / at_z, -per_kappa / at_z, (1 if lower else -1) / at_z

    return known(value, partials, loc, concentration, u, rules=(FINE, MEDIUM)).to(dtype)
