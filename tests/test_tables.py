"""Tables of images with several labels: names in one column, or a column for each label."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from lt_cb.__main__ import main
from lt_cb.commands.restored import plain_settings
from lt_cb.data import LongTailedDataModule
from lt_cb.data.sources import Manifest
from lt_cb.data.sources.columns import TableOptions
from lt_cb.data.sources.label_cells import by_name

Table = Callable[[str], str]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    def write(text: str) -> str:
        (tmp_path / "t.csv").write_text(text)
        return str(tmp_path / "t.csv")

    return write


def rows(cells: list[str], header: str = "labels", splits: str = "train train train test") -> str:
    paired = zip(cells, splits.split(), strict=True)
    return "\n".join([f"path,split,{header}", *[f"{i}.png,{split},{cell}" for i, (cell, split) in enumerate(paired)]])


class TestNames:
    @pytest.mark.parametrize(("header", "separator"), [("labels", None), ("labels", "|"), ("label", ";")])
    def test_separated(self, table: Table, header: str, separator: str | None) -> None:
        sign = separator or ";"
        cells = [f" dog {sign}cat", f"cat{sign}cat{sign}", "", f"dog{sign}cat"]
        source = Manifest(table(rows(cells, header)), separator)
        assert source.multi_label
        assert (source.class_names, source.counts) == (["cat", "dog"], [2, 1])
        assert source.labels("train").tolist() == [[1, 1], [1, 0], [0, 0]]
        assert source.labels("train").dtype == np.int8
        assert source.labels("test").tolist() == [[1, 1]]

    def test_whole_numbers_are_sorted_by_value(self, table: Table) -> None:
        assert Manifest(table(rows(["10;9", "9", "", "9;10"]))).class_names == ["9", "10"]

    def test_lists_of_parquet(self, tmp_path: Path) -> None:
        columns = {"path": ["a", "b", "c"], "labels": [["x", "y"], [], ["y", "x"]], "split": ["train", "train", "val"]}
        parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
        source = Manifest(str(tmp_path / "t.parquet"))
        assert source.labels("train").tolist() == [[1, 1], [0, 0]]

    @given(st.lists(st.lists(st.sampled_from("abcde"), max_size=6), min_size=1))
    def test_any_lists_of_names(self, lists: list[list[str]]) -> None:
        labels, names = by_name("labels", [" ; ".join(part) for part in lists], TableOptions(separator=";"), {})
        assert names == sorted({name for part in lists for name in part})
        assert [{names[c] for c in np.flatnonzero(row)} for row in labels] == [set(part) for part in lists]

    @pytest.mark.parametrize(
        ("header", "sign", "guessed"),
        [
            ("label", ";", True),
            ("label", "|", True),
            ("labels", "|", True),
            ("labels", " ", True),
            ("label", ",", False),
            ("label", " ", False),
        ],
    )
    def test_a_name_made_of_other_names(
        self, table: Table, caplog: pytest.LogCaptureFixture, header: str, sign: str, guessed: bool
    ) -> None:
        caplog.set_level("INFO", "lightning.pytorch")
        file = table(rows(["cat", "dog", f'"cat{sign} dog"', "cat"], header))
        with pytest.warns(UserWarning, match="'dog'") as caught:
            source = Manifest(file)
        remedy = f"taken for one name: if it is several labels, set --data.source.separator '{sign}'."
        assert any(str(warning.message).endswith(remedy) for warning in caught) is not guessed
        assert (f"separator '{sign}'" in caplog.text) is (guessed and (header, sign) != ("labels", ";"))
        several = [[1, 0], [0, 1], [1, 1]]
        assert source.multi_label is guessed
        assert not guessed or source.labels("train").tolist() == several
        assert Manifest(file, sign).labels("train").tolist() == several
        assert Manifest(file, task="one").class_names == ["cat", f"cat{sign} dog", "dog"]

    def test_an_empty_cell_of_a_single_label_raises(self, table: Table) -> None:
        with pytest.raises(ValueError, match=r"row 2 of .* has no label: give it one"):
            Manifest(table(rows(["cat", "", "dog", "cat"], "label")))


class TestColumns:
    @pytest.mark.parametrize("ending", ["csv", "parquet"])
    def test_ones_and_zeros(self, tmp_path: Path, ending: str) -> None:
        columns = {
            "zebra": [1, 0, None, 1],
            "path": ["a", "b", "c", "d"],
            "ant": [0.0, 1.0, float("nan"), 1.0],
            "split": ["train", "train", "train", "test"],
            "bee": [True, False, None, True],
            "cow": [-1, 1, 0, 1],
        }
        file = tmp_path / f"t.{ending}"
        if ending == "csv":
            cells = [["" if cell is None else str(cell) for cell in row] for row in zip(*columns.values(), strict=True)]
            file.write_text("\n".join(map(",".join, [list(columns), *cells])))
        else:
            parquet.write_table(pyarrow.table(columns), file)
        source = Manifest(str(file))
        assert source.multi_label
        assert (source.class_names, source.counts) == (["zebra", "ant", "bee", "cow"], [1, 1, 1, 1])
        assert source.labels("train").tolist() == [[1, 0, 1, -1], [0, 1, 0, 1], [-1, -1, -1, 0]]

    def test_some_columns(self, table: Table) -> None:
        file = table(rows(["1,0,Bob", "0,1,Eve", ",,", "1,1,Bob"], "ant,bee,who"))
        with pytest.raises(ValueError, match=r"column 'who' of '\S+' has 'Bob' in row 1, but .* the label columns by"):
            Manifest(file)
        assert Manifest(file, label_columns=["bee", "ant"]).labels("train").tolist() == [[0, 1], [1, 0], [-1, -1]]
        assert Manifest(file, label_columns=["bee"]).counts == [1]
        with pytest.raises(ValueError, match=r"label_columns names 'cow', but '\S+' has columns 'path', 'split'"):
            Manifest(file, label_columns=["cow"])

    def test_options_that_exclude_each_other_raise(self, table: Table) -> None:
        file = table(rows(["1", "0", "0", "1"], "ant"))
        for options in ({"separator": ""}, {"label_columns": []}, {"separator": ";", "label_columns": ["ant"]}):
            with pytest.raises(ValueError, match="one of them may be given, and not empty"):
                Manifest(file, **options)


class TestClasses:
    @pytest.mark.parametrize(
        ("header", "cells", "names"),
        [
            ("labels", ["cat", "cat", "", "dog;eel"], "'dog', 'eel'"),
            ("ant,bee", ["1,0", "1,", "0,-1", "1,1"], "'bee'"),
            ("label", ["cat", "cat", "dog", "eel"], "'eel'"),
        ],
    )
    def test_classes_without_training_images_raise(
        self, table: Table, header: str, cells: list[str], names: str
    ) -> None:
        with pytest.raises(ValueError, match=f"no training image of {names}, so that nothing can be learnt of it: add"):
            Manifest(table(rows(cells, header)))

    def test_classes_without_test_images_warn(self, table: Table) -> None:
        file = table(rows(["cat;dog;eel", "", "dog", "cat"], splits="train train val test"))
        with pytest.warns(UserWarning, match="metrics of this split leave them out") as caught:
            Manifest(file)
        first, second = [str(warning.message) for warning in caught]
        assert "no val images of 'cat', 'eel'" in first
        assert "no test images of 'dog', 'eel'" in second

    def test_a_table_without_any_label_raises(self, table: Table) -> None:
        with pytest.raises(ValueError, match=r"no training image of .* has a label: add some"):
            Manifest(table(rows(["", "", "", "cat"])))


def test_skipped_images_count_for_no_label(table: Table, folder: Path) -> None:
    files = sorted((folder / "train").rglob("*.*"))
    files[0].write_bytes(b"x")
    text = "".join(f"{file},{'train' if i < 9 else 'test'},{'a;b' if i < 3 else 'b'}\n" for i, file in enumerate(files))
    options = {"image_size": 9, "on_unreadable": "skip"}
    with pytest.warns(UserWarning, match="1 images cannot be read and are skipped"):
        data = LongTailedDataModule("Manifest", table("path,split,labels\n" + text), **options)
    assert (data.class_counts, data.num_images) == ([2, 8], 8)
    assert data.targets("train").tolist() == [[1, 1]] * 2 + [[0, 1]] * 6
    text = text.replace(",a;b", ",b").replace(",b", ",a;b", 1)
    with pytest.raises(ValueError, match="no train image of 'a' can be read"):
        LongTailedDataModule("Manifest", table("path,split,labels\n" + text), **options)


@pytest.mark.parametrize("streams", [False, True])
def test_loaders_yield_the_labels_of_their_images(
    table: Table, folder: Path, monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    if streams:
        monkeypatch.setattr("lt_cb.data.loaders.placement.available_memory", lambda: 1000)
    files = sorted((folder / "train").rglob("*.*"))
    cells = {0: "a", 1: "a;b", 2: ""}
    text = "".join(f"{file},{'test' if i > 17 else 'train'},{cells[i % 3]}\n" for i, file in enumerate(files))
    source = table("path,split,labels\n" + text)
    data = LongTailedDataModule(
        "Manifest", source, image_size=9, num_workers=0, batch_size=4, val_fraction=0.3, horizontal_flip=False
    )
    for name, split in (("train_dataloader", "train"), ("val_dataloader", "val"), ("test_dataloader", "test")):
        shown = [row for _, targets in getattr(data, name)() for row in targets.tolist()]
        whole = Manifest(source).labels(data.origin(split))
        assert sorted(shown) == sorted(whole[data.rows[split]].tolist())
    loader = data.train_dataloader()
    assert type(loader).__name__ == ("StreamingLoader" if streams else "ResidentLoader")


def test_options_on_the_command_line(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(rows(["cat|dog", "cat", "", "dog"], "label"))
    for options in (
        ["--data.source=lt_cb.data.sources.Manifest", "--data.source.separator=|"],
        ["--data.source=Manifest", "--data.source.separator=|"],
        ["--data.source={class_path: lt_cb.data.sources.Manifest, init_args: {separator: '|'}}"],
    ):
        with pytest.raises(SystemExit):  # there are no images
            main(["inspect", *options, f"--data.root={file}", "--data.image_size=8"])
        assert "2 classes" in capsys.readouterr().out
    options = {"separator": "|", "label_columns": ["cat", "dog"]}
    source = {"class_path": "lt_cb.data.sources.Manifest", "init_args": options}
    assert plain_settings({"data": {"source": source}}, trusted=False)[1] == {}


class TestPurposes:
    @pytest.mark.parametrize(
        ("options", "two"),
        [
            ({"group_column": "label"}, "label_column and group_column"),  # not patient as the label
            ({"group_column": "path"}, "path_column and group_column"),
            ({"label_column": "patient", "group_column": "patient"}, "label_column and group_column"),
            ({"label_columns": ["a", "b"], "group_column": "a"}, "group_column and label_columns"),
        ],
    )
    def test_a_column_with_two_purposes_raises(self, table: Table, options: dict[str, object], two: str) -> None:
        file = table("\n".join(["path,label,patient,a,b", *[f"{i}.png,{i % 2},{i},{i % 2},1" for i in range(9)]]))
        with pytest.raises(ValueError, match=rf"column '\w+' of '\S+' would be {two}: give"):
            Manifest(file, **options)

    @pytest.mark.parametrize("flag", ["is_train", "is_training_image"])
    def test_flags_of_training_images(self, table: Table, flag: str) -> None:
        cells = [f"{i}.png,{'ab'[i % 2]},{int(i > 2)}" for i in range(9)]
        source = Manifest(table("\n".join([f"path,label,{flag}", *cells])))
        assert (source.undivided, len(source.labels("train")), len(source.labels("test"))) == (None, 6, 3)

    def test_splits_of_other_names_are_said(self, table: Table, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "lightning.pytorch")
        cells = [f"{i}.png,{'ab'[i % 2]},{'PublicTest' if i else 'Train'}" for i in range(9)]
        file = table("\n".join(["path,label,Usage", *cells]))
        assert Manifest(file).undivided is not None
        assert "column 'Usage' of" in caplog.text
        assert "is not read as splits, because it has 'PublicTest', 'Train'. If it has splits, write" in caplog.text


def test_the_remedy_for_a_column_without_images(table: Table) -> None:
    file = table("\n".join(["image,MEL,NV,UNK", *[f"{i}.png,{i % 2}.0,{1 - i % 2}.0,0.0" for i in range(9)]]))
    with pytest.raises(ValueError, match=r"of 'UNK', .*, or leave it out by --data.source.label_columns '\[M"):
        Manifest(file)
    assert Manifest(file, label_columns=["MEL", "NV"]).class_names == ["MEL", "NV"]


def test_nan_as_text_is_empty(table: Table) -> None:
    with pytest.raises(ValueError, match=r"row 2 of .* has no label"):
        Manifest(table(rows(["cat", "nan", "dog", "cat"], "label")))


def test_one_column_is_no_table(table: Table) -> None:
    with pytest.raises(ValueError, match="Separate the columns by commas"):
        Manifest(table("path|label\n0.png|a\n"))
    with pytest.raises(ValueError, match=r"a column for each label\. Add the labels\."):
        Manifest(table("path\n0.png\n"))


def test_one_class_raises(table: Table) -> None:
    with pytest.raises(ValueError, match=r"has one class, 'a', but a classifier needs at least 2: add"):
        Manifest(table("path,label\n0.png,a\n1.png,a\n"))
