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
a draw never overflows: `log_rsample` of :class:`Weibull` and :class:`Pareto` returns that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Number

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import Distribution, Transform, constraints

from pyrovae.distributions.base import EMPTY, Reparameterized, can_look
from pyrovae.distributions.stable import EULER, exponential_mean, lgamma1p, log1mexp

__all__ = [
    "Exponential",
    "Gompertz",
    "Hazard",
    "InverseCDF",
    "Kumaraswamy",
    "Pareto",
    "Rayleigh",
    "Weibull",
]


class InverseCDF(Reparameterized):
    r"""Base of :math:`z = F^{-1}(u)`: authors write `icdf(u)` and `_log_prob(z)`.

    `_cdf`, `_sf`, `_log_cdf`, `_log_sf` are asked only for values inside the support; outside of
    it, with validation off, the public methods return their limits.

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

    def _log_prob(self, z: Tensor) -> Tensor:
        return self._log_rate(z) - self._hazard(z)

    def _rsample(self, shape: Size) -> Tensor:
        return self._inverse_hazard(self._exponential(shape))

    def rsample_and_log_prob(
        self, sample_shape: Size | Sequence[int] = EMPTY
    ) -> tuple[Tensor, Tensor]:
        """Draw, and score with the same noise; a draw held at an end has lost its own."""
        e = self._exponential(self._extended_shape(Size(sample_shape)))
        z = self._inverse_hazard(e)
        held = (z <= torch.finfo(z.dtype).tiny) | (z >= self._top(z.dtype))
        return z, self._log_rate(z) - torch.where(held, self._hazard(z), e)

    def _top(self, dtype: torch.dtype) -> float:
        return torch.finfo(dtype).max

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


def _exp_within(log_z: Tensor) -> Tensor:
    """Return exp(log_z), held at the smallest and largest normal number of the format."""
    info = torch.finfo(log_z.dtype)
    return log_z.clamp(math.log(info.tiny) + 1e-4, math.log(info.max) - 1e-4).exp()


class Exponential(Hazard, dist.Exponential):
    r"""Exponential: :math:`H(z) = \lambda z`.

    .. math:: \log q(z) = \log\lambda - \lambda z, \qquad E[z] = 1/\lambda, \quad
        \mathrm{Var}[z] = 1/\lambda^2.

    Args:
        rate: :math:`\lambda > 0`.

    >>> Exponential(1.0).cdf(torch.tensor(1e-8))
    tensor(1.0000e-08)
    """

    arg_constraints = {"rate": constraints.positive}
    support = constraints.nonnegative

    def __init__(self, rate: Number | Tensor, *, validate_args: bool | None = None) -> None:
        super().__init__(rate=rate, validate_args=validate_args)

    def _hazard(self, z: Tensor) -> Tensor:
        return self.rate * z

    def _inverse_hazard(self, e: Tensor) -> Tensor:
        return e / self.rate

    def _log_rate(self, z: Tensor) -> Tensor:
        return self.rate.log()

    @property
    def mean(self) -> Tensor:
        return 1 / self.rate

    @property
    def mode(self) -> Tensor:
        return torch.zeros_like(self.rate)

    @property
    def variance(self) -> Tensor:
        return self.rate.pow(-2)

    @property
    def stddev(self) -> Tensor:
        return 1 / self.rate

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, `[*batch]`."""
        return 1 - self.rate.log()

    def _mean_log(self) -> Tensor:
        return -EULER - self.rate.log()


