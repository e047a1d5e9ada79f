"""Class weights from class counts: effective number, inverse frequency, inverse square root."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lt_cb.errors import InputError, check_below_one

Normalization = Literal["classes", "samples", "none"]


def _as_counts(class_counts: Sequence[int] | Tensor) -> Tensor:
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    if counts.ndim != 1 or counts.numel() == 0:
        raise InputError(f"class_counts has shape {tuple(counts.shape)}, but must be a flat list of C counts.")
    if not torch.isfinite(counts).all() or (counts < 0).any():
        raise InputError(f"class_counts must be finite and at least 0, but the smallest is {counts.min().item():g}.")
    return counts


def with_images(class_counts: Sequence[int] | Tensor) -> Tensor:
    """Return a mask of the classes with images, shape (C,); all classes if none has images."""
    existing = torch.as_tensor(class_counts) > 0
    return existing | ~existing.any()


def _check_beta(beta: float) -> None:
    check_below_one("beta", beta, "0 weights all classes equally, and the weighting InverseFrequency is the limit 1.")


def effective_number(class_counts: Sequence[int] | Tensor, beta: float) -> Tensor:
    r"""Effective number of samples of each class, equation 2 of `Cui et al. 2019 <https://arxiv.org/abs/1901.05555>`_.

    .. math:: E_n = \frac{1 - \beta^n}{1 - \beta}

    It grows from 1 (beta = 0) to n (beta -> 1). The result has float64 precision for beta up to 1 - 1e-12 and counts
    up to 1e9, because both differences are computed without cancellation.

    Args:
        class_counts: training images of each class, shape (C,), each at least 0.
        beta: in [0, 1).

    Returns:
        float64 tensor of shape (C,); 0 for a class without images.

    Raises:
        InputError: if beta is outside [0, 1) or a count is negative.
    """
    _check_beta(beta)
    counts = _as_counts(class_counts)
    if beta == 0.0:
        return (counts > 0).double()
    log_beta = torch.log1p(torch.tensor(beta - 1.0, dtype=torch.float64))
    return -torch.expm1(counts * log_beta) / (1.0 - beta)


def class_weights(class_counts: Sequence[int] | Tensor, beta: float) -> Tensor:
    """Class-balanced weights, `EffectiveNumber` with its default normalisation.

    Args:
        class_counts: training images of each class, shape (C,), each at least 0.
        beta: in [0, 1); 0 gives all ones.

    Returns:
        float64 tensor of shape (C,). The weights of the classes with images sum to the number of these classes; a
        class without images has the weight of a class with one image.
    """
    return EffectiveNumber(beta)(class_counts)


def suggest_beta(class_counts: Sequence[int] | Tensor) -> float:
    """Return 1 - 1 / n for the largest class count n: a beta in [0, 1) to start a search from.

    Its weights are within a factor of 0.63 (1 - 1 / e) of inverse frequency on any data. The paper searches over 0.9,
    0.99, 0.999 and 0.9999, which is better. Its best values are 0.9999 on long-tailed CIFAR-10 (suggested: 0.9998) and
    0.9 to 0.999 on CIFAR-100 (suggested: 0.998).

    Args:
        class_counts: training images of each class, shape (C,), each at least 0, not all 0.
    """
    most = _as_counts(class_counts).max().item()
    if most < 1:
        raise InputError("all class_counts are 0, but beta needs training images: check the data.")
    return 1.0 - 1.0 / most


class Weighting(ABC):
    """Base class of the weightings. A custom weighting defines ``raw_weights``.

    Args:
        normalization: the common factor of the weights. ``classes``: the weights of the classes with images sum to the
            number of these classes (Cui et al. 2019; LDAM-DRW). ``samples``: the mean weight of a training image is
            1, so a weighting does not change the effective learning rate. ``none``: no factor.
    """

    normalization: Normalization = "classes"

    def __init__(self, normalization: Normalization = "classes") -> None:
        if normalization not in get_args(Normalization):
            raise InputError(f"normalization is '{normalization}', but must be 'classes', 'samples' or 'none'.")
        self.normalization = normalization

    @abstractmethod
    def raw_weights(self, counts: Tensor) -> Tensor:
        """Return weights up to a common factor, shape (C,); ``counts`` is float64 of shape (C,), each at least 1."""

    def __call__(self, class_counts: Sequence[int] | Tensor) -> Tensor:
        """Return the class weights, float64 of shape (C,).

        A class without images is left out of the normalisation and gets the weight of a class with one image, so that
        every weight is finite. ``samples`` needs at least one image.
        """
        counts = _as_counts(class_counts)
        weights = self.raw_weights(counts.clamp(min=1.0))
        if self.normalization == "classes":
            existing = with_images(counts)
            return weights * (existing.sum() / weights.where(existing, 0.0).sum())
        if self.normalization == "samples":
            if counts.sum() == 0:
                raise InputError("all class_counts are 0, but normalization 'samples' needs training images.")
            return weights * (counts.sum() / (counts @ weights))
        return weights

    def weight_of_more(self, count: int, class_counts: Sequence[int] | Tensor) -> Tensor:
        """Return the weight, a scalar, of a further class of ``count`` images, with the factor of ``class_counts``."""
        counts = _as_counts([*class_counts, count]).clamp(min=1.0)
        raw, weights = self.raw_weights(counts), self(class_counts)
        return weights[0] * (raw[-1] / raw[0])


class EffectiveNumber(Weighting):
    """Weights 1 / E_n, the inverse effective number of samples (Cui et al. 2019, equation 4).

    Args:
        beta: in [0, 1). 0 weights all classes equally; the limit 1 is inverse frequency.
        normalization: see `Weighting`.
    """

    def __init__(self, beta: float = 0.9999, normalization: Normalization = "classes") -> None:
        super().__init__(normalization)
        _check_beta(beta)
        self.beta = beta

    def raw_weights(self, counts: Tensor) -> Tensor:
        """Return 1 / E_n."""
        return 1.0 / effective_number(counts, self.beta)


class InverseFrequency(Weighting):
    """Weights 1 / n: the limit of `EffectiveNumber` for beta -> 1."""

    def raw_weights(self, counts: Tensor) -> Tensor:
        """Return 1 / n."""
        return 1.0 / counts


class SquareRootInverse(Weighting):
    """Weights 1 / sqrt(n): the smoothed inverse frequency of Mahajan et al. 2018."""

    def raw_weights(self, counts: Tensor) -> Tensor:
        """Return 1 / sqrt(n)."""
        return counts.rsqrt()
