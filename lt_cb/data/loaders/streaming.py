"""Image files decoded on demand by worker processes, for images that do not fit in memory."""

import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lt_cb.data.decode import Box, Images, decode, decode_region
from lt_cb.data.loaders.epoch import EpochLoader, augmented
from lt_cb.data.sources.listing import Paths
from lt_cb.data.view import View
from lt_cb.errors import InputError

MIN_AREA = 0.08
MAX_RATIO = 4 / 3
TEST_MARGIN = 32  # pixels: a test crop of 224 is cut from 256


@dataclass(eq=False, repr=False)
class StreamingLoader(EpochLoader):
    """Loader of image files, decoded on demand, with the same batches as a `ResidentLoader` if the crop is padded."""

    images: Paths
    view: View
    num_workers: int = 0  # 0 decodes in this process
    pin_memory: bool = False

    def __post_init__(self) -> None:
        """Prepare a decoder, which worker processes get a copy of."""
        super().__post_init__()
        workers = min(self.num_workers, len(self))
        self._batches: list[Tensor] = []  # draws of the epoch, as the decoder takes them
        self._decoded: DataLoader[Tensor | InputError] = DataLoader(
            _Decoder(self.images, self.view, self.train, self.seed, self.augment),
            batch_size=None,
            sampler=self._batches,
            num_workers=workers,
            pin_memory=self.pin_memory,
            persistent_workers=workers > 0,
            # spawned workers would import everything again
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            generator=torch.Generator(),  # otherwise each epoch would advance the global generator
        )

    @property
    def _iterator(self) -> object:
        """The worker processes, which Lightning stops by this name once it has shown the last epoch.

        Left to the garbage collector, each of them stops the program for 5 seconds.
        """
        return self._decoded._iterator

    @_iterator.setter
    def _iterator(self, stopped: None) -> None:
        self._decoded._iterator = stopped

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images, uint8 of shape (B, C, H, W) in channels-last memory, and targets, int64 of shape (B,)."""
        draws = self._draw()
        epochs = torch.full_like(draws.rows, self.epoch)
        table = torch.column_stack([epochs, draws.positions, draws.rows, draws.offsets, draws.flips])
        self._batches[:] = torch.split(table, self.batch_size)
        for images, rows in zip(self._decoded, torch.split(draws.rows, self.batch_size), strict=True):
            if isinstance(images, InputError):
                raise InputError(str(images))  # a new error: a raised `images` would keep this frame alive
            yield images.permute(0, 3, 1, 2), self.targets[rows]


@dataclass
class _Decoder(Dataset["Tensor | InputError"]):
    """Decodes batches, uint8 of shape (B, H, W, C), in a worker."""

    paths: Paths
    view: View
    train: bool
    seed: int
    augment: Callable[[Tensor], Tensor] | None

    def __getitem__(self, table: Tensor) -> Tensor | InputError:
        """Return a batch for a table of draws, or an error: if a worker raised it, the user would see a traceback."""
        side, channels = self.view.size, self.view.channels
        batch = torch.empty(len(table), side, side, channels, dtype=torch.uint8)
        try:
            for slot, draws in zip(batch, table.tolist(), strict=True):
                self._decode(slot, *draws)
        except InputError as error:
            return error
        return batch

    def _decode(self, slot: Tensor, epoch: int, position: int, row: int, down: int, right: int, flip: int) -> None:
        file = Path(os.fsdecode(self.paths[row]))
        if self.view.crop == "padded":
            image = shifted(decode(file, self.view), down, right)
        elif self.train:
            rng = np.random.default_rng([self.seed, epoch, position])
            image = decode_region(file, partial(random_region, rng), self.view)
        else:
            image = decode_region(file, partial(centre_region, self.view.size), self.view)
        slot.copy_(torch.from_numpy((image[:, ::-1] if flip else image).copy()))
        if self.augment is not None:
            changed = augmented(slot.permute(2, 0, 1), self.augment, self.seed, epoch, position)
            slot.copy_(changed.permute(1, 2, 0))


def shifted(image: Images, down: int, right: int) -> Images:
    """Shift an image of shape (H, W, C) up by ``down`` and left by ``right`` pixels, and fill with zeros."""
    (height, width, _), border = image.shape, max(abs(down), abs(right))
    padded = np.pad(image, ((border, border), (border, border), (0, 0)))
    return padded[border + down :, border + right :][:height, :width]


def random_region(rng: np.random.Generator, width: int, height: int) -> Box:
    """Draw a region of an image (Szegedy et al. 2015), with the distribution of RandomResizedCrop."""
    for _ in range(10):
        area = width * height * rng.uniform(MIN_AREA, 1)
        ratio = math.exp(rng.uniform(-math.log(MAX_RATIO), math.log(MAX_RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return float(left), float(top), float(left + w), float(top + h)
    w, h = min(width, round(height * MAX_RATIO)), min(height, round(width * MAX_RATIO))
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


def centre_region(side: int, width: int, height: int) -> Box:
    """Return the square at the centre without its margin, as in the tests of Cui et al. 2019."""
    half = min(width, height) * side / (side + TEST_MARGIN) / 2
    return width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half
