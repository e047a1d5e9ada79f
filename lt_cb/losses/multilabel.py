"""Sigmoid losses for several labels an image that come together, some of them rarely."""

import math
from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from lt_cb.errors import InputError, check_at_least
from lt_cb.losses.sigmoid import SigmoidLoss, SigmoidLossOptions, binary_terms


class DistributionBalancedLoss(SigmoidLoss):
    r"""Distribution-balanced loss of `Wu et al. 2020`_ with the focal term, summed over classes.

    .. math:: L &= \frac{1}{B} \sum_i \sum_c r_{ic} \Bigl(t_{ic} f(z_{ic} - \nu_c)
        + (1 - t_{ic}) \frac{f(-\lambda (z_{ic} - \nu_c))}{\lambda}\Bigr),
        \quad f(x) = \sigma(-x)^\gamma\, \mathrm{softplus}(-x) \\
        r_{ic} &= \alpha + \sigma\Bigl(\beta \Bigl(\frac{1 / n_c}{\sum_k t_{ik} / n_k} - \mu\Bigr)\Bigr),
        \quad \nu_c = \frac{\kappa}{\lambda} \log \frac{N - n_c}{n_c}

    r makes up for how often a class is drawn by its own images and by those of other labels. An image without a label
    that is known has r = alpha + 1, the limit for ever rarer labels. lambda spares labels that are not there, nu is a
    bias that is not learned. Formulas and defaults are those of the authors' code and its configuration of VOC-MLT
    (that of COCO-MLT has mu 0.2 and a scale of 2), which with the focal term takes twice the mean over classes, so
    2 / C of this sum. As there, the last layer's bias is left to the backbone.

    Class weights come on top of r. They leave the targets of a mixed image as they are, for r is made of those.

    Args:
        class_counts: training images that have each label, shape (C,).
        num_images: N, the number of training images, at least that of the most frequent class.
        alpha: least weight, at least 0.
        beta: how steep the weight rises, at least 0; 0 gives all the weight alpha + 1/2: with alpha 0.5 none.
        mu: ratio in the middle of the rise, at least 0.
        kappa: of the shift nu, at least 0; 0 does not shift.
        negative_scale: lambda, above 0; 1 spares nothing. With all four neutral it is `FocalLoss`.
        gamma: focusing parameter, at least 0; 0 is cross-entropy.
        options: see `SigmoidLossOptions`.

    Raises:
        InputError: if an argument is out of its range.

    .. _Wu et al. 2020: https://arxiv.org/abs/2007.09654
    """

    inverse_counts: Tensor
    shift: Tensor

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
                f"num_images is {num_images}, but must be a whole number of at least {most}, the images of the most "
                "frequent class: give the number of training images."
            )
        check_at_least("alpha", alpha, 0, "0.5 with beta 0 weights nothing.")
        check_at_least("beta", beta, 0, "0 weights all alike.")
        check_at_least("mu", mu, 0, "the authors take 0.2 and 0.3.")
        check_at_least("kappa", kappa, 0, "0 does not shift.")
        check_at_least("gamma", gamma, 0, "0 is cross-entropy.")
        if not isinstance(negative_scale, int | float) or not 0.0 < negative_scale < math.inf:
            raise InputError(f"negative_scale is {negative_scale}, but must be positive and finite; 1 spares nothing.")
        self.num_images, self.alpha, self.beta, self.mu = num_images, alpha, beta, mu
        self.kappa, self.negative_scale, self.gamma = kappa, negative_scale, gamma
        self.prior_bias = None
        neutral = not beta and not kappa and negative_scale == 1
        self.distorted_by = None if neutral else "its re-balancing and tolerance of negatives"
        counts = self.positive_counts()
        others = (num_images - counts).clamp(min=1.0)  # a class of all images has finite odds, as one of none
        self.register_constant("inverse_counts", 1.0 / counts)
        self.register_constant("shift", kappa / negative_scale * (others / counts).log())

    def parts(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the focal terms of the shifted logits, those of labels that are not there scaled."""
        logits = logits - self.shift.to(logits.dtype)
        scale = self.negative_scale
        return binary_terms(logits, self.gamma), binary_terms(-scale * logits, self.gamma) / scale

    def terms(self, logits: Tensor, targets: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Return the re-balanced loss of each class of each sample, (B, C), 0 where the label is not known."""
        return self.rebalancing(targets) * super().terms(logits, targets, class_weights)

    def rebalancing(self, targets: Tensor) -> Tensor:
        """Return r, shape (B, C), for targets of that shape, which may be -1 or NaN where a label is not known."""
        inverse = self.inverse_counts.to(targets.dtype)
        of_image = (targets.where(targets >= 0.0, 0.0) * inverse).sum(1, keepdim=True)
        ratio = inverse / of_image.clamp(min=torch.finfo(targets.dtype).tiny)  # large, not infinite: 0 * inf is NaN
        return self.alpha + (self.beta * (ratio - self.mu)).sigmoid()

    def weigh(self, targets: Tensor, class_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights as `SigmoidLoss` does, and all targets as they are."""
        return super().weigh(targets, class_weights)[0], targets
