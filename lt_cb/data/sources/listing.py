"""Lists of image files and their classes: from folders, annotations and lists, each read once and then cached.

What is missing, or has another format, raises an `InputError` that names it.
"""

import csv
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lt_cb.data.cache import Arrays, cache_file, read_cache, stamp, write_cache
from lt_cb.data.images import folder_id, is_image, progress, walk
from lt_cb.longtail.subset import Indices, Labels
from lt_cb.errors import InputError, enumerate_names

Paths = npt.NDArray[np.bytes_]  # half a million of them are one object, which processes share
ALL = ""  # the split of what has none
WORTH_CACHING = 10_000  # files; fewer are listed anew in less than a second


class Listing(NamedTuple):
    """Image files of one split of a data set."""

    paths: Paths  # shape (N,), below a folder
    labels: Labels  # class indices, int64 of shape (N,), or of several labels an image int8 of shape (N, C)
    class_names: list[str]  # C of them; some may have no file here


def list_tree(folder: Path, least: int = 2) -> Listing:
    """Return the images in the class folders of a folder, by class in alphabetical order, then by path.

    The list of a large tree is cached until the time of change of one of its folders differs.

    Args:
        folder: with a folder a class.
        least: class folders that it must have.
    """
    if not folder.is_dir():
        raise InputError(
            f"there is no folder '{folder}': set --data.root to a folder that has {folder.name}/<class>/*."
        )
    cache = cache_file("tree", str(folder.absolute()))
    cached = read_cache(cache)
    if cached is not None and _unchanged(cached):
        return _from_arrays(cached)[ALL]
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    if len(names) < least:
        why = "but a classifier needs at least 2" if least > 1 else f"but must have {folder.name}/<class>/*"
        raise InputError(f"'{folder}' has {len(names)} class folders, {why}.")
    if stray := [entry.name for entry in entries if is_image(entry.name) and not entry.is_dir()]:
        raise InputError(
            f"{len(stray)} images lie in '{folder}' itself, as '{stray[0]}': move each to its class's folder."
        )
    paths: list[str] = []
    counts, folders, above = [], [str(folder)], frozenset([folder_id(folder)])
    for name in progress(names, f"Finding images in {folder}", len(names)):
        images: list[str] = []
        for place, files in walk(folder / name, above):
            folders.append(place)
            below = os.path.relpath(place, folder)
            images += [f"{below}/{file}" for file in files if is_image(file)]
        paths += sorted(images)
        counts.append(len(images))
    listing = Listing(encode(paths), np.repeat(np.arange(len(names)), counts), names)
    if len(paths) >= WORTH_CACHING:
        changed = np.array([os.stat(place).st_mtime_ns for place in folders])
        if changed.max() < time.time_ns() - 2 * 10**9:  # else a change to come may have the same time
            arrays = {**_to_arrays({ALL: listing}), "folders": encode(folders), "changed": changed}
            write_cache(cache, "looks for the images", arrays)
    return listing


def _unchanged(cached: Arrays) -> bool:
    try:
        now = [os.stat(place).st_mtime_ns for place in cached["folders"]]
    except OSError:
        return False
    return bool((cached["changed"] == now).all())


def list_annotations(file: Path) -> Listing:
    """Return the images of an annotation file as iNaturalist's competitions have it (that of COCO), in its order.

    The classes are its categories by id.
    """
    return cached_listings(file, _read_annotations)[ALL]


def _read_annotations(file: Path) -> dict[str, Listing]:
    try:
        content = json.loads(file.read_bytes())
        categories = sorted((category["id"], category["name"]) for category in content["categories"])
        files = {image["id"]: image["file_name"] for image in content["images"]}
        index = {category: label for label, (category, _) in enumerate(categories)}
        labels = np.array([index[entry["category_id"]] for entry in content["annotations"]], np.int64)
        paths = encode([files[entry["image_id"]] for entry in content["annotations"]])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"'{file}' is no annotation file with images, annotations and categories ({error}): fetch it again."
        ) from error
    names = [name for _, name in categories]
    unique = len(set(names)) == len(names)
    return {ALL: Listing(paths, labels, names if unique else [f"{name} ({id_})" for id_, name in categories])}


def category_names(file: Path, otherwise: list[str]) -> list[str]:
    """Return the names in a file of iNaturalist's categories, in the order of their ids, if they fit.

    Args:
        file: a JSON list of categories with id and name.
        otherwise: C names, returned unchanged unless the file has C distinct names.
    """
    try:
        names = [name for _, name in sorted((entry["id"], entry["name"]) for entry in json.loads(file.read_bytes()))]
    except (ValueError, KeyError, TypeError):
        return otherwise
    return names if len(set(names)) == len(otherwise) else otherwise


def list_lines(file: Path) -> Listing:
    """Return the images of a list file, which has a path and a class index a line, in its order.

    Classes have the names of their folders, or their numbers if they share folders.
    """
    return cached_listings(file, _read_lines)[ALL]


