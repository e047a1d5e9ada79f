"""COCO: images with several labels, from annotation files in COCO's format."""

import os
import re
from pathlib import Path

import numpy as np

from lt_cb.data.sources.base import FileSource, Split, check_classes
from lt_cb.data.sources.listing import Listing, encode, read_annotations
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

    Raises:
        InputError: if annotations are missing or damaged, or a class has no training image.
    """

    default_size = 224
    multi_label = True

    def __init__(self, root: str) -> None:
        base = Path(os.path.expanduser(root))
        found = {split: file for split in FOLDERS if (file := _find(base, split)) is not None}
        if "test" not in found and "val" in found:
            found["test"] = found.pop("val")
        if missing := {"train", "test"} - found.keys():
            raise InputError(
                f"'{root}' has no annotations of split {max(missing)}: it needs annotations/instances_train2017.json, "
                "train.json or train/_annotations.coco.json, and the same of val or test."
            )
        self.has_val = "val" in found
        read = {split: _read_coco(file) for split, file in found.items()}
        names: dict[int, str] = {}
        for split, listing in read.items():
            for text in listing.class_names:
                number, _, name = text.partition(" ")
                if names.setdefault(int(number), name) != name:
                    raise InputError(
                        f"category {number} of '{found[split]}' is '{name}', but '{names[int(number)]}' elsewhere: "
                        "number the categories of all splits alike."
                    )
        self._listings = _with_same_classes(read, names)
        for split, listing in self._listings.items():
            below = _image_folder(base, found[split], listing)
            paths = [os.path.join(below, path) for path in listing.paths.tolist()]
            self._listings[split] = listing._replace(paths=np.array(paths, bytes))
        super().__init__(root)
        check_classes(self, "add annotations, or leave the category out")

    def listing(self, split: Split) -> Listing:
        """Return the images of a split."""
        return self._listings[split]


def _find(root: Path, split: Split) -> Path | None:
    """Return the annotation file of a split, or None."""
    for name in FOLDERS[split]:
        years = [
            file
            for file in sorted((root / "annotations").glob(f"instances_{name}*.json"))
            if re.fullmatch(rf"instances_{name}\d*\.json", file.name)
        ]
        others = (root / f"{name}.json", root / f"annotations/{name}.json", root / name / "_annotations.coco.json")
        if found := [*years[-1:], *(file for file in others if file.is_file())]:
            return found[0]
    return None


def _read_coco(file: Path) -> Listing:
    """Return all images; a class name is the id of the category, a space, and its name."""
    images, pairs, categories = read_annotations(file)
    labels = np.zeros((len(images), len(categories)), np.int8)
    labels[pairs[:, 0], pairs[:, 1]] = 1
    return Listing(encode(images), labels, [f"{number} {name}" for number, name in categories])


def _with_same_classes(read: dict[Split, Listing], names: dict[int, str]) -> dict[Split, Listing]:
    """Return listings whose classes are the categories, sorted by id, that any image has."""
    columns = {split: [int(text.partition(" ")[0]) for text in listing.class_names] for split, listing in read.items()}
    used = {
        number
        for split, listing in read.items()
        for number, column in zip(columns[split], listing.labels.T, strict=True)
        if column.any()
    }
    ordered = sorted(used)
    unique = len({names[number] for number in ordered}) == len(ordered)
    class_names = [names[number] if unique else f"{names[number]} ({number})" for number in ordered]
    aligned: dict[Split, Listing] = {}
    for split, listing in read.items():
        labels = np.zeros((len(listing.paths), len(ordered)), np.int8)
        for number, column in zip(columns[split], listing.labels.T, strict=True):
            if number in used:
                labels[:, ordered.index(number)] = column
        aligned[split] = Listing(listing.paths, labels, class_names)
    return aligned


def _image_folder(root: Path, annotations: Path, listing: Listing) -> bytes:
    """Return the folder in the root that the paths of a listing start from, judging by the first image."""
    stem = annotations.stem.removeprefix("instances_")
    own = str(annotations.parent.relative_to(root))
    first = os.fsdecode(listing.paths[0])
    places = ("", stem, f"images/{stem}", stem.rstrip("0123456789"), "images", own)
    return os.fsencode(next((place for place in places if (root / place / first).is_file()), ""))
