"""Losses for long-tailed recognition in plain PyTorch, usable without Lightning.

Every loss is ``Loss(class_counts, ...)(logits, targets) -> scalar`` and accepts every weighting.
"""

from lt_cb.losses.base import Loss, LossOptions
from lt_cb.losses.margins import (
    BalancedSoftmaxLoss,
    ClassDependentTemperatureLoss,
    GCLLoss,
    LADELoss,
    LDAMLoss,
    LogitAdjustedLoss,
    PostHocLogitAdjustment,
    VectorScalingLoss,
)
from lt_cb.losses.multilabel import DistributionBalancedLoss
from lt_cb.losses.negatives import EqualizationLoss, SeesawLoss
from lt_cb.losses.sigmoid import AsymmetricLoss, FocalLoss, SigmoidLoss
from lt_cb.losses.smoothing import LabelAwareSmoothingLoss, LabelSmoothingLoss
from lt_cb.losses.softmax import PolyLoss, SoftmaxLoss
from lt_cb.losses.weighting import (
    EffectiveNumber,
    InverseFrequency,
    SquareRootInverse,
    Weighting,
    class_weights,
    effective_number,
    suggest_beta,
)

__all__ = [
    "AsymmetricLoss",
    "BalancedSoftmaxLoss",
    "ClassDependentTemperatureLoss",
    "DistributionBalancedLoss",
    "EffectiveNumber",
    "EqualizationLoss",
    "FocalLoss",
    "GCLLoss",
    "InverseFrequency",
    "LADELoss",
    "LDAMLoss",
    "LabelAwareSmoothingLoss",
    "LabelSmoothingLoss",
    "LogitAdjustedLoss",
    "Loss",
    "LossOptions",
    "PolyLoss",
    "PostHocLogitAdjustment",
    "SeesawLoss",
    "SigmoidLoss",
    "SoftmaxLoss",
    "SquareRootInverse",
    "VectorScalingLoss",
    "Weighting",
    "class_weights",
    "effective_number",
    "suggest_beta",
]
