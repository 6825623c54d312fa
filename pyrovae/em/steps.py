"""One step: the batch it takes, what it saw, why it was refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Batch", "NotFinite", "StepRecord", "batches_from"]


@dataclass
class Batch:
    """The arguments of both programs for some data, and the rows of the data if they are known."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    index: Tensor | None = None

    @classmethod
    def of(cls, item: Any) -> Batch:
        """A batch as it is, a dict of keyword arguments, a tuple of arguments, or one argument."""
        if isinstance(item, cls):
            return item
        if isinstance(item, dict):
            return cls((), item)
        return cls(tuple(item) if isinstance(item, (list, tuple)) else (item,))


def batches_from(source: Iterable[Any]) -> Iterator[Batch]:
    """Batches without end from anything that can be gone through again, else until it ends."""
    if iter(source) is source:
        yield from (Batch.of(item) for item in source)
        return
    while True:
        count = 0
        for item in source:
            count += 1
            yield Batch.of(item)
        if not count:
            return


@dataclass
class StepRecord:
    """What one step saw.

    Attributes:
        elbo: The true bound, nats a datum.
        objective: What was maximized, nats a datum.
        size: B, the number of data in the step.
        grad_norm: Euclidean norm of the gradient of the parameters that stepped (of both roles
            where both are clipped together), before clipping.
        role: Whose parameters moved last: "joint", "guide" (an E-step) or "model" (an M-step).
            The numbers above are of that move.
        inner_steps: E-steps taken before it.
        converged: Whether the E-steps came to rest, where the schedule looks.
        figures: What else the objective says of the move (``kl``, ``kl_weight``), scalars.
    """

    elbo: Tensor
    objective: Tensor
    size: int
    grad_norm: Tensor | None = None
    role: str = "joint"
    inner_steps: int = 0
    converged: bool | None = None
    figures: dict[str, Tensor] = field(default_factory=dict)


class NotFinite(FloatingPointError):
    """A step was refused because a number was not finite.

    `rows` are the rows of its batch that caused it, as far as they are known; `batch` is the batch
    where it was not the one given to ``step``.
    """

    def __init__(
        self, message: str, rows: list[int] | None = None, batch: Batch | None = None
    ) -> None:
        super().__init__(message)
        self.rows = rows or []
        self.batch = batch
