"""Long-tailed data: count profiles, sources of images, subsets, samplers and the data module."""

from lt_cb.data.datamodule import LongTailedDataModule
from lt_cb.data.profile import class_counts_exponential, class_counts_step
from lt_cb.data.sampler import (
    ClassBalancedSampler,
    EffectiveNumberSampler,
    ProgressivelyBalancedSampler,
    Sampler,
    SquareRootSampler,
)
from lt_cb.data.sources.base import FileSource, Source

__all__ = [
    "ClassBalancedSampler",
    "EffectiveNumberSampler",
    "FileSource",
    "LongTailedDataModule",
    "ProgressivelyBalancedSampler",
    "Sampler",
    "Source",
    "SquareRootSampler",
    "class_counts_exponential",
    "class_counts_step",
]
