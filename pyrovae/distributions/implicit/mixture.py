r"""Mixtures that can be reparameterized: :math:`q(z) = \sum_m w_m\, q_m(z)`.

Which component a draw comes from is a discrete choice, through which no gradient goes. But the
mixture has a cdf, :math:`F = \sum_m w_m F_m`, and a draw at a fixed value of the cdf moves with
*all* parameters, the weights too (Figurnov, Mohamed and Mnih 2018, arXiv 1805.08498):

.. math::

    \frac{\partial z}{\partial \theta_m} = -\frac{w_m\,\partial_{\theta_m} F_m(z)}{q(z)}, \qquad
    \frac{\partial z}{\partial \eta_m} = -\frac{w_m\,(F_m(z) - F(z))}{q(z)}, \quad
    w = \mathrm{softmax}(\eta).

Taken literally this fails in float32: at z = 9.5 all cdfs of a mixture of standard Normals have
rounded to 1 and the weights get no gradient. Here F and S = 1 - F are sums of the components' own
tails, mixed as logarithms; the smaller one of the two is differentiated, and the quotient by q is
a difference of logarithms.

For vectors, the coordinates are moved one after the other, each at a fixed value of its
conditional cdf given those before it: see :mod:`pyrovae.distributions.implicit.vectors`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from numbers import Number
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from pyrovae.distributions.base import Reparameterized
from pyrovae.distributions.implicit.parts import Part, between, demand_implicit, ends_of, lazily
from pyrovae.distributions.implicit.vectors import (
    Conditionals,
    conditionals_of,
    demand_conditionals,
    log_sum_exp,
    move,
)
from pyrovae.distributions.inverse_cdf import InverseCDF
from pyrovae.distributions.roots import implicit

__all__ = ["Mixture"]


class Mixture(InverseCDF):
    r"""Mixture of any reparameterizable components, with gradients to weights and components.

    Univariate mixtures have both tails, their logarithms and quantiles; vectors have draws,
    density, mean and variance. The mode is NaN (there may be several), the entropy has no closed
    form. A gradient is NaN where a component's own slope, about :math:`(z - \mu)^2 / \sigma^3` of
    a Normal, leaves the format at a draw of another: in float32 scales of 1e-6 and 1e6 do
    together, 1e-15 and 1e15 do not.

    Args:
        logits: :math:`\eta`, `[..., M]`; the weights are their softmax.
        components: one distribution whose last batch dimension is M, or a list of M distributions
            with equal event shapes, of different families if need be. Univariate, or vectors with
            independent coordinates (`to_event`), or Gaussian (`MultivariateNormal`, `Elliptical`
            with a Gaussian radial law and `scale_tril` or `scale_diag`).

    Raises:
        ValueError: a component that is not reparameterizable or has no cdf, shapes that do not
            fit, logits that are not finite.

    Source: Figurnov, Mohamed and Mnih (2018), Implicit Reparameterization Gradients,
    arXiv 1805.08498.

    >>> from pyrovae.distributions import Normal
    >>> d = Mixture(torch.tensor([0.0, 0.0]), Normal(torch.tensor([-1.0, 1.0]), 0.5))
    >>> d.mean, d.variance
    (tensor(0.), tensor(1.2500))
    """

    arg_constraints = {"logits": constraints.real_vector}

    def __init__(
        self,
        logits: Number | Tensor,
        components: Any,
        *,
        validate_args: bool | None = None,
    ) -> None:
        together = isinstance(components, Distribution)
        parts = [components] if together else list(components)
        _demand_same(parts, together)
        count = parts[0].batch_shape[-1] if together else len(parts)
        logits = torch.as_tensor(logits)
        if logits.dim() < 1 or logits.shape[-1] != count:
            raise ValueError(
                f"Mixture: logits of shape {tuple(logits.shape)} do not fit {count} components; "
                f"their last dimension must be {count}"
            )
        shapes = [p.batch_shape[:-1] if together else p.batch_shape for p in parts]
        try:
            batch = torch.broadcast_shapes(logits.shape[:-1], *shapes)
        except RuntimeError as error:
            raise ValueError(
                f"Mixture: batch shapes do not broadcast: logits {tuple(logits.shape)} without "
                f"the last dimension, components {[tuple(s) for s in shapes]}"
            ) from error
        self._together = together
        self.components = _expanded(components if together else parts, batch, count)
        super().__init__(logits=logits.expand(*batch, count), validate_args=validate_args)

    def _event_shape(self) -> Size:
        return self._list[0].event_shape

    @property
    def _list(self) -> list[Any]:
        return [self.components] if self._together else list(self.components)

    def expand(self, batch_shape: Size | Sequence[int], _instance: Any = None) -> Reparameterized:
        new = super().expand(batch_shape, copy.copy(self) if _instance is None else _instance)
        new._together = self._together
        new.components = _expanded(self.components, Size(batch_shape), self.logits.shape[-1])
        return new

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """The least interval that holds the supports of all components."""
        event = len(self.event_shape)
        found = [d.support for d in self._list]
        hull = _hull(found, -1 - event if self._together else None)
        return constraints.independent(hull, event) if event else hull

    @property
    def log_weights(self) -> Tensor:
        """The logarithms of the weights, `[..., M]`."""
        return self.logits.log_softmax(-1)

    # -- over the components ----------------------------------------------------------------------

    def _over(self, f: Callable[[Any, Tensor], Tensor], z: Tensor) -> Tensor:
        """Ask all components for f at z: `[..., M]`."""
        if self._together:
            return f(self.components, z.unsqueeze(-1 - len(self.event_shape)))
        return torch.stack([f(d, z) for d in self.components], -1)

    def _mix(self, name: str, z: Tensor) -> Tensor:
        self._demand_univariate(name)
        return (self.log_weights.exp() * self._over(_asks(name), z)).sum(-1)

    def _mix_logs(self, name: str, z: Tensor) -> Tensor:
        self._demand_univariate(name)
        return log_sum_exp(self.log_weights + self._over(_asks(name), z))

    def _demand_univariate(self, name: str) -> None:
        if self.event_shape:
            raise NotImplementedError(
                f"Mixture: {name} is defined for univariate components, these have event shape "
                f"{tuple(self.event_shape)}"
            )

    def _log_prob(self, z: Tensor) -> Tensor:
        if not self.event_shape:
            return self._mix_logs("log_prob", z)
        scores = self._conditionals().log_prob(z.flatten(-len(self.event_shape))).sum(-1)
        return log_sum_exp(self.log_weights + scores)

    def _cdf(self, z: Tensor) -> Tensor:
        return self._mix("cdf", z)

    def _sf(self, z: Tensor) -> Tensor:
        return self._mix("sf", z)

    def _log_cdf(self, z: Tensor) -> Tensor:
        return _near_one(self._mix_logs("log_cdf", z), self._mix("sf", z))

    def _log_sf(self, z: Tensor) -> Tensor:
        return _near_one(self._mix_logs("log_sf", z), self._mix("cdf", z))

    def _root(self, p: Tensor, upper: bool) -> Tensor:
        self._demand_univariate("isf" if upper else "icdf")
        return super()._root(p, upper)

    def _bracket(self, p: Tensor, upper: bool) -> tuple[Tensor, Tensor]:
        """A quantile of a mixture lies between the least and the greatest of its components'."""
        name, least, most = "isf" if upper else "icdf", 0.99 * p, 1 - 0.99 * (1 - p)
        more = torch.where(p < 0.5, 1.01 * p, most)
        less = torch.where(p < 0.5, least, 1 - 1.01 * (1 - p))
        low, high = self._ends(p)
        with torch.no_grad():
            try:
                ends = [self._over(_asks(name), u) for u in (less, more)]
            except NotImplementedError:
                return low, high
        first, last = (ends[1], ends[0]) if upper else (ends[0], ends[1])
        first, last = first.amin(-1).nan_to_num(-math.inf), last.amax(-1).nan_to_num(math.inf)
        return torch.maximum(low, first), torch.minimum(high, last)

    # -- draws ------------------------------------------------------------------------------------

    def _rsample(self, shape: Size) -> Tensor:
        with torch.no_grad():
            z = self._sample(shape)
        if not torch.is_grad_enabled():
            return z
        return lazily(self, z, lambda d, steps: d._moved(z, steps))

    def _moved(self, z: Tensor, steps: int) -> Tensor:
        """Return draws z with the derivatives of draws at a fixed cdf, or conditional cdfs."""
        if not self.event_shape:
            return implicit(_Logs(self), z, steps)
        flat = z.flatten(-len(self.event_shape))
        return move(self._conditionals(), self.log_weights, flat, steps).reshape(z.shape)

    def _sample(self, shape: Size) -> Tensor:
        """Draw from all components and choose among them, by Gumbel's trick."""
        event, count = len(self.event_shape), self.logits.shape[-1]
        lead = shape[: len(shape) - event]
        pick = (self.logits - self._exponential(Size((*lead, count))).log()).argmax(-1)
        first = lead[: len(lead) - len(self.batch_shape)]
        if self._together:
            draws = self.components.sample(first)
        else:
            draws = torch.stack([d.sample(first) for d in self.components], -1 - event)
        pick = pick.reshape(pick.shape + (1,) * (1 + event))
        return torch.take_along_dim(draws, pick, -1 - event).squeeze(-1 - event)

    def _conditionals(self) -> Conditionals:
        return conditionals_of(self._list, self._together)

    # -- moments ----------------------------------------------------------------------------------

    def _moment(self, name: str) -> tuple[Tensor, Tensor]:
        """Return a moment of all components, and their weights: `[..., M, *event]`."""
        event = len(self.event_shape)
        if self._together:
            values = getattr(self.components, name)
        else:
            values = torch.stack([getattr(d, name) for d in self.components], -1 - event)
        weights = self.log_weights.exp()
        return values, weights.reshape(weights.shape + (1,) * event)

    @property
    def mean(self) -> Tensor:
        means, weights = self._moment("mean")
        return (weights * means).sum(-1 - len(self.event_shape))

    @property
    def variance(self) -> Tensor:
        r"""The variance, :math:`\sum_m w_m (\sigma_m^2 + (\mu_m - \mu)^2)`."""
        axis = -1 - len(self.event_shape)
        means, weights = self._moment("mean")
        variances, _ = self._moment("variance")
        away = means - (weights * means).sum(axis, keepdim=True)
        return (weights * (variances + away.square())).sum(axis)

    @property
    def mode(self) -> Tensor:
        """NaN: a mixture may have several modes, and none in closed form."""
        return self.logits.new_full(self.batch_shape + self.event_shape, math.nan)

    def entropy(self) -> Tensor:
        """Say that there is none in closed form."""
        raise NotImplementedError(
            "Mixture: the entropy of a mixture has no closed form; average -log_prob over draws"
        )

    def __repr__(self) -> str:
        inner = repr(self.components) if self._together else ", ".join(map(repr, self.components))
        return f"Mixture(logits: {tuple(self.logits.shape)}, components: {inner})"


