r"""What the KL term of the ELBO is multiplied by, held to, or spared, and how that moves.

Annealing, free bits, capacity targets and controllers all change

.. math:: E_q[\log p(x|z)] - \lambda \, \mathrm{KL}(q(z|x) \,\|\, p(z))

so that the latents are used; none of them is a bound on log p(x) while it acts. They are arguments
of :class:`pyrovae.ELBO`, whose :meth:`~pyrovae.objectives.Objective.per_datum` stays the true
bound:

==================================================  ===========================================
``kl_weight=0.5``                                   a constant (Higgins et al. 2017)
``kl_weight=Linear(epochs=10)``                     warm-up from 0 (Bowman et al. 2016)
``kl_weight=Sigmoid(epochs=10)``                    the same, S-shaped
``kl_weight=Cyclical(epochs=40)``                   again and again (Fu et al. 2019)
``kl_weight=TargetRate(nats=5.0)``                  until the KL is 5 nats (Shao et al. 2020)
``free_bits=0.5``                                   0.5 nats a site at no cost (Kingma et al. 2016)
``free_bits=FreeBits(0.1, per="unit")``             the same for each unit, or group of units
``kl_weight=30.0, capacity=Linear(0, 25, ...)``     a moving target (Burgess et al. 2018)
==================================================  ===========================================

A :class:`Schedule` moves by itself **once a training step** (not in evaluation, nor in the inner
E-steps of a schedule of EM): `VariationalEM.step` and `fit` see to it, under plain
``pyro.infer.SVI`` the objective does, after its gradients. Its value is a 0-d tensor that is
changed in place, never a number that could be frozen into a graph. Epochs are counted in steps, so
the value moves within an epoch; how many steps an epoch has is known in `fit` only.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["Cyclical", "FreeBits", "Linear", "Schedule", "Sigmoid", "TargetRate"]


class Schedule(ABC):
    """A number that moves by itself, once a training step; it belongs to one run at a time.

    A subclass says how, in `_next`, and what it was made with, in `describe`.

    Attributes:
        step: Training steps made.
        value: What is in force, a 0-d tensor.
    """

    def __init__(self, first: float) -> None:
        self.first = first
        self.step = 0
        self.steps_per_epoch: int | None = None
        self.value = torch.tensor(first, dtype=torch.float64)

    @abstractmethod
    def _next(self, kl: Tensor | None) -> float | Tensor:
        """The value after `step` steps, the last of which saw a mean KL of `kl`, nats a datum."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Its name and arguments, as plain values."""

    def begin(self, steps_per_epoch: int | None = None) -> None:
        """Back to the start, for a new run of so many steps an epoch (None: not known)."""
        self.steps_per_epoch = steps_per_epoch
        self.step = 0
        self.value.fill_(self.first)

    def like(self, other: Tensor) -> Tensor:
        """The value now in force, of the dtype and on the device of another tensor."""
        if self.value.device != other.device:
            self.value = self.value.to(other.device)  # it stays there: moved once, not every step
        return self.value.to(other.dtype, copy=True)  # what moves later leaves this one alone

    def advance(self, kl: Tensor | None = None) -> None:
        """Take note of a training step, in which the mean KL was `kl` nats a datum."""
        self.step += 1
        value = self._next(kl)
        if isinstance(value, Tensor):
            self.value.copy_(value)
        else:
            self.value.fill_(value)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"step": self.step, "value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.step = state["step"]
        self.value.copy_(state["value"])

    def __repr__(self) -> str:
        options = {k: v for k, v in self.describe().items() if k != "name" and v is not None}
        inside = ", ".join(f"{name}={value}" for name, value in options.items())
        return f"{type(self).__name__}({inside})"


class _Annealed(Schedule):
    """From `start` to `stop` in so many steps or epochs, and `stop` from then on."""

    def __init__(self, start: float, stop: float, steps: int | None, epochs: float | None) -> None:
        name = type(self).__name__
        for option, number in (("start", start), ("stop", stop)):
            _check(name, option, number, 0, math.inf)
        if (steps is None) == (epochs is None):
            raise ValueError(
                f"{name}: how long does it take? Expected: steps=, or epochs= in fit, one of "
                f"them; got steps={steps}, epochs={epochs}. Try: {name}(epochs=10)."
            )
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise ValueError(f"{name}: steps must be an integer of at least 1, got {steps!r}.")
        if epochs is not None:
            _check(name, "epochs", epochs, 0, math.inf, open_below=True)
        super().__init__(float(start))
        self.start, self.stop, self.steps, self.epochs = start, stop, steps, epochs

    @abstractmethod
    def _shape(self, step: int, length: int) -> float:
        """The share of the way from `start` to `stop`, in [0, 1]; `step` is below `length`."""

    def at(self, step: int) -> float:
        """The value after `step` training steps."""
        length = self._length()
        done = 1.0 if step >= length else self._shape(step, length)
        return self.start + (self.stop - self.start) * done

    def _length(self) -> int:
        if self.steps is not None:
            return self.steps
        if self.steps_per_epoch is None:
            raise ValueError(
                f"{self!r}: it is not known how many steps an epoch has. Expected: training by "
                f"pv.fit, which knows. Try: {type(self).__name__}(steps=...) elsewhere."
            )
        return max(1, round(self.epochs * self.steps_per_epoch))

    def like(self, other: Tensor) -> Tensor:
        self._length()  # says so before a weight moves
        return super().like(other)

    def _next(self, kl: Tensor | None) -> float:
        return self.at(self.step)

    def describe(self) -> dict[str, Any]:
        options = {k: getattr(self, k) for k in ("start", "stop", "steps", "epochs")}
        return {"name": type(self).__name__} | options


