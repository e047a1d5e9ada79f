"""Losses for long-tailed recognition: plain PyTorch, usable without Lightning.

Every loss is ``Loss(class_counts, ...)(logits, targets) -> scalar``, and every weighting goes with every loss.
"""

from lt_cb.losses.base import Loss
from lt_cb.losses.heads import FocalLoss, SigmoidLoss, SoftmaxLoss
from lt_cb.losses.weighting import (
    EffectiveNumber,
    InverseFrequency,
    SquareRootInverse,
    Weighting,
    class_weights,
    effective_number,
)

__all__ = [
    "EffectiveNumber",
    "FocalLoss",
    "InverseFrequency",
    "Loss",
    "SigmoidLoss",
    "SoftmaxLoss",
    "SquareRootInverse",
    "Weighting",
    "class_weights",
    "effective_number",
]
