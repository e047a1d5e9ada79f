"""Find the annotation files of a data set, and the folder of its images."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from lt_cb.data.sources.listing import SPLIT_NAMES, SPLITS, Split
from lt_cb.data.sources.tested import is_test_only
from lt_cb.errors import InputError, enumerate_names

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
    """Return the splits that words in a name stand for."""
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
