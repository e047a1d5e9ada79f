"""The three losses of the paper, softmax, sigmoid and focal, and those that add to them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_cb.errors import check_at_least, check_below_one
from lt_cb.losses.base import Loss, Reduction
from lt_cb.losses.weighting import Weighting

NEUTRAL = "0 gives the softmax loss."
NO_INDEX = -(2**62)  # an ignore_index that no target has


class SoftmaxLoss(Loss):
    r"""Softmax cross-entropy, with the class-balanced term equation 5 of `Cui et al. 2019`_.

    .. math:: L = \frac{1}{B} \sum_i w_{y_i} \Big(\log \sum_c e^{z_{ic}} - z_{i y_i}\Big)

    Losses that are the cross-entropy of other logits in training define ``training_logits``.

    .. _Cui et al. 2019: https://arxiv.org/abs/1901.05555
    """

    def training_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the logits that the cross-entropy is taken of, shape (B, C)."""
        return logits

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each sample; targets of shape (B, C) are class probabilities."""
        return -at_targets(self.training_logits(logits, targets).log_softmax(1), targets)

    def _reduced(self, logits: Tensor, targets: Tensor, class_weights: Tensor | None, valid: Tensor | None) -> Tensor:
        own = type(self).per_sample is not SoftmaxLoss.per_sample
        if own or targets.ndim == 2 or valid is not None or self.reduction == "none":
            return super()._reduced(logits, targets, class_weights, valid)
        # the same in one call of torch's, whose own mean is the weighted one
        reduction = "sum" if self.reduction == "sum" else "mean"
        if class_weights is not None and self.reduction == "mean":
            class_weights, reduction = class_weights / len(targets), "sum"
        logits = self.training_logits(logits, targets)
        return F.cross_entropy(logits, targets, class_weights, ignore_index=NO_INDEX, reduction=reduction)


class PolyLoss(SoftmaxLoss):
    r"""Poly-1 cross-entropy, of `Leng et al. 2022`_.

    .. math:: L = \frac{1}{B} \sum_i w_{y_i} \big(-\log p_{iy} + \epsilon (1 - p_{iy})\big)

    Args:
        class_counts: training images of each class, shape (C,).
        epsilon: what the first coefficient of the expansion of -log p in (1 - p) is raised by, at least -1; 0 gives
            `SoftmaxLoss`.
        weighting: turns the class counts into class weights; None weights all classes alike.
        reduction: see `Loss`.
        ignore_index: see `Loss`.

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
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(class_counts, weighting, reduction, ignore_index)
        check_at_least("epsilon", epsilon, -1, NEUTRAL)
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

    gamma = 0.0

    def __init__(
        self,
        class_counts: Sequence[int],
        weighting: Weighting | None = None,
        reduction: Reduction = "mean",
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(class_counts, weighting, reduction, ignore_index)
        self.prior_bias = -math.log(len(self.class_counts) - 1)

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over classes of the binary terms."""
        if targets.ndim == 1:
            return binary_losses(logits, targets, self.gamma)
        positive, negative = binary_terms(logits, self.gamma), binary_terms(-logits, self.gamma)
        return (targets * positive + (1.0 - targets) * negative).sum(1)

    def _reduced(self, logits: Tensor, targets: Tensor, class_weights: Tensor | None, valid: Tensor | None) -> Tensor:
        own = type(self).per_sample is not SigmoidLoss.per_sample
        if own or functorch() or targets.ndim == 2 or not len(targets) or self.reduction == "none":
            return super()._reduced(logits, targets, class_weights, valid)
        factors = self._factors(logits, targets, class_weights, valid)
        loss: Tensor = _BinarySum.apply(logits, targets, factors, self.gamma)
        return loss

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return a probability for each class on its own; they need not sum to 1."""
        return self.adjust(logits).sigmoid()


class FocalLoss(SigmoidLoss):
    r"""Focal loss (Lin et al. 2017), with the class-balanced term equation 7 of `Cui et al. 2019`_.

    .. math:: L = \frac{1}{B} \sum_i w_{y_i} \sum_c \sigma(-z^t_{ic})^\gamma\, \mathrm{softplus}(-z^t_{ic})

    It is `SigmoidLoss` with each term scaled by (1 - p_t)^gamma, through which the gradient flows; there is no
    other alpha. Value and gradient are evaluated without overflow or, at gamma < 1, a NaN.

    Args:
        class_counts: training images of each class, shape (C,).
        gamma: focusing parameter, at least 0; 0 gives `SigmoidLoss`.
        weighting: turns the class counts into class weights; None weights all classes alike.
        reduction: see `Loss`.
        ignore_index: see `Loss`.

    .. _Cui et al. 2019: https://arxiv.org/abs/1901.05555
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        gamma: float = 1.0,
        weighting: Weighting | None = None,
        reduction: Reduction = "mean",
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(class_counts, weighting, reduction, ignore_index)
        check_at_least("gamma", gamma, 0, "0 gives the sigmoid loss.")
        self.gamma = gamma


class AsymmetricLoss(SigmoidLoss):
    r"""Asymmetric loss for several labels, of `Ridnik et al. 2021`_, summed over classes.

    .. math:: L = \frac{1}{B} \sum_i w_{y_i} \Big(-(1 - p_{iy})^{\gamma_+} \log p_{iy}
        - \sum_{c \ne y} \tilde p_{ic}^{\,\gamma_-} \log(1 - \tilde p_{ic})\Big),
        \quad p = \sigma(z), \quad \tilde p = \max(p - m, 0)

    The defaults are the paper's; the gradient flows through all of it.

    Args:
        class_counts: training images of each class, shape (C,).
        gamma_positive: focusing of the labels a sample has, at least 0.
        gamma_negative: focusing of those it has not, at least 0. With margin 0 and both alike it is `FocalLoss`.
        margin: m, in [0, 1): probability below which a label that a sample has not costs nothing.
        weighting: turns the class counts into class weights; None weights all classes alike.
        reduction: see `Loss`.
        ignore_index: see `Loss`.

    Raises:
        InputError: (a ValueError) if a gamma is negative or not finite, or the margin is outside [0, 1).

    .. _Ridnik et al. 2021: https://arxiv.org/abs/2009.14119
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        gamma_positive: float = 0.0,
        gamma_negative: float = 4.0,
        margin: float = 0.05,
        weighting: Weighting | None = None,
        reduction: Reduction = "mean",
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(class_counts, weighting, reduction, ignore_index)
        check_at_least("gamma_positive", gamma_positive, 0, "0 is cross-entropy.")
        check_at_least("gamma_negative", gamma_negative, 0, "0 is cross-entropy.")
        check_below_one("margin", margin, "0 spares nothing.")
        self.gamma_positive, self.gamma_negative, self.margin = gamma_positive, gamma_negative, margin

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over classes of the asymmetric terms."""
        if targets.ndim == 1:
            targets = one_hot(targets, logits)
        positive = binary_terms(logits, self.gamma_positive)
        if self.margin:
            # not 0, whose power has an infinite gradient for exponents below 1
            p = (logits.sigmoid() - self.margin).clamp(min=torch.finfo(logits.dtype).tiny)
            negative = -((-logits).sigmoid() + self.margin).clamp(max=1.0).log() * p**self.gamma_negative
        else:
            negative = binary_terms(-logits, self.gamma_negative)
        return (targets * positive + (1.0 - targets) * negative).sum(1)


def binary_terms(signed: Tensor, gamma: float) -> Tensor:
    """Return (1 - p)^gamma (-log p) for p = sigmoid(signed), element by element."""
    cross_entropy = -F.logsigmoid(signed)
    return cross_entropy * (gamma * F.logsigmoid(-signed)).exp() if gamma else cross_entropy


def binary_losses(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Return the sum over classes of `binary_terms`, shape (B,), for class indices of shape (B,)."""
    return binary_terms(-sign_of_wrong(logits, targets) * logits, gamma).sum(1)


class _BinarySum(torch.autograd.Function):
    """Sum of factor times `binary_terms` over samples and classes, with its gradient made on the way.

    It keeps one tensor of the size of the logits where autograd keeps up to six, and passes over memory a third as
    often.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, factors: Tensor, gamma: float) -> Tensor:  # noqa: ANN401
        wrong = sign_of_wrong(logits, targets).mul_(logits)
        q = wrong.sigmoid()  # 1 - p
        log_p = F.logsigmoid(wrong.neg_())
        if gamma:
            modulator = q**gamma
            terms = log_p.mul_(modulator)  # negative
            loss = -terms.sum(1).dot(factors)
            # of -terms by the logit of being wrong: modulator q - gamma (1 - q) terms
            gradient = terms.addcmul_(terms, q, value=-1.0).mul_(-gamma).addcmul_(modulator, q)
        else:
            loss = -log_p.sum(1).dot(factors)
            gradient = q
        gradient.mul_(factors[:, None])
        if torch.compiler.is_compiling():
            gradient = gradient * sign_of_wrong(logits, targets)
        else:  # the same, without another (B, C) tensor
            index = targets[:, None]
            gradient.scatter_(1, index, -gradient.gather(1, index))
        ctx.save_for_backward(logits, targets, factors, gradient)
        ctx.gamma = gamma
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        logits, targets, factors, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: the gradient is to be differentiated itself
            loss = binary_losses(logits, targets, ctx.gamma).dot(factors)
            (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
        return gradient * grad_output, None, None, None


def at_targets(values: Tensor, targets: Tensor) -> Tensor:
    """Return each sample's value at its target, shape (B,), for values of shape (B, C).

    With targets of shape (B, C) it is the sum over classes, each as strong as its target. An index out of range is an
    error, also -100, which torch's losses pass over without a word.
    """
    if targets.ndim == 2:
        return (targets * values).sum(1)
    return values.gather(1, targets[:, None]).squeeze(1)


def one_hot(targets: Tensor, logits: Tensor) -> Tensor:
    """Return class indices of shape (B,) as targets of shape and dtype of the logits, also under ``torch.func``."""
    return torch.zeros_like(logits).scatter(1, targets[:, None], 1.0)


def sign_of_wrong(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -1 at the true class and 1 at the others, shape (B, C), for class indices of shape (B,)."""
    if torch.compiler.is_compiling() or functorch():  # a comparison fuses, but passes over an index out of range
        true = targets[:, None] == torch.arange(logits.shape[1], device=logits.device)
        return torch.where(true, -1.0, 1.0).to(logits.dtype)
    return torch.ones_like(logits).scatter_(1, targets[:, None], -1.0)


def functorch() -> bool:
    """Return whether a transformation of ``torch.func`` is under way, which has to see plain operations."""
    return torch._C._are_functorch_transforms_active()
