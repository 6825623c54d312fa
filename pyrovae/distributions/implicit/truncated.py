r"""A family cut to an interval: :math:`q(z) = q_0(z) / P_0(l < Z \le h)` on :math:`[l, h]`.

Nothing here is a difference of cdfs that have rounded. The mass between two points is taken on the
side where the tails are small, as a difference of logarithms,

.. math:: \log P_0 = \log S_0(l) + \log\!\left(1 - e^{-g}\right), \quad
    g = \log S_0(l) - \log S_0(h), \qquad\text{or likewise with } F_0,

and where the two ends are so close that g cancels, it is the integral of the density. A draw
solves :math:`S_0(z) = (1 - u)\,S_0(l) + u\,S_0(h)`, or the same for :math:`F_0`, a sum of positive
terms whose logarithm does not underflow: a Normal cut to [30, 31] or to [-40, -39] is drawn and
scored like any other. With that equation held, z moves with the parameters of :math:`q_0` and with
both ends (:mod:`pyrovae.distributions.roots`). All of it is computed in float64 and rounded once.

Moments and the entropy are integrals of the quantile function over u, by the double-exponential
rule of Takahasi and Mori (1974), doi 10.2977/prims/1195192451, for which no tail that has the
moment is too long.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from numbers import Number
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus

from pyrovae.distributions.base import Reparameterized, can_look
from pyrovae.distributions.implicit.parts import (
    Part,
    between,
    complement,
    demand_implicit,
    ends_of,
    lazily,
    middle,
)
from pyrovae.distributions.inverse_cdf import InverseCDF
from pyrovae.distributions.reshape import map_tensors
from pyrovae.distributions.roots import attach, inner_ends, solve
from pyrovae.distributions.special.quadrature import FINE, nodes
from pyrovae.distributions.stable import log1mexp

__all__ = ["Truncated"]

_END = constraints.dependent(is_discrete=False, event_dim=0)  # each end bounds the other


class Truncated(InverseCDF):
    r"""A univariate distribution cut to an interval, with gradients to its ends too.

    Args:
        base: :math:`q_0`, any univariate family of this package, a :class:`Mixture` included.
        low: lower end, a number or tensor; None or minus infinity does not cut.
        high: upper end, greater.

    Raises:
        ValueError: `low >= high`, an interval without mass, neither end given, or a base that is
            not reparameterizable, not univariate, or without a cdf.

    The mode is the base's, held inside the interval, as is right for one with a single mode.

    >>> from pyrovae.distributions import Normal
    >>> d = Truncated(Normal(0.0, 1.0), low=30.0, high=31.0)
    >>> d.mean, d.log_prob(torch.tensor(30.0))
    (tensor(30.0333), tensor(3.4023))
    """

    arg_constraints = {"low": _END, "high": _END}
    _names: tuple[str, ...] = ()
    low: Tensor | None
    high: Tensor | None

    def __init__(
        self,
        base: Any,
        low: Number | Tensor | None = None,
        high: Number | Tensor | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        demand_implicit("Truncated", base)
        ends = {k: v for k, v in (("low", low), ("high", high)) if not _nowhere(v)}
        if not ends:
            raise ValueError("Truncated: give low, high or both; without them use the base itself")
        like = _first_tensor(base)
        ends = {
            k: v if isinstance(v, Tensor) else torch.as_tensor(v, dtype=like.dtype).to(like.device)
            for k, v in ends.items()
        }
        try:
            batch = torch.broadcast_shapes(base.batch_shape, *(v.shape for v in ends.values()))
        except RuntimeError as error:
            raise ValueError(
                f"Truncated: ends of shapes {[tuple(v.shape) for v in ends.values()]} do not "
                f"broadcast with the base's batch shape {tuple(base.batch_shape)}"
            ) from error
        self._names = tuple(ends)
        self.low = self.high = None
        self.base = base.expand(batch)
        ends = {k: v.expand(batch) for k, v in ends.items()}
        super().__init__(validate_args=validate_args, **ends)

    def _check_parameters(self) -> None:
        for name in self._names:
            self._demand(name, ~getattr(self, name).isnan(), "be a number")
        if len(self._names) == 2:
            self._demand("low", self.low < self.high, "be less than 'high'")
        with torch.no_grad():
            mass = self._cut().log_mass
        self._demand(self._names[0], mass.isfinite(), "leave some of the base's mass inside")

    def expand(self, batch_shape: Size | Sequence[int], _instance: Any = None) -> Reparameterized:
        new = super().expand(batch_shape, copy.copy(self) if _instance is None else _instance)
        new.base = self.base.expand(Size(batch_shape))
        return new

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The interval, as far as the base's support goes."""
        return between(*_meet(self))

    def _inner_point(self, support: Any) -> Tensor | float:
        return middle(*_meet(self))

    def _cut(self) -> _Cut:
        return _Cut(self)

    # -- density and tails ------------------------------------------------------------------------

    def _log_prob(self, z: Tensor) -> Tensor:
        cut = self._cut()
        return (cut.part.log_prob(z.double()) - cut.log_mass).to(self._like().dtype)

    def _log_cdf(self, z: Tensor) -> Tensor:
        return self._cut().log_cdf(z.double()).to(self._like().dtype)

    def _log_sf(self, z: Tensor) -> Tensor:
        return self._cut().log_sf(z.double()).to(self._like().dtype)

    def _cdf(self, z: Tensor) -> Tensor:
        return self._cut().log_cdf(z.double()).exp().to(self._like().dtype)

    def _sf(self, z: Tensor) -> Tensor:
        return self._cut().log_sf(z.double()).exp().to(self._like().dtype)

    # -- draws ------------------------------------------------------------------------------------

    def _rsample(self, shape: Size) -> Tensor:
        e = self._exponential(shape).double()
        log_u, log_v = -e, log1mexp(e)
        flip = self._either_sign(torch.ones_like(e)) > 0  # both ends get the digits of their own
        log_u, log_v = torch.where(flip, log_v, log_u), torch.where(flip, log_u, log_v)
        with torch.no_grad():
            z = self._cut().point(log_u, log_v)
        if torch.is_grad_enabled():
            z = lazily(self, z, lambda d, steps: d._cut().moved(z, log_u, log_v, steps))
        return self._hold_inside(z.to(self._like().dtype))

    def _hold_inside(self, z: Tensor) -> Tensor:
        """Return draws strictly inside, the gradient as if nothing had been held."""
        low, high = (torch.as_tensor(end).to(z).detach().expand(z.shape) for end in _meet(self))
        least, most = torch.nextafter(low, high), torch.nextafter(high, low)
        held = torch.minimum(torch.maximum(z.detach(), least), torch.maximum(least, most))
        return z + (held - z).detach()

    # -- moments ----------------------------------------------------------------------------------

    @property
    def mean(self) -> Tensor:
        """The mean; infinite where a tail that was not cut off has none."""
        z, weights, heavy = self._quadrature(1.0)
        low, high = heavy
        mean = (weights * z).sum(0)
        mean = torch.where(high, math.inf, torch.where(low, -math.inf, mean))
        return torch.where(low & high, math.nan, mean).to(self._like().dtype)

    @property
    def variance(self) -> Tensor:
        """The variance; infinite where a tail that was not cut off has none."""
        z, weights, heavy = self._quadrature(2.0)
        away = z - (weights * z).sum(0)
        variance = (weights * away.square()).sum(0)
        return torch.where(heavy[0] | heavy[1], math.inf, variance).to(self._like().dtype)

    @property
    def mode(self) -> Tensor:
        mode = self.base.mode
        low, high = (torch.as_tensor(end).to(mode) for end in _meet(self))
        return torch.minimum(torch.maximum(mode, low), high)

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, `[*batch]`."""
        cut = self._cut()
        log_u, log_v, weights = _double_exponential(cut.low)
        score = cut.part.log_prob(cut.point(log_u, log_v)) - cut.log_mass
        return -(weights * score).sum(0).to(self._like().dtype)

    def _quadrature(self, order: float) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Return quantiles, their weights, and which of the two tails has no such moment."""
        cut = self._cut()
        log_u, log_v, weights = _double_exponential(cut.low)
        z = cut.point(log_u, log_v)
        return z, weights, (cut.heavy(order, upper=False), cut.heavy(order, upper=True))

    def __repr__(self) -> str:
        ends = ", ".join(f"{name}: {tuple(getattr(self, name).shape)}" for name in self._names)
        return f"Truncated({self.base!r}, {ends})"


