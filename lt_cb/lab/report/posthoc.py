"""Post-hoc analysis of saved test logits: adjustment, shifted priors, calibration. Imports no torch."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lt_cb.errors import InputError
from lt_cb.lab.report.result import Result
from lt_cb.longtail.prior import class_prior
from lt_cb.runs.folder import RunDir

TAUS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
SHIFTS = (50.0, 10.0, 2.0, 1.0, 1 / 2, 1 / 10, 1 / 50)
BINS = 15
MEANS = ("worst", "geometric", "harmonic")
Array = NDArray[Any]


def log_prior(class_counts: Sequence[int]) -> Array:
    """Return the logarithm of the share of each class in the training images, shape (C,)."""
    return np.asarray(np.log(class_prior(class_counts)))


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
        tau: 0 changes nothing; 1 is exact for a network that has learned the training prior.
    """
    return np.asarray((logits - (tau * log_prior(class_counts)).astype(logits.dtype)).argmax(1))


def shifted_prior(class_counts: Sequence[int], imbalance_factor: float) -> Array:
    """Return a test prior that decays exponentially over the classes (Hong et al. 2021).

    Args:
        class_counts: training images of each class. The class with most images comes first.
        imbalance_factor: largest over smallest share; below 1, the rare classes are frequent.
    """
    ranks = np.empty(len(class_counts))
    ranks[np.argsort(-np.asarray(class_counts), kind="stable")] = np.arange(len(class_counts))
    share = imbalance_factor ** (-ranks / max(len(class_counts) - 1, 1))
    return np.asarray(share / share.sum())


def accuracy_under(prior: Array, per_class: Array) -> float:
    """Return the accuracy on test images of this prior, from the accuracy of each class."""
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
    """Return lowest, geometric and harmonic mean of class scores; all are 0 if one score is 0."""
    values = np.array([value for value in per_class if value is not None])
    if values.min() == 0.0:
        return dict.fromkeys(MEANS, 0.0)
    means = values.min(), np.exp(np.log(values).mean()), 1.0 / (1.0 / values).mean()
    return dict(zip(MEANS, map(float, means), strict=True))


@dataclass
class Analysis:
    """Analysis of the logits of one run; all values are in [0, 1].

    Attributes:
        by_tau: balanced accuracy after post-hoc adjustment by each of ``TAUS``.
        by_prior: accuracy under test priors of each of ``SHIFTS``.
        by_known_prior: the same, with logits moved to the test prior.
        calibration: expected calibration error of all images, and by shot group.
        overconfidence: mean confidence minus accuracy.
    """

    by_tau: list[float]
    by_prior: list[float]
    by_known_prior: list[float]
    calibration: dict[str, float]
    overconfidence: float


def analyse(result: Result) -> Analysis:
    """Analyse the saved logits of a run.

    Raises:
        InputError: if the file is damaged.
    """
    file = RunDir(result.folder).logits
    try:
        with np.load(file) as saved:
            logits, confidence, targets = saved["logits"], saved["confidence"], saved["targets"]
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"'{file}' is damaged ({error}). Remove the file, or test the run again.") from error
    counts, classes = result.record.class_counts, len(result.record.class_counts)

    def per_class(predicted: Array) -> Array:
        return class_accuracy(predicted, targets, classes)

    predicted = logits.argmax(1)
    plain, correct = per_class(predicted), predicted == targets
    priors = [shifted_prior(counts, shift) for shift in SHIFTS]
    moves = [(np.log(prior) - log_prior(counts)).astype(logits.dtype) for prior in priors]
    parts = {name: np.isin(targets, members) for name, members in result.record.shot_groups.items()}
    parts["all"] = np.ones(len(targets), dtype=bool)
    return Analysis(
        by_tau=[float(np.nanmean(per_class(adjust(logits, counts, tau)))) for tau in TAUS],
        by_prior=[accuracy_under(prior, plain) for prior in priors],
        by_known_prior=[
            accuracy_under(prior, per_class((logits + move).argmax(1)))
            for prior, move in zip(priors, moves, strict=True)
        ],
        calibration={
            name: calibration_error(confidence[part], correct[part]) for name, part in parts.items() if part.any()
        },
        overconfidence=float(confidence.mean() - correct.mean()),
    )
