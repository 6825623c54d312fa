r"""Schedules: which role steps when, and on which data.

EM climbs :math:`\log p(x)` because its E-step is exact. With an amortized q(z|x; phi) the E-step
is a number of gradient steps in phi, and a schedule says how many before the model moves:

* :class:`Joint`: both roles at once, a step a batch (auto-encoding variational Bayes);
* :class:`Alternating`: so many E-steps, then so many M-steps;
* :class:`Converge`: E-steps on a batch until the bound rests, then an M-step (variational EM);
* :class:`SemiAmortized`: the posterior of each datum refined by steps of its own, then both roles;
* :class:`Aggressive`: E-steps on fresh batches until the bound rests, then an M-step, for as long
  as the latents gain information about the data; afterwards :class:`Joint`.

A schedule is a record of settings without memory of its own: what it has to remember is a plain
dictionary that :class:`~pyrovae.VariationalEM` keeps and saves (`state`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from pyrovae.checkpoint import rng_state, set_rng_state
from pyrovae.collapse import collapse_report
from pyrovae.em.steps import Batch, NotFinite, StepRecord
from pyrovae.traces import Terms
from pyrovae.traces.refine import Refinement

__all__ = ["Aggressive", "Alternating", "Converge", "Joint", "Schedule", "SemiAmortized"]

State = dict[str, Any]


class Mover(Protocol):
    """What a schedule is given to work with: :class:`~pyrovae.VariationalEM`."""

    model: Callable[..., Any]
    guide: Callable[..., Any]

    def take(
        self,
        role: str,
        batch: Batch,
        *,
        clip_both: bool = False,
        move_buffers: bool = False,
        terms: Callable[[], Terms] | None = None,
    ) -> StepRecord:
        """One move of "guide", "model" or "joint"."""

    def refine(self, batch: Batch, steps: int, lr: float, **options: Any) -> Refinement:
        """Posteriors of the batch's data, improved one by one."""


class Schedule:
    """Which role steps when; subclasses are frozen records of numbers and names."""

    needs_batches: ClassVar[bool] = False  # inner steps on fresh batches
    needs_valid = False  # judges by held-out data at the end of an epoch

    def start(self) -> State:
        """What there is to remember before the first step."""
        return {}

    def step(
        self, em: Mover, batch: Batch, fresh: Iterator[Batch] | None, state: State
    ) -> StepRecord:
        """The moves that one call of ``VariationalEM.step`` makes; `state` is changed in place."""
        raise NotImplementedError

    def end_epoch(self, em: Mover, valid: Batch | None, state: State) -> dict[str, Any]:
        """After an epoch: change `state`, and return what the history should say."""
        return {}


@dataclass(frozen=True)
class Joint(Schedule):
    """Both roles step on every batch: auto-encoding variational Bayes.

    Source: Kingma & Welling (2014), arXiv:1312.6114, Algorithm 1.
    """

    def step(
        self, em: Mover, batch: Batch, fresh: Iterator[Batch] | None, state: State
    ) -> StepRecord:
        return em.take("joint", batch)


@dataclass(frozen=True)
class Alternating(Schedule):
    """So many E-steps, then so many M-steps, in every step.

    The first move of each kind is on the step's own batch, the others on fresh ones (on the same
    batch again where ``step`` is given no `batches`).

    Args:
        e_steps: Steps of the guide.
        m_steps: Steps of the model.

    Example:
        >>> import pyrovae as pv
        >>> pv.Alternating(5)
        Alternating(e_steps=5, m_steps=1)
    """

    e_steps: int = 1
    m_steps: int = 1

    needs_batches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_counts(self, "e_steps", "m_steps")

    def step(
        self, em: Mover, batch: Batch, fresh: Iterator[Batch] | None, state: State
    ) -> StepRecord:
        for number in range(1, self.e_steps + 1):
            _inner(em, batch if number == 1 else _next(fresh, batch), number)
        for number in range(1, self.m_steps + 1):
            record = _located(em, "model", batch if number == 1 else _next(fresh, batch), number)
        record.inner_steps = self.e_steps
        return record


