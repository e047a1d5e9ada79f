"""Checks of the training loss at the end of an epoch."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lt_cb.errors import InputError
from lt_cb.losses import Loss

MARGIN = 1.1
MAX_TARGETS = 4096  # images of an epoch whose targets give the loss of equal logits
Step = tuple[int, float, Tensor]  #: number of an optimiser step, its learning rate, and its loss


def check_finite(loss: float, epoch: int, steps: Sequence[Step]) -> None:
    """Raise InputError if the mean loss of an epoch is not finite, naming the first step of such a loss."""
    if math.isfinite(loss):
        return
    first = next(((step, rate) for step, rate, value in steps if not value.isfinite()), None)
    when = "" if first is None else f", first at step {first[0]}, at a rate of {first[1]:.3g}"
    raise InputError(
        f"the training has diverged: train/loss is {loss} in epoch {epoch}{when}. Lower --model.optimizer.lr, or set "
        "--trainer.gradient_clip_val 1."
    )


def check_learns(loss: float, first: float, epoch: int, rate: float, function: Loss, targets: Tensor) -> None:
    """Raise InputError if a trained network has become worse than it was, and than a network that knows nothing.

    The loss must be a tenth above both, since these are means over few images.

    Args:
        loss: mean loss of an epoch.
        first: loss of the first batch of the training.
        epoch: number of the epoch.
        rate: largest learning rate of the epoch.
        function: training loss. Its state does not change.
        targets: targets of some of the images, of shape (N,) or (N, C).
    """
    if not loss > MARGIN * first:
        return
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        logits = torch.zeros(len(targets), len(function.class_counts))
        unknowing = float(copy.deepcopy(function).cpu()(logits, targets.cpu()))
    if loss > MARGIN * unknowing:
        raise InputError(
            f"the training has diverged: train/loss is {loss:.3g} in epoch {epoch}, above the {first:.3g} of its first "
            f"batch and the {unknowing:.3g} of equal logits. A rate of {rate:.3g} destroys the trained weights: set "
            f"--model.optimizer.lr {rate / 10:.3g}."
        )
