"""Long-tailed subsets and held-out images of data with several labels an image.

An image counts for each of its labels, so removing it makes all its classes smaller. `multilabel_subset` therefore
removes one image at a time, always the one that harms the other classes least. The order of removal does not depend on
the imbalance factor: a larger factor continues where a smaller one stopped, and its subset is contained in the other.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lt_cb.errors import InputError, enumerate_names
from lt_cb.longtail.groups import hold_out_groups
from lt_cb.longtail.profile import exponents
from lt_cb.longtail.subset import Indices, Labels, Subset, long_tailed_subset

CHUNK = 0.02  # share of the remaining images that is removed before all costs are computed again
STEEPNESS = 8  # exponent of the cost of a shortfall; a high one protects the class that lacks most
MAX_CANDIDATES = 512  # images of a class among which the next one to remove is chosen


def choose(
    labels: Labels,
    subset: Subset,
    class_counts: Sequence[int],
    class_names: Sequence[str],
    fraction: float,
    groups: Indices | None = None,
) -> tuple[Indices, Indices]:
    """Choose the images for training and the ``fraction`` held out for validation; return their sorted positions.

    At most ``class_counts`` images of each class are kept, from ``subset.class_counts``. Images of one group are not
    divided. Images of one label must have groups; others have `long_tailed_subset` and `hold_out`.
    """
    keep = np.arange(len(labels))
    if labels.ndim == 1:
        keep = np.sort(np.concatenate(long_tailed_subset(labels, class_counts, subset.seed)))
    elif subset.factor is not None or subset.counts is not None:
        powers = None if subset.factor is None else exponents(subset.type, len(class_names))
        keep = multilabel_subset(labels, class_counts, powers, class_names, subset.seed)
    if groups is not None:
        order = np.random.default_rng([subset.seed, len(keep)]).permutation(len(keep))
        is_held_out = hold_out_groups(labels[keep], groups[keep], len(class_names), fraction, order)
        return keep[~is_held_out], keep[is_held_out]
    train, held_out = stratify(labels[keep], fraction, subset.seed)
    return keep[train], keep[held_out]


def multilabel_subset(
    labels: Labels, caps: Sequence[int], exponents: Sequence[float] | None, class_names: Sequence[str], seed: int
) -> Indices:
    """Choose images so that each class has at most its cap of positives, and as many as possible.

    First each class is reduced to ``max(caps)``, or to its cap if there are no exponents. Then the caps fall one image
    at a time, in the order in which a growing imbalance factor lowers :math:`n_{max} IF^{-e_i}`. Images without a label
    are reduced in proportion to the others. The result is sorted.

    Args:
        labels: 1, 0, or -1 for unknown, int8 of shape (N, C).
        caps: largest number of positives of each class, C numbers.
        exponents: e_i of each class in the profile of the caps, C numbers in [0, 1]; None for caps without a profile.
        class_names: C names, for messages.
        seed: seed of the choice among equally good images.
    """
    removal = _Removal(labels, seed)
    n_max = max(caps)
    removal.reduce(list(caps) if exponents is None else [n_max] * len(caps))
    if exponents is not None:
        for label, cap in _falls(caps, exponents, n_max):
            removal.lower(label, cap)
    if lost := [name for name, cap, count in zip(class_names, caps, removal.counts, strict=True) if cap and not count]:
        raise InputError(
            f"the subset would have no image of {enumerate_names(lost)}, because other labels of their images have to "
            "be rarer: lower --data.imbalance_factor, or raise --data.n_max or --data.subset_counts."
        )
    return removal.kept()


def _falls(caps: Sequence[int], exponents: Sequence[float], n_max: int) -> list[tuple[int, int]]:
    """Return (class, new cap) for each fall of a cap by one, in the order of the imbalance factors that cause them."""
    classes = np.repeat(np.arange(len(caps)), n_max - np.asarray(caps))
    lower = np.concatenate([np.arange(n_max - 1, cap - 1, -1) for cap in caps])
    # log of the IF at which n_max IF^-e falls below k + 1, with the tolerance of the profile; IF itself may overflow
    factors = np.log(n_max / (lower + 1 - 1e-9)) / np.asarray(exponents, np.float64)[classes]
    order = np.lexsort([classes, factors])
    return list(zip(classes[order].tolist(), lower[order].tolist(), strict=True))


class _Removal:
    """Removes images until no class has more positives than its cap."""

    def __init__(self, labels: Labels, seed: int) -> None:
        positive = labels == 1
        size, num_classes = labels.shape
        numbers = positive.sum(1)
        self._labels = [np.flatnonzero(row).tolist() for row in positive]
        self._padded = np.full((size, max(1, numbers.max(initial=0))), num_classes)  # class C always costs 0
        self._padded[np.arange(self._padded.shape[1]) < numbers[:, None]] = np.nonzero(positive)[1]
        self._members = [np.flatnonzero(column) for column in positive.T]
        self.counts: list[int] = positive.sum(0).tolist()
        self._caps = list(self.counts)
        self._costs = np.zeros(num_classes + 1)  # cost for each class of losing an image
        self._excess = np.zeros(num_classes + 1)  # images of each class above its cap, relative to the cap
        self._alive = np.ones(size, bool)
        self._rng = np.random.default_rng([seed, size])
        self._keys = self._rng.permutation(size)
        self._unlabelled = self._rng.permutation(np.flatnonzero(numbers == 0))

    def reduce(self, caps: list[int]) -> None:
        """Lower all caps at once. Costs are computed again after each chunk of removed images."""
        self._caps = caps
        for label in range(len(caps)):
            self._update(label)
        while any(count > cap for count, cap in zip(self.counts, caps, strict=True)):
            candidates = np.flatnonzero((self._excess > 0)[self._padded].any(1) & self._alive)
            harm, order = self._order(candidates)
            order = order[: max(1, int(CHUNK * self._alive.sum()))]
            for image, known in zip(candidates[order].tolist(), harm[order].tolist(), strict=True):
                labels = self._labels[image]
                if self._harm(image) <= known and any(self.counts[c] > caps[c] for c in labels):
                    self._remove(image)

    def lower(self, label: int, cap: int) -> None:
        """Lower the cap of one class."""
        self._caps[label] = cap
        self._update(label)
        while self.counts[label] > cap:
            members = self._members[label] = self._members[label][self._alive[self._members[label]]]
            if len(members) > MAX_CANDIDATES:
                members = self._rng.choice(members, MAX_CANDIDATES, replace=False)
            self._remove(int(members[self._order(members)[1][0]]))

    def _update(self, label: int) -> None:
        """Update the cost and the excess of a class.

        The cost is 0 above the cap, 1 / cap at the cap, and grows with the shortfall; the last image costs most.
        """
        count, cap = self.counts[label], max(self._caps[label], 1)
        cost = (cap / max(count, 1)) ** STEEPNESS / cap + len(self._caps) * (count == 1)
        self._costs[label] = 0.0 if count > self._caps[label] else cost
        self._excess[label] = max(count - self._caps[label], 0) / cap

    def _order(self, images: Indices) -> tuple[npt.NDArray[np.float64], Indices]:
        """Return the harm of each image, and the order of removal: least harm, then most excess, then by the seed."""
        harm, excess = self._harm(images), self._excess[self._padded[images]].sum(1)
        return harm, np.lexsort([self._keys[images], -excess, harm])

    def _harm(self, images: Indices | int) -> npt.NDArray[np.float64]:
        harm: npt.NDArray[np.float64] = self._costs[self._padded[images]].sum(-1).round(9)
        return harm

    def _remove(self, image: int) -> None:
        self._alive[image] = False
        for label in self._labels[image]:
            self.counts[label] -= 1
            self._update(label)

    def kept(self) -> Indices:
        """Return the remaining images, int64, sorted, with the same share of the images without a label."""
        labelled = len(self._alive) - len(self._unlabelled)
        left = int(self._alive.sum()) - len(self._unlabelled)
        alive = self._alive.copy()
        alive[self._unlabelled[round(len(self._unlabelled) * left / max(labelled, 1)) :]] = False
        return np.flatnonzero(alive)


def stratify(labels: Labels, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Split images by labels of shape (N, C), 1, 0, or -1 for unknown; return sorted training and held-out positions.

    Iterative stratification (Sechidis et al. 2011): take the class with the fewest remaining images, and give each of
    its images to the side that lacks most of the class. Afterwards, images are moved where a class is on one side only.
    Each class then has a training image, and each class of two images or more has a held-out one wherever the labels
    allow it.
    """
    positive = labels == 1
    num_images = len(labels)
    if fraction == 0.0:
        return np.arange(num_images), np.arange(0)
    totals = positive.sum(0)
    quota = np.where(totals > 0, np.ceil((totals - 1) * fraction), 0)
    lacking = [(totals - quota).tolist(), quota.tolist()]  # images of each class, for training and for validation
    num_held_out = math.ceil((num_images - 1) * fraction)
    room = [num_images - num_held_out, num_held_out]
    order = np.random.default_rng([seed, num_images, 1]).permutation(num_images)
    left = totals.copy()
    free, held_out = np.ones(num_images, bool), np.zeros(num_images, bool)
    while left.any():
        rarest = int(np.where(left > 0, left, num_images + 1).argmin())
        images = order[free[order] & positive[order, rarest]]
        rows, columns = positive[images].nonzero()
        classes, ends = columns.tolist(), np.searchsorted(rows, np.arange(len(images)), "right").tolist()
        sides, start = [], 0
        for end in ends:
            side = int((lacking[1][rarest], room[1]) > (lacking[0][rarest], room[0]))
            sides.append(side)
            room[side] -= 1
            lacks = lacking[side]
            for c in classes[start:end]:
                lacks[c] -= 1
            start = end
        held_out[images], free[images] = np.array(sides, bool), False
        left -= positive[images].sum(0)
    rest = order[free[order]]
    held_out[rest[: round(len(rest) * fraction)]] = True
    spread(positive, held_out, totals)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def spread(positive: npt.NDArray[np.bool_], held_out: npt.NDArray[np.bool_], totals: Indices) -> None:
    """Change ``held_out`` so that each class has a training image, and a held-out one where possible."""
    for c in np.flatnonzero((totals > 0) & ~positive[~held_out].any(0)):
        if not positive[~held_out, c].any():  # an image that was moved before may have this class too
            held_out[np.flatnonzero(positive[:, c])[0]] = False
    for c in np.flatnonzero((totals > 1) & ~positive[held_out].any(0)):
        if not positive[held_out, c].any():
            training = positive[~held_out].sum(0)
            images = np.flatnonzero(positive[:, c])
            spare = images[(positive[images] <= (training > 1)).all(1)]
            held_out[spare[:1]] = True
