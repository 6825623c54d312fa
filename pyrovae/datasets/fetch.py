"""Files of named data sets: a local copy first, then a download, both held against a checksum.

The checksum is of the *uncompressed* bytes: mirrors compress the same file differently.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from pathlib import Path

import numpy as np

__all__ = ["cache_folder", "fetch_gzip", "read_idx"]


def cache_folder() -> Path:
    """Where downloads are kept: the system's cache folder for pyrovae."""
    import pooch

    return Path(pooch.os_cache("pyrovae"))


def fetch_gzip(relative: str, mirrors: tuple[str, ...], sha256: str) -> bytes:
    """The uncompressed bytes of `relative`, such as `"mnist/train-images-idx3-ubyte.gz"`.

    Looks in the folder that the environment variable `PYROVAE_DATA` names, then among earlier
    downloads, then at the mirrors (URLs to which the file's name is appended), in that order.

    Raises:
        ValueError: a local file whose uncompressed bytes are not the expected ones.
        ConnectionError: nothing local and no mirror answered; says what to do.
    """
    own = os.environ.get("PYROVAE_DATA", "")
    folders = [Path(own)] if own else []
    for path in (folder / relative for folder in [*folders, cache_folder()]):
        if path.is_file():
            return _read(path, sha256)
    return _download(relative, mirrors, sha256)


def read_idx(raw: bytes) -> np.ndarray:
    """The array in an idx file of unsigned bytes (LeCun's format): magic number, sizes, data."""
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"read_idx: not an idx file of unsigned bytes: it starts {raw[:4]!r}.")
    dims = raw[3]
    shape = np.frombuffer(raw, ">u4", dims, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape.tolist())


def _read(path: Path, sha256: str) -> bytes:
    try:
        raw = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path}: not a whole gzip file ({error}). Try: fetch it again."
        ) from error
    actual = hashlib.sha256(raw).hexdigest()
    if actual != sha256:
        raise ValueError(
            f"{path}: the uncompressed bytes have sha256 {actual}, expected {sha256}. "
            "Try: delete the file and fetch it again."
        )
    return raw


def _download(relative: str, mirrors: tuple[str, ...], sha256: str) -> bytes:
    """Try each mirror; a file is moved to its place in the cache only once it has been checked."""
    import pooch

    path = cache_folder() / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    failures = []
    for mirror in mirrors:
        url = mirror + path.name
        try:
            pooch.HTTPDownloader(timeout=20)(url, str(part), None)
            raw = _read(part, sha256)
            part.replace(path)
            return raw
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            failures.append(f"{url} ({type(error).__name__})")
        finally:
            part.unlink(missing_ok=True)
    raise ConnectionError(
        f"{relative}: no local copy, and no mirror gave it: {'; '.join(failures)}. Try: set "
        f"PYROVAE_DATA=path/to/data where path/to/data/{relative} is a copy; put that file at "
        f"{path}; or use pyrovae.datasets.digits(), which needs no download."
    )