class _Cut:
    """The base, its ends and the mass between them, in float64."""

    def __init__(self, d: Truncated) -> None:
        self.part = Part(map_tensors(d.base, _double))
        low, high = _meet(d)
        like = d._like().double()
        self.low = torch.as_tensor(low).to(like).expand(d.batch_shape)
        self.high = torch.as_tensor(high).to(like).expand(d.batch_shape)
        self.at_low, self.at_high = self._tails(self.low), self._tails(self.high)
        self.log_mass = self._mass(self.low, self.at_low, self.high, self.at_high)

    def _tails(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return log F and log S of the base, constants at the ends of its support."""
        below, above = x <= self.part.low, x >= self.part.high
        out = below | above
        safe = torch.where(out, middle(self.part.low, self.part.high), x)
        log_cdf, log_sf = self.part.log_cdf(safe), self.part.log_sf(safe)
        zero, nothing = torch.zeros_like(log_cdf), torch.full_like(log_cdf, -math.inf)
        return (
            torch.where(below, nothing, torch.where(above, zero, log_cdf)),
            torch.where(below, zero, torch.where(above, nothing, log_sf)),
        )

    def _mass(
        self, low: Tensor, at_low: tuple[Tensor, Tensor], high: Tensor, at_high: tuple
    ) -> Tensor:
        """Return log P(low < Z <= high) under the base."""
        left = at_high[0] < at_low[1]
        outer = torch.where(left, at_high[0], at_low[1])
        inner = torch.where(left, at_low[0], at_high[1])
        gap = outer - torch.where(inner.isfinite(), inner, outer - 1e4)
        some = outer.isfinite() & (gap > 0)
        wide = outer + log1mexp(torch.where(some, gap, 1.0))
        wide = torch.where(some, wide, -math.inf)
        narrow = some & (gap < 1 / 16) & self._smooth(low, high)
        if can_look() and not bool(narrow.any()):
            return wide
        return torch.where(narrow, self._integral(low, high, narrow), wide)

    def _smooth(self, low: Tensor, high: Tensor) -> Tensor:
        """Whether the interval is no wider than twice its distance to an end of the support."""
        width = high - low
        return (
            width.isfinite()
            & (width <= 2 * (low - self.part.low))
            & (width <= 2 * (self.part.high - high))
        )

    def _integral(self, low: Tensor, high: Tensor, where: Tensor) -> Tensor:
        """Return the logarithm of the integral of the density, in two pieces about the median."""
        centre = middle(self.part.low, self.part.high)
        low, high = (torch.where(where, end, centre) for end in (low, high))
        with torch.no_grad():
            half = self.part.icdf(torch.full_like(low, 0.5))
        cut = torch.minimum(torch.maximum(half.to(low), low), high)
        t, w = nodes(FINE, low)
        w = w[0].reshape(t.shape)
        top = self.part.log_prob(cut).detach()
        total = sum(
            (w * torch.exp(self.part.log_prob(a + t * (b - a)) - top)).sum(0) * (b - a)
            for a, b in ((low, cut), (cut, high))
        )
        return top + torch.where(total > 0, total, 1.0).log()

    def log_cdf(self, z: Tensor) -> Tensor:
        return self._either(z)[0]

    def log_sf(self, z: Tensor) -> Tensor:
        return self._either(z)[1]

    def _either(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return both tails: the smaller by its mass, the other as one minus it."""
        at, low, high = self._tails(z), self.low.expand(z.shape), self.high.expand(z.shape)
        below = self._mass(low, self.at_low, z, at) - self.log_mass
        above = self._mass(z, at, high, self.at_high) - self.log_mass
        first = below < above
        small = torch.where(first, below, above)
        rest = complement(small.clamp_max(0.0))
        return torch.where(first, below, rest), torch.where(first, rest, above)

    def point(self, log_u: Tensor, log_v: Tensor) -> Tensor:
        """Return the quantile of u, with v = 1 - u, and its derivatives in all it depends on."""
        with torch.no_grad():
            z = self._find(*self._share(log_u, log_v), log_u, log_v)
        return self.moved(z, log_u, log_v, 2) if torch.is_grad_enabled() else z

    def _share(self, log_u: Tensor, log_v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithm of v F(low) + u F(high) or the same of S, and whether it is S."""
        below = torch.logaddexp(log_v + self.at_low[0], log_u + self.at_high[0])
        above = torch.logaddexp(log_v + self.at_low[1], log_u + self.at_high[1])
        right = above.detach() < below.detach()
        return torch.where(right, above, below), right

    def moved(self, z: Tensor, log_u: Tensor, log_v: Tensor, steps: int) -> Tensor:
        log_share, right = self._share(log_u, log_v)
        return attach(self.part, z, right, log_share, steps)

    def _find(self, log_share: Tensor, right: Tensor, log_u: Tensor, log_v: Tensor) -> Tensor:
        """Ask the base for the quantile where the share is a float, else solve for it."""
        low, high = self.low.expand(log_share.shape), self.high.expand(log_share.shape)
        direct = self._direct(log_share, right)
        left = self.at_high[0] < self.at_low[1]
        below, above = self.at_high[0] - self.at_low[0], self.at_low[1] - self.at_high[1]
        narrow = torch.where(left, below, above) < 1e-5
        far = (log_share < -600) | ~direct.isfinite()
        z = torch.where(narrow, self._between(log_u.exp()), direct)
        z = torch.minimum(torch.maximum(z, low), high)
        if not can_look():
            return torch.where(far & ~narrow, self._newton(log_share, right), z)
        if not bool((far & ~narrow).any()):
            return z

        def g(z: Tensor) -> Tensor:
            log_tail = torch.where(right, -self.part.log_sf(z), self.part.log_cdf(z))
            return log_tail + torch.where(right, log_share, -log_share)

        small = 4 * torch.finfo(low.dtype).eps * log_share.abs()
        return torch.where(far & ~narrow, solve(g, *inner_ends(low, high), True, small), z)

    def _direct(self, log_share: Tensor, right: Tensor) -> Tensor:
        share = log_share.exp()
        try:
            return torch.where(right, self.part.isf(share), self.part.icdf(share))
        except NotImplementedError:
            return torch.full_like(log_share, math.nan)

    def _between(self, u: Tensor) -> Tensor:
        """Return the quantile of a density with a linear logarithm, as it is between near ends."""
        known = self.low.isfinite() & self.high.isfinite()
        low, high = torch.where(known, self.low, 0.0), torch.where(known, self.high, 1.0)
        rise = self.part.log_prob(high) - self.part.log_prob(low)
        rise = torch.where(rise.isfinite() & (rise.abs() > 1e-12), rise, 1e-12)
        return low + (high - low) * (torch.log1p(u * torch.expm1(rise)) / rise)

    def _newton(self, log_share: Tensor, right: Tensor) -> Tensor:
        """Solve log tail(z) = log_share where no loop can stop: from the end that has more mass.

        For a log-concave density the tail is too, and the steps converge from one side.
        """
        low, high = self.low.expand(right.shape), self.high.expand(right.shape)
        z = torch.where(right, low, high)
        z = torch.where(z.isfinite(), z, middle(self.low, self.high))
        for _ in range(12):
            log_tail = torch.where(right, self.part.log_sf(z), self.part.log_cdf(z))
            step = (log_tail - log_share) * torch.exp(log_tail - self.part.log_prob(z))
            step = torch.where(right, step, -step).nan_to_num(0.0, 0.0, 0.0)
            z = torch.minimum(torch.maximum(z + step, low), high)
        return z

    def heavy(self, order: float, upper: bool) -> Tensor:
        """Whether a tail that was not cut off falls as slowly as z^-order."""
        end = self.high if upper else self.low
        if can_look() and bool(end.isfinite().all()):
            return torch.zeros_like(end, dtype=torch.bool)
        far, near = torch.full_like(end, -220.0), torch.full_like(end, -200.0)
        right = torch.full_like(end, upper, dtype=torch.bool)
        with torch.no_grad():
            points = [self._direct(p, right).abs().log() for p in (near, far)]
        index = 20 / (points[1] - points[0]).abs()
        return end.isinf() & (index <= order * (1 + 1e-6))


_STEP, _LAST = 1 / 16, 5.9  # u down to 1e-225


def _double_exponential(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log u, log(1 - u) and the weights of a rule on (0, 1), `[n, 1, ...]` each."""
    n = int(_LAST / _STEP)
    t = torch.arange(-n, n + 1, dtype=like.dtype, device=like.device) * _STEP
    x = math.pi * t.sinh()
    log_u, log_v = -softplus(-x), -softplus(x)
    weights = _STEP * math.pi * t.cosh() * (log_u + log_v).exp()
    shape = (-1,) + (1,) * like.dim()
    return log_u.reshape(shape), log_v.reshape(shape), weights.reshape(shape)


def _double(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() else t


def _nowhere(end: Any) -> bool:
    """Whether an end does not cut: None, or an infinite number."""
    return end is None or (isinstance(end, Number) and math.isinf(end))


def _meet(d: Truncated) -> tuple[Any, Any]:
    """Return the ends of the interval and the base's support together."""
    first, last = ends_of(d.base.support)
    return (
        _both(first, d.low, torch.maximum, -math.inf),
        _both(last, d.high, torch.minimum, math.inf),
    )


def _both(a: Any, b: Any, inner: Callable, nowhere: float) -> Any:
    if b is None:
        return a
    if not isinstance(a, Tensor) and a == nowhere:
        return b
    return inner(torch.as_tensor(a).to(b), b)


def _first_tensor(base: Any) -> Tensor:
    """Return some floating-point tensor of a distribution: its dtype and device are taken."""
    found: list[Tensor] = []

    def look(t: Tensor) -> Tensor:
        if t.is_floating_point():
            found.append(t)
        return t

    map_tensors(base, look)
    return found[0] if found else torch.zeros(())
