r"""Location-scale families: :math:`z = \mu + s\,\epsilon`, with noise that knows no parameters.

One of the three forms of the reparameterization trick. If :math:`\epsilon` has density
:math:`p_0`, then

.. math::

    \log q(z) = \log p_0\!\left(\frac{z - \mu}{s}\right) - \log s, \qquad
    F(z) = F_0(\epsilon), \qquad F^{-1}(u) = \mu + s\,F_0^{-1}(u),

.. math::

    E[z] = \mu + s\,E[\epsilon], \qquad \mathrm{Var}[z] = s^2\,\mathrm{Var}[\epsilon], \qquad
    H[z] = \log s + H[\epsilon].

So the author of a family says what the noise is, twice: how to draw it (`_noise`) and its
log-density (`_noise_log_prob`). The rest is scaled here from optional one-line hooks:
`_noise_cdf`, `_noise_sf`, `_noise_log_cdf`, `_noise_log_sf`, `_noise_icdf`, `_noise_isf`,
`_noise_mean`, `_noise_variance`, `_noise_mode`, `_noise_entropy`, and `_noise_score`, which gives
:math:`\log p_0` with its slope and makes the log-density one step of autograd. A family that is
symmetric about zero sets `symmetric = True` and gives left-tail functions only; its quantiles are
asked for u up to 1/2 at the lower end, where a float has the digits. A quantity whose hook is
missing raises `NotImplementedError`, which names the hook.

Upper tails have functions of their own (`sf`, `log_sf`, `isf`): in float32 the cdf is 1 long
before the survival function is 0, and importance weights are decided out there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Number
from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import Distribution, Transform, constraints
from torch.nn.functional import logsigmoid

from pyrovae.distributions.base import EMPTY, Reparameterized, can_look
from pyrovae.distributions.fused import fused
from pyrovae.distributions.stable import EULER, log1mexp, log_ndtr

__all__ = ["Cauchy", "Gumbel", "Laplace", "LocationScale", "Logistic", "Normal"]

_DTYPES = (torch.float32, torch.float64)


class LocationScale(Reparameterized):
    r"""Base of :math:`z = \mu + s\,\epsilon`: `loc` :math:`\mu`, `scale` :math:`s > 0`.

    Further shape parameters of the noise are declared by extending `arg_constraints` and passed on
    as keywords.

    Args:
        loc: location, any shape that broadcasts.
        scale: scale, positive.
        validate_args: check parameters and values; None follows Pyro's setting.
        shape_parameters: what else the noise depends on.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.real
    symmetric = False

    def __init__(
        self,
        loc: Number | Tensor,
        scale: Number | Tensor,
        *,
        validate_args: bool | None = None,
        **shape_parameters: Number | Tensor,
    ) -> None:
        if (
            not shape_parameters
            and self.arg_constraints is LocationScale.arg_constraints
            and isinstance(loc, Tensor)
            and isinstance(scale, Tensor)
            and loc.dtype is scale.dtype
            and loc.dtype in _DTYPES
            and not torch.jit.is_tracing()  # which takes shapes for data
            and loc.shape == scale.shape
            and loc.device == scale.device
        ):  # nothing to convert or to broadcast
            self.loc, self.scale = loc, scale
            self._finish(loc.shape, self._event_shape(), validate_args)
            if self._validate_args and can_look():
                self._check_parameters()
        else:
            super().__init__(loc=loc, scale=scale, validate_args=validate_args, **shape_parameters)

    def expand(self, batch_shape: Size | Sequence[int], _instance: Any = None) -> Reparameterized:
        own = _instance is None and self.arg_constraints is LocationScale.arg_constraints
        if not own or torch.jit.is_tracing():
            return super().expand(batch_shape, _instance)
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)  # what copy.copy does, in less time
        batch_shape = Size(batch_shape)
        if batch_shape != self._batch_shape:
            new.loc, new.scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
            new._batch_shape = batch_shape
        return new

    def _noise(self, shape: Size) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define _noise(shape)")

    def _noise_log_prob(self, eps: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define _noise_log_prob(eps)")

    # -- draw and score ---------------------------------------------------------------------------

    def _rsample(self, shape: Size) -> Tensor:
        return self.loc + self.scale * self._noise(shape)

    def _log_prob(self, z: Tensor) -> Tensor:
        return fused(self._plain_log_prob, self._fast_log_prob, z, self.loc, self.scale)

    def _plain_log_prob(self, z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        return self._noise_log_prob((z - loc) / scale) - scale.log()

    def _fast_log_prob(
        self, needed: tuple[bool, ...], z: Tensor, loc: Tensor, scale: Tensor
    ) -> tuple[Tensor | None, ...] | None:
        score = getattr(self, "_noise_score", None)
        if score is None:
            return None
        eps = (z - loc) / scale
        value, slope = score(eps)
        per_z = slope / scale
        per_scale = (slope * eps).add_(1).div_(scale).neg_() if needed[2] else None
        return value - scale.log(), per_z, -per_z if needed[1] else None, per_scale

    def rsample_and_log_prob(
        self, sample_shape: Size | tuple[int, ...] = EMPTY
    ) -> tuple[Tensor, Tensor]:
        """Draw, and score with the same noise: nothing is inverted."""
        eps = self._noise(self._extended_shape(Size(sample_shape)))
        return self.loc + self.scale * eps, self._noise_log_prob(eps) - self.scale.log()

    def _standard(self, z: Tensor) -> Tensor:
        return (z - self.loc) / self.scale

    # -- tails ------------------------------------------------------------------------------------

    def cdf(self, value: Tensor) -> Tensor:
        """Return P(z <= value)."""
        return self._tail("_noise_cdf", value)

    def sf(self, value: Tensor) -> Tensor:
        """Return P(z > value), accurate where the cdf has rounded to 1."""
        return self._upper("_noise_sf", "_noise_cdf", value)

    def log_cdf(self, value: Tensor) -> Tensor:
        """Return log P(z <= value)."""
        return self._tail("_noise_log_cdf", value)

    def log_sf(self, value: Tensor) -> Tensor:
        """Return log P(z > value)."""
        return self._upper("_noise_log_sf", "_noise_log_cdf", value)

    def icdf(self, value: Tensor) -> Tensor:
        """Return the z with P(Z <= z) = value; the ends of the support at 0 and 1."""
        return self.loc + self.scale * self._hook("_noise_icdf")(value)

    def isf(self, value: Tensor) -> Tensor:
        """Return the z with P(Z > z) = value."""
        if self.symmetric:
            return self.loc - self.scale * self._hook("_noise_icdf")(value)
        return self.loc + self.scale * self._hook("_noise_isf")(value)

    def _tail(self, hook: str, value: Tensor) -> Tensor:
        if self._validate_args and can_look():
            self._validate_sample(value)
        return self._hook(hook)(self._standard(value))

    def _upper(self, hook: str, mirrored: str, value: Tensor) -> Tensor:
        if self._validate_args and can_look():
            self._validate_sample(value)
        eps = self._standard(value)
        return self._hook(mirrored)(-eps) if self.symmetric else self._hook(hook)(eps)

    # -- moments ----------------------------------------------------------------------------------

    @property
    def mean(self) -> Tensor:
        if self.symmetric and not hasattr(self, "_noise_mean"):
            return self.loc
        return self.loc + self.scale * self._hook("_noise_mean")()

    @property
    def mode(self) -> Tensor:
        if self.symmetric and not hasattr(self, "_noise_mode"):
            return self.loc
        return self.loc + self.scale * self._hook("_noise_mode")()

    @property
    def variance(self) -> Tensor:
        return self.scale.square() * self._hook("_noise_variance")()

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, `[*batch]`."""
        return self.scale.log() + self._hook("_noise_entropy")()

    def _hook(self, name: str) -> Callable[..., Tensor | float]:
        hook = getattr(self, name, None)
        if hook is None:
            raise NotImplementedError(
                f"{type(self).__name__} does not define {name}, which this needs"
            )
        return hook


class Normal(LocationScale, dist.Normal):
    r"""Normal: :math:`\epsilon \sim \mathcal N(0, 1)`.

    .. math:: \log q(z) = -\tfrac12\epsilon^2 - \tfrac12\log 2\pi - \log s, \qquad
        F(z) = \tfrac12\,\mathrm{erfc}(-\epsilon / \sqrt2).

    The cdf keeps its lower tail in float32 to :math:`\epsilon = -13`, the log-cdf everywhere.

    Args:
        loc: :math:`\mu`, mean, median and mode.
        scale: :math:`s > 0`, standard deviation.

    >>> Normal(0.0, 1.0).cdf(torch.tensor(-6.0))
    tensor(9.8659e-10)
    """

    symmetric = True

    def _noise(self, shape: Size) -> Tensor:
        return self._normal(shape)

    def _noise_log_prob(self, eps: Tensor) -> Tensor:
        return -0.5 * eps.square() - 0.5 * math.log(2 * math.pi)

    def _noise_score(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        return (eps * eps).mul_(-0.5).sub_(0.5 * math.log(2 * math.pi)), -eps

    def _noise_cdf(self, eps: Tensor) -> Tensor:
        return 0.5 * torch.erfc(eps * -math.sqrt(0.5))

    def _noise_log_cdf(self, eps: Tensor) -> Tensor:
        return log_ndtr(eps)

    def _noise_icdf(self, u: Tensor) -> Tensor:
        return torch.special.ndtri(u)

    def _noise_variance(self) -> float:
        return 1.0

    def _noise_entropy(self) -> float:
        return 0.5 + 0.5 * math.log(2 * math.pi)

    @property
    def stddev(self) -> Tensor:
        return self.scale


class Laplace(LocationScale, dist.Laplace):
    r"""Laplace: :math:`\epsilon = \pm E`, an exponential with a random sign.

    .. math:: \log q(z) = -|\epsilon| - \log 2 s, \qquad
        F(z) = \tfrac12 e^{\epsilon} \;(\epsilon \le 0), \quad
        1 - \tfrac12 e^{-\epsilon} \;(\epsilon > 0).

    Args:
        loc: :math:`\mu`, mean, median and mode.
        scale: :math:`s > 0`; the variance is :math:`2 s^2`.

    >>> Laplace(0.0, 1.0).icdf(torch.tensor(1e-10))
    tensor(-22.3327)
    """

    symmetric = True

    def _noise(self, shape: Size) -> Tensor:
        v = self._wide_uniform(shape).mul_(2).sub_(1)  # its sign is the sign
        return torch.copysign(v.abs().neg_().log1p_(), v).to(self.loc.dtype)

    def _noise_log_prob(self, eps: Tensor) -> Tensor:
        return -eps.abs() - math.log(2)

    def _noise_score(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        return eps.abs().neg_().sub_(math.log(2)), eps.sign().neg_()

    def _noise_cdf(self, eps: Tensor) -> Tensor:
        half = 0.5 * torch.exp(-eps.abs())
        return torch.where(eps > 0, 1 - half, half)

    def _noise_log_cdf(self, eps: Tensor) -> Tensor:
        upper = torch.log1p(-0.5 * torch.exp(-eps.abs()))
        return torch.where(eps > 0, upper, eps - math.log(2))

    def _noise_icdf(self, u: Tensor) -> Tensor:
        upper = u > 0.5
        lower, rest = torch.where(upper, 0.5, u), torch.where(upper, 1 - u, 0.5)
        return torch.where(upper, -torch.log(2 * rest), torch.log(2 * lower))

    def _noise_variance(self) -> float:
        return 2.0

    def _noise_entropy(self) -> float:
        return 1 + math.log(2)

    @property
    def stddev(self) -> Tensor:
        return math.sqrt(2) * self.scale


class Logistic(LocationScale, dist.Logistic):
    r"""Logistic: :math:`\epsilon = \mathrm{logit}\, u`, u uniform with 53 bits.

    .. math::

        \log q(z) = \log\sigma(\epsilon) + \log\sigma(-\epsilon) - \log s, \qquad
        F(z) = \sigma(\epsilon), \qquad \mathrm{Var}[z] = s^2 \pi^2 / 3.

    The tails are exponential, heavier than a Gaussian's on both sides. Every draw is
    finite, and both tails are whole in float32. Source: Balakrishnan
    (1992), Handbook of the Logistic Distribution.

    Args:
        loc: :math:`\mu`, mean, median and mode.
        scale: :math:`s > 0`.

    >>> Logistic(0.0, 1.0).log_prob(torch.tensor(0.0)).exp()
    tensor(0.2500)
    """

    symmetric = True

    def _noise(self, shape: Size) -> Tensor:
        u = self._wide_uniform(shape)
        return (u / (1 - u)).log_().to(self.loc.dtype)  # whole at both ends

    def _noise_log_prob(self, eps: Tensor) -> Tensor:
        return 2 * logsigmoid(eps) - eps.clamp_min(_DEEP)

    def _noise_score(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        return self._noise_log_prob(eps), (0.5 * eps).tanh_().neg_()

    def _noise_cdf(self, eps: Tensor) -> Tensor:
        return torch.sigmoid(eps)

    def _noise_log_cdf(self, eps: Tensor) -> Tensor:
        return logsigmoid(eps)

    def _noise_icdf(self, u: Tensor) -> Tensor:
        return u.log() - torch.log1p(-u)

    def _noise_variance(self) -> float:
        return math.pi**2 / 3

    def _noise_entropy(self) -> float:
        return 2.0


class Cauchy(LocationScale, dist.Cauchy):
    r"""Cauchy: :math:`\epsilon = \tan \pi(u - \tfrac12)`, u uniform with 53 bits.

    .. math:: \log q(z) = -\log \pi s (1 + \epsilon^2), \qquad
        F(z) = \mathrm{atan2}(1, -\epsilon) / \pi, \qquad F^{-1}(u) = \mu - s\cot \pi u.

    No moment exists: the mean is NaN, the variance infinite. The tails of the draws reach
    :math:`10^{16}`, where a float32 uniform would stop at :math:`5 \cdot 10^6`.

    Args:
        loc: :math:`\mu`, median and mode.
        scale: :math:`s > 0`, half the width at half the height.

    >>> Cauchy(0.0, 1.0).icdf(torch.tensor([0.0, 1e-10]))
    tensor([       -inf, -3.1831e+09])
    """

    symmetric = True

    def _noise(self, shape: Size) -> Tensor:
        return self._wide_uniform(shape).sub_(0.5).mul_(math.pi).tan_().to(self.loc.dtype)

    def _noise_log_prob(self, eps: Tensor) -> Tensor:
        # the square of 1e20 is not a float32: the hypotenuse is
        return -2 * torch.hypot(torch.ones_like(eps), eps).log() - math.log(math.pi)

    def _noise_score(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        return self._noise_log_prob(eps), -2 / (eps + 1 / eps)

    def _noise_cdf(self, eps: Tensor) -> Tensor:
        return torch.atan2(torch.ones_like(eps), -eps) / math.pi

    def _noise_log_cdf(self, eps: Tensor) -> Tensor:
        upper = eps > 0
        low, high = torch.where(upper, 0.0, eps), torch.where(upper, eps, 1.0)
        return torch.where(
            upper,
            torch.log1p(-torch.atan2(torch.ones_like(high), high) / math.pi),
            self._noise_cdf(low).log(),
        )

    def _noise_icdf(self, u: Tensor) -> Tensor:
        middle = (u - 0.5).abs() < 0.25
        centre, end = torch.where(middle, u, 0.5), torch.where(middle, 0.25, u)
        q = torch.where(end > 0.5, 1 - end, end)
        tail = torch.where(end > 0.5, 1.0, -1.0).to(u.dtype) / torch.tan(math.pi * q)
        return torch.where(middle, torch.tan(math.pi * (centre - 0.5)), tail)

    def _noise_mean(self) -> float:
        return math.nan

    def _noise_mode(self) -> float:
        return 0.0

    def _noise_variance(self) -> float:
        return math.inf

    def _noise_entropy(self) -> float:
        return math.log(4 * math.pi)


class Gumbel(LocationScale, dist.Gumbel):
    r"""Gumbel, the law of a maximum: :math:`\epsilon = -\log E`.

    .. math:: \log q(z) = -\epsilon - e^{-\epsilon} - \log s, \qquad
        F(z) = \exp(-e^{-\epsilon}), \qquad E[\epsilon] = \gamma, \quad
        \mathrm{Var}[\epsilon] = \pi^2 / 6.

    The left tail falls doubly exponentially, the right one exponentially. Source: Gumbel (1958),
    Statistics of Extremes.

    Args:
        loc: :math:`\mu`, the mode.
        scale: :math:`s > 0`.

    >>> Gumbel(0.0, 1.0).cdf(torch.tensor([-4.0, 20.0]))
    tensor([1.9423e-24, 1.0000e+00])
    """

    def _noise(self, shape: Size) -> Tensor:
        return -self._exponential(shape).log()

    def _noise_log_prob(self, eps: Tensor) -> Tensor:
        return -eps.clamp_min(_DEEP) - torch.exp(-eps)

    def _noise_score(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        tail = torch.exp(-eps)
        return eps.clamp_min(_DEEP).add_(tail).neg_(), tail - 1

    def _noise_cdf(self, eps: Tensor) -> Tensor:
        return torch.exp(-torch.exp(-eps))

    def _noise_sf(self, eps: Tensor) -> Tensor:
        return -torch.expm1(-torch.exp(-eps))

    def _noise_log_cdf(self, eps: Tensor) -> Tensor:
        return -torch.exp(-eps)

    def _noise_log_sf(self, eps: Tensor) -> Tensor:
        far = eps > 20  # log(1 - exp(-t)) = log t - t/2 + t^2/24, and t underflows at 88
        near, tail = torch.where(far, 0.0, eps), torch.where(far, eps, 20.0)
        return torch.where(far, -tail - 0.5 * torch.exp(-tail), log1mexp(torch.exp(-near)))

    def _noise_icdf(self, u: Tensor) -> Tensor:
        return -torch.log(-_log(u))

    def _noise_isf(self, q: Tensor) -> Tensor:
        return -torch.log(-torch.log1p(-q))

    def _noise_mean(self) -> float:
        return EULER

    def _noise_mode(self) -> float:
        return 0.0

    def _noise_variance(self) -> float:
        return math.pi**2 / 6

    def _noise_entropy(self) -> float:
        return 1 + EULER

    @property
    def stddev(self) -> Tensor:
        return math.pi / math.sqrt(6) * self.scale

    # torch's Gumbel is a transformed uniform, and tools for such look at its pieces
    @property
    def base_dist(self) -> Distribution:
        return self._as_pyro(dist.Gumbel(self.loc, self.scale, validate_args=False).base_dist)

    @property
    def transforms(self) -> list[Transform]:
        return dist.Gumbel(self.loc, self.scale, validate_args=False).transforms


_DEEP = -1e30  # below it exp(-eps) is infinite in both formats, and inf - inf is NaN


def _log(u: Tensor) -> Tensor:
    """Return log u from the nearer end: near 1 it is log1p(u - 1), where u - 1 is exact."""
    upper = u > 0.5
    low, high = torch.where(upper, 0.5, u), torch.where(upper, u, 1.0)
    return torch.where(upper, torch.log1p(high - 1), low.log())
