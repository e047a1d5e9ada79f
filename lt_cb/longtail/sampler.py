"""How often an epoch shows each class: re-sampling, as against re-weighting."""

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
    """Return for each image the rarest of its labels, so that one class stands for it.

    Args:
        labels: 1, 0, or -1 for unknown, integers of shape (N, C). Class indices of shape (N,) are returned as they are.

    Returns:
        The label that the fewest of the images have, the first of equals, and C without any: integers of shape (N,).
    """
    if labels.ndim == 1:
        return labels
    positive = labels == 1
    by_rarity = np.argsort(positive.sum(0), kind="stable")
    rarest: Labels = np.where(positive.any(1), by_rarity[positive[:, by_rarity].argmax(1)], labels.shape[1])
    return rarest


class Sampler(ABC):
    """The part of an epoch that each class takes. A sampler of your own defines ``class_shares``.

    An epoch has as many samples as there are training images N. Class c takes N times its share of them, rounded up
    or down at random; within a class each image comes equally often, give or take one. With the shares n / N an epoch
    is therefore each image once, shuffled, as without a sampler.

    An image of several labels is one of the rarest of them; those without a label are a class of their own.
    """

    @abstractmethod
    def class_shares(self, counts: Probabilities, progress: float) -> Probabilities:
        """Return the shares up to a common factor.

        Args:
            counts: training images of each class that has any, float64 of shape (C',).
            progress: fraction of the training that is done before the epoch, in [0, 1).
        """

    def draw(self, labels: Labels, seed: Sequence[int], progress: float = 0.0) -> npt.NDArray[np.int64]:
        """Return the samples of an epoch, shuffled: indices into ``labels``, int64 of shape (N,).

        Args:
            labels: class of each training image, integers of shape (N,), or its labels: 1, 0, or -1 for unknown, of
                shape (N, C).
            seed: one or more integers that the draw depends on alone.
            progress: fraction of the training that is done, in [0, 1).
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
        # systematic sampling: class c gets the points k + u that its part of [0, N) holds
        edges = np.round(np.cumsum(shares) / shares.sum() * len(labels), 6)
        draws = np.diff(np.ceil(edges - rng.random()).astype(np.int64), prepend=0)
        draws[-1] += len(labels) - draws.sum()
        chosen = []
        for members, number in zip(np.split(order, np.cumsum(counts)[:-1]), draws, strict=True):
            whole, rest = divmod(int(number), len(members))
            chosen += [np.tile(members, whole), rng.permutation(members)[:rest]]
        return rng.permutation(np.concatenate(chosen))


class ClassBalancedSampler(Sampler):
    """Each class equally often (Kang et al. 2020, q = 0)."""

    def class_shares(self, counts: Probabilities, progress: float) -> Probabilities:
        """Return 1."""
        return np.ones_like(counts)


class SquareRootSampler(Sampler):
    """Each class in proportion to the square root of its images (Kang et al. 2020, q = 1/2; Mahajan et al. 2018)."""

    def class_shares(self, counts: Probabilities, progress: float) -> Probabilities:
        """Return sqrt(n)."""
        return np.sqrt(counts)


class ProgressivelyBalancedSampler(Sampler):
    """From each image equally often to each class equally often, linearly by epoch (Kang et al. 2020).

    The last of T epochs is at t = (T - 1) / T, as the paper's t / T with epochs from 0; the authors' code reaches 1.
    """

    def class_shares(self, counts: Probabilities, progress: float) -> Probabilities:
        """Return (1 - t) n / N + t / C."""
        shares: Probabilities = (1.0 - progress) * counts / counts.sum() + progress / len(counts)
        return shares


class EffectiveNumberSampler(Sampler):
    """Each image in inverse proportion to the effective number of its class: class-balanced weights as sampling.

    Args:
        beta: in [0, 1). 0 shows each image equally often, towards 1 each class.

    Raises:
        InputError: if beta is outside [0, 1).
    """

    def __init__(self, beta: float = 0.9999) -> None:
        effective_number([1], beta)  # refuses a beta that is out of range
        self.beta = beta

    def class_shares(self, counts: Probabilities, progress: float) -> Probabilities:
        """Return n / E_n."""
        shares: Probabilities = counts / effective_number(torch.from_numpy(counts), self.beta).numpy()
        return shares


class EpochSampler(DistributedSampler[int]):
    """The draw of a `Sampler` for a DataLoader in a loop or trainer of your own: ``DataLoader(..., sampler=this)``.

    Each process takes every world_size-th index of the draw, which depends on seed and epoch alone; indices of the
    beginning fill up the last round. Call ``set_epoch`` before each epoch, as for torch's ``DistributedSampler``;
    Lightning does so by itself, and leaves this sampler in its place.

    Args:
        targets: class indices of the data set, integers of shape (N,), or labels, of shape (N, C): 1, 0, or -1 for
            unknown.
        sampler: how often each class is shown.
        seed: of the draw, at least 0.
        epochs: of the whole training, for a sampler that changes with its progress.
        num_replicas: processes that share the draw; those of torch.distributed by default.
        rank: which of them this is, likewise.

    Raises:
        InputError: if the targets are neither, or the sampler is none.
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
        whole = labels.size and np.issubdtype(labels.dtype, np.integer)
        if not whole or not ((labels.ndim == 1 and labels.min() >= 0) or (labels.ndim == 2 and abs(labels).max() <= 1)):
            raise InputError(
                f"targets are {labels.dtype} of shape {labels.shape}, but must be class indices of shape (N,), N at "
                "least 1, each at least 0, or labels of shape (N, C), each 1, 0, or -1 for unknown."
            )
        if not isinstance(sampler, Sampler):
            raise InputError(f"sampler is {sampler!r}, but must be a Sampler, as ClassBalancedSampler().")
        together = distributed.is_available() and distributed.is_initialized()
        super().__init__(
            labels,  # type: ignore[arg-type]  # of which it asks the length
            (distributed.get_world_size() if together else 1) if num_replicas is None else num_replicas,
            (distributed.get_rank() if together else 0) if rank is None else rank,
            seed=seed,
        )
        self.labels, self.sampler, self.epochs = rarest_labels(labels.astype(np.int64)), sampler, epochs

    def __iter__(self) -> Iterator[int]:
        """Return the indices of this process in the current epoch."""
        drawn = self.sampler.draw(self.labels, [self.seed, self.epoch], min(self.epoch / self.epochs, 1.0))
        return iter(np.resize(drawn, self.total_size)[self.rank :: self.num_replicas].tolist())
