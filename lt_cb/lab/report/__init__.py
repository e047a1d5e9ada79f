"""Tables and charts of finished runs. Imports no torch."""

from collections.abc import Sequence

from lt_cb.lab.report.collect import Result, Runs, collect, read_run

__all__ = ["Result", "Runs", "collect", "main", "read_run"]


def main(args: Sequence[str]) -> int:
    """Run ``lt-cb report`` with the arguments behind ``report``; see `lt_cb.lab.report.command.main`."""
    from lt_cb.lab.report.command import main as command  # needs the extra `report`

    return command(args)
