"""Check image files: missing, unreadable, there more than once, or near-duplicates. What is read is cached."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lt_cb.data.cache import cache_file, read_cache, stamp, write_cache
from lt_cb.data.decode import read_whole
from lt_cb.data.images import call_with_each, progress
from lt_cb.data.sources.base import FileSource
from lt_cb.data.sources.listing import Split, check_files
from lt_cb.errors import DataError, InputError, enumerate_names
from lt_cb.longtail.subset import Indices, Labels
from lt_cb.say import warn

Rows = npt.NDArray[Any]  # with dtype `ROW`
Floats = npt.NDArray[np.float32]

SIDE, FREQUENCIES = 32, 64
ROW = np.dtype(
    [
        ("stamp", np.uint64),  # digest of path, size and times of change
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
            rows[row] = stamps[row], pixels, *image.size, mode, kind, _waves(image)
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


Pairs = list[tuple[int, int]]


@dataclass
class ImageFiles:
    """The image files of all splits of a data set, and the facts found by opening each.

    Attributes:
        source: the data set.
        paths: paths as they are listed, relative to the folder of the data set, N of them.
        splits: split of each.
        labels: labels of each, shape (N,) or (N, C).
        rows: facts about each, see `scan`.
    """

    source: FileSource
    paths: list[str]
    splits: npt.NDArray[np.str_]
    labels: Labels
    rows: Rows

    def file(self, i: int) -> Path:
        """Return the full path of an image."""
        return self.source.folder / self.paths[i]

    def name(self, i: int) -> str:
        """Return path, split and classes of an image."""
        return f"'{self.paths[i]}' ({self.splits[i]}, {self.classes(i)})"

    def classes(self, i: int) -> str:
        """Return the classes of an image."""
        if self.labels.ndim == 1:
            return self.source.class_names[int(self.labels[i])]
        return ", ".join(self.source.class_names[c] for c in np.flatnonzero(self.labels[i] == 1)) or "no label"

    @cached_property
    def missing(self) -> Indices:
        """Images without a file."""
        unread = np.flatnonzero(self.rows["width"] == 0)
        return np.array([i for i in unread.tolist() if not os.path.lexists(self.file(i))], np.int64)

    @cached_property
    def unreadable(self) -> dict[int, str]:
        """Images whose files cannot be read, and why."""
        reasons: dict[int, str] = {}
        for i in np.setdiff1d(np.flatnonzero(self.rows["width"] == 0), self.missing).tolist():
            try:
                read_whole(self.file(i), self.source.view.channels)
                reasons[i] = "it has changed while it was looked at"
            except DataError as error:
                reasons[i] = str(error.__cause__)
        return reasons

    @property
    def readable(self) -> Indices:
        """Images whose files can be read."""
        return np.flatnonzero(self.rows["width"])

    @cached_property
    def duplicates(self) -> list[list[int]]:
        """Groups of files with the same pixels: those in several splits first, then those with different labels."""
        groups: dict[int, dict[str, int]] = defaultdict(dict)
        for i in self.readable.tolist():
            groups[int(self.rows["pixels"][i])].setdefault(os.path.abspath(self.file(i)), i)
        equal = [list(group.values()) for group in groups.values() if len(group) > 1]
        return sorted(equal, key=lambda group: (not self.across(group), not self.differ(group)))

    def across(self, group: Sequence[int]) -> bool:
        """Return whether some of the images are training images, and some are not."""
        return len({self.splits[i] == "train" for i in group}) > 1

    def differ(self, group: Sequence[int]) -> bool:
        """Return whether the images have different labels."""
        return len({self.labels[i].tobytes() for i in group}) > 1

    @cached_property
    def near_duplicates(self) -> dict[Split, Pairs]:
        """For each split but train, images that look like a training image, with that image before them."""
        known = {i for group in self.duplicates if self.across(group) for i in group}
        rest = np.array([i for i in self.readable.tolist() if i not in known], np.int64)
        return {
            split: near_duplicates(self.rows, rest[self.splits[rest] == "train"], rest[self.splits[rest] == split])
            for split in self.source.splits[1:]
        }

    def problem(self) -> str | None:
        """Return why the data set cannot be trained on, None if it can."""
        try:
            for split in self.source.splits:
                check_files(self.source.folder, self.source.listing(split).paths, self.source.place_option)
        except DataError as error:
            return str(error)
        names = enumerate_names([self.paths[i] for i in self.unreadable])
        remedy = "Replace or remove them, or skip them by --data.on_unreadable skip."
        return f"{len(self.unreadable)} images cannot be read: {names}. {remedy}" if names else None


def look_at(source: FileSource) -> ImageFiles | None:
    """Look at all image files of a data set; None if there are annotations only, published apart from the images."""
    train = source.listing("train").paths.tolist()
    if source.annotated_apart and not any((source.folder / os.fsdecode(path)).exists() for path in train):
        return None
    listings = {split: source.listing(split) for split in source.splits}
    paths = [os.fsdecode(path) for listing in listings.values() for path in listing.paths.tolist()]
    splits = np.repeat(list(listings), [len(listing.paths) for listing in listings.values()])
    labels = np.concatenate([listing.labels for listing in listings.values()])
    rows = scan([source.folder / path for path in paths], source.root, source.view.channels)
    return ImageFiles(source, paths, splits, labels, rows)


def warn_of_unknown_negatives(source: FileSource) -> None:
    """Warn of labels that some images have, and others may have, but none is known to be without."""
    for split in source.splits if source.multi_label else ():
        labels = source.labels(split)
        undefined = (labels == 1).any(0) & (labels == -1).any(0) & ~(labels == 0).any(0)
        if names := enumerate_names([source.class_names[label] for label in undefined.nonzero()[0]]):
            warn(
                f"'{source.root}' has no {split} image that is known to be without {names}: average precision and mAP "
                "leave them out. If an empty cell means no, set --data.source.blank no."
            )
