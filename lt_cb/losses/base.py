"""What every loss has: class counts, class weights, and how its logits become probabilities."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lt_cb.errors import InputError
from lt_cb.losses.weighting import Weighting


class Loss(nn.Module, ABC):
    """Base of the losses: a loss of your own derives from it and defines ``per_sample``.

    The loss of a batch is the sum of the weighted losses of its samples divided by the batch size B, as in
    Cui et al. 2019, and not by the sum of the weights as in a weighted ``torch.nn.CrossEntropyLoss``.
    Half-precision logits are evaluated in float32.

    Args:
        class_counts: training images of each class, shape (C,).
        weighting: turns the class counts into class weights; None weights all classes alike.

    Attributes:
        class_weights: float32 buffer of shape (C,), or None without a weighting.
        prior_bias: what the last layer's bias starts from; such a bias is kept out of weight decay. None leaves
            both to the backbone.
    """

    class_weights: Tensor | None
    prior_bias: float | None = None

    def __init__(self, class_counts: Sequence[int], weighting: Weighting | None = None) -> None:
        super().__init__()
        self.class_counts = [int(n) for n in class_counts]
        if len(self.class_counts) < 2:
            raise InputError(f"class_counts has {len(self.class_counts)} classes, but a classifier needs at least 2.")
        self.weighting = weighting
        self.register_buffer("class_weights", None if weighting is None else weighting(self.class_counts).float())

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
            Scalar, float32 or the dtype of wider logits.

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
            if self.class_weights is not None:
                losses = losses * self._sample_weights(self.class_weights, targets)
        except (IndexError, RuntimeError) as error:
            if targets.ndim == 1 and ((targets < 0) | (targets >= num_classes)).any():
                raise InputError(
                    f"targets go from {targets.min().item()} to {targets.max().item()}, but {num_classes} classes "
                    f"allow 0 to {num_classes - 1}: check the labels, or the number of classes."
                ) from error
            raise
        return losses.mean()

    @staticmethod
    def _sample_weights(class_weights: Tensor, targets: Tensor) -> Tensor:
        if targets.ndim == 1:
            return class_weights[targets]
        labels = targets.sum(1)
        weights = (targets @ class_weights.to(targets.dtype)) / labels.clamp(min=torch.finfo(labels.dtype).tiny)
        return torch.where(labels > 0, weights, 1.0)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return class probabilities of shape (B, C) for logits of shape (B, C); softmax unless a loss says otherwise.

        The predicted class is the arg-max of the logits.
        """
        return logits.softmax(-1)

    def extra_repr(self) -> str:
        """Show the number of classes and the weighting."""
        weighting = None if self.weighting is None else f"{type(self.weighting).__name__}({vars(self.weighting)})"
        return f"classes={len(self.class_counts)}, weighting={weighting}"
