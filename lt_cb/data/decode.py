"""Decode image files to uint8 arrays with PIL."""

import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, ImageOps
from torch.nn import functional as F
from torch.utils.data import get_worker_info

from lt_cb.data.view import View
from lt_cb.errors import DataError
from lt_cb.say import warn

Images = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
RASTER = (  # formats that PIL decodes by itself; EPS, or IPTC around it, would start Ghostscript
    *("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF", "HEIF", "QOI", "PSD", "ICO", "ICNS"),
    *("DIB", "PCX", "DCX", "DDS", "BLP", "FTEX", "FITS", "FLI", "GBR", "SGI", "SUN", "MSP", "XBM", "XPM", "XVTHUMB"),
    *("CUR", "IM", "IMT", "MCIDAS", "PIXAR", "PCD", "SPIDER", "TGA"),  # known by little: tried last
)
MAX_12_BIT = 4095
MAX_OWN_SIZE = 256

_warned_16_bit = threading.Lock()  # acquired once in each process


class UnreadableError(DataError):
    """A file cannot be read as an image."""


def is_image(name: str) -> bool:
    """Return whether a file name has an extension of a raster format, and is not hidden."""
    kind = Image.registered_extensions().get(os.path.splitext(name)[1].lower())
    return name[0] != "." and kind in (*RASTER, "MPO")  # several JPEGs in one


def own_size(files: Sequence[Path]) -> int | None:
    """Return the side of images that are squares of one size, of at most 256 pixels; None for others.

    Up to 50 images, evenly spaced, are looked at.
    """
    sizes = set[tuple[int, int]]()
    for i in np.linspace(0, len(files) - 1, min(len(files), 50)).round().astype(int):
        with suppress(UnreadableError), _opened(files[i]) as image:
            sizes.add(image.size)
    ((width, height), *others) = sizes or {(0, 0)}
    return width if width == height and not others and 0 < width <= MAX_OWN_SIZE else None


def decode(file: Path, view: View) -> Images:
    """Decode an image file to shape (size, size, channels).

    An image of another size is scaled, its aspect kept, and cropped at the centre. Its EXIF orientation is applied.
    """
    image, side = read_whole(file, view.channels)[0], view.size
    image = ImageOps.fit(image, (side, side), RESAMPLING[view.interpolation])
    return np.asarray(image).reshape(side, side, view.channels)


def read_whole(file: Path, channels: int, least: int | None = None) -> tuple[Image.Image, str, str]:
    """Return the upright image of a file at its own size, and the mode and format of the file.

    With ``least``, a JPEG may be smaller, but not below that many pixels, which is faster.
    """
    with _opened(file) as opened:
        mode, kind = opened.mode, opened.format or ""
        if least is not None:
            opened.draft(None, (least, least))
        image = _converted(ImageOps.exif_transpose(opened), channels, file)
    return image, mode, kind


def decode_region(file: Path, region: Callable[[int, int], Box], view: View) -> Images:
    """Decode a region, which depends on width and height, to shape (size, size, channels), scaled with antialiasing.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where the region then still has ``size`` pixels, which is faster.
    """
    side = view.size
    with _opened(file) as opened:
        upright = opened.getexif().get(ExifTags.Base.Orientation, 1) == 1
        image = opened if upright else ImageOps.exif_transpose(opened)
        box = region(*image.size)
        if upright and (reduction := int(min(box[2] - box[0], box[3] - box[1]) / side)) > 1:
            width, height = image.size
            reduced = image.draft(None, (width // reduction, height // reduction))
            if reduced is not None:
                scale = reduced[1][2] / width
                box = (box[0] * scale, box[1] * scale, box[2] * scale, box[3] * scale)
        image = _converted(image, view.channels, file).resize((side, side), RESAMPLING[view.interpolation], box)
    return np.asarray(image).reshape(side, side, view.channels)


def _converted(image: Image.Image, channels: int, file: Path) -> Image.Image:
    if image.mode.startswith("I;16"):  # PIL's own conversion clips these to white
        values = np.asarray(image)
        worker = get_worker_info()  # only one process warns, and once
        if 0 < values.max() <= MAX_12_BIT and not (worker and worker.id) and _warned_16_bit.acquire(blocking=False):
            warn(
                f"'{file}' has 16 bits a pixel, but no value above {values.max()}: taken as 0 to 65535, it is almost "
                "black. If it holds fewer bits, such as 10 or 12, scale the values of such files to 0 to 65535."
            )
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of mode {image.mode}, of 32 bits, which have no white")
    mode = "RGB" if channels == 3 else "L"
    return image if image.mode == mode else image.convert(mode)


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # reading a pipe would block for ever
            raise OSError("it is no regular file")
        Image.init()
        with Image.open(file, formats=[name for name in RASTER if name in Image.OPEN]) as image:
            yield image
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
        raise UnreadableError(
            f"'{file}' cannot be read as an image ({error}): replace or remove it, or skip such files by "
            "--data.on_unreadable skip (predict: --on_unreadable skip)."
        ) from error


def resize(images: Images, view: View) -> Images:
    """Scale square images of shape (N, H, W, C) to (N, size, size, C), with antialiasing."""
    if images.shape[1] == view.size:
        return images
    size, chunks = (view.size, view.size), torch.split(torch.from_numpy(images).permute(0, 3, 1, 2), 1024)
    scaled = [F.interpolate(chunk, size, mode=view.interpolation, antialias=True) for chunk in chunks]
    return torch.cat(scaled).permute(0, 2, 3, 1).contiguous().numpy()
