"""Callbacks of a run."""

from lt_cb.callbacks.result import ResultFile

__all__ = ["ResultFile"]
