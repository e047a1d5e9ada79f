"""Side-by-side scans: a data set with several labels an image, made of data sets with one label."""

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

    Each scan is scaled to a cell, placed at a random height, and taken from the same split as the image.

    Args:
        root: folder of the scans that are not in the package.
        sources: data sets of the scans: ``Digits``, ``FashionMNIST``, or both. None is ``Digits``.
        train_images: number of training images.
        test_images: number of test images.
        cell: height and width of a scan in pixels; an image is three times as high and wide.
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
        names = list(map(canonical_source, ["Digits"] if sources is None else sources))
        if not names or len(set(names)) < len(names) or set(names) - SCANS.keys():
            near = did_you_mean(next((name for name in names if name not in SCANS), ""), SCANS)
            raise InputError(f"sources is {sources}, but must be some of {', '.join(SCANS)}, each once.{near}")
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
        classes, _, _ = self._plan(split)
        labels = np.zeros((len(classes), len(self.class_names) + 1), np.int8)
        np.put_along_axis(labels, classes, 1, axis=1)
        return labels[:, :-1]  # without the column of empty places

    def load(self, split: Split) -> tuple[Images, Labels]:
        """Return one split."""
        classes, heights, draws = self._plan(split)
        scans, scan_labels = self._load_scans(split)
        counts = np.bincount(scan_labels)
        rows, places = np.nonzero(classes < len(self.class_names))
        labels = classes[rows, places]
        within = (draws[rows, places] * counts[labels]).astype(np.int64)  # position among the scans of the class
        chosen = np.argsort(scan_labels, kind="stable")[(np.cumsum(counts) - counts)[labels] + within]
        down = heights[rows, places, None, None] + np.arange(self.cell)[:, None]
        right = places[:, None, None] * self.cell + np.arange(self.cell)
        images = np.zeros((len(classes), self.image_size, self.image_size), np.uint8)
        images[rows[:, None, None], down, right] = scans[chosen]
        return images[..., None], self.labels(split)

    def _plan(self, split: Split) -> tuple[Indices, Indices, npt.NDArray[np.float64]]:
        """Return class (C if empty), upper edge in pixels and a draw in [0, 1) of three places, each (N, 3)."""
        rng = np.random.default_rng([SEED, int(split == "test")])
        shape = self._sizes["train" if split == "train" else "test"], PLACES
        classes = rng.integers(len(self.class_names), size=shape)
        empty = np.where(rng.random(shape[0]) < 0.5, rng.integers(PLACES, size=shape[0]), PLACES)
        classes[empty[:, None] == np.arange(PLACES)] = len(self.class_names)
        heights = rng.integers(self.image_size - self.cell + 1, size=shape)
        return classes, heights, rng.random(shape)

    def _load_scans(self, split: Split) -> tuple[Images, Labels]:
        """Return all scans, uint8 of shape (M, cell, cell), and their classes."""
        scans, labels = list[Images](), list[Labels]()
        for source in self._scans:
            source.may_download = self.may_download
            images, classes = source.load(split)
            scans.append(resize(images, View(self.cell, channels=1))[..., 0])
            labels.append(classes + self.class_names.index(source.class_names[0]))
        return np.concatenate(scans), np.concatenate(labels)
