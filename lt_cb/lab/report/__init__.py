"""Tables and pictures of finished runs. Imports no torch."""

from lt_cb.lab.report.collect import Result, Runs, collect, read_run
from lt_cb.lab.report.command import main

__all__ = ["Result", "Runs", "collect", "main", "read_run"]