class Weibull(Hazard, dist.Weibull):
    r"""Weibull: :math:`H(z) = (z / \lambda)^k`.

    .. math:: \log q(z) = \log\tfrac{k}{\lambda} + (k - 1)\log\tfrac{z}{\lambda} - H(z), \qquad
        E[z] = \lambda\,\Gamma(1 + \tfrac1k), \qquad
        \mathrm{Var}[z] = E[z]^2\,\mathrm{expm1}\big(\log\Gamma(1 + \tfrac2k)
        - 2\log\Gamma(1 + \tfrac1k)\big).

    Source: Weibull (1951), A statistical distribution function of wide applicability.

    Args:
        scale: :math:`\lambda > 0`.
        concentration: :math:`k > 0`; 1 is the exponential law, 2 Rayleigh's.

    >>> Weibull(1.0, 0.2).mode
    tensor(0.)
    """

    arg_constraints = {"scale": constraints.positive, "concentration": constraints.positive}
    support = constraints.positive

    def __init__(
        self,
        scale: Number | Tensor,
        concentration: Number | Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(scale=scale, concentration=concentration, validate_args=validate_args)

    def _hazard(self, z: Tensor) -> Tensor:
        return (z / self.scale).pow(self.concentration)

    def _inverse_hazard(self, e: Tensor) -> Tensor:
        return _exp_within(self._log_quantile(e))

    def _log_quantile(self, e: Tensor) -> Tensor:
        return e.log() / self.concentration + self.scale.log()

    def icdf(self, value: Tensor) -> Tensor:
        return self._quantile(-torch.log1p(-value))

    def isf(self, value: Tensor) -> Tensor:
        upper = value > 0.5
        low, high = torch.where(upper, 0.5, value), torch.where(upper, value, 1.0)
        e = -torch.where(upper, torch.log1p(high - 1), low.log())
        return self._quantile(e)

    def _quantile(self, e: Tensor) -> Tensor:
        root = e.pow(0.5 / self.concentration)  # twice: the power alone may overflow
        return self.scale * root * root

    def _log_rate(self, z: Tensor) -> Tensor:
        k = self.concentration
        return torch.log(k / self.scale) + (k - 1) * torch.log(z / self.scale)

    def log_rsample(self, sample_shape: Size | Sequence[int] = EMPTY) -> Tensor:
        """Draw log z, which neither overflows nor underflows: its law is minus a Gumbel's."""
        return self._log_quantile(self._exponential(self._extended_shape(Size(sample_shape))))

    @property
    def mean(self) -> Tensor:
        return self.scale * torch.exp(torch.lgamma(1 + 1 / self.concentration))

    @property
    def mode(self) -> Tensor:
        k = self.concentration
        inner = torch.where(k > 1, k, 2.0)
        return torch.where(k > 1, self.scale * torch.exp(torch.log1p(-1 / inner) / inner), 0.0)

    @property
    def variance(self) -> Tensor:
        x = 1 / self.concentration
        ratio = lgamma1p(2 * x) - 2 * lgamma1p(x)
        return self.scale.square() * torch.exp(2 * torch.lgamma(1 + x)) * torch.expm1(ratio)

    @property
    def stddev(self) -> Tensor:
        return self.variance.sqrt()

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, `[*batch]`."""
        k = self.concentration
        return EULER * (1 - 1 / k) + torch.log(self.scale / k) + 1

    def _mean_log(self) -> Tensor:
        return self.scale.log() - EULER / self.concentration

    @property
    def base_dist(self) -> Distribution:
        return dist.Weibull(self.scale, self.concentration, validate_args=False).base_dist

    @property
    def transforms(self) -> list[Transform]:
        return dist.Weibull(self.scale, self.concentration, validate_args=False).transforms


class Rayleigh(Hazard):
    r"""Rayleigh, the length of a Gaussian pair: :math:`H(z) = z^2 / 2\sigma^2`.

    .. math:: \log q(z) = \log\tfrac{z}{\sigma^2} - H(z), \qquad
        E[z] = \sigma\sqrt{\pi/2}, \qquad \mathrm{Var}[z] = (2 - \pi/2)\,\sigma^2.

    Source: Rayleigh (1880).

    Args:
        scale: :math:`\sigma > 0`, the mode.

    >>> Rayleigh(2.0).mean
    tensor(2.5066)
    """

    arg_constraints = {"scale": constraints.positive}
    support = constraints.positive

    def __init__(self, scale: Number | Tensor, *, validate_args: bool | None = None) -> None:
        super().__init__(scale=scale, validate_args=validate_args)

    def _hazard(self, z: Tensor) -> Tensor:
        return 0.5 * (z / self.scale).square()

    def _inverse_hazard(self, e: Tensor) -> Tensor:
        return self.scale * torch.sqrt(2 * e)

    def _log_rate(self, z: Tensor) -> Tensor:
        return torch.log(z / self.scale / self.scale)

    @property
    def mean(self) -> Tensor:
        return math.sqrt(math.pi / 2) * self.scale

    @property
    def mode(self) -> Tensor:
        return self.scale

    @property
    def variance(self) -> Tensor:
        return (2 - math.pi / 2) * self.scale.square()

    @property
    def stddev(self) -> Tensor:
        return math.sqrt(2 - math.pi / 2) * self.scale

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, `[*batch]`."""
        return 1 + 0.5 * EULER + torch.log(self.scale * math.sqrt(0.5))

    def _mean_log(self) -> Tensor:
        return torch.log(self.scale * math.sqrt(2)) - 0.5 * EULER


class Pareto(Hazard, dist.Pareto):
    r"""Pareto: :math:`H(z) = \alpha\log(z / m)` for :math:`z \ge m`.

    .. math:: \log q(z) = \log\alpha - \log z - H(z), \qquad
        E[z] = \frac{\alpha m}{\alpha - 1} \;(\alpha > 1), \qquad
        \mathrm{Var}[z] = \frac{\alpha m^2}{(\alpha - 1)^2 (\alpha - 2)} \;(\alpha > 2);

    infinite elsewhere. Source: Arnold (2015), Pareto Distributions.

    Args:
        scale: :math:`m > 0`, the least value and the mode.
        alpha: :math:`\alpha > 0`, the exponent of the tail.

    >>> Pareto(1.0, 3.0).mean
    tensor(1.5000)
    """

    arg_constraints = {"scale": constraints.positive, "alpha": constraints.positive}

    def __init__(
        self,
        scale: Number | Tensor,
        alpha: Number | Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(scale=scale, alpha=alpha, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.greater_than_eq(self.scale)

    def _log_ratio(self, z: Tensor) -> Tensor:
        """Return log(z / m), from the difference where z is close to m."""
        r = z / self.scale
        near = r < 2
        close, far = torch.where(near, (z - self.scale) / self.scale, 0.0), torch.where(near, 2, r)
        return torch.where(near, torch.log1p(close), far.log())

    def _hazard(self, z: Tensor) -> Tensor:
        return self.alpha * self._log_ratio(z)

    def _inverse_hazard(self, e: Tensor) -> Tensor:
        top = math.log(torch.finfo(e.dtype).max) - 1e-4
        growth = torch.minimum(e / self.alpha, top - self.scale.log())
        return torch.maximum(self.scale * torch.exp(growth), self.scale)

    def _log_rate(self, z: Tensor) -> Tensor:
        return torch.log(self.alpha / z)

    def _top(self, dtype: torch.dtype) -> float:
        return torch.finfo(dtype).max * (1 - 1e-3)

    def log_rsample(self, sample_shape: Size | Sequence[int] = EMPTY) -> Tensor:
        """Draw log z, which does not overflow: an exponential, shifted."""
        e = self._exponential(self._extended_shape(Size(sample_shape)))
        return self.scale.log() + e / self.alpha

    @property
    def mean(self) -> Tensor:
        a = torch.where(self.alpha > 1, self.alpha, 2.0)
        return torch.where(self.alpha > 1, self.scale * (a / (a - 1)), math.inf)

    @property
    def mode(self) -> Tensor:
        return self.scale

    @property
    def variance(self) -> Tensor:
        a = torch.where(self.alpha > 2, self.alpha, 3.0)
        value = (self.scale / (a - 1)).square() * (a / (a - 2))
        return torch.where(self.alpha > 2, value, math.inf)

    @property
    def stddev(self) -> Tensor:
        return self.variance.sqrt()

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, `[*batch]`."""
        return torch.log(self.scale / self.alpha) + (1 + 1 / self.alpha)

    def _mean_log(self) -> Tensor:
        return self.scale.log() + 1 / self.alpha

    @property
    def base_dist(self) -> Distribution:
        return dist.Pareto(self.scale, self.alpha, validate_args=False).base_dist

    @property
    def transforms(self) -> list[Transform]:
        return dist.Pareto(self.scale, self.alpha, validate_args=False).transforms


class Gompertz(Hazard):
    r"""Gompertz, a hazard that grows exponentially: :math:`H(z) = c\,\mathrm{expm1}(b z)`.

    .. math:: \log q(z) = \log(c b) + b z - H(z), \qquad
        \text{mode } \max(0, -\log c) / b, \qquad H[z] = 1 - \log(c b) - b\,E[z].

    Mean and variance are integrals without elementary form, by quadrature. Source: Gompertz
    (1825), On the nature of the function expressive of the law of human mortality.

    Args:
        concentration: :math:`c > 0`.
        rate: :math:`b > 0`, the inverse of scipy's scale.

    >>> Gompertz(1.0, 1.0).mean
    tensor(0.5963)
    """

    arg_constraints = {"concentration": constraints.positive, "rate": constraints.positive}
    support = constraints.nonnegative

    def __init__(
        self,
        concentration: Number | Tensor,
        rate: Number | Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(concentration=concentration, rate=rate, validate_args=validate_args)

    def _hazard(self, z: Tensor) -> Tensor:
        return self.concentration * torch.expm1(self.rate * z)

    def _inverse_hazard(self, e: Tensor) -> Tensor:
        return torch.log1p(e / self.concentration) / self.rate

    def _log_rate(self, z: Tensor) -> Tensor:
        return torch.log(self.concentration * self.rate) + self.rate * z

    def _growth(self) -> Tensor:
        """Return E[b z]."""
        c = self.concentration
        return exponential_mean(lambda t: torch.log1p(t / c), c)

    @property
    def mean(self) -> Tensor:
        return self._growth() / self.rate

    @property
    def mode(self) -> Tensor:
        return (-self.concentration.log()).clamp_min(0) / self.rate

    @property
    def variance(self) -> Tensor:
        c, m = self.concentration, self._growth()
        spread = exponential_mean(lambda t: (torch.log1p(t / c) - m).square(), c)
        return spread / self.rate.square()

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, `[*batch]`."""
        return 1 - torch.log(self.concentration * self.rate) - self._growth()


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

    def _log_quantile(self, e: Tensor) -> Tensor:
        return log1mexp(e / self.concentration0) / self.concentration1

    def _inverse_hazard(self, e: Tensor) -> Tensor:
        tiny = math.log(torch.finfo(e.dtype).tiny) + 1e-4
        return self._log_quantile(e).clamp_min(tiny).exp().clamp_max(self._top(e.dtype))

    def icdf(self, value: Tensor) -> Tensor:
        return torch.exp(self._log_quantile(-torch.log1p(-value)))

    def _log_prob(self, z: Tensor) -> Tensor:
        a, b, x = self.concentration1, self.concentration0, self._log_inside(z)
        return torch.log(a * b) - (a - 1) * x + (b - 1) * log1mexp(a * x)

    def _log_rate(self, z: Tensor) -> Tensor:
        a, b, x = self.concentration1, self.concentration0, self._log_inside(z)
        return torch.log(a * b) - (a - 1) * x - log1mexp(a * x)

    def _top(self, dtype: torch.dtype) -> float:
        return 1 - torch.finfo(dtype).eps / 2

    def log_rsample(self, sample_shape: Size | Sequence[int] = EMPTY) -> Tensor:
        """Draw log z, which keeps apart draws that are 0 in the format."""
        return self._log_quantile(self._exponential(self._extended_shape(Size(sample_shape))))

    def _mean_of(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        a, b = self.concentration1, self.concentration0
        return exponential_mean(lambda t: f(torch.exp(log1mexp(t / b) / a)), a)

    @property
    def mean(self) -> Tensor:
        return self._mean_of(lambda z: z)

    @property
    def variance(self) -> Tensor:
        m = self.mean
        return self._mean_of(lambda z: (z - m).square())

    @property
    def stddev(self) -> Tensor:
        return self.variance.sqrt()

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
        return (1 - 1 / b) + (1 - 1 / a) * _harmonic(b) - torch.log(a * b)

    def _mean_log(self) -> Tensor:
        return -_harmonic(self.concentration0) / self.concentration1

    @property
    def base_dist(self) -> Distribution:
        pair = self.concentration1, self.concentration0
        return dist.Kumaraswamy(*pair, validate_args=False).base_dist

    @property
    def transforms(self) -> list[Transform]:
        pair = self.concentration1, self.concentration0
        return dist.Kumaraswamy(*pair, validate_args=False).transforms


def _harmonic(b: Tensor) -> Tensor:
    r"""Return the harmonic number :math:`\psi(b + 1) + \gamma`."""
    return torch.digamma(b + 1) + EULER
