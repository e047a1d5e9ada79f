"""Splits that keep groups of images together, such as all images of one patient.

The rule is greedy, as in scikit-learn's StratifiedGroupKFold. That one has equal parts and one label an image only, may
leave a class without a training image, and takes 150 µs a group instead of 10.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lt_cb.longtail.subset import Indices, Labels

MAX_SHARE = 0.5  # largest share of a class that is held out so that another class has a held-out image
Order = npt.NDArray[np.integer | np.unsignedinteger]


def hold_out_groups(
    labels: Labels, groups: Indices, num_classes: int, fraction: float, order: Order
) -> npt.NDArray[np.bool_]:
    """Return whether each image is held out, bool of shape (N,): about ``fraction`` of each class, in whole groups.

    Each class keeps a training image. A class in two groups or more has a held-out image, unless that would take the
    last training image, or more than half of the images, of a class.

    Args:
        labels: class indices of shape (N,), or 1, 0, or -1 for unknown, of shape (N, C).
        groups: the group of each image, any integers of shape (N,).
        num_classes: C.
        fraction: share of each class to hold out, in [0, 1).
        order: a number for each image, shape (N,). Of similar groups, the one with the smallest number comes first.
    """
    if fraction == 0.0 or not len(labels):
        return np.zeros(len(labels), bool)
    parts = _Parts(labels, groups, num_classes, [fraction], order)
    parts.fill()
    parts.hold_out_missing(max(fraction, MAX_SHARE))
    held_out: npt.NDArray[np.bool_] = parts.of_images() == 0
    return held_out


def group_folds(labels: Labels, groups: Indices, num_classes: int, folds: int, seed: int) -> Indices:
    """Return the fold of each image in [0, K), int64 of shape (N,), or -1 if it is always trained on.

    No fold has all images of a class. So a group is always trained on if it is the only one of a class.
    """
    order = np.random.default_rng([seed, len(labels)]).permutation(len(labels))
    parts = _Parts(labels, groups, num_classes, [1 / folds] * folds, order)
    parts.fill()
    return parts.of_images()


def count_groups(labels: Labels, groups: Indices, num_classes: int) -> list[int]:
    """Return the number of groups of each class, C numbers; see `hold_out_groups` for the arguments."""
    rows, classes = _positives(labels)
    pairs = np.unique(np.stack([groups[rows], classes]), axis=1)
    return [int(count) for count in np.bincount(pairs[1], minlength=num_classes)]


def _positives(labels: Labels) -> tuple[Indices, Indices]:
    """Return row and class of each label of an image."""
    if labels.ndim == 2:
        rows, classes = np.nonzero(labels == 1)
        return rows, classes
    return np.arange(len(labels)), labels.astype(np.int64)


class _Parts:
    """Assigns groups to parts: 0 to K - 1 with given shares, and -1 for the rest, which is always trained on."""

    def __init__(
        self, labels: Labels, groups: Indices, num_classes: int, shares: Sequence[float], order: Order
    ) -> None:
        _, self._of_image = np.unique(groups, return_inverse=True)
        number = int(self._of_image.max(initial=-1)) + 1
        rows, classes = _positives(labels)
        every = np.arange(len(labels))  # class C has every image, so that the sizes of the parts are right too
        keys = self._of_image[np.append(rows, every)] * (num_classes + 1)
        keys, counts = np.unique(keys + np.append(classes, np.full(len(labels), num_classes)), return_counts=True)
        owners, classes = np.divmod(keys, num_classes + 1)
        self._num_groups = np.bincount(classes, minlength=num_classes + 1).tolist()
        of_class = counts / np.bincount(classes, counts)[classes]  # share of a class's images that a group has
        self._pairs = list(zip(classes.tolist(), of_class.tolist(), strict=True))
        self._ends = [0, *np.bincount(owners).cumsum().tolist()]
        self._squares: list[float] = np.bincount(owners, of_class**2).tolist()
        largest, first = np.zeros(number), np.full(number, order.max(initial=0), order.dtype)
        np.maximum.at(largest, owners, np.where(classes < num_classes, of_class, 0.0))
        np.minimum.at(first, self._of_image, order)
        self._sequence: list[int] = np.lexsort([first, -largest]).tolist()
        rest = 1 - sum(shares)
        self._shares = [*shares, *([rest] if rest > 1e-9 else [])]
        self._num_parts = len(shares)
        self._lacking = [[share] * (num_classes + 1) for share in self._shares]
        self._inside = [[0] * (num_classes + 1) for _ in shares]  # groups of each class in each part
        self._part = [-1] * number

    def fill(self) -> None:
        """Assign all groups, those with the largest share of a class first.

        Each goes to the part where it lowers the squared deviations from the shares most, relative to the share.
        """
        parts = list(zip(self._lacking, self._shares, strict=True))
        for group in self._sequence:
            own, square = self._shares_of(group), self._squares[group]
            gains = [(2 * sum([r * lacking[c] for c, r in own]) - square) / share for lacking, share in parts]
            for k in sorted(range(len(parts)), key=gains.__getitem__, reverse=True):
                if k == self._num_parts or self._may_hold(group, k):
                    self._assign(group, k)
                    break

    def hold_out_missing(self, most: float) -> None:
        """Move a group to part 0 for each class that has none there, the smallest that leaves ``1 - most`` of all."""
        share = self._shares[0]
        missing = [c for c, n in enumerate(self._num_groups) if n > 1 and not self._inside[0][c]]
        groups_of: dict[int, list[int]] = {c: [] for c in missing}
        for group in self._sequence if missing else ():
            for c, _ in self._shares_of(group):
                if c in groups_of:
                    groups_of[c].append(group)
        for c in sorted(missing, key=lambda c: self._num_groups[c]):
            spare = [
                group
                for group in groups_of[c]
                if self._may_hold(group, 0)
                and all(share - self._lacking[0][label] + r <= most + 1e-9 for label, r in self._shares_of(group))
            ]
            if spare and not self._inside[0][c]:
                self._assign(min(spare, key=lambda group: max(r for _, r in self._shares_of(group))), 0)

    def of_images(self) -> Indices:
        """Return the part of each image, int64 of shape (N,)."""
        part = np.array(self._part, np.int64)
        part[part == self._num_parts] = -1
        return part[self._of_image]

    def _shares_of(self, group: int) -> list[tuple[int, float]]:
        """Return the classes of a group, and its share of the images of each."""
        return self._pairs[self._ends[group] : self._ends[group + 1]]

    def _may_hold(self, group: int, k: int) -> bool:
        """Return whether part k can have a group, because another one of each of its classes is elsewhere."""
        inside = self._inside[k]
        return all(inside[c] + 1 < self._num_groups[c] for c, _ in self._shares_of(group))

    def _assign(self, group: int, k: int) -> None:
        self._part[group] = k
        for c, r in self._shares_of(group):
            self._lacking[k][c] -= r
            if k < self._num_parts:
                self._inside[k][c] += 1
