"""Held-out training images to choose a recipe by. The test images are not used.

Digits: PYTHONPATH=benchmarks lt-cb fit --config configs/quickstart.yaml --data.source heldout.HeldOutDigits
CIFAR-10: python benchmarks/heldout.py cifar10/train chosen_by makes a folder of links, and then
PYTHONPATH=benchmarks lt-cb fit ... --data.source heldout.HeldOutCIFAR10 --data.root chosen_by
"""

import os
import random
import sys
from pathlib import Path

import numpy as np

from lt_cb.data import Split
from lt_cb.data.sources.arrays import Digits
from lt_cb.data.sources.files import ImageFolder


class HeldOutDigits(Digits):
    """Training part of the digits. Every fourth image of a class becomes a test image."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        labels = super().load("train")[1]
        self.counts = [int(n - n // 4) for n in np.bincount(labels)]

    def load(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Return three quarters of the training part, or the fourth."""
        images, labels = super().load("train")
        place = np.empty_like(labels)  # of an image in its class
        for label in range(10):
            members = np.flatnonzero(labels == label)
            place[members] = np.arange(len(members))
        chosen = (place % 4 == 3) == (split == "test")
        return images[chosen], labels[chosen]


class HeldOutCIFAR10(ImageFolder):
    """Folder that `link` makes of CIFAR-10's training part: 4,500 training and 500 held-out images of each class."""

    default_size = 32


def link(source: Path, target: Path, held_out: int = 500) -> None:
    """Make ``target/{train,test}/<class>`` of links to the images in ``source/<class>``."""
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        files = sorted(path.name for path in folder.iterdir())
        random.Random(folder.name).shuffle(files)
        for split, names in (("test", files[:held_out]), ("train", files[held_out:])):
            place = target / split / folder.name
            place.mkdir(parents=True, exist_ok=True)
            for name in names:
                os.symlink((folder / name).resolve(), place / name)


if __name__ == "__main__":
    link(Path(sys.argv[1]), Path(sys.argv[2]))
