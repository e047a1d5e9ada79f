"""Callbacks of a run."""

from lt_cb.callbacks.logits import SaveLogits
from lt_cb.callbacks.result import ResultFile
from lt_cb.callbacks.wandb import ClassesToWandB

__all__ = ["ClassesToWandB", "ResultFile", "SaveLogits"]
