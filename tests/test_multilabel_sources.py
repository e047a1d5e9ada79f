"""Data sets with several labels an image: annotations in COCO's format, and scans side by side."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lt_cb.__main__ import main
from lt_cb.data import LongTailedDataModule
from lt_cb.data.sources import COCO, Digits, FashionMNIST, SideBySide

NAMES = {0: "things", 3: "cat", 7: "dog", 90: "eel"}


def annotate(file: Path, images: dict[str, list[int]], names: dict[int, str] = NAMES) -> None:
    """Write annotations in COCO's format, shuffled."""
    file.parent.mkdir(parents=True, exist_ok=True)
    entries = [(7 * row, category) for row, categories in enumerate(images.values()) for category in categories]
    content = {
        "info": {"year": 2017},
        "images": [{"id": 7 * row, "file_name": name, "width": 30} for row, name in enumerate(images)],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "bbox": [0, 0, 1, 1], "iscrowd": i % 2}
            for i, (image, category) in reversed(list(enumerate(entries)))
        ],
        "categories": [{"id": id_, "name": name, "supercategory": "x"} for id_, name in reversed(names.items())],
    }
    file.write_text(json.dumps(content))


TRAIN = {"a.png": [90, 3, 90], "b.png": [3], "c.png": [], "d.png": [7]}
TEST = {"e.png": [7, 3, 90], "f.png": []}


