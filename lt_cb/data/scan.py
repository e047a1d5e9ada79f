"""Scan image files: which can be read, their sizes and modes, and which show the same; cached until a file changes."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lt_cb.data.cache import cache_file, read_cache, stamp, write_cache
from lt_cb.data.decode import read_whole
from lt_cb.data.images import call_with_each, progress
from lt_cb.errors import InputError
from lt_cb.longtail.subset import Indices

Rows = npt.NDArray[Any]  # with dtype `ROW`
Floats = npt.NDArray[np.float32]

SIDE, FREQUENCIES = 32, 64
ROW = np.dtype(
    [
        ("stamp", np.uint64),  # digest of path, size and times of change
        ("content", np.uint64),  # digest of the bytes
        ("pixels", np.uint64),  # digest of the upright image, in the channels of the data set
        ("width", np.uint32),  # 0 if the file cannot be read
        ("height", np.uint32),
        ("mode", "S8"),
        ("format", "S12"),
        ("waves", np.float16, FREQUENCIES),  # lowest spatial frequencies, of length 1; 0 for a blank image
    ]
)
ALIKE = 0.875  # cosine of near-duplicates
BLANK = 1.0  # standard deviation of the grey values of an image without content, of 255
PRIOR = 50  # images that the usual spectrum of photographs counts as
PAIRS = 20_000_000  # compared at once

_i, _j = np.indices((9, 9)).reshape(2, -1)
_lowest = np.lexsort((_i, _i + _j))[1 : FREQUENCIES + 1]  # without the mean
_cosines = np.cos(np.pi * np.outer(np.arange(9), 2 * np.arange(SIDE) + 1) / (2 * SIDE)) * np.sqrt(2 / SIDE)
_spectrum = 1 / (_i**2 + _j**2)[_lowest]
_spectrum /= _spectrum.sum()


def scan(files: Sequence[Path], root: Path, channels: int) -> Rows:
    """Return a row of facts for each file of a data set, which has its root; only new and changed files are read."""
    rows = np.zeros(len(files), ROW)
    stamps = np.array([_digest(os.fsencode(stamp(file))) for file in files], np.uint64)
    cache = cache_file(f"scan 1 {channels} {os.path.abspath(root)}")
    known = (read_cache(cache) or {}).get("rows")
    if known is not None and known.dtype == ROW and len(known):
        at = np.searchsorted(known["stamp"], stamps).clip(max=len(known) - 1)
        rows = np.where(known["stamp"][at] == stamps, known[at], rows)
    new = np.flatnonzero(rows["stamp"] == 0)

    def look(i: int) -> None:
        row, file = int(new[i]), files[new[i]]
        with suppress(InputError):
            image, mode, kind = read_whole(file, channels)
            pixels = _digest(repr(image.size).encode() + image.tobytes())
            rows[row] = stamps[row], _digest(file.read_bytes()), pixels, *image.size, mode, kind, _waves(image)
        rows["stamp"][row] = stamps[row]

    try:
        call_with_each(look, len(new), "Looking at the images")
    finally:  # after an interruption, too
        if len(new):
            done, first = np.unique(rows["stamp"], return_index=True)
            write_cache(cache, "looks at the images", {"rows": rows[first[done > 0]]})
    return rows


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


def _waves(image: Image.Image) -> Floats:
    """Return the 64 lowest frequencies of the grey image but the mean, scaled to length 1: a perceptual hash."""
    small = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0).convert("L")
    waves = (_cosines @ np.asarray(small, np.float32) @ _cosines.T).ravel()[_lowest]
    length = float(np.linalg.norm(waves))
    return np.asarray(waves / length if length > BLANK * SIDE else 0 * waves, np.float32)


def near_duplicates(rows: Rows, left: Indices, right: Indices) -> list[tuple[int, int]]:
    """Return each image of ``right`` that looks like one of ``left``, behind the most similar of these.

    The frequencies are centred and scaled by their spread over all rows, so that images of one kind, such as X-rays,
    do not all look alike. Two images are near-duplicates if the cosine of their frequencies is at least 0.875.
    """
    shown = np.flatnonzero(rows["waves"].any(1))  # neither unreadable nor blank
    waves = rows["waves"][shown].astype(np.float32)
    mean = waves.sum(0) / (len(shown) + PRIOR)
    spread = (((waves - mean) ** 2).sum(0) + PRIOR * _spectrum) / (len(shown) + PRIOR)
    waves = ((waves - mean) / np.sqrt(spread)).astype(np.float32)
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    ones, others = (np.flatnonzero(np.isin(shown, side)) for side in (left, right))
    if not len(ones):
        return []
    found: list[tuple[float, int, int]] = []
    step = max(1, PAIRS // len(ones))
    starts = range(0, len(others), step)
    known = np.ascontiguousarray(waves[ones].T)
    for start in progress(starts, "Looking for near-duplicates", len(starts)):
        part = others[start : start + step]
        cosines = waves[part] @ known
        nearest = cosines.argmax(1)
        similar = cosines[np.arange(len(part)), nearest]
        found += [(-similar[k], shown[ones[nearest[k]]], shown[part[k]]) for k in np.flatnonzero(similar >= ALIKE)]
    return [(int(one), int(other)) for _, one, other in sorted(found)]
