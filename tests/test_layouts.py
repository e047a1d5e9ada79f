"""The table of docs/layouts.md: each command reads its layout as it is, and prints the line that the page shows."""

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from layouts import LAYOUTS, Expected
from layouts.base import image

from lt_cb.__main__ import main
from lt_cb.commands.cli import CommandLine
from lt_cb.data import FileSource, LongTailedDataModule
from lt_cb.data.sources import ImageFolder, Manifest
from lt_cb.data.sources.make import fitting_source
from lt_cb.errors import InputError

PAGE = (Path(__file__).parents[1] / "docs/layouts.md").read_text()


class Row(NamedTuple):
    """One row of the page."""

    options: str  # behind ``lt-cb fit``, or any other command
    lines: list[str]  # with "..." for what is left out


def code(cell: str) -> list[str]:
    """Return the pieces of code in a cell."""
    return [text.replace("\\|", "|") for text in re.findall(r"`([^`]+)`", cell)]


ROWS = {
    re.sub(r"[^a-z0-9]+", "_", cells[1].strip().lower()): Row(code(cells[3])[0], code(cells[4]))
    for cells in (re.split(r"(?<!\\)\|", line) for line in PAGE.splitlines() if line.startswith("| "))
    if "--data.root" in cells[3]
}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[LongTailedDataModule]:
    """The data modules that commands make."""
    made: list[LongTailedDataModule] = []
    make = CommandLine.make_data

    def make_and_keep(cli: CommandLine) -> LongTailedDataModule:
        made.append(make(cli))
        return made[-1]

    monkeypatch.setattr(CommandLine, "make_data", make_and_keep)
    return made


