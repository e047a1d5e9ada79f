r"""Custom metric: geometric mean of the class accuracies.

PYTHONPATH=examples uv run lt-cb fit --config configs/quickstart.yaml \
    --model.metrics+=own_metric.GeometricMean
"""

import torch
from torchmetrics import Metric


class GeometricMean(Metric):
    """Without a floor, one class without a correct image makes it 0."""

    def __init__(self, num_classes: int, floor: float = 0.001):
        super().__init__()
        self.floor = floor
        for name in ("correct", "total"):
            zeros = torch.zeros(num_classes)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, probabilities, targets):
        """Add a batch: probabilities (B, C), and class indices (B,)."""
        correct = targets[probabilities.argmax(1) == targets]
        self.correct += correct.bincount(minlength=len(self.correct))
        self.total += targets.bincount(minlength=len(self.total))

    def compute(self):
        """Return the mean over the classes with images, a scalar."""
        accuracy = (self.correct / self.total)[self.total > 0]
        return accuracy.clamp(min=self.floor).log().mean().exp()
