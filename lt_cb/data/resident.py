"""Images in memory, cropped and flipped a batch at a time."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor


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
        device: where the images are kept and the batches made; what is drawn is drawn on the CPU.
        augment: applied to each training image, uint8 of shape (C, H, W), after crop and flip; what it draws depends
            on (seed, epoch) and the image's place in the epoch.
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
        device: torch.device | str = "cpu",
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.crop_padding = crop_padding if train else 0
        self.horizontal_flip = horizontal_flip and train
        self.augment = augment if train else None
        self.device = torch.device(device)
        self._pixels = torch.empty(0)
        self.images = self._pad(images) if train else images.to(self.device)
        self.targets = targets.to(self.device)
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
            own = torch.arange(self.rank, total, self.world_size, device=self.device)
            for rows in torch.split(own, self.batch_size):
                yield self.images[rows].permute(0, 3, 1, 2), self.targets[rows]
            return
        state = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
        draw = torch.Generator().manual_seed(int(state[0] >> 1))
        order = torch.randperm(total, generator=draw)
        if self.order is not None and (resampled := self.order(self.epoch)) is not None:
            order = resampled
        offsets = torch.randint(2 * self.crop_padding + 1, (total, 2), generator=draw) - self.crop_padding
        flips = torch.rand(total, generator=draw) < 0.5
        positions = torch.arange(self.rank, self._num_samples() * self.world_size, self.world_size) % total
        order, offsets, flips = (drawn[positions].to(self.device) for drawn in (order, offsets, flips))
        for start in range(0, len(positions), self.batch_size):
            part = slice(start, start + self.batch_size)
            images = self._crop(order[part], offsets[part], flips[part])
            if self.augment is not None:
                images = self._augmented(images, positions[part].tolist())
            yield images, self.targets[order[part]]

    def _pad(self, images: Tensor) -> Tensor:
        """Lay the images out so that any crop is one gather, and return a view of them.

        The zeros on the right of a row are also those on the left of the next, and one row of zeros serves above and
        below every image: that is (1 + padding / width) of the images' memory instead of (1 + 2 padding / width)^2.
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

    def _augmented(self, images: Tensor, positions: list[int]) -> Tensor:
        assert self.augment is not None
        changed = []
        with torch.random.fork_rng(devices=[]):
            for image, position in zip(images, positions, strict=True):
                state = np.random.SeedSequence([self.seed, self.epoch, position]).generate_state(1, np.uint64)
                torch.default_generator.manual_seed(int(state[0] >> 1))
                changed.append(self.augment(image))
        return torch.stack(changed).contiguous(memory_format=torch.channels_last)
