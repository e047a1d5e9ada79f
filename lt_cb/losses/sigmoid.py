"""Sigmoid cross-entropy summed over classes, and the focal and asymmetric losses made of it."""

import math
from collections.abc import Sequence
from typing import Unpack, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_cb.errors import InputError, check_at_least, check_below_one
from lt_cb.losses.base import Loss, ReductionOptions, WeightOf, one_hot
from lt_cb.losses.weighting import Weighting


class SigmoidOptions(ReductionOptions, total=False):
    """Options of the losses of several labels, with those of `ReductionOptions`.

    Attributes:
        weight_of: what a class weight multiplies. ``sample``: all terms of a sample, by the mean weight of its known
            labels, as in Cui et al. 2019; ``label``: both terms of its class, in every sample, as the ``weight`` of
            ``torch.nn.BCEWithLogitsLoss``; ``positive``: its class's term in the samples that have the label, as
            ``pos_weight`` there.
    """

    weight_of: WeightOf


class SigmoidLossOptions(SigmoidOptions, total=False):
    """Options of a loss of several labels, with those of `SigmoidOptions`.

    Attributes:
        weighting: turns the class counts into class weights; None weights all classes alike.
    """

    weighting: Weighting | None


class SigmoidLoss(Loss):
    r"""Sigmoid cross-entropy *summed* over classes, with the class-balanced term equation 6 of `Cui et al. 2019`_.

    .. math:: L = \frac{1}{B} \sum_i w_{y_i} \sum_c \mathrm{softplus}(-z^t_{ic}),
        \quad z^t_{ic} = z_{ic} \text{ if } c = y_i \text{ else } -z_{ic}

    The weight of a sample multiplies all its C terms, unless ``weight_of`` says otherwise. The last layer's bias starts
    at -log(C - 1), the logit of the prior 1 / C, and is not decayed. The term of a label that is not known is left out;
    the mean is over all samples. A loss of your own derives from it and defines ``parts``.

    Args:
        class_counts: training images of each class, shape (C,).
        weighting: turns the class counts into class weights; None weights all classes alike.
        weight_of: what a class weight multiplies, ``sample``, ``label`` or ``positive``, see `SigmoidOptions`.
        options: see `ReductionOptions`.

    Raises:
        InputError: if there is no such ``weight_of``, or no weight of a sample for the reduction ``weighted_mean``.

    .. _Cui et al. 2019: https://arxiv.org/abs/1901.05555
    """

    gamma = 0.0
    multi_label = True
    distorted_by: str | None = None

    def __init__(
        self,
        class_counts: Sequence[int],
        weighting: Weighting | None = None,
        weight_of: WeightOf = "sample",
        **options: Unpack[ReductionOptions],
    ) -> None:
        super().__init__(class_counts, weighting, **options)
        if weight_of not in get_args(WeightOf):
            raise InputError(f"weight_of is '{weight_of}', but must be 'sample', 'label' or 'positive'.")
        if weight_of != "sample" and type(self).per_sample is not SigmoidLoss.per_sample:
            raise InputError(
                f"weight_of is '{weight_of}', but {type(self).__name__} defines per_sample, which knows of weights of "
                "samples alone: define parts in place of it, or choose 'sample'."
            )
        if weight_of != "sample" and self.reduction == "weighted_mean":
            raise InputError(
                f"reduction is 'weighted_mean', but with weight_of '{weight_of}' a sample has no weight to divide by: "
                "choose 'mean', or weight_of 'sample'."
            )
        self.weight_of = weight_of
        self.prior_bias = -math.log(len(self.class_counts) - 1)
        self.signed = type(self).parts is SigmoidLoss.parts  # the negative part is the positive one of minus the logit

    def parts(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each class where it is a label and where it is not, both of shape (B, C)."""
        return binary_terms(logits, self.gamma), binary_terms(-logits, self.gamma)

    def terms(self, logits: Tensor, targets: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Return the loss of each class of each sample, (B, C), 0 where the label is not known.

        Targets are of the shape of the logits; class weights are for the terms, not for the samples.
        """
        known = targets >= 0.0  # neither is -1 nor NaN
        positive, negative = self.parts(logits.where(known, 0.0))  # as 0 * NaN is NaN
        present, absent = targets.where(known, 0.0), (1.0 - targets).where(known, 0.0)
        if class_weights is not None:
            present = present * class_weights
            absent = absent * class_weights if self.weight_of == "label" else absent
        return present * positive + absent * negative

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over classes of the binary terms."""
        if targets.ndim == 2:
            return self.terms(logits, targets).sum(1)
        if not self.signed:
            return self.terms(logits, one_hot(targets, logits)).sum(1)
        sign = torch.full_like(logits, -1.0).scatter(1, targets[:, None], 1.0)
        return binary_terms(sign * logits, self.gamma).sum(1)

    def _losses(self, logits: Tensor, targets: Tensor, class_weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if class_weights is None or self.weight_of == "sample":
            return super()._losses(logits, targets, class_weights)
        targets = one_hot(targets, logits) if targets.ndim == 1 else targets
        return self.terms(logits, targets, class_weights).sum(1), None

    def weigh(self, targets: Tensor, class_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and targets as `Loss` does, but leave the targets that do not sum to 1 as they are.

        Those (within 1 %) are labels mixed from several images; others are several labels of one image, whose terms
        belong to no label alone, so that all of them have the mean weight of the labels. Those that are not known
        count for nothing, and stay what they are.
        """
        if targets.ndim == 1:
            return super().weigh(targets, class_weights)
        known = targets >= 0.0
        labels = targets.where(known, 0.0)
        weights, mixed = super().weigh(labels, class_weights)
        return weights, mixed.where(known & ((labels.sum(1) - 1.0).abs() < 0.01)[:, None], targets)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return a probability for each class on its own; they need not sum to 1."""
        return self.adjust(logits).sigmoid()

    def log_posterior(self, logits: Tensor) -> Tensor:
        r"""Return the logarithm of each class's own probability, taken for one of classes that exclude each other.

        Own odds cannot be shifted one by one: another prior also changes the mixture of the images that are not of the
        class. But with one class an image the C binary posteriors are the posterior of the classes, to be weighted anew
        and normalised. At the minimum of focal loss sigma(z) is no posterior; the log-odds of that are

        .. math:: \gamma z + \log(p - \gamma (1 - p) \log(1 - p)) - \log(1 - p - \gamma p \log p), \quad p = \sigma(z)

        as its derivative says (`Charoenphakdee et al. 2021`_ for softmax). Weights of the positive terms alone multiply
        the odds, and are taken off them before they are put on the posterior.

        .. _Charoenphakdee et al. 2021: https://arxiv.org/abs/2011.09172
        """
        logits = self.adjust(logits)
        z = logits.clamp(-60.0, 60.0)  # where both p are normal float32; the odds are linear from there on
        p, rest = z.sigmoid(), (-z).sigmoid()
        up, down = p - self.gamma * rest * F.logsigmoid(-z), rest - self.gamma * p * F.logsigmoid(z)
        odds = self.gamma * z + up.log() - down.log() + (1.0 + self.gamma) * (logits - z)  # their logarithm
        if self.class_weights is None or self.weight_of != "positive":
            return F.logsigmoid(odds)
        log_weights = self.class_weights.to(odds.dtype).log()
        return log_weights + F.logsigmoid(odds - log_weights)


class FocalLoss(SigmoidLoss):
    r"""Focal loss (Lin et al. 2017), with the class-balanced term equation 7 of `Cui et al. 2019`_.

    .. math:: L = \frac{1}{B} \sum_i w_{y_i} \sum_c \sigma(-z^t_{ic})^\gamma\, \mathrm{softplus}(-z^t_{ic})

    It is `SigmoidLoss` with each term scaled by (1 - p_t)^gamma, through which the gradient flows; there is no
    other alpha. Value and gradient are evaluated without overflow or, at gamma < 1, a NaN.

    Args:
        class_counts: training images of each class, shape (C,).
        gamma: focusing parameter, at least 0; 0 gives `SigmoidLoss`.
        weighting: turns the class counts into class weights; None weights all classes alike.
        options: see `SigmoidOptions`.

    .. _Cui et al. 2019: https://arxiv.org/abs/1901.05555
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        gamma: float = 1.0,
        weighting: Weighting | None = None,
        **options: Unpack[SigmoidOptions],
    ) -> None:
        super().__init__(class_counts, weighting, **options)
        check_at_least("gamma", gamma, 0, "0 gives the sigmoid loss.")
        self.gamma = gamma


