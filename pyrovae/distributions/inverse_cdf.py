r"""Inverse-cdf families: :math:`z = F^{-1}(u)`, most of them through their cumulative hazard.

One of the three forms of the reparameterization trick. Any u in (0, 1) will do, so the author of a
family gives :math:`F^{-1}` (`icdf`) and :math:`\log q` (`_log_prob`), and has a posterior.

Where no :math:`F^{-1}` is known, F itself will do: with `_cdf` instead of `icdf`, quantiles are
found by :mod:`~pyrovae.distributions.roots`, to the last float and with the derivatives of an
implicit function, :math:`dz/d\theta = -\partial_\theta F / q` (Figurnov, Mohamed and Mnih 2018,
arXiv 1805.08498).

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
a draw neither overflows nor underflows: `log_rsample` returns that.

The families are in :mod:`~pyrovae.distributions.lifetimes`,
:mod:`~pyrovae.distributions.kumaraswamy` and :mod:`~pyrovae.distributions.interval`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from pyrovae.distributions.base import EMPTY, Reparameterized, can_look
from pyrovae.distributions.fused import Fast, fused
from pyrovae.distributions.roots import implicit, quantile, quantile_at, safe_log
from pyrovae.distributions.stable import log1mexp

__all__ = ["Hazard", "InverseCDF", "exp_within", "within"]


class InverseCDF(Reparameterized):
    r"""Base of :math:`z = F^{-1}(u)`: authors write `_log_prob(z)`, and `icdf(u)` or `_cdf(z)`.

    Without `icdf`, quantiles are the roots of :math:`F(z) = u`. Any of `_cdf`, `_sf`, `_log_cdf`
    and `_log_sf` gives the others; but a tail that is one minus the other has lost its digits far
    out, where `_sf` or the logarithms keep them. They are asked only for values inside the
    support; outside of it, with validation off, the public methods return their limits.

    Draws are quantiles of random numbers, in either tail with the digits of that tail. Where a
    quicker sampler is known, `_sample(shape)` returns its draws, which need no gradient: they get
    that of the quantile.

    >>> from torch.distributions import constraints
    >>> class Power(InverseCDF):
    ...     arg_constraints = {"k": constraints.positive}
    ...     support = constraints.unit_interval
    ...     def __init__(self, k, *, validate_args=None):
    ...         super().__init__(k=k, validate_args=validate_args)
    ...     def _cdf(self, z):
    ...         return z**self.k
    ...     def _log_prob(self, z):
    ...         return self.k.log() + (self.k - 1) * z.log()
    >>> Power(2.0).icdf(torch.tensor(0.25))
    tensor(0.5000)
    """

    def icdf(self, value: Tensor) -> Tensor:
        """Return the z with P(Z <= z) = value; the ends of the support at 0 and 1."""
        return self._root(value, upper=False)

    def isf(self, value: Tensor) -> Tensor:
        """Return the z with P(Z > z) = value."""
        return self._root(value, upper=True)

    def _root(self, p: Tensor, upper: bool) -> Tensor:
        if not _known_tails(self):
            name = "isf" if upper else "icdf"
            raise NotImplementedError(f"{self._lacks(name)}; or define _cdf(z), to be inverted")
        p = torch.as_tensor(p, dtype=self._like().dtype, device=self._like().device)
        p = p.expand(torch.broadcast_shapes(p.shape, self.batch_shape))
        return quantile(_Tails(self), p, upper, *self._bracket(p, upper), can_look())

    def _bracket(self, p: Tensor, upper: bool) -> tuple[Tensor, Tensor]:
        """Return where the quantiles may lie: anywhere in the support, unless one knows better."""
        return self._ends(p)

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ends of the support, infinite or not, in the shape of `like`."""
        low = torch.as_tensor(getattr(self.support, "lower_bound", -math.inf))
        high = torch.as_tensor(getattr(self.support, "upper_bound", math.inf))
        return low.to(like).expand(like.shape), high.to(like).expand(like.shape)

    def _rsample(self, shape: Size) -> Tensor:
        if hasattr(self, "_sample"):
            with torch.no_grad():
                z = self._sample(shape)
            return implicit(_Tails(self), z)
        if type(self).icdf is not InverseCDF.icdf or not _known_tails(self):
            return self.icdf(self._uniform(shape))
        log_share = -math.log(2) - self._exponential(shape)  # of the tail, at most a half
        right = self._either_sign(torch.ones_like(log_share)) > 0
        ends = self._ends(log_share)
        return quantile_at(_Tails(self), log_share, right, *ends, can_look())

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
        return self._tail("cdf", value, 0.0, 1.0)

    def sf(self, value: Tensor) -> Tensor:
        return self._tail("sf", value, 1.0, 0.0)

    def log_cdf(self, value: Tensor) -> Tensor:
        return self._tail("log_cdf", value, -math.inf, 0.0)

    def log_sf(self, value: Tensor) -> Tensor:
        return self._tail("log_sf", value, 0.0, -math.inf)

    def _tail(self, name: str, value: Tensor, below: float, above: float) -> Tensor:
        if not _known_tails(self):
            raise NotImplementedError(self._lacks(f"_{name}"))
        hook = getattr(_Tails(self), name)
        if self._validate_args and can_look():
            self._validate_sample(value)
            return hook(value)
        support = self.support
        if support is constraints.real:
            return hook(value)
        inside = support.check(value)
        z = torch.where(inside, value, self._inner_point(support))
        low = getattr(support, "lower_bound", -math.inf)
        limit = torch.where(value <= low, below, above).to(z.dtype)
        return torch.where(inside, hook(z), torch.where(value.isnan(), math.nan, limit))


