"""Divergence of a training: losses that are not finite, or that destroy a trained network."""

import copy
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lt_cb.errors import InputError
from lt_cb.losses import Loss

MARGIN = 3.0  # the first loss is of one batch; a destroyed network has a far larger loss
MAX_TARGETS = 4096  # images of an epoch whose targets give the loss of equal logits


@dataclass
class Watch:
    """Losses of an epoch, batch by batch, and the first loss of the training."""

    first: float | None = None  #: loss of the first batch of the training; None if the training was resumed
    steps: list[tuple[int, float, Tensor]] = field(default_factory=list)  #: optimiser step, learning rate and loss
    targets: list[Tensor] = field(default_factory=list)  #: of the first batches of the epoch

    def start_epoch(self) -> None:
        """Forget the epoch before."""
        self.steps.clear()
        self.targets.clear()

    def add(self, step: int, rate: float, loss: Tensor, targets: Tensor) -> None:
        """Add a batch; the first one of the training waits for the device."""
        if step == 0 and not self.steps:
            self.first = loss.item()
        self.steps.append((step, rate, loss))
        if sum(map(len, self.targets)) < MAX_TARGETS:
            self.targets.append(targets)

    def check_finite(self, loss: float, epoch: int) -> None:
        """Raise InputError if the mean loss of the epoch is not finite, naming the first step of such a loss."""
        if math.isfinite(loss):
            return
        first = next(((step, rate) for step, rate, value in self.steps if not value.isfinite()), None)
        when = "" if first is None else f", first at step {first[0]}, at a rate of {first[1]:.3g}"
        raise InputError(
            f"the training has diverged: train/loss is {loss} in epoch {epoch}{when}. Lower --model.optimizer.lr, or "
            "set --trainer.gradient_clip_val 1."
        )

    def check_learns(self, loss: float, epoch: int, function: Loss) -> None:
        """Raise InputError if a trained network has become worse than it was, and than a network that knows nothing.

        ``loss`` is the mean loss of the epoch by the training loss ``function``, whose state does not change.
        """
        if self.first is None or not loss > MARGIN * self.first:
            return
        targets = torch.cat(self.targets).cpu()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = torch.zeros(len(targets), len(function.class_counts))
            unknowing = float(copy.deepcopy(function).cpu()(logits, targets))
        if loss > MARGIN * unknowing:
            rate = max(rate for _, rate, _ in self.steps)
            raise InputError(
                f"the training has diverged: train/loss is {loss:.3g} in epoch {epoch}, above the {self.first:.3g} of "
                f"its first batch and the {unknowing:.3g} of equal logits. A rate of {rate:.3g} destroys the trained "
                f"weights: set --model.optimizer.lr {rate / 10:.3g}."
            )
