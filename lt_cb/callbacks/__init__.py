"""Callbacks of a run."""

from lt_cb.callbacks.best import BestEpoch
from lt_cb.callbacks.duration import Duration
from lt_cb.callbacks.logits import SaveLogits
from lt_cb.callbacks.result import ResultFile
from lt_cb.callbacks.wandb import ClassesToWandB

__all__ = ["BestEpoch", "ClassesToWandB", "Duration", "ResultFile", "SaveLogits"]
