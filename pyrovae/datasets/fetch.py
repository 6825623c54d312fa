"""Files of named data sets: a local copy first, then a download, both held against a checksum.

The checksum of a compressed file is of its *uncompressed* bytes: mirrors compress the same file
differently.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

__all__ = ["cache_folder", "fetch", "fetch_bytes", "fetch_gzip", "local_copy", "read_idx"]

T = TypeVar("T")


def cache_folder() -> Path:
    """Where downloads are kept: the system's cache folder for pyrovae."""
    import pooch

    return Path(pooch.os_cache("pyrovae"))


def fetch_gzip(relative: str, mirrors: tuple[str, ...], sha256: str) -> bytes:
    """The uncompressed bytes of `relative`, such as `"mnist/train-images-idx3-ubyte.gz"`.

    As :func:`fetch`, held against a checksum.

    Raises:
        ValueError: a local file whose uncompressed bytes are not the expected ones.
        ConnectionError: nothing local and no mirror answered; says what to do.
    """
    return fetch_bytes(relative, mirrors, sha256, gzip.decompress)


def fetch_bytes(
    relative: str,
    mirrors: tuple[str, ...],
    sha256: str,
    unpack: Callable[[bytes], bytes] = bytes,
) -> bytes:
    """The bytes of `relative`, such as `"text/names.txt"`: :func:`fetch`, held against a checksum.

    Args:
        relative: as in :func:`fetch`.
        mirrors: likewise.
        sha256: of the bytes, after `unpack`.
        unpack: from the file's bytes to those that are returned.

    Raises:
        ValueError, ConnectionError: as :func:`fetch_gzip`.
    """
    return fetch(relative, mirrors, lambda path: _read(path, sha256, unpack))


def fetch(relative: str, mirrors: tuple[str, ...], read: Callable[[Path], T]) -> T:
    """What `read` makes of the file `relative`, such as `"mnist/train-images-idx3-ubyte.gz"`.

    Looks in the folder that the environment variable `PYROVAE_DATA` names, then among earlier
    downloads, then at the mirrors, in that order.

    Args:
        relative: the file, below any of these folders.
        mirrors: a URL that ends in `/` is followed by the file's name; any other is the file's.
        read: raises ValueError for a file that is not the expected one.

    Raises:
        ValueError: from `read`, of a local file.
        ConnectionError: nothing local and no mirror answered; says what to do.
    """
    path = local_copy(relative)
    return _download(relative, mirrors, read) if path is None else read(path)


def local_copy(relative: str) -> Path | None:
    """The path of `relative` in the folder `PYROVAE_DATA` or among earlier downloads, or None."""
    own = os.environ.get("PYROVAE_DATA", "")
    folders = [Path(own)] if own else []
    found = (folder / relative for folder in [*folders, cache_folder()])
    return next((path for path in found if path.is_file()), None)


def read_idx(raw: bytes) -> np.ndarray:
    """The array in an idx file of unsigned bytes (LeCun's format): magic number, sizes, data."""
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"read_idx: not an idx file of unsigned bytes: it starts {raw[:4]!r}.")
    dims = raw[3]
    shape = np.frombuffer(raw, ">u4", dims, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape.tolist())


def _read(path: Path, sha256: str, unpack: Callable[[bytes], bytes]) -> bytes:
    try:
        raw = unpack(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path}: not a whole gzip file ({error}). Try: fetch it again."
        ) from error
    actual = hashlib.sha256(raw).hexdigest()
    if actual != sha256:
        raise ValueError(
            f"{path}: the {'' if unpack is bytes else 'uncompressed '}bytes have sha256 {actual}, "
            f"expected {sha256}. "
            "Try: delete the file and fetch it again."
        )
    return raw


def _download(relative: str, mirrors: tuple[str, ...], read: Callable[[Path], T]) -> T:
    """Try each mirror; a file is moved to its place in the cache only once it has been checked."""
    import pooch

    path = cache_folder() / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    failures = []
    for mirror in mirrors:
        url = mirror + path.name * mirror.endswith("/")
        try:
            pooch.HTTPDownloader(timeout=20)(url, str(part), None)
            content = read(part)
            part.replace(path)
            return content
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            failures.append(f"{url} ({type(error).__name__})")
        finally:
            part.unlink(missing_ok=True)
    raise ConnectionError(
        f"{relative}: no local copy, and no mirror gave it: {'; '.join(failures)}. Try: set "
        f"PYROVAE_DATA=path/to/data where path/to/data/{relative} is a copy; put that file at "
        f"{path}; or use pyrovae.datasets.digits(), which needs no download."
    )
