"""Images in memory, cropped and flipped a batch at a time."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


class ResidentLoader:
    """Iterate over (images, targets) batches of images held in memory.

    A training loader shuffles, takes a random crop of the zero-padded image and flips it left to right at random.
    All of it is drawn for a whole epoch from (seed, epoch) alone: an epoch is the same on every device, after a
    resume, and for any number of processes, which take every world_size-th sample of it.

    Args:
        images: uint8, shape (N, H, W, C).
        targets: int64, shape (N,).
        batch_size: images a batch of this process; the last may be smaller.
        train: shuffle and augment. Processes then get equally many samples (the first are repeated to fill up);
            without, no sample is given out twice.
        crop_padding: zeros around an image before cropping, in pixels.
        horizontal_flip: flip half of the images.
        seed: of the shuffling and the augmentation.
        order: given an epoch, returns the samples it shows, int64 of shape (N,), in place of all of them shuffled;
            or None for just that.
        rank: this process.
        world_size: number of processes.
    """

    batch_sampler = None  # Lightning asks for it wherever there is a ``sampler``

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        batch_size: int,
        *,
        train: bool = False,
        crop_padding: int = 0,
        horizontal_flip: bool = False,
        seed: int = 0,
        order: Callable[[int], Tensor | None] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.size = (images.shape[1], images.shape[2])
        self.crop_padding = crop_padding if train else 0
        self.horizontal_flip = horizontal_flip and train
        p = self.crop_padding
        self.images = F.pad(images, (0, 0, p, p, p, p)) if p else images
        self.targets = targets
        self.batch_size = batch_size
        self.train = train
        self.seed = seed
        self.order = order
        self.epoch = 0
        self.rank = rank
        self.world_size = world_size

    @property
    def sampler(self) -> "ResidentLoader":
        """Where Lightning looks for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws."""
        self.epoch = epoch

    def _num_samples(self) -> int:
        total = len(self.targets)
        return -(-total // self.world_size) if self.train else len(range(self.rank, total, self.world_size))

    def __len__(self) -> int:
        """Return the number of batches of this process."""
        return -(-self._num_samples() // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images, uint8 of shape (B, C, H, W) in channels-last memory, and targets, int64 of shape (B,)."""
        total = len(self.targets)
        if not self.train:
            for rows in torch.split(torch.arange(self.rank, total, self.world_size), self.batch_size):
                yield self.images[rows].permute(0, 3, 1, 2), self.targets[rows]
            return
        state = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
        draw = torch.Generator().manual_seed(int(state[0] >> 1))
        order = torch.randperm(total, generator=draw)
        if self.order is not None and (resampled := self.order(self.epoch)) is not None:
            order = resampled
        offsets = torch.randint(2 * self.crop_padding + 1, (total, 2), generator=draw)
        flips = torch.rand(total, generator=draw) < 0.5
        positions = torch.arange(self.rank, self._num_samples() * self.world_size, self.world_size) % total
        for batch in torch.split(positions, self.batch_size):
            rows = order[batch]
            yield self._crop(rows, offsets[batch], flips[batch]), self.targets[rows]

    def _crop(self, rows: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
        height, width = self.size
        padded_height, padded_width, channels = self.images.shape[1:]
        columns = torch.arange(width).expand(len(rows), -1)
        if self.horizontal_flip:
            columns = torch.where(flips[:, None], width - 1 - columns, columns)
        y = offsets[:, :1] + torch.arange(height)  # (B, H)
        x = offsets[:, 1:] + columns  # (B, W)
        pixel = (rows[:, None] * padded_height + y)[:, :, None] * padded_width + x[:, None, :]  # (B, H, W)
        crops = self.images.view(-1, channels).index_select(0, pixel.flatten())
        return crops.view(len(rows), height, width, channels).permute(0, 3, 1, 2)
