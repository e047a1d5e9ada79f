"""Folders and tables of tools: Roboflow, Hugging Face, torchvision, Keras."""

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from layouts.base import RARE, Expected, category_counts, cycle, image, layout, one, ones, table

ROBOFLOW_SPLITS = (("train", "train", RARE), ("val", "valid", (4, 3, 2)), ("test", "test", (4, 3, 2)))


def _roboflow_texts(root: Path) -> None:
    (root / "README.roboflow.txt").write_text("made up")
    (root / "README.dataset.txt").write_text("made up")


@layout
def roboflow_folders(root: Path) -> Expected:
    """Roboflow's folder export: train, valid and test, with a folder for each class."""
    splits = {}
    for split, folder, sizes in ROBOFLOW_SPLITS:
        for i, name in enumerate(cycle(("ripe", "unripe", "rotten leaf"), sizes)):
            image(root / folder / name / f"IMG_{i}_jpg.rf.{folder}{i:028x}.jpg")
        splits[split] = Counter(file.parent.name for file in (root / folder).glob("*/*.jpg"))
    _roboflow_texts(root)
    return Expected(splits)


def _roboflow_classes(root: Path, exclusive: bool) -> Expected:
    rng = random.Random(6)
    names = ("helmet", "no-helmet", "vest")
    splits, images = {}, 0
    for split, folder, sizes in ROBOFLOW_SPLITS:
        rows = []
        for i, name in enumerate(cycle(names, sizes)):
            file = f"site-{i}_png.rf.{folder}{i:028x}.jpg"
            image(root / folder / file)
            rows.append((file, *[int(other == name or (not exclusive and rng.random() < 0.3)) for other in names]))
        header = "filename," + ",".join(names) if exclusive else "filename, " + ", ".join(names)
        splits[split] = ones(table(root / folder / "_classes.csv", header, rows), names)
        images += len(rows)
    _roboflow_texts(root)
    return Expected(splits, not exclusive, images if not exclusive else 0)


@layout
def roboflow_csv_one_class(root: Path) -> Expected:
    """Roboflow's csv export of single labels: _classes.csv in each split, each row with one 1."""
    return _roboflow_classes(root, exclusive=True)


@layout
def roboflow_csv_multi_label(root: Path) -> Expected:
    """Roboflow's csv export of several labels, with a space behind each comma of the header."""
    return _roboflow_classes(root, exclusive=False)


@layout
def roboflow_coco(root: Path) -> Expected:
    """Roboflow's COCO export: category 0 groups the others and has no annotation; an image may have none."""
    rng = random.Random(7)
    names = ("defects", "crack", "hole", "stain")
    categories = [{"id": i, "name": name, "supercategory": "defects" if i else "none"} for i, name in enumerate(names)]
    splits, total = {}, 0
    for split, folder, sizes in ROBOFLOW_SPLITS:
        images, annotations = [], []
        for i in range(sum(sizes)):
            file = f"p{i}_jpg.rf.{folder}{i:028x}.jpg"
            image(root / folder / file)
            images.append({"id": i, "license": 1, "file_name": file, "height": 12, "width": 12})
            for label in rng.choices((1, 1, 2, 3), k=rng.choice((0, 1, 2, 3))):
                box = {"bbox": [1, 1, 4, 4], "area": 16, "segmentation": [], "iscrowd": 0}
                annotations.append({"id": len(annotations), "image_id": i, "category_id": label, **box})
        content = {"info": {}, "licenses": [], "categories": categories, "images": images, "annotations": annotations}
        (root / folder / "_annotations.coco.json").write_text(json.dumps(content))
        splits[split] = category_counts(root / folder / "_annotations.coco.json")
        total += len(images)
    _roboflow_texts(root)
    return Expected(splits, True, total)


