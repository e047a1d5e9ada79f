"""Callbacks and folder that every run of ``fit``, ``validate`` and ``test`` has: configuration and last checkpoint."""

from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_warn

from lt_cb.loggers import wandb_logger
from lt_cb.runs import checkpoint as checkpoints
from lt_cb.runs.folder import RunDir, write_text


class SaveConfig(SaveConfigCallback):
    """Saves the resolved configuration in the run folder and in every checkpoint."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add to a checkpoint its configuration, its run at W&B, and the metrics of its epoch."""
        checkpoint[checkpoints.CONFIG] = self.parser.dump(self.config, skip_none=False)
        if (logger := wandb_logger(trainer)) is not None:
            checkpoint[checkpoints.WANDB] = logger.version
        trained = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("train/")}
        checkpoint[checkpoints.METRICS] = {"epoch": trainer.current_epoch, "step": trainer.global_step - 1, **trained}

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the configuration to the run folder, and send it to the further loggers."""
        folder = trainer.loggers[0].log_dir
        config = self.parser.dump(self.config, skip_none=False)
        write_text(RunDir(folder or ".").config, config)
        for logger in trainer.loggers[1:]:
            logger.log_hyperparams(yaml.safe_load(config))


class LastCheckpoint(ModelCheckpoint):
    """Saves ``checkpoints/last.ckpt`` after every epoch."""

    def __init__(self) -> None:
        super().__init__(filename="last", enable_version_counter=False, save_on_train_epoch_end=True)


def best_checkpoint(trainer: Trainer) -> ModelCheckpoint | None:
    """Return the callback that keeps the best checkpoint, if there is one."""
    return next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor), None)


def written_checkpoint(trainer: Trainer, best: bool) -> Path | None:
    """Return the checkpoint that a training has written, None if it has written none (``fast_dev_run``).

    Args:
        trainer: after its fit.
        best: return the best checkpoint, if there is one, else the last.
    """
    kept = best_checkpoint(trainer) if best else None
    if kept is not None and kept.best_model_path:
        return Path(kept.best_model_path)
    if best:
        rank_zero_warn("No checkpoint is the best, as nothing was validated: the last is tested.", stacklevel=1)
    last = next((c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)), "")
    return Path(last) if last else None
