"""Image files as one uint8 array: found, decoded with a progress bar, and cached on disk."""

import hashlib
import os
import tempfile
import warnings
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from rich.progress import track

from lt_cb.errors import InputError

Images = npt.NDArray[np.uint8]


def is_image(name: str) -> bool:
    """Return whether a file name has an extension PIL reads and is not hidden."""
    return name[0] != "." and os.path.splitext(name)[1].lower() in Image.registered_extensions()


def find_images(folder: Path) -> list[Path]:
    """Return the files under ``folder`` that `is_image` takes for images, sorted."""
    return sorted(
        Path(p, name) for p, _, names in os.walk(folder, followlinks=True) for name in names if is_image(name)
    )


def load_images(files: Sequence[Path], image_size: int | None, channels: int, label: str) -> Images:
    """Decode image files, or take them from the cache of an earlier call.

    An image of another size is scaled (bilinear, aspect kept) and cropped at its centre; its EXIF orientation is
    applied. The cache is one file a set of images under ``$LT_CB_CACHE`` (else the user's cache directory). Its name
    is a hash of every file's path, size, and times of change, so a changed file asks for another cache; its
    checksums are verified on reading, and a damaged one is made anew.

    Args:
        files: what to decode, at least one.
        image_size: height and width in pixels; None asks for square images of one size.
        channels: 3 for RGB, 1 for grey.
        label: what the progress bar says.

    Returns:
        uint8 array of shape (N, H, W, channels).

    Raises:
        InputError: (a ValueError) if a file cannot be read as an image, or sizes differ and image_size is None.
    """
    cache = _cache_file(files, image_size, channels)
    images = _read_cache(cache)
    if images is None:
        images = _decode_all(files, image_size or square_size(files[0]), image_size is None, channels, label)
        _write_cache(cache, images)
    return images


def square_size(file: Path) -> int:
    """Return the side of a square image, read from its header; anything else asks the user for ``image_size``."""
    image = _open(file)
    width, height = image.size
    if width != height:
        raise InputError(
            f"'{file}' is {width}x{height} pixels, not square: set --data.image_size to scale and crop all images."
        )
    return width


def _open(file: Path) -> Image.Image:
    try:
        return Image.open(file)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"'{file}' cannot be read as an image ({error}): replace or remove it.") from error


def _decode(file: Path, side: int, strict: bool, channels: int) -> Images:
    with _open(file) as opened:
        try:
            # a second read of the mode and the palette is what convert() does; it also loads the pixels
            image = ImageOps.exif_transpose(opened).convert("RGB" if channels == 3 else "L")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"'{file}' cannot be read as an image ({error}): replace or remove it.") from error
    if image.size != (side, side):
        if strict:
            raise InputError(
                f"'{file}' is {image.width}x{image.height} pixels where others are {side}x{side}: "
                "set --data.image_size to scale and crop all images to one size."
            )
        image = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(side, side, channels)


def _decode_all(files: Sequence[Path], side: int, strict: bool, channels: int, label: str) -> Images:
    images = np.empty((len(files), side, side, channels), np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = pool.map(lambda file: _decode(file, side, strict, channels), files, chunksize=64)
        try:
            for i, image in enumerate(track(decoded, label, len(files), transient=True)):
                images[i] = image
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return images


def _cache_file(files: Sequence[Path], image_size: int | None, channels: int) -> Path:
    digest = hashlib.sha256(f"1 {image_size} {channels}".encode())
    for file in files:
        stat = file.stat()
        digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\n".encode())
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LT_CB_CACHE") or Path(user_cache, "lt_cb"), f"{digest.hexdigest()[:32]}.npz")


def _read_cache(cache: Path) -> Images | None:
    try:
        with np.load(cache) as archive:  # the zip container verifies a CRC-32 of all it reads
            images: Images = archive["images"]
            return images
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write_cache(cache: Path, images: Images) -> None:
    temporary = None
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            np.savez(file, images=images)
        os.replace(temporary, cache)  # atomic: another process sees the whole file or none
    except OSError as error:
        warnings.warn(
            f"the decoded images could not be cached ({error}); the next start decodes them again.", stacklevel=2
        )
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
