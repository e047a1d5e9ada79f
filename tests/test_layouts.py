"""The table of docs/layouts.md: each command reads its layout as it is, and prints the line that the page shows."""

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from layouts import LAYOUTS, Expected

from lt_cb.__main__ import main
from lt_cb.commands.cli import CommandLine
from lt_cb.data import FileSource, LongTailedDataModule
from lt_cb.longtail.subset import count_labels

PAGE = (Path(__file__).parents[1] / "docs/layouts.md").read_text()


class Row(NamedTuple):
    """One row of the page."""

    options: str  # behind ``lt-cb fit``, or any other command
    line: str  # with "..." for what is left out


def code(cell: str) -> str:
    """Return the code of a cell."""
    return cell.strip().strip("`").replace("\\|", "|")


ROWS = {
    re.sub(r"[^a-z0-9]+", "_", cells[1].strip().lower()): Row(code(cells[3]), code(cells[4]))
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
    assert list(ROWS) and set(ROWS) == set(LAYOUTS)


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
    printed = [*caplog.messages, *capsys.readouterr().out.splitlines(), *[str(warning.message) for warning in recwarn]]
    pattern = ".*".join(map(re.escape, ROWS[name].line.split("...")))
    assert [line for line in printed if re.fullmatch(pattern, line)], (ROWS[name].line, printed)
    check_labels(made[0].source, expected)
    assert sorted(folder.rglob("*")) == before


def check_labels(source: object, expected: Expected) -> None:
    """Check task, number of images, and the number of images with each label in each split."""
    assert isinstance(source, FileSource)
    assert source.multi_label == expected.several
    counts = {
        split: Counter(dict(zip(source.class_names, count_labels(source.labels(split), len(source.class_names)))))
        for split in source.splits
    }
    if "all" in expected.splits:
        assert source.splits == ("train", "test")
        assert counts["train"] + counts["test"] == expected.splits["all"]
        if not expected.several:
            assert counts["test"] == {label: max(1, round(n / 5)) for label, n in expected.splits["all"].items()}
    else:
        assert counts.keys() == expected.splits.keys()
        for split, wanted in expected.splits.items():
            assert +counts[split] == +wanted
    if expected.several:
        assert sum(len(source.labels(split)) for split in source.splits) == expected.images
