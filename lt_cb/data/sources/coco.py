"""COCO: images with one or several labels, from annotation files in COCO's format."""

import os
from collections.abc import Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from lt_cb.data.sources.annotations import (
    GROUPS,
    Annotations,
    check_annotated,
    class_values,
    distinct_names,
    find_annotations,
    image_fields,
    place_of_images,
    read_annotations,
    sort_ids,
)
from lt_cb.data.sources.base import FileSource, check_classes
from lt_cb.data.sources.image_files import given_folder
from lt_cb.data.sources.listing import Listing, Split, check_is_file, data_folder, encode, read_groups, suggest_groups
from lt_cb.data.sources.tested import is_test_only, with_test
from lt_cb.errors import InputError, did_you_mean, enumerate_names
from lt_cb.longtail.subset import Indices
from lt_cb.say import warn

OPTION = "--data.source COCO --data.source."
EMPTY = ("empty", "blank", "nothinghere")  # categories of camera traps for images that show nothing
Task = Literal["one", "several"]


class COCO(FileSource):
    """Images labelled with the categories of their annotations, in COCO's JSON format.

    - Annotations of each split: ``annotations/instances_train2017.json`` (any year; the last one counts), or
      ``train.json`` in the root or in ``annotations``, or ``train/_annotations.coco.json``, or a name with ``train``
      in it. ``val``, ``valid`` or ``validation``, and ``test``, are found in the same way. A single file needs no such
      name.
    - Validation becomes the test split if there is no other. Without both, test images are held out, see `draw_test`.
    - Images: as the annotations say, or in the folder ``train2017``, ``train`` or ``images``, or beside the
      annotations.
    - Classes: the categories in the order of their ids, without categories that no image has.
    - One label an image, if each image has annotations of exactly one class. Otherwise several, and an image without
      annotations has no label. If there is a category ``empty``, such images are left out instead.

    Args:
        root: folder of annotations and images, or the training annotations.
        task: ``one`` or ``several`` labels an image; None decides by the annotations. With ``one``, images without
            annotations are left out.
        class_field: field of the categories that is the class, such as ``supercategory``. Categories with the same
            value are one class; of ``name``, they stay apart.
        image_folder: folder of the images, relative to the folder of the data; None looks for it.
        group_column: field of the images, such as ``location``; its images are never divided between splits or folds.
    """

    default_size = 224
    annotated_apart = True
    tests_from = "test annotations"

    def __init__(
        self,
        root: str,
        task: Task | None = None,
        class_field: str = "name",
        image_folder: str | None = None,
        group_column: str | None = None,
    ) -> None:
        given = Path(os.path.expanduser(root))
        if given.suffix.lower() == ".json" and not given.is_dir():
            check_is_file(given)
        base, files = find_annotations(given if given.is_file() else data_folder(root))
        if not files:
            raise InputError(
                f"'{root}' has no annotations of split train: it needs annotations/instances_train2017.json, "
                "train.json or train/_annotations.coco.json. If the file has another name, set --data.root to it. "
                "A table: --data.source Manifest. Folders of classes: --data.source ImageFolder."
            )
        read = _read(base, files, GROUPS if group_column is None else [group_column])
        folder = base if image_folder is None else given_folder(base, image_folder)
        groups = {} if group_column is None or is_test_only() else _groups(root, read, group_column)
        listings = _once(root, folder, _list(root, read, class_field, task, folder, groups))
        if "train" not in listings:
            listings["train"] = listings["test"]
        super().__init__(root, listings)
        self.folder, self.place_option = folder, f"{OPTION}image_folder"
        self.group_name = group_column or ""
        self.group_hint = suggest_groups(next(iter(read.values())).groups, [], OPTION)
        if "test" not in listings:
            self.hold_out_test(listings["train"])
        check_classes(self, "add annotations, or leave the category out")


