"""Custom recipe: sharpness-aware minimisation (SAM, Foret et al. 2021) with any loss, data and backbone.

PYTHONPATH=examples uv run lt-cb fit --config configs/quickstart.yaml --model own_recipe.SAM --model.rho 0.1
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from lt_cb.module import LongTailedClassifier


class SAM(LongTailedClassifier):
    """Takes each step along the gradient at the worst point near the weights, w + rho g / |g|.

    It does not work with gradient accumulation.

    Args:
        rho: distance of the worst point, above 0.
        options: options of `LongTailedClassifier`.
    """

    def __init__(self, rho: float = 0.05, **options: Any) -> None:  # noqa: ANN401 - passed on
        super().__init__(**options)
        self.rho = rho

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Optimizer, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Compute the gradient at the weights, then at the worst point, and step along the second one."""
        assert optimizer_closure is not None
        optimizer_closure()
        weights = [p for p in self.parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p.grad) for p in weights]))
        steps = [self.rho * p.grad / norm for p in weights]
        with torch.no_grad():
            torch._foreach_add_(weights, steps)
        optimizer_closure()
        with torch.no_grad():
            torch._foreach_sub_(weights, steps)
        optimizer.step()
