"""Metrics of validation and test: by class, by shot group, and over several processes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.utilities import dim_zero_cat

CONFUSION = 100  # highest number of classes with a confusion matrix


class Mean(Metric):
    """Mean over samples. Unlike ``torchmetrics.MeanMetric``, ``update`` does not wait for the device."""

    total: Tensor
    samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "samples"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, mean: Tensor, samples: int) -> None:
        """Add a batch by its mean, a scalar, and its number of samples."""
        self.total += mean * samples
        self.samples += samples

    def compute(self) -> Tensor:
        """Return the mean over all processes, a scalar; NaN without samples."""
        return self.total / self.samples


class Evaluation(NamedTuple):
    """Results of one validation or test.

    ``per_class`` has lists of length C: ``total`` (images of a class), ``correct`` or ``known`` (counts of images), and
    the measures of the task, NaN where undefined; and ``images``, the number of images.
    """

    metrics: dict[str, Tensor]  #: scalars by name, to be logged
    per_class: dict[str, Any]  #: values of each class
    confusion: list[list[int]] | None = None  #: by true, then predicted class; None for many classes, or several labels
    thresholds: list[float] | None = None  #: C scores from which on a label is predicted; None with one label an image


class Evaluator(Metric):
    """Metrics of a validation or test, over all processes: ``update(scores, targets)``, ``compute() -> Evaluation``."""

    thresholds: Sequence[float] | None = None  #: C scores from which on a label is predicted; None chooses the best

    def __init__(self, num_classes: int, groups: dict[str, list[int]]) -> None:
        super().__init__()
        self.num_classes, self.groups = num_classes, groups


class OneLabelEvaluator(Evaluator):
    """Accuracies with one label an image, and a confusion matrix of at most 100 classes.

    The metrics are ``acc``, ``balanced_acc`` (mean over classes), ``acc/NAME`` (mean over a shot group), and
    ``acc_top5`` for more than ten classes. Means skip classes without images; a mean over no class is NaN. ``update``
    does not wait for the device.
    """

    correct: Tensor
    total: Tensor
    pairs: Tensor
    top5: Tensor

    def __init__(self, num_classes: int, groups: dict[str, list[int]]) -> None:
        super().__init__(num_classes, groups)
        self.has_top5, self.has_confusion = num_classes > 10, num_classes <= CONFUSION
        for name in ("correct", "total"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("top5", torch.zeros(()), dist_reduce_fx="sum")
        pairs = num_classes**2 if self.has_confusion else 0
        self.add_state("pairs", torch.zeros(pairs, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """Add a batch of scores, floating of shape (B, C), and class indices, int64 of shape (B,)."""
        predicted, ones = scores.argmax(1), torch.ones_like(targets)
        self.correct.index_add_(0, targets, (predicted == targets).long())
        self.total.index_add_(0, targets, ones)
        if self.has_confusion:
            self.pairs.index_add_(0, targets * self.num_classes + predicted, ones)
        if self.has_top5:
            hits = (scores.topk(5).indices == targets[:, None]).any(1)
            self.top5 += hits.float().mean() * len(targets)

    def compute(self) -> Evaluation:
        """Return the results."""
        images, accuracy = self.total.sum(), self.correct.double() / self.total  # NaN for a class without images
        metrics = {"acc": self.correct.sum() / images, "balanced_acc": accuracy.nanmean().float()}
        metrics |= {f"acc/{name}": accuracy[members].nanmean().float() for name, members in self.groups.items()}
        if self.has_top5:
            metrics["acc_top5"] = self.top5 / images
        values = {"correct": self.correct, "total": self.total, "accuracy": accuracy, "images": images}
        confusion = self.pairs.view(self.num_classes, -1).tolist() if self.has_confusion else None
        return Evaluation(metrics, {name: value.tolist() for name, value in values.items()}, confusion)


class SeveralLabelsEvaluator(Evaluator):
    """Average precision, AUROC and F1 with several labels an image.

    The metrics are means over the classes and over shot groups, named by ``means`` of `lt_cb.task.Task`, and
    ``f1_micro``. The means skip undefined values; a mean over none is NaN. The scores of all images are stored, since
    exact average precision needs them: 10,000 images of 100 classes take 5 MB.
    """

    scores: list[Tensor]
    targets: list[Tensor]

    def __init__(self, num_classes: int, groups: dict[str, list[int]], means: Mapping[str, str]) -> None:
        super().__init__(num_classes, groups)
        self.means = means
        for name in ("scores", "targets"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """Add a batch of scores, floating, and targets (1, 0, or -1 for unknown), both of shape (B, C)."""
        self.scores.append(scores.float())
        self.targets.append(targets.to(torch.int8))

    def compute(self) -> Evaluation:
        """Return the results."""
        scores, targets = dim_zero_cat(self.scores).cpu(), dim_zero_cat(self.targets).cpu()
        thresholds = best_thresholds(scores, targets) if self.thresholds is None else torch.tensor(self.thresholds)
        known, positive = targets >= 0, targets > 0
        predicted = (scores >= thresholds.float()) & known
        hits, total = (predicted & positive).sum(0).double(), predicted.sum(0) + positive.sum(0)
        values = {
            "average_precision": average_precision(scores, targets),
            "auroc": auroc(scores, targets),
            "f1": (2 * hits / total).where(_has_scores(scores, targets) & positive.any(0), torch.nan),
        }
        metrics = {name: values[measure].nanmean() for measure, name in self.means.items()}
        metrics["f1_micro"] = 2 * hits.sum() / total.sum()
        for group, members in self.groups.items():
            metrics |= {f"{name}/{group}": values[m][members].nanmean() for m, name in self.means.items()}
        values |= {"total": positive.sum(0), "known": known.sum(0), "images": torch.tensor(len(targets))}
        per_class = {name: value.tolist() for name, value in values.items()}
        on_device = {name: value.float().to(self.device) for name, value in metrics.items()}
        return Evaluation(on_device, per_class, thresholds=thresholds.tolist())


def shot_groups(class_counts: Sequence[int], few: int = 20, many: int = 100) -> dict[str, list[int]]:
    """Group class indices by training images (Liu et al. 2019): many (> ``many``), medium, few (< ``few``), if any."""
    groups: dict[str, list[int]] = {"many": [], "medium": [], "few": []}
    for label, count in enumerate(class_counts):
        groups["many" if count > many else "few" if count < few else "medium"].append(label)
    return {name: members for name, members in groups.items() if members}


def average_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the exact average precision of each label, float64 of shape (C,); NaN without positive images.

    It is also NaN without negative images, because it would be 1 for any scores. Scores and targets have shape (N, C).
    Targets are 1, 0, or -1 for unknown labels, which are left out. A label with NaN scores has the value NaN.
    """
    return _by_label(binary_average_precision, scores, targets, (targets > 0).any(0) & (targets == 0).any(0))


