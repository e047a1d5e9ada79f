"""Which samples a long-tailed subset keeps: seeded, and nested across imbalance factors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lt_cb.errors import InputError

Indices = npt.NDArray[np.int64]
Labels = npt.NDArray[
    np.integer[Any]
]  # class indices, int64 (N,); of several labels 1, 0 and -1 for unknown, int8 (N, C)


def count_labels(labels: Labels, num_classes: int) -> list[int]:
    """Return how many samples have each class, C numbers.

    Args:
        labels: class indices, int64 of shape (N,), or int8 of shape (N, C), where 1 is what has the label.
        num_classes: C.
    """
    counts: list[int] = (
        (labels == 1).sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=num_classes)
    ).tolist()
    return counts


def check_labels(labels: Labels, split: str, num_classes: int, multi_label: bool) -> None:
    """Look whether labels are what a source may load.

    Raises:
        InputError: if they have another shape, or values that are none.
    """
    if not multi_label:
        if labels.min() < 0 or labels.max() >= num_classes:
            raise InputError(
                f"the {split} labels go from {labels.min()} to {labels.max()}, but {num_classes} classes allow "
                f"0 to {num_classes - 1}: check the source."
            )
    elif labels.dtype != np.int8 or labels.shape[1:] != (num_classes,) or labels.min() < -1 or labels.max() > 1:
        raise InputError(
            f"the {split} labels are {labels.dtype} of shape {labels.shape}, but those of a source with multi_label "
            f"are int8 of shape (N, {num_classes}), each 1, 0, or -1 for unknown: check the source."
        )


def check_counts(labels: Labels, counts: Sequence[int], class_names: Sequence[str]) -> None:
    """Look whether training labels are as many of each class as the source counts.

    Raises:
        InputError: if not.
    """
    loaded = count_labels(labels, len(counts))
    if loaded != list(counts):
        wrong = next(c for c in range(len(counts)) if loaded[c] != counts[c])
        raise InputError(
            f"the source counts {counts[wrong]} training images of class '{class_names[wrong]}', but loads "
            f"{loaded[wrong]}: have its counts be those of load()."
        )


def long_tailed_subset(labels: Labels, class_counts: Sequence[int], seed: int) -> list[Indices]:
    """Draw ``class_counts[c]`` samples of each class c.

    Each class has one permutation, which depends only on (seed, class) and the number of its samples; the subset is
    its beginning. With the same seed, a smaller subset is therefore contained in a larger one.

    Args:
        labels: class of each sample, int64 of shape (N,).
        class_counts: samples to keep of each class, at most all.
        seed: of the permutations.

    Returns:
        One array of sample indices a class, in the order of the permutation.
    """
    by_class = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[by_class], np.arange(len(class_counts) + 1))
    chosen = []
    for label, count in enumerate(class_counts):
        members = by_class[ends[label] : ends[label + 1]]
        chosen.append(np.random.default_rng([seed, label]).permutation(members)[:count])
    return chosen


def hold_out(chosen: list[Indices], fraction: float) -> tuple[Indices, Indices]:
    """Split a subset into training and validation samples, class by class.

    The second sample of a class and every 1 / fraction-th after it go to validation: a class of at least two samples
    has one there, each keeps one for training, and both stay nested across imbalance factors.

    Args:
        chosen: what `long_tailed_subset` returns.
        fraction: share for validation, in [0, 1).

    Returns:
        Indices for training and for validation, each sorted.
    """
    train, validation = [], []
    for indices in chosen:
        quota = np.ceil(np.arange(len(indices)) * fraction)  # validation samples before position k + 1
        held = np.diff(quota, prepend=0.0) > 0
        train.append(indices[~held])
        validation.append(indices[held])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(validation))
