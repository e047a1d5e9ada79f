"""Images that do not fit in memory, decoded as they are asked for by processes of their own."""

import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lt_cb.data.images import Box, Images, Interpolation, decode, decode_region
from lt_cb.data.loaders.epoch import EpochLoader, augmented
from lt_cb.data.sources.listing import Paths
from lt_cb.errors import InputError

Crop = Literal["padded", "resized"]
MIN_AREA = 0.08
MAX_RATIO = 4 / 3
TEST_MARGIN = 32  # pixels around the test crop, at its scale: 224 of 256


class StreamingLoader(EpochLoader):
    """An `EpochLoader` of image files.

    Of a ``padded`` crop, its batches are those that a `ResidentLoader` makes of the decoded images, bit for bit.

    Args:
        paths: of N files.
        targets: int64, shape (N,).
        batch_size: images a batch of this process; the last may be smaller.
        image_size: height and width of the images it yields, in pixels.
        channels: 3 for RGB, 1 for grey.
        crop: ``padded`` scales an image to image_size and, when training, crops it with a border of zeros;
            ``resized`` takes a random region of it when training, of 8 to 100 % of its area and a ratio of width to
            height of 3/4 to 4/3, and else the square at its centre without a margin (224 pixels of 256), and scales
            that.
        interpolation: of images that are scaled.
        strict: with ``padded``, refuse images that are not of image_size already.
        num_workers: processes that decode; 0 decodes in this one.
        pin_memory: whether a GPU copies the batches.
        options: further arguments of `EpochLoader`.
    """

    def __init__(
        self,
        paths: Paths,
        targets: Tensor,
        batch_size: int,
        *,
        image_size: int,
        channels: int = 3,
        crop: Crop = "padded",
        interpolation: Interpolation = "bilinear",
        strict: bool = False,
        num_workers: int = 0,
        pin_memory: bool = False,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(targets, batch_size, **options)
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self._decoder = _Decoder(
            paths, image_size, channels, crop, interpolation, strict, self.train, self.seed, self.augment
        )
        self._batches: list[Tensor] = []  # of the epoch, as the decoder takes them

    @cached_property
    def _decoded(self) -> DataLoader[Tensor | InputError]:
        workers = min(self.num_workers, len(self))
        return DataLoader(
            self._decoder,
            batch_size=None,
            sampler=self._batches,
            num_workers=workers,
            pin_memory=self.pin_memory,
            persistent_workers=workers > 0,
            # a process that was itself spawned, as a grid's are, would spawn: each worker then imports all anew
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            generator=torch.Generator(),  # else each epoch would draw from that of the training
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images, uint8 of shape (B, C, H, W) in channels-last memory, and targets, int64 of shape (B,)."""
        draws = self._draw()
        epochs = torch.full_like(draws.rows, self.epoch)
        table = torch.column_stack([epochs, draws.positions, draws.rows, draws.offsets, draws.flips])
        self._batches[:] = torch.split(table, self.batch_size)
        for images, rows in zip(self._decoded, torch.split(draws.rows, self.batch_size), strict=True):
            if isinstance(images, InputError):
                raise InputError(str(images))  # one of its own: `images` and this frame would hold each other
            yield images.permute(0, 3, 1, 2), self.targets[rows]


@dataclass
class _Decoder(Dataset["Tensor | InputError"]):
    """Makes a batch, uint8 of shape (B, H, W, C), of a table of draws; it is what a worker has of a loader."""

    paths: Paths
    side: int
    channels: int
    crop: Crop
    interpolation: Interpolation
    strict: bool
    train: bool
    seed: int
    augment: Callable[[Tensor], Tensor] | None

    def __getitem__(self, table: Tensor) -> Tensor | InputError:
        """Return a batch, or what is wrong with it: a worker's exception would reach the user with its traceback."""
        batch = torch.empty(len(table), self.side, self.side, self.channels, dtype=torch.uint8)
        try:
            for slot, draws in zip(batch, table.tolist(), strict=True):
                self._decode(slot, *draws)
        except InputError as error:
            return error
        return batch

    def _decode(self, slot: Tensor, epoch: int, position: int, row: int, down: int, right: int, flip: int) -> None:
        file = Path(os.fsdecode(self.paths[row]))
        if self.crop == "padded":
            image = shifted(decode(file, self.side, self.strict, self.channels, self.interpolation), down, right)
        else:
            if self.train:
                region = partial(random_region, np.random.default_rng([self.seed, epoch, position]))
            else:
                region = partial(centre_region, self.side)
            image = decode_region(file, region, self.side, self.channels, self.interpolation)
        slot.copy_(torch.from_numpy((image[:, ::-1] if flip else image).copy()))
        if self.augment is not None:
            changed = augmented(slot.permute(2, 0, 1), self.augment, self.seed, epoch, position)
            slot.copy_(changed.permute(1, 2, 0))


def shifted(image: Images, down: int, right: int) -> Images:
    """Return an image of shape (H, W, C) seen from ``down`` and ``right`` pixels further, zeros around it."""
    (height, width, _), border = image.shape, max(abs(down), abs(right))
    padded = np.pad(image, ((border, border), (border, border), (0, 0)))
    return padded[border + down :, border + right :][:height, :width]


def random_region(rng: np.random.Generator, width: int, height: int) -> Box:
    """Draw a region of an image as Szegedy et al. 2015 do, and torchvision's RandomResizedCrop after them."""
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
    """Return the square at the centre, without the margin that Cui et al. 2019 leave around a test image."""
    half = min(width, height) * side / (side + TEST_MARGIN) / 2
    return width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half
