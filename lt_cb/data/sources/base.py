"""What a source of images is."""

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import numpy as np

from lt_cb.data.images import Images, load_images, square_size
from lt_cb.data.sources.listing import Listing, Paths, check_files
from lt_cb.data.subset import Indices

Split = Literal["train", "val", "test"]


class Source(ABC):
    """A labelled data set with a training and a test part.

    Only `load` may be slow: the attributes are known once a source is made.

    Args:
        root: folder of the data.

    Attributes:
        class_names: C names, by class index.
        counts: images of each class in the training part, C numbers.
        image_size: height and width of an image in pixels.
        channels: 3 for RGB, 1 for grey.
        has_val: whether there is a validation part beside the other two.
    """

    class_names: list[str]
    counts: list[int]
    image_size: int
    channels: int = 3
    has_val: bool = False

    def __init__(self, root: str) -> None:
        self.root = Path(root).expanduser()

    @abstractmethod
    def load(self, split: Split) -> tuple[Images, Indices]:
        """Return images, uint8 of shape (N, H, W, channels), and class indices, int64 of shape (N,)."""


class FileSource(Source):
    """A data set of image files, which need not fit in memory.

    Args:
        root: folder of the data.
        image_size: images are scaled and cropped to this size; None is ``default_size``.

    Attributes:
        default_size: height and width in pixels; None asks for square images of one size.
        folder: what the paths of the listings are below.
    """

    default_size: int | None = None

    def __init__(self, root: str, image_size: int | None = None) -> None:
        super().__init__(root)
        self.folder = self.root.parent if self.root.is_file() else self.root
        self.requested_size = image_size or self.default_size
        train = self.listing("train")
        self.class_names = train.class_names
        self.counts = np.bincount(train.labels, minlength=len(self.class_names)).tolist()
        self.image_size = self.requested_size or square_size(self.folder / os.fsdecode(train.paths[0]))

    @abstractmethod
    def listing(self, split: Split) -> Listing:
        """Return paths below the folder and classes, without looking for the images."""

    def files(self, split: Split) -> tuple[Paths, Indices]:
        """Return whole paths and class indices, both of shape (N,).

        Raises:
            InputError: (a ValueError) if files are missing.
        """
        listing = self.listing(split)
        check_files(self.folder, listing.paths)
        paths = [os.path.join(os.fsencode(self.folder), path) for path in listing.paths.tolist()]  # some may be whole
        return np.array(paths, bytes), listing.labels

    def load(self, split: Split) -> tuple[Images, Indices]:
        """Return one part, decoded or from the cache."""
        paths, labels = self.files(split)
        files = [Path(os.fsdecode(path)) for path in paths.tolist()]
        return load_images(files, self.requested_size, self.channels, f"Decoding {split} images"), labels
