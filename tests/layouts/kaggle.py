"""Kaggle's competitions: ``train.csv``, and a folder of images beside it."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from layouts.base import Expected, cycle, image, layout, one, ones, table


@layout
def aptos_2019(root: Path) -> Expected:
    """APTOS 2019: whole numbers as classes, test.csv without labels."""
    rows = [(f"{i * 7919 + 4096:012x}", grade) for i, grade in enumerate(cycle("01234", (18, 5, 9, 3, 4)))]
    for name, _ in rows:
        image(root / f"train_images/{name}.png")
    image(root / "test_images/0005cfc8afb6.png")
    read = table(root / "train.csv", "id_code,diagnosis", rows)
    table(root / "test.csv", "id_code", [["0005cfc8afb6"]])
    table(root / "sample_submission.csv", "id_code,diagnosis", [("0005cfc8afb6", 0)])
    return one(Counter(row["diagnosis"] for row in read))


@layout
def cassava(root: Path) -> Expected:
    """Cassava Leaf Disease: file names with extension under image_id, numbers named in a JSON file."""
    rows = [(f"{1000015157 + i}.jpg", label) for i, label in enumerate(cycle("01234", (4, 8, 9, 20, 8)))]
    for name, _ in rows:
        image(root / f"train_images/{name}")
    image(root / "test_images/2216849948.jpg")
    read = table(root / "train.csv", "image_id,label", rows)
    table(root / "sample_submission.csv", "image_id,label", [("2216849948.jpg", 4)])
    names = {str(i): f"Disease {i} (CD)" for i in range(4)} | {"4": "Healthy"}
    (root / "label_num_to_disease_map.json").write_text(json.dumps(names))
    return one(Counter(row["label"] for row in read))


@layout
def plant_pathology_2020(root: Path) -> Expected:
    """Plant Pathology 2020: a column a class, each row with one 1; test images in the same folder."""
    names = ["healthy", "multiple_diseases", "rust", "scab"]
    rows = []
    for i, name in enumerate(cycle(names, (14, 3, 12, 12))):
        image(root / f"images/Train_{i}.jpg")
        rows.append((f"Train_{i}", *[int(name == other) for other in names]))
    image(root / "images/Test_0.jpg")
    read = table(root / "train.csv", ",".join(("image_id", *names)), rows)
    table(root / "test.csv", "image_id", [["Test_0"]])
    table(root / "sample_submission.csv", ",".join(("image_id", *names)), [("Test_0", 0.25, 0.25, 0.25, 0.25)])
    return one(ones(read, names))


@layout
def plant_pathology_2021(root: Path) -> Expected:
    """Plant Pathology 2021: names separated by spaces in a column labels."""
    names = [
        "healthy",
        "scab",
        "scab frog_eye_leaf_spot complex",
        "rust",
        "rust complex",
        "frog_eye_leaf_spot",
        "complex",
    ]
    rows = [(f"{0x800113BB65EFE69E + i:x}.jpg", cell) for i, cell in enumerate(cycle(names, (12, 9, 3, 6, 2, 5, 4)))]
    for name, _ in rows:
        image(root / f"train_images/{name}")
    image(root / "test_images/85f8cb619c66b863.jpg")
    read = table(root / "train.csv", "image,labels", rows)
    table(root / "sample_submission.csv", "image,labels", [("85f8cb619c66b863.jpg", "healthy")])
    counts = Counter(name for row in read for name in row["labels"].split())
    return Expected({"all": counts}, True, len(read))


def _hpa(root: Path, header: str, separator: str, alone: Sequence[str]) -> Expected:
    rng = random.Random(3)
    rows = []
    for i in range(40):
        name = f"{0x00070DF0 + i * 65537:08x}-bbc3-11e8-b2bc-ac1f6b6435d0"
        rows.append(
            (name, separator.join(rng.choice((("0",), ("25", "0"), ("16", "0"), ("7",), *[[a] for a in alone]))))
        )
        for colour in ("red", "green", "blue", "yellow"):
            image(root / f"train/{name}_{colour}.png", "L")
    read = table(root / "train.csv", header, rows)
    identifier, target = header.split(",")
    table(root / "sample_submission.csv", f"{identifier},Predicted", [("00008af0-bad0-11e8-b2b8-ac1f6b6435d0", 0)])
    counts = Counter(label for row in read for label in row[target].split(separator))
    return Expected({"all": counts}, True, len(read))


@layout
def human_protein_atlas_2018(root: Path) -> Expected:
    """Human Protein Atlas 2018: numbers separated by spaces; four grey images a row, <Id>_green.png has the protein."""
    return _hpa(root, "Id,Target", " ", ("2", "25", "2"))


@layout
def human_protein_atlas_2021(root: Path) -> Expected:
    """HPA Single Cell 2021: numbers joined by |."""
    return _hpa(root, "ID,Label", "|", ("14", "18", "14"))


@layout
def kaggle_train_csv_and_train(root: Path) -> Expected:
    """Kaggle's usual layout: train.csv with id and label, train/<id>.jpg, a test.csv without labels."""
    rows = [(f"{i:05}", label) for i, label in enumerate(cycle(("cat", "dog", "owl")))]
    for name, _ in rows:
        image(root / f"train/{name}.jpg")
    image(root / "test/90000.jpg")
    read = table(root / "train.csv", "id,label", rows)
    table(root / "test.csv", "id", [["90000"]])
    table(root / "sample_submission.csv", "id,label", [("90000", "cat")])
    return one(Counter(row["label"] for row in read))


@layout
def kaggle_dog_breeds(root: Path) -> Expected:
    """Kaggle's Dog Breed Identification: labels.csv with id and breed, images in train/."""
    rows = [(f"{i * 104729 + 17:032x}", breed) for i, breed in enumerate(cycle(("boston_bull", "dingo", "pekinese")))]
    for name, _ in rows:
        image(root / f"train/{name}.jpg")
    read = table(root / "labels.csv", "id,breed", rows)
    header = "id,boston_bull,dingo,pekinese"
    table(root / "sample_submission.csv", header, [("0001", 0.3, 0.3, 0.3)])
    return one(Counter(row["breed"] for row in read))
