"""Arrays kept on disk between two starts."""

import hashlib
import os
import tempfile
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]


def stamp(file: Path) -> str:
    """Return what changes when a file does: its path, size, and times of change."""
    stat = file.stat()
    return f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\n"


def cache_folder() -> Path:
    """Return where caches are: ``$LT_CB_CACHE``, else in the user's cache directory."""
    try:
        home = Path.home()
    except RuntimeError:  # a user of a container who has none
        home = Path(tempfile.gettempdir())
    user_cache = os.environ.get("XDG_CACHE_HOME") or home / ".cache"
    return Path(os.environ.get("LT_CB_CACHE") or Path(user_cache, "lt_cb"))


def reserve(stream: IO[bytes], size: int) -> None:
    """Take the room of a file that is written through memory, where a full disk would end the process.

    Raises:
        OSError: if there is not as much.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(stream.fileno(), 0, size)


def cache_file(*keys: str | bytes) -> Path:
    """Return the cache of what depends on the keys."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update(os.fsencode(key))
    return cache_folder() / f"{digest.hexdigest()[:32]}.npz"


def read_cache(cache: Path) -> Arrays | None:
    """Return what a cache holds, None if there is none or it is damaged."""
    try:
        with np.load(cache, allow_pickle=False) as archive, cache.open("rb") as stream:
            # numpy stops at the end of an array, and zip compares its CRC-32 only at the end of a member: a flipped bit
            # in a shape would go unseen. Reading all of it first takes 0.1 s for the 180 MB of CIFAR-10. One in a
            # length of the archive's directory can hide a member: how many there are stands in the last 22 bytes.
            stream.seek(-12, os.SEEK_END)
            if archive.zip.testzip() is not None or len(archive.files) != int.from_bytes(stream.read(2), "little"):
                return None
            return dict(archive)
    except Exception:  # numpy and zip raise whatever a damaged header leads them to; the remedy is always the same
        return None


def write_cache(cache: Path, what: str, arrays: Arrays) -> None:
    """Write a cache, or warn that it cannot be written; ``what`` says in the warning what has to be done again."""
    temporary = None
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, cache)  # atomic: another process sees the whole file or none
    except OSError as error:
        warnings.warn(f"nothing could be cached ({error}); the next start {what} again.", stacklevel=2)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
