r"""Where a guide can go and where its prior can: the check behind an honest log p(x).

Importance weighting integrates the joint density over the *guide's* support S_q only:

.. math:: E_q\!\left[\frac{p(x, z)}{q(z|x)}\right] = \int_{S_q} p(x, z)\,dz \;\le\; p(x),

with equality if S_q covers the prior's support S_p. If it does not, the estimate is silently low,
and neither its standard error nor Pareto k-hat can see it. If S_q reaches *beyond* S_p, the
estimate is right (draws outside get weight 0), but KL(q || p) is infinite.

Supports are compared as intervals of the reals (or of the integers), element by element; bounded
sets of vectors (simplex, sphere, ...) by name. Boundaries have measure zero and are ignored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import Delta, VonMises
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution, constraints, transforms

__all__ = ["Relation", "Support", "check_data", "compare", "contains", "support_of", "unwrap"]


@dataclass(frozen=True)
class Support:
    """A set: an interval of "real" or "integer" numbers a coordinate, or a named set."""

    kind: str
    low: Tensor | None = None
    high: Tensor | None = None


@dataclass(frozen=True)
class Relation:
    """How a guide's support stands to its prior's.

    Attributes:
        label: "equal", "narrower" (log p(x) is only bounded from below), "wider" (KL is infinite),
            "crossing" (both), "point" (the guide is a point mass, the prior is not) or "unknown".
        everywhere: The label holds for every datum, not for some only.
    """

    label: str
    everywhere: bool = True

    @property
    def is_lower_bound(self) -> bool:
        """Whether part of the prior is out of the guide's reach."""
        return self.label in ("narrower", "crossing")

    @property
    def is_infinite(self) -> bool:
        """Whether KL(q || p) is infinite."""
        return self.label in ("wider", "crossing")


def unwrap(fn: Any) -> Any:
    """The distribution under ``to_event``, ``expand`` and ``mask``."""
    while not isinstance(fn, TransformedDistribution) and isinstance(
        getattr(fn, "base_dist", None), Distribution
    ):
        fn = fn.base_dist
    return fn


def support_of(fn: Any) -> Support | None:
    """The support of a distribution, or None if it is not known."""
    fn = unwrap(fn)
    if isinstance(fn, (VonMises, torch.distributions.VonMises)):
        # declared "real", drawn on a circle
        return Support("real", torch.tensor(-math.pi), torch.tensor(math.pi))
    if (
        isinstance(fn, TransformedDistribution)
        and type(fn).support is TransformedDistribution.support
    ):
        support = support_of(fn.base_dist)
        for transform in fn.transforms:
            support = None if support is None else _push(support, transform)
        return support
    try:
        return _from_constraint(fn.support)
    except (NotImplementedError, AttributeError):
        return None


def _from_constraint(constraint: Any) -> Support | None:
    name = type(constraint).__name__
    if name in ("_Cat", "_Stack", "_Dependent", "_DependentProperty"):
        return None
    if name == "MixtureSameFamilyConstraint":
        inner = _from_constraint(constraint.base_constraint)
        if inner is None or inner.low is None or inner.low.dim() + inner.high.dim() == 0:
            return inner
        return None  # a union of different intervals
    if hasattr(constraint, "base_constraint"):
        return _from_constraint(constraint.base_constraint)
    if constraint is constraints.real:
        return Support("real", torch.tensor(-math.inf), torch.tensor(math.inf))
    if constraint is constraints.boolean:
        return Support("integer", torch.tensor(0.0), torch.tensor(1.0))
    if hasattr(constraint, "lower_bound") or hasattr(constraint, "upper_bound"):
        kind = "integer" if constraint.is_discrete else "real"
        low = torch.as_tensor(getattr(constraint, "lower_bound", -math.inf))
        return Support(kind, low, torch.as_tensor(getattr(constraint, "upper_bound", math.inf)))
    return Support(name.lstrip("_"))


def _push(support: Support, transform: Any) -> Support | None:
    """The image of a set under a transform; monotone scalar ones bound by bound."""
    while isinstance(transform, transforms.IndependentTransform):
        transform = transform.base_transform
    if isinstance(transform, transforms.ComposeTransform):
        for part in transform.parts:
            support = None if support is None else _push(support, part)  # type: ignore[assignment]
        return support
    if support.kind == "real" and support.low is not None:
        ends = _ends(support.low, support.high, transform)
        if ends is not None:
            return Support("real", torch.minimum(*ends), torch.maximum(*ends))
    try:
        whole = _from_constraint(transform.domain)
        if _label(support, whole)[0] == "equal":
            return _from_constraint(transform.codomain)
    except (NotImplementedError, AttributeError):
        pass
    return None


