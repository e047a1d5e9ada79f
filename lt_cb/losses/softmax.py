"""Softmax cross-entropy, the base of all losses whose classes exclude each other."""

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor
from torch.nn import functional as F

from lt_cb.errors import check_at_least
from lt_cb.losses.base import Loss, LossOptions

NEUTRAL = "0 gives the softmax loss."
NO_INDEX = -(2**62)  # an ignore_index that no target has: torch's -100 is out of range here


class SoftmaxLoss(Loss):
    r"""Softmax cross-entropy, with the class-balanced term equation 5 of `Cui et al. 2019`_.

    .. math:: L = \frac{1}{B} \sum_i w_{y_i} \Bigl(\log \sum_c e^{z_{ic}} - z_{i y_i}\Bigr)

    Losses that are the cross-entropy of other logits in training define ``training_logits``.

    .. _Cui et al. 2019: https://arxiv.org/abs/1901.05555
    """

    distorted_by: str | None = None

    def training_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the logits that the cross-entropy is taken of, shape (B, C)."""
        return logits

    def log_p(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the log-probability of each class, were it the true one, shape (B, C)."""
        return self.training_logits(logits, targets).log_softmax(1)

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each sample; targets of shape (B, C) are class probabilities."""
        return -at_targets(self.log_p(logits, targets), targets)

    def _reduced(self, logits: Tensor, targets: Tensor, class_weights: Tensor | None, valid: Tensor | None) -> Tensor:
        overridden = type(self).per_sample is not SoftmaxLoss.per_sample
        if overridden or targets.ndim == 2 or valid is not None or self.reduction == "none":
            return super()._reduced(logits, targets, class_weights, valid)
        # the same in one call of torch's, whose own mean is the weighted one
        reduction = "sum" if self.reduction == "sum" else "mean"
        if class_weights is not None and self.reduction == "mean":
            class_weights, reduction = class_weights / len(targets), "sum"
        logits = self.training_logits(logits, targets)
        return F.cross_entropy(logits, targets, class_weights, ignore_index=NO_INDEX, reduction=reduction)


class PolyLoss(SoftmaxLoss):
    r"""Poly-1 cross-entropy, of `Leng et al. 2022`_.

    .. math:: L = \frac{1}{B} \sum_i w_{y_i} \bigl(-\log p_{iy} + \epsilon (1 - p_{iy})\bigr)

    Args:
        class_counts: training images of each class, shape (C,).
        epsilon: what the first coefficient of the expansion of -log p in (1 - p) is raised by, at least -1; 0 gives
            `SoftmaxLoss`.
        options: see `LossOptions`.

    Raises:
        InputError: if epsilon is below -1 or not finite.

    .. _Leng et al. 2022: https://arxiv.org/abs/2204.12511
    """

    def __init__(self, class_counts: Sequence[int], epsilon: float = 1.0, **options: Unpack[LossOptions]) -> None:
        super().__init__(class_counts, **options)
        check_at_least("epsilon", epsilon, -1, NEUTRAL)
        self.epsilon = epsilon
        self.distorted_by = "its polynomial" if epsilon else None

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return cross-entropy and first term; the p of soft targets is their mean probability."""
        log_p = logits.log_softmax(1)
        return -at_targets(log_p, targets) + self.epsilon * at_targets(1.0 - log_p.exp(), targets)


def at_targets(values: Tensor, targets: Tensor) -> Tensor:
    """Return each sample's value at its target, shape (B,), for values of shape (B, C).

    With targets of shape (B, C) it is the sum over classes, each as strong as its target. An index out of range is an
    error, also -100, which torch's losses pass over without a word.
    """
    if targets.ndim == 2:
        return (targets * values).sum(1)
    return values.gather(1, targets[:, None]).squeeze(1)
