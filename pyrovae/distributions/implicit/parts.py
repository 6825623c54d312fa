"""A univariate distribution seen as a law: density, both tails and quantiles, wherever asked.

Mixtures and truncations ask their components far out, outside of their supports too, and in
logarithms. Our families answer all of it; torch's and Pyro's own have a `cdf` at most, from which
the rest is derived as far as its digits go.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyrovae.distributions.reshape import map_tensors
from pyrovae.distributions.roots import safe_log
from pyrovae.distributions.stable import log1mexp

__all__ = [
    "Part",
    "between",
    "complement",
    "demand_implicit",
    "ends_of",
    "lazily",
    "middle",
    "unchecked",
]

_NO_SLOPE = {"Gamma", "Chi2", "InverseGamma"}  # torch's cdf has no derivative in the concentration


def demand_implicit(who: str, d: Any) -> None:
    """Raise ValueError unless a univariate distribution has a density, a cdf and draws to move.

    Args:
        who: what asks, for the message.
        d: the distribution.
    """
    name = type(d).__name__
    if not isinstance(d, Distribution):
        raise ValueError(f"{who}: expected a distribution, got {name}")
    if not getattr(d, "has_rsample", False):
        raise ValueError(
            f"{who}: {name} is not reparameterizable (has_rsample is False), so no gradient goes "
            "through its draws; use a continuous family of pyrovae.distributions"
        )
    if d.event_shape:
        raise ValueError(
            f"{who}: expected a univariate distribution, got {name} of event shape "
            f"{tuple(d.event_shape)}"
        )
    if type(d).cdf is Distribution.cdf or (name in _NO_SLOPE and not hasattr(d, "log_sf")):
        raise ValueError(
            f"{who}: {name} of {type(d).__module__.split('.')[0]} has no differentiable cdf, "
            "which implicit gradients need; use the class of pyrovae.distributions"
        )


def unchecked(d: Any) -> Any:
    """Return the distribution without validation of values, inner ones included."""
    new = copy.copy(d)
    new.__dict__["_validate_args"] = False
    for name in ("base_dist", "_gamma", "_dirichlet"):
        if isinstance(new.__dict__.get(name), Distribution):
            new.__dict__[name] = unchecked(new.__dict__[name])
    return new


def ends_of(support: Any) -> tuple[Any, Any]:
    """Return the ends of an interval of the line, numbers or tensors, infinite where it is open.

    Raises:
        ValueError: the set is no such interval.
    """
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if isinstance(support, type(constraints.real)):
        return -math.inf, math.inf
    low = getattr(support, "lower_bound", None)
    high = getattr(support, "upper_bound", None)
    if low is None and high is None:
        raise ValueError(f"expected a distribution on an interval of the line, got {support}")
    return (-math.inf if low is None else low), (math.inf if high is None else high)


def between(low: Any, high: Any) -> Any:
    """Return the constraint of an interval from its ends: numbers or tensors."""
    below = isinstance(low, Tensor) or low > -math.inf
    above = isinstance(high, Tensor) or high < math.inf
    if below and above:
        return constraints.interval(low, high)
    if below:
        return constraints.greater_than_eq(low)
    return constraints.less_than(high) if above else constraints.real


def middle(low: Any, high: Any) -> Any:
    """Return a point inside an interval, for tensors elementwise."""
    if not isinstance(low, Tensor) and not isinstance(high, Tensor):
        if math.isinf(low):
            return 0.0 if math.isinf(high) else high - abs(high) - 1
        return low + abs(low) + 1 if math.isinf(high) else low + (high - low) / 2
    like = low if isinstance(low, Tensor) else high
    low, high = torch.broadcast_tensors(
        torch.as_tensor(low).to(like).detach(), torch.as_tensor(high).to(like).detach()
    )
    up, down = low.isfinite(), high.isfinite()
    some_low, some_high = torch.where(up, low, 0.0), torch.where(down, high, 0.0)
    both = some_low + (some_high - some_low) / 2
    one = torch.where(up, some_low + some_low.abs() + 1, some_high - some_high.abs() - 1)
    return torch.where(up & down, both, torch.where(up | down, one, 0.0))


class Part:
    """A component: the functions of :class:`pyrovae.distributions.roots.Law`, anywhere."""

    def __init__(self, d: Any) -> None:
        self.d = unchecked(d)
        self.support = d.support
        self.low, self.high = ends_of(self.support)
        self._everywhere = isinstance(self.support, type(constraints.real))

    def log_prob(self, z: Tensor) -> Tensor:
        return self._within(self.d.log_prob, z, -math.inf, -math.inf)

    def cdf(self, z: Tensor) -> Tensor:
        return self._within(self.d.cdf, z, 0.0, 1.0)

    def sf(self, z: Tensor) -> Tensor:
        return self._within(self._own("sf", lambda z: 1 - self.d.cdf(z)), z, 1.0, 0.0)

    def log_cdf(self, z: Tensor) -> Tensor:
        hook = self._own("log_cdf", lambda z: safe_log(self.d.cdf(z)))
        return self._within(hook, z, -math.inf, 0.0)

    def log_sf(self, z: Tensor) -> Tensor:
        hook = self._own("log_sf", lambda z: safe_log(1 - self.d.cdf(z)))
        return self._within(hook, z, 0.0, -math.inf)

    def icdf(self, u: Tensor) -> Tensor:
        return self.d.icdf(u)

    def isf(self, u: Tensor) -> Tensor:
        return self._own("isf", lambda u: self.d.icdf(1 - u))(u)

    def _own(self, name: str, derived: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return getattr(self.d, name, derived)

    def _within(
        self, f: Callable[[Tensor], Tensor], z: Tensor, below: float, above: float
    ) -> Tensor:
        """Ask f inside the support only; its limits are known outside of it."""
        if self._everywhere:
            return f(z)
        inside = self.support.check(z)
        value = f(torch.where(inside, z, middle(self.low, self.high)))
        outside = torch.where(z <= self.low, below, above).to(value.dtype)
        return torch.where(inside, value, outside)


def complement(log_p: Tensor) -> Tensor:
    """Return log(1 - p) of log p <= 0, minus infinity with slope 0 at p = 1."""
    some = log_p < 0
    return torch.where(some, log1mexp(torch.where(some, -log_p, 1.0)), -math.inf)


# -- gradients on demand --------------------------------------------------------------------------


class _Lazily(torch.autograd.Function):
    """A draw whose derivatives are worked out when somebody asks for them."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, moved: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        ctx.moved = moved
        ctx.save_for_backward(*tensors)
        return z.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        again = torch.is_grad_enabled()  # the graph of the gradient is wanted too
        with torch.enable_grad():
            fresh = [t.view_as(t) if again else t.detach() for t in ctx.saved_tensors]
            fresh = [t if t.requires_grad else t.requires_grad_() for t in fresh]
            z = ctx.moved(fresh, 2 if again else 1)
            slopes = torch.autograd.grad(z, fresh, g, create_graph=again, allow_unused=True)
        return (None, None, *slopes)


def lazily(d: Any, z: Tensor, moved: Callable[[Any, int], Tensor]) -> Tensor:
    """Return the draws z of d with derivatives in every tensor that d holds.

    Args:
        d: the distribution.
        z: draws without a graph.
        moved: `moved(d, steps)` returns z with that many orders of derivatives in the tensors of
            d; it is called in the backward pass, with d built anew of other tensors.
    """
    if torch._C._are_functorch_transforms_active():
        return moved(d, 2)
    tensors: list[Tensor] = []

    def look(t: Tensor) -> Tensor:
        if t.requires_grad:
            tensors.append(t)
        return t

    map_tensors(d, look)
    if not tensors:
        return z

    def with_tensors(fresh: list[Tensor], steps: int) -> Tensor:
        rest = iter(fresh)
        return moved(map_tensors(d, lambda t: next(rest) if t.requires_grad else t), steps)

    return _Lazily.apply(z, with_tensors, *tensors)
