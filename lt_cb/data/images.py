"""Image files as one uint8 array: listed, decoded with a progress bar, and cached on disk."""

import os
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import ExifTags, Image, ImageOps
from rich.progress import track
from torch.nn import functional as F
from torch.utils.data import get_worker_info

from lt_cb.data.cache import cache_file, read_cache, stamp, write_cache
from lt_cb.longtail.subset import Indices
from lt_cb.errors import InputError, enumerate_names

Item = TypeVar("Item")
Images = npt.NDArray[np.uint8]
Interpolation = Literal["bilinear", "bicubic"]
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
DARK = 4096  # of 65536: where 16 bits hold 12, no value is more
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

_dark_said = threading.Lock()  # is taken by the first, and kept


class UnreadableError(InputError):
    """A file cannot be read as an image."""


def is_image(name: str) -> bool:
    """Return whether a file name has an extension PIL reads and is not hidden."""
    return name[0] != "." and os.path.splitext(name)[1].lower() in Image.registered_extensions()


def progress(items: Iterable[Item], label: str, count: int) -> Iterable[Item]:
    """Iterate with a progress bar on a terminal, and without a word elsewhere."""
    return track(items, label, count, transient=True, disable=not sys.stdout.isatty())


def find_images(folder: Path) -> list[Path]:
    """Return the files under ``folder`` that `is_image` takes for images, sorted."""
    return sorted(Path(place, name) for place, names in walk(folder) for name in names if is_image(name))


