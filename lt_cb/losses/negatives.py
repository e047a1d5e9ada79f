"""Softmax losses that push a rare class down less when another class is true."""

import warnings
from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from lt_cb.errors import InputError, check_at_least
from lt_cb.losses.base import LossOptions, one_hot
from lt_cb.losses.softmax import NEUTRAL, SoftmaxLoss


class EqualizationLoss(SoftmaxLoss):
    r"""Softmax equalization loss of `Tan et al. 2020 <https://arxiv.org/abs/2003.05176>`_, for classification.

    .. math:: L = \frac{1}{B} \sum_i -\log \frac{e^{z_{iy}}}{\sum_c u_{ic} e^{z_{ic}}},
        \quad u_{ic} = 1 - b_{ic} [\pi_c < \lambda] [c \ne y_i], \quad b_{ic} \sim \text{Bernoulli}(\gamma)

    Nothing is left out of the sum outside training mode.

    Args:
        class_counts, options: see `Loss`.
        gamma: probability of leaving out a tail class, in [0, 1]; 0 gives `SoftmaxLoss`.
        threshold: lambda, in [0, 1]: classes with a smaller share of the training images are tail classes.
    """

    tail: Tensor

    def __init__(
        self, class_counts: Sequence[int], gamma: float = 0.9, threshold: float = 0.005, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(class_counts, **options)
        for name, value in (("gamma", gamma), ("threshold", threshold)):
            if not 0.0 <= value <= 1.0:
                raise InputError(f"{name} is {value}, but must be in [0, 1]; {NEUTRAL}")
        self.gamma, self.threshold = gamma, threshold
        counts = torch.tensor(self.class_counts, dtype=torch.float64)
        self.register_buffer("tail", counts < threshold * counts.sum(), persistent=False)
        if gamma > 0 and not self.tail.any():
            share = (counts.min() / counts.sum()).item()
            warnings.warn(
                f"no class has a share below the threshold {threshold} (the rarest has {share:.2g}), so that "
                "EqualizationLoss equals SoftmaxLoss: raise the threshold.",
                stacklevel=2,
            )

    def training_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the logits, with -inf for a class that is left out."""
        if not self.training:
            return logits
        true = (one_hot(targets, logits) if targets.ndim == 1 else targets) > 0
        left_out = (torch.rand_like(logits) < self.gamma) & self.tail & ~true
        return logits.masked_fill(left_out, -torch.inf)


class SeesawLoss(SoftmaxLoss):
    r"""Seesaw loss of `Wang et al. 2021 <https://arxiv.org/abs/2008.10032>`_.

    .. math:: L &= \frac{1}{B} \sum_i -\log \frac{e^{z_{iy}}}{e^{z_{iy}} + \sum_{c \ne y} M_{yc} C_{yc} e^{z_{ic}}} \\
        M_{yc} &= \min\bigl(1, n_c / n_y\bigr)^p, \quad C_{yc} = \max\bigl(1, \sigma_{ic} / \sigma_{iy}\bigr)^q

    sigma is softmax(z), without gradient. n are the class counts of the training set; the paper counts the classes
    during training. mmdetection raises sigma_iy to at least 0.01 in C, unlike the paper, so its loss is smaller for a
    true class of lower probability. The targets must be class indices, because the factors belong to one true class.

    Args:
        class_counts, options: see `Loss`.
        p: exponent of the mitigation M, at least 0. M pushes a rare class down less when a frequent class is true.
        q: exponent of the compensation C, at least 0. C pushes a class with a higher score than the true class down
            more. p = q = 0 gives `SoftmaxLoss`.
    """

    log_counts: Tensor
    soft_targets = False

    def __init__(
        self, class_counts: Sequence[int], p: float = 0.8, q: float = 2.0, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(class_counts, **options)
        check_at_least("p", p, 0, "0 mitigates nothing.")
        check_at_least("q", q, 0, "0 compensates nothing.")
        self.p, self.q = p, q
        self.register_constant("log_counts", self.positive_counts().log())

    def training_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return z + log M + log C; both logarithms are 0 at the true class."""
        scores, log_counts = logits.detach(), self.log_counts.to(logits.dtype)
        mitigation = (log_counts - log_counts.index_select(0, targets)[:, None]).clamp(max=0.0)
        compensation = (scores - scores.gather(1, targets[:, None])).clamp(min=0.0)
        return logits + self.p * mitigation + self.q * compensation
