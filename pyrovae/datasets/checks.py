"""What data must satisfy before a weight moves, and messages that name the row and the feature.

Row: the index of a datum, along the first dimension. Feature: its index inside the datum, a number
for a vector and a tuple for an image.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

__all__ = ["check_choice", "check_support", "check_values"]


def check_choice(where: str, value: object, choices: Iterable[Any]) -> None:
    """Raise ValueError unless `value` is one of `choices`; the message names the nearest one.

    Example:
        >>> check_choice("split", "tset", ["train", "test", "all"])
        Traceback (most recent call last):
        ...
        ValueError: split: unknown 'tset'; did you mean 'test'? Known: 'train', 'test', 'all'.
    """
    known = list(choices)
    if value in known:
        return
    near = difflib.get_close_matches(str(value), [k for k in known if isinstance(k, str)], n=1)
    guess = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(
        f"{where}: unknown {value!r}{guess} Known: {', '.join(repr(k) for k in known)}."
    )


def check_values(
    args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, where: str = "data"
) -> None:
    """Raise ValueError if a floating tensor of a model's arguments holds NaN or inf.

    Args:
        args: positional arguments, tensors `[B, *]`; what is not a floating tensor passes.
        kwargs: keyword arguments, likewise.
        where: how the message calls the data.

    Raises:
        ValueError: names the argument, the first bad row and feature, and how many there are.
    """
    named = [(_argument(where, i, len(args)), x) for i, x in enumerate(args)]
    for name, x in [*named, *((f"{where}[{k!r}]", x) for k, x in (kwargs or {}).items())]:
        if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
            continue
        finite = torch.isfinite(x)
        if not bool(finite.all()):
            raise ValueError(
                f"{name}: {_first(x, ~finite)}. Expected finite numbers. Try: drop such rows, "
                "x[x.isfinite().flatten(1).all(1)]; fill the gaps in; or fill them with any "
                "finite value and mask them in the model (pyro.poutine.mask)."
            )


def check_support(x: Tensor, constraint: Constraint, what: str) -> None:
    """Raise ValueError if a value of `x` `[B, *]` lies outside a likelihood's support.

    Args:
        x: observed data.
        constraint: the likelihood's `support`; independent dimensions are looked into, so that the
            single feature is named.
        what: how the message calls the data and its likelihood, `"site 'x' (Bernoulli)"`.

    Raises:
        ValueError: names the first bad row, its feature and value, the support, and what to try.
    """
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    if not constraints.is_dependent(constraint):
        bad = ~constraint.check(x)
        if bool(bad.any()):
            raise ValueError(
                f"{what}: {_first(x, bad)}, outside the likelihood's support, {constraint}. "
                f"Try: {_remedy(constraint, x)}."
            )


def _argument(where: str, position: int, count: int) -> str:
    return where if count == 1 else f"{where}[{position}]"


def _first(x: Tensor, bad: Tensor) -> str:
    """`nan at row 3, feature 7 (2 such values in 1 of 10 rows)`."""
    spots = bad.nonzero()
    first = tuple(spots[0].tolist())
    row, feature = first[0] if first else 0, first[1:]
    place = f"row {row}" + (
        f", feature {feature[0] if len(feature) == 1 else feature}" * bool(feature)
    )
    value = x.detach()[first].tolist() if first else x.item()
    shown = f"{value:.6g}" if isinstance(value, float) else str(value)
    rows = len(torch.unique(spots[:, 0])) if first else 1
    return f"{shown} at {place} ({len(spots)} such in {rows} of {len(bad) if first else 1} rows)"


def _remedy(constraint: Constraint, x: Tensor) -> str:
    if isinstance(constraint, type(constraints.boolean)):  # a copy of it, too
        return (
            "binarize the data, Dataset((x,), binarize='dynamic') or 'fixed' for values in "
            "[0, 1]; (x > 0.5).to(x.dtype); or a likelihood that has grey values, 'normal'"
        )
    if isinstance(constraint, constraints.integer_interval) and not x.is_floating_point():
        return (
            f"ids from {constraint.lower_bound} to {constraint.upper_bound}; a model of as many "
            f"symbols as the data have, at least {int(x.max()) + 1}"
        )
    if isinstance(constraint, constraints.integer_interval):
        return (
            f"counts from {constraint.lower_bound} to {constraint.upper_bound} as floating-point "
            "integers; another total_count; or likelihood='normal'"
        )
    if isinstance(constraint, (constraints.interval, constraints.half_open_interval)):
        return (
            f"rescale to [{constraint.lower_bound}, {constraint.upper_bound}], x / x.max() for "
            "data from 0; or likelihood='normal'"
        )
    return "transform the data into the support, or choose a likelihood whose support holds them"
