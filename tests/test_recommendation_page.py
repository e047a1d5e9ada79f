"""The page of ``recommend``, and the command that it prints."""

import base64
import io
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lt_cb.commands.words import shell_command
from lt_cb.data import LongTailedDataModule
from lt_cb.heads.gallery import A_CLASS, MAX_CLASSES, confusion_figures
from lt_cb.heads.page import accuracy_table, precision_table, score_table
from lt_cb.heads.recipes import SOFTMAX, Candidate
from lt_cb.heads.suspects import Suspect
from lt_cb.lab.report.document import document, table


def wilson(right: int, total: int) -> tuple[float, float]:
    """The two rates p with (right / total - p)² = z² p (1 - p) / total, by the formula of a quadratic equation."""
    z2, rate = 1.959963984540054**2 / total, right / total
    half = math.sqrt((2 * rate + z2) ** 2 - 4 * (1 + z2) * rate**2)
    return (2 * rate + z2 - half) / (2 + 2 * z2), (2 * rate + z2 + half) / (2 + 2 * z2)


@given(st.lists(st.tuples(st.integers(1, 300), st.floats(0, 1)), min_size=1, max_size=9))
def test_class_table_has_the_rarest_first_with_wilson_intervals(classes: list[tuple[int, float]]) -> None:
    counts = [count for count, _ in classes]
    right = [round(share * count) for count, share in classes]
    names = [f"class {i}" for i in range(len(classes))]
    made = accuracy_table(names, counts, counts, {"ours": torch.tensor(right), "plain": torch.tensor(right) * 0}, "")
    assert sorted(row[0] for row in made.rows) == names
    assert [int(row[1]) for row in made.rows] == sorted(counts)
    for name, images, accuracy, interval, plain in made.rows:
        c = names.index(name)
        low, high = map(float, interval.split(" to "))
        assert (int(images), plain) == (counts[c], "0.0")
        assert float(accuracy) == pytest.approx(100 * right[c] / counts[c], abs=0.051)
        assert (low / 100, high / 100) == pytest.approx(wilson(right[c], counts[c]), abs=0.0051)


def test_a_class_that_is_never_held_out_has_no_accuracy() -> None:
    made = accuracy_table(["a", "b"], [9, 1], [9, 0], {"ours": torch.tensor([9, 0])}, "")
    assert made.rows == [["b", "1", "–", "–"], ["a", "9", "100.0", "70 to 100"]]
    rates = torch.tensor([[0.5, torch.nan], [0.7, torch.nan]], dtype=torch.float64)
    rows = precision_table(["a", "b"], [9, 1], rates, "").rows
    assert rows == [["b", "1", "–", "–"], ["a", "9", "60.0", "14.1"]]


def test_chosen_and_highest_scores_have_signs() -> None:
    scores = {Candidate(SOFTMAX, 1.0): [0.5, 0.6], Candidate(SOFTMAX, 0.1): [0.6, 0.6], Candidate(SOFTMAX, 0.01): [0.1]}
    first, second, _ = scores
    assert score_table(scores, "accuracy", "", first).rows == [["softmax", "**55.0 ✓**", "60.0 ↑", "10.0"]]
    assert score_table(scores, "accuracy", "", second).rows == [["softmax", "55.0", "**60.0 ↑ ✓**", "10.0"]]
    assert score_table(scores, "accuracy", "").rows == [["softmax", "55.0", "**60.0 ↑**", "10.0"]]


def test_confusions_show_the_most_confident_images_of_each_class() -> None:
    data = LongTailedDataModule("Digits", imbalance_factor=10)
    images, labels = data.source.load("train")
    data.targets("train")  # loads the split
    rows = data.rows["train"]
    ours = [int(row) for row in np.flatnonzero(labels[rows] == 9)[:5]]
    confusions = [Suspect(row, 9, 0.1, 3, 0.9 - 0.1 * i) for i, row in enumerate(ours)]
    made = confusion_figures([*confusions, Suspect(0, int(labels[rows][0]), 0.0, 9, 0.5)], data)
    assert set(made) == {9, int(labels[rows][0])}
    names = data.class_names
    captions = re.findall("<figcaption>(.*?)</figcaption>", made[9])
    assert captions == [f"taken for {names[3]} ({p}%)" for p in (90, 80, 70)]
    for row, uri in zip(ours, re.findall('base64,(.*?)"', made[9]), strict=False):
        picture = Image.open(io.BytesIO(base64.b64decode(uri))).convert("L")
        small = np.asarray(picture.resize(images.shape[1:3], Image.Resampling.BOX), float)
        expected = images[rows][row].squeeze().astype(float)
        others = [np.abs(small - images[rows][k].squeeze()).mean() for k in range(0, len(rows), 50)]
        assert np.abs(small - expected).mean() < min(*others, 30)
    assert confusion_figures([], data) == {}
    assert MAX_CLASSES * A_CLASS <= 100  # a page of a few megabytes at most


def test_title_and_rows_of_a_page_are_escaped() -> None:
    page = document("Recommendation: <b>& photos", ["<i>"], table("t", "w", ["a"], [["<u>"], ["x"]], {1: "<hr>"}))
    assert "<h1>Recommendation: &lt;b&gt;&amp; photos</h1>" in page
    assert "<title>lt_cb recommendation: &lt;b&gt;&amp; photos</title>" in page
    assert not re.search("<[bui]>", page)
    assert page.index("<td>x</td>") < page.index('<tr class="below"><td colspan="1"><hr>')


@pytest.mark.parametrize("path", [None, "my modules:$HOME"])
def test_printed_command_starts_lt_cb_in_a_shell(path: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if path is not None:
        monkeypatch.setenv("PYTHONPATH", path)
    words = ["predict", "--images", "my photos/it's $1"]
    line = shell_command(*words)
    given = [word.removeprefix("PYTHONPATH=") for word in shlex.split(line) if word.startswith("PYTHONPATH=")]
    assert given == ([] if path is None else [path])
    assert shlex.split(line)[-3:] == words
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert shlex.split(shell_command("--version"))[-2:] == ["lt-cb", "--version"]
    done = subprocess.run(["sh", "-c", shell_command("--version")], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("lt_cb ")
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    assert " ".join(shlex.split(shell_command("fit"))[-4:]) == "uv run lt-cb fit"
