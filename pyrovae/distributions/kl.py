r"""Closed-form KL divergences, registered with torch, that do not cancel.

A KL divergence is zero where the two laws agree and is wanted most near there, where the textbook
form is a difference of large terms: in float32 torch's is negative for neighbours. The forms here
are sums of terms that are each at least zero,

.. math::

    f(x) = x - \log(1 + x), \qquad g(x) = e^x - 1 - x, \qquad
    h(x) = \log\Gamma(1 + x) + \gamma x,

from :mod:`pyrovae.distributions.stable`. With :math:`r = s_p / s_q` for two scales,

.. math::

    \mathrm{KL}(\text{Normal}) &= \tfrac12 f(r^2 - 1) + \tfrac12 (\mu_p - \mu_q)^2 / s_q^2, \\
    \mathrm{KL}(\text{Laplace}) &= f(r - 1) + r\,g(-|\mu_p - \mu_q| / s_p), \\
    \mathrm{KL}(\text{Gumbel}) &= g(w) + h(r - 1), \quad
    w = (\mu_q - \mu_p) / s_q + \log\Gamma(1 + r).

Against another family, for the priors people use, the entropy and at most two moments say all:

.. math::

    \mathrm{KL}(p \| \mathcal N) = -H + \log s\sqrt{2\pi} + \tfrac12 E[(z - \mu)^2] / s^2, \qquad
    \mathrm{KL}(p \| \mathcal U) = -H + \log(\mathrm{high} - \mathrm{low}),

.. math::

    \mathrm{KL}(p \| \mathrm{Gamma}(a, b)) = -H - a\log b + \log\Gamma(a)
    - (a - 1) E[\log z] + b E[z],

infinite where p reaches outside of the prior or where the moment is. Importing this module
registers the pairs; torch's own entries for torch's own classes stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions.kl import register_kl

from pyrovae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyrovae.distributions.elliptical import Elliptical
from pyrovae.distributions.interval import Reciprocal, Triangular, Uniform
from pyrovae.distributions.kumaraswamy import Kumaraswamy
from pyrovae.distributions.lifetimes import Exponential, Gompertz, Pareto, Rayleigh, Weibull
from pyrovae.distributions.location_scale import Cauchy, Gumbel, Laplace, Logistic, Normal
from pyrovae.distributions.stable import (
    EULER,
    expm1_minus,
    langevin,
    lgamma1p,
    log_sinhc,
    minus_log1p,
)

__all__: list[str] = []


# -- the same family ------------------------------------------------------------------------------


def _relative(a: Tensor, b: Tensor) -> Tensor:
    """Return a / b - 1."""
    return (a - b) / b


def _log_gap(a: Tensor, b: Tensor) -> Tensor:
    r"""Return :math:`r - 1 - \log r \ge 0`, r = a / b: near r = 1 as near r = 0."""
    x = _relative(a, b)
    near = x.abs() < 0.4
    return torch.where(near, minus_log1p(torch.where(near, x, 0.0)), x - (a.log() - b.log()))


def _log_gap_squared(a: Tensor, b: Tensor) -> Tensor:
    r"""Return :math:`(r^2 - 1) / 2 - \log r \ge 0`, r = a / b, likewise."""
    x = _relative(a, b)
    y = x * (2 + x)
    near = y.abs() < 0.4
    series = 0.5 * minus_log1p(torch.where(near, y, 0.0))
    return torch.where(near, series, 0.5 * y - (a.log() - b.log()))


@register_kl(Normal, td.Normal)
def _normal_normal(p: Normal, q: td.Normal) -> Tensor:
    away = (p.loc - q.loc) / q.scale
    a, b = p.scale, q.scale
    if a.dtype is torch.float32 is b.dtype and a.device.type != "mps":
        # with x = r - 1 the scales give f(x) + x^2 / 2; unequal float32 have |x| > 5e-8, where
        # x - log(1 + x) in float64 still has the digits of a float32
        b = b.double()
        x = (a.double() - b) / b
        scales = torch.addcmul(x - x.log1p(), x, x, value=0.5).to(away.dtype)
        return torch.addcmul(scales, away, away, value=0.5)
    return _log_gap_squared(a, b) + 0.5 * away.square()


@register_kl(Laplace, td.Laplace)
def _laplace_laplace(p: Laplace, q: td.Laplace) -> Tensor:
    away = p.scale / q.scale
    return _log_gap(p.scale, q.scale) + away * expm1_minus(-(p.loc - q.loc).abs() / p.scale)


@register_kl(Cauchy, td.Cauchy)
def _cauchy_cauchy(p: Cauchy, q: td.Cauchy) -> Tensor:
    a, b = p.scale - q.scale, p.loc - q.loc
    return torch.log1p((a / p.scale * (a / q.scale) + b / p.scale * (b / q.scale)) / 4)


def _extreme(shift: Tensor, ratio: Tensor, gap: Tensor) -> Tensor:
    """KL of Gumbels: shift (mu_q - mu_p) / s_q, ratio r = s_p / s_q, gap r - 1."""
    # lgamma(r) + gamma (r - 1) is h at r - 1; with w = shift + lgamma(1 + r) the rest is g(w)
    near = gap.abs() < 0.4
    series = lgamma1p(torch.where(near, gap, 0.0))
    h = torch.where(near, series, torch.lgamma(ratio) + EULER * gap)
    return expm1_minus(shift + torch.lgamma(1 + ratio)) + h


@register_kl(Gumbel, td.Gumbel)
def _gumbel_gumbel(p: Gumbel, q: td.Gumbel) -> Tensor:
    return _extreme((q.loc - p.loc) / q.scale, p.scale / q.scale, _relative(p.scale, q.scale))


def _log_ratio(a: Tensor, b: Tensor) -> Tensor:
    """Return log(a / b), from the difference where the two are close."""
    x = _relative(a, b)
    near = x.abs() < 0.5
    return torch.where(near, torch.log1p(torch.where(near, x, 0.0)), a.log() - b.log())


@register_kl(Weibull, td.Weibull)
def _weibull_weibull(p: Weibull, q: td.Weibull) -> Tensor:
    """Minus the logarithm of a Weibull is a Gumbel."""
    return _extreme(
        q.concentration * _log_ratio(p.scale, q.scale),
        q.concentration / p.concentration,
        _relative(q.concentration, p.concentration),
    )


@register_kl(Weibull, td.Exponential)
def _weibull_exponential(p: Weibull, q: td.Exponential) -> Tensor:
    return _extreme(
        _log_ratio(p.scale, 1 / q.rate),
        1 / p.concentration,
        (1 - p.concentration) / p.concentration,
    )


@register_kl(Rayleigh, Rayleigh)
def _rayleigh_rayleigh(p: Rayleigh, q: Rayleigh) -> Tensor:
    return 2 * _log_gap_squared(p.scale, q.scale)


@register_kl(Exponential, td.Exponential)
def _exponential_exponential(p: Exponential, q: td.Exponential) -> Tensor:
    return _log_gap(q.rate, p.rate)


@register_kl(Exponential, td.Gamma)
def _exponential_gamma(p: Exponential, q: td.Gamma) -> Tensor:
    gap, more = _log_gap(q.rate, p.rate), q.concentration - 1
    return (gap - more * _log_ratio(q.rate, p.rate) + lgamma1p(more)).clamp_min(0)


@register_kl(Pareto, td.Pareto)
def _pareto_pareto(p: Pareto, q: td.Pareto) -> Tensor:
    inside = p.scale >= q.scale
    start = q.alpha * _log_ratio(torch.where(inside, p.scale, q.scale), q.scale)
    return torch.where(inside, _log_gap(q.alpha, p.alpha) + start, math.inf)


@register_kl(Uniform, td.Uniform)
def _uniform_uniform(p: Uniform, q: td.Uniform) -> Tensor:
    inside = (p.low >= q.low) & (p.high <= q.high)
    wider = ((p.low - q.low) + (q.high - p.high)) / (p.high - p.low)
    return torch.where(inside, torch.log1p(torch.where(inside, wider, 0.0)), math.inf)


@register_kl(Reciprocal, Reciprocal)
def _reciprocal_reciprocal(p: Reciprocal, q: Reciprocal) -> Tensor:
    inside = (p.low >= q.low) & (p.high <= q.high)
    wider = (_log_ratio(p.low, q.low) + _log_ratio(q.high, p.high)) / p._length()
    return torch.where(inside, torch.log1p(torch.where(inside, wider, 0.0)), math.inf)


@register_kl(ContinuousBernoulli, ContinuousBernoulli)
def _continuous_bernoulli(p: ContinuousBernoulli, q: ContinuousBernoulli) -> Tensor:
    """The Bregman divergence of log Z; its leading term where the two logits nearly agree."""
    a, b = 0.5 * p.logits, 0.5 * q.logits
    gap = b - a
    whole = log_sinhc(b) - log_sinhc(a) - langevin(a) * gap
    middle = a + gap / 3  # (gap^2 / 2) L' at a third of the way: exact to fourth order in gap
    close = 0.5 * gap.square() * 4 * _slope(middle)
    return torch.where(gap.abs() < 1e-3, close, whole).clamp_min(0)


def _slope(half: Tensor) -> Tensor:
    return ContinuousBernoulli(logits=2 * half, validate_args=False).variance


# -- against the priors people use ----------------------------------------------------------------

_POSITIVE = (Exponential, Weibull, Rayleigh, Pareto, Gompertz)
_BOUNDED = (Uniform, Reciprocal, Triangular, Kumaraswamy, ContinuousBernoulli)
_REAL = (Normal, Laplace, Logistic, Cauchy, Gumbel)
_ALL = (*_REAL, *_POSITIVE, *_BOUNDED)

Rule = Callable[[Any, Any], Tensor]


def _reaches(p: Any, q_low: Any, q_high: Any) -> Tensor:
    """Whether p's support lies within [q_low, q_high], elementwise."""
    support = p.support
    low = getattr(support, "lower_bound", -math.inf)
    high = getattr(support, "upper_bound", math.inf)
    like = p._like()
    low, high = torch.as_tensor(low).to(like), torch.as_tensor(high).to(like)
    return (low >= q_low) & (high <= q_high)


