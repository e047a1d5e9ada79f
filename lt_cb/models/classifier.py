"""The classifier of a backbone (its last linear layer): initialisation, cosine logits, and second stages."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lt_cb.errors import InputError, check_at_least, check_positive

Linear = TypeVar("Linear", bound=nn.Linear)


def last_linear(backbone: nn.Module, num_classes: int) -> nn.Linear | None:
    """Return the last linear layer with ``num_classes`` outputs, or None; layers of adapters do not count."""
    layers = [
        module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == num_classes and ".lora_" not in name
    ]
    return layers[-1] if layers else None


def classifier_name(backbone: nn.Module, num_classes: int) -> str:
    """Return the name of the last linear layer; raise InputError if there is none."""
    return _name_of(_classifier(backbone, num_classes), backbone)


def _classifier(backbone: nn.Module, num_classes: int) -> nn.Linear:
    linear = last_linear(backbone, num_classes)
    if linear is None:
        raise InputError(
            f"the backbone has no linear layer of {num_classes} outputs, one a class, and so its classifier cannot be "
            "changed: choose another backbone, or a loss or second stage that keeps the classifier."
        )
    return linear


def _name_of(layer: nn.Module, backbone: nn.Module) -> str:
    names: dict[nn.Module, str] = {module: name for name, module in backbone.named_modules()}
    return names[layer]


def _replace(backbone: nn.Module, old: nn.Linear, new: nn.Linear) -> None:
    name = _name_of(old, backbone)
    if not name:
        raise InputError("the backbone is a bare nn.Linear, which cannot be replaced: wrap it in nn.Sequential.")
    backbone.set_submodule(name, new)


class NormalizedLinear(nn.Linear):
    """Linear layer without bias; its outputs are cosines, in [-1, 1], of features and class weights."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Draw random directions of length 1."""
        nn.init.normal_(self.weight)
        with torch.no_grad():
            self.weight.copy_(F.normalize(self.weight))

    def forward(self, features: Tensor) -> Tensor:
        """Return cosines of shape (B, C) for features of shape (B, in_features)."""
        return F.linear(F.normalize(features), F.normalize(self.weight))


def draw_classifier(backbone: nn.Module, num_classes: int, std: float) -> None:
    """Draw the weights of the classifier from N(0, std^2), and set its bias to 0."""
    check_positive("head_init_std", std, "null keeps the initial weights of the backbone.")
    linear = _classifier(backbone, num_classes)
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def normalize_classifier(backbone: nn.Module, num_classes: int) -> None:
    """Replace the classifier of a backbone by a ``NormalizedLinear``."""
    linear = _classifier(backbone, num_classes)
    _replace(backbone, linear, NormalizedLinear(linear.in_features, num_classes))


class SecondStage(ABC):
    """Change to the classifier of a trained network (`Kang et al. 2020 <https://arxiv.org/abs/1910.09217>`_).

    Attributes:
        keeps_classifier: whether it starts from the trained classifier or from a new one.
        trains: whether it is for ``fit`` or only for ``test``.
    """

    keeps_classifier = True
    trains = True

    @abstractmethod
    def attach(self, backbone: nn.Module, num_classes: int) -> None:
        """Change the classifier of a backbone of C classes, and freeze the layers that are not trained."""

    def initial_state(self, backbone: nn.Module, num_classes: int, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the initial state of a backbone after `attach`, given the ``trained`` state before it."""
        prefix = _name_of(_classifier(backbone, num_classes), backbone) + "."
        kept = {prefix + "weight", prefix + "bias"} if self.keeps_classifier else set()
        new = {n: v for n, v in backbone.state_dict().items() if n.startswith(prefix) and n not in kept}
        return {n: v for n, v in trained.items() if not n.startswith(prefix) or n in kept} | new


class ClassifierRetraining(SecondStage):
    """Classifier re-training (cRT): a new classifier on frozen features, for class-balanced sampling.

    The frozen backbone stays in evaluation mode. In the authors' code it is in training mode: batch statistics
    normalise its features, and the running statistics still change.
    """

    keeps_classifier = False

    def attach(self, backbone: nn.Module, num_classes: int) -> None:
        """Freeze the backbone, and draw a new last layer."""
        backbone.requires_grad_(False)
        _classifier(backbone, num_classes).requires_grad_(True).reset_parameters()


class LearnableWeightScaling(SecondStage):
    """Learnable weight scaling (LWS): a trained factor for the logit of each class; all other weights are frozen."""

    def attach(self, backbone: nn.Module, num_classes: int) -> None:
        """Freeze all weights, and multiply the outputs of the last layer by factors that start at 1."""
        backbone.requires_grad_(False)
        _replace_by(ScaledLinear, backbone, num_classes)


class TauNormalization(SecondStage):
    r"""Tau-normalised classifier, for a test without training: divides logits by powers of the norms of class weights.

    .. math:: z_c \to (w_c \cdot h + b_c) / \|w_c\|^\tau

    The paper drops the bias as negligible, and chooses tau in [0, 1] on validation images.

    Args:
        tau: exponent, at least 0; 0 keeps the classifier.
    """

    trains = False

    def __init__(self, tau: float = 1.0) -> None:
        check_at_least("tau", tau, 0, "0 keeps the classifier.")
        self.tau = tau

    def attach(self, backbone: nn.Module, num_classes: int) -> None:
        """Replace the last layer by a ``TauNormalizedLinear`` with the same weights."""
        _replace_by(TauNormalizedLinear, backbone, num_classes).tau = self.tau


class ScaledLinear(nn.Linear):
    """Linear layer with a learnable factor for each output."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__(in_features, out_features, bias)
        self.requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(out_features))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits of shape (B, C) for features of shape (B, in_features)."""
        return super().forward(features) * self.scale


class TauNormalizedLinear(nn.Linear):
    """Linear layer that divides each output by the norm of its weights to the power of ``tau``."""

    tau = 1.0

    def forward(self, features: Tensor) -> Tensor:
        """Return logits of shape (B, C) for features of shape (B, in_features)."""
        norms: Tensor = torch.linalg.vector_norm(self.weight, dim=1).clamp(min=torch.finfo(self.weight.dtype).tiny)
        return super().forward(features) / norms.pow(self.tau)


def _replace_by(cls: type[Linear], backbone: nn.Module, num_classes: int) -> Linear:
    old = _classifier(backbone, num_classes)
    if isinstance(old, NormalizedLinear):
        raise InputError(
            "the second stage changes the norms of class weights, but the loss normalises them (LDAM, GCL): add "
            "--config configs/loss/softmax.yaml for a network with a plain classifier, or use ClassifierRetraining."
        )
    new = cls(old.in_features, num_classes, old.bias is not None)
    _replace(backbone, old, new)
    return new
