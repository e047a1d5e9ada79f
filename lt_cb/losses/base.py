"""What every loss has: class counts, class weights, and how its logits become probabilities."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lt_cb.errors import InputError
from lt_cb.losses.weighting import Weighting

Reduction = Literal["mean", "weighted_mean", "sum", "none"]


class Loss(nn.Module, ABC):
    """Base of the losses: a loss of your own derives from it and defines ``per_sample``.

    Half-precision logits are evaluated in float32.

    Args:
        class_counts: training images of each class, shape (C,).
        weighting: turns the class counts into class weights; None weights all classes alike.
        reduction: of the weighted losses of the samples. ``mean`` divides their sum by the batch size B, as in
            Cui et al. 2019; ``weighted_mean`` divides it by the sum of the samples' weights, as a weighted
            ``torch.nn.CrossEntropyLoss`` and with it LDAM-DRW's code does; ``sum`` and ``none`` as in torch.

    Attributes:
        class_weights: float32 buffer of shape (C,), or None without a weighting.
        prior_bias: what the last layer's bias starts from; such a bias is kept out of weight decay. None leaves
            both to the backbone.
        normalized_classifier: whether logits have to be cosines, of normalised features and normalised weights.
        weighted: whether the class weights count; False until a deferred weighting sets in.
    """

    class_weights: Tensor | None
    prior_bias: float | None = None
    normalized_classifier = False
    weighted = True

    def __init__(
        self, class_counts: Sequence[int], weighting: Weighting | None = None, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        self.class_counts = [int(n) for n in class_counts]
        if len(self.class_counts) < 2:
            raise InputError(f"class_counts has {len(self.class_counts)} classes, but a classifier needs at least 2.")
        if reduction not in ("mean", "weighted_mean", "sum", "none"):
            raise InputError(f"reduction is '{reduction}', but must be 'mean', 'weighted_mean', 'sum' or 'none'.")
        self.weighting = weighting
        self.reduction = reduction
        self.register_buffer("class_weights", None if weighting is None else weighting(self.class_counts).float())

    def positive_counts(self) -> Tensor:
        """Return the class counts, float64 of shape (C,), of which a class without images has one."""
        return torch.tensor(self.class_counts, dtype=torch.float64).clamp(min=1.0)

    @abstractmethod
    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the unweighted loss of each sample, shape (B,), for float32 or float64 logits of shape (B, C)."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch.

        Args:
            logits: floating, shape (B, C).
            targets: class indices in [0, C), int64 of shape (B,); or multi-hot or soft targets in [0, 1],
                floating of shape (B, C). A sample with several labels has the mean weight of its labels, each as
                strong as its target; one without any has weight 1, the mean over classes.

        Returns:
            Scalar, or shape (B,) for the reduction ``none``; float32 or the dtype of wider logits.

        Raises:
            InputError: (a ValueError) if the shapes do not fit, or an index is not in [0, C).
        """
        num_classes = len(self.class_counts)
        if logits.ndim != 2 or logits.shape[1] != num_classes or targets.shape not in (logits.shape[:1], logits.shape):
            raise InputError(
                f"logits of shape {tuple(logits.shape)} and targets of shape {tuple(targets.shape)} do not fit: for "
                f"{num_classes} classes, give logits (B, {num_classes}) and targets (B,) or (B, {num_classes})."
            )
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        targets = targets.long() if targets.ndim == 1 else targets.to(logits.dtype)
        try:
            losses = self.per_sample(logits, targets)
            weights = None
            if self.class_weights is not None and self.weighted:
                weights = self._sample_weights(self.class_weights, targets)
                losses = losses * weights
        except (IndexError, RuntimeError) as error:
            if targets.ndim == 1 and ((targets < 0) | (targets >= num_classes)).any():
                raise InputError(
                    f"targets go from {targets.min().item()} to {targets.max().item()}, but {num_classes} classes "
                    f"allow 0 to {num_classes - 1}: check the labels, or the number of classes."
                ) from error
            raise
        if self.reduction == "none":
            return losses
        if self.reduction == "sum":
            return losses.sum()
        if self.reduction == "weighted_mean" and weights is not None:
            return losses.sum() / weights.sum()
        return losses.mean()

    @staticmethod
    def _sample_weights(class_weights: Tensor, targets: Tensor) -> Tensor:
        if targets.ndim == 1:
            return class_weights[targets]
        labels = targets.sum(1)
        weights = (targets @ class_weights.to(targets.dtype)) / labels.clamp(min=torch.finfo(labels.dtype).tiny)
        return torch.where(labels > 0, weights, 1.0)

    def adjust(self, logits: Tensor) -> Tensor:
        """Return the logits whose arg-max is the predicted class, (B, C): as they are, unless a loss adjusts them."""
        return logits

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return class probabilities of shape (B, C), for logits as they come from the network, of shape (B, C)."""
        return self.adjust(logits).softmax(-1)

    def extra_repr(self) -> str:
        """Show the number of classes and the weighting."""
        weighting = None if self.weighting is None else f"{type(self.weighting).__name__}({vars(self.weighting)})"
        return f"classes={len(self.class_counts)}, weighting={weighting}"
