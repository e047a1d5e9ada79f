"""Test images of other data than a network was trained on, with the classes of its training."""

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from lt_cb.data.cache import cached
from lt_cb.data.datamodule import LongTailedDataModule
from lt_cb.data.sources.base import FileSource, Source
from lt_cb.data.sources.listing import TEST_SHARE, Listing, Split, as_paths
from lt_cb.data.sources.make import make_source
from lt_cb.data.sources.names import ROOT
from lt_cb.data.sources.tested import test_only
from lt_cb.errors import InputError, did_you_mean, enumerate_names
from lt_cb.longtail.subset import Indices, count_labels
from lt_cb.say import warn

PART = 32_768  # bytes that are read at the beginning and in the middle of a file
MAX_FILES = 100_000  # training images whose digests are kept; more have none
WHOLE: dict[str, Any] = {"imbalance_factor": None, "n_max": None, "subset_counts": None, "val_fraction": 0.0}
WHOLE |= {"split": TEST_SHARE}


def training_digests(data: LongTailedDataModule) -> Indices | None:
    """Return the digests of the content of all training images; None if there are no files, or very many."""
    rows = data.rows.get("train")
    if rows is None or len(rows) > MAX_FILES or not isinstance(data.source, FileSource):
        return None
    return np.unique(file_digests(data.source.files_at("train", rows)))


def file_digests(files: list[Path]) -> Indices:
    """Return a digest of the size and content of each file, int64 of shape (N,); cached until a file changes."""

    def make() -> Indices:
        return np.frombuffer(b"".join(map(_digest, files)), np.int64)

    return cached("digests", files, "reads the images", make, "digests 1")


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
    source, root = options.get("source"), options.get("root", ROOT)
    whole = {**options, **WHOLE, "image_size": options.get("image_size") or facts["image_size"]}
    task = {"task": options["task"]} if options.get("task") else {}
    with test_only(split) as found:
        made = make_source(source, root, task)
    if isinstance(made, FileSource):
        listing, overlap = made.listing("test"), _trained_on(made, trained)
        words = f"all {len(listing.paths):,} images"
        if made.undivided is None:
            words = f"the {len(listing.paths):,} {(*found, 'test')[0]} images"
        elif overlap:
            with suppress(InputError):  # such as classes of one image: none can be held out
                moved: Any = make_source(source, root, task)
                moved.hold_out_test(moved.undivided, options.get("split", TEST_SHARE))
                if not _trained_on(moved, trained):  # the data were moved: test as in training
                    listing, overlap = moved.listing("test"), []
                    words = f"the {len(listing.paths):,} held-out images, as in training,"
        _replace_images(made, adopt_classes(listing, facts, root))
        verb = "testing" if split == "test" else "validating on"
        unknown = "; it does not say which images it was trained on, so make sure that none is here"
        rank_zero_info(
            f"{verb} {words} of '{root}' with the classes of the checkpoint{unknown if trained is None else ''}"
        )
        _warn(overlap, len(listing.paths), root, "Remove them.")
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
        _warn(_trained_on(source, trained), len(source.listing("test").paths), root, remedy)


def _trained_on(source: FileSource, trained: Indices | None) -> list[str]:
    """Return the test images that are training images of the checkpoint."""
    if trained is None:
        return []
    is_trained = np.isin(file_digests(as_paths(source.files("test")[0])), trained)
    return list(map(os.fsdecode, source.listing("test").paths[is_trained].tolist()))


def _warn(overlap: list[str], total: int, root: str, remedy: str) -> None:
    if overlap:
        warn(
            f"{len(overlap):,} of the {total:,} images of '{root}' are training images of the checkpoint, so that the "
            f"scores are too high: {enumerate_names(overlap)}. {remedy}"
        )


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
    labels, given = listing.labels, listing.class_names
    used = [name for name, count in zip(given, count_labels(labels, len(given)), strict=True) if count]
    if unknown := [name for name in used if name not in names]:
        raise InputError(
            f"'{root}' has images of {enumerate_names(unknown)}, but the checkpoint was trained on "
            f"{enumerate_names(names)}: rename these classes, or remove their images.{did_you_mean(unknown[0], names)}"
        )
    column = np.array([names.index(name) if name in names else -1 for name in given])
    if missing := enumerate_names([name for name in names if name not in used]):
        warn(f"'{root}' has no images of {missing}: the means leave these classes out.")
    if not facts["multi_label"]:
        if labels.ndim == 2:
            numbers = (labels == 1).sum(1)
            if wrong := int((numbers != 1).sum()):
                raise InputError(
                    f"the checkpoint was trained on one label an image, but {wrong:,} of {len(numbers):,} images of "
                    f"'{root}' have none or several: remove them, or train anew on several labels."
                )
            labels = (labels == 1).argmax(1)
        return Listing(listing.paths, column[labels], list(names))
    if labels.ndim == 1:
        rank_zero_info(f"each of {len(labels)} images of '{root}' has one label: the others count as absent")
        labels = np.eye(len(column), dtype=np.int8)[labels]
    known = column >= 0
    several = np.full((len(labels), len(names)), -1, np.int8)
    several[:, column[known]] = labels[:, known]
    return Listing(listing.paths, several, list(names))
