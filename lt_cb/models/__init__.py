"""Backbones (images -> logits) and changes to their classifiers."""

from lt_cb.models.adapter import attach_adapter, merge_adapter
from lt_cb.models.build import build_backbone
from lt_cb.models.classifier import (
    ClassifierRetraining,
    LearnableWeightScaling,
    SecondStage,
    TauNormalization,
    draw_classifier,
    last_linear,
    normalize_classifier,
)
from lt_cb.models.convolution import spare_depthwise, spare_small_images
from lt_cb.models.graph import TrainingGraph
from lt_cb.models.resnet import ResNetCifar, resnet20, resnet32, resnet44, resnet56, resnet110

__all__ = [
    "ClassifierRetraining",
    "LearnableWeightScaling",
    "ResNetCifar",
    "SecondStage",
    "TauNormalization",
    "TrainingGraph",
    "attach_adapter",
    "build_backbone",
    "draw_classifier",
    "last_linear",
    "merge_adapter",
    "normalize_classifier",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "spare_depthwise",
    "spare_small_images",
]
