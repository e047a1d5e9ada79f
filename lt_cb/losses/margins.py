"""Softmax losses that shift or scale the logits by class: priors, temperatures and margins."""

import math
from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_cb.errors import check_at_least, check_positive
from lt_cb.longtail.prior import class_prior
from lt_cb.losses.base import LossOptions, one_hot
from lt_cb.losses.softmax import SoftmaxLoss

COSINES = "0 gives the softmax cross-entropy of the scaled cosines."


class LogitAdjustedLoss(SoftmaxLoss):
    r"""Logit-adjusted softmax cross-entropy of `Menon et al. 2021 <https://arxiv.org/abs/2007.07314>`_.

    .. math:: L = \frac{1}{B} \sum_i -\log \frac{e^{z_{iy} + \tau \log \pi_y}}{\sum_c e^{z_{ic} + \tau \log \pi_c}},
        \quad \pi_c = n_c / \sum_k n_k

    Predictions use the plain logits.

    Args:
        class_counts, options: see `Loss`.
        tau: strength, at least 0; 0 gives `SoftmaxLoss`, 1 is consistent for the balanced error.
    """

    shift: Tensor

    def __init__(self, class_counts: Sequence[int], tau: float = 1.0, **options: Unpack[LossOptions]) -> None:
        super().__init__(class_counts, **options)
        check_at_least("tau", tau, 0, "0 shifts nothing.")
        self.tau = tau
        self.register_constant("shift", tau * torch.tensor(class_prior(self.class_counts), dtype=torch.float64).log())

    def training_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return z + tau log pi."""
        return logits + self.shift.to(logits.dtype)


class BalancedSoftmaxLoss(LogitAdjustedLoss):
    r"""Balanced softmax of `Ren et al. 2020 <https://arxiv.org/abs/2007.10740>`_: `LogitAdjustedLoss` at tau = 1.

    .. math:: L = \frac{1}{B} \sum_i -\log \frac{n_y e^{z_{iy}}}{\sum_c n_c e^{z_{ic}}}
    """

    def __init__(self, class_counts: Sequence[int], **options: Unpack[LossOptions]) -> None:
        super().__init__(class_counts, 1.0, **options)


class PostHocLogitAdjustment(LogitAdjustedLoss):
    r"""Softmax cross-entropy with post-hoc logit adjustment of `Menon et al. 2021 <https://arxiv.org/abs/2007.07314>`_.

    Training equals `SoftmaxLoss`. The predicted class is the arg-max of

    .. math:: z_c - \tau \log \pi_c

    It can test a checkpoint of another softmax loss with any tau, without training.
    """

    def training_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return z: the adjustment is for predictions only."""
        return logits

    def adjust(self, logits: Tensor) -> Tensor:
        """Return z - tau log pi."""
        return logits - self.shift


