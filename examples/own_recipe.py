r"""Custom recipe: limit the norm of each class's weights in the last layer.

PYTHONPATH=examples uv run lt-cb fit --config configs/quickstart.yaml \
    --model own_recipe.MaxNorm --model.limit 0.5
"""

import torch

from lt_cb.models import last_linear
from lt_cb.module import LongTailedClassifier


class MaxNorm(LongTailedClassifier):
    """Frequent classes get large weights: MaxNorm (Alshammari et al. 2022)."""

    def __init__(self, limit: float = 1.0, **options):
        super().__init__(**options)
        self.limit = limit

    def on_train_batch_end(self, outputs, batch, batch_idx):
        """Scale the weights of a class down to the limit, after each step."""
        classifier = last_linear(self.backbone, self.num_classes)
        with torch.no_grad():
            classifier.weight.renorm_(p=2, dim=0, maxnorm=self.limit)
