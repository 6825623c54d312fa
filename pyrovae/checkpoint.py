"""States on disk: one safetensors file and one JSON file, never half written.

A state is nested dictionaries and lists of tensors and plain values. Tensors go to
``NAME.safetensors`` under their path (``optimizers/guide/state/3/exp_avg``), everything else to
``NAME.json`` with a placeholder where a tensor was. Nothing is pickled: loading executes nothing.

Both files carry the same random tag, and each is written beside its target and then renamed; a
pair whose tags differ (the machine stopped between the two renames) is refused, and the previous
pair is kept as ``NAME.previous.*`` until the new one is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

__all__ = [
    "CheckpointError",
    "load_state",
    "rng_state",
    "save_state",
    "set_rng_state",
    "write_atomic",
]

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or not one of pyrovae's."""


def save_state(folder: Path, name: str, state: dict[str, Any]) -> None:
    """Write a state to ``folder/name.safetensors`` and ``folder/name.json``.

    Raises:
        TypeError: The state holds something that is neither a tensor nor a JSON value; the
            message names its path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    plain = _split(state, "", tensors)
    tag = uuid.uuid4().hex
    blob = save(tensors, metadata={"pyrovae": str(FORMAT), "tag": tag})
    header = {
        "pyrovae": FORMAT,
        "tag": tag,
        "sha256": hashlib.sha256(blob).hexdigest(),
        "state": plain,
    }
    text = json.dumps(header, indent=1, allow_nan=True)
    tensor_file, plain_file = folder / f"{name}.safetensors", folder / f"{name}.json"
    for file in (tensor_file, plain_file):
        if file.exists():
            os.replace(file, _previous(file))
    write_atomic(tensor_file, blob)
    write_atomic(plain_file, text.encode())
    for file in (tensor_file, plain_file):
        _previous(file).unlink(missing_ok=True)


def load_state(folder: Path, name: str) -> dict[str, Any]:
    """Read what :func:`save_state` wrote, or the pair before it if the last write was cut short.

    Raises:
        CheckpointError: No checkpoint, a damaged one, or a file of another origin; the message
            says which file and why.
    """
    files = [folder / f"{name}.safetensors", folder / f"{name}.json"]
    try:
        return _load(*files)
    except CheckpointError as error:
        previous = [_previous(file) for file in files]
        pairs = [(a, b) for a in (files[0], previous[0]) for b in (files[1], previous[1])]
        for pair in pairs[1:]:
            if all(file.exists() for file in pair) and any(file in previous for file in pair):
                try:
                    return _load(*pair)
                except CheckpointError:
                    continue
        raise error from None


def _load(tensor_file: Path, plain_file: Path) -> dict[str, Any]:
    for file in (tensor_file, plain_file):
        if not file.is_file():
            raise CheckpointError(
                f"checkpoint: {file} is missing. "
                f"Expected: {tensor_file.name} and {plain_file.name} side by side. "
                f"Try: the folder given as out= when the run was trained."
            )
    advice = "Try: a copy of the folder from before, or train again; nothing has been changed."
    try:
        header = json.loads(plain_file.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"checkpoint: {plain_file} is damaged: {error}. {advice}") from None
    if not isinstance(header, dict) or header.get("pyrovae") != FORMAT:
        raise CheckpointError(
            f"checkpoint: {plain_file} was not written by pyrovae (format {FORMAT}). {advice}"
        )
    blob = tensor_file.read_bytes()
    if hashlib.sha256(blob).hexdigest() != header.get("sha256"):
        raise CheckpointError(
            f"checkpoint: {tensor_file} is truncated or altered, or belongs to another "
            f"{plain_file.name}. {advice}"
        )
    try:
        with safe_open(tensor_file, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint: {tensor_file} is damaged: {error}. {advice}") from None
    return _join(header["state"], tensors)


def write_atomic(file: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, file)


def _previous(file: Path) -> Path:
    return file.with_name(f"{file.stem}.previous{file.suffix}")


def _split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(value, dict):
        keys = [[type(k).__name__, str(k)] for k in value]
        return {
            "keys": keys,
            "values": [_split(v, f"{path}/{k}", tensors) for k, v in value.items()],
        }
    if isinstance(value, (list, tuple)):
        items = [_split(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"checkpoint: {path.strip('/')} is a {type(value).__name__}. "
        f"Expected: tensors, numbers, strings, lists and dictionaries. "
        f"Try: keep other objects out of the optimizer's and scheduler's state."
    )


def _join(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "keys" in value:
        kinds = {"int": int, "str": str}
        keys = [kinds[kind](key) for kind, key in value["keys"]]
        return {k: _join(v, tensors) for k, v in zip(keys, value["values"], strict=True)}
    if "tuple" in value:
        return tuple(_join(v, tensors) for v in value["tuple"])
    return [_join(v, tensors) for v in value["list"]]


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators, to be kept with a checkpoint."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Put back what :func:`rng_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
