"""Estimated time of a training."""

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lt_cb.callbacks.result import counted

TIMED = range(1, 3)  # batches that are timed; the first one is slow
SHORT = 60  # seconds: a shorter rest is not said
EVALUATION = 1 / 3  # time of a validation batch relative to a training batch


class Duration(Callback):
    """Prints how long the rest of the training takes: after the first epoch and, if asked, after three batches."""

    def __init__(self, early: bool = False) -> None:
        self._early = early
        self._start: float | None = None
        self._first: tuple[int, float] | None = None  # the first epoch of this process, and when it began

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the second epoch, print the time of the rest if it is more than a minute."""
        now = time.perf_counter()
        if self._first is None:
            self._first = trainer.current_epoch, now
        left = (trainer.max_epochs or 0) - trainer.current_epoch
        seconds = left * (now - self._first[1])
        if trainer.current_epoch == self._first[0] + 1 and seconds > SHORT:
            say(trainer, f"About {duration(seconds)} left: {counted(left, 'epoch')}.")

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - of Lightning
        batch: Any,  # noqa: ANN401 - of Lightning
        batch_idx: int,
    ) -> None:
        """Time two batches, and print the estimate."""
        if not self._early:
            return
        if batch_idx == TIMED.start - 1 and self._start is None:
            self._start = time.perf_counter()
        if batch_idx != TIMED.stop - 1 or self._start is None:
            return
        seconds, self._start = (time.perf_counter() - self._start) / len(TIMED), float("inf")
        epochs = (trainer.max_epochs or 0) - trainer.current_epoch
        batches, evaluated = int(trainer.num_training_batches), sum(map(int, trainer.num_val_batches))
        if seconds > 0 and epochs > 0:
            total = seconds * epochs * (batches + EVALUATION * evaluated)
            say(trainer, f"About {duration(total)}: {counted(epochs, 'epoch')} of {batches} batches.")


def say(trainer: Trainer, text: str) -> None:
    """Print a line, above the progress bar if there is one."""
    bar = trainer.progress_bar_callback
    if trainer.is_global_zero:
        (sys.stdout.write if bar is None else bar.print)(f"{text}\n" if bar is None else text)


def duration(seconds: float) -> str:
    """Return a rough time, such as ``40 seconds``, ``12 minutes`` or ``3.5 hours``."""
    if seconds < 90:
        return f"{max(round(seconds, -1), 10):.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"
