"""Softmax cross-entropy, the base of all losses for classes that exclude each other."""

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor
from torch.nn import functional as F

from lt_cb.errors import check_at_least
from lt_cb.losses.base import Loss, LossOptions

NEUTRAL = "0 gives the softmax loss."
IGNORE_NO_INDEX = -(2**62)  # torch's default would skip the wrong target -100 silently


class SoftmaxLoss(Loss):
    r"""Softmax cross-entropy, equation 5 of `Cui et al. 2019 <https://arxiv.org/abs/1901.05555>`_.

    .. math:: L = \frac{1}{B} \sum_i w_{y_i} \Bigl(\log \sum_c e^{z_{ic}} - z_{i y_i}\Bigr)

    A subclass defines ``per_sample``. If it is the cross-entropy of other logits, it defines ``training_logits``
    instead, which is faster.
    """

    def training_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the logits of the cross-entropy, shape (B, C)."""
        return logits

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each sample; targets of shape (B, C) are class probabilities."""
        return -at_targets(self._log_p(logits, targets), targets)

    def _log_p(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.training_logits(logits, targets).log_softmax(1)

    def _reduced(self, logits: Tensor, targets: Tensor) -> Tensor:
        overridden = type(self).per_sample is not SoftmaxLoss.per_sample
        if overridden or targets.ndim == 2 or self.reduction == "none":
            return super()._reduced(logits, targets)
        # one call of torch, whose "mean" is our "weighted_mean"
        class_weights, reduction = self._active_weights(logits), "sum" if self.reduction == "sum" else "mean"
        if class_weights is not None and self.reduction == "mean":
            class_weights, reduction = class_weights / len(targets), "sum"
        logits = self.training_logits(logits, targets)
        return F.cross_entropy(logits, targets, class_weights, ignore_index=IGNORE_NO_INDEX, reduction=reduction)


class PolyLoss(SoftmaxLoss):
    r"""Poly-1 cross-entropy of `Leng et al. 2022 <https://arxiv.org/abs/2204.12511>`_.

    .. math:: L = \frac{1}{B} \sum_i w_{y_i} \bigl(-\log p_{iy} + \epsilon (1 - p_{iy})\bigr)

    Args:
        class_counts, options: see `Loss`.
        epsilon: added to the first coefficient of the expansion of -log p in (1 - p), at least -1; 0 gives
            `SoftmaxLoss`.
    """

    def __init__(self, class_counts: Sequence[int], epsilon: float = 1.0, **options: Unpack[LossOptions]) -> None:
        super().__init__(class_counts, **options)
        check_at_least("epsilon", epsilon, -1, NEUTRAL)
        self.epsilon = epsilon

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return -log p + epsilon (1 - p); for soft targets, p is averaged over the labels."""
        log_p = logits.log_softmax(1)
        return -at_targets(log_p, targets) + self.epsilon * at_targets(1.0 - log_p.exp(), targets)


def at_targets(values: Tensor, targets: Tensor) -> Tensor:
    """Return the value of each sample at its target, shape (B,), for values of shape (B, C).

    Targets of shape (B, C) give the sum over the classes, weighted by the targets; a target of 0 skips any value.
    """
    if targets.ndim == 2:
        return (targets * values.masked_fill(targets == 0, 0.0)).sum(1)  # 0 * inf is NaN
    return values.gather(1, targets[:, None]).squeeze(1)
