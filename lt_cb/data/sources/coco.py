"""Annotations in the format of COCO, of which an image may have several."""

import json
import os
import re
from pathlib import Path

import numpy as np

from lt_cb.data.sources.base import FileSource, Split, check_classes
from lt_cb.data.sources.listing import ALL, Listing, cached_listings, encode
from lt_cb.errors import InputError

FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}


class COCO(FileSource):
    """Images whose labels are the categories of their annotations, in the JSON format of COCO.

    For each split ``annotations/instances_train2017.json`` (of any year, the last if there are several), or
    ``train.json``, here or in ``annotations``, or ``train/_annotations.coco.json``; validation is ``val`` or ``valid``,
    and is the test split where there is no other. Images where these say, or in the folder ``train2017``, ``train`` or
    ``images``, or beside the annotations. One without annotations has no label. Classes are the categories by id, but
    for those that no image of any split has.

    Args:
        root: folder of all that.

    Raises:
        InputError: if annotations are missing or damaged, or a class has no image to train on.
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
        read = {split: cached_listings(file, _read_coco)[ALL] for split, file in found.items()}
        names: dict[int, str] = {}
        for split, listing in read.items():
            for text in listing.class_names:
                number, _, name = text.partition(" ")
                if names.setdefault(int(number), name) != name:
                    raise InputError(
                        f"category {number} of '{found[split]}' is '{name}', but '{names[int(number)]}' elsewhere: "
                        "number the categories of all splits alike."
                    )
        self._listings = _by_category(read, names)
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
    """Return the annotations of a split, None if there are none."""
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


def _read_coco(file: Path) -> dict[str, Listing]:
    """Return the images of annotations, whose classes are all categories by id, named with it."""
    try:
        content = json.loads(file.read_bytes())
        categories = sorted((int(category["id"]), str(category["name"])) for category in content["categories"])
        images = {image["id"]: row for row, image in enumerate(content["images"])}
        index = {category: label for label, (category, _) in enumerate(categories)}
        labels = np.zeros((len(content["images"]), len(categories)), np.int8)
        for entry in content["annotations"]:
            labels[images[entry["image_id"]], index[entry["category_id"]]] = 1
        paths = encode([image["file_name"] for image in content["images"]])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"'{file}' is no annotation file with images, annotations and categories ({error}): fetch it again."
        ) from error
    if len(images) < len(labels) or len(index) < len(categories):
        raise InputError(f"'{file}' gives an id to several images or categories: number them anew.")
    return {ALL: Listing(paths, labels, [f"{number} {name}" for number, name in categories])}


def _by_category(read: dict[Split, Listing], names: dict[int, str]) -> dict[Split, Listing]:
    """Return listings of the same classes: the categories by id, less those that no image has."""
    columns: dict[Split, dict[int, int]] = {
        split: {int(text.partition(" ")[0]): c for c, text in enumerate(listing.class_names)}
        for split, listing in read.items()
    }
    used = [
        number
        for number in sorted(names)
        if any(number in own and (read[split].labels[:, own[number]] == 1).any() for split, own in columns.items())
    ]
    unique = len({names[number] for number in used}) == len(used)
    class_names = [names[number] if unique else f"{names[number]} ({number})" for number in used]
    made: dict[Split, Listing] = {}
    for split, listing in read.items():
        labels = np.zeros((len(listing.paths), len(used)), np.int8)
        for c, number in enumerate(used):
            if number in columns[split]:
                labels[:, c] = listing.labels[:, columns[split][number]]
        made[split] = Listing(listing.paths, labels, class_names)
    return made


def _image_folder(root: Path, annotations: Path, listing: Listing) -> bytes:
    """Return the folder below the root that the paths of a listing are below, as the first image says."""
    stem = annotations.stem.removeprefix("instances_")
    own = str(annotations.parent.relative_to(root))
    first = os.fsdecode(listing.paths[0])
    places = ("", stem, f"images/{stem}", stem.rstrip("0123456789"), "images", own)
    return os.fsencode(next((place for place in places if (root / place / first).is_file()), ""))