def test_the_page_has_all_layouts() -> None:
    assert set(ROWS) == set(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_command_reads_a_layout(
    name: str,
    tmp_path: Path,
    made: list[LongTailedDataModule],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    expected = LAYOUTS[name](folder)
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    with caplog.at_level("INFO", "lightning.pytorch"):
        main(["inspect", *shlex.split(ROWS[name].options)])
    warned = [str(warning.message) for warning in recwarn]
    printed = [*caplog.messages, *warned, *capsys.readouterr().out.splitlines()]
    for line in ROWS[name].lines:
        pattern = ".*".join(map(re.escape, line.split("...")))
        assert [text for text in printed if re.fullmatch(pattern, text)], (line, printed)
    check_labels(made[0].source, expected)
    if name not in ("inaturalist_2021", "chexpert"):  # they have folders too, which could be classes
        words = shlex.split(ROWS[name].options)
        assert fitting_source(words[words.index("--data.root") + 1]) == type(made[0].source).__name__
    assert sorted(file for file in folder.rglob("*") if "runs" not in file.parts) == before


def check_labels(source: object, expected: Expected) -> None:
    """Check the task, the number of images, and the number of images with each label in each split."""
    assert isinstance(source, FileSource)
    assert source.multi_label == expected.several
    counts = {split: count(source.labels(split), source.class_names) for split in source.splits}
    if "all" in expected.splits:
        assert counts.keys() == {"train", "test"}
        assert counts["train"] + counts["test"] == expected.splits["all"]
        if not expected.several and source.groups("test") is None:
            assert counts["test"] == {name: max(1, round(n / 5)) for name, n in expected.splits["all"].items()}
    else:
        assert counts == {split: +wanted for split, wanted in expected.splits.items()}
    if expected.several:
        assert sum(len(source.labels(split)) for split in source.splits) == expected.images


def count(labels: np.ndarray, names: list[str]) -> Counter[str]:
    """Count the images with each label."""
    if labels.ndim == 1:
        return Counter(names[label] for label in labels.tolist())
    return Counter(names[label] for row in labels.tolist() for label, cell in enumerate(row) if cell == 1)


def folders(root: Path, *names: str) -> None:
    """Write two images into each folder."""
    for name in names:
        for i in range(2):
            image(root / name / f"{name.replace('/', '_')}{i}.png")


class TestFolders:
    def test_splits_by_a_word_of_their_names(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        folders(
            tmp_path,
            *[f"seg_{part}/seg_{part}/{name}" for part in ("train", "test") for name in ("cat", "dog")],
            "seg_pred",
        )
        with caplog.at_level("INFO", "lightning.pytorch"), pytest.warns(UserWarning, match="ignored: 'seg_pred'"):
            source = ImageFolder(str(tmp_path))
        assert "train 'seg_train/seg_train', test 'seg_test/seg_test'" in caplog.text
        assert (source.class_names, source.counts, len(source.labels("test"))) == (["cat", "dog"], [2, 2], 4)
        assert len(source.files("train")[0]) == 4

    def test_a_class_may_be_called_a_train(self, tmp_path: Path) -> None:
        folders(tmp_path, "toy_train", "bus")
        assert ImageFolder(str(tmp_path)).class_names == ["bus", "toy_train"]

    def test_test_images_without_classes_are_not_used(self, tmp_path: Path) -> None:
        folders(tmp_path, "train/cat", "train/dog", "test")
        with pytest.warns(UserWarning, match="2 images, but no folders of classes: not used"):
            source = ImageFolder(str(tmp_path))
        assert source.undivided is not None

    @pytest.mark.parametrize("parts", [("images", "masks"), ("train", "test")])
    def test_masks_and_splits_in_classes_are_said(self, tmp_path: Path, parts: tuple[str, str]) -> None:
        folders(tmp_path, *[f"{name}/{part}" for name in ("cat", "dog") for part in parts])
        with pytest.warns(UserWarning, match="same folders, '{}', '{}'".format(*sorted(parts))):
            ImageFolder(str(tmp_path))

    def test_files_named_as_masks_are_said(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            for file in ("1.png", "1_mask.png"):
                image(tmp_path / name / file)
        with pytest.warns(UserWarning, match="2 of 4 images in .* are named as masks of others"):
            ImageFolder(str(tmp_path))


class TestSplitsOfTables:
    @pytest.mark.parametrize(
        "rows",
        [
            ["file,label,is_valid", *[f"{i}.png,{'ab'[i % 2]},{i > 3}" for i in range(8)]],
            ["file,label,split", *[f"{i}.png,{'ab'[i % 2]},{'train' if i < 4 else 'validate'}" for i in range(8)]],
            ["file,label", *[f"{'train' if i < 4 else 'test'}/{i}.png,{'ab'[i % 2]}" for i in range(8)]],
            [
                "file,label,split",
                *[f"{i}.png,{'ab'[i % 2]},{'train' if i < 4 else 'test'}" for i in range(8)],
                "9.png,a,x",
            ],
        ],
        ids=["is_valid", "validate", "folders of the paths", "other splits"],
    )
    @pytest.mark.filterwarnings("ignore:.*'x' .1 rows.")
    def test_they_are_those_of_the_table(self, tmp_path: Path, rows: list[str]) -> None:
        (tmp_path / "t.csv").write_text("\n".join(rows))
        source = Manifest(str(tmp_path / "t.csv"))
        assert (source.undivided, source.class_names, source.counts) == (None, ["a", "b"], [2, 2])
        assert len(source.labels("test")) == 4

    def test_a_table_without_header_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("0.jpg,cat\n1.jpg,dog\n")
        with pytest.raises(InputError, match=r"names an image, '0\.jpg'"):
            Manifest(str(tmp_path / "t.csv"))


def test_runs_inside_the_data_are_no_class(tmp_path: Path) -> None:
    folders(tmp_path, "cat", "dog")
    (tmp_path / "runs" / "image_folder").mkdir(parents=True)
    (tmp_path / "runs" / "image_folder" / "inspect.html").touch()
    assert ImageFolder(str(tmp_path)).class_names == ["cat", "dog"]


def test_splits_in_some_classes_are_said(tmp_path: Path) -> None:
    folders(tmp_path, "cat/train", "cat/test", "dog/train")
    with pytest.warns(UserWarning, match="class folders of .* same folders, 'test', 'train'"):
        ImageFolder(str(tmp_path))