class VectorScalingLoss(LogitAdjustedLoss):
    r"""Vector-scaling loss of `Kini et al. 2021 <https://arxiv.org/abs/2103.01550>`_.

    .. math:: z_c \to (n_c / n_{\max})^\gamma z_c + \tau \log \pi_c

    Predictions use the plain logits. The defaults are the paper's for CIFAR-10.

    Args:
        class_counts, options: see `Loss`.
        gamma: exponent of the scale, at least 0; 0 gives `LogitAdjustedLoss`.
        tau: strength of the shift, at least 0.
    """

    scale: Tensor

    def __init__(
        self, class_counts: Sequence[int], gamma: float = 0.15, tau: float = 1.25, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(class_counts, tau, **options)
        check_at_least("gamma", gamma, 0, "0 scales nothing.")
        self.gamma = gamma
        counts = self.positive_counts()
        self.register_constant("scale", (counts / counts.max()) ** gamma)

    def training_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return (n_c / n_max)^gamma z + tau log pi."""
        return torch.addcmul(self.shift.to(logits.dtype), logits, self.scale.to(logits.dtype))


class ClassDependentTemperatureLoss(VectorScalingLoss):
    r"""Class-dependent temperatures of `Ye et al. 2020 <https://arxiv.org/abs/2001.01385>`_.

    .. math:: z_c \to z_c / (n_{\max} / n_c)^\gamma

    Args:
        class_counts, options: see `Loss`.
        gamma: exponent of the temperature, at least 0; 0 gives `SoftmaxLoss`.
    """

    def __init__(self, class_counts: Sequence[int], gamma: float = 0.2, **options: Unpack[LossOptions]) -> None:
        super().__init__(class_counts, gamma, 0.0, **options)


class LDAMLoss(SoftmaxLoss):
    r"""Label-distribution-aware margin loss of `Cao et al. 2019 <https://arxiv.org/abs/1906.07413>`_.

    .. math:: L = \frac{1}{B} \sum_i -\log
        \frac{e^{s (z_{iy} - m_y)}}{e^{s (z_{iy} - m_y)} + \sum_{c \ne y} e^{s z_{ic}}},
        \quad m_c = m \, (n_{\min} / n_c)^{1/4}

    The logits are cosines: `LongTailedClassifier` replaces the last layer of the backbone by a normalised one. The
    paper's LDAM-DRW uses `EffectiveNumber` weights from ``drw_start: 0.8`` on. Soft targets mix the losses of their
    labels, each with its own margin.

    Args:
        class_counts, options: see `Loss`.
        max_margin: m, the margin of the rarest class, at least 0.
        scale: s, above 0.
    """

    margins: Tensor
    normalized_classifier = True

    def __init__(
        self, class_counts: Sequence[int], max_margin: float = 0.5, scale: float = 30.0, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(class_counts, **options)
        check_at_least("max_margin", max_margin, 0, COSINES)
        check_positive("scale", scale, "the paper uses 30.")
        self.max_margin, self.scale = max_margin, scale
        counts = self.bounded_counts()
        self.register_constant("margins", max_margin * (counts.min() / counts) ** 0.25)

    def training_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return s z, minus s m_y at the true class."""
        margins = self.scale * self.margins.to(logits.dtype)
        shift = torch.zeros_like(logits).scatter(1, targets[:, None], -margins.index_select(0, targets)[:, None])
        return shift.add(logits, alpha=self.scale)

    def _log_p(self, logits: Tensor, targets: Tensor) -> Tensor:
        if targets.ndim == 1:
            return super()._log_p(logits, targets)
        # soft targets: the log-probability of each class if it were the true class, with its own margin
        scaled = self.scale * logits
        top = scaled.argmax(1, keepdim=True)
        # rest_c = log sum_{k != c} e^{s z_k}; only the top class needs an exact sum, since 1 - p may cancel there
        p = scaled.softmax(1).scatter(1, top, 0.0)
        rest = scaled.logsumexp(1, keepdim=True) + (-p).log1p()
        rest = rest.scatter(1, top, scaled.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True))
        return F.logsigmoid(scaled - self.scale * self.margins.to(logits.dtype) - rest)

    def adjust(self, logits: Tensor) -> Tensor:
        """Return s z."""
        return self.scale * logits


