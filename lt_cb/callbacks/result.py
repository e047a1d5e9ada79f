"""The end of a run: a table of classes on the screen, and everything in ``result.json``."""

import math
import platform
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from rich.console import Console
from rich.table import Table

import lt_cb
from lt_cb.data import LongTailedDataModule
from lt_cb.errors import InputError
from lt_cb.hardware import processor
from lt_cb.loggers import wandb_logger
from lt_cb.module import LongTailedClassifier
from lt_cb.run import RunDir, commit, write_json

CONFUSION = 20  # most classes of a confusion matrix that a result and kept rows have


class ResultFile(Callback):
    """After ``test``, print a table of class, training images and accuracy, and write ``result.json``."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}  # by stage, of all parts of a training that was resumed
        self._started = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Return how long the training has taken so far."""
        return {"fit": self._seconds.get("fit", 0.0) + time.perf_counter() - self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count the parts of the training before."""
        self._seconds["fit"] = float(state_dict["fit"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock of a stage."""
        self._started = time.perf_counter()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop the clock of a stage; after the test, print and write."""
        self._seconds[stage] = self._seconds.get(stage, 0.0) + time.perf_counter() - self._started
        if stage != "test" or not isinstance(pl_module, LongTailedClassifier):
            return
        folder = trainer.log_dir  # a broadcast, which all processes have to join
        if not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test/")}
        counts, accuracy, tested = pl_module.loss.class_counts, class_accuracy(pl_module), pl_module.per_class["total"]
        if trainer.progress_bar_callback is not None:  # else a live bar and the table write into each other
            trainer.progress_bar_callback.teardown(trainer, pl_module, stage)
        _print_table(pl_module.class_names, counts, accuracy, metrics)
        if folder is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        data = trainer.datamodule if isinstance(trainer.datamodule, LongTailedDataModule) else None  # type: ignore[attr-defined]
        facts = data.facts() if data else {}
        wandb = wandb_logger(trainer)
        device = trainer.strategy.root_device  # the module is back on the CPU by now
        result: dict[str, Any] = {
            "metrics": metrics,
            "class_names": pl_module.class_names,
            "class_counts": counts,
            "shot_groups": pl_module.groups,
            "per_class_accuracy": accuracy,
            "correct": pl_module.per_class["correct"],
            "test_counts": tested,
            "confusion": pl_module.confusion if len(counts) <= CONFUSION else None,  # by true, then predicted class
            "test_images": sum(tested),
            "skipped_images": data.skipped if data else {},  # by split, of what cannot be read
            "prior": pl_module.prior,  # share of each class that --prior says, None without
            "epochs": trainer.current_epoch,
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "seeds": {name: facts.get(name) for name in ("seed_everything", "subset_seed")},
            "subset_sha256": facts.get("subset_sha256"),
            "validated_on": facts.get("validated_on"),
            "parameters": sum(p.numel() for p in pl_module.backbone.parameters()),
            "wall_time_s": {stage: round(seconds, 3) for stage, seconds in self._seconds.items()},
            "precision": str(trainer.precision),
            "device": str(device),
            "processor": processor(device),
            "threads": torch.get_num_threads(),
            "processes": trainer.world_size,
            "wandb_run": None if wandb is None else wandb.version,
            "grid": _grid(RunDir(folder)),  # digest of the run, if a grid has planned it
            "commit": commit(),
            "versions": {
                "lt_cb": lt_cb.__version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "lightning": lightning.__version__,
            },
        }
        write_json(RunDir(folder).result, result)
        Console().print(f"Run folder: {folder}", soft_wrap=True, highlight=False)


def _grid(run: RunDir) -> str | None:
    try:
        return str(run.read_grid()["digest"])
    except InputError:  # there is none
        return None


def print_ending(trainer: Trainer, folder: str | None, tested: str | None) -> None:
    """Print what stopped a training, its best and last validation score, and what is tested.

    Args:
        trainer: behind its fit.
        folder: of the run, None without.
        tested: checkpoint, None for the weights as they are.
    """
    watched = [c for c in trainer.callbacks if isinstance(c, ModelCheckpoint | EarlyStopping)]  # type: ignore[attr-defined]
    modes = {str(c.monitor): c.mode for c in watched if str(c.monitor).startswith("val/")} or {
        "val/balanced_acc": "max"
    }
    rows = [] if folder is None else RunDir(folder).read_metrics()
    scored = []
    for name, mode in modes.items():
        scores = [(float(row[name]), int(row["epoch"]) + 1) for row in rows if row.get(name)]
        if scores:
            best, last = (max if mode == "max" else min)(scores, key=lambda score: score[0]), scores[-1]
            scored.append(f"{name}: best {best[0]:.4g} after {best[1]} epochs, last {last[0]:.4g} after {last[1]}.")
    if folder is not None and not any(key.startswith("val/") and value for row in rows for key, value in row.items()):
        scored.append("There was no validation.")
    what = "the weights as they are" if tested is None else Path(tested).name
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"Trained {trainer.current_epoch} epochs, {trainer.global_step} steps: {_why_it_ended(trainer)}.")
    console.print(*scored, f"Tested: {what}.")


def _why_it_ended(trainer: Trainer) -> str:
    if 0 < trainer.max_steps <= trainer.global_step:
        return "--trainer.max_steps is reached"
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch:
        return "--trainer.max_epochs is reached"
    for callback in trainer.early_stopping_callbacks:
        if callback.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED:
            best = float(callback.best_score)
            return (
                f"stopped early, as {callback.monitor} was no better than {best:.4g} {callback.patience} times in a row"
            )
        if callback.stopping_reason_message is not None:
            return f"stopped early ({callback.stopping_reason_message.partition('. ')[0]})"
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    if any((left := timer.time_remaining()) is not None and left <= 0.0 for timer in timers):
        return "--trainer.max_time is over"
    return "a callback has stopped it"


def class_accuracy(module: LongTailedClassifier) -> list[float | None]:
    """Return the accuracy of each class in [0, 1], None for a class without samples."""
    pairs = zip(module.per_class["correct"], module.per_class["total"], strict=True)
    return [correct / total if total else None for correct, total in pairs]


def _print_table(names: list[str], counts: list[int], accuracy: list[float | None], metrics: dict[str, float]) -> None:
    table = Table(title="Test accuracy by class")
    table.add_column("class")
    table.add_column("training images", justify="right")
    table.add_column("accuracy", justify="right")
    table.add_column("")
    shown = list(zip(names, counts, accuracy, strict=True))
    if len(shown) > 100:  # the rest is in result.json
        middle = f"{len(shown) - 100} more, see result.json"
        shown = [*shown[:50], (middle, 0, None), *shown[-50:]]
    for name, count, value in shown:
        bar = "" if value is None else "█" * round(value * 20)
        table.add_row(
            name, str(count) if value is not None or count else "", "–" if value is None else f"{value:.1%}", bar
        )
    table.add_section()
    for name, value in metrics.items():
        label = name.removeprefix("test/")
        measured = "–" if math.isnan(value) else f"{value:.1%}"  # of no class with test images
        table.add_row(label, "", f"{value:.4f}" if label == "loss" else measured)
    Console().print(table)
