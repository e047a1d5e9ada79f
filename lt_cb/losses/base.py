"""Base class of the losses: class counts, class weights, checks of the targets, reduction."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, get_args

import torch
from torch import Tensor, nn

from lt_cb.errors import InputError
from lt_cb.losses.weighting import Weighting, with_images

Reduction = Literal["mean", "weighted_mean", "sum", "none"]
WeightOf = Literal["sample", "label", "positive"]


class LossOptions(TypedDict, total=False):
    """Options of every loss.

    Attributes:
        weighting: computes class weights from the class counts; None weights all classes equally.
        reduction: combines the weighted losses of a batch. ``mean`` divides their sum by the batch size, as in Cui et
            al. 2019. ``weighted_mean`` divides it by the sum of the sample weights, as ``torch.nn.CrossEntropyLoss``
            and the code of LDAM-DRW do. ``sum`` and ``none`` work as in torch.
    """

    weighting: Weighting | None
    reduction: Reduction


class Loss(nn.Module, ABC):
    """Base class of the losses. A custom loss defines ``__init__`` and ``per_sample``.

    Half-precision logits are evaluated in float32. The state dict is empty: class weights and other constants follow
    from the arguments, so a checkpoint cannot replace them. Arguments outside their ranges raise `InputError`.

    Args:
        class_counts: training images of each class, at least 0, for C >= 2 classes.
        weighting: computes class weights from the class counts; None weights all classes equally.
        reduction: ``mean``, ``weighted_mean``, ``sum`` or ``none``, see `LossOptions`.

    Attributes:
        class_weights: buffer of shape (C,) in torch's default dtype, or None without a weighting.
        weighted: whether the class weights are applied; False until a deferred weighting starts.
        weight_of: the part of a loss that a class weight multiplies, see `SigmoidLoss`.
        prior_bias: initial bias of the last layer, which is then excluded from weight decay; None leaves the bias to
            the backbone.
        normalized_classifier: whether the logits must be cosines of normalised features and weights.
        soft_targets: whether the loss accepts targets of shape (B, C).
        linear_in_targets: whether the loss of a mixed label is the mixture of the losses of its labels.
        multi_label: whether an image may have several labels. Targets of shape (B, C), also in ``per_sample``, may
            then be -1 or NaN where a label is unknown.
    """

    class_weights: Tensor | None
    weighted = True
    weight_of: WeightOf = "sample"
    prior_bias: float | None = None
    normalized_classifier = False
    soft_targets = True
    linear_in_targets = True
    multi_label = False

    def __init__(
        self, class_counts: Sequence[int], weighting: Weighting | None = None, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        if isinstance(class_counts, Mapping) or not all(n >= 0 and n % 1 == 0 for n in class_counts):
            raise InputError(
                f"class_counts is {class_counts}, but must be a list of whole numbers of at least 0, in the order of "
                "the class indices."
            )
        self.class_counts = [int(n) for n in class_counts]
        if len(self.class_counts) < 2:
            raise InputError(f"class_counts has {len(self.class_counts)} classes, but a classifier needs at least 2.")
        if reduction not in get_args(Reduction):
            raise InputError(f"reduction is '{reduction}', but must be 'mean', 'weighted_mean', 'sum' or 'none'.")
        self.weighting = weighting
        self.reduction = reduction
        self.register_constant("class_weights", None if weighting is None else weighting(self.class_counts))

    @abstractmethod
    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the unweighted loss of each sample, shape (B,).

        Args:
            logits: float32 or float64, shape (B, C).
            targets: class indices, int64 of shape (B,), or targets of the shape and dtype of the logits.
        """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch.

        Args:
            logits: floating, shape (B, C).
            targets: class indices in [0, C), shape (B,); or multi-hot or soft targets in [0, 1], any dtype, shape
                (B, C). A loss of several labels also takes -1 or NaN for an unknown label, whose term is left out.

        Returns:
            Scalar, or shape (B,) for the reduction ``none``; float32, or the dtype of wider logits. The mean over an
            empty batch is NaN, as in torch.

        Raises:
            InputError: if the targets are wrong. Soft targets are checked only on the CPU, since elsewhere the check
                would wait for the device.
        """
        logits, targets = _without_subclass(logits), _without_subclass(targets)
        self._check(logits, targets)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        targets = targets.to(logits.dtype if targets.ndim == 2 else torch.int64)
        try:
            return self._reduced(logits, targets)
        except (IndexError, RuntimeError) as error:
            num_classes = len(self.class_counts)
            if targets.ndim == 1 and ((targets < 0) | (targets >= num_classes)).any():
                raise InputError(
                    f"targets go from {targets.min().item()} to {targets.max().item()}, but {num_classes} classes "
                    f"allow 0 to {num_classes - 1}: check the labels and the number of classes."
                ) from error
            raise

    def _check(self, logits: Tensor, targets: Tensor) -> None:
        num_classes = len(self.class_counts)
        allowed = (logits.shape[:1], logits.shape)
        if logits.ndim != 2 or logits.shape[1] != num_classes or targets.shape not in allowed:
            raise InputError(
                f"logits of shape {tuple(logits.shape)} and targets of shape {tuple(targets.shape)} do not match: for "
                f"{num_classes} classes, give logits (B, {num_classes}) and targets (B,) or (B, {num_classes})."
            )
        if targets.ndim == 1:
            if targets.is_floating_point():
                raise InputError(f"targets have dtype {targets.dtype}, but class indices must be whole numbers.")
            return
        if not self.soft_targets:
            raise InputError(f"{type(self).__name__} takes class indices, but not multi-hot or soft targets.")
        if targets.device.type != "cpu" or torch.compiler.is_compiling():
            return
        valid = (targets >= 0) & (targets < 1.001)  # rounding may raise a sum of shares above 1
        interval, remedy, known = "[0, 1]", "give the share of each class", targets
        if self.multi_label:
            valid |= (targets == -1) | targets.isnan()
            interval, remedy = "[0, 1], -1 or NaN", "give an unknown label as -1 or NaN"
            known = targets.nan_to_num(0.0)
        try:
            if valid.all():
                return
        except RuntimeError:  # torch.func.vmap has no values to check
            return
        raise InputError(
            f"targets of shape (B, C) must be in {interval}, but go from {known.min().item():g} to "
            f"{known.max().item():g}: {remedy}."
        )

    def _reduced(self, logits: Tensor, targets: Tensor) -> Tensor:
        class_weights, weights = self._active_weights(logits), None
        if class_weights is not None and self.weight_of == "sample":
            weights, targets = self.weigh(targets, class_weights)
        losses = self.per_sample(logits, targets)
        if self.reduction == "none":
            return losses if weights is None else losses * weights
        if weights is None:
            return losses.sum() if self.reduction == "sum" else losses.mean()
        if self.reduction == "mean":
            weights = weights / len(targets)
        elif self.reduction == "weighted_mean":
            weights = weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
        return losses.dot(weights)

    def _active_weights(self, logits: Tensor) -> Tensor | None:
        """Return the class weights in the dtype of the logits; None if they do not apply."""
        weights = self.class_weights if self.weighted and len(logits) else None
        return None if weights is None else weights.to(logits.dtype)

    def weigh(self, targets: Tensor, class_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of the samples, shape (B,), and the targets to compute their losses from.

        The weight of a sample is the mean weight of its labels, each as strong as its target. A sample without labels
        has `weight_without_labels`.
        The targets of a mixed label become t_c w_c / weight. Its weighted loss is then sum_c t_c w_c L_c, as in mixup
        and ``torch.nn.CrossEntropyLoss``. Targets stay as they are for a loss that is not linear in them, and in rows
        of several labels whose sum differs from 1 by 1 % or more.
        """
        if targets.ndim == 1:
            return class_weights.index_select(0, targets), targets
        known = targets >= 0.0
        labels = targets.where(known, 0.0)
        total, weighted = labels.sum(1), labels * class_weights
        tiny = torch.finfo(total.dtype).tiny
        without = self.weight_without_labels(class_weights)
        weights = torch.where(total > 0, weighted.sum(1) / total.clamp(min=tiny), without)
        if not self.linear_in_targets:
            return weights, targets
        mixed = weighted / weights.clamp(min=tiny)[:, None]
        if self.multi_label:
            mixed = mixed.where(known & ((total - 1.0).abs() < 0.01)[:, None], targets)
        return weights, mixed

    def weight_without_labels(self, class_weights: Tensor) -> Tensor:
        """Return the weight of a sample without labels, a scalar: the smallest class weight."""
        return class_weights.min()

    def adjust(self, logits: Tensor) -> Tensor:
        """Return the scores whose arg-max is the predicted class, shape (B, C): by default the logits."""
        return logits

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return class probabilities, shape (B, C), from the logits of the network, shape (B, C)."""
        return self.adjust(logits).softmax(1)

    def positive_counts(self) -> Tensor:
        """Return the class counts, float64 of shape (C,), with 1 for a class without images."""
        return torch.tensor(self.class_counts, dtype=torch.float64).clamp(min=1.0)

    def bounded_counts(self) -> Tensor:
        """Return `positive_counts`, with the count of the rarest class for a class without images."""
        counts = self.positive_counts()
        return counts.clamp(min=counts.where(with_images(self.class_counts), torch.inf).min())

    def register_constant(self, name: str, values: Tensor | None) -> None:
        """Register a buffer that moves with the module but stays out of the state dict."""
        values = None if values is None else values.to(torch.get_default_dtype())
        self.register_buffer(name, values, persistent=False)

    def argument_names(self) -> list[str]:
        """Return the names of the arguments that create this loss."""
        names: dict[str, None] = {}
        for maker in (vars(cls)["__init__"] for cls in type(self).__mro__ if "__init__" in vars(cls)):
            _, *parameters = inspect.signature(maker).parameters.values()
            names |= {p.name: None for p in parameters if p.kind is not p.VAR_KEYWORD}
            options = [p.annotation for p in parameters if p.kind is p.VAR_KEYWORD]
            typed = get_args(options[0]) if options else ()  # LossOptions, for Unpack[LossOptions]
            if typed:
                names |= dict.fromkeys(typed[0].__annotations__)
            if typed or not options:
                break
        return list(names)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that create this loss again; each is the attribute of the same name."""
        return {name: getattr(self, name) for name in self.argument_names()}

    def extra_repr(self) -> str:
        """Show the number of classes and the weighting."""
        weighting = None if self.weighting is None else f"{type(self.weighting).__name__}({vars(self.weighting)})"
        return f"classes={len(self.class_counts)}, weighting={weighting}"


def _without_subclass(tensor: Tensor) -> Tensor:
    """Return a plain tensor: fastai's TensorImage and TensorCategory do not work together in one operation."""
    if type(tensor) is Tensor or type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return tensor  # fake and distributed tensors dispatch by themselves
    return tensor.as_subclass(Tensor)


def one_hot(targets: Tensor, logits: Tensor) -> Tensor:
    """Return class indices, shape (B,), as targets of the shape and dtype of the logits, also in ``torch.func``."""
    return torch.zeros_like(logits).scatter(1, targets[:, None], 1.0)
