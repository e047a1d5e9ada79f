"""Post-hoc analysis of saved test logits: adjustment, shifted priors, calibration. Imports no torch."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lt_cb.errors import InputError
from lt_cb.lab.report.extra import stats
from lt_cb.lab.report.result import Result
from lt_cb.longtail.prior import class_prior
from lt_cb.runs.record import SHOTS

TAUS = {f"τ {tau:g}": tau for tau in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)}
SHIFTS = {"50": 50.0, "10": 10.0, "2": 2.0, "1": 1.0, "1/2": 1 / 2, "1/10": 1 / 10, "1/50": 1 / 50}
COLUMNS = {  # of a table, by its rows
    ("adjusted",): tuple(TAUS),
    ("as it is", "prior known"): tuple(SHIFTS),
    ("calibration",): ("all", *SHOTS, "overconfident by"),
}
BINS = 15
MEANS = ("worst", "geometric", "harmonic")
Array = NDArray[Any]


def shifted_prior(class_counts: Sequence[int], imbalance_factor: float) -> Array:
    """Return a test prior that decays exponentially from the most frequent training class on, shape (C,).

    ``imbalance_factor`` is the largest over the smallest share (Hong et al. 2021); below 1, rare classes are frequent.
    """
    ranks = stats.rankdata(-np.asarray(class_counts), method="ordinal") - 1.0
    share = imbalance_factor ** (-ranks / max(len(class_counts) - 1, 1))
    return np.asarray(share / share.sum())


def accuracy_under(prior: Array, per_class: Array) -> float:
    """Return the accuracy on test images of this prior, from the accuracy of each class."""
    tested = ~np.isnan(per_class)
    return float(prior[tested] @ per_class[tested] / prior[tested].sum())


def calibration_error(confidence: Array, correct: Array) -> float:
    """Return the expected calibration error in [0, 1], over 15 bins of equal width (Guo et al. 2017)."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, confidence, BINS) - np.bincount(bins, correct, BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def class_means(per_class: Sequence[float | None]) -> dict[str, float]:
    """Return lowest, geometric and harmonic mean of class scores; all are 0 if one score is 0."""
    values = np.array([value for value in per_class if value is not None])
    with np.errstate(divide="ignore"):
        means = values.min(), np.exp(np.log(values).mean()), 1.0 / (1.0 / values).mean()
    return dict(zip(MEANS, map(float, means), strict=True))


def _read_logits(file: Path, classes: int) -> tuple[Array, Array, Array]:
    """Return the logits (N, C), confidences (N,) and targets (N,) of `SaveLogits`, after checking them."""
    try:
        with np.load(file) as saved:
            logits, confidence, targets = (np.asarray(saved[name]) for name in ("logits", "confidence", "targets"))
        if not logits.shape == (*confidence.shape, classes) == (*targets.shape, classes):
            raise ValueError(f"logits of {classes} classes have other shapes")
        if np.isnan(logits).any() or not ((targets >= 0) & (targets < classes)).all():
            raise ValueError("logits or targets are impossible")
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"'{file}' is damaged ({error}). Remove the file, or test the run again.") from error
    return logits, confidence, targets


def analyse(result: Result) -> dict[str, dict[str, float]]:
    """Return the analysis of the saved logits of a run: values in [0, 1] by row and column of `COLUMNS`.

    - ``adjusted``: balanced accuracy of the logits minus τ log prior (Menon et al. 2021).
    - ``as it is``: accuracy under shifted test priors. ``prior known``: with logits moved to the test prior.
    - ``calibration``: expected calibration errors of all images and by shot group, and confidence minus accuracy.
    """
    counts = result.record.class_counts
    logits, confidence, targets = _read_logits(result.logits, len(counts))
    total = np.bincount(targets, minlength=len(counts))

    def class_accuracy(change: Array) -> Array:
        """Return the accuracy of each class, NaN for one without images, after a change of its logits."""
        predicted = (logits + change.astype(logits.dtype)).argmax(1)
        right = np.bincount(targets[predicted == targets], minlength=len(counts))
        return np.where(total > 0, right / np.maximum(total, 1), np.nan)

    trained, correct = np.log(class_prior(counts)), logits.argmax(1) == targets
    plain = class_accuracy(np.zeros(len(counts)))
    priors = {name: shifted_prior(counts, shift) for name, shift in SHIFTS.items()}
    parts = {name: np.isin(targets, members) for name, members in result.record.shot_groups.items()}
    parts["all"] = np.ones(len(targets), dtype=bool)
    errors = {name: calibration_error(confidence[part], correct[part]) for name, part in parts.items() if part.any()}
    return {
        "adjusted": {name: float(np.nanmean(class_accuracy(-tau * trained))) for name, tau in TAUS.items()},
        "as it is": {name: accuracy_under(prior, plain) for name, prior in priors.items()},
        "prior known": {
            n: accuracy_under(prior, class_accuracy(np.log(prior) - trained)) for n, prior in priors.items()
        },
        "calibration": {**errors, "overconfident by": float(confidence.mean() - correct.mean())},
    }
