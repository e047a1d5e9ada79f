"""A data set of several labels an image, made of scans of one label each."""

from collections import Counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lt_cb.data.images import Images, resize
from lt_cb.data.sources.arrays import Digits, FashionMNIST
from lt_cb.data.sources.base import Source, Split
from lt_cb.longtail.subset import Indices, Labels, count_labels
from lt_cb.errors import InputError, did_you_mean

SCANS: dict[str, type[Source]] = {"digits": Digits, "fashion_mnist": FashionMNIST}
PLACES = 3
SEED = 17  # of all that is drawn: these images are a data set, which is the same for every run


class SideBySide(Source):
    """Grey images of two or three scans side by side, each of any class, with the classes of all as labels.

    Each scan is scaled to a cell, lies at a height of its own, and comes from the split that the image is of. Of the
    digits alone nothing is downloaded.

    Args:
        root: folder of the scans, as far as they are not in the package.
        sources: where the scans are from: ``digits``, ``fashion_mnist``, or both.
        train_images: number of training images.
        test_images: number of test images.
        cell: height and width of a scan in pixels; an image has three times that.

    Raises:
        InputError: if a value is out of range, or names no such source.
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
        sources = ["digits"] if sources is None else sources
        if not sources or len(set(sources)) < len(sources) or set(sources) - SCANS.keys():
            unknown = next((name for name in sources if name not in SCANS), "")
            raise InputError(
                f"sources is {sources}, but must be some of {', '.join(SCANS)}, each once."
                + did_you_mean(unknown, SCANS)
            )
        for name, value in (("train_images", train_images), ("test_images", test_images), ("cell", cell)):
            if value < 1:
                raise InputError(f"{name} is {value}, but must be at least 1.")
        self._scans = {name: SCANS[name](root) for name in sources}
        names = [name for scans in self._scans.values() for name in scans.class_names]
        shared = {name for name, number in Counter(names).items() if number > 1}
        self.class_names = [
            f"{source} {name}" if name in shared else name
            for source, scans in self._scans.items()
            for name in scans.class_names
        ]
        self.cell, self.image_size = cell, PLACES * cell
        self._sizes = {"train": train_images, "test": test_images}
        self.counts = count_labels(self.labels("train"), len(self.class_names))

    def labels(self, split: Split) -> Labels:
        """Return the labels of one split, int8 of shape (N, C)."""
        plan = self._plan(split)
        labels = np.zeros((len(plan.classes), len(self.class_names) + 1), np.int8)
        np.put_along_axis(labels, plan.classes, 1, axis=1)
        return labels[:, :-1]  # the last is that of empty places

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
        """Draw what lies where, without the scans."""
        rng = np.random.default_rng([SEED, int(split == "test")])
        shape = self._sizes["train" if split == "train" else "test"], PLACES
        classes = rng.integers(len(self.class_names), size=shape)
        empty = np.where(rng.random(shape[0]) < 0.5, rng.integers(PLACES, size=shape[0]), PLACES)
        classes[empty[:, None] == np.arange(PLACES)] = len(self.class_names)
        heights = rng.integers(self.image_size - self.cell + 1, size=shape)
        return _Plan(classes, heights, rng.random(shape))

    def _cells(self, split: Split) -> tuple[Images, list[Indices]]:
        """Return all scans, uint8 of shape (M, cell, cell), and which of them each class has."""
        scans, by_class = list[Images](), list[Indices]()
        for source in self._scans.values():
            images, labels = source.load(split)
            before = sum(map(len, scans))
            by_class += [before + np.flatnonzero(labels == label) for label in range(len(source.class_names))]
            scans.append(resize(images, self.cell)[..., 0])
        return np.concatenate(scans), by_class


class _Plan(NamedTuple):
    """What lies in each of the three places of N images."""

    classes: Indices  # shape (N, 3); C is an empty place
    heights: Indices  # shape (N, 3), of the upper edge in pixels
    draws: npt.NDArray[np.float64]  # shape (N, 3), in [0, 1): which scan of its class
