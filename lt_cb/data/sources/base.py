"""Base classes of data sets."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from lt_cb.data.decode import Images, own_size
from lt_cb.data.images import find_unreadable, load_images, warn_of_skipped
from lt_cb.data.sources.listing import TEST_SHARE, Listing, Paths, Split, as_paths, check_files, draw_test
from lt_cb.data.sources.tested import is_test_only
from lt_cb.data.view import View
from lt_cb.errors import DataError, InputError, enumerate_names
from lt_cb.longtail.subset import Indices, Labels, count_labels
from lt_cb.say import warn

SEVERAL_SIZES = 64  # pixels that images of several sizes are scaled to


class Source(ABC):
    """A labelled data set with a training and a test split.

    Only `load` may be slow: the attributes are known once the source is made.

    Args:
        root: folder of the data. A custom source may take more arguments, as ``init_args``.

    Attributes:
        class_names: C names, by class index.
        counts: training images of each class, C numbers.
        multi_label: whether an image has any number of labels, or none; ``counts`` are then the images with each label.
        image_size: height and width of an image in pixels.
        channels: 3 for RGB, 1 for grey.
        has_val: whether there is a validation split.
        may_download: whether missing data may be downloaded.
        group_name: the kind of the groups, if there are any, such as the name of their column.
        group_hint: what to say when splits are drawn without groups.
    """

    class_names: list[str]
    counts: list[int]
    image_size: int
    channels: int = 3
    has_val: bool = False
    multi_label: bool = False
    may_download: bool = True
    group_name: str = "group"
    group_hint: str = ""

    def __init__(self, root: str) -> None:
        self.root = Path(os.path.expanduser(root))

    @abstractmethod
    def load(self, split: Split) -> tuple[Images, Labels]:
        """Return images, uint8 of shape (N, H, W, channels), and labels.

        Labels are class indices, int64 of shape (N,). With ``multi_label`` they are int8 of shape (N, C): 1 where an
        image has the label, 0 where it has not, -1 where this is unknown.
        """

    def labels(self, split: Split) -> Labels:
        """Return the labels of `load`. Override it where labels can be read without the images."""
        return self.load(split)[1]

    def groups(self, split: Split) -> Indices | None:
        """Return the group of each image, int64 of shape (N,), or None without groups.

        Images of one number, such as one patient's, are never divided between splits. A group has the same number in
        each split.
        """
        return None


SourceFactory = Callable[[str], Source]
"""Makes a source of its root folder."""


class FileSource(Source):
    """A data set of image files, which need not fit in memory.

    Args:
        root: folder of the data, or a file in it; the paths of the listings are relative to this folder.
        listings: image files and labels of ``train``, ``test``, and ``val`` if there is one.

    Attributes:
        default_size: height and width that images are scaled to. None keeps square images of one size, of at most 256
            pixels, and scales others to 64.
        annotated_apart: whether annotations are published apart from the images, and can be inspected without them.
        tests_from: what a data set without test images lacks.
        place_option: option that says where the images are.
        undivided: training and test images together, if the data set has no test images of its own.
        test_share: share of each class that is held out from them.
    """

    default_size: int | None = None
    annotated_apart: bool = False
    tests_from: str = "test folder"
    place_option: str = "--data.root"
    undivided: Listing | None = None
    test_share: float | None = None

    def __init__(self, root: str, listings: Mapping[Split, Listing]) -> None:
        super().__init__(root)
        self.folder = self.root.parent if self.root.is_file() else self.root
        self.listings = dict(listings)
        self.has_val = self.has_val or "val" in listings
        train = listings["train"]
        self.multi_label = train.labels.ndim == 2
        self.class_names = train.class_names
        self.counts = count_labels(train.labels, len(self.class_names))

    @cached_property
    def image_size(self) -> int:  # type: ignore[override]
        """Default height and width of an image in pixels."""
        if self.default_size is not None:
            return self.default_size
        size = own_size([self.folder / os.fsdecode(path) for path in self.listing("train").paths.tolist()])
        if size is None:
            rank_zero_info(f"Images of several sizes: all are scaled and cropped to {SEVERAL_SIZES} pixels.")
        return size or SEVERAL_SIZES

    @cached_property
    def view(self) -> View:
        """The view that `load` decodes; assign another one before images are loaded."""
        return View(self.image_size, channels=self.channels)

    @property
    def splits(self) -> tuple[Split, ...]:
        """The existing splits."""
        if is_test_only():
            return ("test",)
        return ("train", "val", "test") if self.has_val else ("train", "test")

    def listing(self, split: Split) -> Listing:
        """Return the files of a split. Override it to read them only when they are needed."""
        return self.listings[split]

    def labels(self, split: Split) -> Labels:
        """Return the labels of `load`, without reading the images."""
        return self.listing(split).labels

    def groups(self, split: Split) -> Indices | None:
        """Return the groups of the images of `load`."""
        return self.listing(split).groups

    def files(self, split: Split) -> tuple[Paths, Labels]:
        """Return full paths, shape (N,), and their labels, after checking that all files exist."""
        paths, labels = self.listing(split)[:2]
        check_files(self.folder, paths, self.place_option)
        return self._full(paths), labels

    def files_at(self, split: Split, rows: Indices) -> list[Path]:
        """Return the full paths of images, given their rows in the listing of a split."""
        return as_paths(self.files(split)[0][rows])

    def _full(self, paths: Paths) -> Paths:
        folder = os.fsencode(self.folder)
        return np.array([os.path.join(folder, path) for path in paths.tolist()], bytes)  # keeps absolute paths

    def hold_out_test(self, undivided: Listing, share: float = TEST_SHARE) -> None:
        """Divide the images of a data set without test images; see ``draw_test``."""
        if self.undivided is undivided and self.test_share == share:
            return
        self.undivided, self.test_share = undivided, share
        if is_test_only():  # all are test images
            self.listings["train"] = self.listings["test"] = undivided
            return
        self.listings["train"], self.listings["test"] = draw_test(undivided, share)
        self.counts = count_labels(self.labels("train"), len(self.class_names))
        if not len(self.labels("test")):
            raise DataError(
                f"no class of '{self.root}' has two images, so that none can be held out as a test image: add images, "
                "or a folder of test images."
                if undivided.groups is None
                else f"no test images can be held out of '{self.root}': each group of '{self.group_name}' has all "
                "images of a class. Set group_column to another column, or leave it out."
            )

    def skip_unreadable(self) -> dict[Split, int]:
        """Remove unreadable and missing files from the listings, warn, and return their number in each split."""
        skipped: dict[Split, list[Path]] = {}
        for split in self.splits:
            listing = self.listing(split)
            files = as_paths(self._full(listing.paths))
            rows = find_unreadable(files, self.view, f"Checking {split} images")
            if len(rows) == len(files):
                raise DataError(f"no {split} image can be read: replace the files, or remove the split.")
            kept = listing._replace(class_names=self.class_names)
            self.listings[split] = kept.select(np.delete(np.arange(len(files)), rows))
            skipped[split] = [files[row] for row in rows]
        before, self.counts = self.counts, count_labels(self.labels("train"), len(self.class_names))
        triples = zip(self.class_names, before, self.counts, strict=True)
        if lost := enumerate_names([name for name, old, new in triples if old and not new]):
            raise DataError(f"no train image of {lost} can be read: replace the files, or remove the class.")
        warn_of_skipped(list(chain(*skipped.values())))
        return {split: len(files) for split, files in skipped.items()}

    def load(self, split: Split) -> tuple[Images, Labels]:
        """Return one split, decoded or from the cache."""
        paths, labels = self.files(split)
        return load_images(as_paths(paths), self.view, f"Decoding {split} images"), labels


def hold_out_test(source: Source, share: float) -> None:
    """Hold out test images if a data set has none, before the long-tailed subset is chosen."""
    if isinstance(source, FileSource) and source.undivided is not None:
        source.hold_out_test(source.undivided, share)
        whole = "" if source.undivided.groups is None else f", in whole groups of '{source.group_name}'"
        held_out = f"{100 * share:g} % of each class are held out as test images{whole} (--data.split)"
        rank_zero_info(f"no {source.tests_from}: {held_out}")
    elif share != TEST_SHARE:
        warn(f"--data.split {share:g} is ignored: the data set has test images.")


def check_classes(source: FileSource, remedy: str) -> None:
    """Check that each class has a training image, and warn of classes without an image in another split."""
    root, names = source.root, source.class_names
    if is_test_only():
        return
    if not source.multi_label and len(names) < 2:
        given = enumerate_names(names)
        raise DataError(f"'{root}' has one class, {given}, but a classifier needs at least 2: add other classes.")
    if not any(source.counts):
        raise DataError(f"no training image of '{root}' has a label: {remedy}.")
    for split in source.splits:
        counts = count_labels(source.labels(split), len(names))
        missing = enumerate_names([name for name, n in zip(names, counts, strict=True) if not n])
        if missing and split == "train":
            raise DataError(
                f"'{root}' has no training image of {missing}, so that nothing can be learnt of it: {remedy}."
            )
        if missing:
            warn(f"'{root}' has no {split} images of {missing}: metrics of this split leave them out.")


def check_labels(source: Source, split: Split, labels: Labels) -> None:
    """Check labels that a source has loaded, and that there are as many training labels as it counts."""
    num_classes = len(source.class_names)
    if not source.multi_label:
        if labels.min() < 0 or labels.max() >= num_classes:
            raise InputError(
                f"the {split} labels go from {labels.min()} to {labels.max()}, but {num_classes} classes allow "
                f"0 to {num_classes - 1}: check the source."
            )
    elif labels.dtype != np.int8 or labels.shape[1:] != (num_classes,) or labels.min() < -1 or labels.max() > 1:
        raise InputError(
            f"the {split} labels are {labels.dtype} of shape {labels.shape}, but a source with multi_label must have "
            f"int8 labels of shape (N, {num_classes}), each 1, 0, or -1 for unknown: check the source."
        )
    for name, counted, loaded in zip(source.class_names, source.counts, count_labels(labels, num_classes), strict=True):
        if split == "train" and counted != loaded:
            raise InputError(
                f"the source counts {counted} training images of class '{name}', but loads {loaded}: correct its "
                "counts or its load()."
            )
