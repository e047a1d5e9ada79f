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
from lt_cb.runs.folder import RunDir, commit, write_json

TITLES = {"accuracy": "accuracy", "average_precision": "average precision", "auroc": "AUROC", "f1": "F1"}
MEANS = {"average_precision": "mAP", "auroc": "auroc", "f1": "f1_macro"}  # metrics that are means of a measure
CONFUSION = 20  # most classes of a confusion matrix that a result and kept rows have


class ResultFile(Callback):
    """After ``test``, print a table of class, training images and how well it does, and write ``result.json``."""

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
        counts, of_classes, tested = pl_module.loss.class_counts, pl_module.per_class, pl_module.per_class["total"]
        measured = {name: class_values(pl_module, name) for name in class_measures(pl_module)}
        if trainer.progress_bar_callback is not None:  # else a live bar and the table write into each other
            trainer.progress_bar_callback.teardown(trainer, pl_module, stage)
        _print_table(pl_module.class_names, counts, measured, metrics)
        if folder is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        data = trainer.datamodule if isinstance(trainer.datamodule, LongTailedDataModule) else None  # type: ignore[attr-defined]
        facts = data.facts() if data else {}
        wandb = wandb_logger(trainer)
        device = trainer.strategy.root_device  # the module is back on the CPU by now
        result: dict[str, Any] = {
            "metrics": {name: value for name, value in metrics.items() if not math.isnan(value)},  # as JSON has no NaN
            "class_names": pl_module.class_names,
            "class_counts": counts,
            "shot_groups": pl_module.groups,
            **{f"per_class_{name}": values for name, values in measured.items()},
            "correct": of_classes.get("correct"),
            "test_counts": tested,  # images of the class, or that have the label
            "known_counts": of_classes.get("known"),  # images of which it is known whether they have the label
            "thresholds": pl_module.threshold_probabilities,  # probabilities from which on a label is predicted
            "confusion": pl_module.confusion if len(counts) <= CONFUSION else None,  # by true, then predicted class
            "test_images": of_classes["images"] if pl_module.multi_label else sum(tested),
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
    modes = {str(c.monitor): c.mode for c in watched if str(c.monitor).startswith("val/")}
    modes = modes or {f"val/{main_metric(trainer.lightning_module)}": "max"}
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


def main_metric(module: LightningModule) -> str:
    """Return what to choose by: balanced accuracy, or of several labels mean average precision."""
    return "mAP" if isinstance(module, LongTailedClassifier) and module.multi_label else "balanced_acc"


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


def class_measures(module: LongTailedClassifier) -> tuple[str, ...]:
    """Return what each class is measured by; the first is what charts show."""
    return ("average_precision", "auroc", "f1") if module.multi_label else ("accuracy",)


def class_values(module: LongTailedClassifier, measure: str) -> list[float | None]:
    """Return a measure of each class in [0, 1], None for a class without samples."""
    if measure == "accuracy":
        pairs = zip(module.per_class["correct"], module.per_class["total"], strict=True)
        return [correct / total if total else None for correct, total in pairs]
    return [None if math.isnan(value) else value for value in module.per_class[measure]]


def _print_table(
    names: list[str], counts: list[int], measured: dict[str, list[float | None]], metrics: dict[str, float]
) -> None:
    first = next(iter(measured))
    table = Table(title=f"Test {TITLES[first]} by class")
    table.add_column("class")
    table.add_column("training images", justify="right")
    for name in measured:
        table.add_column(TITLES[name], justify="right")
    table.add_column("")
    width = 20 if len(measured) == 1 else 10  # of the bars
    shown = list(zip(names, counts, *measured.values(), strict=True))
    if len(shown) > 100:  # the rest is in result.json
        middle = f"{len(shown) - 100} more, see result.json"
        shown = [*shown[:50], (middle, 0, *[None] * len(measured)), *shown[-50:]]
    for name, count, *values in shown:
        bar = "" if values[0] is None else "█" * round(values[0] * width)
        cells = ["–" if value is None else f"{value:.1%}" for value in values]
        table.add_row(name, str(count) if values[0] is not None or count else "", *cells, bar)
    table.add_section()
    left = {name.removeprefix("test/"): value for name, value in metrics.items()}
    for group in ("", "/many", "/medium", "/few"):  # each in the column of its measure
        means = [left.pop(f"{MEANS[name]}{group}", None) for name in measured if name in MEANS]
        if any(value is not None for value in means):
            table.add_row(f"{group[1:]}-shot" if group else "mean", "", *map(_shown, means))
    for label, value in left.items():
        table.add_row(label, "", f"{value:.4f}" if label == "loss" else _shown(value))
    Console().print(table)


def _shown(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.1%}"  # of no class with test images
