"""Means, and accuracy by class and by shot group, summed on the device and over processes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class Mean(Metric):
    """Mean over samples, from the means of batches.

    torchmetrics' own waits for the device at each update, to look for NaN, or else forgets the weights.
    """

    total: Tensor
    samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "samples"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, mean: Tensor, samples: int) -> None:
        """Count a batch, by its mean, a scalar, and how many samples it has."""
        self.total += mean * samples
        self.samples += samples

    def compute(self) -> Tensor:
        """Return the mean over all processes, a scalar; NaN without samples."""
        return self.total / self.samples


class PerClassAccuracy(Metric):
    """Accuracy of each class, from vectors of C counts, and the confusion matrix of few classes.

    There is no host sync in ``update``, and no C x C matrix of many classes.

    Args:
        num_classes: C, the number of classes.
        confusable: most classes whose confusion matrix is counted.
    """

    correct: Tensor
    total: Tensor
    pairs: Tensor

    def __init__(self, num_classes: int, confusable: int = 20) -> None:
        super().__init__()
        self.confuses = num_classes <= confusable
        if self.confuses:
            self.add_state("pairs", torch.zeros(num_classes**2, dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("correct", "total"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Count a batch of predicted and true class indices, both int64 of shape (B,)."""
        self.correct.index_add_(0, targets, (predictions == targets).long())
        ones = torch.ones_like(targets)
        self.total.index_add_(0, targets, ones)
        if self.confuses:
            self.pairs.index_add_(0, targets * len(self.total) + predictions, ones)

    def compute(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return correct and counted samples of each class, and confusion, over all processes.

        Returns:
            Two int64 of shape (C,), and one of shape (C, C) by true and predicted class, None of more classes.
        """
        return self.correct, self.total, self.pairs.view(len(self.total), -1) if self.confuses else None


def shot_groups(class_counts: Sequence[int], few: int = 20, many: int = 100) -> dict[str, list[int]]:
    """Class indices by number of training images: many (> ``many``), medium, few (< ``few``), as in Liu et al. 2019.

    Groups without a class are left out.
    """
    groups: dict[str, list[int]] = {"many": [], "medium": [], "few": []}
    for label, count in enumerate(class_counts):
        groups["many" if count > many else "few" if count < few else "medium"].append(label)
    return {name: members for name, members in groups.items() if members}


def accuracies(correct: Tensor, total: Tensor, groups: dict[str, list[int]]) -> dict[str, Tensor]:
    """Summarise per-class counts.

    Args:
        correct: correctly predicted samples of each class, int64 of shape (C,).
        total: samples of each class, int64 of shape (C,).
        groups: class indices by name, as `shot_groups` returns.

    Returns:
        Scalars in [0, 1] by name, ``acc`` (top-1), ``balanced_acc`` (mean over classes) and ``acc/NAME`` (mean over the
        classes of a group). Classes without samples are left out of the means; a mean over none is NaN.
    """
    per_class = correct.double() / total  # NaN for a class without samples
    results = {"acc": correct.sum() / total.sum(), "balanced_acc": per_class.nanmean()}
    for name, members in groups.items():
        results[f"acc/{name}"] = per_class[members].nanmean()
    return {name: value.float() for name, value in results.items()}
