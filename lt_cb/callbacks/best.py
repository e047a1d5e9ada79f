"""The kept epoch of a fine-tuning, and whether it is better than the network it starts from."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lt_cb.callbacks.logits import of_all_processes
from lt_cb.errors import InputError
from lt_cb.module import LongTailedClassifier
from lt_cb.paired import Difference, difference_of
from lt_cb.runs import checkpoint as checkpoints
from lt_cb.runs.folder import BEFORE, whole_file
from lt_cb.runs.record import METRICS

STATE = ("targets", "start", "kept", "start_score", "kept_score", "kept_epoch", "kept_step")


class BestEpoch(ModelCheckpoint):
    """Keeps ``checkpoints/best.ckpt``: the newest epoch, unless an earlier one is better by more than a standard error.

    The start of the training counts as epoch 0. The standard error is of the paired difference on the held-out images.
    With few of them a plain maximum would follow the noise. `verdict` compares the kept epoch with the start.

    Args:
        compares: whether there are held-out images that the start has not seen. Otherwise the last epoch is kept.
    """

    def __init__(self, compares: bool) -> None:
        super().__init__(filename="best", enable_version_counter=False, save_on_train_epoch_end=False)
        self.compares = compares
        self._batches: list[tuple[Tensor, Tensor]] = []
        self.targets: Tensor | None = None  #: of the held-out images
        self.start: Tensor | None = None  #: predicted classes, (N,), or scores of several labels, (N, C), of the start
        self.kept: Tensor | None = None  #: the same of the kept epoch
        self.start_score = self.kept_score = math.nan  #: main metric
        self.kept_epoch = self.kept_step = 0  #: epochs and optimiser steps of the kept network

    def state_dict(self) -> dict[str, Any]:
        """Return the answers of start and kept epoch on the held-out images too."""
        return super().state_dict() | {"compares": self.compares} | {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the answers, of a training that is resumed; `on_fit_start` takes over the kept checkpoint."""
        for name in STATE:
            setattr(self, name, state_dict[name])

    @staticmethod
    def state_in(content: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the state of this callback in a checkpoint; None for a training without it."""
        states = content.get("callbacks", {})
        return next((state for key, state in states.items() if str(key).startswith(f"{BestEpoch.__name__}{{")), None)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the start be evaluated on all held-out images, by Lightning's sanity check.

        A resumed training has evaluated it before. Its kept checkpoint is copied from the folder of the resumed one.
        """
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if trainer.ckpt_path is not None and self.dirpath is not None:
            self._take_over(trainer, Path(trainer.ckpt_path))
        if self.compares and self.kept is None:
            trainer.num_sanity_val_steps = math.inf

    def _take_over(self, trainer: Trainer, resumed: Path) -> None:
        """Copy the kept checkpoint from the folder of the resumed one; if there is none, keep the resumed one."""
        source = resumed
        if self.compares:
            files = [*(resumed.with_name(f"best{suffix}") for suffix in (".ckpt", BEFORE)), resumed]
            found = next(filter(self._is_kept, files), None) if trainer.is_global_zero else None
            found = trainer.strategy.broadcast(found)
            source, self.kept = (resumed, None) if found is None else (found, self.kept)
        self.best_model_path = os.path.join(str(self.dirpath), "best.ckpt")
        if trainer.is_global_zero and source.resolve() != Path(self.best_model_path).resolve():
            with whole_file(Path(self.best_model_path), "wb") as stream:
                stream.write(source.read_bytes())
        trainer.strategy.barrier()

    def _is_kept(self, file: Path) -> bool:
        try:
            return checkpoints.read(file).get("global_step") == self.kept_step
        except InputError:  # missing or damaged
            return False

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - of Lightning
        *_: Any,  # noqa: ANN401
        **__: Any,  # noqa: ANN401
    ) -> None:
        """Collect the answers to a batch."""
        if self.compares and isinstance(pl_module, LongTailedClassifier):
            scores = pl_module.scores(outputs["logits"])
            answers = scores if pl_module.multi_label else scores.argmax(1)
            self._batches.append((answers.cpu(), outputs["targets"].cpu()))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the epoch, unless the kept one is better by more than a standard error."""
        batches, self._batches = self._batches, []
        if not batches:
            super().on_validation_end(trainer, pl_module)
            return
        assert isinstance(pl_module, LongTailedClassifier)
        if trainer.sanity_checking and self.kept is not None:  # resumed
            return
        answers, self.targets = (of_all_processes(torch.cat(part), trainer) for part in zip(*batches, strict=True))
        score = trainer.callback_metrics[f"val/{pl_module.task.main_metric}"].item()
        if trainer.sanity_checking:
            self._keep_first(trainer, answers, score)
            return
        if self.kept is not None:
            lead = difference_of(pl_module.multi_label)(self.kept, answers, self.targets)
            if lead.mean > lead.error:
                return
        self._keep(trainer, answers, score, trainer.current_epoch + 1)
        super().on_validation_end(trainer, pl_module)

    def _keep(self, trainer: Trainer, answers: Tensor, score: float, epoch: int) -> None:
        self.kept, self.kept_score, self.kept_epoch, self.kept_step = answers, score, epoch, trainer.global_step

    def _keep_first(self, trainer: Trainer, answers: Tensor, score: float) -> None:
        """Keep the network with which the training starts, or resumes if the kept network is missing."""
        progress: Any = trainer.fit_loop.epoch_progress.current
        epoch = progress.processed  # current_epoch is one less after a resume
        if trainer.ckpt_path is None:
            self.start, self.start_score = answers, score
        elif self.start is not None:
            rank_zero_warn(
                f"The kept network, of epoch {self.kept_epoch}, is not in a best.ckpt beside the checkpoint: the "
                f"network of epoch {epoch} is kept instead.",
                stacklevel=1,
            )
        self._keep(trainer, answers, score, epoch)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the start as the kept network."""
        super().on_train_start(trainer, pl_module)
        if self.start is not None and not self.best_model_path and self.dirpath is not None:
            self.best_model_path = os.path.join(self.dirpath, f"best{self.FILE_EXTENSION}")
            trainer.save_checkpoint(self.best_model_path, weights_only=False)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the optimiser's state, two thirds of the kept checkpoint: trainings resume from ``last.ckpt``."""
        file = Path(self.best_model_path)
        if trainer.is_global_zero and self.best_model_path and file.is_file():
            content = checkpoints.read(file)
            content.pop("optimizer_states", None)
            trainer.strategy.checkpoint_io.save_checkpoint(content, file)
            file.with_suffix(BEFORE).unlink(missing_ok=True)

    def gain(self, module: LongTailedClassifier) -> Difference | None:
        """Return the kept epoch's gain over the start on the held-out images; None if nothing is compared."""
        if self.start is None or self.kept is None or self.targets is None:
            return None
        return difference_of(module.multi_label)(self.kept, self.start, self.targets)

    def verdict(self, module: LongTailedClassifier) -> str:
        """Return in one sentence how much better the kept epoch is than the start."""
        if not self.compares:
            why = "No image was held out"
            if not module.validates_on_test:
                why = "The network has seen the held-out images before"
            return f"{why}, so that nothing is compared: the last epoch is kept."
        if (gain := self.gain(module)) is None or self.targets is None:
            return "The start was not validated, so that nothing is compared."
        metric = METRICS[module.task.main_metric].title.lower()
        start = f"the start, {100 * self.start_score:.1f} % {metric} on {len(self.targets)} held-out images"
        if not self.kept_epoch:
            return f"Fine-tuning does not pay: each epoch is worse, by more than a standard error, than {start}."
        mean, low, high = (100 * value for value in (gain.mean, gain.low, gain.high))
        change = f"epoch {self.kept_epoch} is {abs(mean):.1f} points {'better' if mean >= 0 else 'worse'} than {start}"
        interval = f"95 % interval {low:.1f} to {high:.1f}, paired, after the choice of the epoch"
        if low > 0:
            return f"Fine-tuning pays: {change} ({interval}). --data.val_fraction 0 then trains on all images."
        return f"Fine-tuning is not shown to pay: {change} ({interval}). There are too few held-out images to tell."
