"""Find and read annotation files in COCO's format, which iNaturalist's competitions and camera traps use too."""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from lt_cb.data.sources.listing import MALFORMED, SPLIT_NAMES, SPLITS, Listing, Split, check_is_file, encode
from lt_cb.data.sources.tested import is_test_only
from lt_cb.errors import InputError, did_you_mean, enumerate_names
from lt_cb.longtail.subset import Indices

FOLDERS = ("annotations", "metadata")  # beside the images, with annotation files
ROBOFLOW = "_annotations.coco"  # stem of the file in the folder of each split
OTHER_KINDS = re.compile(r"(captions|person_keypoints|panoptic|stuff|image_info)_", re.IGNORECASE)  # COCO's other files


def find_annotations(root: Path) -> tuple[Path, dict[Split, Path]]:
    """Return the folder of a data set, and the annotation file of each split.

    A file as ``root`` is ``train`` if nothing else is there; other splits are files beside it if it is named after
    ``train``. Data to test on need no ``train``.
    """
    if root.is_file():
        is_roboflow, base = root.stem == ROBOFLOW, root.parent
        files: dict[Split, Path] = {"train": root}
        if base.name.lower() in FOLDERS or (is_roboflow and _split_of(base.name)):
            base = base.parent
        if _split_of(root.parent.name if is_roboflow else root.stem) == "train":
            files |= _other_splits(base, root)
        return base, files
    train = _one_of(root, _candidates(root, "train"))
    others = _other_splits(root, train or root)
    if train is None and others and is_test_only():
        return root, others
    if train is None and len(others) > 1:
        raise InputError(
            f"'{root}' has annotations of {' and '.join(others)}, {_names(root, list(others.values()))}, but none of "
            "training images: add train.json, or set --data.root to the file to divide."
        )
    if train is None:
        train, others = _one_of(root, [file for file in json_files(root) if not OTHER_KINDS.match(file.stem)]), {}
        if train is not None:
            others = _other_splits(root, train)
    return root, {} if train is None else {"train": train, **others}


def _other_splits(base: Path, train: Path) -> dict[Split, Path]:
    """Return the files of validation and test: named as the training file, or else the only one of the split."""
    found: dict[Split, Path] = {}
    for split in SPLITS[1:]:
        free = [file for file in _candidates(base, split) if file not in (train, *found.values())]
        alike = [file for file in free if _without_split(base, file) == _without_split(base, train)]
        if len(free := alike or free) > 1:
            rank_zero_info(
                f"several files may be the annotations of {split}: {_names(base, free)}. None of them is used."
            )
        elif free:
            found[split] = free[0]
    return found


def _one_of(base: Path, files: Sequence[Path]) -> Path | None:
    if len(files) > 1:
        raise InputError(
            f"several files of '{base}' may be the training annotations: {_names(base, files)}. Set --data.root to "
            "one of them."
        )
    return files[0] if files else None


def _names(base: Path, files: Sequence[Path]) -> str:
    return enumerate_names([os.path.relpath(file, base) for file in files])


def json_files(base: Path) -> list[Path]:
    """Return the JSON files where annotations may be."""
    folders = [base, *(folder for folder in sorted(base.iterdir()) if folder.name.lower() in FOLDERS)]
    files = [file for folder in folders for file in sorted(folder.glob("*.json"))]
    of_splits = [file for file in sorted(base.glob(f"*/{ROBOFLOW}.json")) if _split_of(file.parent.name)]
    return [file for file in files + of_splits if file.is_file()]


def _candidates(base: Path, split: Split) -> list[Path]:
    """Return the files that may have the annotations of a split, by the first rule that finds any; of years the last.

    An example of each rule: instances_train2017, train, annotations/train, train/_annotations.coco, x_train_y.
    """
    listed, word = json_files(base), f"(?:{'|'.join(SPLIT_NAMES[split])})"
    instances, plain = rf"instances_{word}\d*", rf"{word}\d*"
    rules = ((True, instances), (False, instances), (False, plain), (True, plain))
    for within, rule in rules:
        of_years = [f for f in listed if (f.parent != base) == within and re.fullmatch(rule, f.stem, re.IGNORECASE)]
        if of_years:
            return sorted(of_years)[-1:]
    named = [f for f in listed if f.stem == ROBOFLOW and f.parent != base and _split_of(f.parent.name) == split]
    rest = [file for file in listed if split in _splits_in(file.stem) and not OTHER_KINDS.match(file.stem)]
    return named or rest


def _splits_in(name: str) -> list[Split]:
    parts = re.split(r"[\W\d_]+", name.lower())
    return [split for split in SPLITS if set(parts) & set(SPLIT_NAMES[split])]


def _split_of(name: str) -> Split | None:
    found = _splits_in(name)
    return found[0] if len(found) == 1 else None


