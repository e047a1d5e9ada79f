"""Folders of images: find the splits and the files, and list a tree with a folder for each class."""

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NoReturn

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from lt_cb.data.decode import is_image
from lt_cb.data.images import progress
from lt_cb.data.sources.listing import SPLIT_NAMES, Listing, Split, encode
from lt_cb.data.sources.tested import is_test_only
from lt_cb.errors import DataError, InputError, enumerate_names
from lt_cb.say import warn

# files that often lie among images: hidden, or made by a file manager, or on the data
ACCOMPANYING = re.compile(r"(^|/)(\.|(thumbs\.db|desktop\.ini|(readme|licen[sc]e|copying)(\..*)?)$)", re.IGNORECASE)
MASK = re.compile(r"_(mask|seg|segmentation|label)(_\d+)?\.\w+$", re.IGNORECASE)
LAYOUTS = "train/<class>/* (also val and test, if you have them) or <class>/* for 2 classes or more"


def find_splits(root: Path) -> dict[Split, Path]:
    """Return the folder of each split, none if the folders in root are the classes; warn of ignored folders."""
    names = subfolders(root)
    splits: dict[Split, Path] = {}
    for split, usual in SPLIT_NAMES.items():
        rank = {name: (usual.index(name.lower()), name != name.lower()) for name in names if name.lower() in usual}
        if rank:
            splits[split] = root / min(rank, key=rank.__getitem__)
    splits = splits or _splits_by_word(root, names)
    hint, nested = _hint(names), len(names) == 1 and len(subfolders(root / names[0])) > 1
    # all folders have folders instead of images, and a name such as ``trian`` is among them
    is_misspelt = bool(hint) and all(subfolders(root / name) and not _stray(root / name) for name in names)
    if is_test_only():
        is_wrong = not splits and (not names or (nested and not _stray(root / names[0])) or is_misspelt)
    else:
        is_wrong = "train" not in splits and (bool(splits) or len(names) < 2 or is_misspelt)
    if is_wrong:
        hint = f" Did you mean --data.root '{root / names[0]}'?" if nested and not splits else hint
        raise InputError(f"'{root}' needs {LAYOUTS}, but its folders are: {enumerate_names(names) or 'none'}.{hint}")
    read = [folder.relative_to(root).parts[0] for folder in splits.values()]
    others = [name for name in names if name not in read and has_images(root / name)]
    if splits and others:
        warn(
            f"Images of '{root}' are read only from {enumerate_names(read)}. Other folders with images are ignored: "
            f"{enumerate_names(others)}." + _hint(others)
        )
    return {split: folder for split, folder in splits.items() if split == "train" or not _has_no_classes(folder)}


def _splits_by_word(root: Path, names: Sequence[str]) -> dict[Split, Path]:
    """Return folders such as ``seg_train`` and ``test_set``, if they have class folders, or one folder of their name.

    A class may be a ``toy train``: its folder has images.
    """
    splits: dict[Split, Path] = {}
    for split, usual in SPLIT_NAMES.items():
        named = [name for name in names if set(re.split(r"[\W_]+", name.lower())) & set(usual)]
        folders = [root / name / name if subfolders(root / name) == [name] else root / name for name in named]
        if len(folders) == 1 and len(subfolders(folders[0])) > 1 and not _stray(folders[0]):
            splits[split] = folders[0]
    if "train" not in splits:
        return {}
    read = ", ".join(f"{split} '{folder.relative_to(root)}'" for split, folder in splits.items())
    rank_zero_info(f"guessed for '{root}': {read}, by a word of their names.")
    return splits


def _has_no_classes(folder: Path) -> bool:
    """Return whether a folder has images without a class, as the test images of many competitions; warn of it."""
    if images := [] if subfolders(folder) else _stray(folder):
        none = f"'{folder}' has {len(images)} images, but no folders of classes"
        warn(f"{none}: not used. Predict them by lt-cb predict.")
    return bool(images)


def _hint(names: Sequence[str]) -> str:
    """Return a question about names that are nearly names of splits, or an empty string."""
    known = [name for usual in SPLIT_NAMES.values() for name in usual]
    meant = {name: difflib.get_close_matches(name.lower(), known, 1, 0.75) for name in names}
    questions = [f"'{near[0]}' by '{name}'" for name, near in meant.items() if near and near[0] != name.lower()]
    return f" Did you mean {', '.join(questions)}?" if questions else ""


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones, a Mac's archive, and runs of lt_cb."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if "runs" in names and any(chain(*map((folder / "runs").glob, ("*/inspect.html", "*/version_*/config.yaml")))):
        names.remove("runs")
    return [name for name in names if not name.startswith((".", "__MACOSX"))]


