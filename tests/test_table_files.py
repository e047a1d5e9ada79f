"""Tables in several files, and tables with a row for each label."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from lt_cb.data import LongTailedDataModule
from lt_cb.data.sources import ImageFolder, Manifest, tested
from lt_cb.data.sources.listing import Listing, draw_test

Files = Callable[..., str]


@pytest.fixture
def files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Files:
    caplog.set_level("INFO", "lightning.pytorch")

    def write(tables: dict[str, str], images: list[str] | None = None) -> str:
        for name in images or []:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        for name, text in tables.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return str(tmp_path)

    return write


def rows(numbers: range, header: str = "image_id,label", ending: str = ".jpg") -> str:
    return "\n".join([header, *[f"{i}{ending},{'ab'[i % 2]}" for i in numbers]])


def sizes(source: Manifest) -> dict[str, int]:
    """Return the number of images of each split, all of which must exist."""
    return {split: len(source.files(split)[0]) for split in source.splits}


class TestSeveralFiles:
    def test_train_valid_and_test(self, files: Files, caplog: pytest.LogCaptureFixture) -> None:
        tables = {"train.csv": rows(range(8)), "Valid.csv": rows(range(8, 12)), "test.csv": rows(range(12, 15))}
        root = files(tables, [f"images/{i}.jpg" for i in range(15)])
        source = Manifest(root)
        assert (source.class_names, source.counts) == (["a", "b"], [4, 4])
        assert sizes(source) == {"train": 8, "val": 4, "test": 3}
        assert "train from train.csv (8 rows), test from test.csv (3 rows), val from Valid.csv (4 rows)" in caplog.text
        alone = Manifest(f"{root}/train.csv")
        assert sizes(alone) == {"train": 6, "test": 2}
        assert f"not 'test.csv', 'Valid.csv' beside it. If these have labels: --data.root '{root}'" in caplog.text
        Path(root, "Valid.csv").write_text(rows(range(4, 8)))
        with pytest.raises(ValueError, match=r"'4.jpg' in rows 5 of 'train.csv' \(train\) and 1 of 'Valid.csv' \(val"):
            Manifest(root)

    def test_kaggle(self, files: Files, caplog: pytest.LogCaptureFixture) -> None:
        tables = {"train.csv": rows(range(10)), "sample_submission.csv": rows(range(90, 95))}
        images = [f"train/{i}.jpg" for i in range(10)] + ["test/90.jpg"]
        root = files({**tables, "test.csv": "image_id\n90.jpg\n"}, images)
        data = LongTailedDataModule("Manifest", root, image_size=8)
        assert sizes(data.source) == {"train": 8, "test": 2}
        assert "test.csv' has no labels ('label'): it is not read as test images." in caplog.text
        assert "no test table: 20 % of each class are held out" in caplog.text
        with pytest.raises(ValueError, match=r"no folders of classes, but a table, 'train.csv': read it by --config"):
            ImageFolder(root)

    def test_roboflow(self, files: Files) -> None:
        cells = {"train": "a.jpg, 1, 0\nb.jpg, 0, 1", "valid": "a.jpg, 0, 1", "test": "a.jpg, 1, 0"}
        tables = {f"{split}/_classes.csv": f"filename, cat, dog\n{text}" for split, text in cells.items()}
        root = files(tables, ["train/a.jpg", "train/b.jpg", "valid/a.jpg", "test/a.jpg"])
        with pytest.warns(UserWarning, match="metrics of this split leave them out"):
            source = Manifest(root)
        assert (source.multi_label, source.class_names) == (False, ["cat", "dog"])
        assert sizes(source) == {"train": 2, "val": 1, "test": 1}
        assert source.labels("val").tolist() == [1]

    def test_imagefolder_of_hugging_face(self, files: Files, tmp_path: Path) -> None:
        lines = "".join(f'{{"file_name": "x/{i}.png", "label": {i % 2}}}\n' for i in range(4))
        root = files({"train/metadata.jsonl": lines}, [f"{s}/x/{i}.png" for s in ("train", "test") for i in range(4)])
        (tmp_path / "test").mkdir(exist_ok=True)
        columns = {"file_name": ["x/0.png", "x/1.png"], "label": [1.0, 0.0], "__index_level_0__": [7, 8]}
        parquet.write_table(pyarrow.table(columns), tmp_path / "test/metadata.parquet")
        source = Manifest(root)
        assert (source.class_names, source.counts) == (["0", "1"], [2, 2])
        assert (sizes(source), source.labels("test").tolist()) == ({"train": 4, "test": 2}, [1, 0])

    def test_one_table_of_any_name(self, files: Files, caplog: pytest.LogCaptureFixture) -> None:
        root = files({"HAM_metadata.csv": rows(range(8), ending="")}, [f"part_{i % 3}/{i}.jpg" for i in range(8)])
        assert sizes(Manifest(root)) == {"train": 6, "test": 2}
        assert "images are found in folders below" in caplog.text
        files({"other.csv": rows(range(3))})
        with pytest.raises(ValueError, match=r"several tables, 'HAM_metadata.csv', 'other.csv': set --data.root to"):
            Manifest(root)

    def test_tables_that_differ_raise(self, files: Files) -> None:
        root = files({"test.csv": "path,cat,dog\nc.jpg,1,0\n"}, ["c.jpg"])
        with pytest.raises(ValueError, match=r"has 'test.csv', but no table of training images"):
            Manifest(root)
        with tested.test_only("test"):
            assert sizes(Manifest(root)) == {"test": 1}
        files({"train.csv": "path,cat,dog,eel\na.jpg,1,0,0\nb.jpg,0,1,0\nd.jpg,0,0,1"})
        with pytest.raises(ValueError, match=r"test.csv' has columns 'path', 'cat', 'dog', but no 'eel', as "):
            Manifest(root)
        files({"train.csv": "path,cat\na.jpg,1\nb.jpg,0"})
        with pytest.raises(ValueError, match=r"test.csv' has columns 'dog', which the training images do not have"):
            Manifest(root)
        for name in ("train.csv", "test.csv"):
            Path(root, name).unlink()
        files({}, ["cat/1.jpg", "dog/1.jpg"])
        with pytest.raises(ValueError, match=r"no table: it needs train.csv .* --config configs/image_folder.yaml"):
            Manifest(root)


class TestRowForEachLabel:
    def test_rows_of_an_image_are_joined(self, files: Files, caplog: pytest.LogCaptureFixture) -> None:
        text = "path,label,split\n0,Cat,train\n0,Animal,train\n1,Dog,train\n3,Dog,test\n./3,Animal,test\n2,Cat,train\n"
        source = Manifest(files({"t.csv": text}) + "/t.csv")
        assert (source.multi_label, source.class_names, source.counts) == (True, ["Animal", "Cat", "Dog"], [1, 2, 1])
        assert source.labels("train").tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]
        assert source.labels("test").tolist() == [[1, 0, 1]]
        assert "6 rows of" in caplog.text
        assert "name 4 images, with at most 2 labels an image. For one label an image: --data.task one." in caplog.text

    def test_a_few_contradictions_are_a_mistake(self, files: Files) -> None:
        root = files({"train.csv": rows(range(20)) + "\n4.jpg,b"})
        with pytest.raises(ValueError, match=r"'4.jpg' in rows 5 \(a\) and 21 \(b\): correct .*: --data.task several"):
            LongTailedDataModule("Manifest", root)
        data = LongTailedDataModule("Manifest", root, task="several", image_size=8)
        assert data.multi_label
        assert data.training_labels().sum() + data.source.labels("test").sum() == 21
        with pytest.raises(ValueError, match=r"--data.task is one, but this data source has no such choice"):
            LongTailedDataModule("Digits", task="one")

    def test_two_annotators_are_no_labels(self, files: Files) -> None:
        text = "path,label\n" + "".join(f"{i},a\n{i},{'b' if i < 4 else 'a'}\n" for i in range(12))
        with pytest.raises(ValueError, match="more than one label: '0' in rows 1"):
            Manifest(files({"t.csv": text}))

    def test_equal_rows_count_once(self, files: Files) -> None:
        root = files({"t.csv": rows(range(20)) + "\n4.jpg,a\n./4.jpg,a"})
        with pytest.warns(UserWarning, match=r"2 of 22 rows of .* such as '4.jpg' in row 5 and row 21: each image is"):
            source = Manifest(root)
        assert len(source.labels("train")) + len(source.labels("test")) == 20

    @pytest.mark.parametrize(("blank", "unlisted"), [(None, -1), ("no", 0)])
    def test_open_images(self, files: Files, blank: str | None, unlisted: int) -> None:
        truth = {f"{i:02x}": {c: int((i + c) % 3 > 0) for c in range(3) if (i * c) % 4 < 3} for i in range(24)}
        lines = [f"{i},verification,/m/{c},{value}" for i, labels in truth.items() for c, value in labels.items()]
        source = Manifest(files({"t.csv": "\n".join(["ImageID,Source,LabelName,Confidence", *lines])}), blank=blank)
        assert source.class_names == ["/m/0", "/m/1", "/m/2"]
        for split in source.splits:
            listing = source.listing(split)
            for path, labels in zip(listing.paths.tolist(), listing.labels.tolist(), strict=True):
                assert labels == [truth[path.decode()].get(label, unlisted) for label in range(3)]

    def test_boxes(self, files: Files) -> None:
        text = "image_id,class,x_min\n" + "".join(f"{i},{'ab'[i % 2]},1\n{i},{'ab'[i % 2]},2\n" for i in range(20))
        source = Manifest(files({"t.csv": text + "0,b,3\n"}))
        assert source.multi_label
        assert sum(source.labels(split).sum() for split in source.splits) == 21


class TestTask:
    def test_facts_are_asked_about(self, files: Files) -> None:
        cells = [f"{i}.png,{i % 2},{i % 3 // 2},{int(i % 2 == 0)},{int(i % 3 > 0)},{i}" for i in range(12)]
        root = files({"t.csv": "\n".join(["path,is_male,fold,Edema,No Finding,age", *cells])})
        with pytest.raises(ValueError, match=r"'age' of .* has '2' in row 3, .*label_columns '\[Edema, No Finding\]'"):
            Manifest(root)
        cells = [cell.rpartition(",")[0] for cell in cells]
        files({"t.csv": "\n".join(["path,is_male,fold,Edema,No Finding", *cells])})
        with pytest.raises(ValueError, match=r"may be no labels: 'is_male', 'fold'\. .*several\."):
            Manifest(root)
        assert len(Manifest(root, task="several").class_names) == 4

    @pytest.mark.parametrize(
        ("cells", "multi_label", "line"),
        [
            (["1,", ",1"], False, "empty cells are read as no"),
            (["1,-1", "-1,1", "1,1", "-1,-1"], True, "-1 is read as no"),
            (["1,0", ",1", "1,1"], True, "4 cells are unknown (-1, or empty: --data.source.blank no)"),
        ],
    )
    def test_unknown_or_no(
        self, files: Files, caplog: pytest.LogCaptureFixture, cells: list[str], multi_label: bool, line: str
    ) -> None:
        text = "".join(f"{i}.png,{cells[i % len(cells)]}\n" for i in range(12))
        source = Manifest(files({"t.csv": "image,cat,dog\n" + text}))
        assert source.multi_label is multi_label
        assert line in caplog.text
        known = [source.labels(split).min() >= 0 for split in source.splits]
        assert any(known) is ("read as no" in line)

    @pytest.mark.parametrize(
        ("header", "cells", "names"),
        [
            ("path,labels", ["scab", "rust", "scab rust"], ["rust", "scab"]),
            ("Id,Target", ["5 0", "16 5", "0"], ["0", "5", "16"]),
            ("path,labels", ["\"['a', 'b']\"", '"[]"', "\"['b']\""], ["a", "b"]),
            ("path,label", ["cat|rust", "cat|scab"], ["cat", "rust", "scab"]),
        ],
    )
    def test_separators_are_guessed(self, files: Files, header: str, cells: list[str], names: list[str]) -> None:
        text = "".join(f"{i}.png,{cells[i % len(cells)]}\n" for i in range(12))
        source = Manifest(files({"t.csv": f"{header}\n{text}"}))
        assert (source.multi_label, source.class_names) == (True, names)

    def test_one_name_in_each_row_is_one_label(self, files: Files, caplog: pytest.LogCaptureFixture) -> None:
        text = "".join(f"{i}.png,{'AB B' if i % 2 else 'CD'},{'train' if i < 8 else 'valid'}\n" for i in range(12))
        source = Manifest(files({"birds.csv": f"filepaths,labels,data set\n{text}"}))
        assert (source.multi_label, source.counts, len(source.labels("test"))) == (False, [4, 4], 4)
        assert "each of 12 rows" in caplog.text
        assert "split_column 'data set', path_column 'filepaths'" in caplog.text
        assert "the val images are the test images" in caplog.text

    def test_names_that_differ_in_case_warn(self, files: Files) -> None:
        cells = ["Cat", "cat ", " polar bear", "Polar_Bear"]
        text = "".join(f"{i}.png,{cells[i % 4]}\n" for i in range(16))
        with pytest.warns(UserWarning, match="almost alike: 'Cat', 'cat'; 'Polar_Bear', 'polar bear'"):
            Manifest(files({"t.csv": f"path,label\n{text}"}))


def test_each_label_keeps_a_training_image() -> None:
    rng = np.random.default_rng(0)
    for case in range(200):
        size, num_labels = int(rng.integers(5, 60)), int(rng.integers(2, 10))
        labels = (rng.random((size, num_labels)) < 0.6 * rng.random()).astype(np.int8)
        paths = np.array([f"{case}_{i}".encode() for i in range(size)])
        train, test = draw_test(Listing(paths, labels, [str(label) for label in range(num_labels)]), 0.2)
        assert len(train.paths) + len(test.paths) == size
        assert (train.labels.any(0) == labels.any(0)).all()
        shuffled = rng.permutation(size)
        again = draw_test(Listing(paths[shuffled], labels[shuffled], train.class_names), 0.2)[1]
        assert {*again.paths.tolist()} == {*test.paths.tolist()}


class TestFormats:
    def test_a_line_of_excel_and_empty_rows(self, files: Files) -> None:
        root = files({"t.csv": 'sep=;\npath;label\n"a";x\nb;y\nc;x\nd;y\n;\n'})
        assert Manifest(root).class_names == ["x", "y"]

    @pytest.mark.parametrize("content", [b"PK\x03\x04rest", b"\x1f\x8brest"])
    def test_spreadsheets_raise(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "t.xlsx").write_bytes(content)
        with pytest.raises(ValueError, match=r"t.xlsx' is a spreadsheet or packed, not text: save it as CSV"):
            Manifest(str(tmp_path / "t.xlsx"))

    def test_parquet(self, tmp_path: Path) -> None:
        names = [f"{i}.png" for i in range(12)]
        columns = {
            "path": pyarrow.array(names).dictionary_encode(),
            "cat": [i % 2 == 0 for i in range(12)],
            "dog": pyarrow.array([None if i == 0 else i % 3 // 2 for i in range(12)], pyarrow.int32()),
            "__index_level_0__": list(range(12)),
        }
        parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
        source = Manifest(str(tmp_path))
        assert source.class_names == ["cat", "dog"]
        assert sum((source.labels(split) == 1).sum(0) for split in source.splits).tolist() == [6, 4]
        parquet.write_table(pyarrow.table({"image": [{"bytes": b"x"}] * 2, "label": [0, 1]}), tmp_path / "t.parquet")
        with pytest.raises(ValueError, match=r"column 'image' of .* holds images, not paths"):
            Manifest(str(tmp_path))


class TestBesideATable:
    def test_a_test_table_without_positives_is_not_read(self, files: Files, caplog: pytest.LogCaptureFixture) -> None:
        cells = "\n".join(f"{i}.jpg,{i % 2},{1 - i % 2}" for i in range(8))
        root = files({"train.csv": f"path,a,b\n{cells}", "test.csv": "path,a,b\n8.jpg,0,0\n9.jpg,0,0"})
        assert not Manifest(root).multi_label
        assert "test.csv' has no labels ('a', 'b'): it is not read as test images." in caplog.text

    def test_tables_of_other_names_are_said(self, files: Files, caplog: pytest.LogCaptureFixture) -> None:
        root = files({"lt_train.csv": rows(range(8)), "lt_balanced-val.csv": rows(range(8, 12)), "x.csv": ""})
        assert sizes_of(Manifest(f"{root}/lt_train.csv")) == {"train": 6, "test": 2}
        assert "lt_train.csv' is read, not 'lt_balanced-val.csv' beside it. To read several tables" in caplog.text

    def test_lists_of_nih(self, files: Files, caplog: pytest.LogCaptureFixture) -> None:
        lists = {"train_val_list.txt": "0.jpg\n1.jpg\n2.jpg\n3.jpg\n", "test_list.txt": "4.jpg\n5.jpg"}
        root = files({"Data_Entry_2017.csv": rows(range(7), "Image Index,Finding Labels"), **lists})
        source = Manifest(f"{root}/Data_Entry_2017.csv")
        assert sizes_of(source) == {"train": 4, "test": 2}
        assert source.listing("test").paths.tolist() == [b"4.jpg", b"5.jpg"]
        assert "4 train, 2 test, 1 in neither, which are left out. To draw test images, move" in caplog.text

    def test_images_of_several_colours(self, files: Files) -> None:
        images = [f"train/{i}_{colour}.png" for i in (1, 2) for colour in ("g", "r")]
        root = files({"train.csv": "Id,Target\n1,0 2\n2,1\n"}, images)
        with pytest.raises(ValueError, match=r"no image '1', but '1_g.png', '1_r.png': .* --data.source.extension _g"):
            Manifest(f"{root}/train.csv")

    def test_folders_of_images_beside_a_table(self, files: Files, caplog: pytest.LogCaptureFixture) -> None:
        parts = [f"ham_images_part_{1 + i // 4}/{i}.jpg" for i in range(8)]
        root = files({"ham.csv": rows(range(8), "image_id,dx", "")}, parts)
        with pytest.raises(ValueError, match=r"no folders of classes, but a table, 'ham.csv': read it by --config"):
            ImageFolder(root)
        files({}, [name.replace("ham", "HAM") for name in parts])  # empty, so that all are equal
        assert sizes(Manifest(f"{root}/ham.csv")) == {"train": 6, "test": 2}
        Path(root, parts[0]).write_bytes(b"another image")
        with pytest.raises(ValueError, match="image '0' is in several places"):
            Manifest(f"{root}/ham.csv")

    def test_folders_of_classes_beside_a_table(self, files: Files, caplog: pytest.LogCaptureFixture) -> None:
        root = files({"counts.csv": "class,n\na,2\nb,2\n"}, [f"{c}/{i}.jpg" for c in "ab" for i in (1, 2)])
        assert ImageFolder(root).counts == [1, 1]
        assert "has folders of classes and a table, 'counts.csv': the folders are read." in caplog.text

    def test_columns_of_another_language(self, files: Files) -> None:
        cells = "\n".join(f"F{i};bilder\\{i};{'xyz'[i % 3]};;{i}" for i in range(12))
        root = files(
            {"t.csv": f"Fall;Bilddatei;Diagnose;Bemerkung;Nr\n{cells}"}, [f"bilder/{i}.png" for i in range(12)]
        )
        with pytest.raises(ValueError, match=r"label_column NAME, such as 'Diagnose' \(3 values\)"):
            Manifest(f"{root}/t.csv")
        assert sizes(Manifest(f"{root}/t.csv", label_column="Diagnose")) == {"train": 9, "test": 3}


def sizes_of(source: Manifest) -> dict[str, int]:
    return {split: len(source.labels(split)) for split in source.splits}


def test_objects_are_no_names(files: Files) -> None:
    root = files({"t.jsonl": '{"file_name": "1.jpg", "objects": {"bbox": []}}\n{"file_name": "2.jpg", "objects": {}}'})
    with pytest.raises(ValueError, match="column 'objects' holds objects, not names"):
        Manifest(root)
