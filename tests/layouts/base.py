"""Write tables and images in published formats, and count the labels without lt_cb."""

import csv
import io
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

LAYOUTS: "dict[str, Callable[[Path], Expected]]" = {}
RARE = (16, 8, 4)  # images of three classes


class Expected(NamedTuple):
    """Labels that a layout has."""

    splits: dict[str, Counter[str]]  # images with each label, by split; only "all" if the layout has no split
    several: bool = False  # whether an image may have several labels, or none
    images: int = 0  # number of images in all splits, if an image may have several labels or none


def layout(write: Callable[[Path], Expected]) -> Callable[[Path], Expected]:
    """Register a layout by the name of its function."""
    LAYOUTS[write.__name__] = write
    return write


def image(path: Path, mode: str = "RGB") -> None:
    """Write an image of noise; each path has other pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list("/".join(path.parts[-4:]).encode()))
    pixels = rng.integers(0, 256, (12, 12, 3) if mode == "RGB" else (12, 12), dtype=np.uint8)
    formats = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".tif": "TIFF"}
    Image.fromarray(pixels).save(path, formats[path.suffix.lower()])


def table(file: Path, header: str, rows: Iterable[Sequence[object]], ending: str = "\n") -> list[dict[str, str]]:
    """Write a CSV file, its header as given, and return its rows as the csv module reads them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    csv.writer(text, lineterminator=ending).writerows(rows)
    file.write_bytes(f"{header}{ending}{text.getvalue()}".encode())
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream, skipinitialspace=True))


def cycle(names: Sequence[str], counts: Sequence[int] = RARE, seed: int = 0) -> list[str]:
    """Return each name as often as its count says, shuffled."""
    given = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    random.Random(seed).shuffle(given)
    return given


def ones(rows: Iterable[Mapping[str, str]], names: Sequence[str]) -> Counter[str]:
    """Count the cells of 1 in each column."""
    counts = Counter(dict.fromkeys(names, 0))
    for row in rows:
        counts.update(name for name in names if row[name] in ("1", "1.0"))
    return counts


def one(counts: Counter[str]) -> Expected:
    """Return what a layout without splits has, with one label an image."""
    return Expected({"all": counts})


def category_counts(file: Path) -> Counter[str]:
    """Count the images that each category is in."""
    content = json.loads(file.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    pairs = {(entry["image_id"], entry["category_id"]) for entry in content["annotations"]}
    return Counter(names[category] for _, category in pairs)
