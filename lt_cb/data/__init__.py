"""Long-tailed data: class-count profiles, data sets, samplers and the data module.

Public names are imported on first use, so that modules such as ``lt_cb.data.sources.names`` need no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lt_cb.data.datamodule import LongTailedDataModule
    from lt_cb.data.sources.base import FileSource, Source, SourceFactory
    from lt_cb.data.sources.listing import Split
    from lt_cb.longtail.profile import class_counts_exponential, class_counts_step
    from lt_cb.longtail.sampler import (
        ClassBalancedSampler,
        EffectiveNumberSampler,
        EpochSampler,
        ProgressivelyBalancedSampler,
        Sampler,
        SquareRootSampler,
    )

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
_MODULES = {
    "Split": "data.sources.listing",
    "LongTailedDataModule": "data.datamodule",
    "class_counts_exponential": "longtail.profile",
    "class_counts_step": "longtail.profile",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    """Import a public name."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    default = "longtail.sampler" if name.endswith("Sampler") else "data.sources.base"
    return getattr(importlib.import_module(f"lt_cb.{_MODULES.get(name, default)}"), name)


def __dir__() -> list[str]:
    """List the public names too, imported or not."""
    return sorted({*globals(), *__all__})
