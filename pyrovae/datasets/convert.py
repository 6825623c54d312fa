"""What a user has, a tensor, arrays, a file or a name, as a :class:`Dataset`."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pyrovae.datasets.checks import check_choice
from pyrovae.datasets.dataset import Dataset
from pyrovae.datasets.named import NAMES, load

__all__ = ["as_dataset", "from_file"]


def as_dataset(data: Any) -> Dataset:
    """Any data that fits in memory as a :class:`Dataset`.

    Args:
        data: a Dataset (returned as it is); a tensor or numpy array `[N, *]`; a tuple or list of
            them, the model's positional arguments; a dict of them, its keyword arguments; a
            `TensorDataset`; the name of a data set; or a path to a `.npy` or `.npz` file. Floating
            numpy arrays get torch's default dtype; tensors keep theirs.

    Raises:
        TypeError: a DataLoader, or anything else.
        ValueError: an unknown name (says the nearest known one), or what Dataset refuses.

    Example:
        >>> as_dataset((torch.zeros(5, 3), torch.arange(5)))
        Dataset('data', 5 x (3,))
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, str) and data in NAMES:
        return load(data)
    if isinstance(data, (str, os.PathLike)):
        path = Path(data)
        if not path.exists() and not path.suffix:
            check_choice("data: not a file, and as a data set", str(data), NAMES)
        return from_file(path)
    if isinstance(data, (Tensor, np.ndarray)):
        return Dataset((_tensor("data", data),))
    if isinstance(data, TensorDataset):
        return Dataset(data.tensors)
    if isinstance(data, Mapping):
        return Dataset((), {str(k): _tensor(f"data[{k!r}]", x) for k, x in data.items()})
    if isinstance(data, (tuple, list)):
        return Dataset(tuple(_tensor(f"data[{i}]", x) for i, x in enumerate(data)))
    if isinstance(data, DataLoader):
        raise TypeError(
            "as_dataset: a DataLoader makes its own batches and has no rows to take. Try: pass it "
            "to pyrovae.fit as it is, or pass the tensors behind it."
        )
    raise TypeError(
        f"as_dataset: cannot read a {type(data).__name__}. Expected a tensor, an array, a tuple "
        "or dict of them, a Dataset, a name or a path. Try: a table's .to_numpy(); a "
        "torch.utils.data.Dataset in a DataLoader, which pyrovae.fit takes."
    )


def from_file(path: str | os.PathLike[str], key: str | Sequence[str] | None = None) -> Dataset:
    """The data in a `.npy` or `.npz` file; nothing is unpickled.

    Args:
        path: the file.
        key: which array of an `.npz`, or which ones, in the order of the model's arguments. May be
            left out where there is one array.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, arrays of objects, or a key that is missing or must be chosen.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"data: no file {path}; nor is it one of {', '.join(NAMES)}.")
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(
            f"{path}: a {path.suffix or 'nameless'} file. Expected .npy or .npz. "
            "Try: np.save(new_path, array), or pass the tensor itself."
        )
    try:
        if path.suffix == ".npy":
            return Dataset(
                (_tensor(str(path), np.load(path, allow_pickle=False)),), name=path.stem
            )
        with np.load(path, allow_pickle=False) as archive:
            keys = _keys(path, archive.files, key)
            arrays = [_tensor(f"{path}[{k!r}]", archive[k]) for k in keys]
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(
            f"{path}: cannot be read as {path.suffix} ({error}). Expected numbers, as np.save and "
            "np.savez write them; arrays of objects are pickled and are not read."
        ) from error
    return Dataset(tuple(arrays), name=path.stem)


def _keys(path: Path, found: Sequence[str], key: str | Sequence[str] | None) -> list[str]:
    if key is None and len(found) != 1:
        raise ValueError(
            f"{path}: which array? It holds {len(found)}: {', '.join(map(repr, found))}. "
            "Try: from_file(path, key=...), one name or several."
        )
    chosen = list(found) if key is None else [key] if isinstance(key, str) else list(key)
    for name in chosen:
        check_choice(f"{path}: key", name, found)
    return chosen


def _tensor(where: str, x: object) -> Tensor:
    """A tensor as it is; an array of numbers as a tensor, floating ones in the default dtype."""
    if isinstance(x, Tensor):
        return x
    if not isinstance(x, np.ndarray):
        raise TypeError(
            f"{where}: expected a tensor or a numpy array, got {type(x).__name__}. "
            "Try: torch.tensor(...) around the numbers, one array an argument of the model."
        )
    if x.dtype.kind not in "biuf":
        raise TypeError(
            f"{where}: an array of dtype {x.dtype}. Expected numbers. Try: np.asarray(rows, "
            "float), with rows of equal length; text and categories as integer codes."
        )
    tensor = torch.from_numpy(np.array(x, dtype=x.dtype.newbyteorder("=")))
    return tensor.to(torch.get_default_dtype()) if x.dtype.kind == "f" else tensor
