"""Folders of images: find the files, and list a tree with a folder for each class."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np

from lt_cb.data.decode import is_image
from lt_cb.data.images import progress
from lt_cb.data.sources.listing import Listing, encode
from lt_cb.errors import InputError


def find_images(folder: Path) -> list[Path]:
    """Return the image files under a folder, sorted."""
    return sorted(Path(place, name) for place, names in walk(folder) for name in names if is_image(name))


def walk(folder: Path, *outside: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder from ``folder`` on, except those ``outside``, with the names of its files.

    Links are followed, but each folder is visited only once, so that links in a circle end.
    """
    visited = {os.path.realpath(path) for path in outside}
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:
            folders.clear()
        else:
            visited.add(real)
            folders.sort()
            yield place, names


def _refuse(error: OSError) -> NoReturn:
    raise InputError(f"'{error.filename}' cannot be read ({error.strerror}): change its permissions.") from error


def list_tree(folder: Path, least: int = 2) -> Listing:
    """Return the images in at least ``least`` class folders, by class in alphabetical order, then by path."""
    if not folder.is_dir():
        raise InputError(
            f"there is no folder '{folder}': set --data.root to a folder that has {folder.name}/<class>/*."
        )
    names = _class_folders(folder, least)
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(progress(names, f"Finding images in {folder}", len(names))):
        places = [(os.path.relpath(place, folder), files) for place, files in walk(folder / name, folder)]
        paths += sorted(f"{place}/{file}" for place, files in places for file in files if is_image(file))
        labels += [label] * (len(paths) - len(labels))
    return Listing(encode(paths), np.array(labels, np.int64), names)


def _class_folders(folder: Path, least: int) -> list[str]:
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    if len(names) < least:
        why = "but a classifier needs at least 2" if least > 1 else f"but must have {folder.name}/<class>/*"
        raise InputError(f"'{folder}' has {len(names)} class folders, {why}.")
    if stray := [entry.name for entry in entries if is_image(entry.name) and not entry.is_dir()]:
        raise InputError(
            f"{len(stray)} images lie in '{folder}' itself, such as '{stray[0]}': move each to its class's folder."
        )
    return names