class _Logs:
    """A univariate mixture as a law of which only the smaller tail is used."""

    def __init__(self, d: Mixture) -> None:
        self._mix, self.log_prob, self.cdf, self.sf = d._mix_logs, d._log_prob, d._cdf, d._sf

    def log_cdf(self, z: Tensor) -> Tensor:
        return self._mix("log_cdf", z)

    def log_sf(self, z: Tensor) -> Tensor:
        return self._mix("log_sf", z)


def _near_one(log_tail: Tensor, rest: Tensor) -> Tensor:
    """Return the logarithm of a tail, from one minus the other where that is the smaller."""
    near = rest < 0.5
    return torch.where(near, torch.log1p(-torch.where(near, rest, 0.0)), log_tail)


def _asks(name: str) -> Callable[[Any, Tensor], Tensor]:
    return lambda d, z: getattr(Part(d), name)(z)


def _demand_same(parts: list[Any], together: bool) -> None:
    """Raise unless there are components, of one event shape, that can be moved implicitly."""
    if not parts:
        raise ValueError("Mixture: expected at least one component, got an empty list")
    for d in parts:
        if isinstance(d, Distribution) and d.event_shape:
            demand_conditionals("Mixture", d)
        else:
            demand_implicit("Mixture", d)
    shapes = [tuple(d.event_shape) for d in parts]
    if len(set(shapes)) > 1:
        raise ValueError(f"Mixture: components must have one event shape, got {shapes}")
    if together and not parts[0].batch_shape:
        raise ValueError(
            f"Mixture: {type(parts[0]).__name__} has no batch dimension; its last batch dimension "
            "counts the components, or give a list of distributions"
        )