def _ends(low: Tensor, high: Tensor, transform: Any) -> tuple[Tensor, Tensor] | None:
    if isinstance(transform, transforms.AffineTransform):
        return low * transform.scale + transform.loc, high * transform.scale + transform.loc
    if isinstance(transform, transforms.ExpTransform):
        return low.exp(), high.exp()
    if isinstance(transform, transforms.SigmoidTransform):
        return low.sigmoid(), high.sigmoid()
    if isinstance(transform, transforms.TanhTransform):
        return low.tanh(), high.tanh()
    return None


def compare(guide: Any, prior: Any) -> Relation:
    """How the support of distribution `guide` stands to that of `prior`."""
    if isinstance(unwrap(guide), Delta):
        return Relation("equal" if isinstance(unwrap(prior), Delta) else "point")
    return Relation(*_label(support_of(guide), support_of(prior)))


def _label(q: Support | None, p: Support | None) -> tuple[str, bool]:
    if q is None or p is None:
        return "unknown", True
    if q.kind != p.kind or q.low is None or p.low is None:
        return ("equal" if q.kind == p.kind else _by_name(q, p)), True
    try:
        missing = _above(q.low, p.low) | _above(p.high, q.high)
        beyond = _above(p.low, q.low) | _above(q.high, p.high)
    except RuntimeError:  # bounds of shapes that do not broadcast
        return "unknown", True
    everywhere = bool((missing == missing.any()).all() and (beyond == beyond.any()).all())
    names = {(0, 0): "equal", (1, 0): "narrower", (0, 1): "wider", (1, 1): "crossing"}
    return names[int(missing.any()), int(beyond.any())], everywhere


def _above(a: Tensor, b: Tensor) -> Tensor:
    """Where ``a > b``, beyond rounding."""
    slack = 1e-6 * torch.maximum(a.abs(), b.abs()).nan_to_num(posinf=0.0)
    return a > b + slack


def _by_name(q: Support, p: Support) -> str:
    """A set of full measure in the reals against all of them."""
    inside = ("OrderedVector", "PositiveOrderedVector")
    for inner, outer, label in ((q, p, "narrower"), (p, q, "wider")):
        if inner.kind in inside and outer.kind == "real" and bool((outer.low == -math.inf).all()):
            return label
    return "unknown"


def contains(fn: Any, value: Tensor) -> Tensor | None:
    """Whether each draw lies in the support of `fn`, over its batch shape; None if unknown.

    A NaN is no draw: it counts as inside, so that it is found where it does harm.
    """
    support = support_of(fn)
    if support is not None and support.kind == "real":
        inside = ((value > support.low) & (value < support.high)) | value.isnan()
        event = len(fn.event_shape)
        return inside.flatten(-event).all(-1) if event else inside
    try:
        return fn.support.check(value)
    except NotImplementedError:
        return None


def check_data(name: str, fn: Any, value: Tensor, first_row: int, dim: int) -> None:
    """Raise if observed data cannot have come from the likelihood, whatever the latents are.

    Args:
        name: The observed site.
        fn: Its distribution.
        value: The data.
        first_row: Number of the batch's first datum, for the message.
        dim: Dimension of the data plate in the batch shape of `fn`, negative.

    Raises:
        ValueError: Naming site, datum and value. A support that depends on the latents (a Uniform
            likelihood) is not checked: there the density is 0, which is an answer.
    """
    root = unwrap(fn)
    declared = getattr(type(root), "support", None)
    try:
        constraint = fn.support
        if (
            isinstance(declared, property | constraints.dependent_property)
            and not constraint.is_discrete
        ):
            return
        good = constraint.check(value)
    except (NotImplementedError, AttributeError, RuntimeError):
        return
    if value.is_floating_point():  # torch's real numbers include infinity
        event = len(fn.event_shape)
        finite = value.isfinite()
        good = good & (finite.flatten(-event).all(-1) if event else finite)
    if bool(good.all()) or good.dim() < -dim:
        return
    rows = (~good).movedim(dim, 0).flatten(1).any(1) if good.dim() > 1 else ~good
    row = int(rows.nonzero()[0])
    datum = value.movedim(dim - len(fn.event_shape), 0)[row]
    finite = datum[~datum.isfinite()] if datum.is_floating_point() else datum[:0]
    what = f"holds {finite.flatten()[0].item()}" if finite.numel() else _range(datum)
    raise ValueError(
        f"site '{name}': datum {first_row + row} {what}, outside the support of "
        f"{type(root).__name__} ({constraint}). "
        f"Expected: data that the likelihood can produce. Try: binarize grey pixels on purpose "
        f"(pyrovae.datasets), scale to the right range, or another likelihood."
    )


def _range(datum: Tensor) -> str:
    return f"has values in [{datum.min().item():g}, {datum.max().item():g}]"
