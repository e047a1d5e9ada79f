"""Estimated time of a training, said before it is spent."""

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lt_cb.callbacks.result import counted

TIMED = range(1, 3)  # batches that are timed; the first one is slow
EVALUATION = 1 / 3  # time of a validation batch relative to a training batch


class Duration(Callback):
    """Prints one sentence after three training batches: how long the rest of the training takes."""

    def __init__(self) -> None:
        self._start: float | None = None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - of Lightning
        batch: Any,  # noqa: ANN401 - of Lightning
        batch_idx: int,
    ) -> None:
        """Time two batches, and print the estimate."""
        if batch_idx == TIMED.start - 1 and self._start is None:
            self._start = time.perf_counter()
        if batch_idx != TIMED.stop - 1 or self._start is None or not trainer.is_global_zero:
            return
        seconds, self._start = (time.perf_counter() - self._start) / len(TIMED), float("inf")
        epochs = (trainer.max_epochs or 0) - trainer.current_epoch
        batches, evaluated = int(trainer.num_training_batches), sum(map(int, trainer.num_val_batches))
        if seconds > 0 and epochs > 0:
            total = seconds * epochs * (batches + EVALUATION * evaluated)
            text = f"About {duration(total)}: {counted(epochs, 'epoch')} of {batches} batches."
            bar = trainer.progress_bar_callback
            (sys.stdout.write if bar is None else bar.print)(f"{text}\n" if bar is None else text)


def duration(seconds: float) -> str:
    """Return a rough time, such as ``40 seconds``, ``12 minutes`` or ``3.5 hours``."""
    if seconds < 90:
        return f"{max(round(seconds, -1), 10):.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"
