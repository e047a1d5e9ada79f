"""Which images of several labels a long-tailed subset keeps, and which of them are held out.

An image counts for each of its labels, so that a class cannot be thinned alone. Here images are taken away one by one,
always one that harms the other classes least, on a path that does not depend on the imbalance factor: a higher one goes
on where a lower one stopped, and its subset is contained in the other.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lt_cb.longtail.profile import exponents
from lt_cb.data.sources.base import Source
from lt_cb.longtail.subset import Indices, Labels, check_counts, check_labels, count_labels
from lt_cb.errors import InputError, enumerate_names

CHUNK = 0.02  # of the images left, which are taken away between two looks at all of them
STEEPNESS = 8  # of the cost of what falls short: high ones favour the class that does most; chosen on random labels
LOOKED_AT = 512  # images of a class, among which the one to take away is chosen


class Chosen(NamedTuple):
    """The images of a subset, as positions among all training images."""

    train: Indices  # sorted
    held: Indices  # for validation, sorted
    subset_counts: list[int]  # images that have each label, of the whole subset
    class_counts: list[int]  # and of those to train on


def choose(source: Source, aims: Sequence[int], decay: str | None, fraction: float, seed: int) -> Chosen:
    """Choose what is trained on, and what is held out, of a source of several labels an image.

    Args:
        source: whose training labels are looked at.
        aims: positives of each class at most, C numbers.
        decay: ``exponential`` or ``step``, if the aims are of such a profile.
        fraction: share for validation, in [0, 1).
        seed: of the choice.

    Raises:
        InputError: if the labels are not such as the source says, or nothing would be left of a class.
    """
    labels, num_classes = source.labels("train"), len(source.class_names)
    check_labels(labels, "train", num_classes, multi_label=True)
    check_counts(labels, source.counts, source.class_names)
    subset = np.arange(len(labels))
    if decay is not None or list(aims) != list(source.counts):
        powers = exponents(decay, num_classes) if decay is not None else None
        subset = multilabel_subset(labels, aims, powers, source.class_names, seed)
    train, held = (subset[part] for part in stratify(labels[subset], fraction, seed))
    return Chosen(train, held, count_labels(labels[subset], num_classes), count_labels(labels[train], num_classes))


def multilabel_subset(
    labels: Labels, aims: Sequence[int], exponents: Sequence[float] | None, class_names: Sequence[str], seed: int
) -> Indices:
    """Choose images so that no class has more positives than its aim, and each as nearly as many as it can.

    First each class is thinned to ``max(aims)``, or to its aim without exponents. Then the caps fall, one
    image at a time, in the order in which a growing imbalance factor lowers :math:`n_{max} IF^{-e_i}`. Images without a
    label are thinned in proportion to the others.

    Args:
        labels: 1, 0, or -1 for unknown, int8 of shape (N, C).
        aims: positives of each class at most, C numbers.
        exponents: e_i of each class, C numbers in [0, 1] with ``aims`` of that profile; None for aims that are none's.
        class_names: C names, for messages.
        seed: of the choice among equals.

    Returns:
        Indices of the images that are kept, int64, sorted.

    Raises:
        InputError: if nothing would be left of a class that is to have an image.
    """
    path = _Removal(labels, seed)
    n_max = max(aims)
    path.thin(list(aims) if exponents is None else [n_max] * len(aims))
    if exponents is not None:
        for label, cap in _falls(aims, exponents, n_max):
            path.lower(label, cap)
    if lost := [name for name, aim, count in zip(class_names, aims, path.counts, strict=True) if aim and not count]:
        raise InputError(
            f"the subset would have no image of {enumerate_names(lost)}, which come with labels that have to be rarer: "
            "lower --data.imbalance_factor, or raise --data.n_max or --data.subset_counts."
        )
    return path.kept()


def _falls(aims: Sequence[int], exponents: Sequence[float], n_max: int) -> list[tuple[int, int]]:
    """Return class and new cap of each fall of a cap by one, in the order of the imbalance factors that cause them."""
    classes = np.repeat(np.arange(len(aims)), n_max - np.asarray(aims))
    caps = np.concatenate([np.arange(n_max - 1, aim - 1, -1) for aim in aims])
    # n_max IF^-e falls below k + 1 at this log IF, with the tolerance of the profile; IF itself may overflow
    factors = np.log(n_max / (caps + 1 - 1e-9)) / np.asarray(exponents, np.float64)[classes]
    order = np.lexsort([classes, factors])
    return list(zip(classes[order].tolist(), caps[order].tolist(), strict=True))


class _Removal:
    """Takes images away until no class has more positives than its cap.

    Args:
        labels: 1, 0, or -1 for unknown, int8 of shape (N, C).
        seed: of the choice among equals.
    """

    def __init__(self, labels: Labels, seed: int) -> None:
        size, num_classes = labels.shape
        rows, columns = np.nonzero(labels == 1)
        numbers = np.bincount(rows, minlength=size)
        self._labels = [part.tolist() for part in np.split(columns, np.cumsum(numbers)[:-1])]
        self._padded = np.full((size, max(1, numbers.max(initial=0))), num_classes)  # the last cost is always 0
        self._padded[rows, np.arange(len(rows)) - np.repeat(np.cumsum(numbers) - numbers, numbers)] = columns
        self.counts: list[int] = np.bincount(columns, minlength=num_classes).tolist()
        by_class = np.argsort(columns, kind="stable")
        self._members = np.split(rows[by_class], np.cumsum(self.counts)[:-1])
        self._caps = list(self.counts)
        self._costs = np.zeros(num_classes + 1)  # of a class that loses an image
        self._excess = np.zeros(num_classes + 1)  # of what a class has above its cap, as a part of it
        self._alive = np.ones(size, bool)
        self._rng = np.random.default_rng([seed, size])
        self._keys = self._rng.permutation(size)
        self._unlabelled = self._rng.permutation(np.flatnonzero(numbers == 0))

    def thin(self, caps: list[int]) -> None:
        """Lower all caps at once, and take away a few of the images left between two looks at all of them."""
        self._caps = caps
        for label in range(len(caps)):
            self._price(label)
        while any(count > cap for count, cap in zip(self.counts, caps, strict=True)):
            candidates = np.flatnonzero((self._excess > 0)[self._padded].any(1) & self._alive)
            harm, order = self._order(candidates)
            order = order[: max(1, int(CHUNK * self._alive.sum()))]
            for image, before in zip(candidates[order].tolist(), harm[order].tolist(), strict=True):
                labels = self._labels[image]
                if self._harm(image) <= before and any(self.counts[c] > caps[c] for c in labels):
                    self._remove(image)

    def lower(self, label: int, cap: int) -> None:
        """Lower the cap of a class."""
        self._caps[label] = cap
        self._price(label)
        while self.counts[label] > cap:
            members = self._members[label] = self._members[label][self._alive[self._members[label]]]
            if len(members) > LOOKED_AT:
                members = self._rng.choice(members, LOOKED_AT, replace=False)
            self._remove(int(members[self._order(members)[1][0]]))

    def _price(self, label: int) -> None:
        """Note what it costs a class to lose an image.

        Nothing above its cap; at the cap 1 / cap, that part of it; the more, the further it falls short; and most if it
        is the last one.
        """
        count, cap = self.counts[label], max(self._caps[label], 1)
        cost = (cap / max(count, 1)) ** STEEPNESS / cap + len(self._caps) * (count == 1)
        self._costs[label] = 0.0 if count > self._caps[label] else cost
        self._excess[label] = max(count - self._caps[label], 0) / cap

    def _order(self, images: Indices) -> tuple[npt.NDArray[np.float64], Indices]:
        """Return the harm of each, and their order: least harm first, of equals most excess, of these by the seed."""
        harm, excess = self._harm(images), self._excess[self._padded[images]].sum(1)
        return harm, np.lexsort([self._keys[images], -excess, harm])

    def _harm(self, images: Indices | int) -> npt.NDArray[np.float64]:
        harm: npt.NDArray[np.float64] = self._costs[self._padded[images]].sum(-1).round(9)
        return harm

    def _remove(self, image: int) -> None:
        self._alive[image] = False
        for label in self._labels[image]:
            self.counts[label] -= 1
            self._price(label)

    def kept(self) -> Indices:
        """Return the images left, int64, sorted; those without a label are as large a part of theirs."""
        labelled = len(self._alive) - len(self._unlabelled)
        left = int(self._alive.sum()) - len(self._unlabelled)
        alive = self._alive.copy()
        alive[self._unlabelled[round(len(self._unlabelled) * left / max(labelled, 1)) :]] = False
        return np.flatnonzero(alive)


def stratify(labels: Labels, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Split images of several labels so that each class has about the same share on either side.

    Iterative stratification (Sechidis et al. 2011): the class with the fewest images left goes first, and each of them
    to the side that lacks most of it. Then what a class has on one side alone is spread, where that takes no other
    class away: each class has an image for training, and a class of two images or more one for validation wherever the
    labels allow it.

    Args:
        labels: 1, 0, or -1 for unknown, int8 of shape (N, C).
        fraction: share for validation, in [0, 1).
        seed: of the order of the images.

    Returns:
        Positions for training and for validation among the N, int64, sorted.
    """
    positive = labels == 1
    num_images, num_classes = labels.shape
    rng = np.random.default_rng([seed, num_images, 1])
    held = np.zeros(num_images, bool)
    if fraction == 0.0:
        return np.arange(num_images), np.flatnonzero(held)
    totals = positive.sum(0)
    quota = np.where(totals > 0, np.ceil((totals - 1) * fraction), 0)
    lacking = np.stack([totals - quota, quota], 1).tolist()  # of each class for training and for validation
    room = [num_images - np.ceil((num_images - 1) * fraction), np.ceil((num_images - 1) * fraction)]
    order = rng.permutation(num_images)
    has = [np.flatnonzero(row).tolist() for row in positive]
    members = [order[positive[order, c]].tolist() for c in range(num_classes)]
    left = totals.tolist()
    free = np.ones(num_images, bool)
    while any(left):
        rarest = min((c for c in range(num_classes) if left[c]), key=lambda c: (left[c], c))
        for image in members[rarest]:
            if free[image]:
                lack = lacking[rarest]
                side = int((lack[1], room[1]) > (lack[0], room[0]))
                held[image], free[image] = side == 1, False
                room[side] -= 1
                for c in has[image]:
                    lacking[c][side] -= 1
                    left[c] -= 1
    rest = order[free[order]]
    held[rest[: round(len(rest) * fraction)]] = True
    _spread(positive, held, totals)
    return np.flatnonzero(~held), np.flatnonzero(held)


def _spread(positive: npt.NDArray[np.bool_], held: npt.NDArray[np.bool_], totals: Indices) -> None:
    """Move images so that no class lacks training, and as few as can be lack validation; ``held`` is changed."""
    for c in np.flatnonzero((totals > 0) & ~positive[~held].any(0)):
        if not positive[~held, c].any():  # an image moved before may have brought it
            held[np.flatnonzero(positive[:, c])[0]] = False
    for c in np.flatnonzero((totals > 1) & ~positive[held].any(0)):
        if not positive[held, c].any():
            training = positive[~held].sum(0)
            images = np.flatnonzero(positive[:, c])
            spare = images[(positive[images] <= (training > 1)).all(1)]
            held[spare[:1]] = True
