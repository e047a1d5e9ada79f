"""COCO: images with several labels, from annotation files in COCO's format."""

import os
import re
from pathlib import Path

import numpy as np

from lt_cb.data.sources.base import FileSource, check_classes, with_test
from lt_cb.data.sources.checks import warn_of_repeated_paths
from lt_cb.data.sources.listing import Listing, Split, data_folder, distinct_names, encode, read_annotations
from lt_cb.errors import InputError

FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}


class COCO(FileSource):
    """Images labelled with the categories of their annotations, in COCO's JSON format.

    - Annotations of each split: ``annotations/instances_train2017.json`` (any year; the last one counts), or
      ``train.json`` in the root or in ``annotations``, or ``train/_annotations.coco.json``. Validation is ``val`` or
      ``valid``, and becomes the test split if there is no other.
    - Images: as the annotations say, or in the folder ``train2017``, ``train`` or ``images``, or beside the
      annotations. An image without annotations has no label.
    - Classes: the categories in the order of their ids, without categories that no image has.

    Args:
        root: folder of annotations and images.
    """

    default_size = 224
    annotated_apart = True

    def __init__(self, root: str) -> None:
        base = data_folder(root)
        files = with_test({split: file for split in FOLDERS if (file := _find(base, split)) is not None})
        if missing := {"train", "test"} - files.keys():
            raise InputError(
                f"'{root}' has no annotations of split {max(missing)}: it needs annotations/instances_train2017.json, "
                "train.json or train/_annotations.coco.json, and the same of val or test."
            )
        super().__init__(root, _list(base, files))
        check_classes(self, "add annotations, or leave the category out")
        warn_of_repeated_paths(self)


def _find(root: Path, split: Split) -> Path | None:
    """Return the annotation file of a split, or None."""
    for name in FOLDERS[split]:
        listed = sorted((root / "annotations").glob(f"instances_{name}*.json"))
        years = [file for file in listed if re.fullmatch(rf"instances_{name}\d*", file.stem)]
        others = (root / f"{name}.json", root / f"annotations/{name}.json", root / name / "_annotations.coco.json")
        if found := [*years[-1:], *filter(Path.is_file, others)]:
            return found[0]
    return None


def _list(root: Path, files: dict[Split, Path]) -> dict[Split, Listing]:
    """Return the images of each split. Classes are the categories, sorted by id, that any image has."""
    read = {split: read_annotations(file) for split, file in files.items()}
    names: dict[int, str] = {}
    used: set[int] = set()
    for split, (_, pairs, categories) in read.items():
        for number, name in categories:
            if names.setdefault(number, name) != name:
                raise InputError(
                    f"category {number} of '{files[split]}' is '{name}', but '{names[number]}' elsewhere: "
                    "number the categories of all splits alike."
                )
        used |= {categories[column][0] for column in np.unique(pairs[:, 1])}
    label_of = {number: label for label, number in enumerate(sorted(used))}
    class_names = distinct_names([(number, names[number]) for number in label_of])
    listings: dict[Split, Listing] = {}
    for split, (images, pairs, categories) in read.items():
        labels = np.zeros((len(images), len(used)), np.int8)
        labels[pairs[:, 0], [label_of[categories[column][0]] for column in pairs[:, 1]]] = 1
        folder = _image_folder(root, files[split], images[0])
        listings[split] = Listing(encode(os.path.join(folder, image) for image in images), labels, class_names)
    return listings


def _image_folder(root: Path, annotations: Path, first: str) -> str:
    """Return the folder in the root that file names start from, judging by the first image."""
    stem = annotations.stem.removeprefix("instances_")
    own = str(annotations.parent.relative_to(root))
    places = ("", stem, f"images/{stem}", stem.rstrip("0123456789"), "images", own)
    return next((place for place in places if (root / place / first).is_file()), "")
