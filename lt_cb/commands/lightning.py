"""Lightning's features, checked before a training: what would fail in it, or do nothing, gets a sentence here."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
    OnExceptionCheckpoint,
)
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR

from lt_cb.data import LongTailedDataModule
from lt_cb.errors import InputError, did_you_mean
from lt_cb.module import LongTailedClassifier
from lt_cb.say import warn
from lt_cb.schedule import BY_STEP, monitor_of, planned_steps

COUNT_EPOCHS = ("T_max", "T_0", "step_size")  # options of torch's schedules


def check_switches(trainer: Namespace, fits: bool) -> None:
    """Check the options of the Trainer that leave a run without a checkpoint or a result."""
    for name, value in (("barebones", True), ("enable_checkpointing", False)):
        if trainer[name] is value:
            raise InputError(
                f"--trainer.{name} is {str(value).lower()}, but a run logs its metrics and tests its checkpoint: leave "
                "it out."
            )
    for name in ("limit_test_batches", *(("limit_train_batches", "max_epochs", "max_steps") if fits else ())):
        if trainer[name] == 0:
            raise InputError(f"--trainer.{name} is 0, but a run needs a result: set at least 1, or leave it out.")
    if fits and trainer.logger is False:
        warn("--trainer.logger false leaves out further loggers; the run folder is always written.")


def check_features(
    trainer: Trainer,
    model: LongTailedClassifier,
    data: LongTailedDataModule,
    scheduler: LRScheduler,
    resumed: Mapping[str, Any] | None,
) -> None:
    """Check callbacks, schedule and limits of a training; ``resumed`` is the checkpoint that it resumes from."""
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise InputError(
            "--trainer.strategy starts processes that cannot hand their result back to this one: set "
            "--trainer.strategy ddp, and run lt-cb as a command if you are in a notebook."
        )
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, BackboneFinetuning) for callback in callbacks):
        raise InputError(
            "BackboneFinetuning would freeze the classifier too, which is a part of --model.backbone: leave it out, or "
            "train a head on a frozen network with lt-cb recommend."
        )
    for saved in (Path(c.ckpt_path) for c in callbacks if isinstance(c, OnExceptionCheckpoint)):
        if resumed is None and saved.is_file():  # Lightning would resume from it
            raise InputError(f"'{saved}' is of a training that failed: resume it with --ckpt_path, or delete it.")
    finder = next((c for c in callbacks if isinstance(c, BatchSizeFinder | LearningRateFinder)), None)
    if finder is not None and resumed is not None:
        raise InputError(
            f"{type(finder).__name__} would start the training again: to resume, leave it out of --trainer.callbacks, "
            "and set --data.batch_size or --model.optimizer.lr to the value it found."
        )
    if isinstance(finder, BatchSizeFinder) and trainer.world_size > 1:
        raise InputError("BatchSizeFinder works in one process: set --trainer.devices 1 and --trainer.strategy auto.")
    batches = _check_limits(trainer, data)
    if finder is not None and isinstance(scheduler, OneCycleLR | CyclicLR):
        raise InputError(
            f"{type(finder).__name__} changes what {type(scheduler).__name__} fixes: set --model.lr_scheduler "
            "WarmupLinear, or leave the callback out."
        )
    _check_length(scheduler, trainer, batches, resumed)
    _check_monitors(trainer, model, scheduler, _why_no_validation(trainer, batches))


def _check_limits(trainer: Trainer, data: LongTailedDataModule) -> int:
    """Check limits of batches, and return the training batches of an epoch; 0 if a custom loader makes them."""
    loaders = {"train": data.train_dataloader, "val": data.val_dataloader, "test": data.test_dataloader}
    limits = {split: getattr(trainer, f"limit_{split}_batches") for split in loaders}
    batches = math.ceil(math.ceil(data.num_images / trainer.world_size) / data.batch_size)
    if type(data).train_dataloader is not LongTailedDataModule.train_dataloader:
        return 0
    for split, limit in limits.items():
        if isinstance(limit, float) and 0.0 < limit < 1.0:
            length = batches if split == "train" else math.ceil(len(loaders[split]()) / trainer.world_size)
            if int(length * limit) == 0:
                raise InputError(
                    f"--trainer.limit_{split}_batches is {limit} of {length} batches, which leaves none: set a whole "
                    f"number, or at least {math.ceil(1000 / length) / 1000}."
                )
    batches = int(batches * limits["train"]) if isinstance(limits["train"], float) else min(batches, limits["train"])
    interval, every = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if every is not None and isinstance(interval, int) and interval > batches and trainer.limit_val_batches:
        raise InputError(
            f"--trainer.val_check_interval is {interval} batches, but an epoch has {batches}: set less, or "
            "--trainer.check_val_every_n_epoch null to count over epochs."
        )
    return batches


def _why_no_validation(trainer: Trainer, batches: int) -> str | None:
    """Return why a training ends before its first validation, None if it has one."""
    every, interval, epochs = trainer.check_val_every_n_epoch, trainer.val_check_interval, trainer.max_epochs
    if trainer.limit_val_batches == 0:
        return "--trainer.limit_val_batches is 0"
    if every is not None and epochs is not None and 0 < epochs < every:
        return f"--trainer.check_val_every_n_epoch is {every}, but --trainer.max_epochs {epochs}"
    if trainer.max_steps < 0 or not batches or not isinstance(interval, int | float):
        return None
    accumulated = trainer.accumulate_grad_batches
    whole, rest = divmod(trainer.max_steps, math.ceil(batches / accumulated))
    first = interval if isinstance(interval, int) else max(int(batches * interval), 1)
    if whole * batches + min(rest * accumulated, batches) < first + ((every or 1) - 1) * batches:
        return f"--trainer.max_steps {trainer.max_steps} ends the training before its first validation"
    return None


def _check_length(scheduler: LRScheduler, trainer: Trainer, batches: int, resumed: Mapping[str, Any] | None) -> None:
    """Check that a schedule of torch has the length of the training, in steps or in epochs."""
    name, steps = type(scheduler).__name__, planned_steps(trainer, batches)
    if not batches:
        return
    if isinstance(scheduler, OneCycleLR):
        kept = resumed["lr_schedulers"] if resumed else []
        total = int(kept[0].get("total_steps", scheduler.total_steps)) if kept else scheduler.total_steps
        of = "the checkpoint's OneCycleLR" if kept else "OneCycleLR"
        told = f"{of} has {total} steps, but the training has {steps}"
        if total < steps:
            remedy = "train anew" if kept else f"set --model.lr_scheduler.total_steps {steps}"
            raise InputError(f"{told}: {'set --trainer.max_epochs' if steps == math.inf else remedy}.")
        if total > steps:
            warn(f"{told}: the rate does not fall to its end.")
    elif not isinstance(scheduler, BY_STEP) and steps < math.inf:
        longest = max([getattr(scheduler, key, 0) for key in COUNT_EPOCHS] + list(getattr(scheduler, "milestones", ())))
        epochs = math.ceil(steps / math.ceil(batches / trainer.accumulate_grad_batches))
        if longest > epochs:
            warn(f"{name} counts epochs, not steps: it has {longest}, but the training {epochs}.")


def _check_monitors(
    trainer: Trainer, model: LongTailedClassifier, scheduler: LRScheduler, no_validation: str | None
) -> None:
    """Check that callbacks and schedule monitor metrics which the run logs when they need them."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    monitors: list[tuple[Any, Any]] = [(callback, getattr(callback, "monitor", None)) for callback in callbacks]
    monitors = [(callback, monitor) for callback, monitor in monitors if isinstance(monitor, str)]
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        monitors.append((scheduler, monitor_of(scheduler)))
    names = model.metric_names() if monitors else []
    may_log_more = not all(type(x).__module__.startswith(("lt_cb.", "lightning.")) for x in (model, *callbacks))
    for watcher, monitor in monitors:
        if isinstance(watcher, ModelCheckpoint) and monitor in ("epoch", "step"):
            continue
        who = f"{type(watcher).__name__} monitors '{monitor}'"
        if monitor not in names and not may_log_more:
            raise InputError(
                f"{who}, which is no metric of this run: choose {', '.join(names)}.{did_you_mean(monitor, names)}"
            )
        if monitor.startswith("val/") and no_validation is not None:
            raise InputError(
                f"{no_validation}: nothing is validated, but {who}. Validate earlier, or monitor train/loss."
            )
        _check_moment(watcher, monitor, who, trainer, no_validation is not None)
    if no_validation is not None and trainer.limit_val_batches != 0:
        warn(f"{no_validation}: nothing is validated.")


def _check_moment(watcher: Any, monitor: str, who: str, trainer: Trainer, no_validation: bool) -> None:  # noqa: ANN401 - with a monitor
    """Check that a metric is there when a callback or schedule first asks for it."""
    every, validates = trainer.check_val_every_n_epoch, monitor.startswith("val/")
    if validates and every is None and isinstance(watcher, lr_scheduler.ReduceLROnPlateau):
        raise InputError(f"{who}, but --trainer.check_val_every_n_epoch is null: set a number of epochs.")
    option = {EarlyStopping: "check_on_train_epoch_end", ModelCheckpoint: "save_on_train_epoch_end"}.get(type(watcher))
    if option is None:
        return
    at_end = getattr(watcher, f"_{option}")
    at_end = (trainer.val_check_interval == 1.0 and every == 1) if at_end is None else at_end
    if validates and at_end and every != 1:
        raise InputError(f"{who} after each epoch, but not each has a validation: leave {option} out.")
    if not validates and not at_end and (every in (None, 1) or no_validation):
        raise InputError(f"{who} at validations, which are missing, or come too early: set its {option} true.")
