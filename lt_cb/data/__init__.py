"""Long-tailed data: count profiles, sources of images, subsets, samplers and the data module.

The names are imported when they are asked for: ``lt_cb.longtail.profile`` alone needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lt_cb.data.datamodule import LongTailedDataModule
    from lt_cb.longtail.profile import class_counts_exponential, class_counts_step
    from lt_cb.longtail.sampler import (
        ClassBalancedSampler,
        EffectiveNumberSampler,
        EpochSampler,
        ProgressivelyBalancedSampler,
        Sampler,
        SquareRootSampler,
    )
    from lt_cb.data.sources.base import FileSource, Source, SourceFactory, Split

__all__ = [
    "ClassBalancedSampler",
    "EffectiveNumberSampler",
    "EpochSampler",
    "FileSource",
    "LongTailedDataModule",
    "ProgressivelyBalancedSampler",
    "Sampler",
    "Source",
    "SourceFactory",
    "Split",
    "SquareRootSampler",
    "class_counts_exponential",
    "class_counts_step",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    """Import a public name."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    files = {"Module": "datamodule", "exponential": "profile", "step": "profile", "Sampler": "sampler"}
    file = next((file for end, file in files.items() if name.endswith(end)), "sources.base")
    package = "lt_cb.longtail" if file in ("profile", "sampler") else __name__
    return getattr(importlib.import_module(f"{package}.{file}"), name)


def __dir__() -> list[str]:
    """Name what is public too, whether imported yet or not."""
    return sorted({*globals(), *__all__})
