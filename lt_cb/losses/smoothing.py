"""Softmax losses whose target is spread over the classes."""

import math
from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from lt_cb.errors import check_below_one
from lt_cb.losses.base import LossOptions
from lt_cb.losses.softmax import NEUTRAL, SoftmaxLoss, at_targets

SMOOTHED = "its smoothed targets, which hide how improbable a class is"


class LabelSmoothingLoss(SoftmaxLoss):
    r"""Softmax cross-entropy with label smoothing, of `Szegedy et al. 2016`_, as ``torch.nn.CrossEntropyLoss`` has it.

    .. math:: L = \frac{1}{B} \sum_i -(1 - \epsilon) \log p_{iy} - \frac{\epsilon}{C} \sum_c \log p_{ic}

    Args:
        class_counts: training images of each class, shape (C,).
        smoothing: epsilon, in [0, 1); 0 gives `SoftmaxLoss`.
        options: see `LossOptions`. The weight of a sample is that of its class, and multiplies all terms, where torch
            weights each smoothed term by its own class.

    Raises:
        InputError: if smoothing is outside [0, 1).

    .. _Szegedy et al. 2016: https://arxiv.org/abs/1512.00567
    """

    def __init__(self, class_counts: Sequence[int], smoothing: float = 0.1, **options: Unpack[LossOptions]) -> None:
        super().__init__(class_counts, **options)
        check_below_one("smoothing", smoothing, NEUTRAL)
        self.smoothing = smoothing
        self.distorted_by = SMOOTHED if smoothing else None

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy with the smoothed target."""
        log_p = logits.log_softmax(1)
        return -(1.0 - self.smoothing) * at_targets(log_p, targets) - self.smoothing * log_p.mean(1)


class LabelAwareSmoothingLoss(SoftmaxLoss):
    r"""Label-aware smoothing, of `Zhong et al. 2021`_ (MiSLAS), concave: head classes are smoothed more.

    .. math:: L &= \frac{1}{B} \sum_i -(1 - \epsilon_y) \log p_{iy}
        - \frac{\epsilon_y}{C - 1} \sum_{c \ne y} \log p_{ic} \\
        \epsilon_y &= \epsilon_t + (\epsilon_h - \epsilon_t)
        \sin \frac{\pi (n_y - n_{\min})}{2 (n_{\max} - n_{\min})}

    In the paper it is for the second stage, when the classifier is trained anew. If all classes have as many images,
    each has the smoothing of the head. The authors' code puts epsilon_y / C on all classes, the true one too, instead
    of the paper's epsilon_y / (C - 1) on the others: it equals this with head and tail times (C - 1) / C.

    Args:
        class_counts: training images of each class, shape (C,).
        head: smoothing of the most frequent class, in [0, 1). The paper's 0.4 is for CIFAR-100 at imbalance factor 100.
        tail: smoothing of the rarest class, in [0, 1).
        options: see `LossOptions`.

    Raises:
        InputError: if head or tail is outside [0, 1).

    .. _Zhong et al. 2021: https://arxiv.org/abs/2104.00466
    """

    smoothing: Tensor

    def __init__(
        self, class_counts: Sequence[int], head: float = 0.4, tail: float = 0.1, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(class_counts, **options)
        check_below_one("head", head, "0 smooths nothing.")
        check_below_one("tail", tail, "0 smooths nothing.")
        self.head, self.tail = head, tail
        self.distorted_by = SMOOTHED if head or tail else None
        counts = self.bounded_counts()
        least, most = counts.min(), counts.max()
        rank = (counts - least) / (most - least) if most > least else torch.ones_like(counts)
        smoothing = tail + (head - tail) * (math.pi / 2 * rank).sin()
        self.register_constant("smoothing", smoothing)

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy with the smoothed target; soft targets smooth each class by its share."""
        log_p = logits.log_softmax(1)
        if targets.ndim == 1:
            smoothing = self.smoothing.to(log_p.dtype)[targets]
            true = at_targets(log_p, targets)
            others = (log_p.sum(1) - true) / (log_p.shape[1] - 1)
            return -(1.0 - smoothing) * true - smoothing * others
        constants = self.smoothing.to(log_p.dtype)
        spread = targets * constants
        spread = (spread.sum(1, keepdim=True) - spread) / (log_p.shape[1] - 1)
        return -at_targets(log_p, targets * (1.0 - constants) + spread)