@dataclass(frozen=True)
class Converge(Schedule):
    r"""E-steps on the step's batch until the bound rests, then M-steps: variational EM.

    The bound rests when its mean over a window exceeds that over the window before by less than
    `tolerance` of its size:

    .. math:: \bar{\mathcal L}_w - \bar{\mathcal L}_{w-1} < \texttt{tolerance} \cdot
        \max(|\bar{\mathcal L}_{w-1}|, 1).

    Args:
        tolerance: Relative improvement over a window below which the E-step has converged.
        max_steps: Most E-steps in a step.
        window: E-steps in a window.
        m_steps: M-steps that follow, on the same batch.
        common_noise: Use the same random numbers in every E-step of a step, which then climb one
            function and rest exactly; the M-steps have new ones. Only with many particles: with
            few of them a flexible guide learns the noise instead of the posterior.

    If the guide's family contains the posterior and the bound is analytic in its expectations, the
    M-steps climb log p(x), as in EM (Neal & Hinton 1998, "A view of the EM algorithm").

    Example:
        >>> import pyrovae as pv
        >>> pv.Converge(tolerance=1e-3).max_steps
        200
    """

    tolerance: float = 1e-4
    max_steps: int = 200
    window: int = 10
    m_steps: int = 1
    common_noise: bool = False

    def __post_init__(self) -> None:
        _check_counts(self, "max_steps", "window", "m_steps")
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(
                f"Converge: tolerance must be finite and at least 0, got {self.tolerance}."
            )

    def step(
        self, em: Mover, batch: Batch, fresh: Iterator[Batch] | None, state: State
    ) -> StepRecord:
        noise = _Noise(batch, self.common_noise)
        steps, converged = self._e_steps(em, batch, noise)
        for _ in range(self.m_steps):
            record = em.take("model", batch)
        record.inner_steps, record.converged = steps, converged
        return record

    def _e_steps(self, em: Mover, batch: Batch, noise: _Noise) -> tuple[int, bool]:
        window, before = _Window(), -math.inf
        for number in range(1, self.max_steps + 1):
            noise.again()
            record = _inner(em, batch, number)
            window.add(record.objective, 1.0)
            if number % self.window == 0:
                mean = window.mean()
                if mean - before < self.tolerance * max(abs(before), 1.0):
                    return number, True
                before, window = mean, _Window()
        return self.max_steps, False


