r"""Features to a distribution, for any family: :math:`h \mapsto \mathcal D(c(W h + b))`.

A family says in `arg_constraints` which parameters it has, where each may lie, and how many event
dimensions each has: a Laplace has two numbers per latent, a Dirichlet one vector, a multivariate
Normal a vector and a lower-triangular matrix. That is all a last layer needs to know. For a latent
of D units and a head of P numbers in all, :math:`W` is one `[P, H]` matrix: one product serves all
parameters, where a head per parameter would pay for as many.

Where a family has two spellings of the same thing (`probs` and `logits`, `covariance_matrix` and
`scale_tril`), the head predicts the one that is safe to compute with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints as domains_of_torch
from torch.distributions.constraints import Constraint

from pyrovae.nn.maps import Map, interval_end, safe_map
from pyrovae.nn.networks import Shape, as_shape, linear

__all__ = ["Head"]

_ALTERNATIVES = {
    "logits": ("probs",),
    "scale_tril": (
        "covariance_matrix", "precision_matrix", "scale_diag", "cov_factor", "cov_diag"
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Slot:
    """One predicted parameter: its name, the shape of its raw numbers, and their map."""

    name: str
    shape: tuple[int, ...]
    to: Map

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Head(nn.Module):
    r"""The last layer of a network that ends in a distribution.

    Batch dimensions of a univariate family become event dimensions (`to_event`), so the result
    always has event shape `event_shape` and batch shape `h.shape[:-1]`.

    Args:
        features: width H of the last dimension of the input.
        distribution: a Pyro (or pyrovae) distribution class.
        event_shape: shape of one draw, `20` or `(28, 28)`.
        fixed: parameters that are not predicted: numbers, tensors (kept as buffers), or modules
            called without arguments (one learned scale shared by all data). Constructor arguments
            that are not in `arg_constraints` (a temperature, a number of trials) go here too.
        constraints: narrower domains by parameter, `{"df": constraints.greater_than(2.0)}`.
        init: "glorot" or "normal".

    Raises:
        ValueError: a parameter whose domain has no safe map; the message names class, parameter
            and constraint, and what to do.

    >>> from pyro.distributions import Laplace
    >>> Head(200, Laplace, 20)(torch.zeros(5, 100, 200)).event_shape
    torch.Size([20])
    """

    def __init__(
        self,
        features: int,
        distribution: type,
        event_shape: Shape,
        *,
        fixed: Mapping[str, Any] | None = None,
        constraints: Mapping[str, Constraint] | None = None,
        init: str = "glorot",
    ) -> None:
        super().__init__()
        self.distribution = distribution
        self.event_shape = as_shape(event_shape)
        self._fixed = dict(fixed or {})
        for name, value in self._fixed.items():
            if isinstance(value, nn.Module):
                self.add_module(f"fixed_{name}", value)
            elif isinstance(value, Tensor):
                self.register_buffer(f"fixed_{name}", value)
        domains = _free_parameters(distribution, self._fixed, dict(constraints or {}))
        own = _event_dim(distribution)
        if own > len(self.event_shape):
            raise ValueError(
                f"Head: one draw of {distribution.__name__} has {own} dimensions, event_shape "
                f"{self.event_shape} has {len(self.event_shape)}; give at least {own}"
            )
        self.event_dims = len(self.event_shape) - own
        self.slots = [self._slot(name, domain, own, domains) for name, domain in domains.items()]
        if not self.slots:
            raise ValueError(
                f"Head: every parameter of {distribution.__name__} is fixed, nothing is left to "
                "predict; free one, or use the distribution itself"
            )
        self.linear = linear(features, sum(slot.size for slot in self.slots), init)

    def _slot(
        self, name: str, domain: Constraint, own: int, domains: Mapping[str, Constraint]
    ) -> _Slot:
        batch = self.event_shape[: self.event_dims]
        if name in ("low", "high", "peak") and {"low", "high"} <= set(domains):
            return _Slot(name, batch, interval_end(name, domain))
        found = safe_map(domain, self.event_shape[-1] if own else 0)
        if found is None:
            raise ValueError(
                f"Head: no safe map onto {domain} is known for the parameter {name!r} of "
                f"{self.distribution.__name__}; pass fixed={{{name!r}: value}}, or "
                f"constraints={{{name!r}: a domain such as constraints.positive}}, or write a "
                "module that returns the distribution"
            )
        raw, to = found
        return _Slot(name, batch + raw, to)

    def arguments(self, features: Tensor) -> dict[str, Any]:
        """Return what the head gives its distribution's constructor for these features."""
        raw = self.linear(features)
        lead = raw.shape[:-1]
        values: dict[str, Any] = {}
        many = len(self.slots) > 1  # views are cheap, but each is a node of the autograd graph
        pieces = raw.split([slot.size for slot in self.slots], -1) if many else (raw,)
        for slot, piece in zip(self.slots, pieces, strict=True):
            shaped = piece if len(slot.shape) == 1 else piece.reshape(lead + slot.shape)
            values[slot.name] = slot.to(shaped, values)
        for name, value in self._fixed.items():
            current = getattr(self, f"fixed_{name}", value)
            values[name] = current() if isinstance(current, nn.Module) else current
        return values

    def forward(self, features: Tensor) -> Any:
        d = self.distribution(**self.arguments(features))
        return d.to_event(self.event_dims) if self.event_dims else d

    @torch.no_grad()
    def set_bias(self, name: str, value: Tensor) -> None:
        """Start the parameter `name` at `value`, given before its map; only the bias is written.

        Raises:
            ValueError: no predicted parameter of this name.
        """
        start = 0
        for slot in self.slots:
            if slot.name == name:
                bias = self.linear.bias[start : start + slot.size]
                bias.copy_(torch.as_tensor(value).expand(slot.shape).reshape(-1))
                return
            start += slot.size
        raise ValueError(
            f"Head: no predicted parameter {name!r}; there are {[s.name for s in self.slots]}"
        )

    def extra_repr(self) -> str:
        names = ", ".join(f"{slot.name}{list(slot.shape)}" for slot in self.slots)
        return f"{self.distribution.__name__}: {names}"