def _read_lines(file: Path) -> dict[str, Listing]:
    paths, labels = [], []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(b" ")
        if not path or not label.isdigit():
            raise InputError(
                f"line {number} of '{file}' is '{os.fsdecode(line)[:80]}', but must be a path and a class index."
            )
        paths.append(path.strip())
        labels.append(int(label))
    return {ALL: _named_by_folder(np.array(paths, bytes), np.array(labels, np.int64))}


def _named_by_folder(paths: Paths, labels: Indices) -> Listing:
    num_classes = int(labels.max(initial=-1)) + 1
    if num_classes > max(10 * len(labels), 100_000):
        raise InputError(
            f"a list of {len(labels)} images has class index {num_classes - 1}, but indices go from 0 to C - 1: number "
            "the classes anew, or use a table, where a label is a name."
        )
    folders: dict[int, str] = {}
    shared = False
    for path, label in zip(paths.tolist(), labels.tolist(), strict=True):
        folder = os.fsdecode(path.rpartition(b"/")[0])
        shared = shared or folders.setdefault(label, folder) != folder
    if shared or len(set(folders.values())) != num_classes or num_classes < 2:
        return Listing(paths, labels, [str(label) for label in range(num_classes)])
    common = os.path.commonpath(list(folders.values()))
    return Listing(paths, labels, [os.path.relpath(folders[label], common or ".") for label in range(num_classes)])


def read_csv(file: Path, otherwise: str) -> dict[str, list[Any]]:
    """Return the columns by the names in the header.

    Raises:
        InputError: if it cannot be read, or a row has too few or many fields; ``otherwise`` is what the sentence on the
            former ends with.
    """
    rows: list[list[str]] = []
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            for row in (reader := csv.reader(stream)):
                if row and len(row) != len(rows[0] if rows else row):
                    raise InputError(
                        f"line {reader.line_num} of '{file}' has {len(row)} fields, but the header has {len(rows[0])}."
                    )
                rows += [row] if row else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{file}' cannot be read as CSV with a header ({error}): {otherwise}") from error
    header = rows[0] if rows else []
    return {name.strip(): [row[i] for row in rows[1:]] for i, name in enumerate(header)}


def check_files(folder: Path, paths: Paths) -> None:
    """Look for all files of a list at once, and remember that none is missing.

    Raises:
        InputError: if one is, or lies elsewhere than its path lets a reader think.
    """
    cache = cache_file("below", str(folder.absolute()), paths.tobytes())
    if read_cache(cache) is not None:
        return
    names = [os.fsdecode(path) for path in paths.tolist() if b".." in path]
    if leaving := [name for name in names if not os.path.isabs(name) and os.path.normpath(name).startswith("..")]:
        raise InputError(
            f"{len(leaving)} of {len(paths)} paths lead out of '{folder}': {enumerate_names(leaving)}. Write them "
            "whole, from / on, if that is meant."
        )
    existing: dict[bytes, set[bytes]] = {}  # names of the files in each folder
    missing = []
    base = os.fsencode(folder)
    for path in progress(paths.tolist(), f"Looking for the images in {folder}", len(paths)):
        place, _, name = path.rpartition(b"/")
        if place not in existing:
            try:
                existing[place] = set(os.listdir(os.path.join(base, place)))
            except OSError:
                existing[place] = set()
        if name not in existing[place]:
            missing.append(os.fsdecode(path))
    if missing:
        raise InputError(
            f"{len(missing)} of {len(paths)} images are not in '{folder}': {enumerate_names(missing)}. Set --data.root "
            "to where they are."
        )
    if len(paths) >= WORTH_CACHING:
        write_cache(cache, "looks for the images", {})


def cached_listings(file: Path, read: Callable[..., dict[str, Listing]], *options: str) -> dict[str, Listing]:
    """Return what a file lists by split, read with options or from the cache."""
    if not file.is_file():
        what = "is a folder, not a file" if file.is_dir() else "is not there"
        raise InputError(f"the list of images '{file}' {what}: set --data.root to where it is.")
    cache = cache_file("2", read.__name__, stamp(file), *(f"{option}\0" for option in options))
    arrays = read_cache(cache)
    if arrays is None:
        listings = read(file, *options)
        if not any(len(listing.paths) for listing in listings.values()):
            raise InputError(f"'{file}' names no image: set --data.root to another.")
        if sum(len(listing.paths) for listing in listings.values()) >= WORTH_CACHING:
            write_cache(cache, f"reads '{file}'", _to_arrays(listings))
        return listings
    return _from_arrays(arrays)


def _to_arrays(listings: dict[str, Listing]) -> Arrays:
    return {
        f"{split}:{name}": np.asarray(values)
        for split, listing in listings.items()
        for name, values in listing._asdict().items()
    }


def _from_arrays(arrays: Arrays) -> dict[str, Listing]:
    splits = dict.fromkeys(key.partition(":")[0] for key in arrays if ":" in key)
    return {
        split: Listing(arrays[f"{split}:paths"], arrays[f"{split}:labels"], arrays[f"{split}:class_names"].tolist())
        for split in splits
    }


def encode(paths: Sequence[str]) -> Paths:
    """Return paths as one array."""
    return np.array([os.fsencode(path) for path in paths], bytes)
