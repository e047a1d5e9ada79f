"""Backbones: images -> logits."""

from lt_cb.models.build import build_backbone, last_linear
from lt_cb.models.resnet import ResNetCifar, resnet20, resnet32, resnet44, resnet56, resnet110

__all__ = [
    "ResNetCifar",
    "build_backbone",
    "last_linear",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
]
