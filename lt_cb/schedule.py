"""Length and progress of a training, and learning rate schedules in fractions of the training."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR

from lt_cb.errors import InputError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def training_progress(trainer: "Trainer", epoch: int) -> float:
    """Return the fraction of the training before an epoch, in [0, 1]; InputError if the training has no end."""
    epochs = math.inf if trainer.max_epochs is None or trainer.max_epochs < 0 else trainer.max_epochs
    if epochs == math.inf and trainer.max_steps < 0:
        raise InputError("a fraction of the training is needed, but it has no end: set --trainer.max_epochs.")
    if epoch == 0:
        return 0.0
    if trainer.max_steps >= 0:
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        epochs = min(epochs, trainer.max_steps / steps)
    return min(epoch / epochs + 1e-9, 1.0)  # rounding could make whole epochs too small


def planned_steps(trainer: "Trainer", batches: float) -> float:
    """Return the optimiser steps of a whole training with ``batches`` an epoch; infinity if it has no end."""
    steps = math.inf if trainer.max_steps < 0 else trainer.max_steps
    if trainer.max_epochs is None or trainer.max_epochs < 0 or batches == math.inf:
        return steps
    by_epoch = [getattr(c, "get_accumulate_grad_batches", None) for c in trainer.callbacks]  # type: ignore[attr-defined]
    accumulated = next(filter(None, by_epoch), lambda _: trainer.accumulate_grad_batches)
    return min(steps, sum(math.ceil(batches / accumulated(epoch)) for epoch in range(max(trainer.max_epochs, 1))))


def check_fraction(name: str, value: float) -> None:
    """Check that a value is in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise InputError(f"{name} is {value}, but must be a fraction of the training in [0, 1].")


class StepwiseSchedule(LRScheduler):
    """Base class of learning rate schedules by optimiser step, defined in fractions of the training.

    Args:
        optimizer: its learning rates are the base rates.
        warmup: fraction of the training, in [0, 1), with a rate that rises linearly from 0.
        total_steps: optimiser steps of the whole training; `LongTailedClassifier` replaces None.
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.05, total_steps: int | None = None) -> None:
        if not 0.0 <= warmup < 1.0:
            raise InputError(f"warmup is {warmup}, but must be a fraction of the training in [0, 1).")
        self.warmup = warmup
        self.total_steps, self.has_own_length = total_steps, total_steps is not None
        super().__init__(optimizer)

    def after_warmup(self, step: int, total: int) -> float:
        """Return the factor of the base rate at a step after the warm-up, of ``total`` steps."""
        raise NotImplementedError

    def factor(self, step: int) -> float:
        """Return the factor of the base rate at an optimiser step, counted from 0."""
        total = self.total_steps or 1
        in_warmup = step < self.warmup * total
        return step / (self.warmup * total) if in_warmup else self.after_warmup(step, total)

    def state_dict(self) -> dict[str, Any]:
        """Return the progress without the settings, so that a resumed training may be longer."""
        own = ("warmup", "milestones", "factors", "total_steps", "has_own_length")
        return {key: value for key, value in super().state_dict().items() if key not in own}

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of each parameter group."""
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]


class WarmupMultiStep(StepwiseSchedule):
    """Linear warm-up, then steps: the schedule of Cui et al. 2019.

    Let t in [0, 1) be the fraction of the training. The rate is base * t / warmup for t < warmup, then base, and
    base * factors[k] from t = milestones[k] on. The defaults are the paper's 5, 160 and 180 of 200 epochs.

    Args:
        optimizer: its learning rates are the base rates.
        warmup: fraction of the training, in [0, 1).
        milestones: increasing fractions of the training, in [0, 1].
        factors: factor of the rate for each milestone, at least 0. For balanced data the paper has 0.1 and 0.01.
        total_steps: optimiser steps of the whole training; `LongTailedClassifier` replaces None.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: float = 5 / 200,
        milestones: Sequence[float] = (160 / 200, 180 / 200),
        factors: Sequence[float] = (0.01, 0.0001),
        total_steps: int | None = None,
    ) -> None:
        if len(milestones) != len(factors) or min(factors, default=0) < 0:
            raise InputError(
                f"milestones {list(milestones)} and factors {list(factors)} must have the same length, and factors "
                "must be at least 0."
            )
        fractions = [0.0, warmup, *milestones, 1.0]
        if fractions != sorted(fractions):
            raise InputError(
                f"warmup {warmup} and milestones {list(milestones)} must be increasing fractions of training in [0, 1]."
            )
        self.milestones, self.factors = list(milestones), list(factors)
        super().__init__(optimizer, warmup, total_steps)

    def after_warmup(self, step: int, total: int) -> float:
        """Return 1 until the first milestone, then the factor of the last one."""
        return [1.0, *self.factors][sum(step >= milestone * total for milestone in self.milestones)]


class WarmupLinear(StepwiseSchedule):
    """Linear warm-up, then linear decay to zero at the end of the training (Li et al. 2020, Budgeted Training).

    Let t in [0, 1) be the fraction of the training. The rate is base * t / warmup for t < warmup, then
    base * (1 - t) / (1 - warmup).
    """

    def after_warmup(self, step: int, total: int) -> float:
        """Return the linear decay from 1 after the warm-up to 0 at the end."""
        return max(1.0 - step / total, 0.0) / (1.0 - self.warmup)


class ReduceLROnPlateau(lr_scheduler.ReduceLROnPlateau):
    """Lowers the rate when a metric has stopped improving. It counts validations, not epochs.

    Args:
        optimizer: its learning rates are lowered.
        monitor: name of the metric. For an accuracy, set ``mode`` to ``max``.
        options: of ``torch.optim.lr_scheduler.ReduceLROnPlateau``.
    """

    def __init__(self, optimizer: Optimizer, monitor: str = "val/loss", **options: Any) -> None:  # noqa: ANN401
        super().__init__(optimizer, **options)
        self.monitor = monitor


def monitor_of(scheduler: lr_scheduler.ReduceLROnPlateau) -> str:
    """Return the metric that lowers the rate; torch's own class names none."""
    return str(getattr(scheduler, "monitor", "val/loss"))


BY_STEP = (StepwiseSchedule, OneCycleLR, CyclicLR)  # schedules that go on after each optimiser step


def when_to_step(scheduler: LRScheduler, trainer: "Trainer") -> dict[str, Any]:
    """Return Lightning's configuration of a schedule: whether it goes on after a step, an epoch or a validation."""
    if isinstance(scheduler, BY_STEP):
        return {"scheduler": scheduler, "interval": "step"}
    if not isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        return {"scheduler": scheduler}
    every = trainer.check_val_every_n_epoch if monitor_of(scheduler).startswith("val/") else 1
    return {"scheduler": scheduler, "monitor": monitor_of(scheduler), "frequency": every or 1}