def _free_parameters(
    distribution: type, fixed: Mapping[str, Any], narrower: Mapping[str, Constraint]
) -> dict[str, Constraint]:
    """Return name -> domain of what is to be predicted: one spelling of each, fixed ones out."""
    known = _declared(distribution)
    if not isinstance(known, Mapping) or not hasattr(distribution, "to_event"):
        raise ValueError(
            f"Head: {distribution!r} is not a Pyro distribution class with arg_constraints; use "
            "one of pyrovae.distributions or pyro.distributions (torch's own lack to_event)"
        )
    for name in narrower:
        if name not in known:
            raise ValueError(
                f"Head: {distribution.__name__} has no parameter {name!r}; it has {sorted(known)}"
            )
    left_out = set(fixed)
    for kept, others in _ALTERNATIVES.items():
        if kept in known:
            left_out |= set(others)
        if any(other in fixed for other in others):
            left_out.add(kept)
    return {n: narrower.get(n, domain) for n, domain in known.items() if n not in left_out}


def _declared(distribution: type) -> Any:
    """Return `arg_constraints`; torch's Uniform has a property: each end bounds the other."""
    known = getattr(distribution, "arg_constraints", None)
    if isinstance(known, property) and {"low", "high"} <= set(signature(distribution).parameters):
        return {"low": domains_of_torch.dependent, "high": domains_of_torch.dependent}
    return known


def _event_dim(distribution: type) -> int:
    """Return how many event dimensions one draw of the class has (0 for univariate families)."""
    support = getattr(distribution, "support", None)
    try:
        return int(support.event_dim)  # type: ignore[union-attr]
    except (AttributeError, NotImplementedError):
        known = _declared(distribution)
        dims = [c.event_dim for c in known.values() if not domains_of_torch.is_dependent(c)]
        return min(max(dims, default=0), 1)