def _expanded(components: Any, batch: Size, count: int) -> Any:
    if isinstance(components, Distribution):
        return components.expand(Size((*batch, count)))
    return tuple(d.expand(batch) for d in components)


def _hull(supports: list[Any], axis: int | None) -> Any:
    """Return the least interval that holds all supports; along `axis` of bounds that vary too."""
    inner = [s.base_constraint if isinstance(s, constraints.independent) else s for s in supports]
    ends = [ends_of(s) for s in inner]
    plain = not any(isinstance(end, Tensor) for pair in ends for end in pair)
    if plain and len(set(ends)) == 1 and len({type(s) for s in inner}) == 1:
        return inner[0]
    if plain:
        low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    else:
        low = _extreme([e[0] for e in ends], axis, torch.minimum, torch.amin)
        high = _extreme([e[1] for e in ends], axis, torch.maximum, torch.amax)
    return between(low, high)


def _extreme(ends: list[Any], axis: int | None, both: Callable, along: Callable) -> Any:
    if not any(isinstance(end, Tensor) for end in ends):
        return max(ends) if both is torch.maximum else min(ends)
    like = next(end for end in ends if isinstance(end, Tensor))
    tensors = [torch.as_tensor(end).to(like) for end in ends]
    if axis is not None:
        return along(tensors[0], axis)
    total = tensors[0]
    for t in tensors[1:]:
        total = both(total, t)
    return total
