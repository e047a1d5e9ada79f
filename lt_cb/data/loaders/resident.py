"""Images or features in memory, cropped and flipped a batch at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lt_cb.data.loaders.epoch import EpochLoader, augmented


@dataclass(eq=False, repr=False)
class ResidentLoader(EpochLoader):
    """Loader of images held in memory: uint8, shape (N, H, W, C), on ``device`` like the batches.

    Features of a frozen network, floating of shape (N, D), are shuffled and resampled, but not cropped or augmented.
    """

    images: Tensor
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        """Move images and targets to the device."""
        super().__post_init__()
        self.images = self.images.to(self.device).contiguous()
        self.targets = self.targets.to(self.device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images, uint8 of shape (B, C, H, W) in channels-last memory, or features, and targets."""
        positions, *drawn = self._draw()
        rows, offsets, flips = (values.to(self.device) for values in drawn)
        for start in range(0, len(rows), self.batch_size):
            batch = slice(start, start + self.batch_size)
            if self.images.ndim == 2:
                images = self.images[rows[batch]]
            elif self.train:
                images = self._crop(rows[batch], offsets[batch], flips[batch])
            else:
                images = self.images[rows[batch]].permute(0, 3, 1, 2)
            if self.augment is not None and images.ndim == 4:
                places = zip(images, positions[batch].tolist(), strict=True)
                changed = [augmented(image, self.augment, self.seed, self.epoch, place) for image, place in places]
                images = torch.stack(changed).contiguous(memory_format=torch.channels_last)
            yield images, self.targets[rows[batch]]

    def _crop(self, rows: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
        (_, height, width, channels), device = self.images.shape, self.images.device
        columns = torch.arange(width, device=device).expand(len(rows), -1)
        columns = torch.where(flips[:, None], width - 1 - columns, columns)
        y = offsets[:, :1] + torch.arange(height, device=device)  # (B, H)
        x = offsets[:, 1:] + columns  # (B, W)
        line, column = y.clamp(0, height - 1), x.clamp(0, width - 1)
        pixel = ((rows[:, None] * height + line) * width)[:, :, None] + column[:, None, :]  # (B, H, W)
        crops = self.images.view(-1, channels).index_select(0, pixel.flatten()).view(*pixel.shape, channels)
        crops *= ((y == line)[:, :, None] & (x == column)[:, None, :])[..., None]  # zeros around the image
        return crops.permute(0, 3, 1, 2)
