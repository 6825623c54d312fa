r"""Families on an interval [low, high] of their own: Uniform, Reciprocal, Triangular.

All three are inverse-cdf families, :math:`z = F^{-1}(u)`, whose support moves with the parameters.
It is closed: a draw that rounds onto an end has a finite log-density (torch's Uniform returns
minus infinity there, and float32 draws of `Uniform(1, 1 + 1e-6)` reach the end 6 % of the time).

Tails are measured from their own end, :math:`z - \mathrm{low}` or :math:`\mathrm{high} - z`, which
are exact differences near it.
"""

from __future__ import annotations

import math
from numbers import Number

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints

from pyrovae.distributions.inverse_cdf import InverseCDF, within
from pyrovae.distributions.stable import exponential_mean, log_sinhc

__all__ = ["Reciprocal", "Triangular", "Uniform"]

_END = constraints.dependent(is_discrete=False, event_dim=0)  # each end bounds the other


class _Interval(InverseCDF):
    """What the three share: `low < high`, the support, and draws that stay inside."""

    low: Tensor
    high: Tensor

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.interval(self.low, self.high)

    def _check_parameters(self) -> None:
        if self._in_order():
            return
        super()._check_parameters()
        for name in self._names:
            self._demand(name, getattr(self, name).isfinite(), "be finite")
        for lower, upper, good in self._order():
            self._demand(lower, good, f"be less than {upper!r}")

    def _in_order(self) -> bool:
        """Whether all is surely well, in a few passes; an end that is not finite is not."""
        return within(self.high - self.low, 0.0, math.inf)

    def _order(self) -> list[tuple[str, str, Tensor]]:
        return [("low", "high", self.low < self.high)]

    def _rsample(self, shape: Size) -> Tensor:
        return self._plain_draw(self._uniform(shape))

    def _plain_draw(self, u: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(self.icdf(u), self.low), self.high)


