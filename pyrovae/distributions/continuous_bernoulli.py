r"""Continuous Bernoulli: the likelihood of grey pixels in [0, 1].

.. math::

    p(x) = \frac{e^{l x}}{Z(l)}, \qquad
    \log Z(l) = \log\frac{e^l - 1}{l} = \tfrac l2 + \log\frac{\sinh y}{y}, \quad y = \tfrac l2,

an exponential family with natural parameter l, the logit. Its mean and variance are the
derivatives of :math:`\log Z`: with Langevin's function :math:`L(y) = \coth y - 1/y`,

.. math:: E[x] = \tfrac12 + \tfrac12 L(y), \qquad \mathrm{Var}[x] = \tfrac14 L'(y).

The common form in p cuts a hole around p = 1/2, where it divides 0 by 0, and clamps p, which cuts
off logits beyond 16: variances become negative and a pixel's log-density is off by nats. In the
logit, with a series near zero, nothing is cut. Source: Loaiza-Ganem and Cunningham (2019, arXiv
1907.06845).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Number
from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.utils import lazy_property

from pyrovae.distributions.inverse_cdf import InverseCDF
from pyrovae.distributions.stable import (
    exponential_mean,
    langevin,
    langevin_slope,
    log1mexp,
    log_sinhc,
)

__all__ = ["ContinuousBernoulli"]

_LARGE = 30.0  # beyond, 1 is lost beside exp(l) in both formats
_SMALL = 3e-6


class ContinuousBernoulli(InverseCDF, dist.ContinuousBernoulli):
    r"""Continuous Bernoulli, right at p = 1/2 and at logits of any size.

    Args:
        probs: p in (0, 1); not the mean.
        logits: :math:`l = \log p - \log(1 - p)`; give one of the two.

    Raises:
        ValueError: both or neither given.

    >>> ContinuousBernoulli(logits=torch.tensor(100.0)).log_prob(torch.tensor(1.0))
    tensor(4.6052)
    """

    arg_constraints = {"probs": constraints.unit_interval, "logits": constraints.real}
    support = constraints.unit_interval
    _names = ("logits",)

    def __init__(
        self,
        probs: Number | Tensor | None = None,
        logits: Number | Tensor | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if (probs is None) == (logits is None):
            raise ValueError(
                "ContinuousBernoulli: give either probs or logits, got "
                + ("both" if logits is not None else "neither")
            )
        if logits is None:
            super().__init__(probs=probs, validate_args=validate_args)
            self.logits = _logit(self.__dict__.pop("probs"))
        else:
            super().__init__(logits=logits, validate_args=validate_args)

    def _like(self) -> Tensor:
        return self.logits

    def expand(
        self, batch_shape: Size | Sequence[int], _instance: Any = None
    ) -> ContinuousBernoulli:
        new = super().expand(batch_shape, _instance)
        new.__dict__.pop("probs", None)
        return new

    @lazy_property
    def probs(self) -> Tensor:
        """The parameter p of the exponential tilt, the sigmoid of the logits."""
        return torch.sigmoid(self.logits)

    @property
    def param_shape(self) -> Size:
        return self.logits.shape

    def _log_prob(self, z: Tensor) -> Tensor:
        half = 0.5 * self.logits
        # for large logits, from the end that has the mass: l (x - 1) + log l
        shifted = (z - 0.5 - 0.5 * half.sign()) * self.logits
        return shifted - (log_sinhc(half) - half.abs())

    def _cdf(self, z: Tensor) -> Tensor:
        return self._one_of(_share(z, 1 - z, self.logits), _share(1 - z, z, -self.logits))

    def _sf(self, z: Tensor) -> Tensor:
        return self._one_of(_share(1 - z, z, -self.logits), _share(z, 1 - z, self.logits))

    def _one_of(self, share: Tensor, other: Tensor) -> Tensor:
        return torch.where(share < 0.5, share, 1 - other)

    def _log_cdf(self, z: Tensor) -> Tensor:
        low = _log_share(z, 1 - z, self.logits)
        return self._log_one_of(low, _share(1 - z, z, -self.logits))

    def _log_sf(self, z: Tensor) -> Tensor:
        high = _log_share(1 - z, z, -self.logits)
        return self._log_one_of(high, _share(z, 1 - z, self.logits))

    def _log_one_of(self, log_share: Tensor, other: Tensor) -> Tensor:
        upper = log_share > -math.log(2)
        return torch.where(upper, torch.log1p(-torch.where(upper, other, 0.0)), log_share)

    def icdf(self, value: Tensor) -> Tensor:
        return _quantile(value, self.logits)

    def isf(self, value: Tensor) -> Tensor:
        upper = value >= 0.5  # there 1 - value is exact
        lower = torch.where(upper, 0.25, value)
        falls = self.logits < -0.1
        a = torch.where(falls, -self.logits, 1.0)
        near = -torch.log(lower + (1 - lower) * torch.exp(-a)) / a  # e^{l x} itself
        far = 1 - _quantile(lower, -self.logits)
        mirrored = _quantile(1 - torch.where(upper, value, 0.5), self.logits)
        return torch.where(upper, mirrored, torch.where(falls, near, far))

    @property
    def mean(self) -> Tensor:
        half = 0.5 * self.logits
        upper = 0.5 + 0.5 * langevin(half)
        # -1/l + 1/(e^-l - 1): the small mean of very negative logits, without 1/2 - 1/2
        low = torch.where(half < -1, self.logits, -2.0)
        lower = -1 / low + torch.exp(low) / torch.expm1(low)
        return torch.where(half < -1, lower, upper)

    @property
    def mode(self) -> Tensor:
        """The end the density rises to; NaN where it is flat."""
        ends = torch.where(self.logits > 0, 1.0, 0.0).to(self.logits.dtype)
        return torch.where(self.logits == 0, math.nan, ends)

    @property
    def variance(self) -> Tensor:
        return 0.25 * langevin_slope(0.5 * self.logits)

    @property
    def stddev(self) -> Tensor:
        return self.variance.sqrt()

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, `[*batch]`: never above 0."""
        half = 0.5 * self.logits.abs()
        large = half > 1
        near, far = torch.where(large, 1.0, half), torch.where(large, half, 2.0)
        e = torch.exp(-2 * far)
        outer = 1 - torch.log(2 * far) + torch.log1p(-e) - 2 * far * e / -torch.expm1(-2 * far)
        return torch.where(large, outer, log_sinhc(near) - near * langevin(near))

    def _mean_log(self) -> Tensor:
        return exponential_mean(lambda t: torch.log(self.icdf(torch.exp(-t))), self.logits)


