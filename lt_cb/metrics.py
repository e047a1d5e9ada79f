"""Means, accuracy, and scores of several labels, by class and by shot group, over processes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
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


class LabelScores(NamedTuple):
    """What several labels an image come to; NaN where a class has no image to measure it by.

    Attributes:
        average_precision: of each class, float64 of shape (C,).
        auroc: area under the ROC curve of each class, likewise.
        f1: of each class at its threshold, likewise.
        f1_micro: of all known labels together.
        positives: images that have the label, int64 of shape (C,).
        known: images of which it is known whether they have it, likewise.
        best_thresholds: logits from which on to predict each class for its highest F1 on these images, float64 of shape
            (C,), each exact in float32; 0 for a class without positives.
    """

    average_precision: npt.NDArray[np.float64]
    auroc: npt.NDArray[np.float64]
    f1: npt.NDArray[np.float64]
    f1_micro: float
    positives: npt.NDArray[np.int64]
    known: npt.NDArray[np.int64]
    best_thresholds: npt.NDArray[np.float64]


class PerLabelScores(Metric):
    """Keeps the logits of all images, of which `label_scores` is exact; 10,000 images of 100 classes are 5 MB."""

    logits: list[Tensor]
    targets: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("logits", "targets"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Keep a batch of logits, floating, and targets, 1, 0 or -1 where unknown, both of shape (B, C)."""
        self.logits.append(logits.float())
        self.targets.append(targets.to(torch.int8))

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return logits, float32, and targets, int8, of all images of all processes, both (N, C) on the CPU."""
        logits, targets = (
            torch.cat(v) if isinstance(v, list) else v for v in (self.logits, self.targets)
        )  # gathered ones are one tensor
        return logits.cpu(), targets.cpu()


def label_scores(logits: Tensor, targets: Tensor, thresholds: Sequence[float] | None = None) -> LabelScores:
    """Score each label on its own, over the images of which it is known, in float64.

    Average precision and AUROC are those of scikit-learn's ``average_precision_score`` and ``roc_auc_score``: images of
    equal logits change place together.

    Args:
        logits: floating, shape (N, C).
        targets: 1, 0, or -1 where unknown, shape (N, C).
        thresholds: logits from which on a label is predicted, shape (C,); None takes those that are best on these
            images, at which F1 is better than it will be on others.
    """
    columns = [_label_scores(z, t, i, thresholds) for i, (z, t) in enumerate(zip(logits.T, targets.T, strict=True))]
    each = np.array(columns, np.float64).T
    precision, auroc, threshold, hits, predicted, positives, known = each
    with np.errstate(invalid="ignore"):
        f1 = np.where(positives > 0, 2 * hits / (predicted + positives), np.nan)
    together = predicted.sum() + positives.sum()
    micro = float(2 * hits.sum() / together) if together else float("nan")
    return LabelScores(precision, auroc, f1, micro, positives.astype(np.int64), known.astype(np.int64), threshold)


def _label_scores(logits: Tensor, targets: Tensor, label: int, thresholds: Sequence[float] | None) -> list[float]:
    """Return average precision, AUROC, best threshold, hits, predicted and positive images, and known ones."""
    known = targets >= 0
    z, t = logits[known].numpy().astype(np.float64), targets[known].numpy() > 0
    if np.isnan(z).any():  # which has no place among the others
        return [float("nan"), float("nan"), 0.0, float("nan"), float("nan"), float(t.sum()), float(len(t))]
    order = np.argsort(-z, kind="stable")
    z, t = z[order], t[order]
    ends = np.flatnonzero(np.append(z[1:] != z[:-1], True)[: len(z)])  # of runs of equal logits
    hits, shown, positives = t.cumsum()[ends].astype(np.int64), ends + 1, int(t.sum())
    precision = auroc = float("nan")
    best = 0.0
    if positives:
        gained = np.diff(hits, prepend=0)
        precision = float((gained * (hits / shown)).sum() / positives)
        at = int(np.argmax(2 * hits / (shown + positives)))
        best = float(z[ends[at]])
        if at + 1 < len(ends):  # halfway to the next, where float32, in which logits are compared, has a number there
            below = float(z[ends[at] + 1])
            middle = float(np.float32((best + below) / 2))
            best = middle if middle > below else best
    negatives = len(t) - positives
    if positives and negatives:
        wrong = shown - hits
        halves = (np.append(0, hits[:-1]) + hits) / 2
        auroc = float((np.diff(wrong, prepend=0) * halves).sum() / (positives * negatives))
    above = z >= (best if thresholds is None else thresholds[label])
    return [precision, auroc, best, float((above & t).sum()), float(above.sum()), float(positives), float(len(t))]


def label_means(scores: LabelScores, groups: dict[str, list[int]]) -> dict[str, Tensor]:
    """Summarise scores of labels.

    Args:
        scores: as `label_scores` returns.
        groups: class indices by name, as `shot_groups` returns.

    Returns:
        Scalars in [0, 1] by name, ``mAP`` (mean average precision), ``auroc`` and ``f1_macro``, means over classes, and
        each with ``/NAME`` over those of a group; ``f1_micro``. Classes without positive images are left out, and of
        AUROC those without negative ones too; a mean over none is NaN.
    """
    each = {"mAP": scores.average_precision, "auroc": scores.auroc, "f1_macro": scores.f1}
    results = {name: _mean(values) for name, values in each.items()} | {"f1_micro": scores.f1_micro}
    for group, members in groups.items():
        results |= {f"{name}/{group}": _mean(values[members]) for name, values in each.items()}
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in results.items()}


def _mean(values: npt.NDArray[np.float64]) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else float("nan")
