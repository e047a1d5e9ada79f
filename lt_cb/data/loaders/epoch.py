"""Epochs: order, crops and flips, drawn from (seed, epoch)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lt_cb.data.sources.listing import Paths


class Draws(NamedTuple):
    """The samples of one process in an epoch, in order; ``flips`` is bool, all others are int64."""

    positions: Tensor  # shape (N,), in the epoch of all processes
    rows: Tensor  # shape (N,), image indices
    offsets: Tensor  # shape (N, 2), of the crop, down and right
    flips: Tensor  # shape (N,)


@dataclass(eq=False, repr=False)
class EpochLoader(ABC):
    """Iterate over (images, targets) batches, in training shuffled, cropped and flipped at random.

    An epoch is drawn as a whole from (seed, epoch). It is the same on every device, after a resume, and for any number
    of processes, which take every world_size-th sample of it.

    Args:
        images: N images, features or paths.
        targets: int64, shape (N,), or int8 labels of shape (N, C).
        batch_size: images a batch of this process; the last batch may be smaller.
        train: shuffle and augment. All processes then get the same number of batches. If the last one has fewer samples
            than processes, the first samples of the epoch are repeated. Without ``train``, each sample is shown once.
        crop_padding: zeros around an image before cropping, in pixels.
        horizontal_flip: flip half of the images.
        seed: seed of shuffling and augmentation.
        order: returns the samples of an epoch, int64 of shape (N,), instead of all of them shuffled; it may return None
            for the default.
        rank: index of this process.
        world_size: number of processes.
        drop_single: leave out the last batch of a training epoch if it has one image in some process.
        augment: applied to each training image, uint8 of shape (C, H, W), after crop and flip. Its random numbers
            depend on (seed, epoch) and the image's position in the epoch.
    """

    images: Tensor | Paths
    targets: Tensor
    batch_size: int
    _: KW_ONLY
    train: bool = False
    crop_padding: int = 0
    horizontal_flip: bool = False
    seed: int = 0
    order: Callable[[int], Tensor | None] | None = None
    rank: int = 0
    world_size: int = 1
    augment: Callable[[Tensor], Tensor] | None = None
    drop_single: bool = False

    epoch = 0
    batch_sampler = None  # Lightning reads it from loaders that have a ``sampler``

    def __post_init__(self) -> None:
        """Augment in training only."""
        if not self.train:
            self.crop_padding, self.horizontal_flip, self.augment = 0, False, None

    @property
    def sampler(self) -> "EpochLoader":
        """The object whose ``set_epoch`` Lightning calls."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    @property
    def num_samples(self) -> int:
        """Number of images of this process in an epoch."""
        total = len(self.targets)
        last = total % (self.world_size * self.batch_size)  # over all processes
        if self.train and self.drop_single and 0 < last < 2 * self.world_size:
            return (total - last) // self.world_size
        if self.train and 0 < last < self.world_size:
            return -(-total // self.world_size)
        return len(range(self.rank, total, self.world_size))

    def __len__(self) -> int:
        """Return the number of batches of this process."""
        return -(-self.num_samples // self.batch_size)

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images, uint8 of shape (B, C, H, W) in channels-last memory, and targets of shape (B,) or (B, C)."""

    def _draw(self) -> Draws:
        """Return this process's share of the epoch, on the CPU."""
        total = len(self.targets)
        positions = (torch.arange(self.num_samples) * self.world_size + self.rank) % total
        if not self.train:
            return Draws(positions, positions, torch.zeros(len(positions), 2, dtype=torch.int64), positions < 0)
        draw = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        order = torch.randperm(total, generator=draw)
        if self.order is not None and (resampled := self.order(self.epoch)) is not None:
            order = resampled
        offsets = torch.randint(2 * self.crop_padding + 1, (total, 2), generator=draw) - self.crop_padding
        flips = (torch.rand(total, generator=draw) < 0.5) & self.horizontal_flip
        return Draws(positions, order[positions], offsets[positions], flips[positions])


def seed_of(*entropy: int) -> int:
    """Return a seed for torch that depends on all of the numbers, each at least 0."""
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return int(state[0] >> 1)


def augmented(image: Tensor, augment: Callable[[Tensor], Tensor], *entropy: int) -> Tensor:
    """Augment an image, uint8 of shape (C, H, W), with random numbers seeded by ``entropy``."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*entropy))
        return augment(image)
