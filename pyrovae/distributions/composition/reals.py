r"""StudentT and LogNormal.

.. math:: t = \mu + s\,n\,\sqrt{\frac{\nu/2}{G(\nu/2)}}, \qquad z = e^{\mu + s\,n},
    \qquad n \sim \mathrm{Normal}(0, 1).

Student's t is drawn through log-Gamma; its gradient in df is the implicit one, right at every df
(the explicit one of the ratio is as unbiased, but noisier). The log-density does not subtract
large log-Gammas: in float32 torch's is wrong by 0.9 nats at df = 1e7.
"""

from __future__ import annotations

import math
from numbers import Number

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch import distributions as td
from torch.distributions import Distribution, ExpTransform, Transform
from torch.distributions.utils import broadcast_all

from pyrovae.distributions.base import EMPTY
from pyrovae.distributions.composition.contract import Univariate, check_arguments, refuse_half
from pyrovae.distributions.fused import can_look, fused
from pyrovae.distributions.inverse_cdf import InverseCDF, within
from pyrovae.distributions.special import (
    half_step,
    half_step_slope,
    log_student_density,
    student,
    student_slope,
    surfaces,
)
from pyrovae.distributions.special import incomplete_beta as beta
from pyrovae.distributions.special.incomplete_gamma import draw_log_gamma
from pyrovae.distributions.special.quadrature import known, result_dtype
from pyrovae.distributions.special.student import minus_ratio
from pyrovae.distributions.stable import log_ndtr

__all__ = ["LogNormal", "StudentT"]


