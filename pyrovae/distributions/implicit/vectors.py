r"""Implicit reparameterization of vectors, coordinate by coordinate.

A mixture of vectors has no one cdf, but the distributional transform
:math:`u_d = F(z_d \mid z_1, \ldots, z_{d-1})` makes it D independent uniforms. A draw at fixed u
moves by :math:`dz = -(\partial u / \partial z)^{-1}\, \partial_\theta u\, d\theta`, and the matrix
is triangular (Figurnov, Mohamed and Mnih 2018, arXiv 1805.08498, who differentiate all of it
automatically). If each component's coordinates are independent, or its conditionals known
otherwise, it is explicit. With the weights given what is left of d,

.. math:: w_{md} \propto w_m \prod_{j < d} q_m(z_j \mid z_{<j}), \qquad
    F(z_d \mid z_{<d}) = \sum_m w_{md} F_{md}, \qquad \rho_{md} = w_{md} F_{md} / F,

.. math:: \frac{\partial \log F(z_d | z_{<d})}{\partial z_j} = \sum_m
    (\rho_{md} - w_{md})\, \partial_j \log q_m(z_{<d}) + \rho_{md}\, \partial_j \log F_{md},
    \quad j < d,

with :math:`\log S` in the place of :math:`\log F` where that is the smaller tail. The last term is
0 for independent coordinates. A Gaussian component is whitened,
:math:`\epsilon = L^{-1}(z - \mu)`: since L is triangular, :math:`F_{md} = \Phi(\epsilon_d)` and
:math:`\partial_j \log F_{md} = \varphi(\epsilon_d) / \Phi(\epsilon_d)\, L^{-1}_{dj}`.

The gradient depends on the order of the coordinates; its expectation does not.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal

from pyrovae.distributions import radial
from pyrovae.distributions.elliptical import Elliptical
from pyrovae.distributions.implicit.parts import Part, demand_implicit
from pyrovae.distributions.stable import log_ndtr

__all__ = ["Conditionals", "conditionals_of", "demand_conditionals", "log_sum_exp", "move"]


def log_sum_exp(x: Tensor, dim: int = -1) -> Tensor:
    """Return the logarithm of the sum of exponentials, with slope 0 where all are zero."""
    floor = torch.finfo(x.dtype).min / 2
    total = torch.logsumexp(x.clamp_min(floor), dim)
    return torch.where(total > floor / 2, total, -math.inf)


class Conditionals(Protocol):
    """The conditional laws of M vector components of size D; values are `[..., D]`."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q_m(z_d | z_<d), `[..., M, D]`."""

    def log_tail(self, z: Tensor, right: Tensor | None, upper: bool = False) -> Tensor:
        """Return log S_md where `right` `[..., D]`, else log F_md; None: as `upper` says."""

    def coupling(self, z: Tensor, right: Tensor, lean: Tensor, post: Tensor) -> Tensor:
        r"""Return the sums over m of the docstring above, `[..., D, D]`; only j < d is asked for.

        Args:
            z: where.
            right: which tails.
            lean: :math:`\rho - w`, `[..., M, D]`.
            post: :math:`\rho`.
        """


def move(c: Conditionals, log_weights: Tensor, z: Tensor, steps: int = 2) -> Tensor:
    """Return the draws z `[..., D]` with the derivatives of draws at fixed conditional cdfs."""
    z = z.detach()
    with torch.no_grad():
        prior = _prior(c, log_weights, z)
        right = log_sum_exp(prior + c.log_tail(z, None, True), -2) < log_sum_exp(
            prior + c.log_tail(z, None), -2
        )
        sign = torch.where(right, -1.0, 1.0).to(z.dtype)
        mixed = prior + c.log_tail(z, right)
        tail = log_sum_exp(mixed, -2)
        slope = torch.exp(log_sum_exp(prior + c.log_prob(z), -2) - tail)
        post = torch.exp(mixed - tail.unsqueeze(-2))
        coupling = c.coupling(z, right, post - prior.exp(), post)
        tiny = torch.finfo(z.dtype).tiny
        lower = (sign / slope.clamp_min(tiny)).unsqueeze(-1) * coupling
        lower = lower.nan_to_num(0.0, 0.0, 0.0).tril(-1)
        known = tail.isfinite() & slope.isfinite() & (slope > tiny)
        step = torch.where(known, sign / torch.where(known, slope, 1.0), 0.0)
    eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    at = z
    for _ in range(steps):
        r = log_sum_exp(_prior(c, log_weights, at) + c.log_tail(at, right), -2)
        rise = torch.where(known, r - r.detach(), 0.0) * step
        solved = torch.linalg.solve_triangular(eye + lower, rise.unsqueeze(-1), upper=False)
        at = at - solved.squeeze(-1)
    return at


def _prior(c: Conditionals, log_weights: Tensor, z: Tensor) -> Tensor:
    """Return log w_md, the weights given the coordinates before d, `[..., M, D]`."""
    score = c.log_prob(z).clamp_min(torch.finfo(z.dtype).min / 1e6)
    before = torch.cat([torch.zeros_like(score[..., :1]), score[..., :-1].cumsum(-1)], -1)
    return (log_weights.unsqueeze(-1) + before).log_softmax(-2)


# -- components -----------------------------------------------------------------------------------


