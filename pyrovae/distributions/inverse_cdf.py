r"""Inverse-cdf families: :math:`z = F^{-1}(u)`, most of them through their cumulative hazard.

One of the three forms of the reparameterization trick. Any u in (0, 1) will do, so the author of a
family gives :math:`F^{-1}` (`icdf`) and :math:`\log q` (`_log_prob`), and has a posterior.

For a positive z the survival function has the form :math:`P(Z > z) = e^{-H(z)}`, with a cumulative
hazard H that rises from 0 to infinity. Then

.. math::

    z = H^{-1}(E), \; E \sim \mathrm{Exp}(1), \qquad
    \log q(z) = \log H'(z) - H(z), \qquad
    F(z) = -\mathrm{expm1}(-H(z)), \qquad
    F^{-1}(u) = H^{-1}(-\mathrm{log1p}(-u)),

and nothing cancels in either tail: :class:`Hazard` asks its author for `_hazard`,
`_inverse_hazard` and `_log_rate` :math:`= \log H'`. Draws are computed from E, which keeps both
tails in float32, and a draw is scored by :math:`\log H'(z) - E` with the E it came from.

Where an exact draw is smaller or larger than the format can hold (41 % of Pareto(1, 0.01)), it is
held at the nearest number inside the support, with finite density and gradients. The logarithm of
a draw never overflows: `log_rsample` of Weibull, Pareto and Kumaraswamy returns that.

The families are in :mod:`~pyrovae.distributions.lifetimes`,
:mod:`~pyrovae.distributions.kumaraswamy` and :mod:`~pyrovae.distributions.interval`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Size, Tensor

from pyrovae.distributions.base import EMPTY, Reparameterized, can_look
from pyrovae.distributions.fused import Fast, fused
from pyrovae.distributions.stable import log1mexp

__all__ = ["Hazard", "InverseCDF", "exp_within", "within"]


class InverseCDF(Reparameterized):
    r"""Base of :math:`z = F^{-1}(u)`: authors write `icdf(u)` and `_log_prob(z)`.

    `_cdf`, `_sf`, `_log_cdf`, `_log_sf` are asked only for values inside the support; outside of
    it, with validation off, the public methods return their limits.

    >>> from torch.distributions import constraints
    >>> class Power(InverseCDF):
    ...     arg_constraints = {"k": constraints.positive}
    ...     support = constraints.unit_interval
    ...     def __init__(self, k, *, validate_args=None):
    ...         super().__init__(k=k, validate_args=validate_args)
    ...     def icdf(self, u):
    ...         return u ** (1 / self.k)
    ...     def _log_prob(self, z):
    ...         return self.k.log() + (self.k - 1) * z.log()
    >>> Power(2.0).log_prob(torch.tensor(0.5)).exp()
    tensor(1.)
    """

    def icdf(self, value: Tensor) -> Tensor:
        """Return the z with P(Z <= z) = value."""
        raise NotImplementedError(f"{type(self).__name__} must define icdf(u)")

    def _rsample(self, shape: Size) -> Tensor:
        return self.icdf(self._uniform(shape))

    def _fused(self, name: str, fast: Fast, noise: Tensor) -> Tensor:
        """Return `self.name(noise)`, as one step of autograd in the noise and the parameters.

        The parameters follow the noise, or the value, in the order of the constructor.
        """
        names = self._names

        def plain(noise: Tensor, *values: Tensor) -> Tensor:
            new = copy.copy(self)
            new.__dict__.update(zip(names, values, strict=True))
            return getattr(new, name)(noise)

        return fused(plain, fast, noise, *(getattr(self, n) for n in names))

    def cdf(self, value: Tensor) -> Tensor:
        """Return P(Z <= value)."""
        return self._tail("_cdf", value, 0.0, 1.0)

    def sf(self, value: Tensor) -> Tensor:
        return self._tail("_sf", value, 1.0, 0.0)

    def log_cdf(self, value: Tensor) -> Tensor:
        return self._tail("_log_cdf", value, -math.inf, 0.0)

    def log_sf(self, value: Tensor) -> Tensor:
        return self._tail("_log_sf", value, 0.0, -math.inf)

    def _tail(self, name: str, value: Tensor, below: float, above: float) -> Tensor:
        hook = getattr(self, name, None)
        if hook is None:
            raise NotImplementedError(self._lacks(name))
        if self._validate_args and can_look():
            self._validate_sample(value)
            return hook(value)
        support = self.support
        inside = support.check(value)
        z = torch.where(inside, value, self._inner_point(support))
        low = getattr(support, "lower_bound", -math.inf)
        limit = torch.where(value <= low, below, above).to(z.dtype)
        return torch.where(inside, hook(z), torch.where(value.isnan(), math.nan, limit))


class Hazard(InverseCDF):
    """Base of the families with a cumulative hazard: `_hazard`, `_inverse_hazard`, `_log_rate`."""

    def _hazard(self, z: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define _hazard(z)")

    def _inverse_hazard(self, e: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define _inverse_hazard(e)")

    def _log_rate(self, z: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define _log_rate(z)")

    fast_log_prob: Fast | None = None  # of z and the parameters
    fast_draw: Fast | None = None  # of e and the parameters

    def _log_prob(self, z: Tensor) -> Tensor:
        if self.fast_log_prob is None:
            return self._plain_log_prob(z)
        return self._fused("_plain_log_prob", self.fast_log_prob, z)

    def _plain_log_prob(self, z: Tensor) -> Tensor:
        return self._log_rate(z) - self._hazard(z)

    def _draw(self, e: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the draw that e gives, and where it had to be held inside the format."""
        return self._inverse_hazard(e), None

    def _plain_draw(self, e: Tensor) -> Tensor:
        return self._draw(e)[0]

    def _rsample(self, shape: Size) -> Tensor:
        e = self._exponential(shape)
        if self.fast_draw is None:
            return self._plain_draw(e)
        return self._fused("_plain_draw", self.fast_draw, e)

    def rsample_and_log_prob(
        self, sample_shape: Size | Sequence[int] = EMPTY
    ) -> tuple[Tensor, Tensor]:
        """Draw, and score with the same noise; a draw that was held has lost its own."""
        e = self._exponential(self._extended_shape(Size(sample_shape)))
        z, held = self._draw(e)
        if held is not None:
            e = torch.where(held, self._hazard(z), e)
        return z, self._log_rate(z) - e

    def _cdf(self, z: Tensor) -> Tensor:
        return -torch.expm1(-self._hazard(z))

    def _sf(self, z: Tensor) -> Tensor:
        return torch.exp(-self._hazard(z))

    def _log_cdf(self, z: Tensor) -> Tensor:
        return log1mexp(self._hazard(z))

    def _log_sf(self, z: Tensor) -> Tensor:
        return -self._hazard(z)

    def icdf(self, value: Tensor) -> Tensor:
        return self._inverse_hazard(-torch.log1p(-value))

    def isf(self, value: Tensor) -> Tensor:
        upper = value > 0.5  # there log(value) is log1p(value - 1), whose argument is exact
        low, high = torch.where(upper, 0.5, value), torch.where(upper, value, 1.0)
        return self._inverse_hazard(-torch.where(upper, torch.log1p(high - 1), low.log()))


def within(x: Tensor, low: float, high: float) -> bool:
    """Whether all x lie between two numbers; NaN does not, nor does an empty tensor.

    Where one cannot look it is taken for true: who asks there must have clamped.
    """
    if not can_look():
        return True
    if not x.numel():
        return False
    ends = torch.aminmax(x.detach())
    return low < ends.min.item() and ends.max.item() < high


def exp_within(log_z: Tensor, power: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return exp(log_z) held inside the format, and where it was; None: nowhere.

    The upper end leaves room for the slope in the exponent of the tail, z |log E| / power^2.
    """
    if can_look() and within(log_z, -60.0, 60.0) and power.detach().amin().item() > 0.1:
        return log_z.exp(), None
    info = torch.finfo(log_z.dtype)
    room = math.log(100) + 2 * torch.log1p(1 / power.detach())
    high = math.log(info.max) - room
    low = torch.full_like(high, math.log(info.tiny) + 1e-4)
    inside = torch.minimum(torch.maximum(log_z, low), high)
    return inside.exp(), inside != log_z