@dataclass(frozen=True)
class Aggressive(Schedule):
    r"""E-steps on fresh batches until the bound no longer rises, then an M-step on the batch.

    So it goes while z gains information about x: after each epoch :math:`I_q(x; z)` is measured on
    held-out data, and once it has dropped `patience` times the schedule is :class:`Joint` for
    good. Inner loop: every `window` E-steps the mean loss over the window is compared with that of
    the window before, and if it is larger the loop ends; it never takes more than `max_steps`.

    The defaults are what seems right; :meth:`paper` is what the paper's authors ran. They differ
    where a detail of the published code decides more than it should:

    Args:
        window: E-steps in a window.
        max_steps: Most E-steps before an M-step.
        first_loss: What the first window's mean loss is compared with. Infinity: at least two
            windows are gone through.
        clip_both: Where the gradient is clipped (``clip_norm``), clip that of both roles together
            in E-steps and M-steps. False: the gradient of the role that moves.
        start_on_batch: The first E-step is on the step's own batch. False: on a fresh one.
        annealed_test: The window's loss is what is minimized, with KL weight and free bits; while
            a KL weight rises, that alone can end the loop. False: the true ELBO.
        stop: "mutual information", the rule above; "never"; or after how many epochs.
        patience: How many drops of the mutual information end it; not reset by a rise.
        compare: A drop is a value below the best so far ("best") or below that of the epoch
            before ("previous").
        first_information: What the first epoch's is compared with, nats.
        reference: Data that q(z) is made of, which caps the information at its logarithm.
        by_batch: Average the information over batches of `reference` data each, instead of one
            set of at most so many.
        move_buffers: BatchNorm statistics of the role that stays move, too.
        count: What a window's loss is divided by, as a function of the batch (the number of its
            words, for example); by default the number of its data.

    Source: He, Spokoyny, Neubig & Berg-Kirkpatrick (2019), arXiv:1901.05534.

    Example:
        >>> import pyrovae as pv
        >>> pv.Aggressive.paper("text").window
        15
    """

    window: int = 10
    max_steps: int = 100
    first_loss: float = math.inf
    clip_both: bool = False
    start_on_batch: bool = True
    annealed_test: bool = False
    stop: Literal["mutual information", "never"] | int = "mutual information"
    patience: int = 5
    compare: Literal["best", "previous"] = "best"
    first_information: float = 0.0
    reference: int = 5000
    by_batch: bool = False
    move_buffers: bool = False
    count: Callable[..., float] | None = None

    needs_batches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_counts(self, "window", "max_steps", "patience")
        if self.reference < 2:
            raise ValueError(
                f"Aggressive: reference must be at least 2 data, got {self.reference}: with one "
                f"datum q(z) is its posterior and the information is 0. Try: reference=5000."
            )
        is_epochs = isinstance(self.stop, int) and not isinstance(self.stop, bool)
        if not (self.stop in ("mutual information", "never") or (is_epochs and self.stop > 0)):
            raise ValueError(
                f'Aggressive: stop must be "mutual information", "never" or a number of epochs of '
                f"at least 1, got {self.stop!r}."
            )
        if self.compare not in ("best", "previous"):
            raise ValueError(
                f'Aggressive: compare must be "best" or "previous", got {self.compare!r}.'
            )
        if self.window > self.max_steps:
            raise ValueError(
                f"Aggressive: the bound is looked at every {self.window} E-steps, but the loop "
                f"ends after {self.max_steps}. Expected: window at most max_steps. "
                f"Try: window={max(1, self.max_steps // 2)}."
            )
        if not (self.count is None or callable(self.count)):
            raise TypeError(
                f"Aggressive: count must be a function of the batch, got {self.count!r}. "
                f"Try: count=lambda x, lengths: lengths.sum()."
            )

    @classmethod
    def paper(cls, kind: Literal["text", "image"], **changes: Any) -> Aggressive:
        """The settings of the published code, for its texts or its images.

        Its loops clip at 5.0 (``clip_norm=5.0`` in ``fit``) and average the loss of texts per
        word (``count=lambda x, lengths: ...``). Its fresh batches are whole training batches of
        texts, or different images; those of ``fit`` are rows drawn with replacement, those of
        ``step(batches=...)`` whatever is given.

        Args:
            kind: "text" (windows of 15, ended by the first drop) or "image" (windows of 10, ended
                by the fifth value below the best).
            **changes: Other settings than theirs.
        """
        kinds = {
            "text": {"window": 15, "patience": 1, "compare": "previous", "reference": 32},
            "image": {"window": 10, "patience": 5, "compare": "best", "reference": 50},
        }
        if kind not in kinds:
            raise ValueError(f'Aggressive.paper: kind must be "text" or "image", got {kind!r}.')
        common: dict[str, Any] = {
            "max_steps": 99,
            "first_loss": 1e4,
            "clip_both": True,
            "annealed_test": True,
            "by_batch": True,
            "move_buffers": True,
        }
        return cls(**(common | kinds[kind] | changes))

    @property
    def needs_valid(self) -> bool:  # type: ignore[override]
        """Whether it ends by the mutual information on held-out data."""
        return self.stop == "mutual information"

    def start(self) -> State:
        return {
            "aggressive": True,
            "information": float(self.first_information),
            "drops": 0,
            "epochs": 0,
        }

    def step(
        self, em: Mover, batch: Batch, fresh: Iterator[Batch] | None, state: State
    ) -> StepRecord:
        if not state["aggressive"]:
            return em.take("joint", batch)
        if fresh is None:
            raise ValueError(
                "Aggressive: its inner loop runs on fresh batches, and step() was given none. "
                "Expected: em.step(x, batches=...), an iterator of batches. "
                "Try: pv.fit, which draws them; or batches=loader, a DataLoader of the same data."
            )
        steps = self._inner_loop(em, batch, fresh)
        options = {"clip_both": self.clip_both, "move_buffers": self.move_buffers}
        record = em.take("model", batch, **options)
        record.inner_steps = steps
        return record

    def _inner_loop(self, em: Mover, batch: Batch, fresh: Iterator[Batch]) -> int:
        window, before = _Window(), self.first_loss
        for number in range(1, self.max_steps + 1):
            current = batch if number == 1 and self.start_on_batch else _next(fresh, batch)
            options = {"clip_both": self.clip_both, "move_buffers": self.move_buffers}
            record = _inner(em, current, number, **options)
            loss = -(record.objective if self.annealed_test else record.elbo)
            count = self.count(*current.args, **current.kwargs) if self.count else record.size
            window.add(loss * record.size, count)
            if number % self.window == 0:
                mean = window.mean()
                if mean > before:
                    return number
                before, window = mean, _Window()
        return self.max_steps

    def end_epoch(self, em: Mover, valid: Batch | None, state: State) -> dict[str, Any]:
        said: dict[str, Any] = {"aggressive": state["aggressive"]}
        if not state["aggressive"]:
            return said
        state["epochs"] += 1
        if isinstance(self.stop, int):
            state["aggressive"] = state["epochs"] < self.stop
        elif self.stop == "mutual information":
            information = self.information(em, valid)
            dropped = not information >= state["information"]  # NaN is no gain either
            state["drops"] += int(dropped)
            state["aggressive"] = state["drops"] < self.patience
            if self.compare == "previous" or not dropped:
                state["information"] = information
            said["mutual_information"] = information
        return said

    def information(self, em: Mover, valid: Batch | None) -> float:
        """I_q(x; z) on held-out data, summed over latent sites, nats."""
        if valid is None:
            raise ValueError(
                "Aggressive: it ends by the mutual information on held-out data, and there are "
                "none. Expected: validation data at the end of an epoch. Try: valid=0.1 in "
                "pv.fit; em.end_epoch(x_valid); or pv.Aggressive(stop=5), so many epochs."
            )
        rows = next((len(a) for a in (*valid.args, *valid.kwargs.values()) if _is_data(a)), None)
        size = self.reference if self.by_batch and rows is not None else None
        parts = [valid] if size is None else list(_pieces(valid, rows, size))
        total = weight = 0.0
        for part in parts:
            report = collapse_report(
                em.model,
                em.guide,
                *part.args,
                particles=1,
                reference=self.reference,
                **part.kwargs,
            )
            known = [i for i in report.mutual_information.values() if i is not None]
            if not known:
                raise ValueError(
                    f"Aggressive: the mutual information cannot be measured here "
                    f"({'; '.join(report.notes)}). Expected: posteriors that depend on the datum "
                    f"alone, and at least two held-out data. "
                    f"Try: pv.Aggressive(stop=5), so many epochs."
                )
            total += report.data * math.fsum(known)
            weight += report.data
        return total / weight


