"""Samplers: how often an epoch shows each class (re-sampling). They need PyTorch alone."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils.data import DistributedSampler

from lt_cb.errors import InputError
from lt_cb.losses import effective_number

ALLOWED = (
    "must be class indices of shape (N,), N at least 1, each at least 0, or labels of shape (N, C), each 1, 0, or -1 "
    "for unknown."
)


def rarest_labels(labels: Any) -> Tensor:  # noqa: ANN401 - tensor, array or lists
    """Return the rarest label of each image, int64 of shape (N,), for labels of shape (N, C): 1, 0, or -1 for unknown.

    The first of equally rare labels is taken, and C for an image without labels. Class indices stay as they are.
    """
    given: Tensor = torch.as_tensor(labels).long()
    if given.ndim == 1:
        return given
    positive = given == 1
    by_rarity = positive.sum(0).argsort(stable=True)
    first = positive[:, by_rarity].long().argmax(1)
    return torch.where(positive.any(1), by_rarity[first], given.shape[1])


class Sampler(ABC):
    """Base class of samplers. A custom sampler defines ``class_shares``, the share of each class in an epoch.

    An epoch has as many samples as there are training images, N. Class c gets N times its share, rounded up or down at
    random. Within a class, images come equally often, up to one. If an image has several labels, the rarest one is its
    class. Images without a label form a class.
    """

    @abstractmethod
    def class_shares(self, counts: Tensor, progress: float) -> Tensor:
        """Return the share of each class, up to a common factor.

        Args:
            counts: training images of each class that has images, float64 of shape (C',).
            progress: fraction of the training before the epoch, in [0, 1).
        """

    def draw(self, labels: Any, seed: Sequence[int], progress: float = 0.0) -> Any:  # noqa: ANN401
        """Return the samples of an epoch, shuffled: indices into ``labels``, int64 of shape (N,), a tensor or an array.

        Args:
            labels: class indices, shape (N,), or labels of shape (N, C): 1, 0, or -1 for unknown.
            seed: one or more integers.
            progress: fraction of the training before the epoch, in [0, 1).
        """
        classes = rarest_labels(labels)
        digest = hashlib.sha256(repr([int(number) for number in seed]).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        counts = torch.unique(classes, return_counts=True)[1]
        shares = torch.as_tensor(self.class_shares(counts.double(), progress), dtype=torch.float64)
        if shares.shape != counts.shape or not (shares >= 0).all() or not 0 < shares.sum() < torch.inf:
            raise InputError(
                f"{type(self).__name__}.class_shares returned {shares.tolist()}, but must return {len(counts)} shares "
                "of at least 0, not all 0."
            )
        # systematic sampling: class c gets the points k + u in its part of [0, N)
        edges = (shares.cumsum(0) / shares.sum() * len(classes)).round(decimals=6)
        offset = torch.rand((), dtype=torch.float64, generator=generator)
        draws = (edges - offset).ceil().long().diff(prepend=torch.zeros(1, dtype=torch.int64))
        draws[-1] += len(classes) - draws.sum()
        chosen = []
        for members, number in zip(
            torch.split(classes.argsort(stable=True), counts.tolist()), draws.tolist(), strict=True
        ):
            whole, rest = divmod(number, len(members))
            chosen += [members.repeat(whole), members[torch.randperm(len(members), generator=generator)[:rest]]]
        drawn = torch.cat(chosen)[torch.randperm(len(classes), generator=generator)]
        return drawn if isinstance(labels, Tensor) else drawn.numpy()


class ClassBalancedSampler(Sampler):
    """Show each class equally often (Kang et al. 2020, q = 0)."""

    def class_shares(self, counts: Tensor, progress: float) -> Tensor:
        """Return 1."""
        return torch.ones_like(counts)


class SquareRootSampler(Sampler):
    """Show classes by the square root of their images (Kang et al. 2020, q = 1/2; Mahajan et al. 2018)."""

    def class_shares(self, counts: Tensor, progress: float) -> Tensor:
        """Return sqrt(n)."""
        return counts.sqrt()


class ProgressivelyBalancedSampler(Sampler):
    """Move linearly from each image equally often to each class equally often (Kang et al. 2020).

    The last of T epochs has t = (T - 1) / T: the paper's t / T with epochs from 0. The authors' code reaches 1.
    """

    def class_shares(self, counts: Tensor, progress: float) -> Tensor:
        """Return (1 - t) n / N + t / C."""
        return (1.0 - progress) * counts / counts.sum() + progress / len(counts)


class EffectiveNumberSampler(Sampler):
    """Show images in inverse proportion to the effective number of their class, as class-balanced weights do.

    Args:
        beta: in [0, 1). With 0, each image comes equally often; towards 1, each class.
    """

    def __init__(self, beta: float = 0.9999) -> None:
        effective_number([1], beta)  # checks beta
        self.beta = beta

    def class_shares(self, counts: Tensor, progress: float) -> Tensor:
        """Return n / E_n."""
        return counts / effective_number(counts, self.beta)


class EpochSampler(DistributedSampler[int]):
    """A `Sampler` for a DataLoader in a custom loop or trainer: ``DataLoader(..., sampler=EpochSampler(...))``.

    The draw depends on seed and epoch only. Each process takes every num_replicas-th index of it, and indices of the
    beginning fill up the last round. Call ``set_epoch`` before each epoch; Lightning does.

    Args:
        targets: tensor, array or lists: class indices, integers of shape (N,), or labels of shape (N, C): 1, 0, or -1
            for unknown.
        sampler: how often each class is shown.
        seed: seed of the draw, at least 0.
        epochs: epochs of the whole training, for a sampler that changes during the training.
        num_replicas: processes that share the draw; None asks torch.distributed.
        rank: index of this process; None asks torch.distributed.
    """

    def __init__(
        self,
        targets: Any,  # noqa: ANN401 - tensor, array or lists
        sampler: Sampler,
        seed: int = 0,
        epochs: int = 1,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        try:
            labels = torch.as_tensor(targets)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"targets are no tensor of integers ({error}), but {ALLOWED}") from error
        least, most = {1: (0, torch.inf), 2: (-1, 1)}.get(labels.ndim, (1, 0))  # class indices or labels
        whole = labels.numel() and not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
        if not whole or labels.min() < least or labels.max() > most:
            raise InputError(f"targets are {labels.dtype} of shape {tuple(labels.shape)}, but {ALLOWED}")
        if not isinstance(sampler, Sampler):
            raise InputError(f"sampler is {sampler!r}, but must be a Sampler, such as ClassBalancedSampler().")
        if not (distributed.is_available() and distributed.is_initialized()):
            num_replicas, rank = num_replicas or 1, rank or 0
        super().__init__(labels, num_replicas, rank, seed=seed)  # type: ignore[arg-type]  # only its length is used
        self.labels, self.sampler, self.epochs = rarest_labels(labels.cpu()), sampler, epochs

    def __iter__(self) -> Iterator[int]:
        """Return the indices of this process in the current epoch."""
        drawn = self.sampler.draw(self.labels, [self.seed, self.epoch], min(self.epoch / self.epochs, 1.0))
        filled = drawn.repeat(-(-self.total_size // len(drawn)))[: self.total_size]
        return iter(filled[self.rank :: self.num_replicas].tolist())
