"""Base classes of data sources."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from lt_cb.data.images import Images, Interpolation, UnreadableError, find_unreadable, load_images, square_size
from lt_cb.data.sources.listing import Listing, Paths, check_files
from lt_cb.longtail.subset import Indices, Labels, count_labels
from lt_cb.errors import InputError, enumerate_names

Split = Literal["train", "val", "test"]


class Source(ABC):
    """A labelled data set with a training and a test split.

    Only `load` may be slow: the attributes are known once a source is made.

    Args:
        root: folder of the data. Further arguments of a source of your own are its ``init_args``.

    Attributes:
        class_names: C names, by class index.
        counts: images of each class in the training split, C numbers.
        multi_label: whether an image has any number of labels, also none; ``counts`` are then the images that have
            each of them.
        image_size: height and width of an image in pixels.
        channels: 3 for RGB, 1 for grey.
        has_val: whether there is a validation split beside the other two.
    """

    class_names: list[str]
    counts: list[int]
    image_size: int
    channels: int = 3
    has_val: bool = False
    multi_label: bool = False

    def __init__(self, root: str) -> None:
        self.root = Path(os.path.expanduser(root))

    @abstractmethod
    def load(self, split: Split) -> tuple[Images, Labels]:
        """Return images, uint8 of shape (N, H, W, channels), and labels.

        Those are class indices, int64 of shape (N,), or with ``multi_label`` int8 of shape (N, C): 1 where an image has
        the label, 0 where it has not, -1 where that is unknown.
        """

    def labels(self, split: Split) -> Labels:
        """Return the labels that `load` does; one that can without the images, should."""
        return self.load(split)[1]


SourceFactory = Callable[[str], Source]  # makes a source of its root


class FileSource(Source):
    """A data set of image files, which need not fit in memory.

    Args:
        root: folder of the data.

    Attributes:
        default_size: height and width in pixels; None asks for square images of one size.
        requested_size: in place of the default, if set before ``image_size`` is asked for.
        interpolation: of images that are scaled.
        folder: what the paths of the listings are below.
        unreadable: positions in the listing of each split, int64 of shape (M,), of what `skip_unreadable` leaves out.
    """

    default_size: int | None = None
    requested_size: int | None = None
    interpolation: Interpolation = "bilinear"

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.folder = self.root.parent if self.root.is_file() else self.root
        self.unreadable: dict[Split, Indices] = {}
        train = self.listing("train")
        self.class_names = train.class_names
        self.counts = count_labels(train.labels, len(self.class_names))

    @property
    def fixed_size(self) -> int | None:
        """Height and width that all images are scaled and cropped to; None if they have to be of one size already."""
        return self.requested_size or self.default_size

    @cached_property
    def image_size(self) -> int:  # type: ignore[override]
        """Height and width of an image in pixels."""
        paths = self.listing("train").paths
        return self.fixed_size or square_size(self.folder / os.fsdecode(path) for path in paths)

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that there are."""
        return ("train", "val", "test") if self.has_val else ("train", "test")

    @abstractmethod
    def listing(self, split: Split) -> Listing:
        """Return paths below the folder and classes, without looking for the images."""

    def labels(self, split: Split) -> Labels:
        """Return the labels that `load` does, without looking for the images."""
        return np.delete(self.listing(split).labels, self.unreadable.get(split, np.array([], np.int64)), axis=0)

    def files(self, split: Split) -> tuple[Paths, Labels]:
        """Return whole paths, shape (N,), and their labels, once all files are found."""
        listing = self.listing(split)
        check_files(self.folder, listing.paths)
        paths = [os.path.join(os.fsencode(self.folder), path) for path in listing.paths.tolist()]  # some may be whole
        left_out = self.unreadable.get(split, np.array([], np.int64))
        return np.delete(np.array(paths, bytes), left_out), self.labels(split)

    def skip_unreadable(self, in_memory: bool) -> None:
        """Leave out the files that cannot be read as images, say which, and count the others.

        Args:
            in_memory: whether the images will be loaded, so that looking at them is to decode them.

        Raises:
            InputError: if no image of a split or of a class to train on is left.
        """
        found, names = list[str](), list[str]()
        for split in self.splits:
            paths, labels = self.files(split)
            files = [Path(os.fsdecode(path)) for path in paths.tolist()]
            size = self.fixed_size if in_memory else self.image_size
            rows = find_unreadable(
                files, size, self.channels, f"Looking at {split} images", self.interpolation, in_memory
            )
            left = count_labels(np.delete(labels, rows, axis=0), len(self.class_names))
            pairs = zip(self.class_names, left, self.counts, strict=True)
            lost = [name for name, now, before in pairs if before and not now]
            if (split == "train" and lost) or len(rows) == len(files):
                whose = f" of {enumerate_names(lost)}" if len(rows) < len(files) else ""
                raise InputError(f"no {split} image{whose} can be read: replace the files, or remove the class.")
            if len(rows):
                found.append(f"{len(rows)} of {len(files)} {split} images")
                names += [str(files[row]) for row in rows]
            self.unreadable[split] = rows
        self.counts = count_labels(self.labels("train"), len(self.class_names))
        if found:
            rank_zero_warn(
                f"{', '.join(found)} cannot be read and are left out: {enumerate_names(names)}.", stacklevel=1
            )

    def load(self, split: Split) -> tuple[Images, Labels]:
        """Return one split, decoded or from the cache."""
        paths, labels = self.files(split)
        files = [Path(os.fsdecode(path)) for path in paths.tolist()]
        label = f"Decoding {split} images"
        try:
            return load_images(files, self.fixed_size, self.channels, label, self.interpolation), labels
        except UnreadableError as error:
            raise UnreadableError(f"{error} Or set --data.on_unreadable skip, which leaves it out.") from error


def check_classes(source: FileSource, remedy: str) -> None:
    """Look whether each class has an image to train on, and warn of labels that another split has no image of.

    Args:
        source: whose splits are looked at.
        remedy: what to do, for the message.

    Raises:
        InputError: if one has none.
    """
    if not any(source.counts):
        raise InputError(f"no training image of '{source.root}' has a label: {remedy}.")
    if untrained := [name for name, count in zip(source.class_names, source.counts, strict=True) if not count]:
        raise InputError(
            f"'{source.root}' has no training image of {enumerate_names(untrained)}, so that nothing can be learnt of "
            f"it: {remedy}."
        )
    for split in source.splits[1:] if source.multi_label else ():
        warn_of_unmeasured(source, split, f"'{source.root}' has no {split} images")


def warn_of_unmeasured(source: FileSource, split: Split, said: str) -> None:
    """Warn of classes that a split has no image of; ``said`` is what the sentence begins with."""
    counts = count_labels(source.labels(split), len(source.class_names))
    if missing := [name for name, count in zip(source.class_names, counts, strict=True) if not count]:
        rank_zero_warn(
            f"{said} of {enumerate_names(missing)}: what is learnt of them is not measured there.", stacklevel=1
        )