def _stray(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if is_image(entry.name) and not entry.is_dir())


def has_images(folder: Path) -> bool:
    """Return whether an image is in a folder or below it."""
    return any(is_image(name) for _, _, names in os.walk(folder) for name in names)


def find_images(folder: Path) -> list[Path]:
    """Return the image files under a folder, sorted; warn of other files."""
    files = [Path(place, name) for place, names in walk(folder) for name in names]
    warn_of_others([str(file) for file in files if is_other(file.relative_to(folder))])
    return sorted(file for file in files if is_image(file.name))


def is_other(file: Path) -> bool:
    """Return whether a file, relative to its folder, may have been meant as an image, but is not named as one."""
    return not is_image(file.name) and ACCOMPANYING.search(file.as_posix()) is None


def warn_of_others(files: Sequence[str]) -> None:
    """Warn of files that are no images, if there are any."""
    if files := sorted(set(files)):
        are = "1 file is no image" if len(files) == 1 else f"{len(files)} files are no images"
        names = enumerate_names(files)
        warn(f"{are} that can be read, going by the name: {names}. Skipped; convert images to JPEG or PNG.")


def _raise(error: OSError) -> NoReturn:
    raise error


def walk(folder: Path, *outside: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder from ``folder`` on, except those ``outside``, with the names of its files.

    Links are followed, but each folder is visited only once, so that links in a circle end.
    """
    visited = {os.path.realpath(path) for path in outside}
    for place, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:
            folders.clear()
        else:
            visited.add(real)
            folders.sort()
            yield place, names


def list_tree(folder: Path, least: int = 2) -> Listing:
    """Return the images in at least ``least`` class folders, by class in alphabetical order, then by path."""
    if not folder.is_dir():
        raise InputError(
            f"there is no folder '{folder}': set --data.root to a folder that has {folder.name}/<class>/*."
        )
    names = subfolders(folder)
    if len(names) < (1 if is_test_only() else least):
        why = "but a classifier needs at least 2" if least > 1 else f"but must have {folder.name}/<class>/*"
        raise DataError(f"'{folder}' has {len(names)} class folders, {why}.")
    if stray := _stray(folder):
        raise DataError(
            f"{len(stray)} images lie in '{folder}' itself, such as '{stray[0]}': move each to its class's folder."
        )
    paths: list[str] = []
    others: list[str] = []
    labels: list[int] = []
    parts: set[frozenset[str]] = set()  # folders in the class folders
    for label, name in enumerate(progress(names, f"Finding images in {folder}", len(names))):
        walked = [(os.path.relpath(place, folder), files) for place, files in walk(folder / name, folder)]
        files = [f"{place}/{file}" for place, files in walked for file in files]
        found = sorted(file for file in files if is_image(os.path.basename(file)))
        others += [str(folder / file) for file in files if is_other(Path(file))]
        parts.add(frozenset(path.split("/")[1] if path.count("/") > 1 else "" for path in found))
        paths += found
        labels += [label] * len(found)
    warn_of_others(others)
    _warn_of_parts(folder, paths, parts)
    return Listing(encode(paths), np.array(labels, np.int64), names)


def _warn_of_parts(folder: Path, paths: Sequence[str], parts: set[frozenset[str]]) -> None:
    """Warn if class folders have the same folders, which may be masks or splits, or if files are named as masks."""
    found = frozenset().union(*parts)
    of_splits = found <= {name for name in found if name.lower() in chain(*SPLIT_NAMES.values())}
    masks = {path for path in paths if MASK.search(path)}
    if len(found) > 1 and (len(parts) == 1 or of_splits):
        warn(
            f"the class folders of '{folder}' have images in the same folders, {enumerate_names(sorted(found))}: all "
            "are read as images of the class. If they are splits, put them above the classes. If they are the classes, "
            "put each into one folder. If they are masks, move them away."
        )
    elif masks and {MASK.sub("", path) for path in masks} <= {os.path.splitext(path)[0] for path in paths}:
        warn(
            f"{len(masks)} of {len(paths)} images in '{folder}' are named as masks of others, such as '{min(masks)}': "
            "they are read as images of the class. Move them away if they are masks."
        )