def _without_split(base: Path, file: Path) -> str:
    words = "|".join(word for names in SPLIT_NAMES.values() for word in sorted(names, key=len, reverse=True))
    return re.sub(rf"(?<![a-z])({words})(?![a-z])", "", os.path.relpath(file, base).lower())


def place_of_images(folder: Path, annotations: Path, split: Split, images: Sequence[str]) -> str:
    """Return where in a folder the file names start, judging by some of the images: a usual place, or a subfolder."""
    stem = annotations.stem.removeprefix("instances_")
    names = (stem, stem.rstrip("0123456789"), *SPLIT_NAMES[split])
    places = ["", *(place for name in names for place in (name, f"images/{name}")), "images"]
    if annotations.is_relative_to(folder):
        places.append(str(annotations.parent.relative_to(folder)))
    places += sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    some = images[:: max(1, len(images) // 4)]
    return next((place for place in places if any((folder / place / image).is_file() for image in some)), "")


ID, FILE_NAME, IMAGE_ID, CATEGORY_ID = range(4)  # places in an entry
FIELDS = ("id", "file_name", "image_id", "category_id")
GROUPS = ("location", "seq_id")  # fields of camera traps' images that tell what belongs together


class Annotations(NamedTuple):
    """Contents of one annotation file."""

    file: Path
    images: list[str]  # names of the files
    pairs: Indices  # positions of the annotations in images and in categories, shape (M, 2); M may be 0
    categories: dict[str, dict[str, Any]]  # all fields of each category by its id, sorted by id
    groups: dict[str, list[str]]  # by the name of a field that any image has, its text for each image, or ""

    def used(self) -> list[str]:
        """Return the ids of the categories that any image has."""
        ids = list(self.categories)
        return [ids[column] for column in np.bincount(self.pairs[:, 1]).nonzero()[0]]


def read_annotations(file: Path, group_fields: Sequence[str] = ()) -> Annotations:
    """Read an annotation file. It may have no annotations, as files of test images."""
    check_is_file(file)
    content = _parse(file, (*FIELDS, *group_fields))
    images, given, categories = (content.get(name) or [] for name in ("images", "annotations", "categories"))
    names = [str(name) for name in _field(file, images, "images", FILE_NAME)]
    ids = _ids(file, _field(file, images, "images", ID), "images")
    category_ids = _ids(file, [entry.get("id") for entry in categories], "categories")
    texts = _ids(file, list(map(_text, category_ids)), "categories")
    rows = _positions(ids, _field(file, given, "annotations", IMAGE_ID))
    columns = _positions(category_ids, _field(file, given, "annotations", CATEGORY_ID))
    pairs = np.array([rows, columns], np.int64).T
    if len(unknown := np.flatnonzero((pairs < 0).any(1))):
        entry = given[unknown[0]]
        raise InputError(
            f"{len(unknown)} of {len(given)} annotations of '{file}' have an image or category that the file does not "
            f"list, such as image {entry[IMAGE_ID]!r}, category {entry[CATEGORY_ID]!r}: complete its lists, or remove "
            "the annotations."
        )
    by_id = dict(zip(texts, categories, strict=True))
    order = {text: place for place, text in enumerate(sort_ids(texts))}
    if len(pairs):
        pairs[:, 1] = np.array([order[text] for text in texts], np.int64)[pairs[:, 1]]
    groups = {name: [entry[place] for entry in images] for place, name in enumerate(group_fields, len(FIELDS))}
    groups = {name: list(map(_text, values)) for name, values in groups.items() if values.count(None) < len(values)}
    return Annotations(file, names, pairs, {text: by_id[text] for text in order}, groups)


def _parse(file: Path, kept: Sequence[str]) -> dict[str, Any]:
    """Return the lists of an annotation file, with images and annotations as tuples of some fields."""

    def entry(fields: dict[str, Any]) -> object:
        """Return the needed fields of an image or an annotation: they take a tenth of the memory."""
        return tuple(map(fields.get, kept)) if "file_name" in fields or "image_id" in fields else fields

    try:
        content: Any = json.loads(_read(file), object_hook=entry)
        if _is_complete(content):
            return dict(content)
        content = json.loads(_read(file))
    except MALFORMED as error:
        raise InputError(
            f"'{file}' is no annotation file with images, annotations and categories ({error}): fetch it again, "
            "or read a table by --data.source Manifest."
        ) from error
    why = "a single value"
    if isinstance(content, list):
        fields = f" with {enumerate_names(list(content[0]))}" if content and isinstance(content[0], dict) else ""
        why = f"a list of {len(content)} entries{fields}"
    elif isinstance(content, dict):
        empty = enumerate_names([name for name in ("images", "categories") if name in content and not content[name]])
        without = f" without any entry in {empty}" if empty else ""
        why = f"an object with {enumerate_names(list(content)) or 'nothing'}{without}"
    raise InputError(
        f"'{file}' is no annotation file with images, annotations and categories, but {why}: export it in COCO's "
        "format. A table, also as JSON lines (.jsonl), is read by --data.source Manifest."
    )


def _read(file: Path) -> str:
    text = file.read_bytes()
    return text.decode(json.detect_encoding(text))


def _is_complete(content: object) -> bool:
    """Return whether there are images, and categories if there are annotations."""
    if not isinstance(content, dict):
        return False
    images, annotations, categories = (content.get(name) or [] for name in ("images", "annotations", "categories"))
    if not all(isinstance(entries, list) for entries in (images, annotations, categories)):
        return False
    return bool(images) and all(isinstance(entry, dict) for entry in categories) and bool(categories or not annotations)


def _field(file: Path, entries: Sequence[Any], kind: str, place: int) -> list[Any]:
    """Return a field of all entries, which must have it."""
    values = [entry[place] if type(entry) is tuple else None for entry in entries]
    if None in values:
        raise InputError(
            f"{values.count(None)} of {len(values)} {kind} of '{file}' have no {FIELDS[place]}, such as the one at "
            f"position {values.index(None) + 1}: complete them, or set --data.root to another file."
        )
    return values


def _ids(file: Path, ids: list[Any], kind: str) -> list[Any]:
    """Return ids, which must be numbers or texts, each once."""
    if wrong := [number for number in ids if type(number) not in (int, str, float)]:
        given = "null or missing" if wrong[0] is None else json.dumps(wrong[0])[:40]
        raise InputError(f"{kind} of '{file}' have the id {given}, but an id is a number or a text: number them anew.")
    if len(set(ids)) < len(ids):
        repeated = next(number for number, count in Counter(ids).items() if count > 1)
        raise InputError(
            f"'{file}' gives the same id to several images or categories, such as {repeated!r} to two {kind}: number "
            "them anew."
        )
    return ids


def _text(number: object) -> str:
    if number is None:
        return ""
    return str(int(number) if isinstance(number, float) and number.is_integer() else number)


def sort_ids(ids: Sequence[str]) -> list[str]:
    """Return ids sorted by value if all are whole numbers, otherwise alphabetically."""
    whole = all(re.fullmatch(r"-?\d+", text) for text in ids)
    return sorted(ids, key=(lambda text: (int(text), text)) if whole else None)


def _positions(ids: list[Any], given: list[Any]) -> list[int]:
    """Return the position of each given id, or -1. A number may be written as a text in one of both."""
    for texts in ((lambda values: values), (lambda values: list(map(_text, values)))):
        index = {number: position for position, number in enumerate(texts(ids))}
        try:
            found = [index.get(number, -1) for number in texts(given)]
        except TypeError:  # a list
            continue
        if -1 not in found:
            break
    return found


def distinct_names(categories: Sequence[tuple[str, str]]) -> list[str]:
    """Return the names of categories, with their ids if names repeat."""
    names = [name for _, name in categories]
    return names if len(set(names)) == len(names) else [f"{name} ({number})" for number, name in categories]


def class_values(annotations: Annotations, field: str) -> dict[str, str]:
    """Return a field of each category that has it, by id. Categories that images have must have it."""
    file, categories = annotations.file, annotations.categories
    fields = {name for category in categories.values() for name in category}
    if field not in fields:
        existing = enumerate_names(sorted(fields))
        near = did_you_mean(field, fields)
        raise InputError(f"class_field is '{field}', but the categories of '{file}' have {existing}.{near}")
    given = {number: category.get(field) for number, category in categories.items()}
    values = {number: str(value) for number, value in given.items() if value not in (None, "")}
    if lacking := [number for number in annotations.used() if number not in values]:
        raise InputError(
            f"{len(lacking)} of the categories that images of '{file}' have are without a {field}, such as the one "
            f"with id {lacking[0]}: complete them, or set class_field to another field."
        )
    return values


def image_fields(file: Path) -> list[str]:
    """Return the fields of the first image."""
    return sorted(json.loads(_read(file))["images"][0])


def list_annotations(file: Path) -> Listing:
    """Return one image for each annotation, as in iNaturalist's competitions. Classes are all categories, by id."""
    annotations = read_annotations(file)
    check_annotated(annotations)
    values = class_values(annotations, "name")
    names = distinct_names([(number, values.get(number, number)) for number in annotations.categories])
    images, pairs = annotations.images, annotations.pairs
    return Listing(encode(images[row] for row in pairs[:, 0]), pairs[:, 1], names)


def check_annotated(annotations: Annotations) -> None:
    """Check that a file of training images has annotations."""
    if not len(annotations.pairs):
        raise InputError(f"'{annotations.file}' has no annotated image: set --data.root to another file.")
