"""Prediction sets: all classes that an image may have, so that a set holds the true class as often as promised."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

TEST_LEVEL = 0.9  # promised coverage of the sets that a test measures
POOLED = 20  # held-out images of a class whose own threshold counts as much as that of all classes
MAX_KEPT = 1000  # scores of a class; more would move its threshold past 0.1 % of its images at most


def held_out_scores(true: Tensor, targets: Tensor, num_classes: int, repeats: int = 1) -> list[Tensor]:
    """Return scores to keep in a checkpoint: for each class, its posterior for its held-out images, sorted.

    Args:
        true: posterior of the true class (``lt_cb.losses.prior.balanced_posterior``) of held-out images, shape (N,).
        targets: class indices, int64 of shape (N,).
        num_classes: C.
        repeats: how often each image was held out, by heads of other folds.

    Returns:
        A list of C tensors (float32) with a score for each image of the class, or ``MAX_KEPT`` evenly spaced quantiles
        of more images.
    """
    kept = []
    for label in range(num_classes):
        scores = true[targets == label].float().sort().values
        number = min(len(scores) // repeats, MAX_KEPT)
        kept.append(scores[((torch.arange(number) + 0.5) * len(scores) / max(number, 1)).long()])
    return kept


def thresholds(kept: Sequence[Tensor], level: float) -> Tensor:
    r"""Return the posterior from which on each class is in a set, float64 of shape (C,).

    It lies between two `quantile`s at 1 - level (Interp-Q of `Ding et al. 2025 <https://arxiv.org/abs/2507.06867>`_):
    of the n held-out images of the class alone, with weight n / (n + 20), and of all classes. A frequent class thus has
    its own threshold. A rare one shares the common threshold, since its own would be noise and need large sets. A class
    without held-out images has the common threshold.

    Args:
        kept: sorted scores of C classes from `held_out_scores`. At least one class has a score.
        level: promised share of sets with the true class, in (0, 1).
    """
    common, limits = quantile(kept, 1 - level), []
    for scores in kept:
        weight = len(scores) / (len(scores) + POOLED)
        limits.append(weight * quantile([scores], 1 - level) + (1 - weight) * common)
    return torch.tensor(limits, dtype=torch.float64)


def quantile(kept: Sequence[Tensor], share: float) -> float:
    """Return the score below which a share of new images is expected, if classes with scores are equally frequent.

    As in split conformal prediction, each class with n scores has one more, 0, so that few scores lower the quantile.
    The n + 1 scores of a class have equal weights. Between scores the quantile is linear. Of one class, it is NumPy's
    method ``weibull``. Without scores it is 0.
    """
    used = [scores.double() for scores in kept if len(scores)]
    if not used:
        return 0.0
    weights = torch.cat([torch.full_like(scores, 1 / (len(scores) + 1)) for scores in used]) / len(used)
    scores, order = torch.cat(used).sort()
    share_below = 1 - weights[order].flip(0).cumsum(0).flip(0)  # share of all scores, with the added zeros
    return float(np.interp(share, [0.0, *share_below.tolist()], [0.0, *scores.tolist()]))


def prediction_sets(posterior: Tensor, limits: Tensor) -> Tensor:
    """Return the classes in the set of each image, bool of shape (B, C).

    A class is in the set if its posterior, shape (B, C), reaches its limit from `thresholds`, shape (C,). The most
    probable class always is.
    """
    most_probable = torch.zeros_like(posterior, dtype=torch.bool).scatter_(1, posterior.argmax(1, keepdim=True), True)
    return (posterior >= limits.to(posterior)) | most_probable


class HeldOutScores(Metric):
    """Collects the posterior of the true class of held-out images, over all processes."""

    true: list[Tensor]
    targets: list[Tensor]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        for name in ("true", "targets"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, posterior: Tensor, targets: Tensor) -> None:
        """Add a batch of posteriors, shape (B, C), and class indices, int64 of shape (B,)."""
        self.true.append(posterior.gather(1, targets[:, None])[:, 0].nan_to_num(0.0))
        self.targets.append(targets)

    def compute(self) -> list[Tensor]:
        """Return `held_out_scores`."""
        return held_out_scores(dim_zero_cat(self.true).cpu(), dim_zero_cat(self.targets).cpu(), self.num_classes)


class SetCoverage(Metric):
    """Share of prediction sets with the true class, and classes in a set, by true class and over all processes."""

    covered: Tensor
    size: Tensor
    total: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        for name in ("covered", "size", "total"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, sets: Tensor, targets: Tensor) -> None:
        """Add a batch of sets, bool of shape (B, C), and class indices, int64 of shape (B,)."""
        self.covered.index_add_(0, targets, sets.gather(1, targets[:, None])[:, 0].long())
        self.size.index_add_(0, targets, sets.sum(1))
        self.total.index_add_(0, targets, torch.ones_like(targets))

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return coverage and mean size, both float64 of shape (C,), NaN for a class without images."""
        return self.covered / self.total.double(), self.size / self.total.double()