class Uniform(_Interval, dist.Uniform):
    r"""Uniform on [low, high]: :math:`z = \mathrm{low} + (\mathrm{high} - \mathrm{low})\,u`.

    .. math:: \log q(z) = -\log(\mathrm{high} - \mathrm{low}), \qquad
        \mathrm{Var}[z] = (\mathrm{high} - \mathrm{low})^2 / 12.

    The mode is NaN: no point is higher than another.

    Args:
        low: lower end.
        high: upper end, greater.

    >>> Uniform(0.0, 4.0).log_prob(torch.tensor(4.0)).exp()
    tensor(0.2500)
    """

    arg_constraints = {"low": _END, "high": _END}

    def __init__(
        self, low: Number | Tensor, high: Number | Tensor, *, validate_args: bool | None = None
    ) -> None:
        super().__init__(low=low, high=high, validate_args=validate_args)

    def _width(self) -> Tensor:
        return self.high - self.low

    def _rsample(self, shape: Size) -> Tensor:
        return self.icdf(self._uniform(shape))  # lerp rounds inside of its ends

    def icdf(self, value: Tensor) -> Tensor:
        return torch.lerp(*torch.broadcast_tensors(self.low, self.high, value))

    def isf(self, value: Tensor) -> Tensor:
        return torch.lerp(*torch.broadcast_tensors(self.high, self.low, value))

    def _log_prob(self, z: Tensor) -> Tensor:
        return (-self._width().log()).expand(torch.broadcast_shapes(z.shape, self.batch_shape))

    def _cdf(self, z: Tensor) -> Tensor:
        return (z - self.low) / self._width()

    def _sf(self, z: Tensor) -> Tensor:
        return (self.high - z) / self._width()

    def _log_cdf(self, z: Tensor) -> Tensor:
        return _log_share(z - self.low, self.high - z, self._width())

    def _log_sf(self, z: Tensor) -> Tensor:
        return _log_share(self.high - z, z - self.low, self._width())

    @property
    def mean(self) -> Tensor:
        return self.low + 0.5 * self._width()

    @property
    def mode(self) -> Tensor:
        return torch.full_like(self.low, math.nan)

    @property
    def variance(self) -> Tensor:
        return self._width().square() / 12

    @property
    def stddev(self) -> Tensor:
        return self._width() / math.sqrt(12)

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, `[*batch]`."""
        return self._width().log()

    def _mean_log(self) -> Tensor:
        low, high = self.low.clamp_min(0), self.high
        weighted = torch.xlogy(low, high / low.clamp_min(torch.finfo(low.dtype).tiny))
        return high.log() - 1 + weighted / (high - low)


def _log_share(part: Tensor, rest: Tensor, whole: Tensor) -> Tensor:
    """Return log(part / whole) where part + rest = whole, from the smaller of the two."""
    most = part > rest
    small = torch.where(most, whole, part) / whole
    missing = torch.where(most, rest, 0.0) / whole
    return torch.where(most, torch.log1p(-missing), small.log())


class Reciprocal(_Interval):
    r"""Reciprocal, or log-uniform: :math:`\log z` is uniform, :math:`z = \mathrm{low}\,e^{L u}`.

    .. math:: L = \log\frac{\mathrm{high}}{\mathrm{low}}, \qquad \log q(z) = -\log z - \log L,
        \qquad E[z] = \frac{\mathrm{high} - \mathrm{low}}{L}, \qquad
        H[z] = \tfrac12\log(\mathrm{low}\,\mathrm{high}) + \log L.

    Source: Hamming (1970), On the distribution of numbers.

    Args:
        low: lower end, positive, the mode.
        high: upper end, greater.

    >>> Reciprocal(1.0, 100.0).mean
    tensor(21.4976)
    """

    arg_constraints = {"low": _END, "high": _END}

    def __init__(
        self, low: Number | Tensor, high: Number | Tensor, *, validate_args: bool | None = None
    ) -> None:
        super().__init__(low=low, high=high, validate_args=validate_args)

    def _in_order(self) -> bool:
        return super()._in_order() and within(self.low, 0.0, math.inf)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if not self._in_order():
            self._demand("low", self.low > 0, "be positive")

    def _length(self) -> Tensor:
        return _log_of_ratio(self.high, self.low)

    def icdf(self, value: Tensor) -> Tensor:
        return self.low * torch.exp(self._length() * value)

    def isf(self, value: Tensor) -> Tensor:
        return self.high * torch.exp(-self._length() * value)

    def _rsample(self, shape: Size) -> Tensor:
        return self._fused("_plain_draw", self.fast_draw, self._uniform(shape))

    def _log_prob(self, z: Tensor) -> Tensor:
        return self._fused("_plain_log_prob", self.fast_log_prob, z)

    def _plain_log_prob(self, z: Tensor) -> Tensor:
        return -torch.log(z * self._length())

    @staticmethod
    def fast_draw(needed: tuple[bool, ...], u: Tensor, low: Tensor, high: Tensor) -> tuple:
        length = (high - low).div_(low).log1p_()
        z = length.mul_(u).exp_().mul_(low)
        z = torch.minimum(torch.maximum(z, low), high)
        return z, None, (1 - u).mul_(z).div_(low), (u * z).div_(high)

    @staticmethod
    def fast_log_prob(needed: tuple[bool, ...], z: Tensor, low: Tensor, high: Tensor) -> tuple:
        length = (high - low).div_(low).log1p_()
        value = (z * length).log_().neg_()
        return value, (1 / z).neg_(), 1 / (length * low), (-1 / length).div_(high)

    def _cdf(self, z: Tensor) -> Tensor:
        return _log_of_ratio(z, self.low) / self._length()

    def _sf(self, z: Tensor) -> Tensor:
        return _log_of_ratio(self.high, z) / self._length()

    def _log_cdf(self, z: Tensor) -> Tensor:
        parts = _log_of_ratio(z, self.low), _log_of_ratio(self.high, z)
        return _log_share(*parts, self._length())

    def _log_sf(self, z: Tensor) -> Tensor:
        parts = _log_of_ratio(self.high, z), _log_of_ratio(z, self.low)
        return _log_share(*parts, self._length())

    @property
    def mean(self) -> Tensor:
        return (self.high - self.low) / self._length()

    @property
    def mode(self) -> Tensor:
        return self.low

    @property
    def variance(self) -> Tensor:
        # with x = L/2, mean = g sinh(x)/x, E[z^2] = g^2 sinh(x) cosh(x)/x, g^2 = low high
        x = 0.5 * self._length()
        sinhc = torch.exp(log_sinhc(x))
        small = x < 1
        near, far = torch.where(small, x, 0.0), torch.where(small, 1.0, x)
        n2 = near.square()
        series = torch.zeros_like(n2)
        for k in range(10, 0, -1):
            series = (series + 2 * k / math.factorial(2 * k + 1)) * n2
        gap = torch.where(small, series, far.cosh() - far.sinh() / far)
        return self.low * self.high * sinhc * gap

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, `[*batch]`."""
        return self._mean_log() + self._length().log()

    def _mean_log(self) -> Tensor:
        return 0.5 * (self.low.log() + self.high.log())


