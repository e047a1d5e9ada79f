"""The three losses of the paper, softmax, sigmoid and focal, and the polynomial one that adds to softmax."""

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from lt_cb.errors import check_at_least
from lt_cb.losses.base import Loss, Reduction
from lt_cb.losses.weighting import Weighting


class SoftmaxLoss(Loss):
    r"""Softmax cross-entropy, with the class-balanced term equation 5 of `Cui et al. 2019`_.

    .. math:: L = \frac{1}{B} \sum_i w_{y_i} \Big(\log \sum_c e^{z_{ic}} - z_{i y_i}\Big)

    .. _Cui et al. 2019: https://arxiv.org/abs/1901.05555
    """

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each sample; targets of shape (B, C) are class probabilities."""
        return -at_targets(logits.log_softmax(1), targets)


class PolyLoss(SoftmaxLoss):
    r"""Poly-1 cross-entropy, of `Leng et al. 2022`_.

    .. math:: L = \frac{1}{B} \sum_i w_{y_i} \big(-\log p_{iy} + \epsilon (1 - p_{iy})\big)

    Args:
        class_counts: training images of each class, shape (C,).
        epsilon: what the first coefficient of the expansion of -log p in (1 - p) is raised by, at least -1; 0 gives
            `SoftmaxLoss`.
        weighting: turns the class counts into class weights; None weights all classes alike.
        reduction: see `Loss`.

    Raises:
        InputError: (a ValueError) if epsilon is below -1 or not finite.

    .. _Leng et al. 2022: https://arxiv.org/abs/2204.12511
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        epsilon: float = 1.0,
        weighting: Weighting | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(class_counts, weighting, reduction)
        check_at_least("epsilon", epsilon, -1, "0 gives the softmax loss.")
        self.epsilon = epsilon

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return cross-entropy and first term; the p of soft targets is their mean probability."""
        log_p = logits.log_softmax(1)
        return -at_targets(log_p, targets) + self.epsilon * at_targets(1.0 - log_p.exp(), targets)


class SigmoidLoss(Loss):
    r"""Sigmoid cross-entropy *summed* over classes, with the class-balanced term equation 6 of `Cui et al. 2019`_.

    .. math:: L = \frac{1}{B} \sum_i w_{y_i} \sum_c \mathrm{softplus}(-z^t_{ic}),
        \quad z^t_{ic} = z_{ic} \text{ if } c = y_i \text{ else } -z_{ic}

    The weight of a sample multiplies all its C terms. The last layer's bias starts at -log(C - 1), the logit of
    the prior 1 / C, and is not decayed.

    .. _Cui et al. 2019: https://arxiv.org/abs/1901.05555
    """

    def __init__(
        self, class_counts: Sequence[int], weighting: Weighting | None = None, reduction: Reduction = "mean"
    ) -> None:
        super().__init__(class_counts, weighting, reduction)
        self.prior_bias = -math.log(len(self.class_counts) - 1)

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over classes of the binary cross-entropies."""
        if targets.ndim == 2:
            return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
        return -F.logsigmoid(signed_logits(logits, targets)).sum(1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return a probability for each class on its own; they need not sum to 1."""
        return self.adjust(logits).sigmoid()


class FocalLoss(SigmoidLoss):
    r"""Focal loss (Lin et al. 2017), with the class-balanced term equation 7 of `Cui et al. 2019`_.

    .. math:: L = \frac{1}{B} \sum_i w_{y_i} \sum_c \sigma(-z^t_{ic})^\gamma\, \mathrm{softplus}(-z^t_{ic})

    It is `SigmoidLoss` with each term scaled by (1 - p_t)^gamma, through which the gradient flows; there is no
    other alpha. The modulator is evaluated as exp(-gamma softplus(z^t)), which neither overflows nor, at
    gamma < 1, has a NaN gradient.

    Args:
        class_counts: training images of each class, shape (C,).
        gamma: focusing parameter, at least 0; 0 gives `SigmoidLoss`.
        weighting: turns the class counts into class weights; None weights all classes alike.
        reduction: see `Loss`.

    .. _Cui et al. 2019: https://arxiv.org/abs/1901.05555
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        gamma: float = 1.0,
        weighting: Weighting | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(class_counts, weighting, reduction)
        check_at_least("gamma", gamma, 0, "0 gives the sigmoid loss.")
        self.gamma = gamma

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over classes of the focal terms."""
        if targets.ndim == 2:
            return (targets * self._terms(logits) + (1.0 - targets) * self._terms(-logits)).sum(1)
        return self._terms(signed_logits(logits, targets)).sum(1)

    def _terms(self, signed: Tensor) -> Tensor:
        # (1 - p_t)^gamma = sigmoid(-z)^gamma, and the cross-entropy of a term is -log sigmoid(z)
        return -F.logsigmoid(signed) * (self.gamma * F.logsigmoid(-signed)).exp()


def at_targets(values: Tensor, targets: Tensor) -> Tensor:
    """Return each sample's value at its target, shape (B,), for values of shape (B, C).

    With targets of shape (B, C) it is the sum over classes, each as strong as its target. An index out of range is an
    error, also -100, which torch's losses pass over without a word.
    """
    if targets.ndim == 2:
        return (targets * values).sum(1)
    return values.gather(1, targets[:, None]).squeeze(1)


def signed_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """Return z for the true class and -z for the others, shape (B, C), for class indices of shape (B,)."""
    index = targets[:, None]  # (B, 1)
    return (-logits).scatter(1, index, logits.gather(1, index))
