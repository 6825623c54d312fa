r"""KL divergences of the Gamma families that do not cancel, registered with torch.

A KL divergence of two neighbours at large concentrations is a small difference of large
log-Gammas; torch's, in float32, comes out negative. With :math:`\phi(t) = t - 1 - \log t \ge 0`,
Stirling's formula splits :math:`\log\Gamma(a) = a\log a - a + g(a)`, g convex, and the Bregman
divergence :math:`D_g(q, p) = g(q) - g(p) - (q - p)\,g'(p) \ge 0` gives sums of terms that are
each accurate:

.. math::

    \mathrm{KL}(\mathrm{Gamma}_p\,\|\,\mathrm{Gamma}_q)
    &= a_q\,\phi\!\big(\tfrac{a_p b_q}{a_q b_p}\big) + D_g(a_q, a_p), \\
    \mathrm{KL}(\mathrm{Dirichlet}_p\,\|\,\mathrm{Dirichlet}_q)
    &= \sum_i \alpha_i^q\,\phi\!\big(\tfrac{\bar\alpha_i^p}{\bar\alpha_i^q}\big)
    + \sum_i D_g(\alpha_i^q, \alpha_i^p) - D_g(\alpha_0^q, \alpha_0^p),

with :math:`\bar\alpha = \alpha/\alpha_0`; Beta is Dirichlet's case K = 2, Chi2 and Erlang are
Gamma's. Student's t against a Normal is its cross entropy less its entropy, infinite for
df <= 2; two Student's t have no closed form. Computed in float64, returned in the dtype of p.
Importing this module registers the pairs; torch's own entries stay as they are.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions.kl import register_kl

from pyrovae.distributions.base import can_look
from pyrovae.distributions.composition import (
    Beta,
    Chi2,
    Dirichlet,
    Erlang,
    Gamma,
    LogNormal,
    StudentT,
)
from pyrovae.distributions.special.quadrature import known
from pyrovae.distributions.special.stirling import log_ratio_minus, stirling_slope

__all__ = ["bregman_remainder", "kl_beta", "kl_dirichlet", "kl_gamma"]

_STEPS = 12
# Bernoulli's coefficients of delta(a), and the powers of 1/a they belong to
_TERMS = ((1 / 12, 1), (-1 / 360, 3), (1 / 1260, 5), (-1 / 1680, 7), (1 / 1188, 9))


def _phi(log_ratio: Tensor, excess: Tensor) -> Tensor:
    return -log_ratio_minus(log_ratio, excess)


def bregman_remainder(q: Tensor, p: Tensor) -> Tensor:
    r"""Return :math:`D_g(q, p)` for :math:`g(a) = \log\Gamma(a) - a\log a + a`, never negative.

    Of the series of g each term has :math:`t^2` for a factor, t = (q - p)/p. Small arguments are
    raised by twelve first: each step of the recurrence adds :math:`\phi(1 + (q - p)/(p + j))`.
    Its derivatives are :math:`g'(q) - g'(p)` and :math:`-(q - p)\,g''(p)`.
    """

    def partials(needed: tuple[bool, ...], out: Tensor, q: Tensor, p: Tensor) -> tuple:
        per_q = _slope(q) - _slope(p) if needed[0] else None
        per_p = (p - q) * (torch.polygamma(1, p) - 1 / p) if needed[1] else None
        return per_q, per_p

    return known(_bregman_remainder, partials, q, p)


def _slope(a: Tensor) -> Tensor:
    """Return g'(a), digamma less log."""
    return stirling_slope(a) - 0.5 / a


def _bregman_remainder(q: Tensor, p: Tensor) -> Tensor:
    small = torch.minimum(p, q) < _STEPS
    step = q - p
    raised = torch.where(small, _STEPS, 0.0)
    high, low = p + raised, q + raised
    large = _large_remainder(low, high, step / high)
    if can_look() and not bool(small.any()):
        return large.clamp_min(0.0)
    j = torch.arange(_STEPS, dtype=p.dtype, device=p.device).reshape(-1, *[1] * p.dim())
    steps = _phi(torch.log((q + j) / (p + j)), step / (p + j)).sum(0)
    # a log a - a of the raised arguments belongs to g now, that of the given ones does not
    above = low * _phi_inverse(step / high, high, low)
    below = q * _phi_inverse(step / p, p, q)
    return torch.where(small, large + steps + above - below, large).clamp_min(0.0)


