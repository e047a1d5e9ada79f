"""Side-by-side scans: a data set with several labels an image, made of data sets with one label."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lt_cb.data.decode import Images, resize
from lt_cb.data.sources.arrays import Digits, FashionMNIST
from lt_cb.data.sources.base import Source
from lt_cb.data.sources.listing import Split
from lt_cb.data.sources.names import canonical_source
from lt_cb.data.view import View
from lt_cb.errors import InputError, did_you_mean
from lt_cb.longtail.subset import Indices, Labels, count_labels

SCANS: dict[str, type[Source]] = {"Digits": Digits, "FashionMNIST": FashionMNIST}
PLACES = 3
SEED = 17  # fixed, so that every run has the same images


class SideBySide(Source):
    """Grey images of two or three scans side by side. The labels of an image are the classes of its scans.

    Each scan is scaled to a cell, placed at a random height, and taken from the same split as the image. With digits
    only, nothing is downloaded.

    Args:
        root: folder of the scans that are not in the package.
        sources: data sets of the scans: ``Digits``, ``FashionMNIST``, or both. None is ``Digits``.
        train_images: number of training images.
        test_images: number of test images.
        cell: height and width of a scan in pixels; an image is three times as high and wide.

    Raises:
        InputError: if a value is out of range, or a data set is unknown.
    """

    channels = 1
    multi_label = True

    def __init__(
        self,
        root: str,
        sources: list[str] | None = None,
        train_images: int = 6000,
        test_images: int = 2000,
        cell: int = 12,
    ) -> None:
        super().__init__(root)
        names = ["Digits"] if sources is None else [canonical_source(name) for name in sources]
        if not names or len(set(names)) < len(names) or set(names) - SCANS.keys():
            unknown = next((name for name in names if name not in SCANS), "")
            raise InputError(
                f"sources is {sources}, but must be some of {', '.join(SCANS)}, each once."
                + did_you_mean(unknown, SCANS)
            )
        for name, value in (("train_images", train_images), ("test_images", test_images), ("cell", cell)):
            if value < 1:
                raise InputError(f"{name} is {value}, but must be at least 1.")
        self._scans = [SCANS[name](root) for name in names]
        self.class_names = [name for scans in self._scans for name in scans.class_names]
        self.cell, self.image_size = cell, PLACES * cell
        self._sizes = {"train": train_images, "test": test_images}
        self.counts = count_labels(self.labels("train"), len(self.class_names))

    def labels(self, split: Split) -> Labels:
        """Return the labels of one split, int8 of shape (N, C)."""
        plan = self._plan(split)
        labels = np.zeros((len(plan.classes), len(self.class_names) + 1), np.int8)
        np.put_along_axis(labels, plan.classes, 1, axis=1)
        return labels[:, :-1]  # without the column of empty places

    def load(self, split: Split) -> tuple[Images, Labels]:
        """Return one split."""
        plan = self._plan(split)
        scans, by_class = self._cells(split)
        images = np.zeros((len(plan.classes), self.image_size, self.image_size), np.uint8)
        for place in range(PLACES):
            rows = np.flatnonzero(plan.classes[:, place] < len(by_class))
            chosen = np.zeros(len(rows), np.int64)
            for label, members in enumerate(by_class):
                own = plan.classes[rows, place] == label
                chosen[own] = members[(plan.draws[rows[own], place] * len(members)).astype(np.int64)]
            down = plan.heights[rows, place, None, None] + np.arange(self.cell)[:, None]
            right = place * self.cell + np.arange(self.cell)
            images[rows[:, None, None], down, right] = scans[chosen]
        return images[..., None], self.labels(split)

    def _plan(self, split: Split) -> "_Plan":
        rng = np.random.default_rng([SEED, int(split == "test")])
        shape = self._sizes["train" if split == "train" else "test"], PLACES
        classes = rng.integers(len(self.class_names), size=shape)
        empty = np.where(rng.random(shape[0]) < 0.5, rng.integers(PLACES, size=shape[0]), PLACES)
        classes[empty[:, None] == np.arange(PLACES)] = len(self.class_names)
        heights = rng.integers(self.image_size - self.cell + 1, size=shape)
        return _Plan(classes, heights, rng.random(shape))

    def _cells(self, split: Split) -> tuple[Images, list[Indices]]:
        """Return all scans, uint8 of shape (M, cell, cell), and the positions of each class."""
        scans, by_class = list[Images](), list[Indices]()
        for source in self._scans:
            source.may_download = self.may_download
            images, labels = source.load(split)
            first = sum(map(len, scans))
            by_class += [first + np.flatnonzero(labels == label) for label in range(len(source.class_names))]
            scans.append(resize(images, View(self.cell, channels=1))[..., 0])
        return np.concatenate(scans), by_class


class _Plan(NamedTuple):
    """Scans in the three places of N images."""

    classes: Indices  # shape (N, 3); C is an empty place
    heights: Indices  # shape (N, 3), upper edge in pixels
    draws: npt.NDArray[np.float64]  # shape (N, 3), in [0, 1): position among the scans of the class
