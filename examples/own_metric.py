"""A metric of one's own: a torchmetrics Metric that is made from the number of classes.

PYTHONPATH=examples uv run lt-cb fit --config configs/quickstart.yaml --model.metrics+=own_metric.GeometricMean

Those of torchmetrics go likewise: --model.metrics+=torchmetrics.classification.MulticlassF1Score
"""

import torch
from torch import Tensor
from torchmetrics import Metric


class GeometricMean(Metric):
    """Geometric mean of the accuracies of the classes, which is 0 if one is never recognised.

    Args:
        num_classes: C.
        floor: the accuracy that a class is given at least.
    """

    correct: Tensor
    total: Tensor

    def __init__(self, num_classes: int, floor: float = 0.001) -> None:
        super().__init__()
        self.floor = floor
        for name in ("correct", "total"):
            self.add_state(name, torch.zeros(num_classes), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        """Count a batch of class probabilities, (B, C), and class indices, (B,)."""
        self.total.index_add_(0, targets, torch.ones_like(targets, dtype=self.total.dtype))
        self.correct.index_add_(0, targets, (probabilities.argmax(1) == targets).to(self.correct.dtype))

    def compute(self) -> Tensor:
        """Return the mean, a scalar; classes without images are left out."""
        accuracy = (self.correct / self.total)[self.total > 0]
        return accuracy.clamp(min=self.floor).log().mean().exp()
