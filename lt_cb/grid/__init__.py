"""Many runs: a grid file, what it expands to, and the processes that share it out. Imports no torch."""

from lt_cb.grid.command import main
from lt_cb.grid.plan import Plan, Run, read_plan

__all__ = ["Plan", "Run", "main", "read_plan"]