def walk(folder: Path | str, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[tuple[str, list[str]]]:
    """Yield a folder and each below it, with the names of its files; links are followed, but not in a circle.

    Args:
        folder: where to begin.
        above: device and number of the folders that it lies in.

    Raises:
        InputError: if a folder cannot be read.
    """
    own = folder_id(folder)
    if own in above:
        return
    folders, names = list[str](), list[str]()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                (folders if _is_folder(entry) else names).append(entry.name)
    except OSError as error:
        raise InputError(f"'{folder}' cannot be read ({error.strerror}): change its permissions.") from error
    yield str(folder), names
    for name in folders:
        yield from walk(os.path.join(folder, name), above | {own})


def folder_id(folder: Path | str) -> tuple[int, int]:
    """Return device and number of a folder, by whatever path it is reached."""
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def load_images(
    files: Sequence[Path],
    image_size: int | None,
    channels: int,
    label: str,
    interpolation: Interpolation = "bilinear",
) -> Images:
    """Decode image files to shape (N, H, W, channels), or take them from the cache of an earlier call.

    An image of another size is scaled (aspect kept) and cropped at its centre; its EXIF orientation is
    applied. The cache is one file a set of images under ``$LT_CB_CACHE`` (else the user's cache directory). Its name
    is a hash of every file's path, size, and times of change, so a changed file asks for another cache; its
    checksums are verified on reading, and a damaged one is made anew.

    Args:
        files: what to decode, at least one.
        image_size: height and width in pixels; None asks for square images of one size.
        channels: 3 for RGB, 1 for grey.
        label: what the progress bar says.
        interpolation: of an image that is scaled.

    Raises:
        UnreadableError: if files cannot be read as images; all of them are named.
        InputError: if sizes differ and image_size is None.
    """
    try:
        cache = _images_cache(files, image_size, channels, interpolation)
    except OSError as error:  # as a link that leads nowhere
        raise UnreadableError(f"'{error.filename}' cannot be read ({error.strerror}): replace or remove it.") from error
    cached = read_cache(cache)
    if cached is not None and "images" in cached:
        return cached["images"]
    images, refused = _decode_all(files, image_size, channels, label, interpolation)
    if refused:
        first, *others = [refused[i] for i in sorted(refused)]
        names = enumerate_names([str(files[i]) for i in sorted(refused)[1:]])
        raise type(first)(f"{first}" + (f" {len(others)} more are refused: {names}." if others else ""))
    write_cache(cache, "decodes the images", {"images": images})
    return images


def find_unreadable(
    files: Sequence[Path],
    image_size: int | None,
    channels: int,
    label: str,
    interpolation: Interpolation = "bilinear",
    in_memory: bool = True,
) -> Indices:
    """Return the positions of the files that cannot be read as images, int64 of shape (M,).

    All are looked at once, and what is found is cached until one of them changes. The arguments are those of
    `load_images`, which then finds the others decoded, unless they are not to be held ``in_memory``.

    Raises:
        InputError: if an image has another fault, as a size of its own where image_size is None.
    """
    cache = cache_file("unreadable 1", *map(_stamp_if_there, files))
    cached = read_cache(cache)
    if cached is not None and "rows" in cached:
        return cached["rows"]
    if in_memory:
        images, refused = _decode_all(files, image_size, channels, label, interpolation)
    else:
        side = image_size or square_size(files)
        look = partial(decode_region, region=lambda w, h: (0, 0, w, h), side=side, channels=channels)
        refused = _for_each(len(files), label, lambda i: look(files[i]))
    for error in refused.values():
        if not isinstance(error, UnreadableError):
            raise error
    if in_memory and len(refused) < len(files):
        kept = [i for i in range(len(files)) if i not in refused]
        for to, row in enumerate(kept if refused else []):  # in place: there may be no room for another array
            images[to] = images[row]
        others = _images_cache([files[i] for i in kept], image_size, channels, interpolation)
        write_cache(others, "decodes the images", {"images": images[: len(kept)]})
    rows = np.array(sorted(refused), np.int64)
    write_cache(cache, "looks for unreadable images", {"rows": rows})
    return rows


def _images_cache(files: Sequence[Path], image_size: int | None, channels: int, interpolation: Interpolation) -> Path:
    how = "" if interpolation == "bilinear" else f" {interpolation}"
    return cache_file(f"1 {image_size} {channels}{how}", *map(stamp, files))


def _stamp_if_there(file: Path) -> str:
    try:
        return stamp(file)
    except OSError:  # a link that leads nowhere
        return f"{file}\0\n"


def _decode_all(
    files: Sequence[Path], image_size: int | None, channels: int, label: str, interpolation: Interpolation
) -> tuple[Images, dict[int, InputError]]:
    """Return the decoded images, shape (N, H, W, channels), and what is wrong with some of them, by position."""
    side, strict = image_size or square_size(files), image_size is None
    images = np.empty((len(files), side, side, channels), np.uint8)

    def decode_into(i: int) -> None:
        images[i] = decode(files[i], side, strict, channels, interpolation)

    return images, _for_each(len(files), label, decode_into)


def _for_each(count: int, label: str, do: Callable[[int], object]) -> dict[int, InputError]:
    """Call a function with each position, in threads, and return what it refuses, by position."""
    refused: dict[int, InputError] = {}

    def try_to(i: int) -> None:
        try:
            do(i)
        except InputError as error:
            refused[i] = error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for _ in progress(pool.map(try_to, range(count)), label, count):
                pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return refused


def square_size(files: Iterable[Path]) -> int:
    """Return the side of a square image, the first that can be read, from its header.

    Raises:
        UnreadableError: if none can be read.
        InputError: if it is not square, which asks the user for ``image_size``.
    """
    refused: UnreadableError | None = None
    for file in files:
        try:
            with _reading(file) as image:
                width, height = image.size
        except UnreadableError as error:
            refused = refused or error
            continue
        if width != height:
            raise InputError(
                f"'{file}' is {width}x{height} pixels, not square: set --data.image_size to scale and crop all images."
            )
        return width
    assert refused is not None
    raise refused


def decode(file: Path, side: int, strict: bool, channels: int, interpolation: Interpolation = "bilinear") -> Images:
    """Decode an image file to shape (side, side, channels), scaled and cropped at its centre.

    Raises:
        UnreadableError: if the file cannot be read as an image.
        InputError: if ``strict`` refuses its size.
    """
    with _reading(file) as opened:
        image = _converted(ImageOps.exif_transpose(opened), channels, file)
    if image.size != (side, side):
        if strict:
            raise InputError(
                f"'{file}' is {image.width}x{image.height} pixels where others are {side}x{side}: "
                "set --data.image_size to scale and crop all images to one size."
            )
        image = ImageOps.fit(image, (side, side), RESAMPLING[interpolation])
    return np.asarray(image).reshape(side, side, channels)


def decode_region(
    file: Path, region: Callable[[int, int], Box], side: int, channels: int, interpolation: Interpolation = "bilinear"
) -> Images:
    """Decode a region of an image file to shape (side, side, channels), scaled with antialiasing.

    ``region`` returns it, given width and height of the image in pixels. A JPEG is decoded at 1/2, 1/4 or 1/8 of its
    size where the region still has ``side`` pixels then, which takes less time than decoding all of it.
    """
    with _reading(file) as opened:
        upright = opened.getexif().get(ExifTags.Base.Orientation, 1) == 1
        image = opened if upright else ImageOps.exif_transpose(opened)
        box = region(*image.size)
        if upright and (reduction := int(min(box[2] - box[0], box[3] - box[1]) / side)) > 1:
            width, height = image.size
            reduced = image.draft(None, (width // reduction, height // reduction))
            if reduced is not None:
                scale = reduced[1][2] / width
                box = (box[0] * scale, box[1] * scale, box[2] * scale, box[3] * scale)
        image = _converted(image, channels, file).resize((side, side), RESAMPLING[interpolation], box)
    return np.asarray(image).reshape(side, side, channels)


def _converted(image: Image.Image, channels: int, file: Path) -> Image.Image:
    if image.mode.startswith("I;16"):  # what PIL's own conversion turns white
        values = np.asarray(image)
        if 0 < values.max() < DARK:
            _warn_of_dark(file, int(values.max()))
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of mode {image.mode}, of 32 bits, which have no white")
    mode = "RGB" if channels == 3 else "L"
    return image if image.mode == mode else image.convert(mode)


def _warn_of_dark(file: Path, most: int) -> None:
    """Say once of all images that a process reads, or the first of those that read for it, that one is almost black."""
    worker = get_worker_info()
    if (worker is not None and worker.id > 0) or not _dark_said.acquire(blocking=False):
        return
    rank_zero_warn(
        f"'{file}' has 16 bits a pixel, but no value above {most}: taken as 0 to 65535, it is almost black. If it "
        "holds fewer bits, as 10 or 12, scale the values of such files to 0 to 65535.",
        stacklevel=1,
    )


@contextmanager
def _reading(file: Path) -> Iterator[Image.Image]:
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # a pipe is waited for without an end
            raise OSError("it is no regular file")
        with Image.open(file) as image:
            yield image
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
        raise UnreadableError(f"'{file}' cannot be read as an image ({error}): replace or remove it.") from error


def resize(images: Images, image_size: int, interpolation: Interpolation = "bilinear") -> Images:
    """Scale square images of shape (N, H, W, C) to (N, image_size, image_size, C), with antialiasing."""
    if images.shape[1] == image_size:
        return images
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    scaled = [
        F.interpolate(chunk, (image_size, image_size), mode=interpolation, antialias=True)
        for chunk in torch.split(batch, 1024)
    ]
    return torch.cat(scaled).permute(0, 2, 3, 1).contiguous().numpy()


def channel_values(name: str, values: list[float] | None, channels: int) -> list[float]:
    """Return a value for each channel, given one for all or each; None is that of x / 128 - 1.

    Raises:
        InputError: if there are others, or a ``std`` is not above 0.
    """
    values = [128 / 255] if values is None else values
    if len(values) not in (1, channels) or (name == "std" and min(values) <= 0):
        raise InputError(
            f"{name} is {values}, but images of {channels} channels take 1 or {channels} values"
            f"{' above 0' if name == 'std' else ''}."
        )
    return values * (channels // len(values))
