"""Sigmoid cross-entropy summed over the classes, and the focal and asymmetric losses built on it."""

import math
from collections.abc import Sequence
from typing import Unpack, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_cb.errors import InputError, check_at_least, check_below_one
from lt_cb.losses.base import Loss, LossOptions, Reduction, WeightOf, one_hot
from lt_cb.losses.weighting import Weighting


class SigmoidLossOptions(LossOptions, total=False):
    """Options of a loss of several labels, in addition to `LossOptions`.

    Attributes:
        weight_of: the part of the loss that a class weight multiplies. ``sample``: all terms of a sample, by the mean
            weight of its known labels, as in Cui et al. 2019. ``label``: both terms of the class, in every sample, as
            ``weight`` of ``torch.nn.BCEWithLogitsLoss``. ``positive``: the term of the class in samples that have the
            label, as ``pos_weight`` of the same torch loss. The last two do not allow ``weighted_mean``.
        num_unlabelled: training images without labels. With weight_of ``sample``, they weigh as a class of so many
            images. 0 means unknown: they have the smallest class weight.
    """

    weight_of: WeightOf
    num_unlabelled: int


class SigmoidLoss(Loss):
    r"""Sigmoid cross-entropy *summed* over classes, eq. 6 of `Cui et al. 2019 <https://arxiv.org/abs/1901.05555>`_.

    .. math:: L = \frac{1}{B} \sum_i w_{y_i} \sum_c \mathrm{softplus}(-z^t_{ic}),
        \quad z^t_{ic} = z_{ic} \text{ if } c = y_i \text{ else } -z_{ic}

    The weight of a sample multiplies all its C terms, unless ``weight_of`` says otherwise. The term of an unknown
    label is left out, and the mean is over all samples. The bias of the last layer starts at -log(C - 1), the logit of
    the prior 1 / C, and is excluded from weight decay.

    A subclass defines ``present`` and, if the two differ by more than the sign of the logit, ``absent``. A subclass
    that defines ``per_sample`` instead only supports ``weight_of='sample'``.

    Args:
        class_counts, weighting, reduction: see `Loss`.
        weight_of, num_unlabelled: see `SigmoidLossOptions`.
    """

    unlabelled_weight: Tensor | None
    multi_label = True

    def __init__(
        self,
        class_counts: Sequence[int],
        weighting: Weighting | None = None,
        weight_of: WeightOf = "sample",
        reduction: Reduction = "mean",
        num_unlabelled: int = 0,
    ) -> None:
        super().__init__(class_counts, weighting, reduction)
        if not isinstance(num_unlabelled, int) or num_unlabelled < 0:
            raise InputError(
                f"num_unlabelled is {num_unlabelled}, but must be a whole number of at least 0: give the number of "
                "training images without labels, or 0 if it is unknown."
            )
        if weight_of not in get_args(WeightOf):
            raise InputError(f"weight_of is '{weight_of}', but must be 'sample', 'label' or 'positive'.")
        if weight_of != "sample" and type(self).per_sample is not SigmoidLoss.per_sample:
            raise InputError(
                f"weight_of is '{weight_of}', but {type(self).__name__} defines per_sample, which only allows "
                "'sample': define present and absent instead."
            )
        if weight_of != "sample" and reduction == "weighted_mean":
            raise InputError(
                f"reduction is 'weighted_mean', but with weight_of '{weight_of}' a sample has no weight to divide by: "
                "choose 'mean', or weight_of 'sample'."
            )
        self.weight_of, self.num_unlabelled = weight_of, num_unlabelled
        weight = None
        if weighting is not None and num_unlabelled:
            weight = weighting.weight_of_more(num_unlabelled, self.class_counts)
        self.register_constant("unlabelled_weight", weight)
        self.prior_bias = -math.log(len(self.class_counts) - 1)

    def weight_without_labels(self, class_weights: Tensor) -> Tensor:
        """Return the weight of a class of ``num_unlabelled`` images, or the smallest class weight if 0."""
        weight = self.unlabelled_weight
        return super().weight_without_labels(class_weights) if weight is None else weight.to(class_weights.dtype)

    def present(self, logits: Tensor) -> Tensor:
        """Return the term of each class as a label that is present, shape (B, C)."""
        return -F.logsigmoid(logits)

    def absent(self, logits: Tensor) -> Tensor:
        """Return the term of each class as a label that is absent, shape (B, C)."""
        return self.present(-logits)

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the terms over the classes, weighted here unless ``weight_of`` is ``sample``."""
        if targets.ndim == 2:
            return self._terms(logits, targets).sum(1)
        if self.weight_of != "sample" or type(self).absent is not SigmoidLoss.absent:
            return self._terms(logits, one_hot(targets, logits)).sum(1)
        sign = torch.full_like(logits, -1.0).scatter(1, targets[:, None], 1.0)  # half the work
        return self.present(sign * logits).sum(1)

    def _terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return t_c present(z_c) + (1 - t_c) absent(z_c), shape (B, C), 0 for an unknown label."""
        known = targets >= 0.0  # neither -1 nor NaN
        logits = logits.where(known, 0.0)  # 0 * NaN is NaN
        share, rest = targets.where(known, 0.0), (1.0 - targets).where(known, 0.0)
        class_weights = self._active_weights(logits)
        if class_weights is not None and self.weight_of != "sample":
            share = share * class_weights
            rest = rest * class_weights if self.weight_of == "label" else rest
        return share * self.present(logits) + rest * self.absent(logits)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of each label, shape (B, C); they need not sum to 1."""
        return self.adjust(logits).sigmoid()


class FocalLoss(SigmoidLoss):
    r"""Focal loss (Lin et al. 2017), equation 7 of `Cui et al. 2019 <https://arxiv.org/abs/1901.05555>`_.

    .. math:: L = \frac{1}{B} \sum_i w_{y_i} \sum_c \sigma(-z^t_{ic})^\gamma\, \mathrm{softplus}(-z^t_{ic})

    This is `SigmoidLoss` with each term scaled by (1 - p_t)^gamma. The gradient flows through the scale, and there is
    no other alpha. Value and gradient are finite for all logits and any gamma.

    Args:
        class_counts, weighting, weight_of, reduction, num_unlabelled: see `SigmoidLoss`.
        gamma: focusing parameter, at least 0; 0 gives `SigmoidLoss`.
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        gamma: float = 1.0,
        weighting: Weighting | None = None,
        weight_of: WeightOf = "sample",
        reduction: Reduction = "mean",
        num_unlabelled: int = 0,
    ) -> None:
        super().__init__(class_counts, weighting, weight_of, reduction, num_unlabelled)
        check_at_least("gamma", gamma, 0, "0 gives the sigmoid loss.")
        self.gamma = gamma

    def present(self, logits: Tensor) -> Tensor:
        """Return (1 - p)^gamma (-log p)."""
        return focal_term(logits, self.gamma)