def _log_of_ratio(a: Tensor, b: Tensor) -> Tensor:
    """Return log(a / b) for a >= b > 0, from the difference unless the ratio is large."""
    near = a < 1e4 * b
    close = torch.log1p(torch.where(near, a - b, 0.0) / b)
    return torch.where(near, close, a.log() - b.log())


class Triangular(_Interval):
    r"""Triangular on [low, high], highest at `peak`.

    With :math:`w = \mathrm{high} - \mathrm{low}`, :math:`l = \mathrm{peak} - \mathrm{low}` and
    :math:`r = \mathrm{high} - \mathrm{peak}`,

    .. math:: F(z) = \frac{(z - \mathrm{low})^2}{w\,l} \;(z \le \mathrm{peak}), \qquad
        1 - F(z) = \frac{(\mathrm{high} - z)^2}{w\,r} \;(z \ge \mathrm{peak}), \qquad
        \mathrm{Var}[z] = (l^2 + l r + r^2) / 18.

    Source: Kotz and van Dorp (2004), Beyond Beta.

    Args:
        low: lower end.
        peak: the mode, within [low, high].
        high: upper end, greater than low.

    >>> Triangular(0.0, 1.0, 4.0).sf(torch.tensor(2.0))
    tensor(0.3333)
    """

    arg_constraints = {"low": _END, "high": _END, "peak": _END}

    def __init__(
        self,
        low: Number | Tensor,
        peak: Number | Tensor,
        high: Number | Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(low=low, high=high, peak=peak, validate_args=validate_args)

    def _order(self) -> list[tuple[str, str, Tensor]]:
        inside = (self.low <= self.peak) & (self.peak <= self.high)
        self._demand("peak", inside, "lie within ['low', 'high']")
        return super()._order()

    def _sides(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.peak - self.low, self.high - self.peak, self.high - self.low

    def _in_order(self) -> bool:
        return (
            super()._in_order()
            and (self.peak - self.low).amin().item() >= 0
            and (self.high - self.peak).amin().item() >= 0
        )

    def _rsample(self, shape: Size) -> Tensor:
        return self._fused("_plain_draw", self.fast_draw, self._uniform(shape))

    def _plain_draw(self, u: Tensor) -> Tensor:
        z = super()._plain_draw(u)
        # an end has density 0 unless the peak is there: the next number inside has not
        low, high = self.low.detach(), self.high.detach()
        least = torch.where(self.peak > low, torch.nextafter(low, high), low)
        most = torch.where(self.peak < high, torch.nextafter(high, low), high)
        return torch.minimum(torch.maximum(z, least), most)

    def icdf(self, value: Tensor) -> Tensor:
        return self._quantile(value, 1 - value)

    def isf(self, value: Tensor) -> Tensor:
        return self._quantile(1 - value, value)

    def _quantile(self, u: Tensor, q: Tensor) -> Tensor:
        left, right, width = self._sides()
        rising = u * width <= left
        side, other = torch.where(rising, left, right), torch.where(rising, right, left)
        mass, end = torch.where(rising, u, q), torch.where(rising, self.low, self.high)
        rest = torch.where(rising, q, u) * width - other
        # the share of this side's mass between value and peak; from the peak where it is close,
        # unless the other side's mass would drown it
        safe = torch.where(side > 0, side, 1.0)
        share = torch.where(side > 0, rest / safe, 0.0).clamp(0, 1)
        near = (share < 0.5) & (other <= end.abs())
        inner = torch.where(near, share, 0.0)
        step = side * inner / (1 + torch.sqrt(1 - inner))  # side (1 - sqrt(1 - share))
        reach = side * _root(torch.where(near, 1.0, mass * (width / safe)))
        return torch.where(
            near,
            torch.where(rising, self.peak - step, self.peak + step),
            torch.where(rising, self.low + reach, self.high - reach),
        )

    @staticmethod
    def fast_draw(
        needed: tuple[bool, ...], u: Tensor, low: Tensor, high: Tensor, peak: Tensor
    ) -> tuple | None:
        left, width = peak - low, high - low
        rising = (u * width <= left).to(u.dtype)  # lerp with 0 or 1 is a fast `where`
        side, mass = torch.lerp(high - peak, left, rising), torch.lerp(1 - u, u, rising)
        reach = mass.mul_(width).mul_(side).sqrt_()  # from the end of its side
        z = torch.lerp(high - reach, low + reach, rising)
        if not ((z - low).amin().item() > 0 and (high - z).amin().item() > 0):
            return None
        per_peak, other = reach.mul_(0.5) / side, reach / width
        own = (1 - other).sub_(per_peak)
        per_low, per_high = torch.lerp(other, own, rising), torch.lerp(own, other, rising)
        return z, None, per_low, per_high, per_peak

    @staticmethod
    def fast_log_prob(
        needed: tuple[bool, ...], z: Tensor, low: Tensor, high: Tensor, peak: Tensor
    ) -> tuple | None:
        rising, width = (z < peak).to(z.dtype), high - low
        reach = torch.lerp(high - z, z - low, rising)
        side = torch.lerp(high - peak, peak - low, rising)
        if not (reach.amin().item() > 0 and side.amin().item() > 0):
            return None
        value = (reach / side).mul_(2).div_(width).log_()
        sign = rising.mul(2).sub_(1)
        per_z, per_side, per_width = sign / reach, sign / side, 1 / width
        own = per_side - per_z  # an end moves the density of its own side, and the width
        per_low = torch.addcmul(per_width, own, rising)
        per_high = own.sub_(per_low)
        return value, per_z, per_low, per_high, per_side.neg_()

    def _log_prob(self, z: Tensor) -> Tensor:
        return self._fused("_plain_log_prob", self.fast_log_prob, z)

    def _plain_log_prob(self, z: Tensor) -> Tensor:
        left, right, width = self._sides()
        rising, up, down = self._split(z)
        height = torch.where(rising, up / left.clamp_min(_TINY), down / right.clamp_min(_TINY))
        flat = torch.where(rising, left, right) == 0  # the peak is this end
        height = torch.where(flat, 1.0, height)
        outside = (z < self.low) | (z > self.high)
        return torch.where(outside, -math.inf, torch.log(2 * height) - width.log())

    def _split(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which side z is on, and its distance from that side's end; 1 where on the other."""
        rising = (z < self.peak) | (self.peak >= self.high)
        return (
            rising,
            torch.where(rising, z - self.low, 1.0),
            torch.where(rising, 1.0, self.high - z),
        )

    def _shares(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which side z is on, the mass between it and that side's end, and the rest of it."""
        left, right, width = self._sides()
        rising, up, down = self._split(z)
        side, other = torch.where(rising, left, right), torch.where(rising, right, left)
        reach = torch.where(rising, up, down)
        side = torch.where(side > 0, side, 1.0)
        tail = (reach / width) * (reach / side)
        rest = (other + (z - self.peak).abs() * ((reach + side) / side)) / width
        over = (rest - 1).clamp_min(0).detach()  # by a rounding
        return rising, tail, rest - over

    def _cdf(self, z: Tensor) -> Tensor:
        rising, tail, rest = self._shares(z)
        return torch.where(rising, tail, rest)

    def _sf(self, z: Tensor) -> Tensor:
        rising, tail, rest = self._shares(z)
        return torch.where(rising, rest, tail)

    def _log_cdf(self, z: Tensor) -> Tensor:
        return self._log_of(z, cdf=True)

    def _log_sf(self, z: Tensor) -> Tensor:
        return self._log_of(z, cdf=False)

    def _log_of(self, z: Tensor, cdf: bool) -> Tensor:
        rising, tail, rest = self._shares(z)
        wanted = torch.where(rising == cdf, tail, rest)
        other = torch.where(rising == cdf, rest, tail)
        upper = wanted > 0.5
        small, missing = torch.where(upper, 0.5, wanted), torch.where(upper, other, 0.0)
        return torch.where(upper, torch.log1p(-missing), small.log())

    @property
    def mean(self) -> Tensor:
        left, right, _ = self._sides()
        return self.peak + (right - left) / 3

    @property
    def mode(self) -> Tensor:
        return self.peak

    @property
    def variance(self) -> Tensor:
        left, right, _ = self._sides()
        return (left.square() + left * right + right.square()) / 18

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, `[*batch]`."""
        return 0.5 + torch.log(0.5 * (self.high - self.low))

    def _mean_log(self) -> Tensor:
        left, right, width = self._sides()
        low = torch.where(left > 0, self.low, 1.0)  # no mass there: log 0 is not asked for
        up = exponential_mean(lambda t: torch.log(low + left * torch.exp(-t / 2)), width)
        down = exponential_mean(
            lambda t: torch.log(self.peak - right * torch.expm1(-t / 2)), width
        )
        return (left * up + right * down) / width


_TINY = 1e-38


def _root(x: Tensor) -> Tensor:
    """Return the square root, with slope 0 instead of infinity at 0."""
    zero = x <= 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x).sqrt())
