"""Long-tailed subsets: seeded, and nested across imbalance factors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lt_cb.errors import InputError
from lt_cb.longtail.profile import class_counts_exponential, class_counts_step

Indices = npt.NDArray[np.int64]
Labels = npt.NDArray[np.integer[Any]]
"""Class indices, int64 of shape (N,); with several labels an image 1, 0, or -1 for unknown, int8 of shape (N, C)."""

ImbalanceType = Literal["exponential", "step"]


@dataclass(frozen=True)
class Subset:
    """Settings of a long-tailed subset of the training images.

    Attributes:
        factor: largest class count divided by the smallest, at least 1; None keeps all images.
        type: profile of the class counts, ``exponential`` or ``step``.
        n_max: images of the largest class; None takes as many as the smallest class has.
        counts: images to keep of each class, C numbers, instead of a factor.
        seed: seed of the choice of images, at least 0.
    """

    factor: float | None = None
    type: ImbalanceType = "exponential"
    n_max: int | None = None
    counts: tuple[int, ...] | None = None
    seed: int = 0

    def class_counts(self, available: Sequence[int], class_names: Sequence[str]) -> list[int]:
        """Return the images to keep of each class, C counts, of the ``available`` training images of each class."""
        if self.counts is not None:
            counts = self._explicit_counts(len(available))
        elif self.factor is not None:
            counts = self._profile(self.factor, available, class_names)
        elif self.n_max is not None:
            raise InputError(f"n_max is {self.n_max} without an imbalance_factor: give one too (1 is balanced).")
        else:
            return list(available)
        for name, wanted, existing in zip(class_names, counts, available, strict=True):
            if wanted > existing:
                raise InputError(
                    f"{wanted} training images of class '{name}' are asked for, but there are {existing}: lower "
                    "--data.n_max or --data.subset_counts."
                )
        return counts

    def _explicit_counts(self, num_classes: int) -> list[int]:
        counts = list(self.counts or ())
        if self.factor is not None or self.n_max is not None:
            raise InputError("subset_counts and imbalance_factor or n_max are both given, but exclude each other.")
        if len(counts) != num_classes or min(counts) < 0 or not any(counts):
            raise InputError(f"subset_counts is {counts}, but must have {num_classes} counts of at least 0, not all 0.")
        return counts

    def _profile(self, factor: float, available: Sequence[int], class_names: Sequence[str]) -> list[int]:
        n_max = min(available) if self.n_max is None else self.n_max
        if not min(available) and n_max == 0:
            raise InputError(
                f"class '{class_names[available.index(0)]}' has no training image, so that no subset of imbalance "
                f"factor {factor:g} has all classes: leave --data.imbalance_factor out."
            )
        profile = class_counts_step if self.type == "step" else class_counts_exponential
        counts = profile(n_max, len(available), factor)
        if counts[-1] < 1:
            raise InputError(
                f"imbalance_factor {factor:g} leaves class '{class_names[-1]}' without an image: with {n_max} images "
                f"in the largest class of the subset it can be at most {n_max}. Naturally long-tailed data need no "
                "imbalance_factor."
            )
        return counts


def count_labels(labels: Labels, num_classes: int) -> list[int]:
    """Return the number of samples of each class, or with each label, C numbers."""
    counts = (labels == 1).sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=num_classes)
    return [int(count) for count in counts]


def count_unlabelled(labels: Labels) -> int:
    """Return the number of images without a label."""
    return int((labels != 1).all(1).sum()) if labels.ndim == 2 else 0


def long_tailed_subset(labels: Labels, class_counts: Sequence[int], seed: int) -> list[Indices]:
    """Return the indices of ``class_counts[c]`` samples of each class c, for class indices of shape (N,).

    They are the beginning of a permutation that depends only on the seed, the class and its number of samples. With the
    same seed, a larger subset therefore contains a smaller one.
    """
    by_class = np.argsort(labels, kind="stable")
    members = np.split(by_class, np.searchsorted(labels[by_class], np.arange(1, len(class_counts))))
    orders = [np.random.default_rng([seed, label]).permutation(m) for label, m in enumerate(members)]
    return [order[:count] for order, count in zip(orders, class_counts, strict=True)]


def hold_out(chosen: list[Indices], fraction: float) -> tuple[Indices, Indices]:
    """Split the indices from `long_tailed_subset` into training and validation samples, each sorted.

    The second sample of a class and every 1 / fraction-th after it are held out. So a class of at least two samples has
    one for validation, each class keeps one for training, and both parts stay nested across imbalance factors.
    """
    train, validation = [], []
    for indices in chosen:
        quota = np.ceil(np.arange(len(indices)) * fraction)  # validation samples before position k + 1
        held_out = np.diff(quota, prepend=0.0) > 0
        train.append(indices[~held_out])
        validation.append(indices[held_out])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(validation))


def training_counts(class_counts: Sequence[int], fraction: float) -> list[int]:
    """Return the class counts of a subset after `hold_out`."""
    return [n - int(np.ceil((n - 1) * fraction)) if n else 0 for n in class_counts]