def images(folder: Path, names: dict[str, list[int]], first: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.new("RGB", (9, 9), (first + i,) * 3).save(folder / name)


def coco(root: Path) -> None:
    annotate(root / "annotations/instances_train2014.json", {"old.png": [3]})
    annotate(root / "annotations/instances_train2017.json", TRAIN)
    annotate(root / "annotations/instances_val2017.json", TEST)
    (root / "annotations/captions_train2018.json").write_text("{}")
    images(root / "train2017", TRAIN, 0)
    images(root / "val2017", TEST, 4)


def roboflow(root: Path) -> None:
    for split, names, first in (("train", TRAIN, 0), ("test", TEST, 4), ("valid", TRAIN, 0)):
        annotate(root / split / "_annotations.coco.json", names)
        images(root / split, names, first)


def plain(root: Path) -> None:
    for split, names, first in (("train", TRAIN, 0), ("test", TEST, 4)):
        annotate(root / f"{split}.json", names)
        images(root / "images", names, first)


def by_path(root: Path) -> None:
    for split, names, first in (("train", TRAIN, 0), ("test", TEST, 4)):
        annotate(root / f"annotations/{split}.json", {f"some/where/{name}": c for name, c in names.items()})
        images(root / "some/where", names, first)


class TestCOCO:
    @pytest.mark.parametrize("layout", [coco, roboflow, plain, by_path])
    def test_layouts(self, tmp_path: Path, layout: Callable[[Path], None]) -> None:
        layout(tmp_path)
        data = LongTailedDataModule("COCO", str(tmp_path), image_size=9, crop_padding=0)
        assert data.multi_label
        assert (data.class_names, data.class_counts, data.num_images) == (["cat", "dog", "eel"], [2, 1, 1], 4)
        shown = {}
        for loader in (data.train_dataloader(), data.test_dataloader()):
            for pixels, targets in loader:
                shown |= {int(x.max()): t.tolist() for x, t in zip(pixels, targets, strict=True)}
        assert shown == {0: [1, 0, 1], 1: [1, 0, 0], 2: [0, 0, 0], 3: [0, 1, 0], 4: [1, 1, 1], 5: [0, 0, 0]}
        assert data.source.has_val == (layout is roboflow)

    def test_inspect_needs_only_annotations(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        annotate(tmp_path / "train.json", TRAIN)
        annotate(tmp_path / "val.json", TEST)
        with pytest.raises(SystemExit):  # fit needs the images
            main(["inspect", "--data.source=coco", f"--data.root={tmp_path}"])
        assert "3 classes" in capsys.readouterr().out
        with pytest.raises(ValueError, match="4 of 4 images are not in"):
            LongTailedDataModule("COCO", str(tmp_path)).train_dataloader()

    def test_shared_category_names_get_their_ids(self, tmp_path: Path) -> None:
        for split in ("train", "val"):
            annotate(tmp_path / f"{split}.json", TEST, {3: "cat", 7: "cat", 90: "eel"})
        assert COCO(str(tmp_path)).class_names == ["cat (3)", "cat (7)", "eel (90)"]

    def test_an_image_of_two_entries_is_used_once(self, tmp_path: Path) -> None:
        """No split can divide it."""
        annotate(tmp_path / "train.json", {**TRAIN, "./a.png": [7]})
        with pytest.warns(UserWarning, match=r"1 images of .* are listed more than once for train: each is used once"):
            whole = COCO(str(tmp_path), task="several").undivided
        assert whole is not None
        assert (whole.paths.tolist()[0], whole.labels.tolist()[0]) == (b"a.png", [1, 1, 1])
        assert len(whole.paths) == len(TRAIN)

    def test_wrong_annotations_raise(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="has no annotations of split train: it needs annotations/instances_"):
            COCO(str(tmp_path))
        annotate(tmp_path / "train.json", TRAIN)
        annotate(tmp_path / "test.json", TEST, {**NAMES, 3: "car"})
        with pytest.raises(ValueError, match=r"category 3 of .* is 'car', but 'cat' elsewhere"):
            COCO(str(tmp_path))
        annotate(tmp_path / "test.json", {"e.png": [8]}, {**NAMES, 8: "fox"})
        with pytest.raises(ValueError, match="no training image of 'fox', so that nothing can be learnt of it"):
            COCO(str(tmp_path))
        annotate(tmp_path / "test.json", {"e.png": [3]})
        with pytest.warns(UserWarning, match="no test images of 'dog', 'eel'"):
            COCO(str(tmp_path))
        annotate(tmp_path / "test.json", {"e.png": [55]})
        with pytest.raises(ValueError, match="does not list, such as image 0, category 55"):
            COCO(str(tmp_path))


class TestSideBySide:
    def test_images_show_the_scans_of_their_labels(self) -> None:
        """Without scaling, each scan of an image is a digit of that split, and its class is one of the labels."""
        source = SideBySide("", train_images=300, test_images=100, cell=8)
        assert (source.image_size, source.channels, source.class_names) == (24, 1, Digits.class_names)
        for split, number in (("train", 300), ("test", 100)):
            scans, digits = Digits("").load(split)
            of_scan = {scan.tobytes(): int(digit) for scan, digit in zip(scans, digits, strict=True)}
            made, labels = source.load(split)
            assert (made.shape, made.dtype, labels.dtype) == ((number, 24, 24, 1), np.uint8, np.int8)
            places, heights = [], set()
            for image, row in zip(made, labels, strict=True):
                found = []
                for left in (0, 8, 16):
                    column = image[:, left : left + 8]
                    windows = {down: of_scan.get(column[down : down + 8].tobytes()) for down in range(17)}
                    matches = {down: digit for down, digit in windows.items() if digit is not None}
                    assert bool(matches) == column.any()
                    found += list(matches.values())[:1]
                    heights |= matches.keys()
                assert set(found) == set(np.flatnonzero(row).tolist())
                places.append(len(found))
            assert set(places) == {2, 3}
            assert heights >= set(range(1, 17))
        assert (source.labels("train") == source.load("train")[1]).all()
        assert source.counts == source.labels("train").sum(0).tolist()

    def test_images_are_the_same_for_every_run(self) -> None:
        first, again = (SideBySide("").load("train") for _ in range(2))
        assert first[0].tobytes() == again[0].tobytes()
        assert first[0].shape == (6000, 36, 36, 1)
        counts = first[1].sum(0)
        assert counts.min() > 0.85 * counts.max()
        assert len(SideBySide("").labels("test")) == 2000
        assert (SideBySide("", test_images=6000).labels("test") != first[1]).any()

    def test_two_sources(self, tmp_path: Path) -> None:
        for stem in ("train", "t10k"):
            white = struct.pack(">4i", 2051, 10, 28, 28) + b"\xff" * 10 * 28 * 28
            (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(white)
            (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 10) + bytes(range(10)))
        source = SideBySide(str(tmp_path), ["digits", "FashionMNIST"], train_images=100)
        assert source.class_names == [*Digits.class_names, *FashionMNIST.class_names]
        made, labels = source.load("train")
        white_rows = (made == 255).reshape(100, 36, 3, 12).all(3).sum(1)  # in each place
        assert ((white_rows == 12).any(1) == labels[:, 10:].any(1)).all()

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"sources": ["digit"]}, r"sources is \['digit'\], but must be some of Digits, .* Did you mean 'Digits'"),
            ({"sources": []}, "each once"),
            ({"sources": ["digits", "Digits"]}, "each once"),
            ({"cell": 0}, "cell is 0, but must be at least 1"),
            ({"train_images": 0}, "train_images is 0"),
        ],
    )
    def test_wrong_options_raise(self, options: dict, sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence):
            SideBySide("", **options)

    def test_the_shipped_configuration(self, capsys: pytest.CaptureFixture[str]) -> None:
        config = Path(__file__).parents[1] / "configs/several_labels.yaml"
        main(["inspect", f"--config={config}"])
        assert "10 classes" in capsys.readouterr().out
        main(["inspect", f"--config={config}", "--data.source.train_images=3000", "--betas=[]"])
        data = LongTailedDataModule("SideBySide", imbalance_factor=100, val_fraction=0.2)
        assert min(data.class_counts) > 5
        assert max(data.class_counts) == data.class_counts[0]
