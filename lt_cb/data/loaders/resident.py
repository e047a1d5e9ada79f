"""Images in memory, cropped and flipped a batch at a time."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lt_cb.data.loaders.epoch import EpochLoader, augmented


class ResidentLoader(EpochLoader):
    """Loader of images held in memory.

    Args:
        images: uint8, shape (N, H, W, C).
        targets: int64, shape (N,), or int8 labels of shape (N, C).
        batch_size: images a batch of this process; the last may be smaller.
        device: device of the images and batches; random numbers are drawn on the CPU.
        options: of `EpochLoader`.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        **options: Any,  # noqa: ANN401
    ) -> None:
        self.device = torch.device(device)
        super().__init__(targets.to(self.device), batch_size, **options)
        self._pixels = torch.empty(0)
        self.images = self._pad(images) if self.train else images.to(self.device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images, uint8 of shape (B, C, H, W) in channels-last memory, and targets, int64 of shape (B,)."""
        positions, *drawn = self._draw()
        rows, offsets, flips = (values.to(self.device) for values in drawn)
        for start in range(0, len(positions), self.batch_size):
            batch = slice(start, start + self.batch_size)
            if not self.train:
                images = self.images[rows[batch]].permute(0, 3, 1, 2)
            else:
                images = self._crop(rows[batch], offsets[batch], flips[batch])
            if self.augment is not None:
                places = zip(images, positions[batch].tolist(), strict=True)
                changed = [augmented(image, self.augment, self.seed, self.epoch, place) for image, place in places]
                images = torch.stack(changed).contiguous(memory_format=torch.channels_last)
            yield images, self.targets[rows[batch]]

    def _pad(self, images: Tensor) -> Tensor:
        """Copy the images so that any crop is one gather, and return a view of the copy.

        Neighbouring rows share the zeros between them, and all images share one row of zeros above and below. So the
        copy takes (1 + padding / width) of the images' memory instead of (1 + 2 padding / width)^2.
        """
        (count, height, width, channels), p = images.shape, self.crop_padding
        size = p + (count * height + 1) * (width + p)
        self._pixels = torch.zeros(size, channels, dtype=images.dtype, device=self.device)
        rows = self._pixels[p:].view(count * height + 1, width + p, channels)[:-1]
        view = rows.view(count, height, width + p, channels)[:, :, :width]
        view.copy_(images)
        return view

    def _crop(self, rows: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
        count, height, width, channels = self.images.shape
        columns = torch.arange(width, device=self.device).expand(len(rows), -1)
        if self.horizontal_flip:
            columns = torch.where(flips[:, None], width - 1 - columns, columns)
        y = offsets[:, :1] + torch.arange(height, device=self.device)  # (B, H)
        line = torch.where((y >= 0) & (y < height), rows[:, None] * height + y, count * height)
        x = offsets[:, 1:] + columns + self.crop_padding  # (B, W)
        pixel = (line * (width + self.crop_padding))[:, :, None] + x[:, None, :]  # (B, H, W)
        crops = self._pixels.index_select(0, pixel.flatten())
        return crops.view(len(rows), height, width, channels).permute(0, 3, 1, 2)


class FeatureLoader(ResidentLoader):
    """Loader of the features of a frozen network, floating of shape (N, D).

    Features are shuffled and resampled, but never cropped, flipped or augmented.
    """

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features, shape (B, D), and targets, int64 of shape (B,)."""
        for rows in torch.split(self._draw().rows.to(self.device), self.batch_size):
            yield self.images[rows], self.targets[rows]

    def _pad(self, images: Tensor) -> Tensor:
        return images.to(self.device)
