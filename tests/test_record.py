"""The record of a run: result.json, damaged files, and the callback that writes it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from lt_cb.callbacks import ResultFile
from lt_cb.data import LongTailedDataModule
from lt_cb.errors import InputError
from lt_cb.losses import SoftmaxLoss
from lt_cb.module import LongTailedClassifier
from lt_cb.runs.record import Record, changes_training

RESULT: dict[str, Any] = {
    "metrics": {"test/acc": 0.7, "test/loss": 1.5},
    "class_counts": [50, 5],
    "per_class_accuracy": [0.9, None],
    "seeds": {"seed_everything": 3, "subset_seed": 0},
    "correct": [9, 0],
    "test_counts": [10, 0],
    "confusion": [[9, 1], [0, 0]],
    "epochs": 2,
    "wall_time_s": {"fit": 3.0},
}


def test_json_and_back() -> None:
    record = Record.from_json(RESULT, "result.json")
    assert Record.from_json(json.loads(json.dumps(record.to_json())), "result.json") == record
    assert (record.class_names, record.scores) == (["0", "1"], [0.9, None])
    assert record.seed_everything == record.seconds == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("metrics", {"test/loss": 1.0}),
        ("metrics", {"test/acc": 1.2}),
        ("metrics", {"test/acc": float("nan")}),
        ("metrics", {"test/acc": 0.5, "test/loss": 10**400}),
        ("class_counts", [0, 0]),
        ("class_counts", [-1, 5]),
        ("class_counts", [True, 5]),
        ("per_class_accuracy", [0.9]),
        ("per_class_accuracy", [0.9, 1.5]),
        ("per_class_accuracy", [0.9, float("inf")]),
        ("seeds", {"seed_everything": 3}),
        ("seeds", {"seed_everything": 10**30, "subset_seed": 0}),
        ("test_counts", [0, 0]),
        ("confusion", [[9, 1], [0]]),
        ("shot_groups", {"many": [2]}),
        ("wall_time_s", {"fit": -1.0}),
        ("callbacks", ["EMAWeightAveraging"]),
        ("epochs", "2"),
        ("checkpoint", 5),
    ],
)
def test_impossible_values_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"^.result.json. is damaged: (test/acc|{name}) "):
        Record.from_json(RESULT | {name: value}, "result.json")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "5", "\x00", '{"class_counts": [1e999]}'])
def test_a_file_that_is_no_result_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(InputError, match=r"result.json' is damaged"):
        Record.read(tmp_path / "result.json")


def test_custom_classes_with_the_name_of_an_observer_change_training() -> None:
    assert not changes_training("lightning.pytorch.callbacks.ModelCheckpoint")
    assert not changes_training("lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint")
    assert changes_training("mine.ModelCheckpoint")
    assert changes_training("lightning.pytorch.callbacks.Timer")  # it ends the training


@pytest.mark.slow
def test_a_new_trainer_tests_with_the_record_of_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["[red]zero[/red]", "one\ntwo", "\x1b[31mthree", *map(str, range(3, 10))]
    result, data = ResultFile(), LongTailedDataModule(imbalance_factor=50)
    model = LongTailedClassifier(SoftmaxLoss(data.class_counts), backbone="resnet20", class_names=names, in_channels=1)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"default_root_dir": tmp_path, "callbacks": [result], "enable_checkpointing": False}
    Trainer(max_epochs=2, **quiet).fit(model, data)
    Trainer(**quiet).test(model, data, verbose=False)
    record = Record.read(tmp_path / "result.json")
    assert (record.epochs, record.wall_time_s.keys(), record.class_names) == (2, {"fit", "test"}, names)
    assert record.callbacks == []
    printed = capsys.readouterr().out
    assert "[red]zero[/red]" in printed
    assert re.search(r"one\\ntwo", printed)
    assert r"\x1b[31mthree" in printed
    assert "\x1b" not in printed
