"""Data in batches: the arguments of two programs, cut along the data, and a seed for each piece.

A model's own arguments may be anything. What is cut is what is as long as the data: the first
tensor among the arguments says how long that is. Every piece of work has a seed made from the
caller's seed and its place (first row, block number), so that no result depends on how the rest
was cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyrovae.traces.terms import Terms

__all__ = ["Batches", "derived_seed"]


def derived_seed(*parts: int) -> int:
    """A seed of its own for each tuple of integers."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Batches:
    """The arguments of the programs, cut along the data.

    The number of data is the length of the first tensor among the arguments; every tensor of that
    length is cut, everything else is passed on as it is. A data set (anything with ``.realize()``)
    in first place stands for the arguments it realizes. Without a tensor, or if everything fits,
    there is one batch.
    """

    def __init__(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch_size: int, who: str
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"{who}: batch_size must be at least 1, got {batch_size}.")
        if args and hasattr(args[0], "realize"):
            realized, named = args[0].realize()
            args, kwargs = (*realized, *args[1:]), {**named, **kwargs}
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.dim()]
        self.args, self.kwargs = args, dict(kwargs)
        self.rows = tensors[0].shape[0] if tensors else None
        if self.rows == 0:
            raise ValueError(
                f"{who}: no data: the first tensor has shape {tuple(tensors[0].shape)}."
            )
        self.device = tensors[0].device if tensors else torch.device("cpu")
        self.size = batch_size if self.rows is None else min(batch_size, self.rows)

    def __len__(self) -> int:
        return 1 if self.rows is None else -(-self.rows // self.size)

    def __iter__(self) -> Iterator[tuple[int, tuple[Any, ...], dict[str, Any]]]:
        """First row, arguments and keyword arguments of each batch."""
        if self.rows is None or self.size == self.rows:
            yield 0, self.args, self.kwargs
            return
        for start in range(0, self.rows, self.size):
            cut = slice(start, start + self.size)
            args = tuple(self._cut(a, cut) for a in self.args)
            yield start, args, {k: self._cut(v, cut) for k, v in self.kwargs.items()}

    def subset(self, index: Tensor) -> Batches:
        """The same for some of the rows."""
        args = tuple(self._cut(a, index) for a in self.args)
        kwargs = {k: self._cut(v, index) for k, v in self.kwargs.items()}
        return Batches(args, kwargs, self.size, "subset")

    def _cut(self, value: Any, cut: slice | Tensor) -> Any:
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == self.rows:
            return value[cut]
        return value

    def check_plate(self, terms: Terms, rows: int | None, who: str) -> None:
        """Raise if the data plate does not hold the rows that were passed."""
        plate = terms.plate
        is_random = plate.full_size != plate.size and (rows is None or rows != plate.size)
        if is_random or (len(self) > 1 and rows != plate.size):
            raise ValueError(
                f"{who}: the data plate '{plate.name}' holds {plate.size} of {plate.full_size} "
                f"elements, while {rows if rows is not None else 'no'} rows of data were passed: "
                f"it cannot be told which datum a result belongs to. "
                f"Expected: one element of the plate a row. "
                f"Try: pyro.plate('{plate.name}', len(x)) without subsample_size for evaluation, "
                f"the minibatch itself as argument, or batch_size=len(x)."
            )
