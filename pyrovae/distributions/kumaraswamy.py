r"""Kumaraswamy: a law on the unit interval, close to a Beta, with everything in closed form.

With :math:`x = -\log z` the share below z is :math:`1 - (1 - e^{-a x})^b`; the inner difference is
taken by `log1mexp` and never through z near 0 or 1, where a power of z has no digits left.
"""

from __future__ import annotations

import math
from numbers import Number

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints

from pyrovae.distributions.inverse_cdf import Hazard, within
from pyrovae.distributions.special import log_gamma_ratio
from pyrovae.distributions.stable import (
    EULER,
    exponential_mean,
    harmonic,
    lgamma1p,
    log1mexp,
)

__all__ = ["Kumaraswamy"]


class Kumaraswamy(Hazard, dist.Kumaraswamy):
    r"""Kumaraswamy, a beta with a closed cdf: :math:`H(z) = -b\log(1 - z^a)`.

    .. math:: z = (1 - e^{-E / b})^{1/a}, \qquad
        \log q(z) = \log(a b) + (a - 1)\log z + (b - 1)\log(1 - z^a).

    Everything is computed from :math:`\log z` and `log1mexp`, so neither small nor large
    concentrations lose the ends of the interval. Source: Kumaraswamy (1980); stable forms after
    Wasserman and Mateos (2024, arXiv 2410.00660).

    Args:
        concentration1: :math:`a > 0`.
        concentration0: :math:`b > 0`.

    >>> Kumaraswamy(2.0, 3.0).mode
    tensor(0.4472)
    """

    arg_constraints = {
        "concentration1": constraints.positive,
        "concentration0": constraints.positive,
    }
    support = constraints.unit_interval

    def __init__(
        self,
        concentration1: Number | Tensor,
        concentration0: Number | Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(
            concentration1=concentration1,
            concentration0=concentration0,
            validate_args=validate_args,
        )

    def _log_inside(self, z: Tensor) -> Tensor:
        """Return -log z; at the ends as if z were the nearest number inside."""
        info = torch.finfo(z.dtype)
        inside = z.clamp(info.tiny, 1 - info.eps / 2)
        upper = inside > 0.5
        low, high = torch.where(upper, 0.5, inside), torch.where(upper, inside, 0.5)
        return -torch.where(upper, torch.log1p(high - 1), low.log())

    def _hazard(self, z: Tensor) -> Tensor:
        return -self.concentration0 * log1mexp(self.concentration1 * self._log_inside(z))

    def _log_quantile(self, e: Tensor) -> Tensor:  # keeps apart draws that are 0 in the format
        return log1mexp(e / self.concentration0) / self.concentration1

    def _inverse_hazard(self, e: Tensor) -> Tensor:
        return torch.exp(self._log_quantile(e))

    def _draw(self, e: Tensor) -> tuple[Tensor, Tensor]:
        info, y = torch.finfo(e.dtype), self._log_quantile(e)
        tiny = math.log(info.tiny) + 1e-4
        z = y.clamp_min(tiny).exp()
        top = 1 - info.eps / 2
        return z.clamp_max(top), (y <= tiny) | (z >= top)

    @staticmethod
    def fast_draw(needed: tuple[bool, ...], e: Tensor, a: Tensor, b: Tensor) -> tuple | None:
        """Where 1 - e^{-s} is near 1, float64 keeps what is missing."""
        if e.dtype != torch.float32:
            return None
        s = (e / b).neg_()
        power = s.double().expm1_().neg_()  # z^a
        y = power.log().to(e.dtype).div_(a)
        z = y.exp()
        if not within(y, -80.0, -1e-7):
            return None
        per_a = y.mul_(z).div_(a).neg_()
        per_b = s.exp().mul_(s).mul_(z).div_(power.to(e.dtype).mul_(a).mul_(b))
        return z, None, per_a, per_b

    @staticmethod
    def fast_log_prob(needed: tuple[bool, ...], z: Tensor, a: Tensor, b: Tensor) -> tuple | None:
        """In float64, likewise."""
        if z.dtype != torch.float32 or not within(z, torch.finfo(z.dtype).tiny, 1.0):
            return None
        log_z = z.log()  # right near 1, where z is what it is
        power = log_z * a
        less = power.double().expm1_()  # z^a - 1
        log_rest = less.neg().log_().to(z.dtype)
        ratio = power.exp_().div_(less.to(z.dtype)).mul_(b - 1)  # -(b - 1) z^a / (1 - z^a)
        value = (a * b).log_().addcmul_(log_z, a - 1).addcmul_(log_rest, b - 1)
        per_z = (ratio + 1).mul_(a).sub_(1).div_(z)
        per_a = ratio.add_(1).mul_(log_z).add_(1 / a) if needed[1] else None
        per_b = log_rest.add_(1 / b) if needed[2] else None
        return value, per_z, per_a, per_b

    def _plain_log_prob(self, z: Tensor) -> Tensor:
        a, b, x = self.concentration1, self.concentration0, self._log_inside(z)
        return torch.log(a * b) - (a - 1) * x + (b - 1) * log1mexp(a * x)

    def _log_rate(self, z: Tensor) -> Tensor:
        a, b, x = self.concentration1, self.concentration0, self._log_inside(z)
        return torch.log(a * b) - (a - 1) * x - log1mexp(a * x)

    def _log_moment(self, n: int) -> Tensor:
        """Return log E[z^n], of Gamma(1 + n/a) Gamma(1 + b) / Gamma(1 + n/a + b); float64."""
        x, b = n / self.concentration1.double(), self.concentration0.double()
        less, more = torch.minimum(x, b), torch.maximum(x, b)
        return lgamma1p(less) - EULER * less - log_gamma_ratio(1 + more, less)

    @property
    def mean(self) -> Tensor:
        return self._log_moment(1).exp().to(self.concentration1.dtype)

    def _log_spread(self) -> Tensor:
        r"""Return log(E[z^2] / E[z]^2), a third difference of log-Gamma; float64.

        By Malmsten's integral of log-Gamma every part of it is positive, with x = 1/a:

        .. math:: \int_0^\infty e^{-t}\,\frac{(1 - e^{-bt})(1 - e^{-xt})^2}{t\,(1 - e^{-t})}\,dt.

        Where x is large the moments themselves do not cancel.
        """
        x, b = 1 / self.concentration1.double(), self.concentration0.double()

        def part(t: Tensor) -> Tensor:
            return torch.expm1(-b * t) * torch.expm1(-x * t).square() / (t * torch.expm1(-t))

        first = self._log_moment(1)
        apart = self._log_moment(2) - 2 * first
        return torch.where(apart > -0.5 * first, apart, exponential_mean(part, b))

    @property
    def variance(self) -> Tensor:
        variance = -self._log_moment(2).exp() * torch.expm1(-self._log_spread())
        return variance.to(self.concentration1.dtype)

    @property
    def stddev(self) -> Tensor:
        spread = (-torch.expm1(-self._log_spread())).sqrt()
        return ((0.5 * self._log_moment(2)).exp() * spread).to(self.concentration1.dtype)

    @property
    def mode(self) -> Tensor:
        """The highest point; NaN where there are two, or where the density is flat."""
        a, b = self.concentration1, self.concentration0
        inner = (a > 1) & (b > 1)
        p, q = torch.where(inner, a, 2.0), torch.where(inner, b, 2.0)
        mode = torch.where(inner, torch.exp(torch.log((p - 1) / (p * q - 1)) / p), math.nan)
        mode = torch.where((a <= 1) & (b >= 1) & ((a != 1) | (b != 1)), 0.0, mode)
        return torch.where((a >= 1) & (b <= 1) & ((a != 1) | (b != 1)), 1.0, mode)

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, `[*batch]`."""
        a, b = self.concentration1, self.concentration0
        return (1 - 1 / b) + (1 - 1 / a) * harmonic(b) - torch.log(a * b)

    def _mean_log(self) -> Tensor:
        return -harmonic(self.concentration0) / self.concentration1

    @property
    def base_dist(self) -> Distribution:
        pair = self.concentration1, self.concentration0
        return self._as_pyro(dist.Kumaraswamy(*pair, validate_args=False).base_dist)

    @property
    def transforms(self) -> list[Transform]:
        pair = self.concentration1, self.concentration0
        return dist.Kumaraswamy(*pair, validate_args=False).transforms