class Linear(_Annealed):
    r"""A straight line, :math:`\lambda_t = a + (b - a) \min(t / T, 1)`.

    Args:
        start: a; may be 0.
        stop: b.
        steps: T in training steps.
        epochs: T in epochs, in `fit`.

    Source: Bowman et al. (2016), arXiv:1511.06349; Sonderby et al. (2016), arXiv:1602.02282.

    Example:
        >>> warm_up = Linear(steps=4)
        >>> [warm_up.at(t) for t in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """

    def __init__(
        self,
        start: float = 0.0,
        stop: float = 1.0,
        *,
        steps: int | None = None,
        epochs: float | None = None,
    ) -> None:
        super().__init__(start, stop, steps, epochs)

    def _shape(self, step: int, length: int) -> float:
        return step / length


class Sigmoid(_Annealed):
    r"""S-shaped: :math:`\sigma(k (t / T - 1/2))`, stretched to reach both ends exactly.

    Args:
        start: Value at 0; may be 0.
        stop: Value from T on.
        steps: T in training steps.
        epochs: T in epochs, in `fit`.
        steepness: k; the middle half of the way takes :math:`2.2 T / k`.

    Source: Bowman et al. (2016), arXiv:1511.06349.
    """

    def __init__(
        self,
        start: float = 0.0,
        stop: float = 1.0,
        *,
        steps: int | None = None,
        epochs: float | None = None,
        steepness: float = 12.0,
    ) -> None:
        super().__init__(start, stop, steps, epochs)
        _check("Sigmoid", "steepness", steepness, 0, math.inf, open_below=True)
        self.steepness = steepness

    def _shape(self, step: int, length: int) -> float:
        # tanh(x / 2) = 2 sigmoid(x) - 1
        return 0.5 + 0.5 * math.tanh(self.steepness * (step / length - 0.5) / 2) / math.tanh(
            self.steepness / 4
        )

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"steepness": self.steepness}


