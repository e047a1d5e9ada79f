"""Test images of other data than a network was trained on, with the classes of its training."""

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lt_cb.data.cache import cache_file, read_cache, stamp, write_cache
from lt_cb.data.datamodule import LongTailedDataModule
from lt_cb.data.sources.base import FileSource, Source
from lt_cb.data.sources.listing import TEST_SHARE, Listing, Split, as_paths
from lt_cb.data.sources.make import make_source
from lt_cb.data.sources.tested import test_only
from lt_cb.errors import InputError, did_you_mean, enumerate_names
from lt_cb.longtail.subset import Indices, Labels, count_labels

PART = 32_768  # bytes that are read at the beginning and in the middle of a file
MAX_FILES = 100_000  # training images whose digests are kept; more have none
WHOLE: dict[str, Any] = {"imbalance_factor": None, "n_max": None, "subset_counts": None, "val_fraction": 0.0}
WHOLE |= {"split": TEST_SHARE}


def training_digests(data: LongTailedDataModule) -> Indices | None:
    """Return the digests of the content of all training images; None if there are no files, or very many."""
    rows = data.rows.get("train")
    if rows is None or len(rows) > MAX_FILES or not isinstance(data.source, FileSource):
        return None
    return np.unique(file_digests(as_paths(data.source.files("train")[0][rows])))


def file_digests(files: list[Path]) -> Indices:
    """Return a digest of the size and content of each file, int64 of shape (N,); cached until a file changes."""
    cache = cache_file("digests 1", *map(stamp, files))
    cached = read_cache(cache)
    if cached is not None and "digests" in cached:
        return cached["digests"]
    digests: Indices = np.frombuffer(b"".join(map(_digest, files)), np.int64)
    write_cache(cache, "reads the images", {"digests": digests})
    return digests


