"""Tables and charts of finished runs. Imports no torch."""

from collections.abc import Sequence

from lt_cb.lab.report.collect import collect, read_run
from lt_cb.lab.report.result import Result, Runs

__all__ = ["Result", "Runs", "collect", "main", "read_run"]


def main(args: Sequence[str]) -> int:
    """Run ``lt-cb report`` with the arguments behind ``report``; see ``lt_cb.lab.report.command``."""
    from lt_cb.lab.report.command import main as command  # needs the extra `report`

    return command(args)
