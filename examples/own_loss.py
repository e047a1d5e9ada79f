r"""Custom loss: softmax cross-entropy of logits shifted by log class counts.

PYTHONPATH=examples uv run lt-cb fit --config configs/quickstart.yaml \
    --model.loss own_loss.ShiftedSoftmax --model.loss.tau 0.5
"""

from torch.nn import functional as F

from lt_cb.losses import Loss


class ShiftedSoftmax(Loss):
    """Balanced softmax (Ren et al. 2020) with a strength tau."""

    def __init__(self, class_counts: list[int], tau: float = 1.0, **options):
        super().__init__(class_counts, **options)
        self.tau = tau
        self.register_constant("shift", tau * self.positive_counts().log())

    def per_sample(self, logits, targets):
        """Return the loss of each image, shape (B,)."""
        return F.cross_entropy(logits + self.shift, targets, reduction="none")