class Cyclical(_Annealed):
    r"""Several warm-ups, one after the other: each cycle rises for a share of it, then stays.

    With :math:`\tau = (M t \bmod T) / T` the weight is
    :math:`a + (b - a) \min(\tau / R, 1)`; from T on it is b.

    Args:
        start: a, where each cycle begins; may be 0.
        stop: b.
        steps: T in training steps, all cycles together.
        epochs: T in epochs, in `fit`.
        cycles: M.
        ramp: R, the share of a cycle in which the weight rises.

    Source: Fu et al. (2019), arXiv:1903.10145.

    Example:
        >>> [Cyclical(steps=8, cycles=2).at(t) for t in range(9)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        start: float = 0.0,
        stop: float = 1.0,
        *,
        steps: int | None = None,
        epochs: float | None = None,
        cycles: int = 4,
        ramp: float = 0.5,
    ) -> None:
        super().__init__(start, stop, steps, epochs)
        if not isinstance(cycles, int) or cycles < 1:
            raise ValueError(f"Cyclical: cycles must be an integer of at least 1, got {cycles!r}.")
        _check("Cyclical", "ramp", ramp, 0, 1, open_below=True)
        self.cycles, self.ramp = cycles, ramp

    def _shape(self, step: int, length: int) -> float:
        return min(step * self.cycles % length / length / self.ramp, 1.0)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"cycles": self.cycles, "ramp": self.ramp}


class TargetRate(Schedule):
    r"""A weight that steers the mean KL to a target, by a proportional-integral controller.

    With :math:`e_t = \mathrm{KL}_t - C` of the step's batch,

    .. math:: \lambda_{t+1} = \mathrm{clip}\big(K_p \, \sigma(e_t) + I_t\big), \qquad
        I_t = I_{t-1} + K_i e_t,

    clipped to [`low`, `high`]; at an end the integral is set back to what gives that end, so that
    it leads away again at once (the paper lets it wait instead). It starts from `low`. The gains
    are the paper's for text; a KL that is slow to follow needs a larger `integral`, one that
    swings a smaller.

    Args:
        nats: C, the KL wanted, nats a datum over all latents.
        proportional: Kp.
        integral: Ki, per step and nat.
        low: Smallest weight.
        high: Largest weight. Up to 1 the objective stays between the reconstruction and the bound;
            a target below the KL of a plain VAE needs more.

    Source: Shao et al. (2020), arXiv:2004.05988.
    """

    def __init__(
        self,
        nats: float,
        *,
        proportional: float = 0.01,
        integral: float = 1e-4,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        _check("TargetRate", "nats", nats, 0, math.inf, open_below=True)
        _check("TargetRate", "proportional", proportional, 0, math.inf)
        _check("TargetRate", "integral", integral, 0, math.inf, open_below=True)
        _check("TargetRate", "low", low, 0, math.inf)
        if not low < high < math.inf:
            raise ValueError(f"TargetRate: high must be above low, got low={low}, high={high}.")
        super().__init__(float(low))
        self.nats, self.proportional, self.integral = nats, proportional, integral
        self.low, self.high = low, high
        self.sum = torch.tensor(float(low), dtype=torch.float64)

    def begin(self, steps_per_epoch: int | None = None) -> None:
        super().begin(steps_per_epoch)
        self.sum.fill_(self.low)

    def _next(self, kl: Tensor | None) -> Tensor:
        if kl is None:
            raise ValueError(
                "TargetRate: the KL of the step is needed. Expected: advance(kl), nats a datum. "
                "Try: training by pv.fit, pv.VariationalEM or pyro.infer.SVI, which pass it."
            )
        self.sum = self.sum.to(self.value.device)
        error = kl.detach().to(self.value) - self.nats
        error = torch.where(error.isfinite(), error, torch.zeros_like(error))
        proportional = self.proportional * error.sigmoid()
        integral = self.sum + self.integral * error
        weight = (proportional + integral).clamp(self.low, self.high)
        self.sum.copy_(weight - proportional)
        return weight

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"sum": self.sum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.sum.copy_(state["sum"])

    def describe(self) -> dict[str, Any]:
        options = ("nats", "proportional", "integral", "low", "high")
        return {"name": "TargetRate"} | {k: getattr(self, k) for k in options}


@dataclass(frozen=True)
class FreeBits:
    r"""Nats of KL at no cost, for each site, unit or group of units.

    The KL of a site becomes :math:`\sum_g \max(\lambda, \overline{\mathrm{KL}}_g)`, the bar being
    the mean over the batch and g its groups of units: below :math:`\lambda` nothing pulls a
    group towards the prior.

    Args:
        nats: lambda, of each group.
        per: "site" (all units are one group), "unit" (each is its own), a number of neighbouring
            units, or a list of lists of units that has each unit once.

    Source: Kingma et al. (2016), arXiv:1606.04934.

    Example:
        >>> FreeBits(0.5, per=2).of(torch.tensor([[0.1, 0.2, 2.0, 1.0]]))
        tensor([3.5000])
    """

    nats: float
    per: Literal["site", "unit"] | int | Sequence[Sequence[int]] = "unit"

    def __post_init__(self) -> None:
        _check("FreeBits", "nats", self.nats, 0, math.inf, open_below=True)
        per = self.per
        is_size = isinstance(per, int) and not isinstance(per, bool) and per >= 1
        if per in ("site", "unit") or is_size:
            return
        groups = per if isinstance(per, Sequence) and not isinstance(per, str) else ()
        plain = all(isinstance(g, Sequence) and not isinstance(g, str) for g in groups)
        units = sorted(unit for group in groups for unit in group) if plain else []
        if not units or units != list(range(len(units))) or not all(groups):
            raise ValueError(
                f'FreeBits: per must be "site", "unit", a number of units of at least 1, or a '
                f"list of lists that has each unit 0, 1, ... once; got {per!r}. "
                f"Try: per=[[0, 1], [2]]."
            )

    def of(self, kl: Tensor) -> Tensor:
        """The freed KL of each datum `[B]`, from that of each unit `[B, D]`, nats."""
        grouped = self._grouped(kl)
        mean = grouped.mean(0)
        return torch.where(mean > self.nats, grouped, torch.full_like(grouped, self.nats)).sum(-1)

    def _grouped(self, kl: Tensor) -> Tensor:
        if self.per == "unit":
            return kl
        if self.per == "site":
            return kl.sum(-1, keepdim=True)
        if isinstance(self.per, int):
            parts = kl.split(self.per, -1)
        else:
            units = sum(len(group) for group in self.per)
            if units != kl.shape[-1]:
                raise ValueError(
                    f"FreeBits: per has groups of {units} units in all, a latent site has "
                    f"{kl.shape[-1]}. Expected: each unit of each site in one group. "
                    f'Try: per="unit", or a number of units.'
                )
            parts = [kl[..., list(group)] for group in self.per]
        return torch.stack([part.sum(-1) for part in parts], -1)

    def describe(self) -> dict[str, Any]:
        """Its arguments, as plain values."""
        plain = isinstance(self.per, (str, int))
        return {"nats": self.nats, "per": self.per if plain else [list(g) for g in self.per]}


def _check(
    name: str, option: str, number: float, low: float, high: float, open_below: bool = False
) -> None:
    is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
    inside = is_number and math.isfinite(number) and low <= number <= high
    if not inside or (open_below and number == low):
        above = f"above {low}" if open_below else f"at least {low}"
        below = "" if high == math.inf else f" and at most {high}"
        raise ValueError(f"{name}: {option} must be finite, {above}{below}; got {number!r}.")
