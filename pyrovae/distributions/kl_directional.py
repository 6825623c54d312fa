r"""KL divergences of directional laws, registered with torch; nothing cancels.

With :math:`L(\kappa) = \log E[e^{\kappa w}]` under the uniform law, :math:`A = L'` and the Bregman
divergence :math:`D_L(q, p) = L(q) - L(p) - (q - p) A(p) = \int_p^q (q - s) A'(s)\,ds \ge 0`,

.. math::

    \mathrm{KL}(\kappa \,\|\, \text{uniform}) = \kappa A(\kappa) - L(\kappa), \qquad
    \mathrm{KL}(p \,\|\, q) = D_L(\kappa_q, \kappa_p)
    + \tfrac12 \kappa_q A(\kappa_p)\,|\mu_p - \mu_q|^2

for von Mises and von Mises-Fisher. A power spherical law and the uniform one differ in
:math:`h = (1 - w)/2` alone, so their KL is that of two Betas. Computed in float64, returned in the
dtype of p. Importing this module registers the pairs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions.kl import register_kl

from pyrovae.distributions.directional import (
    PowerSpherical,
    SphericalUniform,
    VonMises,
    VonMisesFisher,
)
from pyrovae.distributions.interval import Uniform
from pyrovae.distributions.kl_gamma import kl_dirichlet
from pyrovae.distributions.special.bessel import (
    bessel_gap,
    bessel_information,
    bessel_ratio,
    bessel_ratio_complement,
    bessel_variance,
    log_bessel,
)
from pyrovae.distributions.special.quadrature import FINE, nodes

__all__ = ["bessel_divergence"]


def bessel_divergence(order: float, p: Tensor, q: Tensor) -> Tensor:
    r"""Return :math:`D_L(q, p)`, the KL of two concentrations about one mean; float64.

    Within a factor of 2 by quadrature of the integral, whose integrand has one sign; beyond it
    from L where it is small, and from :math:`\kappa - L` where it is not.
    """
    p, q = torch.broadcast_tensors(p, q)
    near = torch.maximum(p, q) <= 2 * torch.minimum(p, q)
    a, b = torch.where(near, p, 1.0), torch.where(near, q, 1.0)
    t, weights = nodes(FINE, a)
    share = (weights[0].view(t.shape) * (1 - t) * bessel_variance(order, a + (b - a) * t)).sum(0)
    small = torch.maximum(p, q) < 2 * order + 2
    lows = torch.where(small, p, 1.0), torch.where(small, q, 1.0)
    highs = torch.where(small, 1.0, p), torch.where(small, 1.0, q)
    low = log_bessel(order, lows[1]) - log_bessel(order, lows[0])
    low = low - (lows[1] - lows[0]) * bessel_ratio(order, lows[0])
    high = bessel_gap(order, highs[0]) - bessel_gap(order, highs[1])
    high = high + (highs[1] - highs[0]) * bessel_ratio_complement(order, highs[0])
    far = torch.where(small, low, high).clamp_min(0.0)
    return torch.where(near, (b - a).square() * share, far)


@register_kl(VonMises, Uniform)
@register_kl(VonMises, td.Uniform)
def _von_mises_uniform(p: VonMises, q: td.Uniform) -> Tensor:
    """Against the uniform law of all angles; infinite where the interval misses some."""
    covers = (q.low <= -math.pi) & (q.high >= math.pi)
    width = torch.where(covers, q.high - q.low, 2 * math.pi)
    value = bessel_information(0.0, p.concentration) + torch.log(width / (2 * math.pi))
    return torch.where(covers, value, math.inf)


@register_kl(VonMises, td.VonMises)
def _von_mises_von_mises(p: VonMises, q: td.VonMises) -> Tensor:
    a, b = p.concentration.double(), q.concentration.double()
    apart = 2 * torch.sin(0.5 * (p.loc.double() - q.loc.double())).square()
    value = bessel_divergence(0.0, a, b) + b * bessel_ratio(0.0, a) * apart
    return value.to(p.loc.dtype)


def _same_sphere(p: td.Distribution, q: td.Distribution) -> float:
    """Return the order d/2 - 1 of both, or say that they differ."""
    if p.event_shape != q.event_shape:
        raise ValueError(
            f"KL({p} || {q}): expected unit vectors of one dimension, got event shapes "
            f"{tuple(p.event_shape)} and {tuple(q.event_shape)}"
        )
    return 0.5 * p.event_shape[0] - 1


def _distance(p: VonMisesFisher | PowerSpherical, q: VonMisesFisher) -> Tensor:
    """Return 1 - cos of the angle between the mean directions; float64."""
    return 2 * q._chord(p.loc.double())


@register_kl(VonMisesFisher, SphericalUniform)
def _fisher_uniform(p: VonMisesFisher, q: SphericalUniform) -> Tensor:
    return bessel_information(_same_sphere(p, q), p.concentration).expand(_batch(p, q))


@register_kl(VonMisesFisher, VonMisesFisher)
def _fisher_fisher(p: VonMisesFisher, q: VonMisesFisher) -> Tensor:
    order = _same_sphere(p, q)
    a, b = p.concentration.double(), q.concentration.double()
    value = bessel_divergence(order, a, b) + b * bessel_ratio(order, a) * _distance(p, q)
    return value.to(p.loc.dtype)


@register_kl(SphericalUniform, VonMisesFisher)
def _uniform_fisher(p: SphericalUniform, q: VonMisesFisher) -> Tensor:
    return log_bessel(_same_sphere(p, q), q.concentration).expand(_batch(p, q))


@register_kl(SphericalUniform, SphericalUniform)
def _uniform_uniform(p: SphericalUniform, q: SphericalUniform) -> Tensor:
    _same_sphere(p, q)
    return p.mean.new_zeros(_batch(p, q))


@register_kl(PowerSpherical, SphericalUniform)
def _power_uniform(p: PowerSpherical, q: SphericalUniform) -> Tensor:
    a = torch.full_like(p.concentration, _same_sphere(p, q) + 0.5).double()
    betas = torch.stack((a + p.concentration, a), -1), torch.stack((a, a), -1)
    return kl_dirichlet(*betas).to(p.loc.dtype).expand(_batch(p, q))


@register_kl(PowerSpherical, VonMisesFisher)
def _power_fisher(p: PowerSpherical, q: VonMisesFisher) -> Tensor:
    """The mean of p is all that the von Mises-Fisher law asks for."""
    order = _same_sphere(p, q)
    a, b = p.concentration.double(), q.concentration.double()
    n = 2 * order + 1 + a
    cross = b * ((2 * order + 1) / n + a / n * _distance(p, q)) - bessel_gap(order, b)
    uniform = SphericalUniform(p.dim, dtype=p.loc.dtype, device=p.loc.device)
    return (_power_uniform(p, uniform).double() + cross).clamp_min(0.0).to(p.loc.dtype)


def _batch(p: td.Distribution, q: td.Distribution) -> torch.Size:
    return torch.broadcast_shapes(p.batch_shape, q.batch_shape)