def _plain_draw(t: Tensor, df: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Return loc + scale t with the implicit gradient of t in df.

    t is held where t, scale t, and their slopes, of the order of t/df^2, are in the format.
    """
    dtype = df.dtype
    with torch.no_grad():
        room = (1 + scale) * (1 + 1 / df).square()
        most = torch.finfo(dtype).max / 1e3 / room
        t = torch.minimum(torch.maximum(t, -most), most)

    def partials(
        needed: tuple[bool, ...], out: Tensor, df: Tensor, t: Tensor, most: Tensor
    ) -> tuple:
        slope = student.slope_for(df, out.abs().clamp_min(1e-300).log(), dtype)
        return torch.where(out.abs() < most, out * slope, 0.0), None, None

    rules = (None, beta.slope_rule(dtype))
    t = known(lambda df, t, most: t.clone(), partials, df, t, most, rules=rules, dtype=dtype)
    return loc + scale * t


def _fast_draw(
    needed: tuple[bool, ...], t: Tensor, df: Tensor, loc: Tensor, scale: Tensor
) -> tuple | None:
    if not can_look():
        t = t.clamp(-1e12, 1e12)
    elif not (within(t, -1e12, 1e12) and within(scale, 0.0, 1e6)):
        return None
    per_df = None
    if needed[1]:
        per_df = student_slope(df, t.abs().log_()).mul_(t).mul_(scale)
    return torch.addcmul(loc, scale, t), None, per_df, torch.ones_like(t), t


def _plain_score(z: Tensor, df: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return log_student_density(df, (z - loc) / scale) - scale.log()


def _fast_score(
    needed: tuple[bool, ...], z: Tensor, df: Tensor, loc: Tensor, scale: Tensor
) -> tuple | None:
    """Return the log-density and its slopes; what cancels at large df in float64."""
    if not within(z, -1e100, 1e100):
        return None
    eps = (z - loc).div_(scale)
    norm, norm_slope = surfaces.student_norm(df)
    square = eps.double().square()
    log1p_w, share = (square / df).log1p_(), square / (square + df)
    more = df + 1
    value = (log1p_w * more).mul_(-0.5).to(z.dtype).add_(norm).sub_(_HALF_LOG_2PI)
    value.sub_(scale.log())
    per_df = None
    if needed[1]:
        fall = log1p_w.sub_(share) if z.dtype == torch.float32 else minus_ratio(log1p_w, share)
        per_df = (share / df).sub_(fall).mul_(0.5).to(z.dtype).add_(norm_slope)
    pull = share.to(z.dtype).mul_(more)  # -eps times the slope in eps
    per_z = more.mul_(eps).div_((square + df).to(z.dtype)).div_(scale).neg_()
    return value, per_z, per_df, -per_z, pull.sub_(1).div_(scale)


class StudentT(Univariate, dist.StudentT):
    r"""Student's t with df degrees of freedom, in every dtype right from df = 1e-3 to 1e8.

    Args:
        df: :math:`\nu > 0`.
        loc: :math:`\mu`.
        scale: s > 0.

    >>> StudentT(1.0).cdf(torch.tensor(1.0))
    tensor(0.7500)
    """

    def __init__(
        self,
        df: Number | Tensor,
        loc: Number | Tensor = 0.0,
        scale: Number | Tensor = 1.0,
        validate_args: bool | None = None,
    ) -> None:
        refuse_half("StudentT", df=df, loc=loc, scale=scale)
        check_arguments(StudentT, validate_args, df=df, loc=loc, scale=scale)
        self.df, self.loc, self.scale = broadcast_all(df, loc, scale)
        self._chi2 = dist.Chi2(self.df, validate_args=False)  # torch's methods know it
        # past torch's constructor, whose inner Chi2 is validated come what may
        super(td.StudentT, self).__init__(self.df.shape, validate_args=validate_args)

    def signed_log_rsample(
        self, sample_shape: Size | tuple[int, ...] = EMPTY
    ) -> tuple[Tensor, Tensor]:
        """Draw the sign and the logarithm of (z - loc)/scale, which does not overflow."""
        df = self.df.expand(self._extended_shape(Size(sample_shape)))
        dtype = df.dtype

        def value(df: Tensor) -> Tensor:
            narrow = df.to(dtype)
            normal = torch.randn_like(narrow).abs().clamp_min(1e-30)
            return (
                normal.log() + 0.5 * ((narrow / 2).log() - draw_log_gamma(narrow / 2))
            ).double()

        def partials(needed: tuple[bool, ...], log_abs: Tensor, df: Tensor) -> tuple:
            return (student.slope_for(df, log_abs, dtype),)

        log_abs = known(value, partials, df)
        sign = torch.randint(0, 2, df.shape, device=df.device).to(dtype) * 2 - 1
        return sign, log_abs.to(dtype)

    def rsample(self, sample_shape: Size | tuple[int, ...] = EMPTY) -> Tensor:
        df = self.df.expand(self._extended_shape(Size(sample_shape)))
        with torch.no_grad():
            half = df / 2
            ratio = (half.log() - draw_log_gamma(half)).mul_(0.5).exp_()
            ratio.clamp_max_(torch.finfo(ratio.dtype).max)  # once in 2^24 the normal is 0
            t = torch.randn_like(ratio).mul_(ratio)
        return fused(_plain_draw, _fast_draw, t, df, self.loc, self.scale, compiles=True)

    def _standard(self, value: Tensor) -> Tensor:
        return (value - self.loc) / self.scale

    def _score(self, value: Tensor) -> Tensor:
        at = value, self.df, self.loc, self.scale
        return fused(_plain_score, _fast_score, *at, compiles=True)

    def _tail(self, value: Tensor, log: bool, lower: bool) -> Tensor:
        return student._tail_function(self.df, self._standard(value), log, lower)

    def _quantile(self, u: Tensor, lower: bool) -> Tensor:
        return self.loc + self.scale * student._inverse(self.df, u, lower)

    def entropy(self) -> Tensor:
        """Return the differential entropy; it tends to the Normal's."""
        df = self.df.double()
        a = df / 2
        whole = 0.5 * math.log(2 * math.pi) - half_step(a) + 0.5 * (df + 1) / df
        entropy = whole + 0.5 * (df + 1) * half_step_slope(a)
        return entropy.to(df.dtype).to(self.df.dtype) + self.scale.log()


class LogNormal(InverseCDF, dist.LogNormal):
    r"""Log-normal: :math:`\log z \sim \mathrm{Normal}(\mu, s^2)`.

    Args:
        loc: :math:`\mu`, the mean of log z.
        scale: s > 0, its standard deviation.

    >>> LogNormal(0.0, 1.0).icdf(torch.tensor(0.5))
    tensor(1.)
    """

    loc: Tensor = None  # torch's are properties
    scale: Tensor = None

    def __init__(
        self,
        loc: Number | Tensor,
        scale: Number | Tensor,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(loc=loc, scale=scale, validate_args=validate_args)

    def log_rsample(self, sample_shape: Size | tuple[int, ...] = EMPTY) -> Tensor:
        """Draw log z, which neither underflows nor overflows."""
        return self.loc + self.scale * self._normal(self._extended_shape(Size(sample_shape)))

    def _rsample(self, shape: Size) -> Tensor:
        return self._fused("_plain_draw", self.fast_draw, self._normal(shape))

    def _plain_draw(self, noise: Tensor) -> Tensor:
        info = torch.finfo(noise.dtype)
        low, high = math.log(info.tiny) + 1e-4, math.log(info.max) - math.log(1e3)
        return (self.loc + self.scale * noise).clamp(low, high).exp()

    @staticmethod
    def fast_draw(
        needed: tuple[bool, ...], noise: Tensor, loc: Tensor, scale: Tensor
    ) -> tuple | None:
        log_z = torch.addcmul(loc, scale, noise)
        if not within(log_z, -80.0, 80.0):
            return None
        z = log_z.exp_()
        return z, None, z, z * noise

    def _log_prob(self, z: Tensor) -> Tensor:
        return self._fused("_plain_log_prob", self.fast_log_prob, z)

    def _plain_log_prob(self, z: Tensor) -> Tensor:
        noise, log_z, inside = self._noise(z)
        score = -0.5 * noise.square() - log_z - self.scale.double().log() - _HALF_LOG_2PI
        return torch.where(inside, score, -math.inf).to(result_dtype(self.loc, z))

    @staticmethod
    def fast_log_prob(
        needed: tuple[bool, ...], z: Tensor, loc: Tensor, scale: Tensor
    ) -> tuple | None:
        if not within(z, 0.0, math.inf):
            return None
        log_z = z.double().log()  # the terms cancel where the density is 1
        noise = (log_z - loc).div_(scale)
        value = noise.square().mul_(-0.5).sub_(log_z).sub_(_HALF_LOG_2PI).sub_(scale.log())
        noise = noise.to(z.dtype)
        per_loc = noise / scale
        per_scale = (noise * noise).sub_(1).div_(scale) if needed[2] else None
        return value.to(z.dtype), (per_loc + 1).div_(z).neg_(), per_loc, per_scale

    def _noise(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (log z - loc)/scale and log z in float64, and where z is inside the support."""
        inside = (value > 0) & (value < math.inf)
        log = torch.where(inside, value, 1.0).double().log()
        return (log - self.loc.double()) / self.scale.double(), log, inside

    def _tail_at(self, z: Tensor, log: bool, lower: bool) -> Tensor:
        noise, _, inside = self._noise(z)
        noise = noise if lower else -noise
        tail = log_ndtr(noise) if log else 0.5 * torch.erfc(-noise / math.sqrt(2))
        ends = (-math.inf, 0.0) if log else (0.0, 1.0)
        end = torch.where((z > 0) == lower, ends[1], ends[0]).to(tail.dtype)
        return torch.where(inside, tail, end).to(result_dtype(self.loc, z))

    def _cdf(self, z: Tensor) -> Tensor:
        return self._tail_at(z, False, True)

    def _sf(self, z: Tensor) -> Tensor:
        return self._tail_at(z, False, False)

    def _log_cdf(self, z: Tensor) -> Tensor:
        return self._tail_at(z, True, True)

    def _log_sf(self, z: Tensor) -> Tensor:
        return self._tail_at(z, True, False)

    def _quantile(self, u: Tensor, lower: bool) -> Tensor:
        noise = torch.special.ndtri(u.double())
        log = self.loc.double() + self.scale.double() * (noise if lower else -noise)
        return log.exp().to(result_dtype(self.loc, u))

    def icdf(self, value: Tensor) -> Tensor:
        return self._quantile(value, True)

    def isf(self, value: Tensor) -> Tensor:
        return self._quantile(value, False)

    @property
    def stddev(self) -> Tensor:
        """The standard deviation; no part of it leaves the format before it does itself."""
        square = self.scale.square()
        root = (0.5 * (self.loc + square)).exp()
        return root * (-torch.expm1(-square)).sqrt() * root

    @property
    def variance(self) -> Tensor:
        return self.stddev.square()

    @property
    def base_dist(self) -> Distribution:
        return dist.Normal(self.loc, self.scale, validate_args=False)

    @property
    def transforms(self) -> list[Transform]:
        return [ExpTransform()]


_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