class AsymmetricLoss(SigmoidLoss):
    r"""Asymmetric loss for several labels of `Ridnik et al. 2021 <https://arxiv.org/abs/2009.14119>`_.

    .. math:: L &= \frac{1}{B} \sum_i w_{y_i} \Bigl(-(1 - p_{iy})^{\gamma_+} \log p_{iy}
        - \sum_{c \ne y} q_{ic}^{\gamma_-} \log(1 - q_{ic})\Bigr) \\
        p &= \sigma(z), \quad q = \max(p - m, 0)

    The loss is summed over classes. The defaults are the paper's. The gradient flows through all factors.

    Args:
        class_counts, options: see `SigmoidLoss`.
        gamma_positive: focusing parameter of present labels, at least 0.
        gamma_negative: focusing parameter of absent labels, at least 0. With margin 0 and equal gammas, the loss is
            `FocalLoss`.
        margin: m, in [0, 1): an absent label of probability below m costs nothing.
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        gamma_positive: float = 0.0,
        gamma_negative: float = 4.0,
        margin: float = 0.05,
        **options: Unpack[SigmoidLossOptions],
    ) -> None:
        super().__init__(class_counts, **options)
        check_at_least("gamma_positive", gamma_positive, 0, "0 is cross-entropy.")
        check_at_least("gamma_negative", gamma_negative, 0, "0 is cross-entropy.")
        check_below_one("margin", margin, "0 spares nothing.")
        self.gamma_positive, self.gamma_negative, self.margin = gamma_positive, gamma_negative, margin

    def present(self, logits: Tensor) -> Tensor:
        """Return (1 - p)^gamma_positive (-log p)."""
        return focal_term(logits, self.gamma_positive)

    def absent(self, logits: Tensor) -> Tensor:
        """Return q^gamma_negative (-log(1 - q))."""
        if not self.margin:
            return focal_term(-logits, self.gamma_negative)
        # tiny instead of 0, whose power has an infinite gradient for exponents below 1
        q = (logits.sigmoid() - self.margin).clamp(min=torch.finfo(logits.dtype).tiny)
        return -((-logits).sigmoid() + self.margin).clamp(max=1.0).log() * q**self.gamma_negative


def focal_term(logits: Tensor, gamma: float) -> Tensor:
    """Return (1 - p)^gamma (-log p) for p = sigmoid(logits), elementwise."""
    cross_entropy = -F.logsigmoid(logits)
    return cross_entropy * (gamma * F.logsigmoid(-logits)).exp() if gamma else cross_entropy
