"""Difference of two networks on the same images, with a paired 95 % interval."""

from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from lt_cb.metrics import average_precision

WIDTH = NormalDist().inv_cdf(0.975)
PARTS = 20  # parts of the images that the jackknife leaves out in turn


class Difference(NamedTuple):
    """Difference of the main metric of two networks on the same images, in [-1, 1], with a 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """Standard error of the difference."""
        return (self.high - self.mean) / WIDTH


def accuracy_difference(new: Tensor, old: Tensor, targets: Tensor) -> Difference:
    """Return the difference of the balanced accuracies of two predictions.

    The images are a sample of each class. In a class of n images the variance of the mean difference is s² / n, with
    the sample variance s² of the paired differences (-1, 0 or 1). A class of few images has a poor s², and one image
    has none: s² is at least the mean over the classes of two or more images.

    Args:
        new: predicted classes of the first network, int64 of shape (N,).
        old: predicted classes of the second network, int64 of shape (N,).
        targets: class indices, int64 of shape (N,).
    """
    change = (new == targets).double() - (old == targets).double()
    classes = [change[targets == label] for label in sorted(set(targets.tolist()))]
    variances = torch.stack([values.var() for values in classes if len(values) > 1] or [torch.tensor(1.0)]).double()
    least = variances.mean()
    total = sum(float(max(values.var(), least) if len(values) > 1 else least) / len(values) for values in classes)
    mean = sum(float(values.mean()) for values in classes) / len(classes)
    return _interval(mean, total**0.5 / len(classes))


def precision_difference(new: Tensor, old: Tensor, targets: Tensor) -> Difference:
    """Return the difference of the mean average precisions of two networks, for several labels an image.

    The standard error is of a jackknife that leaves out each of 20 parts of the images.

    Args:
        new: scores of the first network, floating of shape (N, C).
        old: scores of the second network, floating of shape (N, C).
        targets: 1, 0, or -1 for unknown labels, shape (N, C).
    """
    parts = min(PARTS, len(targets))
    part = torch.arange(len(targets)) % parts

    def difference(rows: Tensor) -> float:
        one, other = (average_precision(scores[rows], targets[rows]) for scores in (new, old))
        return float((one - other).nanmean())

    left_out = torch.tensor([difference(part != k) for k in range(parts)], dtype=torch.float64)
    error = float(((left_out - left_out.mean()) ** 2).sum() * (parts - 1) / parts) ** 0.5
    return _interval(difference(part >= 0), error)


def _interval(mean: float, error: float) -> Difference:
    return Difference(mean, mean - WIDTH * error, mean + WIDTH * error)


def difference_of(multi_label: bool) -> Callable[[Tensor, Tensor, Tensor], Difference]:
    """Return the function for one label (False) or several labels (True) an image."""
    return precision_difference if multi_label else accuracy_difference