def _digest(file: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=8)
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            digest.update(f"{size} ".encode())
            digest.update(stream.read(PART))
            stream.seek(size // 2)
            digest.update(stream.read(PART))
    except OSError:
        digest.update(os.fsencode(file))
    return digest.digest()


def make_elsewhere(
    data_class: Callable[..., LongTailedDataModule],
    options: dict[str, Any],
    facts: Mapping[str, Any],
    trained: Indices | None,
    split: Split,
) -> LongTailedDataModule:
    """Return a data module whose test images are a split of other data, or all their images.

    Args:
        data_class: class of the data module.
        options: its keyword arguments.
        facts: of the training, from `lt_cb.runs.checkpoint.class_facts`.
        trained: digests of the training images, from `training_digests`.
        split: split to read, ``test`` or ``val``.
    """
    source, root = options.get("source", "Digits"), options.get("root", "data")
    whole = {**options, **WHOLE, "image_size": options.get("image_size") or facts["image_size"]}
    task = {"task": options["task"]} if options.get("task") else {}
    with test_only(split) as found:
        made = make_source(source, root, task)
    if isinstance(made, FileSource):
        choice = _choose(made, (*found, "test")[0], trained)
        if choice.overlap and made.undivided is not None:
            with suppress(InputError):  # such as classes of one image: none can be held out
                moved = _held_out(make_source(source, root, task), options.get("split", TEST_SHARE), trained)
                choice = moved or choice
        _replace_images(made, adopt_classes(choice.listing, facts, root))
        choice.say(root, split, trained is not None)
        made.channels = facts["in_channels"]  # grey for a network that was trained on grey images
        whole["source"] = lambda *_, **__: made
    with test_only(split):
        data = data_class(**whole)
    if isinstance(made, FileSource):  # some may have been skipped
        _replace_images(made, made.listing("test"))
    if data.class_names == facts["class_names"] and data.multi_label == facts["multi_label"]:
        for name in ("class_counts", "num_images", "num_unlabelled"):
            setattr(data, name, facts[name])
    data.tested_on = root if isinstance(made, FileSource) else type(made).__name__
    return data


def warn_of_training_images(source: Source, root: str, trained: Indices | None) -> None:
    """Warn if held-out test images were trained on, as their choice has changed with ``split``, or with new images."""
    if isinstance(source, FileSource) and source.undivided is not None:
        remedy = "Set --data.split as in training, and give images added since then a folder of their own."
        _choose(source, "test", trained).warn(root, remedy)


class _Choice(NamedTuple):
    """The images to test on, in words, and which of them are training images."""

    listing: Listing
    words: str
    overlap: list[str]

    def say(self, root: str, split: Split, is_known: bool) -> None:
        """Say in one line which images are tested, and warn of training images among them."""
        verb = "testing" if split == "test" else "validating on"
        unknown = "" if is_known else "; it does not say which images it was trained on, so make sure that none is here"
        rank_zero_info(f"{verb} {self.words} of '{root}' with the classes of the checkpoint{unknown}")
        self.warn(root, "Remove them.")

    def warn(self, root: str, remedy: str) -> None:
        """Warn of training images, if there are any."""
        if self.overlap:
            rank_zero_warn(
                f"{len(self.overlap):,} of the {len(self.listing.paths):,} images of '{root}' are training images of "
                f"the checkpoint, so that the scores are too high: {enumerate_names(self.overlap)}. {remedy}",
                stacklevel=1,
            )


def _choose(source: FileSource, split: str, trained: Indices | None) -> _Choice:
    """Return the test images of a source, which are all its images if it is undivided."""
    listing = source.listing("test")
    count = f"{len(listing.paths):,}"
    words = f"the {count} {split} images" if source.undivided is None else f"all {count} images"
    overlap: list[str] = []
    if trained is not None:
        is_trained = np.isin(file_digests(as_paths(source.files("test")[0])), trained)
        overlap = [os.fsdecode(path) for path in listing.paths[is_trained].tolist()]
    return _Choice(listing, words, overlap)


def _held_out(source: Source, share: float, trained: Indices | None) -> _Choice | None:
    """Return the images that the training held out, if its data were moved to another place."""
    if not isinstance(source, FileSource) or source.undivided is None:
        return None
    source.hold_out_test(source.undivided, share)
    source.undivided = None
    choice = _choose(source, "held-out", trained)
    return None if choice.overlap else choice._replace(words=f"{choice.words}, as in training,")


def _replace_images(source: FileSource, listing: Listing) -> None:
    """Make a source have these images only, as test images and as training images."""
    source.listings = {"train": listing, "test": listing}
    source.class_names, source.undivided, source.has_val = listing.class_names, None, False
    source.multi_label = listing.labels.ndim == 2
    source.counts = count_labels(listing.labels, len(listing.class_names))


def adopt_classes(listing: Listing, facts: Mapping[str, Any], root: str) -> Listing:
    """Return a listing with the classes of a training, in their order.

    With several labels an image, labels of classes that the data lack are unknown. Raise InputError for classes that
    the training had not, and for another number of labels an image.
    """
    names: list[str] = facts["class_names"]
    given, counts = listing.class_names, count_labels(listing.labels, len(listing.class_names))
    used = [label for label, count in enumerate(counts) if count]
    unknown = [given[label] for label in used if given[label] not in names]
    if unknown:
        raise InputError(
            f"'{root}' has images of {enumerate_names(unknown)}, but the checkpoint was trained on "
            f"{enumerate_names(names)}: rename these classes, or remove their images.{did_you_mean(unknown[0], names)}"
        )
    column = np.array([names.index(name) if name in names else -1 for name in given])
    if missing := [name for name in names if name not in {given[label] for label in used}]:
        rank_zero_warn(
            f"'{root}' has no images of {enumerate_names(missing)}: the means leave these classes out.", stacklevel=1
        )
    labels = _several(listing, column, len(names), root) if facts["multi_label"] else _one(listing, column, root)
    return Listing(listing.paths, labels, list(names))


def _one(listing: Listing, column: Indices, root: str) -> Labels:
    """Return class indices."""
    if listing.labels.ndim == 1:
        return column[listing.labels]
    numbers = (listing.labels == 1).sum(1)
    if wrong := int((numbers != 1).sum()):
        raise InputError(
            f"the checkpoint was trained on one label an image, but {wrong:,} of {len(numbers):,} images of '{root}' "
            "have none or several: remove them, or train anew on several labels."
        )
    labels: Labels = column[(listing.labels == 1).argmax(1)]
    return labels


def _several(listing: Listing, column: Indices, num_classes: int, root: str) -> Labels:
    """Return labels, int8 of shape (N, C); classes that the data do not name are unknown."""
    given = listing.labels
    if given.ndim == 1:
        rank_zero_info(f"each of {len(given):,} images of '{root}' has one label: the others count as absent")
        given = np.eye(len(column), dtype=np.int8)[given]
    known = column >= 0
    labels = np.full((len(given), num_classes), -1, np.int8)
    labels[:, column[known]] = given[:, known]
    return labels
