"""Data sets. A custom one derives from `lt_cb.data.Source` and is named by its class path."""

import importlib
from typing import Any

from lt_cb.data.sources.names import MODULES, PACKAGE

__all__ = list(MODULES)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - lazy (PEP 562), so that `names` imports without torch
    """Import a data set."""
    if name not in MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{PACKAGE}.{MODULES[name]}"), name)
