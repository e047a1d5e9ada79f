"""Sharpness-aware minimisation (SAM) as a recipe: ``--model lt_cb.sam.SAM``, or configs/recipe/strong.yaml."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import Optimizer

from lt_cb.errors import InputError
from lt_cb.module import LongTailedClassifier


class SAM(LongTailedClassifier):
    r"""Takes each step along the gradient at the worst point near the weights (Foret et al. 2021).

    .. math:: w \leftarrow w - \eta \, \nabla L(w + \rho \, g / \|g\|), \quad g = \nabla L(w)

    It computes two gradients a step, and so takes twice the time. Batch norm sees both passes. Gradients are clipped
    at the second point alone.

    Args:
        rho: distance of the worst point, above 0.
        options: options of `LongTailedClassifier`.

    Raises:
        InputError: if rho is not above 0, or gradients are accumulated over batches.
    """

    def __init__(self, rho: float = 0.05, **options: Any) -> None:  # noqa: ANN401 - passed on
        super().__init__(**options)
        if not rho > 0:
            raise InputError(f"rho is {rho}, but must be above 0: leave out --model lt_cb.sam.SAM for plain steps.")
        self.rho = rho

    def on_fit_start(self) -> None:
        """Check that each batch is a step."""
        super().on_fit_start()
        if self.trainer.accumulate_grad_batches != 1:
            raise InputError(
                f"accumulate_grad_batches is {self.trainer.accumulate_grad_batches}, but SAM needs 1: set a smaller "
                "--data.global_batch_size, or leave out --model lt_cb.sam.SAM."
            )

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Compute the gradient at the weights, then at the worst point, and step along the second one."""
        assert optimizer_closure is not None
        optimizer_closure()
        moved = [(p, p.grad) for p in self.parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for _, gradient in moved]))
        weights: list[Tensor] = [p for p, _ in moved]
        steps = [self.rho * gradient / norm for _, gradient in moved]
        with torch.no_grad():
            torch._foreach_add_(weights, steps)
        optimizer_closure()
        with torch.no_grad():
            torch._foreach_sub_(weights, steps)
        optimizer.step()