@dataclass(frozen=True)
class SemiAmortized(Schedule):
    r"""Refine the posterior of each datum of the batch by gradient steps, then move both roles.

    The posterior starts at the guide's and takes `steps` steps on its own parameters
    (:class:`pyrovae.traces.refine.Refinement`); the model moves on draws from where they end. The
    guide moves on the bound at the start, or, with `through`, along with the model on the bound at
    the end, whose gradient then goes back through the steps.

    Args:
        steps: Refinement steps a batch.
        lr: Their size; a location counts in units of its scale, a scale by its logarithm.
        momentum: Of the steps.
        clip_norm: Clip each datum's gradient in them at this Euclidean norm.
        through: Train end to end, which needs second derivatives of both programs.

    The record's bound is that of the refined posterior. ``valid_elbo`` in ``fit`` and everything
    that is evaluated later uses the guide as it is, without refinement.

    Source: Kim, Wiseman, Miller, Sontag & Rush (2018), arXiv:1802.02550.

    Example:
        >>> import pyrovae as pv
        >>> pv.SemiAmortized(steps=20).lr
        0.1
    """

    steps: int = 10
    lr: float = 0.1
    momentum: float = 0.0
    clip_norm: float = 5.0
    through: bool = False

    def __post_init__(self) -> None:
        _check_counts(self, "steps")
        for name in ("lr", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"SemiAmortized: {name} must be positive and finite, "
                    f"got {getattr(self, name)}."
                )
        if not 0 <= self.momentum < 1:
            raise ValueError(
                f"SemiAmortized: momentum must be at least 0 and below 1, got {self.momentum}."
            )

    def step(
        self, em: Mover, batch: Batch, fresh: Iterator[Batch] | None, state: State
    ) -> StepRecord:
        if not self.through:
            em.take("guide", batch)
        refined = em.refine(
            batch,
            self.steps,
            self.lr,
            momentum=self.momentum,
            clip_norm=self.clip_norm,
            create_graph=self.through,
        )
        record = em.take("joint" if self.through else "model", batch, terms=refined.terms)
        record.inner_steps = self.steps
        return record


