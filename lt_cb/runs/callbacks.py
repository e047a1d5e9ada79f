"""Callbacks that change the training of a run, by its configuration. Imports no torch."""

from collections.abc import Mapping
from typing import Any

# Callbacks of lightning and lt_cb that only observe, save or print. Any other callback counts as a change of training,
# also EarlyStopping and Timer, which change its length.
OBSERVERS = {
    *("ResultFile", "SaveLogits", "ClassesToWandB", "LastCheckpoint"),
    *("Checkpoint", "ModelCheckpoint", "OnExceptionCheckpoint"),
    *("ProgressBar", "RichProgressBar", "TQDMProgressBar", "ModelSummary", "RichModelSummary"),
    *("DeviceStatsMonitor", "LearningRateMonitor", "ThroughputMonitor"),
}
LIBRARIES = ("lt_cb", "lightning", "pytorch_lightning", "")  # "" is a class named without its module


def changes_training(class_path: str) -> bool:
    """Return whether a callback counts as a change of training: all but the known observers."""
    module, _, name = class_path.rpartition(".")
    return name not in OBSERVERS or module.partition(".")[0] not in LIBRARIES


def training_callbacks(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of ``trainer.callbacks`` that change training, with ``class_path`` and ``init_args``."""
    listed = (config.get("trainer") or {}).get("callbacks") or []
    listed = listed if isinstance(listed, list) else [listed]
    entries = [entry if isinstance(entry, dict) else {"class_path": str(entry)} for entry in listed]
    return [entry for entry in entries if changes_training(str(entry.get("class_path")))]
