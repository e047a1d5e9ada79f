"""What the saved logits of a test tell without another forward pass. Imports no torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15
MEANS = ("worst", "geometric", "harmonic")
Array = NDArray[Any]


def log_prior(class_counts: Sequence[int]) -> Array:
    """Return the logarithm of each class's share of the training images, shape (C,); a class of 0 counts as of 1."""
    counts = np.maximum(np.asarray(class_counts, dtype=float), 1.0)
    return np.asarray(np.log(counts / counts.sum()))


def class_accuracy(predicted: Array, targets: Array, num_classes: int) -> Array:
    """Return the accuracy of each class in [0, 1], shape (C,), NaN for one without images."""
    total = np.bincount(targets, minlength=num_classes)
    correct = np.bincount(targets[predicted == targets], minlength=num_classes)
    return np.where(total > 0, correct / np.maximum(total, 1), np.nan)


def adjust(logits: Array, class_counts: Sequence[int], tau: float) -> Array:
    """Return the classes predicted after post-hoc logit adjustment, arg-max z - tau log prior (Menon et al. 2021).

    Args:
        logits: shape (N, C).
        class_counts: training images of each class.
        tau: 0 changes nothing, 1 is the theory's for a network that has learned the training prior.
    """
    return np.asarray((logits - (tau * log_prior(class_counts)).astype(logits.dtype)).argmax(1))


def shifted_prior(class_counts: Sequence[int], imbalance_factor: float) -> Array:
    """Return a test prior that decays exponentially over the classes, as those of Hong et al. 2021.

    Args:
        class_counts: training images of each class, whose order is that of the decay.
        imbalance_factor: largest share over smallest; below 1 it is the rare classes that are frequent.
    """
    ranks = np.empty(len(class_counts))
    ranks[np.argsort(-np.asarray(class_counts), kind="stable")] = np.arange(len(class_counts))
    share = imbalance_factor ** (-ranks / max(len(class_counts) - 1, 1))
    return np.asarray(share / share.sum())


def accuracy_under(prior: Array, per_class: Array) -> float:
    """Return the accuracy expected on test images of this prior, from that of each class."""
    tested = ~np.isnan(per_class)
    return float(prior[tested] @ per_class[tested] / prior[tested].sum())


def calibration_error(confidence: Array, correct: Array) -> float:
    """Return the expected calibration error in [0, 1], over 15 bins of equal width (Guo et al. 2017).

    Args:
        confidence: probability of the predicted class in [0, 1], shape (N,).
        correct: whether the prediction is right, shape (N,).
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, confidence, BINS) - np.bincount(bins, correct, BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def class_means(per_class: Sequence[float | None]) -> dict[str, float]:
    """Return worst, geometric and harmonic mean of class accuracies; a class of accuracy 0 makes all of them 0."""
    values = np.array([value for value in per_class if value is not None])
    if values.min() == 0.0:
        return dict.fromkeys(MEANS, 0.0)
    means = values.min(), np.exp(np.log(values).mean()), 1.0 / (1.0 / values).mean()
    return dict(zip(MEANS, map(float, means), strict=True))