def _finite_where(good: Tensor, value: Tensor) -> Tensor:
    """Return the value, at least 0; infinite where not `good` or where a moment is missing."""
    good = good & value.isfinite()
    return torch.where(good, value, math.inf).clamp_min(0)


def _against_normal(p: Any, q: td.Normal) -> Tensor:
    away = (p.mean - q.loc) / q.scale
    second = (p.stddev / q.scale).square() + away.square()
    value = 0.5 * second - p.entropy() + q.scale.log() + 0.5 * math.log(2 * math.pi)
    return _finite_where(second.isfinite(), value)


def _against_uniform(p: Any, q: td.Uniform) -> Tensor:
    return _finite_where(_reaches(p, q.low, q.high), (q.high - q.low).log() - p.entropy())


def _against_exponential(p: Any, q: td.Exponential) -> Tensor:
    value = q.rate * p.mean - p.entropy() - q.rate.log()
    return _finite_where(_reaches(p, 0.0, math.inf), value)


def _against_gamma(p: Any, q: td.Gamma) -> Tensor:
    a, b = q.concentration, q.rate
    value = b * p.mean - p.entropy() - a * b.log() + torch.lgamma(a) - (a - 1) * p._mean_log()
    return _finite_where(_reaches(p, 0.0, math.inf), value)


