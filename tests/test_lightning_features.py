"""Lightning's features from the command line: each works as documented, or a sentence before the training says not."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from refusals import refused

from lt_cb.__main__ import main
from lt_cb.commands.cli import CommandLine
from lt_cb.commands.train import Session

CALLBACKS = "lightning.pytorch.callbacks."
SHORT = [
    *("fit", "--config=lt_cb:quickstart", "--model.backbone=resnet20", "--model.fast=off"),
    *(f"--trainer.{option}" for option in ("accelerator=cpu", "enable_progress_bar=false", "max_epochs=2")),
    *(f"--trainer.limit_{split}_batches={number}" for split, number in (("train", 3), ("val", 1), ("test", 2))),
    "--trainer.check_val_every_n_epoch=1",
]
LOSS = "monitor=val/loss"
SCHEDULE = "--model.lr_scheduler"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


class Steps(Callback):
    """Keeps the learning rate of each batch, and the weights at the start of each epoch."""

    rates: list[float] = []
    weights: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer, *_) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_start(self, trainer, module) -> None:
        self.weights.append(next(module.backbone.parameters()).detach().clone())


def callbacks(*chosen: str) -> list[str]:
    """Return the arguments for callbacks of Lightning, each a name with options behind bars."""
    arguments = []
    for name, *options in (words.split("|") for words in chosen):
        arguments += [f"--trainer.callbacks+={CALLBACKS}{name}", *(f"--trainer.callbacks.{o}" for o in options)]
    return arguments


def fit(*args: str) -> Path:
    """Train, and return the run folder."""
    Steps.rates.clear()
    Steps.weights.clear()
    main([*SHORT, *args])
    return newest()


def newest() -> Path:
    return max(Path("runs").glob("*/version_*"), key=lambda folder: folder.stat().st_mtime_ns)


def result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


FLAT = ["--model.backbone=plain.flat", "--trainer.limit_val_batches=1"]
SPY = "--trainer.callbacks+=test_lightning_features.Steps"
WORKS = {
    "observers": [
        *callbacks("EarlyStopping|monitor=val/loss", "Timer|duration=00:00:10:00", "OnExceptionCheckpoint|dirpath=x"),
        *callbacks("ModelCheckpoint|monitor=val/loss|filename=best|save_last=true"),
        *callbacks("ModelCheckpoint|every_n_train_steps=2|save_top_k=-1", "DeviceStatsMonitor"),
        *callbacks("LearningRateMonitor|logging_interval=epoch"),
        *(["--trainer.callbacks+=lt_cb.callbacks.ResultFile"] * 2),
        *("--trainer.profiler=advanced", "--trainer.logger=false", "--trainer.log_every_n_steps=1"),
    ],
    "accumulation": [*callbacks("GradientAccumulationScheduler|scheduling={0: 2}"), "--trainer.profiler=simple"],
    "pruning": callbacks("ModelPruning|pruning_fn=l1_unstructured|amount=0.5"),
    "weight averaging": callbacks("WeightAveraging"),
    "EMA": callbacks("EMAWeightAveraging|decay=0.9"),
    "SWA": callbacks("StochasticWeightAveraging|swa_lrs=0.05"),
    "batch size finder": [
        *callbacks("BatchSizeFinder|max_trials=1|init_val=32|steps_per_trial=1"),
        "--trainer.limit_train_batches=1.0",
    ],
    "learning rate finder": [*callbacks("LearningRateFinder|num_training_steps=20"), *FLAT, "--trainer.max_epochs=8"],
}


@pytest.mark.parametrize("feature", WORKS)
def test_a_feature_works_and_its_configuration_starts_the_same_run(
    feature: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "lightning.pytorch"):
        run = fit(*WORKS[feature], SPY)
    ended = re.findall(r"Trained (.*)\.", capsys.readouterr().out)[0]
    epochs, steps = {"accumulation": (2, 4), "learning rate finder": (8, 24), "batch size finder": (2, 24)}.get(
        feature, (2, 6)
    )
    assert ended == f"{epochs} epochs, {steps} steps: --trainer.max_epochs is reached"
    base = 0.1
    if feature == "observers":
        saved = {"last", "best", "epoch=0-step=2", "epoch=1-step=4", "epoch=1-step=6"}
        files = {file.stem for file in (run / "checkpoints").iterdir() if not file.name.endswith(".before.ckpt")}
        assert files == saved
        header = (run / "metrics.csv").read_text().splitlines()[0]
        assert "lr-SGD" in header
        assert "DeviceStatsMonitor" in header
    if feature in ("observers", "accumulation"):
        assert "FIT Profiler Report" in caplog.text
    if feature == "pruning":  # half, after each of two epochs
        convolutions = [value for value in weights(run).values() if value.ndim == 4]
        zeros = sum(int((value == 0).sum()) for value in convolutions)
        assert zeros / sum(value.numel() for value in convolutions) == pytest.approx(0.75, abs=0.02)
    if feature == "SWA":  # the third epoch only adapts the batch norm
        assert len(Steps.weights) == 3
        assert result(run)["epochs"] == 2
        torch.testing.assert_close(weights(run)["backbone.conv1.weight"], Steps.weights[1])  # begins at 0.8 of 2
    if feature == "learning rate finder":
        base = float(re.findall("Learning rate set to (.*)", caplog.text)[0])
    if feature != "SWA":  # the rate falls to the end of the training, whatever its number of steps
        last = [steps - 2, steps - 2, steps - 1] if feature == "accumulation" else [steps - 3, steps - 2, steps - 1]
        assert Steps.rates[-3:] == pytest.approx([base * (1 - step / steps) / 0.95 for step in last])

    main(["fit", f"--config={run / 'config.yaml'}"])
    assert newest() != run
    assert result(newest())["metrics"] == result(run)["metrics"]
    configs = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in (run, newest())]
    assert configs[0] == configs[1]


def test_the_average_of_a_network_without_batch_norm_is_saved_and_ends_its_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    averages = callbacks("StochasticWeightAveraging|swa_lrs=0.05|swa_epoch_start=2")
    run = fit(*FLAT, *averages, SPY, "--trainer.max_epochs=3")
    expected = torch.stack(Steps.weights[1:]).mean(0)  # Lightning averages the weights at the start of these epochs
    torch.testing.assert_close(weights(run)["backbone.1.weight"], expected)
    again = [*SHORT, f"--config={run / 'config.yaml'}", f"--ckpt_path={run / 'checkpoints/last.ckpt'}"]
    sentence = refused(capsys, *again, "--trainer.max_epochs=4")
    assert sentence.startswith("the checkpoint has the average of StochasticWeightAveraging, with which its training")
    main([*again, "--trainer.max_epochs=3"])
    assert "Trained 3 epochs, 9 steps" in capsys.readouterr().out
    assert result(newest())["metrics"] == result(run)["metrics"]


PLATEAU = ["patience=0", "threshold_mode=abs", "threshold=1e9"]  # the second value is no improvement, whatever it is


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ReduceLROnPlateau", []),
        ("ReduceLROnPlateau", ["monitor=val/balanced_acc"]),
        ("torch.optim.lr_scheduler.ReduceLROnPlateau", []),
        ("lightning.pytorch.cli.ReduceLROnPlateau", ["monitor=val/loss"]),
        ("ReduceLROnPlateau", ["monitor=train/loss"]),
    ],
)
def test_a_plateau_is_looked_for_when_its_metric_is_there(name: str, options: list[str]) -> None:
    given = [f"{SCHEDULE}={name}", *(f"{SCHEDULE}.{option}" for option in [*options, *PLATEAU])]
    one = [
        *FLAT,
        SPY,
        "--trainer.limit_train_batches=2",
        "--trainer.max_epochs=5",
        "--trainer.check_val_every_n_epoch=2",
    ]
    fit(*given, *one)
    every = 1 if options == ["monitor=train/loss"] else 2
    falls = [max((epoch // every) - 1, 0) for epoch in range(5)]
    assert Steps.rates[::2] == pytest.approx([0.1 * 0.1**fall for fall in falls])


@pytest.mark.parametrize("length", [["total_steps=6"], ["epochs=2", "steps_per_epoch=3"]])
def test_a_schedule_in_steps_goes_by_step(length: list[str]) -> None:
    cycle = [f"{SCHEDULE}=OneCycleLR", f"{SCHEDULE}.max_lr=0.2", *(f"{SCHEDULE}.{option}" for option in length)]
    fit(*FLAT, SPY, *cycle)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
    torch_cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=6)
    expected = []
    for _ in range(6):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < 6:
            torch_cycle.step()
    assert Steps.rates == pytest.approx(expected)


def test_a_schedule_that_is_longer_than_the_training_is_warned_of() -> None:
    for given, warning in (
        (["OneCycleLR", "max_lr=0.1", "total_steps=9"], "OneCycleLR has 9 steps, but the training has 6"),
        (["CosineAnnealingLR", "T_max=6"], "CosineAnnealingLR counts epochs, not steps: it has 6, but the training 2"),
        (["MultiStepLR", "milestones=[1,5]"], "MultiStepLR counts epochs, not steps: it has 5, but the training 2"),
    ):
        with pytest.warns(UserWarning, match=warning):
            session(f"{SCHEDULE}={given[0]}", *(f"{SCHEDULE}.{option}" for option in given[1:]))


def session(*args: str) -> Session:
    """Return data, model and Trainer of a fit, without training."""
    return Session(CommandLine("fit", [*SHORT[1:], *args]))


STOP = "EarlyStopping"
LATE = "--trainer.check_val_every_n_epoch=5"
REFUSED = {
    "barebones": (
        ["--trainer.barebones=true"],
        "--trainer.barebones is true, but a run logs its metrics and tests its",
    ),
    "no checkpoints": (["--trainer.enable_checkpointing=false"], "--trainer.enable_checkpointing is false, but a run"),
    "spawn": (["--trainer.strategy=ddp_spawn", "--trainer.devices=2"], "--trainer.strategy starts processes that"),
    "fork": (["--trainer.strategy=ddp_fork", "--trainer.devices=2"], "--trainer.strategy starts processes that"),
    "notebook": (
        ["--trainer.strategy=ddp_notebook", "--trainer.devices=2"],
        "--trainer.strategy starts processes that",
    ),
    "backbone": (callbacks("BackboneFinetuning"), "BackboneFinetuning would freeze the classifier too"),
    "two alike": (
        callbacks(f"{STOP}|monitor=val/loss", f"{STOP}|monitor=val/loss|patience=9"),
        "the Trainer cannot be",
    ),
    "typo": (
        callbacks(f"{STOP}|monitor=val_loss"),
        "EarlyStopping monitors 'val_loss', which is no metric of this run:",
    ),
    "rate": (
        callbacks("ModelCheckpoint|monitor=lr-SGD", "LearningRateMonitor"),
        "ModelCheckpoint monitors 'lr-SGD', w",
    ),
    "plateau": (
        [f"{SCHEDULE}=ReduceLROnPlateau", f"{SCHEDULE}.monitor=loss"],
        "ReduceLROnPlateau monitors 'loss', whi",
    ),
    "custom": (
        ["--model.metrics+=torchmetrics.classification.MulticlassF1Score", *callbacks(f"{STOP}|monitor=val/F1Score")],
        "EarlyStopping monitors 'val/F1Score', which is no metric of this run: choose train/loss, val/loss, val/acc, "
        "val/balanced_acc, val/acc/many, val/acc/medium, val/acc/few, val/MulticlassF1Score. Did you mean",
    ),
    "late": (
        [LATE, *callbacks(f"{STOP}|monitor=val/loss")],
        "--trainer.check_val_every_n_epoch is 5, but --trainer.max",
    ),
    "late plateau": (
        [LATE, f"{SCHEDULE}=ReduceLROnPlateau"],
        "--trainer.check_val_every_n_epoch is 5, but --trainer.m",
    ),
    "no validation": (
        ["--trainer.limit_val_batches=0", *callbacks("ModelCheckpoint|monitor=val/acc")],
        "--trainer.limit_val_batches is 0: nothing is validated, but ModelCheckpoint monitors 'val/acc'.",
    ),
    "few steps": (
        ["--trainer.max_steps=2", *callbacks(f"{STOP}|monitor=val/loss")],
        "--trainer.max_steps 2 ends the training before its first validation: nothing is validated, but EarlyStopping",
    ),
    "validation by batches": (
        [f"{SCHEDULE}=ReduceLROnPlateau", "--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=2"],
        "ReduceLROnPlateau monitors 'val/loss', but --trainer.check_val_every_n_epoch is null: set a number of epochs.",
    ),
    "too early": (
        ["--trainer.val_check_interval=0.4", *callbacks("ModelCheckpoint|monitor=train/loss")],
        "ModelCheckpoint monitors 'train/loss' at validations, which are missing, or come too early: set its",
    ),
    "each epoch": (
        ["--trainer.check_val_every_n_epoch=2", *callbacks(f"{STOP}|monitor=val/loss|check_on_train_epoch_end=true")],
        "EarlyStopping monitors 'val/loss' after each epoch, but not each has a validation: leave",
    ),
    "cycle": (
        [f"{SCHEDULE}=OneCycleLR", f"{SCHEDULE}.max_lr=0.1", f"{SCHEDULE}.total_steps=5"],
        "OneCycleLR has 5 steps, but the training has 6: set --model.lr_scheduler.total_steps 6.",
    ),
    "cycle and finder": (
        [
            f"{SCHEDULE}=OneCycleLR",
            f"{SCHEDULE}.max_lr=0.1",
            f"{SCHEDULE}.total_steps=6",
            *callbacks("BatchSizeFinder"),
        ],
        "BatchSizeFinder changes what OneCycleLR fixes: set --model.lr_scheduler WarmupLinear, or leave the",
    ),
    "interval": (["--trainer.val_check_interval=4"], "--trainer.val_check_interval is 4 batches, but an epoch has 3:"),
    "no epochs": (
        ["--trainer.max_epochs=0"],
        "--trainer.max_epochs is 0, but a run needs a result: set at least 1, or",
    ),
    "no test": (["--trainer.limit_test_batches=0"], "--trainer.limit_test_batches is 0, but a run needs a result: set"),
    "part of a batch": (
        ["--trainer.limit_test_batches=0.01"],
        "--trainer.limit_test_batches is 0.01 of 7 batches, which leaves none: set a whole number, or at least 0.143.",
    ),
}


@pytest.mark.parametrize("feature", REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_written(
    feature: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args, sentence = REFUSED[feature]
    assert refused(capsys, *SHORT, *args).startswith(sentence)


def test_a_resumed_training_keeps_its_best_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    """The worst loss counts as the best here, so that the first epoch stays the best."""
    best = [*callbacks("ModelCheckpoint|monitor=val/loss|mode=max|filename=best"), "--test_best=true"]
    run = fit(*best, *FLAT, "--model.optimizer.lr=0.01", "--trainer.max_epochs=3")
    tested = run / "checkpoints/best.ckpt"
    assert result(run)["checkpoint"] == str(tested)
    again = [*SHORT, f"--config={run / 'config.yaml'}", "--test_best=true"]
    for epochs in (3, 4):  # nothing is left to train, then an epoch in another folder
        main([*again, f"--ckpt_path={run / 'checkpoints/last.ckpt'}", f"--trainer.max_epochs={epochs}"])
        assert newest() != run
        assert result(newest())["checkpoint"] == str(tested)
        assert result(newest())["metrics"] == result(run)["metrics"]


def test_what_cannot_be_resumed_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(*FLAT, "--trainer.max_steps=4", *callbacks("BatchSizeFinder|max_trials=1|init_val=64|steps_per_trial=1"))
    again = [*SHORT, *FLAT, f"--ckpt_path={run / 'checkpoints/last.ckpt'}", "--trainer.max_steps=-1"]
    sentence = refused(capsys, *again, *callbacks("BatchSizeFinder"))
    assert sentence.startswith("BatchSizeFinder would start the training again: to resume, leave it out of")
    with pytest.warns(
        UserWarning, match="saved in the middle of an epoch: Lightning cannot resume there, so that some"
    ):
        main([*again, "--trainer.callbacks=[]", "--trainer.max_epochs=3"])
    Path("failed").mkdir()
    Path("failed/on_exception.ckpt").touch()
    saves = callbacks("OnExceptionCheckpoint|dirpath=failed")
    sentence = refused(capsys, *SHORT, *saves)
    assert (
        sentence == "'failed/on_exception.ckpt' is of a training that failed: resume it with --ckpt_path, or delete it."
    )
    main(["test", FLAT[0], f"--ckpt_path={run / 'checkpoints/last.ckpt'}", *saves])
    assert Path("failed/on_exception.ckpt").exists()


def test_a_short_trial_is_counted_in_the_singular(capsys: pytest.CaptureFixture[str]) -> None:
    main([*SHORT, *FLAT, "--trainer.fast_dev_run=true"])
    assert "Trained 1 epoch, 1 step: --trainer.fast_dev_run is set." in capsys.readouterr().out
    assert not Path("runs").exists()
