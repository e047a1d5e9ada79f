"""Find out whether ``test`` or ``validate`` has other data than the training, and which source reads them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, int64

from lt_cb.data.sources.make import default_source, fitting_source
from lt_cb.data.sources.names import MODULES, OWN_IMAGES, canonical_source
from lt_cb.longtail.subset import Indices
from lt_cb.runs import checkpoint as checkpoints

KINDS = {"ImageFolder": "folders of classes", "Manifest": "a table", "COCO": "annotations in COCO's format"}


def is_elsewhere(trained: Mapping[str, Any], data: Namespace) -> bool:
    """Return whether the options of data name other data than the training had.

    A published data set is the same at any place.
    """
    before = trained.get("data")
    if not isinstance(before, Mapping):
        return False
    sources = [source_name(before.get("source")), source_name(data.source)]
    if sources[0] != sources[1]:
        return True
    if sources[1] in MODULES and sources[1] not in OWN_IMAGES:
        return False
    return _place(before.get("root")) != _place(data.root)


def _place(root: Any) -> str:  # noqa: ANN401 - of a configuration
    return os.path.realpath(os.path.expanduser(str(root)))


def source_name(source: Any) -> str:  # noqa: ANN401 - of a configuration
    """Return the class name of a source of lt_cb, or the class path of another one."""
    path = source.get("class_path") if isinstance(source, Mapping | Namespace) else source
    return canonical_source(str(path)).removeprefix("lt_cb.data.sources.")


def named_source(data: Namespace) -> str:
    """Return the name of the source of options; without one, of the data set that reads the root, and say it."""
    if data.source is not None:
        return canonical_source(str(data.source))
    name = default_source(data.root)
    if name in KINDS:
        rank_zero_info(f"'{data.root}' is read as {KINDS[name]}: --data.source changes it.")
    return name


def kind_of(data: Namespace) -> str | None:
    """Return the source that reads the root, and say it, if the one of the training cannot."""
    now, root = source_name(data.source), Path(os.path.expanduser(data.root))
    if now not in OWN_IMAGES or not root.exists():
        return None
    if (fits := fitting_source(root, now)) == now:
        return None
    rank_zero_info(f"'{data.root}' is read as {KINDS[fits]}; the training had {KINDS[now]}: --data.source changes it")
    return fits


def digests_in(checkpoint: Mapping[str, Any]) -> Indices | None:
    """Return the digests of the training images, None if a checkpoint has none."""
    kept = checkpoint.get(checkpoints.TRAINED_ON)
    return kept.numpy() if isinstance(kept, Tensor) and kept.dtype == int64 and kept.ndim == 1 else None