class AsymmetricLoss(SigmoidLoss):
    r"""Asymmetric loss for several labels, of `Ridnik et al. 2021`_, summed over classes.

    .. math:: L &= \frac{1}{B} \sum_i w_{y_i} \Bigl(-(1 - p_{iy})^{\gamma_+} \log p_{iy}
        - \sum_{c \ne y} q_{ic}^{\gamma_-} \log(1 - q_{ic})\Bigr) \\
        p &= \sigma(z), \quad q = \max(p - m, 0)

    The defaults are the paper's; the gradient flows through all of it.

    Args:
        class_counts: training images of each class, shape (C,).
        gamma_positive: focusing of the labels a sample has, at least 0.
        gamma_negative: focusing of those it has not, at least 0. With margin 0 and both alike it is `FocalLoss`.
        margin: m, in [0, 1): probability below which a label that a sample has not costs nothing.
        options: see `SigmoidLossOptions`.

    Raises:
        InputError: if a gamma is negative or not finite, or the margin is outside [0, 1).

    .. _Ridnik et al. 2021: https://arxiv.org/abs/2009.14119
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
        self.distorted_by = "its asymmetry" if gamma_positive or gamma_negative or margin else None

    def parts(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the asymmetric terms."""
        positive = binary_terms(logits, self.gamma_positive)
        if self.margin:
            # not 0, whose power has an infinite gradient for exponents below 1
            p = (logits.sigmoid() - self.margin).clamp(min=torch.finfo(logits.dtype).tiny)
            negative = -((-logits).sigmoid() + self.margin).clamp(max=1.0).log() * p**self.gamma_negative
        else:
            negative = binary_terms(-logits, self.gamma_negative)
        return positive, negative


def binary_terms(signed: Tensor, gamma: float) -> Tensor:
    """Return (1 - p)^gamma (-log p) for p = sigmoid(signed), element by element."""
    cross_entropy = -F.logsigmoid(signed)
    return cross_entropy * (gamma * F.logsigmoid(-signed)).exp() if gamma else cross_entropy
