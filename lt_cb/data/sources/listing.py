"""Lists of image files with their classes and groups, read from text files, and drawn splits of them."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_info

from lt_cb.data.images import progress
from lt_cb.errors import DataError, InputError, enumerate_names
from lt_cb.longtail.groups import hold_out_groups
from lt_cb.longtail.several import spread
from lt_cb.longtail.subset import Indices, Labels

Paths = npt.NDArray[np.bytes_]  # one object for half a million paths, which processes share


Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {  # names of folders and files, in any case; the first that exists is read
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation"),
}
TEST_SHARE = 0.2  # share of each class that is held out if a data set has no test images
MALFORMED = (ValueError, KeyError, TypeError, RecursionError, OverflowError)  # errors of JSON that lacks a needed part


class Listing(NamedTuple):
    """Image files of one split of a data set."""

    paths: Paths  # shape (N,), relative to a folder
    labels: Labels  # class indices, int64 of shape (N,); with several labels an image int8 of shape (N, C)
    class_names: list[str]  # C names; some classes may have no file here
    groups: Indices | None = None  # shape (N,); images of one number, such as one patient's, stay in one split

    def select(self, rows: npt.NDArray[Any]) -> "Listing":
        """Return some of the files: positions, or a bool for each."""
        groups = None if self.groups is None else self.groups[rows]
        return Listing(self.paths[rows], self.labels[rows], self.class_names, groups)


def encode(paths: Iterable[str | bytes | Path]) -> Paths:
    """Return paths as one array."""
    try:
        return np.array([os.fsencode(path) for path in paths], bytes)
    except UnicodeEncodeError as error:  # JSON can escape half a character
        raise InputError(
            f"'{error.object}' cannot be the name of a file ({error.reason}): correct the list."
        ) from error


def as_paths(paths: Paths) -> list[Path]:
    """Return the paths of an array."""
    return [Path(os.fsdecode(path)) for path in paths.tolist()]


def draw_test(listing: Listing, share: float) -> tuple[Listing, Listing]:
    """Split images into training and test images: ``share`` of each class, rounded, are for testing.

    A class of two images or more has at least one of each. An image of several labels counts for its rarest label; a
    label of two images or more then has one for training, and one for testing where the labels allow it. Images of one
    group stay together, see `hold_out_groups`. A class in one group then has no test image.

    The test images are those whose paths have the smallest digests, so that they depend on no seed, and hardly change
    when images are added.
    """
    paths, labels, names, groups = listing
    digests = [hashlib.blake2b(path, digest_size=8).digest() for path in paths.tolist()]
    numbers = np.frombuffer(b"".join(digests), np.uint64)
    if groups is not None:
        held_out = hold_out_groups(labels, groups, len(names), share, numbers)
        return listing.select(~held_out), listing.select(held_out)
    classes = labels
    if labels.ndim == 2:  # the rarest label, or C without any
        candidates = np.where(labels > 0, (labels > 0).sum(0), len(labels) + 1)
        classes = np.where((labels > 0).any(1), candidates.argmin(1), labels.shape[1])
    order = np.lexsort((numbers, classes))
    counts = np.bincount(classes, minlength=len(names))
    ranks = np.empty_like(classes)  # within the class
    ranks[order] = np.arange(len(classes)) - np.repeat(np.cumsum(counts) - counts, counts)
    quotas = np.minimum(np.maximum(np.floor(counts * share + 0.5), 1), counts - 1)
    is_test = ranks < quotas[classes]
    if labels.ndim == 2:
        by_digest = np.argsort(numbers)
        positive, held_out = labels[by_digest] == 1, is_test[by_digest]
        spread(positive, held_out, positive.sum(0))
        is_test[by_digest] = held_out
    return listing.select(~is_test), listing.select(is_test)


def data_folder(root: str) -> Path:
    """Return the path of a folder of data that must exist."""
    folder = Path(os.path.expanduser(root))
    if not folder.is_dir():
        problem = f"'{root}' is a file, not a folder" if folder.exists() else f"there is no folder '{root}'"
        table = " Read a table by --config configs/own_table.yaml." if folder.exists() else ""
        raise InputError(f"{problem}: set --data.root to the folder of the data.{table}")
    return folder


def check_is_file(file: Path) -> None:
    """Check that a list of images exists."""
    if not file.is_file():
        problem = "is a folder, not a file" if file.is_dir() else "is not there"
        raise InputError(f"the list of images '{file}' {problem}: set --data.root to where it is.")


def category_names(file: Path, default: list[str]) -> list[str]:
    """Return the names in a JSON list of categories, by id, or the default unless they are distinct and as many."""
    try:
        names = [name for _, name in sorted((entry["id"], entry["name"]) for entry in json.loads(file.read_bytes()))]
    except MALFORMED:
        return default
    return names if len(set(names)) == len(default) else default


def list_lines(file: Path) -> Listing:
    """Return the images of a text file with a path and a class index on each line, in its order.

    Classes have the names of their folders, or their numbers if classes share folders.
    """
    check_is_file(file)
    paths, labels = [], []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        path, _, label = line.strip().rpartition(b" ")
        if not line.strip():
            continue
        if not path or not label.isdigit():
            raise InputError(
                f"line {number} of '{file}' is '{os.fsdecode(line)[:80]}', but must be a path and a class index."
            )
        paths.append(path.strip())
        labels.append(int(label))
    if not paths:
        raise InputError(f"'{file}' names no image: set --data.root to another file.")
    num_classes = max(labels) + 1
    if num_classes > max(10 * len(labels), 100_000):
        raise InputError(
            f"a list of {len(labels)} images has class index {num_classes - 1}, but indices go from 0 to C - 1: number "
            "the classes anew, or use a table, where a label is a name."
        )
    return Listing(np.array(paths, bytes), np.array(labels, np.int64), _folder_names(paths, labels, num_classes))


def _folder_names(paths: list[bytes], labels: list[int], num_classes: int) -> list[str]:
    """Return the folder of each class, below their common folder; numbers unless each class has one of its own."""
    used = sorted({(label, os.path.dirname(path)) for path, label in zip(paths, labels, strict=True)})
    folders = [os.fsdecode(folder) for _, folder in used]
    if [label for label, _ in used] != list(range(num_classes)) or len(set(folders)) < num_classes or num_classes < 2:
        return [str(label) for label in range(num_classes)]
    common = os.path.commonpath(folders) or "."
    return [os.path.relpath(folder, common) for folder in folders]


def check_files(folder: Path, paths: Paths, option: str = "--data.root") -> None:
    """Check that all files of a list exist, and that no relative path leads out of the folder."""
    names = [os.fsdecode(path) for path in paths.tolist() if b".." in path]
    if leaving := [name for name in names if not os.path.isabs(name) and os.path.normpath(name).startswith("..")]:
        raise DataError(
            f"{len(leaving)} of {len(paths)} paths lead out of '{folder}': {enumerate_names(leaving)}. Write absolute "
            "paths if that is intended."
        )

    @cache
    def files_in(place: bytes) -> set[bytes]:
        try:
            return set(os.listdir(os.path.join(os.fsencode(folder), place)))
        except OSError:
            return set()

    listed = progress(paths.tolist(), f"Looking for the images in {folder}", len(paths))
    missing = [os.fsdecode(path) for path in listed if os.path.basename(path) not in files_in(os.path.dirname(path))]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(paths)} images are not in '{folder}': {enumerate_names(missing)}. Set {option} "
            "to where they are, or leave them out by --data.on_unreadable skip."
        )


LIKELY = ("patient", "subject", "participant", "person", "individual", "lesion", "location", "sequence", "seq", "burst")


def read_groups(file: object, name: str, texts: Sequence[str]) -> Indices:
    """Return the group of each row, a number for each text in a column. A row without a text is a group of its own."""
    texts = [text[:-2] if text.endswith(".0") and text[:-2].isdigit() else text for text in texts]  # pandas writes 1 so
    number: dict[object, int] = {}
    groups = np.array([number.setdefault(text or row, len(number)) for row, text in enumerate(texts)], np.int64)
    if blank := texts.count(""):
        rank_zero_info(f"{blank} of {len(texts)} rows of '{file}' have no '{name}': each is a group of its own.")
    return groups


def suggest_groups(columns: Mapping[str, Sequence[object]], used: Iterable[str | None], option: str) -> str:
    """Return a sentence on a column that may name groups, such as ``Patient ID``, or nothing."""
    plain = {name: re.sub("(id|no|number|name)?s?$", "", re.sub("[^a-z]", "", name.lower())) for name in columns}
    for kind in LIKELY:
        for name in columns:
            if plain[name] == kind and name not in used:
                values, rows = len(set(map(str, columns[name]))), len(columns[name])
                if 1 < values < rows:
                    change = f"{option}group_column " + (f"'{name}'" if re.search(r"\W", name) else name)
                    return (
                        f"'{name}' has {values} values for {rows} images: {change} keeps the images of each together."
                    )
    return ""