@layout
def hugging_face_csv(root: Path) -> Expected:
    """Hugging Face imagefolder: metadata.csv in each split's folder, with file_name and one class."""
    splits = {}
    for split, folder, sizes in (("train", "train", RARE), ("test", "test", (4, 3, 2))):
        rows = [(f"{i:04}.png", label, "a photo") for i, label in enumerate(cycle(("cat", "dog", "owl"), sizes))]
        for name, *_ in rows:
            image(root / folder / name)
        read = table(root / folder / "metadata.csv", "file_name,label,caption", rows)
        splits[split] = Counter(row["label"] for row in read)
    return Expected(splits)


@layout
def hugging_face_csv_without_splits(root: Path) -> Expected:
    """Hugging Face imagefolder without splits: metadata.csv beside the images."""
    rows = [(f"{i:04}.png", label) for i, label in enumerate(cycle(("cat", "dog", "owl")))]
    for name, _ in rows:
        image(root / name)
    return one(Counter(row["label"] for row in table(root / "metadata.csv", "file_name,label", rows)))


def _json_lines(file: Path, rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [json.loads(line) for line in file.read_text().splitlines()]


@layout
def hugging_face_jsonl(root: Path) -> Expected:
    """Hugging Face imagefolder: metadata.jsonl in each split's folder, with one class."""
    splits = {}
    for split, folder, sizes in (
        ("train", "train", RARE),
        ("val", "validation", (3, 2, 2)),
        ("test", "test", (4, 3, 2)),
    ):
        rows = [{"file_name": f"{i:04}.png", "label": label} for i, label in enumerate(cycle("012", sizes))]
        for row in rows:
            image(root / folder / row["file_name"])
        splits[split] = Counter(str(row["label"]) for row in _json_lines(root / folder / "metadata.jsonl", rows))
    return Expected(splits)


@layout
def hugging_face_lists_of_classes(root: Path) -> Expected:
    """Hugging Face imagefolder: metadata.jsonl with a list of classes for each image, also an empty one."""
    rng = random.Random(8)
    rows = [
        {"file_name": f"images/{i:04}.jpg", "labels": rng.sample(("cat", "dog", "owl"), rng.choice((0, 1, 1, 2)))}
        for i in range(40)
    ]
    for row in rows:
        image(root / str(row["file_name"]))
    read = _json_lines(root / "metadata.jsonl", rows)
    counts = Counter(str(label) for row in read for label in row["labels"])  # type: ignore[attr-defined]
    return Expected({"all": counts}, True, len(read))


def _folders(root: Path, splits: Mapping[str, tuple[str, Sequence[int]]]) -> Expected:
    counts = {}
    for split, (folder, sizes) in splits.items():
        for i, name in enumerate(cycle(("cats", "dogs", "owls"), sizes)):
            image(root / folder / name / f"{name}.{folder}.{i}.jpg")
        counts[split] = Counter(file.parent.name for file in (root / folder).glob("*/*.jpg"))
    return Expected(counts)


@layout
def torchvision_folders(root: Path) -> Expected:
    """torchvision's ImageFolder: root/<class>/*."""
    return _folders(root / "photos", {"all": ("", RARE)})


@layout
def torchvision_train_and_val(root: Path) -> Expected:
    """The folders of torchvision's and PyTorch's tutorials: train/<class> and val/<class>."""
    return _folders(root / "photos", {"train": ("train", RARE), "test": ("val", (4, 3, 2))})


@layout
def keras_folders(root: Path) -> Expected:
    """The folder of image_dataset_from_directory, with the text that its flowers archive has."""
    expected = _folders(root / "photos", {"all": ("", RARE)})
    (root / "photos/LICENSE.txt").write_text("made up")
    return expected


@layout
def keras_train_and_validation(root: Path) -> Expected:
    """Keras' cats_and_dogs_filtered: train/<class>, validation/<class>, and a script."""
    expected = _folders(root / "photos", {"train": ("train", RARE), "test": ("validation", (4, 3, 2))})
    (root / "photos/vectorize.py").write_text("made up")
    return expected
