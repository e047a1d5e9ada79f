"""Data sets that come as arrays: digits, CIFAR, Fashion-MNIST."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lt_cb.data.images import Images
from lt_cb.data.sources.base import Source, Split
from lt_cb.data.sources.files import ImageFolder
from lt_cb.data.subset import Indices
from lt_cb.errors import InputError


class Digits(Source):
    """1,797 scans of handwritten digits, 8 x 8 grey, which come with scikit-learn (UCI, 1998).

    The last 40 of each class are the test part. They were written by other people than the first.
    """

    class_names = [str(digit) for digit in range(10)]
    counts = [138, 142, 137, 143, 141, 142, 141, 139, 134, 140]
    image_size = 8
    channels = 1

    def load(self, split: Split) -> tuple[Images, Indices]:
        """Return one part, grey values 0 ... 16 stretched to 0 ... 255."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        labels = digits.target.astype(np.int64)
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        from_end = np.empty_like(labels)  # 0 for the last image of a class, 1 for the one before, ...
        for label in range(10):
            members = np.flatnonzero(labels == label)
            from_end[members] = np.arange(len(members))[::-1]
        part = from_end < 40 if split == "test" else from_end >= 40
        return images[part], labels[part]


class _CIFAR(Source):
    """CIFAR from torchvision's archive under ``root`` (downloaded when missing), or from an image folder there."""

    name: str
    image_size = 32

    def __init__(self, root: str) -> None:
        super().__init__(root)
        folders = [folder for folder in (self.root, self.root / self.name.lower()) if (folder / "train").is_dir()]
        self.folder = ImageFolder(str(folders[0]), self.image_size) if folders else None
        num_classes = int(self.name.removeprefix("CIFAR"))
        if self.folder is None:
            self.counts = [50_000 // num_classes] * num_classes
            self.class_names = _cifar10_classes if num_classes == 10 else [str(c) for c in range(num_classes)]
        else:
            self.counts, self.class_names = self.folder.counts, self.folder.class_names
            if len(self.counts) != num_classes:
                raise InputError(
                    f"'{self.folder.root}' has {len(self.counts)} classes, but {self.name} has {num_classes}: "
                    "set --data.source image_folder, or another --data.root."
                )

    def load(self, split: Split) -> tuple[Images, Indices]:
        """Return one part, in the order of the archive or of the files."""
        if self.folder is not None:
            return self.folder.load(split)
        from torchvision import datasets

        dataset: Any = _download(getattr(datasets, self.name), self.root, split)
        return dataset.data, np.asarray(dataset.targets, np.int64)


class CIFAR10(_CIFAR):
    """CIFAR-10: 10 classes, 5,000 training and 1,000 test images each, 32 x 32 RGB."""

    name = "CIFAR10"


class CIFAR100(_CIFAR):
    """CIFAR-100: 100 classes, 500 training and 100 test images each, 32 x 32 RGB."""

    name = "CIFAR100"


class FashionMNIST(Source):
    """Fashion-MNIST: 10 classes, 6,000 training and 1,000 test images each, 28 x 28 grey.

    Reads the four IDX files, plain or gzipped, in ``root`` or where torchvision puts them below it; downloads them
    when missing.
    """

    class_names = [
        "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ]  # fmt: skip
    counts = [6000] * 10
    image_size = 28
    channels = 1

    def load(self, split: Split) -> tuple[Images, Indices]:
        """Return one part, in the order of the files."""
        stem = "train" if split == "train" else "t10k"
        if self._find(f"{stem}-images-idx3-ubyte") is None:
            from torchvision.datasets import FashionMNIST as Archive

            _download(Archive, self.root, split)
        images = self._read(f"{stem}-images-idx3-ubyte", 16).reshape(-1, 28, 28, 1)
        return images, self._read(f"{stem}-labels-idx1-ubyte", 8).astype(np.int64)

    def _find(self, name: str) -> Path | None:
        candidates = [
            folder / n for folder in (self.root, self.root / "FashionMNIST/raw") for n in (name, f"{name}.gz")
        ]
        return next((file for file in candidates if file.is_file()), None)

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


class Checkpoint(Source):
    """The classes and the image shape a checkpoint was trained on, without its images: what predicting needs.

    Args:
        root: path of a checkpoint of `LongTailedClassifier`.
    """

    def __init__(self, root: str) -> None:
        super().__init__(root)
        hparams = torch.load(self.root, map_location="cpu", weights_only=True, mmap=True)["hyper_parameters"]
        self.class_names = hparams["class_names"]
        self.counts = hparams["loss"]["init_args"]["class_counts"]
        self.image_size, self.channels = hparams["image_size"], hparams["in_channels"]

    def load(self, split: Split) -> tuple[Images, Indices]:
        """Refuse: there are no images."""
        raise InputError(f"'{self.root}' is a checkpoint and has no {split} images: set --data.source and --data.root.")


def _download(dataset: Callable[..., Any], root: Path, split: Split) -> Any:  # noqa: ANN401 - torchvision is untyped
    try:
        return dataset(str(root), train=split == "train", download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"the data are not in '{root}' and could not be downloaded ({error}): set --data.root to where they are."
        ) from error


_cifar10_classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
