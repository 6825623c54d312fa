"""What the families of this package share beyond Pyro's classes, which they subclass.

Pyro's and torch's classes keep construction, validation, shapes and dispatch of KLs. Added are
both tails and their logarithms, log-densities that are minus infinity outside the support, and a
refusal of the 16-bit types, in which no log-density has a correct digit.
"""

from __future__ import annotations

from numbers import Number
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Distribution

from pyrovae.distributions.base import EMPTY, all_within, can_look

__all__ = ["Checked", "Univariate", "check_arguments", "clamp_inside", "refuse_half"]


def refuse_half(family: str, **parameters: Tensor) -> None:
    """Raise TypeError where a parameter is float16 or bfloat16."""
    for name, value in parameters.items():
        if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                f"{family}: the parameter {name!r} has dtype {value.dtype}, expected "
                "torch.float32 or torch.float64; convert it with .float()"
            )


def check_arguments(
    family: type, validate_args: bool | None, **parameters: Number | Tensor
) -> None:
    """Raise ValueError, naming the parameter, where it is not finite or not in its domain.

    torch's classes take infinity, and some name a parameter of an inner distribution.
    """
    asked = Distribution._validate_args if validate_args is None else validate_args
    if not asked or not can_look():
        return
    for name, given in parameters.items():
        value, constraint = torch.as_tensor(given), family.arg_constraints[name]
        if constraint.event_dim:
            constraint = constraint.base_constraint
        if all_within(constraint, value, finite=True):
            continue
        bad = value[~(constraint.check(value) & value.isfinite())]
        if bad.numel():
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            raise ValueError(
                f"{family.__name__}: expected the parameter {name!r} to satisfy the constraint "
                f"{constraint} and be finite, but found {bad[0].item()}{more} (shape "
                f"{tuple(value.shape)}); check what computes it, map raw numbers into the domain "
                "(pyrovae.nn.Head does), or pass validate_args=False"
            )


def clamp_inside(value: Tensor, low: float, high: float | None = None) -> Tensor:
    """Hold draws strictly inside the support, the gradient as if nothing had been held.

    Where the draw is infinite the gradient is 0.
    """
    finite = torch.where(value.isinf(), 0.0, value)
    return finite + (value.clamp(low, high) - finite).detach()


class Checked:
    """Draws with their score, and `expand` for classes with a constructor of their own."""

    def expand(self, batch_shape: Size | tuple[int, ...], _instance: Any = None) -> Any:
        new = type(self).__new__(type(self)) if _instance is None else _instance
        return super().expand(Size(batch_shape), new)

    def rsample_and_log_prob(
        self, sample_shape: Size | tuple[int, ...] = EMPTY
    ) -> tuple[Tensor, Tensor]:
        """Draw and score the draw: `[*sample, *batch, *event]` and `[*sample, *batch]`."""
        z = self.rsample(sample_shape)
        return z, self._score(z)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self._score(value)

    def _score(self, value: Tensor) -> Tensor:
        raise NotImplementedError


class Univariate(Checked):
    """The tails. A family writes `_tail(value, log, lower)` and `_quantile(u, lower)`."""

    def _tail(self, value: Tensor, log: bool, lower: bool) -> Tensor:
        raise NotImplementedError

    def _quantile(self, u: Tensor, lower: bool) -> Tensor:
        raise NotImplementedError

    def cdf(self, value: Tensor) -> Tensor:
        """Return P(z <= value), differentiable in the parameters too."""
        return self._checked_tail(value, False, True)

    def sf(self, value: Tensor) -> Tensor:
        """Return P(z > value), accurate where the cdf has rounded to 1."""
        return self._checked_tail(value, False, False)

    def log_cdf(self, value: Tensor) -> Tensor:
        """Return log P(z <= value), where the cdf underflows too."""
        return self._checked_tail(value, True, True)

    def log_sf(self, value: Tensor) -> Tensor:
        """Return log P(z > value), where the tail underflows too."""
        return self._checked_tail(value, True, False)

    def icdf(self, value: Tensor) -> Tensor:
        """Return the z with P(Z <= z) = value; the ends of the support at 0 and 1."""
        return self._quantile(value, True)

    def isf(self, value: Tensor) -> Tensor:
        """Return the z with P(Z > z) = value."""
        return self._quantile(value, False)

    def _checked_tail(self, value: Tensor, log: bool, lower: bool) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self._tail(value, log, lower)
