"""The table of docs/layouts.md: each command reads its layout as it is, and prints the line that the page shows."""

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from layouts import LAYOUTS, Expected

from lt_cb.__main__ import main
from lt_cb.commands.cli import CommandLine
from lt_cb.data import FileSource, LongTailedDataModule

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
    assert sorted(folder.rglob("*")) == before


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
