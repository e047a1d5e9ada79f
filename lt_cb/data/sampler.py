"""How often an epoch shows each class: re-sampling, as against re-weighting."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from lt_cb.errors import InputError
from lt_cb.losses import effective_number

Probabilities = npt.NDArray[np.float64]


class Sampler(ABC):
    """The part of an epoch that each class takes. A sampler of your own defines ``class_shares``.

    An epoch has as many samples as there are training images N. Class c takes N times its share of them, rounded up
    or down at random; within a class each image comes equally often, give or take one. With the shares n / N an epoch
    is therefore each image once, shuffled, as without a sampler.
    """

    @abstractmethod
    def class_shares(self, counts: Probabilities, progress: float) -> Probabilities:
        """Return the shares up to a common factor.

        Args:
            counts: training images of each class that has any, float64 of shape (C',).
            progress: fraction of the training that is done before the epoch, in [0, 1).
        """

    def draw(self, labels: npt.NDArray[np.int64], seed: Sequence[int], progress: float = 0.0) -> npt.NDArray[np.int64]:
        """Return the samples of an epoch, shuffled: indices into ``labels``, int64 of its shape (N,).

        Args:
            labels: class of each training image, int64 of shape (N,).
            seed: one or more integers that the draw depends on alone.
            progress: fraction of the training that is done, in [0, 1).
        """
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