def auroc(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the exact area under the ROC curve, like `average_precision`."""
    return _by_label(binary_auroc, scores, targets, (targets > 0).any(0) & (targets == 0).any(0))


def _by_label(metric: Callable[..., Tensor], scores: Tensor, targets: Tensor, defined: Tensor) -> Tensor:
    values = torch.full((scores.shape[1],), torch.nan, dtype=torch.float64)
    for label in (defined & _has_scores(scores, targets)).nonzero()[:, 0].tolist():
        known = targets[:, label] >= 0
        z = scores[known, label].contiguous()
        ranks = torch.searchsorted(z.sort().values, z).double()
        # torchmetrics takes a sigmoid of scores outside [0, 1], which makes high scores equal: pass it ranks
        values[label] = metric(ranks / len(z), targets[known, label].long(), validate_args=False)
    return values.clamp(0.0, 1.0)  # sums of float32 can exceed 1


def _has_scores(scores: Tensor, targets: Tensor) -> Tensor:
    return ~((targets >= 0) & scores.isnan()).any(0)


def best_thresholds(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the scores from which on to predict each label for its highest F1, float64 of shape (C,).

    It is 0 for a label without positive images or with NaN scores; see `average_precision` for the arguments. Choose
    thresholds on held-out images, since the F1 is lower on other images.
    """
    best = [_best_threshold(z[t >= 0], t[t >= 0]) for z, t in zip(scores.T, targets.T, strict=True)]
    return torch.tensor(best, dtype=torch.float64)


def _best_threshold(scores: Tensor, targets: Tensor) -> float:
    if not targets.any() or scores.isnan().any():
        return 0.0
    levels, place = scores.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    hits, images = (place.bincount(weights, len(levels)).flip(0).cumsum(0) for weights in (targets.double(), None))
    best = len(levels) - 1 - int((2 * hits / (images + targets.sum())).argmax())  # the highest of equal ones
    below, level = (float(levels[max(i, 0)]) for i in (best - 1, best))
    middle = float(torch.tensor((below + level) / 2))
    return middle if middle > below else level
