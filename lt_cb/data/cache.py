"""Cache arrays on disk between runs.

The name of a cache is a hash of all that its content depends on. A damaged cache is made again.
"""

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]


def stamp(file: Path) -> str:
    """Return a text that changes when a file changes: its path, size, and times of change."""
    try:
        stat = file.stat()
    except OSError:  # a broken link
        return f"{file}\0\n"
    return f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\n"


def cache_folder() -> Path:
    """Return the folder of caches: ``$LT_CB_CACHE``, or else ``lt_cb`` in the user's cache directory."""
    try:
        home = Path.home()
    except RuntimeError:  # the user of a container may have no home
        home = Path(tempfile.gettempdir())
    user_cache = os.environ.get("XDG_CACHE_HOME") or home / ".cache"
    return Path(os.environ.get("LT_CB_CACHE") or Path(user_cache, "lt_cb"))


def reserve(stream: IO[bytes], size: int) -> None:
    """Pre-allocate disk space for a memory-mapped file, or raise OSError: a full disk would kill the process later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(stream.fileno(), 0, size)


def cache_file(*keys: str | bytes) -> Path:
    """Return the path of the cache whose content depends on the keys."""
    digest = hashlib.sha256(b"".join(map(os.fsencode, keys))).hexdigest()
    return cache_folder() / f"{digest[:32]}.npz"


def read_cache(cache: Path) -> Arrays | None:
    """Return the arrays of a cache, or None if it is missing or damaged."""
    try:
        with np.load(cache, allow_pickle=False) as archive, cache.open("rb") as stream:
            # zip compares the CRC-32 of a member only at its end, and numpy stops reading before: a flipped bit in a
            # shape would go unnoticed. So read all of it first, which takes 0.1 s for the 180 MB of CIFAR-10.
            # A flipped bit in the directory's lengths can hide a member: compare with the number in its last bytes.
            stream.seek(-12, os.SEEK_END)
            if archive.zip.testzip() is not None or len(archive.files) != int.from_bytes(stream.read(2), "little"):
                return None
            return dict(archive)
    except Exception:  # damaged headers make numpy and zip raise all kinds of errors
        return None


def cached(
    name: str, files: Iterable[Path], action: str, make: Callable[[], npt.NDArray[Any]], key: str
) -> npt.NDArray[Any]:
    """Return an array that depends on a key and on files: from the cache, or made and written there."""
    cache = cache_file(key, *map(stamp, files))
    found = (read_cache(cache) or {}).get(name)
    if found is None:
        found = make()
        write_cache(cache, action, {name: found})
    return found


def write_cache(cache: Path, action: str, arrays: Arrays) -> None:
    """Write a cache. If that fails, warn that the next start does ``action`` again ("decodes the images")."""
    temporary = None
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, cache)  # atomic: another process sees the whole file or none
    except OSError as error:
        warnings.warn(f"nothing could be cached ({error}); the next start {action} again.", stacklevel=2)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
