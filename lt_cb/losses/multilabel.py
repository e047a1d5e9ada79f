"""Sigmoid loss for several labels an image, balanced for labels that occur together."""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from lt_cb.errors import InputError, check_at_least, check_positive
from lt_cb.losses.sigmoid import SigmoidLoss, SigmoidLossOptions, focal_term


class DistributionBalancedLoss(SigmoidLoss):
    r"""Distribution-balanced focal loss of `Wu et al. 2020 <https://arxiv.org/abs/2007.09654>`_, summed over classes.

    .. math:: L &= \frac{1}{B} \sum_i \sum_c r_{ic} \Bigl(t_{ic} f(z_{ic} - \nu_c)
        + (1 - t_{ic}) \frac{f(-\lambda (z_{ic} - \nu_c))}{\lambda}\Bigr) \\
        f(x) &= \sigma(-x)^\gamma\, \mathrm{softplus}(-x) \\
        r_{ic} &= \alpha + \sigma\Bigl(\beta \Bigl(\frac{1 / n_c}{\sum_k t_{ik} / n_k} - \mu\Bigr)\Bigr),
        \quad \nu_c = \frac{\kappa}{\lambda} \log \frac{N - n_c}{n_c}

    r re-balances the classes: an image is also drawn for its other labels. It is alpha + 1 for an image without known
    labels. nu is a bias that is not learned, so the bias of the last layer is left to the backbone. Class weights
    multiply in addition to r. A mixed image keeps its targets, because r depends on them.

    Formulas and defaults follow the authors' code and its configuration for VOC-MLT; COCO-MLT uses mu 0.2 and lambda 2.
    With the focal term, their code takes twice the mean over the classes: 2 / C times this sum.

    Args:
        class_counts, options: see `SigmoidLoss`.
        num_images: N, the number of training images, at least the count of the most frequent class.
        alpha: smallest weight, at least 0.
        beta: slope of the weight, at least 0; 0 gives every term the weight alpha + 1/2.
        mu: ratio at the middle of the rise, at least 0.
        kappa: strength of the shift nu, at least 0; 0 does not shift.
        negative_scale: lambda, above 0: a larger one makes absent labels cost less. With alpha 0.5, beta 0, kappa 0 and
            lambda 1, the loss is `FocalLoss`.
        gamma: focusing parameter, at least 0; 0 is cross-entropy.
    """

    inverse_counts: Tensor
    shift: Tensor
    linear_in_targets = False

    def __init__(
        self,
        class_counts: Sequence[int],
        num_images: int,
        alpha: float = 0.1,
        beta: float = 10.0,
        mu: float = 0.3,
        kappa: float = 0.05,
        negative_scale: float = 5.0,
        gamma: float = 2.0,
        **options: Unpack[SigmoidLossOptions],
    ) -> None:
        super().__init__(class_counts, **options)
        most = max(self.class_counts)
        if not isinstance(num_images, int) or num_images < most:
            raise InputError(
                f"num_images is {num_images}, but must be a whole number of at least {most}, the count of the most "
                "frequent class: give the number of training images."
            )
        check_at_least("alpha", alpha, 0, "0.5 with beta 0 re-balances nothing.")
        check_at_least("beta", beta, 0, "0 gives all terms the same weight.")
        check_at_least("mu", mu, 0, "the authors use 0.2 and 0.3.")
        check_at_least("kappa", kappa, 0, "0 does not shift.")
        check_at_least("gamma", gamma, 0, "0 is cross-entropy.")
        check_positive("negative_scale", negative_scale, "1 is neutral.")
        self.num_images, self.alpha, self.beta, self.mu = num_images, alpha, beta, mu
        self.kappa, self.negative_scale, self.gamma = kappa, negative_scale, gamma
        self.prior_bias = None
        counts = self.positive_counts()
        others = (num_images - counts).clamp(min=1.0)  # finite odds for a class that every image has
        self.register_constant("inverse_counts", 1.0 / counts)
        self.register_constant("shift", kappa / negative_scale * (others / counts).log())

    def present(self, logits: Tensor) -> Tensor:
        """Return f(z), for shifted logits z."""
        return focal_term(logits, self.gamma)

    def absent(self, logits: Tensor) -> Tensor:
        """Return f(-lambda z) / lambda, for shifted logits z."""
        return focal_term(-self.negative_scale * logits, self.gamma) / self.negative_scale

    def _terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.rebalancing(targets) * super()._terms(logits - self.shift.to(logits.dtype), targets)

    def rebalancing(self, targets: Tensor) -> Tensor:
        """Return r, shape (B, C), for targets of shape (B, C), -1 or NaN where a label is unknown."""
        inverse = self.inverse_counts.to(targets.dtype)
        of_image = (targets.where(targets >= 0.0, 0.0) * inverse).sum(1, keepdim=True)
        ratio = inverse / of_image.clamp(min=torch.finfo(targets.dtype).tiny)  # not infinite: 0 * inf is NaN
        return self.alpha + (self.beta * (ratio - self.mu)).sigmoid()
