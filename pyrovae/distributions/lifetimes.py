r"""Laws of a waiting time: Exponential, Weibull, Rayleigh, Pareto, Gompertz.

Each is its cumulative hazard, :math:`P(Z > z) = e^{-H(z)}`:

| law | :math:`H(z)` | hazard :math:`H'` |
|---|---|---|
| `Exponential` | :math:`\lambda z` | constant |
| `Weibull` | :math:`(z / \lambda)^k` | a power of z |
| `Rayleigh` | :math:`z^2 / 2\sigma^2` | proportional to z |
| `Pareto` | :math:`\alpha \log(z / m)` | falling as 1 / z |
| `Gompertz` | :math:`c\,(e^{b z} - 1)` | growing exponentially |
"""

from __future__ import annotations

import math
from numbers import Number

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints

from pyrovae.distributions.inverse_cdf import Hazard, exp_within, within
from pyrovae.distributions.stable import EULER, exponential_mean, lgamma1p

__all__ = ["Exponential", "Gompertz", "Pareto", "Rayleigh", "Weibull"]


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

    def _log_quantile(self, e: Tensor) -> Tensor:
        return e.log() - self.rate.log()

    def _log_rate(self, z: Tensor) -> Tensor:
        return self.rate.log()

    @staticmethod
    def fast_log_prob(needed: tuple[bool, ...], z: Tensor, rate: Tensor) -> tuple:
        return rate.log().sub(z * rate), -rate, (1 / rate).sub(z)

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

    def _root(self, z: Tensor) -> Tensor:
        """Return the square root of z / scale, which neither overflows nor underflows."""
        return z.sqrt() / self.scale.sqrt()

    def _hazard(self, z: Tensor) -> Tensor:
        return self._root(z).pow(2 * self.concentration)

    def _draw(self, e: Tensor) -> tuple[Tensor, Tensor]:
        return exp_within(self._log_quantile(e), self.concentration)

    def _log_quantile(self, e: Tensor) -> Tensor:  # minus a Gumbel variable
        return e.log() / self.concentration + self.scale.log()

    def _inverse_hazard(self, e: Tensor) -> Tensor:
        root = e.pow(0.5 / self.concentration)  # twice: the power alone may overflow
        return self.scale * root * root

    def _log_rate(self, z: Tensor) -> Tensor:
        k = self.concentration
        return torch.log(k / self.scale) + 2 * (k - 1) * torch.log(self._root(z))

    def _plain_log_prob(self, z: Tensor) -> Tensor:
        k, root = self.concentration, self._root(z)
        return torch.log(k / self.scale) + 2 * (k - 1) * root.log() - root.pow(2 * k)

    @staticmethod
    def fast_log_prob(
        needed: tuple[bool, ...], z: Tensor, scale: Tensor, k: Tensor
    ) -> tuple | None:
        ratio = z / scale
        if not within(ratio, 1e-30, 1e30):
            return None
        log_ratio = ratio.log_()
        hazard, rate = (log_ratio * k).exp_(), k / scale
        value = rate.log().addcmul_(log_ratio, k - 1).sub_(hazard)
        rest = hazard.neg_().add_(1)
        per_z = (k * rest).sub_(1).div_(z)
        per_scale = rate.mul_(rest).neg_() if needed[1] else None
        per_k = log_ratio.mul_(rest).add_(1 / k) if needed[2] else None
        return value, per_z, per_scale, per_k

    @staticmethod
    def fast_draw(needed: tuple[bool, ...], e: Tensor, scale: Tensor, k: Tensor) -> tuple | None:
        power = e.log().div_(k)
        root = power.exp()
        z = root * scale
        if not (within(z, 1e-25, 1e25) and k.amin().item() > 0.1):
            return None
        return z, None, root, power.mul_(z).div_(k).neg_()

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
        return self.stddev.square()

    @property
    def stddev(self) -> Tensor:
        """The standard deviation; no part of it leaves the format before it does itself."""
        x = 1 / self.concentration
        spread = lgamma1p(2 * x) - 2 * lgamma1p(x)  # log(E[z^2] / E[z]^2)
        root = torch.exp(0.25 * torch.lgamma(1 + 2 * x))
        return self.scale * root * (-torch.expm1(-spread)).sqrt() * root

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, `[*batch]`."""
        k = self.concentration
        return EULER * (1 - 1 / k) + torch.log(self.scale / k) + 1

    def _mean_log(self) -> Tensor:
        return self.scale.log() - EULER / self.concentration

    @property
    def base_dist(self) -> Distribution:
        return self._as_pyro(
            dist.Weibull(self.scale, self.concentration, validate_args=False).base_dist
        )

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

    def _log_quantile(self, e: Tensor) -> Tensor:
        return self.scale.log() + 0.5 * torch.log(2 * e)

    def _log_rate(self, z: Tensor) -> Tensor:
        return torch.log(z / self.scale / self.scale)

    @staticmethod
    def fast_log_prob(needed: tuple[bool, ...], z: Tensor, scale: Tensor) -> tuple:
        ratio = z / scale
        square = ratio * ratio
        value = (ratio / scale).log_().sub_(square, alpha=0.5)
        return value, (1 / z).sub_(ratio / scale), (square - 2).div_(scale)

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
        near = z < 2 * self.scale
        close = torch.where(near, z - self.scale, 0.0) / self.scale
        root = torch.where(near, 2 * self.scale, z).sqrt() / self.scale.sqrt()  # no overflow
        return torch.where(near, torch.log1p(close), 2 * root.log())

    def _hazard(self, z: Tensor) -> Tensor:
        return self.alpha * self._log_ratio(z)

    def _inverse_hazard(self, e: Tensor) -> Tensor:
        root = torch.exp(0.5 * e / self.alpha)  # twice: the power alone may overflow
        return self.scale * root * root

    def _draw(self, e: Tensor) -> tuple[Tensor, Tensor]:
        room = torch.log1p(self.scale.detach()) + torch.log1p(1 / self.scale.detach())
        y = e / self.alpha
        ratio, held = exp_within(y + room, self.alpha)
        if held is None:
            return torch.maximum(self.scale * y.exp(), self.scale), None
        end = ratio * torch.exp(-room)  # z / m, with room for m and for the slope in m
        ratio = torch.where(held, end, torch.where(held, 0.0, y).exp())
        return torch.maximum(self.scale * ratio, self.scale), held

    @staticmethod
    def fast_draw(
        needed: tuple[bool, ...], e: Tensor, scale: Tensor, alpha: Tensor
    ) -> tuple | None:
        y = e / alpha
        if not (within(y, -1.0, 40.0) and within(scale, 1e-6, 1e6) and alpha.amin().item() > 0.1):
            return None
        ratio = y.exp()
        z = torch.maximum(scale * ratio, scale)
        return z, None, ratio, y.mul_(z).div_(alpha).neg_()

    @staticmethod
    def fast_log_prob(needed: tuple[bool, ...], z: Tensor, scale: Tensor, alpha: Tensor) -> tuple:
        log_ratio = (z - scale).div_(scale).log1p_()
        if not log_ratio.amax().item() < math.inf:  # (z - m) / m is beyond the format
            log_ratio = torch.where(log_ratio == math.inf, z.log() - scale.log(), log_ratio)
        value = (alpha / z).log_().sub_(alpha * log_ratio)
        per_alpha = (1 / alpha).sub(log_ratio) if needed[2] else None
        return value, (alpha + 1).div(z).neg_(), alpha / scale, per_alpha

    def _log_rate(self, z: Tensor) -> Tensor:
        return torch.log(self.alpha / z)

    def _log_quantile(self, e: Tensor) -> Tensor:  # an exponential, shifted
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
        return self._as_pyro(dist.Pareto(self.scale, self.alpha, validate_args=False).base_dist)

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

    def _log_quantile(self, e: Tensor) -> Tensor:
        return torch.log1p(e / self.concentration).log() - self.rate.log()

    def _log_rate(self, z: Tensor) -> Tensor:
        return torch.log(self.concentration * self.rate) + self.rate * z

    @staticmethod
    def fast_log_prob(needed: tuple[bool, ...], z: Tensor, c: Tensor, rate: Tensor) -> tuple:
        growth = rate * z
        excess = growth.expm1()
        value = (c * rate).log().add(growth).sub_(c * excess)
        rest = 1 - c * (excess + 1)
        per_rate = (1 / rate).add(z * rest) if needed[2] else None
        return value, rate * rest, (1 / c).sub(excess), per_rate

    @staticmethod
    def fast_draw(needed: tuple[bool, ...], e: Tensor, c: Tensor, rate: Tensor) -> tuple:
        ratio = e / c
        z = ratio.log1p().div_(rate)
        per_c = ratio.div_(ratio + 1).div_(rate).div_(c).neg_()
        return z, None, per_c, (z / rate).neg_()

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

    def _mean_log(self) -> Tensor:
        c = self.concentration
        return exponential_mean(lambda t: torch.log1p(t / c).log(), c) - self.rate.log()
