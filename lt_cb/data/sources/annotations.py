"""Read annotation files in COCO's format, which iNaturalist's competitions and camera traps use too."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lt_cb.data.sources.listing import MALFORMED, Listing, check_is_file, encode
from lt_cb.errors import InputError, did_you_mean, enumerate_names
from lt_cb.longtail.subset import Indices

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
