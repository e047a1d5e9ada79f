"""Tables and pictures of finished runs. Imports no torch."""

from lt_cb.report.collect import Result, Runs, collect
from lt_cb.report.command import main

__all__ = ["Result", "Runs", "collect", "main"]
