r"""OMNIGLOT in 28x28: 1,623 characters of 50 alphabets, each drawn once by 20 people.

The drawings come as two archives of 105x105 binary images (Lake, Salakhutdinov & Tenenbaum 2015).
What the literature calls "OMNIGLOT 28x28" is a file of Burda, Grosse & Salakhutdinov (2016,
arXiv:1509.00519) that no archive holds; here the images are averaged over areas, from the
originals, and drawers are split, not drawings. Numbers are of the same kind as those of the
literature, and not comparable with them.
"""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch

from pyrovae.datasets.checks import check_choice
from pyrovae.datasets.dataset import Binarize, Dataset
from pyrovae.datasets.fetch import cache_folder, fetch, local_copy

__all__ = ["build_omniglot", "omniglot"]

_FILE = "omniglot/omniglot_28_box.npz"
_PIXELS = (
    "d76a1451bb8709f84cd8678e2c1e218339e26c1e23790e402fb39f8144e9a3db"  # of the images' bytes
)
_ZIPS = {  # md5, as published with the drawings
    "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
}
_MIRRORS = (
    "https://github.com/brendenlake/omniglot/raw/master/python/",
    "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/",
)
_TRAIN_DRAWERS = 15


def omniglot(
    split: Literal["train", "test", "all"] = "train",
    binarize: Binarize = "dynamic",
    seed: int = 0,
) -> Dataset:
    """OMNIGLOT: images of 28x28, intensities byte/255 with ink high, binarized by default.

    Read from `PYROVAE_DATA/omniglot/omniglot_28_box.npz` where that exists. Else it is built,
    once, from the two archives of https://github.com/brendenlake/omniglot, which are looked for
    in `PYROVAE_DATA/omniglot/` and downloaded where they are not there; the result is kept in the
    system's cache folder. See :func:`build_omniglot`.

    Args:
        split: `"train"` (24,345 drawings, by drawers 1-15), `"test"` (8,115, by drawers 16-20) or
            `"all"`. Every character is in both.
        binarize: `"dynamic"`, `"fixed"`, or None for grey values in [0, 1].
        seed: the seed of `"fixed"`.

    Returns:
        One argument `[N, 28, 28]` in torch's default dtype; `labels` `[N]` are the characters,
        0 to 1622.

    Raises:
        ConnectionError: no local copy and no network; says what to do.
        ValueError: a local copy whose pixels are not the expected ones.

    Source: Lake, Salakhutdinov & Tenenbaum (2015), Human-level concept learning, Science 350.
    """
    check_choice("omniglot: split", split, ["train", "test", "all"])
    images, characters, drawers = _load()
    rows = {
        "train": drawers <= _TRAIN_DRAWERS,
        "test": drawers > _TRAIN_DRAWERS,
        "all": slice(None),
    }[split]
    return Dataset(
        (torch.from_numpy(images[rows]).to(torch.get_default_dtype()) / 255,),
        name=f"omniglot-{split}",
        likelihood="bernoulli" if binarize else "normal",
        binarize=binarize,
        seed=seed,
        labels=torch.from_numpy(characters[rows].astype(np.int64)) - 1,
    )


def build_omniglot(background: str | Path, evaluation: str | Path, out: str | Path) -> Path:
    """Make `omniglot_28_box.npz` from the two archives of drawings.

    A drawing (ink black on white, 105x105) is inverted and averaged over areas to 28x28 bytes by
    Pillow's box filter. Drawings are ordered by alphabet, character and drawer. The file holds
    `images` `[N, 28, 28]`, `char_id` (the archives' own number of the character), `drawer` and
    `background` `[N]`.

    Args:
        background: `images_background.zip` of https://github.com/brendenlake/omniglot.
        evaluation: `images_evaluation.zip`.
        out: the file to write, in a folder that will be made.

    Returns:
        The file.

    Raises:
        ValueError: an archive that cannot be read or holds no drawing.
    """
    found = [
        (*key, is_background, image)
        for archive, is_background in ((background, True), (evaluation, False))
        for key, image in _drawings(Path(archive))
    ]
    found.sort(key=lambda drawing: drawing[:4])
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.stem}.part.npz")
    np.savez_compressed(
        part,
        images=np.stack([drawing[5] for drawing in found]),
        char_id=np.array([drawing[2] for drawing in found], np.uint16),
        drawer=np.array([drawing[3] for drawing in found], np.uint8),
        background=np.array([drawing[4] for drawing in found], bool),
    )
    part.replace(out)
    return out


def _drawings(archive: Path) -> Iterator[tuple[tuple[str, str, int, int], np.ndarray]]:
    """(alphabet, character, number of the character, drawer) and image of each drawing."""
    from PIL import Image

    try:
        with zipfile.ZipFile(archive) as files:
            names = [n for n in files.namelist() if n.endswith(".png") and "__MACOSX" not in n]
            if not names:
                raise ValueError("it holds no .png")
            for name in names:
                path = PurePosixPath(name)  # images_background/Greek/character07/0400_12.png
                number, drawer = map(int, path.stem.split("_"))
                with Image.open(io.BytesIO(files.read(name))) as image:
                    ink = 255 - np.asarray(image.convert("L"))
                small = Image.fromarray(ink).resize((28, 28), Image.Resampling.BOX)
                key = (path.parts[-3], path.parts[-2], number, drawer)
                yield key, np.asarray(small)
    except (zipfile.BadZipFile, OSError, ValueError, IndexError) as error:
        raise ValueError(
            f"{archive}: not the archive of drawings that was expected ({error}). Expected: "
            "ALPHABET/characterNN/NUMBER_DRAWER.png inside. Try: fetch it again from "
            f"{_MIRRORS[0]}{archive.name}."
        ) from error


def _load() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    path = local_copy(_FILE)
    if path is not None:
        return _read(path, built=path.is_relative_to(cache_folder()))
    try:
        archives = [fetch(f"omniglot/{name}", _MIRRORS, _checked_zip) for name in _ZIPS]
    except ConnectionError as error:
        raise ConnectionError(
            f"omniglot: no local copy of {_FILE}, and it could not be built. {error} Or, with "
            f"both archives at hand: pyrovae.datasets.build_omniglot(background, evaluation, "
            f"'path/to/data/{_FILE}')."
        ) from None
    return _read(build_omniglot(*archives, cache_folder() / _FILE), built=True)


def _checked_zip(path: Path) -> Path:
    """The path in the end, once the archive's bytes are those published."""
    name = next(name for name in _ZIPS if path.name.startswith(name))
    actual = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if actual != _ZIPS[name]:
        raise ValueError(
            f"{path}: md5 {actual}, expected {_ZIPS[name]}. "
            "Try: delete the file and fetch it again."
        )
    return path if path.name == name else cache_folder() / "omniglot" / name


def _read(path: Path, built: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        images, characters, drawers = (file[k] for k in ("images", "char_id", "drawer"))
    actual = hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()
    if actual != _PIXELS:
        what = f"{path}: the pixels have sha256 {actual}, expected {_PIXELS}."
        if not built:
            raise ValueError(f"{what} Try: delete the file and fetch or build it again.")
        warnings.warn(
            f"{what} Another version of Pillow averages otherwise, perhaps: compare log p(x) only "
            "with numbers on this very file.",
            stacklevel=4,
        )
    return images, characters, drawers
