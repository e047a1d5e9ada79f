"""Check the files of a data set: missing, unreadable, there more than once, or near-duplicates of others."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lt_cb.data.decode import read_whole
from lt_cb.data.scan import Rows, near_duplicates, scan
from lt_cb.data.sources.base import FileSource
from lt_cb.data.sources.listing import Split, check_files
from lt_cb.errors import DataError, enumerate_names
from lt_cb.longtail.subset import Indices, Labels
from lt_cb.say import warn

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
    listings = {split: source.listing(split) for split in source.splits}
    train = listings["train"].paths.tolist()
    if source.annotated_apart and not any((source.folder / os.fsdecode(path)).exists() for path in train):
        return None
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
