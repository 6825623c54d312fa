"""What the models here ask of a batch, and messages that say where, what came and what to try."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrovae.datasets import check_values

__all__ = ["as_count", "check_batch", "check_finite", "check_initial", "generator_of"]


def as_count(where: str, name: str, value: object) -> int:
    """Return a whole number of at least 1, or raise ValueError.

    >>> as_count("GaussianMixture", "classes", 3)
    3
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{where}: {name} must be a whole number of at least 1, got {value!r}. "
            f"Try: {name}=2, for instance."
        )
    return value


def check_batch(where: str, x: object, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise unless x is a batch `[B, *shape]` of the dtype and on the device of `like`.

    Only the tensor's type is looked at, never its values, so that a program can be captured.
    """
    site = f'{where}, site "x"'
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{site}: expected a tensor, got {type(x).__name__}. Try: torch.as_tensor(x)."
        )
    if x.dim() != len(shape) + 1 or tuple(x.shape[1:]) != shape:
        wanted = ", ".join(["B", *map(str, shape)])
        raise ValueError(
            f"{site}: expected a batch of shape [{wanted}], got {list(x.shape)}. Try: a model "
            f"built for data of shape {tuple(x.shape[1:])}, x.reshape(-1, {wanted[3:]}), or "
            "x[None] for a single datum."
        )
    if x.shape[0] == 0:
        raise ValueError(
            f"{site}: the batch is empty. Expected at least one datum. Try: check what selected "
            "these rows."
        )
    if x.dtype != like.dtype:
        raise ValueError(
            f"{site}: the data are {x.dtype}, the model's parameters {like.dtype}; expected one "
            f"dtype. Try: x.to({like.dtype})"
            f"{f', or model.to({x.dtype})' if x.is_floating_point() else ''}."
        )
    if x.device != like.device:
        raise ValueError(
            f"{site}: the data are on {x.device}, the model's parameters on {like.device}; "
            f'expected one device. Try: model.to("{x.device}") or x.to("{like.device}").'
        )


def check_finite(where: str, x: Tensor) -> None:
    """Raise ValueError if the data hold NaN (missing values) or inf; row and feature are named."""
    check_values((x,), where=f'{where}, site "x"')


def check_initial(where: str, how: object, known: tuple[str, ...]) -> None:
    """Raise ValueError unless `how` is one of the known ways to start."""
    if how not in known:
        raise ValueError(
            f"{where}: cannot start by {how!r}. Expected one of {', '.join(map(repr, known))}. "
            f"Try: {known[0]!r}, or set the parameters yourself and start from them."
        )


def generator_of(seed: int) -> torch.Generator:
    """A generator of its own, so that the caller's random state stays as it is."""
    return torch.Generator().manual_seed(seed)
