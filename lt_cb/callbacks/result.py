"""End of a run: ``result.json``, and a table of the classes on the screen."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from platform import python_version
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

import lt_cb
from lt_cb.data import LongTailedDataModule
from lt_cb.data.grouped import num_groups
from lt_cb.evaluation import EvaluatedModule
from lt_cb.hardware import processor
from lt_cb.loggers import wandb_logger
from lt_cb.runs import checkpoint as checkpoints
from lt_cb.runs.folder import RunDir, commit, write_json
from lt_cb.runs.record import SHOTS, Record, changes_training, training_callbacks
from lt_cb.sets import TEST_LEVEL
from lt_cb.text import printable

MAX_CONFUSION = 20  # classes of the largest confusion matrix in result.json
MAX_LINES = 100  # classes of the largest printed table


class ResultFile(Callback):
    """Writes ``result.json`` after a test, with epochs and seconds of the training, and prints the class scores."""

    #: epochs of the training, from its checkpoint until it ends in this process; without the one in which a
    #: StochasticWeightAveraging adapts the batch norm
    epochs: int | None = None

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}  # by stage, over all parts of a resumed training
        self._started = time.perf_counter()
        self._trained: dict[str, Any] | None = None  # configuration in the tested checkpoint
        self._history: dict[str, Any] = {}
        self._l2_strength: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds of training so far."""
        return {"fit": self._seconds.get("fit", 0.0) + time.perf_counter() - self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Add the seconds of the interrupted training."""
        self._seconds["fit"] = float(state_dict["fit"])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over epochs, configuration, history and the λ of a head from the checkpoint."""
        self.epochs = trained_epochs(checkpoint) if self.epochs is None else self.epochs
        self._trained, self._history = checkpoints.config(checkpoint), checkpoints.history(checkpoint)
        self._l2_strength = (checkpoints.head(checkpoint) or {}).get("l2_strength")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock of a stage."""
        self._started, self._max_epochs = time.perf_counter(), trainer.max_epochs

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember how many epochs were trained."""
        limit = self._max_epochs
        self.epochs = trainer.current_epoch if limit is None or limit < 0 else min(trainer.current_epoch, limit)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop the clock of a stage. After the test, write the record and print the table."""
        self._seconds[stage] = self._seconds.get(stage, 0.0) + time.perf_counter() - self._started
        if stage != "test" or not isinstance(pl_module, EvaluatedModule):
            return
        folder = trainer.log_dir  # a broadcast, which every process must join
        if not trainer.is_global_zero:
            return
        run = RunDir(folder or ".")
        record = self._record(trainer, pl_module, run)
        written = folder is not None and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if written:
            write_json(run.result, record.to_json())
        if trainer.progress_bar_callback is not None:  # a live bar and the table would overwrite each other
            trainer.progress_bar_callback.teardown(trainer, pl_module, stage)
        _print_table(record)
        if written:
            Console().print(f"Run folder: {folder}", soft_wrap=True, highlight=False, markup=False)

    def _record(self, trainer: Trainer, module: EvaluatedModule, run: RunDir) -> Record:
        data = trainer.datamodule if isinstance(trainer.datamodule, LongTailedDataModule) else None  # type: ignore[attr-defined]
        wandb = wandb_logger(trainer)
        device = trainer.strategy.root_device  # the module is back on the CPU by now
        of_classes, counts = module.per_class, module.loss.class_counts
        return Record(
            metrics={name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("test/")},
            class_counts=counts,
            per_class={name: class_values(module, name) for name in module.task.measures},
            class_names=module.class_names,
            shot_groups=module.groups,
            correct=of_classes.get("correct"),
            test_counts=of_classes["total"],
            known_counts=of_classes.get("known"),
            thresholds=module.threshold_probabilities,
            **_sets(module),
            confusion=module.confusion if len(counts) <= MAX_CONFUSION else None,
            test_images=of_classes["images"],
            skipped_images={str(split): number for split, number in data.skipped.items()} if data else {},
            groups=num_groups(data) if data else {},
            prior=module.prior,
            epochs=trainer.current_epoch if self.epochs is None else self.epochs,
            l2_strength=self._l2_strength,
            checkpoint=str(trainer.ckpt_path) if trainer.ckpt_path and not module.averaged else None,
            averaged=[str(Path(name).absolute()) for name in module.averaged],
            callbacks=_training_callbacks(trainer, self._trained),
            history=self._history,
            parameters=sum(p.numel() for p in module.backbone.parameters()),
            wall_time_s={stage: round(seconds, 3) for stage, seconds in self._seconds.items()},
            precision=str(trainer.precision),
            device=str(device),
            processor=processor(device),
            threads=torch.get_num_threads(),
            processes=trainer.world_size,
            wandb_run=None if wandb is None else wandb.version,
            grid=run.planned,
            commit=commit(),
            **{**(data.facts() if data else {}), **_seeds(self._trained)},
            versions={m.__name__: m.__version__ for m in (lt_cb, torch, lightning)} | {"python": python_version()},
        )


def _sets(module: EvaluatedModule) -> dict[str, Any]:
    """Return the measured coverage of prediction sets; nothing if they are not calibrated."""
    if "coverage" not in module.per_class:
        return {}
    coverage, size = (class_values(module, measure) for measure in ("coverage", "set_size"))
    return {"set_level": TEST_LEVEL, "set_coverage": coverage, "set_size": size}


def _seeds(trained: Mapping[str, Any] | None) -> dict[str, int]:
    """Return the seeds of the training in its configuration; a test may have others."""
    given = {"seed_everything": (trained or {}).get("seed_everything")}
    given["subset_seed"] = ((trained or {}).get("data") or {}).get("subset_seed")
    return {name: seed for name, seed in given.items() if type(seed) is int}


def _training_callbacks(trainer: Trainer, trained: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the callbacks that trained the checkpoint: in its configuration or, without one, of this Trainer."""
    if trained is not None:
        return training_callbacks(trained)
    paths = [f"{type(c).__module__}.{type(c).__qualname__}" for c in trainer.callbacks]  # type: ignore[attr-defined]
    return [{"class_path": path} for path in paths if changes_training(path)]


def trained_epochs(checkpoint: Mapping[str, Any]) -> int:
    """Return how many epochs a checkpoint was trained for."""
    try:
        epochs = int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    except (KeyError, TypeError):  # weights without the progress of the training
        epochs = int(checkpoint.get("epoch", -1)) + 1
    asked = ((checkpoints.config(checkpoint) or {}).get("trainer") or {}).get("max_epochs")
    return min(epochs, asked) if type(asked) is int and asked > 0 else epochs  # see `ResultFile.epochs`


def is_within_epoch(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint was saved before the last batch of an epoch."""
    try:
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        return int(progress["current"]["ready"]) > 0 and not progress["is_last_batch"]
    except (KeyError, TypeError):
        return False


def print_ending(trainer: Trainer, main_metric: str, folder: str | None, tested: Path | None) -> None:
    """Print why a training ended, best and last score of the watched or else the main metric, and the tested file."""
    watched = [c for c in trainer.callbacks if isinstance(c, ModelCheckpoint | EarlyStopping)]  # type: ignore[attr-defined]
    modes = {str(c.monitor): c.mode for c in watched if str(c.monitor).startswith("val/")}
    rows = [] if folder is None else RunDir(folder).read_metrics()
    results = [c for c in trainer.callbacks if isinstance(c, ResultFile)]  # type: ignore[attr-defined]
    lines, epochs = [], results[0].epochs or 0
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    seen = " on the test images" if getattr(data, "validation_split", "") == "test" else ""
    for name, mode in (modes or {f"val/{main_metric}": "max"}).items():
        scores = [(float(row[name]), int(row["epoch"]) + 1) for row in rows if row.get(name)]
        if scores:
            best, last = (max if mode == "max" else min)(scores, key=lambda score: score[0]), scores[-1]
            after = counted(min(best[1], epochs), "epoch")
            lines.append(
                f"{name}{seen}: best {best[0]:.4g} after {after}, last {last[0]:.4g} after {min(last[1], epochs)}."
            )
    if folder is not None and not any(key.startswith("val/") and value for row in rows for key, value in row.items()):
        lines.append("There was no validation.")
    console = Console(soft_wrap=True, highlight=False, markup=False)
    # an epoch in which averaged weights only adapt the batch norm counts one step
    steps = counted(trainer.global_step - (trainer.current_epoch - epochs), "step")
    console.print(f"Trained {counted(epochs, 'epoch')}, {steps}: {_why_it_ended(trainer)}.")
    console.print(*lines, f"Tested: {'the weights as they are' if tested is None else tested.name}.")


def counted(number: int, noun: str) -> str:
    """Return ``1 epoch``, ``2 epochs``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _why_it_ended(trainer: Trainer) -> str:
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return "--trainer.fast_dev_run is set"
    if 0 < trainer.max_steps <= trainer.global_step:
        return "--trainer.max_steps is reached"
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch:
        return "--trainer.max_epochs is reached"
    for stopper in trainer.early_stopping_callbacks:
        if stopper.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED:
            best = f"{float(stopper.best_score):.4g}"
            return f"stopped early, as {stopper.monitor} was no better than {best} {stopper.patience} times in a row"
        if stopper.stopping_reason_message is not None:
            return f"stopped early ({stopper.stopping_reason_message.partition('. ')[0]})"
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    if any((left := timer.time_remaining()) is not None and left <= 0.0 for timer in timers):
        return "the time of --trainer.max_time or the Timer is over"
    return "a callback has stopped it"


def class_values(module: EvaluatedModule, measure: str) -> list[float | None]:
    """Return C scores in [0, 1] of the last validation or test, None for a class without samples."""
    return [None if math.isnan(value) else value for value in module.per_class[measure]]


def measure_title(measure: str) -> str:
    """Return the name of a measure for readers: ``average precision``, ``AUROC``."""
    return {"auroc": "AUROC", "f1": "F1"}.get(measure, measure.replace("_", " "))


def _print_table(record: Record) -> None:
    measures = record.task.measures
    titles = [measure_title(name) for name in measures]
    if record.set_level is not None:
        titles.append(f"in its {record.set_level:.0%} set")
    numbers = [Column(title, justify="right") for title in ("training images", *titles)]
    averaged = f", average of {len(record.averaged)} checkpoints" if record.averaged else ""
    table = Table("class", *numbers, "", title=f"Test {titles[0]} by class{averaged}")
    bar_width = 20 if len(measures) == 1 else 10
    scores = [record.per_class[name] for name in measures]
    if record.set_coverage is not None:
        scores.append(record.set_coverage)
    rows: list[list[str | Text]] = []
    for name, count, *values in zip(
        map(Text, map(printable, record.class_names)), record.class_counts, *scores, strict=True
    ):
        rows.append([name, str(count), *map(_percent, values), "█" * round((values[0] or 0.0) * bar_width)])
    if len(rows) > MAX_LINES:
        rows[MAX_LINES // 2 : -MAX_LINES // 2] = [[f"{len(rows) - MAX_LINES} more, see result.json"]]
    for row in rows:
        table.add_row(*row)
    table.add_section()
    left = {name.removeprefix("test/"): value for name, value in record.metrics.items()}
    for group in ("", *SHOTS) if record.task.multi_label else ():  # each mean below the column of its measure
        means = [left.pop(f"{record.task.means[name]}/{group}".rstrip("/"), None) for name in measures]
        if any(value is not None for value in means):
            table.add_row(f"{group}-shot" if group else "mean", "", *map(_percent, means))
    for label, value in left.items():
        table.add_row(label, "", {"loss": f"{value:.4f}", "set_size": f"{value:.2f}"}.get(label, _percent(value)))
    Console().print(table)
    if record.set_level is not None:
        Console().print(set_note(record.set_level), soft_wrap=True)


def set_note(level: float) -> str:
    """Return what prediction sets promise."""
    return (
        f"Prediction sets (lt-cb predict --sets {level:g}) are meant to hold the true class for {level:.0%} of the "
        "images of each class. They are calibrated on held-out training images, which gives no exact guarantee: "
        "compare the coverage."
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
