"""What every loss has: class counts, class weights, and how its logits become probabilities."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict, get_args

import torch
from torch import Tensor, nn

from lt_cb.errors import InputError
from lt_cb.losses.weighting import Weighting, with_images

Reduction = Literal["mean", "weighted_mean", "sum", "none"]
WeightOf = Literal["sample", "label", "positive"]


class ReductionOptions(TypedDict, total=False):
    """How the losses of the samples become one.

    Attributes:
        reduction: of the weighted losses of the samples. ``mean`` divides their sum by the number of samples, as in
            Cui et al. 2019; ``weighted_mean`` divides it by the sum of the samples' weights, as a weighted
            ``torch.nn.CrossEntropyLoss`` and with it LDAM-DRW's code does; ``sum`` and ``none`` as in torch.
        ignore_index: class index that is left out of loss and mean, as pixels of no class; None refuses every index
            outside [0, C), also torch's -100, and a number refuses targets that are no indices.
    """

    reduction: Reduction
    ignore_index: int | None


class LossOptions(ReductionOptions, total=False):
    """Options of every loss, with those of `ReductionOptions`.

    Attributes:
        weighting: turns the class counts into class weights; None weights all classes alike.
    """

    weighting: Weighting | None


class Loss(nn.Module, ABC):
    """Base of the losses: a loss of your own derives from it and defines ``per_sample``.

    Half-precision logits are evaluated in float32. The state dict is empty: class weights and all else follow from
    the arguments, so that a checkpoint does not bring those of another configuration.

    Args:
        class_counts: training images of each class, shape (C,).
        weighting: turns the class counts into class weights; None weights all classes alike.
        reduction: mean over the samples, weighted mean, sum or none, see `ReductionOptions`.
        ignore_index: class index that is left out, see `ReductionOptions`.

    Attributes:
        class_weights: buffer of shape (C,) in torch's default dtype, or None without a weighting.
        prior_bias: what the last layer's bias starts from; such a bias is kept out of weight decay. None leaves
            both to the backbone.
        normalized_classifier: whether logits have to be cosines, of normalised features and normalised weights.
        soft_targets: whether targets of the shape of the logits are taken.
        multi_label: whether an image may have several labels, each on its own. Targets of the shape of the logits may
            then be -1 or NaN where a label is not known, also those that ``per_sample`` gets.
        weight_of: what a class weight multiplies, see `SigmoidOptions`; the sample unless a loss has the choice.
        weighted: whether the class weights count; False until a deferred weighting sets in.
        distorted_by: why the probabilities belong to no prior of the classes, which `assumed_prior` then says; None
            where they do. A loss of your own that they do with sets it, and if it takes a prior off, overrides
            `assumed_prior`.

    Raises:
        InputError: if there are fewer than 2 classes, a count is negative, or there is no such reduction.
    """

    class_weights: Tensor | None
    prior_bias: float | None = None
    normalized_classifier = False
    soft_targets = True
    multi_label = False
    weight_of: WeightOf = "sample"
    weighted = True
    distorted_by: str | None = "a per_sample of its own"

    def __init__(
        self,
        class_counts: Sequence[int],
        weighting: Weighting | None = None,
        reduction: Reduction = "mean",
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(class_counts, Mapping):
            raise InputError(
                "class_counts is a mapping, but must be a list of counts in the order of the class indices."
            )
        self.class_counts = [int(n) if math.isfinite(n) else -1 for n in class_counts]
        if any(n != given for n, given in zip(self.class_counts, class_counts, strict=True)):
            raise InputError(f"class_counts is {list(class_counts)}, but must be whole numbers of at least 0.")
        if len(self.class_counts) < 2:
            raise InputError(f"class_counts has {len(self.class_counts)} classes, but a classifier needs at least 2.")
        if min(self.class_counts) < 0:
            raise InputError(f"class_counts must be at least 0, but the smallest is {min(self.class_counts)}.")
        if reduction not in ("mean", "weighted_mean", "sum", "none"):
            raise InputError(f"reduction is '{reduction}', but must be 'mean', 'weighted_mean', 'sum' or 'none'.")
        self.weighting = weighting
        self.reduction = reduction
        self.ignore_index = ignore_index
        weights = None if weighting is None else weighting(self.class_counts)
        self.register_constant("class_weights", weights)

    def positive_counts(self) -> Tensor:
        """Return the class counts, float64 of shape (C,), of which a class without images has one.

        That is the rule for a class without images: it counts as one image for itself, and for nothing that is taken
        over the classes (a sum, a minimum, a maximum); see also `bounded_counts`.
        """
        return torch.tensor(self.class_counts, dtype=torch.float64).clamp(min=1.0)

    def bounded_counts(self) -> Tensor:
        """Return `positive_counts` for what is largest for the rarest class: a class without images has its count."""
        counts = self.positive_counts()
        return counts.clamp(min=counts.where(with_images(self.class_counts), torch.inf).min())

    def class_prior(self) -> Tensor:
        """Return the share of each class in the training images, float64 of shape (C,)."""
        counts = self.positive_counts()
        return counts / counts.where(with_images(self.class_counts), 0.0).sum()

    def register_constant(self, name: str, values: Tensor | None) -> None:
        """Keep what follows from the arguments: it moves with the module, but is not in the state dict."""
        values = None if values is None else values.to(torch.get_default_dtype())
        self.register_buffer(name, values, persistent=False)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that make this loss again.

        Raises:
            AttributeError: if a loss of your own does not keep one as an attribute of its name.
        """
        makers = [vars(cls)["__init__"] for cls in type(self).__mro__ if "__init__" in vars(cls)]
        return {name: getattr(self, name) for name in _argument_names(makers)}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401
        state_dict.pop(f"{prefix}class_weights", None)  # of older checkpoints
        super()._load_from_state_dict(state_dict, prefix, *args)

    @abstractmethod
    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the unweighted loss of each sample, shape (B,), for float32 or float64 logits of shape (B, C).

        Targets are int64 of shape (B,), or of the shape and dtype of the logits; see also ``multi_label``.
        """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch.

        Args:
            logits: floating, shape (B, C), or (B, C, d1, ...) as for segmentation, where each place is a sample.
            targets: class indices in [0, C) or ``ignore_index``, int64 of shape (B,) or (B, d1, ...); or multi-hot or
                soft targets in [0, 1], of any dtype and the shape of the logits, whose weights are those of `weigh`;
                to a loss of several labels also -1 or NaN where one is not known, whose term is left out.

        Returns:
            Scalar, or shape (B,) or (B, d1, ...) for the reduction ``none``; float32 or the dtype of wider logits.
            As torch's, the mean over no samples is NaN.

        Raises:
            InputError: if the shapes do not fit, an index is not in [0, C), or a soft target not in [0, 1]. Indices
                are looked at once an operation has failed for them: a ``per_sample`` of your own that passes over
                some, and compiled code, do not get there. Soft targets are looked at on the CPU alone, as
                elsewhere the host would wait for the device, and not in compiled code.
        """
        logits, targets = plain(logits), plain(targets)
        num_classes = len(self.class_counts)
        shape, soft = logits.shape, targets.ndim == logits.ndim
        places = shape[:1] + shape[2:]
        if logits.ndim < 2 or shape[1] != num_classes or targets.shape != (shape if soft else places):
            raise InputError(
                f"logits of shape {tuple(shape)} and targets of shape {tuple(targets.shape)} do not fit: for "
                f"{num_classes} classes, give logits (B, {num_classes}) and targets (B,) or (B, {num_classes}), or "
                f"logits (B, {num_classes}, d1, ...) and targets (B, d1, ...)."
            )
        if targets.is_floating_point() and not soft:
            raise InputError(
                f"targets of shape {tuple(targets.shape)} are class indices, but of dtype {targets.dtype}."
            )
        if soft:
            self._check_soft(targets)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        targets = targets.to(logits.dtype if soft else torch.int64)
        if logits.ndim > 2:
            logits = logits.movedim(1, -1).reshape(-1, num_classes)
            targets = targets.movedim(1, -1).reshape(-1, num_classes) if soft else targets.flatten()
        valid = None
        if self.ignore_index is not None and len(targets):
            valid = targets != self.ignore_index
            targets = targets.where(valid, 0)
            logits = logits.where(valid[:, None], 0.0)  # as 0 * NaN is NaN
        class_weights = self.class_weights if self.weighted and len(targets) else None
        if class_weights is not None and class_weights.dtype != logits.dtype:
            class_weights = class_weights.to(logits.dtype)
        try:
            loss = self._reduced(logits, targets, class_weights, valid)
        except (IndexError, RuntimeError) as error:
            if not soft and ((targets < 0) | (targets >= num_classes)).any():
                raise InputError(
                    f"targets go from {targets.min().item()} to {targets.max().item()}, but {num_classes} classes "
                    f"allow 0 to {num_classes - 1}: check the labels, the number of classes, or ignore_index."
                ) from error
            raise
        if valid is not None and self.reduction in ("mean", "weighted_mean"):
            loss = loss.masked_fill(~valid.any(), torch.nan)  # as torch's: NaN, with gradient 0
        return loss.view(places) if self.reduction == "none" else loss

    def _check_soft(self, targets: Tensor) -> None:
        if not self.soft_targets:
            raise InputError(f"{type(self).__name__} takes class indices, but not multi-hot or soft targets.")
        if self.ignore_index is not None:
            raise InputError(
                f"ignore_index is {self.ignore_index}, but targets of the shape of the logits are no class indices: "
                "leave it None for multi-hot and soft targets."
            )
        if targets.device.type != "cpu" or torch.compiler.is_compiling():
            return
        try:
            inside = (targets >= 0) & (targets < 1.001)  # sums of shares may be rounded up
            if self.multi_label:
                inside |= (targets == -1) | targets.isnan()
            if inside.all():
                return
        except RuntimeError:  # under torch.func.vmap, where there are no values to look at
            return
        allowed, remedy = "in [0, 1]", "give shares of the classes; what is not known is for a loss of several labels"
        if self.multi_label:
            allowed, remedy = "in [0, 1], -1 or NaN", "give a label that is not known as -1 or NaN"
            targets = targets.nan_to_num(0.0)
        raise InputError(
            f"targets of the shape of the logits must be {allowed}, but go from {targets.min().item():g} to "
            f"{targets.max().item():g}: {remedy}."
        )

    def _reduced(self, logits: Tensor, targets: Tensor, class_weights: Tensor | None, valid: Tensor | None) -> Tensor:
        losses, factors = self._losses(logits, targets, class_weights)
        if valid is not None:
            factors = valid.to(losses.dtype) if factors is None else factors * valid
        if self.reduction == "none":
            return losses if factors is None else losses * factors
        if factors is None:
            return losses.sum() if self.reduction == "sum" else losses.mean()
        if self.reduction == "mean":
            factors = factors / (len(targets) if valid is None else valid.sum().clamp(min=1))
        elif self.reduction == "weighted_mean":
            factors = factors / factors.sum().clamp(min=torch.finfo(factors.dtype).tiny)
        return losses.dot(factors)

    def _losses(self, logits: Tensor, targets: Tensor, class_weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the losses of the samples and what they are still to be multiplied by, each of shape (B,)."""
        factors = None
        if class_weights is not None:
            factors, targets = self.weigh(targets, class_weights)
        return self.per_sample(logits, targets), factors

    def weigh(self, targets: Tensor, class_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of the samples, shape (B,), and the targets that their losses are to be taken of.

        The weight of a sample with several labels is the mean of theirs, each as strong as its target, and 1 without
        any. The targets become t w_c / weight, so that weight times loss is sum_c t_c w_c L_c: the mixture of the
        weighted losses of its labels, as of ``torch.nn.CrossEntropyLoss`` and of mixup.
        """
        if targets.ndim == 1:
            return class_weights.index_select(0, targets), targets
        labels, weighted = targets.sum(1), targets * class_weights
        tiny = torch.finfo(labels.dtype).tiny
        weights = torch.where(labels > 0, weighted.sum(1) / labels.clamp(min=tiny), 1.0)
        return weights, weighted / weights.clamp(min=tiny)[:, None]

    def adjust(self, logits: Tensor) -> Tensor:
        """Return the logits whose arg-max is the predicted class, (B, C): as they are, unless a loss adjusts them."""
        return logits

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return class probabilities of shape (B, C), for logits as they come from the network, of shape (B, C)."""
        return self.adjust(logits).softmax(1)

    def assumed_prior(self) -> Tensor:
        r"""Return the class prior p under which the probabilities are posteriors, once the loss is at its minimum.

        .. math:: p_c \propto w_c n_c

        A weight multiplies the loss of each image of its class, as that many more images would; one of both terms of a
        label (see `SigmoidOptions`) leaves its probability as it is. Deferred weights count, for they do so at the end.

        Returns:
            float64 of shape (C,), which sums to 1 over the classes with images; for others see `positive_counts`.

        Raises:
            InputError: if the logits are no log-posteriors, by ``distorted_by``.
        """
        if self.distorted_by is not None:
            raise InputError(
                f"the probabilities of {type(self).__name__} belong to no class prior that another could replace, for "
                f"{self.distorted_by}: leave the prior out, or train with a softmax, focal or logit-adjusted loss."
            )
        mass = self.positive_counts()
        if self.weighting is not None and self.weight_of != "label":
            mass = mass * self.weighting(self.class_counts)
        return mass / mass.where(with_images(self.class_counts), 0.0).sum()

    def log_posterior(self, logits: Tensor) -> Tensor:
        """Return log-probabilities of classes that exclude each other, (B, C), but for a constant of each sample.

        Plus log q - log p, of p `assumed_prior`, they are those under another prior q (Saerens et al. 2002), as the
        images of a class are taken to look alike under both.
        """
        return self.adjust(logits)

    def extra_repr(self) -> str:
        """Show the number of classes and the weighting."""
        weighting = None if self.weighting is None else f"{type(self.weighting).__name__}({vars(self.weighting)})"
        return f"classes={len(self.class_counts)}, weighting={weighting}"


def _argument_names(makers: Sequence[Callable[..., None]]) -> dict[str, None]:
    """Return the arguments of a class, given its constructor and those that it hands further options to."""
    names: dict[str, None] = {}
    for parameter in list(inspect.signature(makers[0]).parameters.values())[1:]:
        if parameter.kind is not parameter.VAR_KEYWORD:
            names[parameter.name] = None
        elif options := next(iter(get_args(parameter.annotation)), None):  # of Unpack[...]
            names |= dict.fromkeys(options.__annotations__)
        else:
            names |= _argument_names(makers[1:])
    return names


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor that only bears a type, as images and categories of fastai do, as one of torch.

    Operations refuse two such types at once. A tensor that is more than a type, as torch's fake and distributed ones,
    has a dispatch of its own and is left as it is.
    """
    if type(tensor) is Tensor or type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return tensor
    return tensor.as_subclass(Tensor)


def one_hot(targets: Tensor, logits: Tensor) -> Tensor:
    """Return class indices of shape (B,) as targets of shape and dtype of the logits, also under ``torch.func``."""
    return torch.zeros_like(logits).scatter(1, targets[:, None], 1.0)
