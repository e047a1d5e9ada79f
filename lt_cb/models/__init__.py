"""Backbones: images -> logits."""

from lt_cb.models.build import build_backbone, last_linear, normalize_classifier
from lt_cb.models.resnet import ResNetCifar, resnet20, resnet32, resnet44, resnet56, resnet110

__all__ = [
    "ResNetCifar",
    "build_backbone",
    "last_linear",
    "normalize_classifier",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
]
