"""Data sets that come as arrays: digits, CIFAR, Fashion-MNIST, and scans side by side with several labels."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lt_cb.data.decode import Images, resize
from lt_cb.data.sources.base import Source
from lt_cb.data.sources.files import ImageFolder
from lt_cb.data.sources.listing import Split
from lt_cb.data.sources.names import canonical_source
from lt_cb.data.view import View
from lt_cb.errors import InputError, did_you_mean
from lt_cb.longtail.subset import Indices, Labels, count_labels


class Digits(Source):
    """1,797 scans of handwritten digits, 8 x 8 grey, grey values 0 ... 16 stretched to 0 ... 255.

    The test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI Machine Learning
    Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0), in the order of scikit-learn's ``load_digits``.
    The last 40 scans of each class are the test split here. Other people wrote them than the training scans.
    """

    class_names = [str(digit) for digit in range(10)]
    counts = [138, 142, 137, 143, 141, 142, 141, 139, 134, 140]
    image_size = 8
    channels = 1

    def load(self, split: Split) -> tuple[Images, Indices]:
        """Return one split."""
        with np.load(Path(__file__).with_name("digits.npz")) as archive:
            images, labels = archive["images"], archive["labels"].astype(np.int64)
        from_end = np.array([np.count_nonzero(labels[i:] == label) for i, label in enumerate(labels)])
        chosen = (from_end <= 40) == (split == "test")
        return images[chosen], labels[chosen]


class _CIFAR(Source):
    """CIFAR as torchvision's archive in ``root`` (downloaded if missing), or as an image folder there."""

    name: str
    image_size = 32
    image_folder: ImageFolder | None = None

    def __init__(self, root: str) -> None:
        super().__init__(root)
        num_classes = len(self.class_names)
        self.counts = [50_000 // num_classes] * num_classes
        folders = [folder for folder in (self.root, self.root / self.name.lower()) if (folder / "train").is_dir()]
        if folders:
            self.image_folder = ImageFolder(str(folders[0]))
            if self.image_folder.undivided is not None:
                raise InputError(
                    f"there is no folder '{folders[0] / 'test'}': add it, with the test images of each class."
                )
            self.image_folder.view = View(self.image_size)
            self.counts, self.class_names = self.image_folder.counts, self.image_folder.class_names
            if len(self.counts) != num_classes:
                raise InputError(
                    f"'{folders[0]}' has {len(self.counts)} classes, but {self.name} has {num_classes}: "
                    "set --data.source ImageFolder, or another --data.root."
                )

    def load(self, split: Split) -> tuple[Images, Labels]:
        """Return one split, in the order of the archive or of the files."""
        if self.image_folder is not None:
            return self.image_folder.load(split)
        dataset = _download(self, self.name, split)
        return dataset.data, np.asarray(dataset.targets, np.int64)


class CIFAR10(_CIFAR):
    """CIFAR-10: 10 classes, 5,000 training and 1,000 test images each, 32 x 32 RGB."""

    name = "CIFAR10"
    class_names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class CIFAR100(_CIFAR):
    """CIFAR-100: 100 classes, 500 training and 100 test images each, 32 x 32 RGB."""

    name = "CIFAR100"
    class_names = [str(label) for label in range(100)]


class FashionMNIST(Source):
    """Fashion-MNIST: 10 classes, 6,000 training and 1,000 test images each, 28 x 28 grey.

    Reads the four IDX files, plain or gzipped, in ``root`` or in ``root/FashionMNIST/raw``, where torchvision puts
    them. Downloads them if they are missing.
    """

    class_names = [
        "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ]  # fmt: skip
    counts = [6000] * 10
    image_size = 28
    channels = 1

    def load(self, split: Split) -> tuple[Images, Indices]:
        """Return one split, in the order of the files."""
        stem = "train" if split == "train" else "t10k"
        if self._find(f"{stem}-images-idx3-ubyte") is None:
            _download(self, "FashionMNIST", split)
        images = self._read(f"{stem}-images-idx3-ubyte", 16).reshape(-1, 28, 28, 1)
        return images, self._read(f"{stem}-labels-idx1-ubyte", 8).astype(np.int64)

    def _find(self, name: str) -> Path | None:
        folders = self.root, self.root / "FashionMNIST/raw"
        files = (folder / n for folder in folders for n in (name, f"{name}.gz"))
        return next((file for file in files if file.is_file()), None)

    def _read(self, name: str, header: int) -> Images:
        file = self._find(name)
        if file is None:
            raise InputError(f"'{name}' is not in '{self.root}': put all four files of Fashion-MNIST there.")
        try:
            content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            sizes = np.frombuffer(content[4:header], ">u4")
            return np.frombuffer(content, np.uint8, int(np.prod(sizes)), header)
        except (OSError, EOFError, ValueError) as error:
            raise InputError(f"'{file}' is damaged ({error}): fetch it again.") from error


def _download(source: Source, name: str, split: Split) -> Any:  # noqa: ANN401 - torchvision is untyped
    """Return a data set of torchvision, downloaded to the source's root if it is not there."""
    from torchvision import datasets

    try:
        return getattr(datasets, name)(str(source.root), train=split == "train", download=source.may_download)
    except (OSError, RuntimeError) as error:
        why = f" and could not be downloaded ({error})" if source.may_download else ", and nothing is downloaded"
        raise InputError(f"{name} is not in '{source.root}'{why}: set --data.root to where the data are.") from error


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
        scans, labels = list[Images](), list[Labels]()
        for source in self._scans:
            source.may_download = self.may_download
            images, classes = source.load(split)
            scans.append(resize(images, View(self.cell, channels=1))[..., 0])
            labels.append(classes + self.class_names.index(source.class_names[0]))
        return np.concatenate(scans), np.concatenate(labels)
