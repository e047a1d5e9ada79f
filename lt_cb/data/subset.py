"""Which samples a long-tailed subset keeps: seeded, and nested across imbalance factors."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def long_tailed_subset(labels: Indices, class_counts: Sequence[int], seed: int) -> list[Indices]:
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
