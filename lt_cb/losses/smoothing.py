"""Softmax losses with smoothed labels."""

import math
from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from lt_cb.errors import check_below_one
from lt_cb.losses.base import LossOptions
from lt_cb.losses.softmax import NEUTRAL, SoftmaxLoss, at_targets


class LabelSmoothingLoss(SoftmaxLoss):
    r"""Label smoothing of `Szegedy et al. 2016 <https://arxiv.org/abs/1512.00567>`_.

    .. math:: L = \frac{1}{B} \sum_i -(1 - \epsilon) \log p_{iy} - \frac{\epsilon}{C} \sum_c \log p_{ic}

    Args:
        class_counts, options: see `Loss`. The weight of the true class multiplies all terms, unlike in
            ``torch.nn.CrossEntropyLoss(label_smoothing=...)``, which weights each term by its own class.
        smoothing: epsilon, in [0, 1); 0 gives `SoftmaxLoss`.
    """

    def __init__(self, class_counts: Sequence[int], smoothing: float = 0.1, **options: Unpack[LossOptions]) -> None:
        super().__init__(class_counts, **options)
        check_below_one("smoothing", smoothing, NEUTRAL)
        self.smoothing = smoothing

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy with smoothed targets."""
        log_p = logits.log_softmax(1)
        return -(1.0 - self.smoothing) * at_targets(log_p, targets) - self.smoothing * log_p.mean(1)


class LabelAwareSmoothingLoss(SoftmaxLoss):
    r"""Label-aware smoothing of `Zhong et al. 2021 <https://arxiv.org/abs/2104.00466>`_ (MiSLAS).

    .. math:: L &= \frac{1}{B} \sum_i -(1 - \epsilon_y) \log p_{iy}
        - \frac{\epsilon_y}{C - 1} \sum_{c \ne y} \log p_{ic} \\
        \epsilon_y &= \epsilon_t + (\epsilon_h - \epsilon_t)
        \sin \frac{\pi (n_y - n_{\min})}{2 (n_{\max} - n_{\min})}

    Head classes are smoothed more: the concave form. The paper uses the loss to retrain the classifier, in the second
    stage. If all class counts are equal, each class has the smoothing of the head. The paper puts epsilon_y / (C - 1)
    on each other class. The authors' code puts epsilon_y / C on every class: multiply head and tail by (C - 1) / C to
    reproduce it.

    Args:
        class_counts, options: see `Loss`.
        head: smoothing of the most frequent class, in [0, 1). The default is the paper's for CIFAR-100 at imbalance
            factor 100.
        tail: smoothing of the rarest class, in [0, 1).
    """

    smoothing: Tensor

    def __init__(
        self, class_counts: Sequence[int], head: float = 0.4, tail: float = 0.1, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(class_counts, **options)
        check_below_one("head", head, "0 smooths nothing.")
        check_below_one("tail", tail, "0 smooths nothing.")
        self.head, self.tail = head, tail
        counts = self.bounded_counts()
        least, most = counts.min(), counts.max()
        rank = (counts - least) / (most - least) if most > least else torch.ones_like(counts)
        smoothing = tail + (head - tail) * (math.pi / 2 * rank).sin()
        self.register_constant("smoothing", smoothing)

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy with smoothed targets; a soft target smooths each of its labels."""
        log_p = logits.log_softmax(1)
        if targets.ndim == 1:
            smoothing = self.smoothing.to(log_p.dtype)[targets]
            true = at_targets(log_p, targets)
            others = (log_p.sum(1) - true) / (log_p.shape[1] - 1)
            return -(1.0 - smoothing) * true - smoothing * others
        smoothing = self.smoothing.to(log_p.dtype)
        spread = targets * smoothing
        spread = (spread.sum(1, keepdim=True) - spread) / (log_p.shape[1] - 1)
        return -at_targets(log_p, targets * (1.0 - smoothing) + spread)