def _read(base: Path, files: dict[Split, Path], group_fields: Sequence[str]) -> dict[Split, Annotations]:
    read = {split: read_annotations(file, group_fields) for split, file in files.items()}
    check_annotated(next(iter(read.values())))  # the training file comes first
    for split in [split for split, annotations in read.items() if not len(annotations.pairs)]:
        del read[split]
        name = os.path.relpath(files[split], base)
        rank_zero_info(f"'{name}' in '{base}' has no annotations, so that its images are not used for {split}.")
    read = with_test(read)
    if is_test_only() and "test" in read:
        del read["train"]  # the same
    named = ", ".join(f"{split} '{os.path.relpath(read[split].file, base)}'" for split in read)
    rank_zero_info(f"annotations in '{base}': {named}. To read another file: --data.root FILE.")
    return read


def _list(
    root: str, read: dict[Split, Annotations], field: str, task: Task | None, folder: Path, groups: dict[Split, Indices]
) -> dict[Split, Listing]:
    names, label_of = _classes(read, field)
    codes: dict[Split, Indices] = {}  # row times number of classes, plus label; each once
    numbers: dict[Split, Indices] = {}  # labels of each image
    for split, (_, images, pairs, categories, _) in read.items():
        columns = np.array([label_of.get(number, -1) for number in categories], np.int64)
        given = np.sort(pairs[:, 0] * len(names) + columns[pairs[:, 1]])
        codes[split] = given[np.diff(given, prepend=-1) > 0]
        numbers[split] = np.bincount(codes[split] // len(names), minlength=len(images))
    one = _has_one_label(root, read, numbers, names, task)
    listings: dict[Split, Listing] = {}
    for split, (file, images, *_) in read.items():
        if any("\\" in image for image in images):
            images = [image.replace("\\", "/") for image in images]
        place = place_of_images(folder, file, split, images)
        paths = encode(os.path.join(place, image) for image in images) if place else encode(images)
        rows, labels = np.divmod(codes[split], len(names))
        kept: Indices | slice = rows
        if not one:
            several = np.zeros((len(images), len(names)), np.int8)
            several[rows, labels] = 1
            kept, labels = slice(None), several
        of_groups = groups.get(split)
        listings[split] = Listing(paths[kept], labels, names, None if of_groups is None else of_groups[kept])
    return listings


def _groups(root: str, read: dict[Split, Annotations], name: str) -> dict[Split, Indices]:
    """Return the group of each image by a field of the images; raise if a group is in two splits."""
    first: dict[str, Split] = {}
    for split, annotations in read.items():
        if name not in annotations.groups:
            fields = image_fields(annotations.file)
            raise InputError(
                f"group_column is '{name}', but the images of '{annotations.file}' have {enumerate_names(fields)}."
                + did_you_mean(name, fields)
            )
        texts = dict.fromkeys(annotations.groups[name])
        if shared := [text for text in texts if text and first.setdefault(text, split) != split]:
            raise InputError(
                f"{len(shared)} groups of '{name}' in '{root}' are in {first[shared[0]]} and in {split}: "
                f"{enumerate_names(shared)}. Leave out {OPTION}group_column to use the splits as they are, or move the "
                f"file of {split} away, so that test images are drawn."
            )
    groups = read_groups(Path(root), name, [text for annotations in read.values() for text in annotations.groups[name]])
    ends = np.cumsum([len(annotations.images) for annotations in read.values()])[:-1]
    return dict(zip(read, np.split(groups, ends), strict=True))


def _classes(read: dict[Split, Annotations], field: str) -> tuple[list[str], dict[str, int]]:
    """Return the names of the classes, sorted by the ids of their categories, and the class of each category id."""
    values: dict[str, str] = {}
    for annotations in read.values():
        for number, value in class_values(annotations, field).items():
            if values.setdefault(number, value) != value:
                raise InputError(
                    f"category {number} of '{annotations.file}' is '{value}', but '{values[number]}' elsewhere: "
                    "number the categories of all splits alike."
                )
    used = sort_ids(list({number for annotations in read.values() for number in annotations.used()}))
    if field == "name":
        return distinct_names([(number, values[number]) for number in used]), {n: c for c, n in enumerate(used)}
    names = list(dict.fromkeys(values[number] for number in used))
    rank_zero_info(f"class_field '{field}': {len(used):,} categories are {len(names):,} classes.")
    index = {name: label for label, name in enumerate(names)}
    return names, {number: index[values[number]] for number in used}


def _has_one_label(
    root: str, read: dict[Split, Annotations], numbers: dict[Split, Indices], names: list[str], task: Task | None
) -> bool:
    """Return whether images have one label, by the option or by all annotations, and say so in one line."""
    of_all = np.concatenate(list(numbers.values()))
    total, none, several = len(of_all), int((of_all == 0).sum()), int((of_all > 1).sum())
    if task == "one" and several:
        wrong = [read[split].images[row] for split, n in numbers.items() for row in np.flatnonzero(n > 1)[:10]]
        raise InputError(
            f"task is one, but {several:,} of {total:,} images of '{root}' have several categories: "
            f"{enumerate_names(wrong[:5])}. Correct them, or set task to several."
        )
    explained = none == 0 or any(name.lower() in EMPTY for name in names)
    one = task == "one" or (task is None and not several and explained and len(names) > 1)
    if one and none:
        counts = f"{total - none:,} images of '{root}' have one category, and {none:,} without annotations are left out"
    elif one:
        counts = f"each of {total:,} images of '{root}' has one category"
    else:
        counts = f"of {total:,} images of '{root}', {several:,} have several categories and {none:,} have none"
    other = "several" if one else "one"
    remedy = "" if task or several else f" For {other} label{'s' * one} an image: {OPTION}task {other}."
    rank_zero_info(f"{'one label' if one else 'several labels'} an image: {counts}.{remedy}")
    return one


def _once(root: str, folder: Path, listings: dict[Split, Listing]) -> dict[Split, Listing]:
    """Return each image once, with the labels of all its entries; raise if it is in two splits, or has two classes."""
    keys = {split: [_normal(path) for path in listing.paths.tolist()] for split, listing in listings.items()}
    if len(set(chain(*keys.values()))) == sum(map(len, keys.values())):
        return listings
    first: dict[bytes, tuple[Split, object]] = {}
    across: list[str] = []
    differing: list[str] = []
    for split, listing in listings.items():
        labels = listing.labels.tolist() if listing.labels.ndim == 1 else repeat(None)
        for key, label in zip(keys[split], labels, strict=False):
            before = first.setdefault(key, (split, label))
            if before != (split, label):
                (differing if before[0] == split else across).append(os.fsdecode(key))
    remedy = f"correct them. For several labels an image: {OPTION}task several"
    if there := [path for path in across if (folder / path).exists()]:
        remedy = "keep each image in one split, so that none is both trained and tested on"
    if wrong := there or differing:
        kind = "split" if there else "category"
        raise InputError(
            f"{len(wrong)} images of '{root}' have more than one {kind}: {enumerate_names(wrong)}: {remedy}."
        )
    if across:
        names = enumerate_names(across)
        warn(f"{len(across)} images are listed more than once in '{root}', in several splits: {names}.")
    kept: dict[Split, Listing] = {}
    for split, listing in listings.items():
        _, rows, ids = np.unique(keys[split], return_index=True, return_inverse=True)
        if listing.labels.ndim == 2:
            np.maximum.at(listing.labels, rows[ids], listing.labels.copy())
        kept[split] = listing.select(np.sort(rows))
        if copies := len(ids) - len(rows):
            warn(
                f"{copies} images of '{root}' are listed more than once for {split}: each is used once, with all its "
                "labels."
            )
    return kept


def _normal(path: bytes) -> bytes:
    return os.path.normpath(path) if path.startswith(b"./") or b"/." in path or b"//" in path else path