def demand_conditionals(who: str, d: Any) -> None:
    """Raise ValueError unless the conditionals of a vector distribution are known."""
    if isinstance(d, Independent) and not d.base_dist.event_shape:
        demand_implicit(who, d.base_dist)
        if d.reinterpreted_batch_ndims != len(d.event_shape):
            raise ValueError(f"{who}: cannot use {d!r} as a component")
        return
    if _gaussian(d) is None:
        raise ValueError(
            f"{who}: vector components must have independent coordinates (a univariate family and "
            "to_event) or be Gaussian (MultivariateNormal, or Elliptical with radial.Normal and "
            "scale_tril or scale_diag), so that their conditionals are known; got "
            f"{type(d).__name__}"
        )


def _gaussian(d: Any) -> tuple[Tensor, Tensor] | None:
    """Return the mean and the triangular root of the covariance of a Gaussian."""
    if isinstance(d, MultivariateNormal):
        return d.loc, d.scale_tril
    if isinstance(d, Elliptical) and type(d.radial) is radial.Normal:
        if "scale_tril" in d._names:
            return d.loc, d.scale_tril
        if "scale_diag" in d._names:
            return d.loc, torch.diag_embed(d.scale_diag)
    return None


def conditionals_of(parts: list[Any], together: bool) -> Conditionals:
    """Return the conditionals of one distribution batched over M, or of M distributions."""
    kinds = [_Gaussian if _gaussian(d) else _Product for d in parts]
    found = [kind(d, together) for kind, d in zip(kinds, parts, strict=True)]
    return found[0] if together else _Joined(found)


class _Product:
    """Components with independent coordinates: nothing depends on the ones before."""

    def __init__(self, d: Distribution, together: bool) -> None:
        self.part, self.shape, self.together = Part(d.base_dist), d.event_shape, together

    def _each(self, name: str, z: Tensor) -> Tensor:
        wide = z.unsqueeze(-2) if self.together else z
        wide = wide.reshape(wide.shape[:-1] + self.shape)
        values = getattr(self.part, name)(wide).flatten(-len(self.shape))
        return values if self.together else values.unsqueeze(-2)

    def log_prob(self, z: Tensor) -> Tensor:
        return self._each("log_prob", z)

    def log_tail(self, z: Tensor, right: Tensor | None, upper: bool = False) -> Tensor:
        if right is None:
            return self._each("log_sf" if upper else "log_cdf", z)
        both = self._each("log_sf", z), self._each("log_cdf", z)
        return torch.where(right.unsqueeze(-2), *both)

    def coupling(self, z: Tensor, right: Tensor, lean: Tensor, post: Tensor) -> Tensor:
        with torch.enable_grad():
            wide = z.unsqueeze(-2).expand(lean.shape) if self.together else z
            wide = wide.detach().requires_grad_()
            shaped = wide.reshape(wide.shape[:-1] + self.shape)
            (slope,) = torch.autograd.grad(self.part.log_prob(shaped).sum(), wide)
        slope = slope if self.together else slope.unsqueeze(-2)
        return lean.mT @ slope.nan_to_num(0.0, 0.0, 0.0)


class _Gaussian:
    """Gaussian components, whitened."""

    def __init__(self, d: Distribution, together: bool) -> None:
        loc, tril = _gaussian(d)
        self.loc, self.tril = (loc, tril) if together else (loc.unsqueeze(-2), tril.unsqueeze(-3))

    def _white(self, z: Tensor) -> Tensor:
        away = (z.unsqueeze(-2) - self.loc).unsqueeze(-1)
        return torch.linalg.solve_triangular(self.tril, away, upper=False).squeeze(-1)

    def log_prob(self, z: Tensor) -> Tensor:
        diagonal = self.tril.diagonal(dim1=-2, dim2=-1).log()
        return -0.5 * self._white(z).square() - 0.5 * math.log(2 * math.pi) - diagonal

    def log_tail(self, z: Tensor, right: Tensor | None, upper: bool = False) -> Tensor:
        white = self._white(z)
        if right is None:
            return log_ndtr(-white if upper else white)
        return log_ndtr(torch.where(right.unsqueeze(-2), -white, white))

    def coupling(self, z: Tensor, right: Tensor, lean: Tensor, post: Tensor) -> Tensor:
        white = self._white(z)
        eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        inverse = torch.linalg.solve_triangular(
            self.tril, eye.expand(self.tril.shape), upper=False
        )
        slopes = -white.unsqueeze(-1) * inverse  # of log q_m(z_i | z_<i) in z_j: [..., M, i, j]
        before = slopes.cumsum(-2) - slopes
        density = -0.5 * white.square() - 0.5 * math.log(2 * math.pi)
        sign = torch.where(right, -1.0, 1.0).to(z.dtype).unsqueeze(-2)
        hazard = sign * torch.exp(density - self.log_tail(z, right))
        weighted = lean.unsqueeze(-1) * before + (post * hazard).unsqueeze(-1) * inverse
        return weighted.sum(-3)


class _Joined:
    """Components given as a list, of any kinds."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    def log_prob(self, z: Tensor) -> Tensor:
        return torch.cat([p.log_prob(z) for p in self.parts], -2)

    def log_tail(self, z: Tensor, right: Tensor | None, upper: bool = False) -> Tensor:
        return torch.cat([p.log_tail(z, right, upper) for p in self.parts], -2)

    def coupling(self, z: Tensor, right: Tensor, lean: Tensor, post: Tensor) -> Tensor:
        pairs = zip(self.parts, lean.split(1, -2), post.split(1, -2), strict=True)
        return sum(p.coupling(z, right, a, b) for p, a, b in pairs)