def _known_tails(d: InverseCDF) -> set[str]:
    return {name for name in ("_cdf", "_sf", "_log_cdf", "_log_sf") if hasattr(d, name)}


class _Tails:
    """All tails of a family from those that its author wrote, for values inside the support."""

    def __init__(self, d: InverseCDF) -> None:
        self.log_prob = d._log_prob
        self._of = {name: getattr(d, name) for name in _known_tails(d)}

    def cdf(self, z: Tensor) -> Tensor:
        return self._plain(z, "cdf", "sf")

    def sf(self, z: Tensor) -> Tensor:
        return self._plain(z, "sf", "cdf")

    def log_cdf(self, z: Tensor) -> Tensor:
        return self._log(z, "cdf", "sf")

    def log_sf(self, z: Tensor) -> Tensor:
        return self._log(z, "sf", "cdf")

    def _plain(self, z: Tensor, name: str, other: str) -> Tensor:
        of = self._of
        if f"_{name}" in of:
            return of[f"_{name}"](z)
        if f"_log_{name}" in of:
            return of[f"_log_{name}"](z).exp()
        if f"_{other}" in of:
            return 1 - of[f"_{other}"](z)
        return -torch.expm1(of[f"_log_{other}"](z))

    def _log(self, z: Tensor, name: str, other: str) -> Tensor:
        of = self._of
        if f"_log_{name}" in of:
            return of[f"_log_{name}"](z)
        if f"_{name}" in of:
            tail = of[f"_{name}"](z)
            if not {f"_{other}", f"_log_{other}"} & set(of):
                return safe_log(tail)
            high, rest = tail > 0.5, self._plain(z, other, name)
            near = torch.log1p(-torch.where(high, rest, 0.0))
            return torch.where(high, near, safe_log(tail))
        if f"_log_{other}" in of:
            rest = of[f"_log_{other}"](z)
            some = rest < 0
            return torch.where(some, log1mexp(torch.where(some, -rest, 1.0)), -math.inf)
        rest = of[f"_{other}"](z)
        some = rest < 1
        return torch.where(some, torch.log1p(-torch.where(some, rest, 0.5)), -math.inf)


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

    def _log_quantile(self, e: Tensor) -> Tensor:
        """Return the logarithm of the draw that e gives; overridden where the draw overflows."""
        return self._inverse_hazard(e).log()

    def log_rsample(self, sample_shape: Size | Sequence[int] = EMPTY) -> Tensor:
        """Draw log z, which neither overflows nor underflows."""
        return self._log_quantile(self._exponential(self._extended_shape(Size(sample_shape))))

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
