"""Folders of runs: a new one for each, and nothing of anyone's overwritten."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["file_name", "new_folder", "replace_folder"]


def file_name(text: str) -> str:
    """The text with nothing in it that a shell would not take: `StudentT-df-5`."""
    return "-".join(re.findall(r"[-\w.]+", text))


def new_folder(name: str, parent: Path = Path("runs")) -> Path:
    """`parent/name`, or `parent/name-2`, `-3`, ... where that is taken."""
    folder, number = parent / name, 1
    while folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return folder


def replace_folder(folder: Path, marker: str) -> Path | None:
    """Make room for a new folder: an old one that holds the file `marker` is moved aside.

    Returns:
        where the old one is now, or None if there was none.

    Raises:
        FileExistsError: there is something else in the folder's place.
    """
    if not folder.exists():
        return None
    if folder.is_dir() and not any(folder.iterdir()):
        return None
    if not folder.is_dir() or not (folder / marker).is_file():
        raise FileExistsError(
            f"{folder} exists and was not made by this command (it holds no {marker}). Expected: "
            "a new or empty "
            "folder. Try: another --out; nothing has been changed."
        )
    aside = new_folder(f"{folder.name}-old", folder.parent)
    os.replace(folder, aside)
    return aside
