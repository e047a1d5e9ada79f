"""Custom metric: a torchmetrics Metric, created with the number of classes.

PYTHONPATH=examples uv run lt-cb fit --config configs/quickstart.yaml --model.metrics+=own_metric.GeometricMean

Add metrics of torchmetrics in the same way: --model.metrics+=torchmetrics.classification.MulticlassF1Score
"""

import torch
from torch import Tensor
from torchmetrics import Metric


class GeometricMean(Metric):
    """Geometric mean of the class accuracies. Without a floor, one class without a hit makes it 0.

    Args:
        num_classes: C.
        floor: lower accuracies count as this value.
    """

    correct: Tensor
    total: Tensor

    def __init__(self, num_classes: int, floor: float = 0.001) -> None:
        super().__init__()
        self.floor = floor
        for name in ("correct", "total"):
            self.add_state(name, torch.zeros(num_classes), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        """Add a batch of class probabilities, (B, C), and class indices, (B,)."""
        self.total.index_add_(0, targets, torch.ones_like(targets, dtype=self.total.dtype))
        self.correct.index_add_(0, targets, (probabilities.argmax(1) == targets).to(self.correct.dtype))

    def compute(self) -> Tensor:
        """Return the mean over the classes with images, a scalar."""
        accuracy = (self.correct / self.total)[self.total > 0]
        return accuracy.clamp(min=self.floor).log().mean().exp()
