"""The best epoch of a fine-tuning, and whether it is better than the network it starts from."""

import math
import os
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lt_cb.callbacks.logits import of_all_processes
from lt_cb.module import LongTailedClassifier
from lt_cb.paired import Difference, difference_of
from lt_cb.runs.record import METRICS

TIE = 1e-6  # scores that differ by less are equal but for rounding


class BestEpoch(ModelCheckpoint):
    """Keeps ``checkpoints/best.ckpt``: the start of the training, until an epoch is better on the held-out images.

    `verdict` says in one sentence how much better the best epoch is, with a paired interval.

    Args:
        metric: main metric of the task; None if no image is held out, or the start has seen these images. Nothing can
            be compared then, and the last epoch is kept.
    """

    def __init__(self, metric: str | None) -> None:
        monitor = None if metric is None else f"val/{metric}"
        super().__init__(
            filename="best", monitor=monitor, mode="max", enable_version_counter=False, save_on_train_epoch_end=False
        )
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._targets: Tensor | None = None
        self._start: Tensor | None = None  # predicted classes, (N,), or scores of several labels, (N, C)
        self._best: Tensor | None = None
        self._start_score, self._best_epoch = math.nan, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the answers of start and best epoch on the held-out images too."""
        own = {"targets": self._targets, "start": self._start, "best": self._best}
        return super().state_dict() | own | {"start_score": self._start_score, "best_epoch": self._best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the answers, of a training that is resumed."""
        super().load_state_dict(state_dict)
        self._targets, self._start, self._best = (state_dict[name] for name in ("targets", "start", "best"))
        self._start_score, self._best_epoch = float(state_dict["start_score"]), int(state_dict["best_epoch"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the start be evaluated on all held-out images: by Lightning's sanity check."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self.monitor is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.num_sanity_val_steps = math.inf

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - of Lightning
        *_: Any,  # noqa: ANN401
        **__: Any,  # noqa: ANN401
    ) -> None:
        """Keep the answers to a batch."""
        if self.monitor is not None and isinstance(pl_module, LongTailedClassifier):
            scores = pl_module.scores(outputs["logits"])
            answers = scores if pl_module.multi_label else scores.argmax(1)
            self._batches.append((answers.cpu(), outputs["targets"].cpu()))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the epoch if it is the best so far."""
        batches, self._batches = self._batches, []
        if not batches:
            super().on_validation_end(trainer, pl_module)
            return
        assert isinstance(pl_module, LongTailedClassifier)
        answers, self._targets = (of_all_processes(torch.cat(part), trainer) for part in zip(*batches, strict=True))
        if trainer.sanity_checking:
            self._start = self._best = answers
            self._start_score = trainer.callback_metrics[str(self.monitor)].item()
            return
        before = self.best_model_score
        super().on_validation_end(trainer, pl_module)
        if self.best_model_score is not before:
            self._best, self._best_epoch = answers, trainer.current_epoch + 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the start as the best network so far."""
        super().on_train_start(trainer, pl_module)
        if self._start is None or self.best_model_path or self.dirpath is None:
            return
        path = os.path.join(self.dirpath, f"best{self.FILE_EXTENSION}")
        score = torch.tensor(self._start_score + TIE, device=trainer.strategy.root_device)
        self.best_model_path = self.kth_best_model_path = path
        self.best_model_score = self.kth_value = score
        self.best_k_models = {path: score}
        trainer.save_checkpoint(path, weights_only=False)

    def verdict(self, module: LongTailedClassifier) -> str:
        """Return in one sentence how much better the best epoch is than the start."""
        if self.monitor is None:
            why = "No image was held out"
            if not module.validates_on_test:
                why = "The network has seen the held-out images before"
            return f"{why}, so that nothing is compared: the last epoch is kept."
        if self._start is None or self._best is None or self._targets is None or self.best_model_score is None:
            return "Nothing was validated, so that nothing is compared."
        metric = METRICS[module.task.main_metric].title.lower()
        start = f"{100 * self._start_score:.1f} % {metric} on {len(self._targets)} held-out images"
        if not self._best_epoch:
            return f"Fine-tuning does not pay: no epoch is better than the start, with {start}. The start is kept."
        difference = difference_of(module.multi_label)(self._best, self._start, self._targets)
        return _sentence(difference, self._best_epoch, f"the start, {start}")


def _sentence(difference: Difference, epoch: int, start: str) -> str:
    mean, low, high = (100 * value for value in difference)
    gain = f"epoch {epoch} is {mean:.1f} points better than {start}"
    interval = f"95 % interval {low:.1f} to {high:.1f}, paired, after the choice of the epoch"
    if low > 0:
        return f"Fine-tuning pays: {gain} ({interval}). To train on all images, repeat it with --data.val_fraction 0."
    return f"Fine-tuning is not shown to pay: {gain}, but this may be chance ({interval})."
