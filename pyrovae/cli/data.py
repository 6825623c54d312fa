"""Data for the command line: a name or a file, split into training and test rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyrovae.datasets import NAMES, Dataset, check_choice, from_file, load

__all__ = ["NAMED", "SPLITS", "choose", "load_split"]

NAMED = tuple(n for n in NAMES if n not in ("names", "shakespeare", "lagging_synthetic"))
SPLITS = ("train", "test")
_HELD_OUT = 0.2  # of a file without a split of its own
_ORDER = 0  # seed of that split and of `choose`; never the run's, so that runs can be compared


def load_split(data: str, binarize: str | None, split: str) -> Dataset:
    """The rows `split` of a named data set or of a file.

    Args:
        data: a name; or a path to `.npy` or `.npz`, `file.npz:key` for one array of several.
        binarize: "dynamic", "fixed" or "none"; None is the data set's own default.
        split: "train" or "test".

    Raises:
        ValueError: an unknown name (says the nearest known one) or split.
        FileNotFoundError: no such file.
    """
    check_choice("--split", split, SPLITS)
    how = {} if binarize is None else {"binarize": None if binarize == "none" else binarize}
    if data in NAMED:
        return load(data, split=split, **how)
    if data in NAMES:
        raise ValueError(
            f"--data {data}: a text, and the command trains VAEs of images and tables. Try: "
            f"SequenceVAE of pyrovae.models with pyrovae.datasets.{data}(), in Python."
        )
    path, key = Path(data), None
    if not path.exists() and ":" in path.name:
        path, key = path.with_name(path.name.rpartition(":")[0]), path.name.rpartition(":")[2]
    if not path.exists() and not path.suffix:
        check_choice("--data: not a file, and as a data set", data, NAMED)
    if path.suffix == ".npz" and path.is_file() and key is None:
        with np.load(path, allow_pickle=False) as archive:
            own = set(SPLITS) <= set(archive.files)
        if own:
            return _floating(from_file(path, split), split, **how)
    whole = from_file(path, key)
    if len(whole) < 2:
        raise ValueError(
            f"--data {data}: {len(whole)} row. Expected: some to train on, some to test."
        )
    held_out = max(_HELD_OUT, 1 / len(whole))
    parts = dict(zip(SPLITS, whole.split(held_out, _ORDER), strict=True))
    return _floating(parts[split], split, **how)


def choose(rows: int, limit: int | None) -> Tensor:
    """At most `limit` of so many row numbers, always the same; a larger limit adds to them."""
    if not limit or limit >= rows:
        return torch.arange(rows)
    order = np.random.RandomState(_ORDER).permutation(rows)
    return torch.from_numpy(np.sort(order[:limit]))


def _floating(data: Dataset, split: str, binarize: str | None = None) -> Dataset:
    x = data.args[0]
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    return Dataset((x,), name=f"{data.name}-{split}", binarize=binarize)  # type: ignore[arg-type]