def _pieces(x: Tensor, rest: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what both forms of expm1(l x) / expm1(l) are made of; `rest` is 1 - x, to its digits.

    For small l, x exp(b) with b = -l rest / 2 + log(sinhc(l x / 2) / sinhc(l / 2)); for others,
    with a = |l|, (1 - e^{-a x}) / (1 - e^{-a}), times e^{-a rest} where l > 0.
    """
    small = logits.abs() < 1
    near, far = torch.where(small, logits, 0.0), torch.where(small, 1.0, logits)
    bend = log_sinhc(0.5 * near * x) - log_sinhc(0.5 * near) - 0.5 * near * rest
    return small, bend, far.abs(), torch.where(far > 0, far * rest, 0.0)


def _share(x: Tensor, rest: Tensor, logits: Tensor) -> Tensor:
    """Return expm1(l x) / expm1(l), the mass of [0, x]."""
    small, bend, a, fall = _pieces(x, rest, logits)
    tilted = torch.expm1(-a * x) / torch.expm1(-a) * torch.exp(-fall)
    return torch.where(small, x * torch.exp(bend), tilted)


def _log_share(x: Tensor, rest: Tensor, logits: Tensor) -> Tensor:
    small, bend, a, fall = _pieces(x, rest, logits)
    return torch.where(small, x.log() + bend, log1mexp(a * x) - log1mexp(a) - fall)


def _logit(p: Tensor) -> Tensor:
    """Return log(p / (1 - p)), from 2p - 1 in the middle, where that is exact."""
    info = torch.finfo(p.dtype)
    p = p.clamp(info.tiny, 1 - info.eps / 2)
    middle = (p - 0.5).abs() < 0.25
    near, far = torch.where(middle, p, 0.5), torch.where(middle, 0.5, p)
    return torch.where(middle, 2 * torch.atanh(2 * near - 1), far.log() - torch.log1p(-far))


def _quantile(u: Tensor, logits: Tensor) -> Tensor:
    """Return x with expm1(l x) / expm1(l) = u."""
    tiny, large = logits.abs() < _SMALL, logits > _LARGE
    mid = torch.where(tiny | large, 1.0, logits)
    big = torch.where(large, logits, _LARGE)
    series = u * (1 + 0.5 * logits * (1 - u) * (1 + logits * (1 - 2 * u) / 3))
    regular = torch.log1p(u * torch.expm1(mid)) / mid
    zero = u <= 0
    power = big + torch.where(zero, 1.0, u).log()
    far = torch.where(zero, 0.0, torch.logaddexp(power, torch.zeros_like(power)) / big)
    return torch.where(tiny, series, torch.where(large, far, regular))
