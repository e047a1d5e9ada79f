"""Long-tailed class counts and subsets, samplers (`sampler`) and several labels an image (`several`).

Public names are imported on first use, so that the samplers need PyTorch alone.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lt_cb.longtail.profile import class_counts_exponential, class_counts_step
    from lt_cb.longtail.subset import Subset, hold_out, long_tailed_subset

__all__ = ["Subset", "class_counts_exponential", "class_counts_step", "hold_out", "long_tailed_subset"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    """Import a public name."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    module = "profile" if name.startswith("class_counts") else "subset"
    return getattr(importlib.import_module(f"lt_cb.longtail.{module}"), name)