def _infinite(p: Any, q: Any) -> Tensor:
    shape = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    like = p._like()
    return torch.full(shape, math.inf, dtype=like.dtype, device=like.device)


_OWN = {  # pairs with a form of their own above
    (Normal, td.Normal),
    (Uniform, td.Uniform),
    (Exponential, td.Exponential),
    (Exponential, td.Gamma),
    (Weibull, td.Exponential),
}


def _rule(family: type, prior: type) -> Rule | None:
    if prior is td.Normal:
        return _against_normal
    if prior is td.Uniform:
        return _against_uniform if family in _BOUNDED else _infinite
    if family in _REAL:
        return _infinite
    if prior is td.Exponential:
        return _against_exponential
    return _against_gamma if hasattr(family, "_mean_log") else None


for _family in _ALL:
    for _prior in (td.Normal, td.Uniform, td.Exponential, td.Gamma):
        _found = _rule(_family, _prior)
        if _found is not None and (_family, _prior) not in _OWN:
            register_kl(_family, _prior)(_found)


# -- vectors --------------------------------------------------------------------------------------


def _normal_units(p: Any, q: td.Independent) -> td.Normal:
    """Return the Normal under q, a product over the last dimension, or say it is none."""
    base = q.base_dist
    if not isinstance(base, td.Normal) or len(q.event_shape) != 1:
        raise NotImplementedError(
            f"no closed KL({type(p).__name__} || Independent({type(base).__name__}))"
        )
    return base


@register_kl(td.MultivariateNormal, td.Independent)
def _multivariate_normal_units(p: td.MultivariateNormal, q: td.Independent) -> Tensor:
    r"""With A the rows of L over q's scales, a sum of squares and of f(A_ii^2 - 1)."""
    base = _normal_units(p, q)
    root = p.scale_tril / base.scale.unsqueeze(-1)
    diagonal = p.scale_tril.diagonal(dim1=-2, dim2=-1)
    below = root.tril(-1).square().sum((-2, -1))
    away = ((p.loc - base.loc) / base.scale).square()
    gaps = _log_gap_squared(diagonal, base.scale)
    return 0.5 * below + (gaps + 0.5 * away).sum(-1)


@register_kl(Elliptical, td.Independent)
def _elliptical_units(p: Elliptical, q: td.Independent) -> Tensor:
    base = _normal_units(p, q)
    second = (p.variance + (p.mean - base.loc).square()) / base.scale.square()
    log_scale = (base.scale.log() + 0.5 * math.log(2 * math.pi)).expand(second.shape)
    value = (0.5 * second + log_scale).sum(-1) - p.entropy()
    return _finite_where(second.isfinite().all(-1), value)
