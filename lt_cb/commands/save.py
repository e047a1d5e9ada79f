"""Trainer of a run: its folder, its loggers, and the callbacks that save configuration and checkpoints."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import Logger
from torch import Tensor

from lt_cb.callbacks import BestEpoch, Duration, ResultFile
from lt_cb.commands.cli import CommandLine
from lt_cb.commands.elsewhere import digests_in
from lt_cb.data import LongTailedDataModule
from lt_cb.data.elsewhere import training_digests
from lt_cb.errors import InputError
from lt_cb.loggers import PartFolder, RunFolder, TensorBoard, WandB, wandb_logger
from lt_cb.longtail.subset import Indices
from lt_cb.runs import checkpoint as checkpoints
from lt_cb.runs.folder import RunDir, write_text
from lt_cb.say import warn

PARTS = {"test": "test", "validate": "validation", "predict": "predictions"}  # folders inside a run, by command
# callbacks that a test is without: they would search, delete their checkpoint, or warn that they have no part in it
OF_FIT = (BatchSizeFinder, OnExceptionCheckpoint, WeightAveraging)


class SaveConfig(SaveConfigCallback):
    """Saves the resolved configuration in the run folder and in every checkpoint."""

    history: Mapping[str, Any] = {}  # settings of earlier parts of the training
    data: LongTailedDataModule | None = None
    trained_before: Indices = np.empty(0, np.int64)  # digests of images of earlier parts of the training

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add to a checkpoint its configuration, its run at W&B, and the metrics of its epoch."""
        checkpoint[checkpoints.CONFIG] = self._config_yaml
        checkpoint[checkpoints.HISTORY] = dict(self.history)
        if self._trained_on is not None:
            checkpoint[checkpoints.TRAINED_ON] = self._trained_on
        if (logger := wandb_logger(trainer)) is not None:
            checkpoint[checkpoints.WANDB] = logger.version
        trained = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("train/")}
        checkpoint[checkpoints.METRICS] = {"epoch": trainer.current_epoch, "step": trainer.global_step - 1, **trained}

    @cached_property
    def _config_yaml(self) -> str:
        """The configuration, dumped once: it does not change during a training."""
        return str(self.parser.dump(self.config, skip_none=False))

    @cached_property
    def _trained_on(self) -> Tensor | None:
        """Digests of all training images, also of earlier parts of the training."""
        now = None if self.data is None else training_digests(self.data)
        return None if now is None else torch.from_numpy(np.union1d(now, self.trained_before))

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the configuration to the run folder, and send it to the further loggers."""
        folder = trainer.loggers[0].log_dir
        write_text(RunDir(folder or ".").config, self._config_yaml)
        for logger in trainer.loggers[1:]:
            logger.log_hyperparams(yaml.safe_load(self._config_yaml))


class LastCheckpoint(ModelCheckpoint):
    """Saves ``checkpoints/last.ckpt`` after every epoch."""

    def __init__(self) -> None:
        super().__init__(filename="last", enable_version_counter=False, save_on_train_epoch_end=True)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Drop names of files outside the checkpoint's folder from the states of all callbacks, which follow.

        A callback that keeps the best checkpoint takes over the best one so far, also from another run folder.
        """
        checkpoints.keep_own_files(checkpoint, Path(str(trainer.ckpt_path)).absolute().parent)
        for kept in trainer.checkpoint_callbacks:
            if isinstance(kept, ModelCheckpoint) and kept.monitor and kept.state_key in checkpoint["callbacks"]:
                checkpoint["callbacks"][kept.state_key]["dirpath"] = kept.dirpath

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the average of a StochasticWeightAveraging, which a network without batch norm gets only now."""
        if self.best_model_path and any(isinstance(c, StochasticWeightAveraging) for c in trainer.callbacks):  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.best_model_path)


def as_list(value: Any) -> list[Any]:  # noqa: ANN401 - one object, several, or a switch
    """Return the objects of a Trainer's option."""
    return value if isinstance(value, list) else [] if value in (None, True, False) else [value]