class _Window:
    """A running mean, kept on the device until it is asked for."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0.0

    def add(self, total: Tensor, count: float) -> None:
        self.total = self.total + total.detach().double()
        self.count += float(count)

    def mean(self) -> float:
        return float(self.total) / self.count


class _Noise:
    """The random numbers of the E-steps of a step: the same for each of them, or not."""

    def __init__(self, batch: Batch, common: bool) -> None:
        tensors = [a for a in (*batch.args, *batch.kwargs.values()) if isinstance(a, Tensor)]
        self.device = tensors[0].device if tensors else torch.device("cpu")
        self.state = rng_state(self.device) if common else None

    def again(self) -> None:
        """Go back to the random numbers of the step's beginning."""
        if self.state is not None:
            set_rng_state(self.state, self.device)


def _inner(em: Mover, batch: Batch, number: int, **options: Any) -> StepRecord:
    """One E-step of a loop; what is not finite is said with its place."""
    return _located(em, "guide", batch, number, **options)


def _located(em: Mover, role: str, batch: Batch, number: int, **options: Any) -> StepRecord:
    """One move of several; what is not finite is said with its place and its batch."""
    try:
        return em.take(role, batch, **options)
    except NotFinite as error:
        place = f"E-step {number} of the inner loop" if role == "guide" else f"M-step {number}"
        raise NotFinite(f"{place}: {error}", error.rows, batch) from None


def _next(fresh: Iterator[Batch] | None, batch: Batch) -> Batch:
    """The next fresh batch; without any, the one at hand."""
    if fresh is None:
        return batch
    try:
        return next(fresh)
    except StopIteration:
        raise ValueError(
            "the inner E-steps ran out of fresh batches. Expected: as many as they ask for. "
            "Try: batches=itertools.cycle(...), or something that can be gone through again, "
            "such as a list or a DataLoader."
        ) from None


def _is_data(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _pieces(batch: Batch, rows: int, size: int) -> Iterator[Batch]:
    """Batches of at most `size` rows; a last one of a single row is left out."""

    def cut(value: Any, start: int) -> Any:
        whole = _is_data(value) and len(value) == rows
        return value[start : start + size] if whole else value

    for start in range(0, rows, size):
        if start == 0 or rows - start > 1:
            args = tuple(cut(a, start) for a in batch.args)
            yield Batch(args, {k: cut(v, start) for k, v in batch.kwargs.items()})


def _check_counts(schedule: Schedule, *names: str) -> None:
    for name in names:
        value = getattr(schedule, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(
                f"{type(schedule).__name__}: {name} must be an integer of at least 1, "
                f"got {value!r}."
            )