class GCLLoss(SoftmaxLoss):
    r"""Gaussian clouded logit adjustment of `Li et al. 2022`_: more noise on the cosine of a rarer class.

    .. math:: L &= \frac{1}{B} \sum_i -\log \frac{e^{s u_{iy}}}{\sum_c e^{s u_{ic}}} \\
        u_{ic} &= z_{ic} - a \lvert \epsilon_{ic} \rvert
        \frac{\log n_{\max} - \log n_c}{\log n_{\max} - \log n_{\min}},
        \quad \epsilon_{ic} \sim N(0, 1/9) \text{ clipped to } [-1, 1]

    The logits are cosines, as for `LDAMLoss`. Noise is added in training mode only. The paper then retrains the
    classifier on resampled images: see `ClassifierRetraining`.

    Args:
        class_counts, options: see `Loss`.
        noise: a, the largest shift of the cosine of the rarest class, at least 0. The authors' code uses 0.5 for CIFAR
            and 1 for larger data.
        scale: s, above 0.

    .. _Li et al. 2022: https://openaccess.thecvf.com/content/CVPR2022/html/Li_Long-Tailed_Visual_Recognition_via_Gaussian_Clouded_Logit_Adjustment_CVPR_2022_paper.html
    """

    clouds: Tensor
    normalized_classifier = True

    def __init__(
        self, class_counts: Sequence[int], noise: float = 0.5, scale: float = 30.0, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(class_counts, **options)
        check_at_least("noise", noise, 0, COSINES)
        check_positive("scale", scale, "the paper uses 30.")
        self.noise, self.scale = noise, scale
        rarity = -self.bounded_counts().log()
        rarity = rarity - rarity.min()
        self.register_constant("clouds", noise * rarity / rarity.max().clamp(min=1e-12))

    def training_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return s u; without noise outside training mode."""
        if self.training:
            noise = torch.randn_like(logits).abs().div(3.0).clamp(max=1.0)
            logits = logits - noise * self.clouds.to(logits.dtype)
        return self.scale * logits

    def adjust(self, logits: Tensor) -> Tensor:
        """Return s z."""
        return self.scale * logits


class LADELoss(BalancedSoftmaxLoss):
    r"""Label-distribution disentangling loss of `Hong et al. 2021 <https://arxiv.org/abs/2012.00321>`_ (LADE).

    .. math:: L &= L_{\text{balanced softmax}} + \alpha \sum_c \pi_c
        \bigl(S_c - \tfrac{1}{N_c} \sum_{i: y_i = c} z_{ic} + \lambda S_c^2\bigr) \\
        S_c &= \log \frac{1}{N} \sum_i \frac{1 / C}{\pi_{y_i}} e^{z_{ic}}

    S_c and the mean logit of class c are the two terms of the Donsker-Varadhan bound, over a batch re-weighted to
    uniform classes. A class that is missing from the batch only has the terms in S_c. The paper weights an image by its
    own class; the authors' code weights it by class c. A weighting scales the regulariser by the mean weight of the
    batch.

    Args:
        class_counts, options: see `Loss`.
        alpha: strength of the regulariser, at least 0; 0 gives `BalancedSoftmaxLoss`.
        penalty: lambda, at least 0. The authors' code uses 0.1; for iNaturalist 2018 it uses 0.5 and alpha 0.05.
    """

    prior: Tensor
    linear_in_targets = False

    def __init__(
        self, class_counts: Sequence[int], alpha: float = 0.1, penalty: float = 0.1, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(class_counts, **options)
        check_at_least("alpha", alpha, 0, "0 gives the balanced softmax loss.")
        check_at_least("penalty", penalty, 0, "0 leaves the bound alone.")
        self.alpha, self.penalty = alpha, penalty
        self.register_constant("prior", torch.tensor(class_prior(self.class_counts), dtype=torch.float64))
        self.num_existing = sum(n > 0 for n in self.class_counts) or len(self.class_counts)

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the balanced softmax loss of each sample plus the regulariser of the batch."""
        losses = super().per_sample(logits, targets)
        if not len(logits):
            return losses
        prior = self.prior.to(logits.dtype)
        targets = one_hot(targets, logits) if targets.ndim == 1 else targets
        labels = targets.sum(0)  # (C,)
        any_labels = labels.sum() > 0
        ratio = torch.where(any_labels, (targets / (self.num_existing * prior)).sum(1), 1.0)  # (B,)
        # mean logit of each class, (C,); 0 / tiny would have an infinite gradient
        own = (targets * logits).sum(0) / labels.where(labels > 0, 1.0)
        spread = (logits + ratio.log()[:, None]).logsumexp(0) - math.log(len(logits))  # S, (C,)
        regulariser = (prior * (spread - own + self.penalty * spread**2)).sum()
        return losses + self.alpha * torch.where(any_labels, regulariser, 0.0)
