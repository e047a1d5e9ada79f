r"""Custom loss: softmax cross-entropy of logits shifted by the log class counts (balanced softmax).

PYTHONPATH=examples uv run lt-cb fit --config configs/quickstart.yaml \
    --model.loss own_loss.ShiftedSoftmax --model.loss.tau 0.5
"""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_cb.losses import Loss, LossOptions


class ShiftedSoftmax(Loss):
    """Cross-entropy of z + tau log n (Ren et al. 2020 at tau 1).

    Args:
        class_counts: training images of each class, shape (C,).
        tau: strength of the shift.
        options: weighting and reduction of every loss, see `LossOptions`.
    """

    shift: Tensor

    def __init__(self, class_counts: Sequence[int], tau: float = 1.0, **options: Unpack[LossOptions]) -> None:
        super().__init__(class_counts, **options)
        self.tau = tau
        self.register_constant("shift", tau * self.positive_counts().log())

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample, shape (B,); the base class applies class weights and the reduction."""
        return F.cross_entropy(logits + self.shift.to(logits.dtype), targets, reduction="none")


if __name__ == "__main__":  # runs without Lightning
    loss = ShiftedSoftmax([100, 10, 1])
    print(loss(torch.zeros(2, 3), torch.tensor([0, 2])))