def _phi_inverse(t: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Return phi(p/q), the divergence of a log a - a over q, where q = p (1 + t)."""
    return _phi(torch.log(p / q), -t * p / q)


def _large_remainder(q: Tensor, p: Tensor, t: Tensor) -> Tensor:
    total = 0.5 * _phi(torch.log(q / p), t)
    for coefficient, m in _TERMS:
        # (1 + t)^-m - 1 + m t, whose constant and linear terms cancel on paper
        poly = torch.zeros_like(t)
        for k in range(m + 1, 1, -1):
            poly = poly * t + (m * math.comb(m, k - 1) - math.comb(m, k))
        total = total + coefficient * t * t * poly / ((1 + t) ** m * p**m)
    return total


def kl_gamma(a_p: Tensor, b_p: Tensor, a_q: Tensor, b_q: Tensor) -> Tensor:
    """Return KL(Gamma(a_p, b_p) || Gamma(a_q, b_q)); float64."""
    excess = ((a_p - a_q) * b_q + a_q * (b_q - b_p)) / (a_q * b_p)
    log = torch.log(a_p / a_q) + torch.log(b_q / b_p)
    return a_q * _phi(log, excess) + bregman_remainder(a_q, a_p)


def kl_dirichlet(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(Dirichlet(p) || Dirichlet(q)), `[..., K]` to `[...]`; float64."""
    p, q = torch.broadcast_tensors(p, q)
    n_p, n_q = p.sum(-1, keepdim=True), q.sum(-1, keepdim=True)
    step = q - p
    excess = (p * step.sum(-1, keepdim=True) - step * n_p) / (n_p * q)
    log = torch.log(p / q) + torch.log(n_q / n_p)
    means = (q * _phi(log, excess)).sum(-1)
    parts = bregman_remainder(q, p).sum(-1) - bregman_remainder(n_q, n_p).squeeze(-1)
    return (means + parts).clamp_min(0.0)


def kl_beta(p: td.Beta, q: td.Beta) -> Tensor:
    """Return the KL of two Betas; float64."""
    both = (torch.stack((d.concentration1, d.concentration0), -1).double() for d in (p, q))
    return kl_dirichlet(*both)


def _gamma_gamma(p: td.Gamma, q: td.Gamma) -> Tensor:
    parts = (p.concentration, p.rate, q.concentration, q.rate)
    return kl_gamma(*torch.broadcast_tensors(*(t.double() for t in parts))).to(p.rate.dtype)


def _gamma_exponential(p: td.Gamma, q: td.Exponential) -> Tensor:
    parts = (p.concentration, p.rate, torch.ones_like(q.rate), q.rate)
    return kl_gamma(*torch.broadcast_tensors(*(t.double() for t in parts))).to(p.rate.dtype)


def _beta_beta(p: td.Beta, q: td.Beta) -> Tensor:
    return kl_beta(p, q).to(p.concentration1.dtype)


def _dirichlet_dirichlet(p: td.Dirichlet, q: td.Dirichlet) -> Tensor:
    dtype = p.concentration.dtype
    return kl_dirichlet(p.concentration.double(), q.concentration.double()).to(dtype)


def _student_normal(p: StudentT, q: td.Normal) -> Tensor:
    df, scale = p.df.double(), p.scale.double()
    finite = df > 2
    variance = scale.square() * df / torch.where(finite, df - 2, 1.0)
    spread = (variance + (p.loc - q.loc).double().square()) / q.scale.double().square()
    value = 0.5 * spread + q.scale.double().log() + 0.5 * math.log(2 * math.pi) - p.entropy()
    return torch.where(finite, value, math.inf).to(p.df.dtype)


def _log_normal_log_normal(p: LogNormal, q: td.LogNormal) -> Tensor:
    """Minus the Normal's, of which it is an invertible image."""
    s, r = p.scale.double(), q.scale.double()
    excess = (s - r) * (s + r) / (r * r)
    value = 0.5 * _phi(2 * torch.log(s / r), excess) + 0.5 * ((p.loc - q.loc) / r).square()
    return value.to(p.loc.dtype)


def _gamma_log_mean(p: td.Gamma) -> Tensor:
    a = p.concentration.double()
    return a.log() - 0.5 / a + stirling_slope(a) - p.rate.double().log()


def _gamma_log_normal(p: Gamma, q: td.LogNormal) -> Tensor:
    """E[log z] and Var[log z] are the digamma and trigamma function."""
    mean = _gamma_log_mean(p)
    spread = torch.polygamma(1, p.concentration.double()) + (mean - q.loc).square()
    cross = 0.5 * spread / q.scale.double().square() + q.scale.double().log()
    return (cross + 0.5 * math.log(2 * math.pi) + mean - p.entropy()).to(p.rate.dtype)


_OURS = (Gamma, Chi2, Erlang)
for _p, _q in product(_OURS, _OURS):
    register_kl(_p, _q)(_gamma_gamma)
for _p in _OURS:
    register_kl(_p, td.Gamma)(_gamma_gamma)
    register_kl(_p, td.Exponential)(_gamma_exponential)
    register_kl(_p, td.LogNormal)(_gamma_log_normal)
    register_kl(td.Gamma, _p)(_gamma_gamma)
register_kl(Beta, Beta)(_beta_beta)
register_kl(Beta, td.Beta)(_beta_beta)
register_kl(td.Beta, Beta)(_beta_beta)
register_kl(Dirichlet, Dirichlet)(_dirichlet_dirichlet)
register_kl(Dirichlet, td.Dirichlet)(_dirichlet_dirichlet)
register_kl(td.Dirichlet, Dirichlet)(_dirichlet_dirichlet)
register_kl(StudentT, td.Normal)(_student_normal)
register_kl(LogNormal, LogNormal)(_log_normal_log_normal)
register_kl(LogNormal, td.LogNormal)(_log_normal_log_normal)
