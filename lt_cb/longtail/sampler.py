"""Samplers: how often an epoch shows each class (re-sampling)."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed
from torch.utils.data import DistributedSampler

from lt_cb.errors import InputError
from lt_cb.longtail.subset import Labels
from lt_cb.losses import effective_number

Probabilities = npt.NDArray[np.float64]


def rarest_labels(labels: Labels) -> Labels:
    """Return the rarest label of each image, shape (N,), for labels of shape (N, C): 1, 0, or -1 for unknown.

    The first of equally rare labels is taken, and C for an image without labels. Class indices stay as they are.
    """
    if labels.ndim == 1:
        return labels
    positive = labels == 1
    by_rarity = np.argsort(positive.sum(0), kind="stable")
    rarest: Labels = np.where(positive.any(1), by_rarity[positive[:, by_rarity].argmax(1)], labels.shape[1])
    return rarest


class Sampler(ABC):
    """Base class of samplers. A custom sampler defines ``class_shares``, the share of each class in an epoch.

    An epoch has as many samples as there are training images, N. Class c gets N times its share, rounded up or down at
    random. Within a class, images come equally often, up to one. If an image has several labels, the rarest one is its
    class. Images without a label form a class.
    """

    @abstractmethod
    def class_shares(self, counts: Probabilities, progress: float) -> Probabilities:
        """Return the share of each class, up to a common factor.

        Args:
            counts: training images of each class that has images, float64 of shape (C',).
            progress: fraction of the training before the epoch, in [0, 1).
        """

    def draw(self, labels: Labels, seed: Sequence[int], progress: float = 0.0) -> npt.NDArray[np.int64]:
        """Return the samples of an epoch, shuffled: indices into ``labels``, int64 of shape (N,).

        Args:
            labels: class indices, shape (N,), or labels of shape (N, C): 1, 0, or -1 for unknown.
            seed: one or more integers.
            progress: fraction of the training before the epoch, in [0, 1).
        """
        labels = rarest_labels(labels)
        rng = np.random.default_rng(seed)
        order = np.argsort(labels, kind="stable")
        counts = np.unique(labels, return_counts=True)[1]
        shares = self.class_shares(counts.astype(np.float64), progress)
        if shares.shape != counts.shape or not (shares >= 0).all() or not 0 < shares.sum() < np.inf:
            raise InputError(
                f"{type(self).__name__}.class_shares returned {shares}, but must return {len(counts)} shares of at "
                "least 0, not all 0."
            )
        # systematic sampling: class c gets the points k + u in its part of [0, N)
        edges = np.round(np.cumsum(shares) / shares.sum() * len(labels), 6)
        draws = np.diff(np.ceil(edges - rng.random()).astype(np.int64), prepend=0)
        draws[-1] += len(labels) - draws.sum()
        chosen = []
        for members, number in zip(np.split(order, np.cumsum(counts)[:-1]), draws, strict=True):
            whole, rest = divmod(int(number), len(members))
            chosen += [np.tile(members, whole), rng.permutation(members)[:rest]]
        return rng.permutation(np.concatenate(chosen))


class ClassBalancedSampler(Sampler):
    """Show each class equally often (Kang et al. 2020, q = 0)."""

    def class_shares(self, counts: Probabilities, progress: float) -> Probabilities:
        """Return 1."""
        return np.ones_like(counts)


class SquareRootSampler(Sampler):
    """Show classes by the square root of their images (Kang et al. 2020, q = 1/2; Mahajan et al. 2018)."""

    def class_shares(self, counts: Probabilities, progress: float) -> Probabilities:
        """Return sqrt(n)."""
        return np.sqrt(counts)


class ProgressivelyBalancedSampler(Sampler):
    """Move linearly from each image equally often to each class equally often (Kang et al. 2020).

    The last of T epochs has t = (T - 1) / T: the paper's t / T with epochs from 0. The authors' code reaches 1.
    """

    def class_shares(self, counts: Probabilities, progress: float) -> Probabilities:
        """Return (1 - t) n / N + t / C."""
        return np.asarray((1.0 - progress) * counts / counts.sum() + progress / len(counts))


class EffectiveNumberSampler(Sampler):
    """Show images in inverse proportion to the effective number of their class, as class-balanced weights do.

    Args:
        beta: in [0, 1). With 0, each image comes equally often; towards 1, each class.
    """

    def __init__(self, beta: float = 0.9999) -> None:
        effective_number([1], beta)  # checks beta
        self.beta = beta

    def class_shares(self, counts: Probabilities, progress: float) -> Probabilities:
        """Return n / E_n."""
        return np.asarray(counts / effective_number(torch.from_numpy(counts), self.beta).numpy())


class EpochSampler(DistributedSampler[int]):
    """A `Sampler` for a DataLoader in a custom loop or trainer: ``DataLoader(..., sampler=EpochSampler(...))``.

    The draw depends on seed and epoch only. Each process takes every num_replicas-th index of it, and indices of the
    beginning fill up the last round. Call ``set_epoch`` before each epoch; Lightning does.

    Args:
        targets: class indices, integers of shape (N,), or labels of shape (N, C): 1, 0, or -1 for unknown.
        sampler: how often each class is shown.
        seed: seed of the draw, at least 0.
        epochs: epochs of the whole training, for a sampler that changes during the training.
        num_replicas: processes that share the draw; None asks torch.distributed.
        rank: index of this process; None asks torch.distributed.
    """

    def __init__(
        self,
        targets: Sequence[int] | Sequence[Sequence[int]] | Labels | torch.Tensor,
        sampler: Sampler,
        seed: int = 0,
        epochs: int = 1,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        labels = np.asarray(targets)
        least, most = {1: (0, np.inf), 2: (-1, 1)}.get(labels.ndim, (1, 0))  # class indices or labels
        whole = labels.size and np.issubdtype(labels.dtype, np.integer)
        if not whole or labels.min() < least or labels.max() > most:
            raise InputError(
                f"targets are {labels.dtype} of shape {labels.shape}, but must be class indices of shape (N,), N at "
                "least 1, each at least 0, or labels of shape (N, C), each 1, 0, or -1 for unknown."
            )
        if not isinstance(sampler, Sampler):
            raise InputError(f"sampler is {sampler!r}, but must be a Sampler, such as ClassBalancedSampler().")
        if not (distributed.is_available() and distributed.is_initialized()):
            num_replicas, rank = num_replicas or 1, rank or 0
        super().__init__(labels, num_replicas, rank, seed=seed)  # type: ignore[arg-type]  # only its length is used
        self.labels, self.sampler, self.epochs = rarest_labels(labels.astype(np.int64)), sampler, epochs

    def __iter__(self) -> Iterator[int]:
        """Return the indices of this process in the current epoch."""
        drawn = self.sampler.draw(self.labels, [self.seed, self.epoch], min(self.epoch / self.epochs, 1.0))
        return iter(np.resize(drawn, self.total_size)[self.rank :: self.num_replicas].tolist())