def run_folder(cli: CommandLine) -> RunFolder:
    """Return the logger of the run's folder, or in a test of a folder inside it, see `PartFolder`.

    Raises InputError if ``--folder`` has another run.
    """
    config = cli.config
    if cli.command in PARTS and config.folder is None:
        run, named = RunDir.of(cli.ckpt_paths[0]), Path(config.trainer.default_root_dir or "runs", config.name)
        inside = run is not None and len(cli.ckpt_paths) == 1 and named.absolute() == run.path.absolute().parent
        return PartFolder(run.path if run is not None and inside else named, PARTS[cli.command])
    folder = RunFolder.of(config.folder, config.trainer.default_root_dir, config.name)
    if config.folder is not None:
        run = RunDir(config.folder)
        kept = [file.resolve() for file in (run.checkpoint, run.checkpoint_before) if file.is_file()]
        resumes = cli.command == "fit" and config.ckpt_path is not None and Path(config.ckpt_path).resolve() in kept
        folder.claim(cli.checkpoint if resumes else None)
    return folder


def run_trainer(
    cli: CommandLine,
    options: Namespace,
    loaded: dict[str, Any] | None = None,
    further_callbacks: Sequence[Callback] = (),
) -> Trainer:
    """Return the Trainer of a run: it logs to the run folder, and saves configuration, checkpoints and the result.

    ``options`` are the instantiated options of the Trainer, ``loaded`` checkpoints already read, by path.
    """
    folder, further = run_folder(cli), as_list(options.logger)
    for logger in further:
        if isinstance(logger, WandB | TensorBoard):
            logger.beside = folder
    fits = cli.command in ("fit", "finetune")
    left_out = ResultFile if fits else (ResultFile, *OF_FIT)
    callbacks = [c for c in as_list(options.callbacks) if not isinstance(c, left_out)]
    callbacks += [Duration(early=cli.command == "finetune")] * fits
    callbacks += [ResultFile(), *further_callbacks, LastCheckpoint()]
    if not options.fast_dev_run:
        saves = SaveConfig(cli.parser, cli.config, save_to_log_dir=False)
        saves.history, saves.data = cli.history, cli.data
        if (before := digests_in(cli.checkpoint or {})) is not None:
            saves.trained_before = before
        callbacks.append(saves)
    return make_trainer(options, [folder, *further], callbacks, loaded)


def make_trainer(
    options: Namespace, loggers: Sequence[Logger], callbacks: Sequence[Callback], loaded: dict[str, Any] | None = None
) -> Trainer:
    """Return a Trainer with the instantiated options, but these loggers and callbacks; see `run_trainer`."""
    changed: dict[str, Any] = {"logger": list(loggers), "callbacks": list(callbacks)}
    if options.enable_model_summary is None:  # `fit` prints one line instead
        changed["enable_model_summary"] = False
    if options.plugins is None:
        changed["plugins"] = [checkpoints.WholeFiles(loaded)]
    try:
        return Trainer(**{**options.as_dict(), **changed})
    except (MisconfigurationException, ValueError, TypeError, ImportError, RuntimeError) as error:
        raise InputError(f"the Trainer cannot be made ({' '.join(str(error).split())}): see --trainer.") from error


def best_checkpoint(trainer: Trainer) -> ModelCheckpoint | None:
    """Return the callback that keeps the best checkpoint, if there is one; in a fine-tuning it is its own."""
    kept = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    return next((c for c in kept if isinstance(c, BestEpoch)), next((c for c in kept if c.monitor), None))


def written_checkpoint(trainer: Trainer, best: bool) -> Path | None:
    """Return the last, or the best, checkpoint of a training; None if it has written none (``fast_dev_run``)."""
    kept = best_checkpoint(trainer) if best else None
    if kept is not None and kept.best_model_path:
        return Path(kept.best_model_path)
    if best:
        warn("No checkpoint is the best, as nothing was validated: the last is tested.")
    last = next((c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)), "")
    return Path(last) if last else None
