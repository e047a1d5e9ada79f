"""Means over seeds, figures of the paper, and differences paired by seed."""

import csv
import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lt_cb.errors import InputError
from lt_cb.lab.report.extra import stats
from lt_cb.lab.report.result import Result, Runs

NOT_SIGNIFICANT = "not significant"


@dataclass
class Cell:
    """A metric of one method on one data set, in percent."""

    method: str
    data: str
    values: list[float]  # of each seed
    best: bool = False  # whether its mean is the best of the column; only for metrics of held-out images
    paper: float | None = None  # figure of the same experiment in Cui et al. 2019
    unlike_paper: str = ""  # known differences from the run of the paper

    def __post_init__(self) -> None:
        """Compute the mean, and the sample standard deviation over seeds, None for one."""
        self.mean = statistics.mean(self.values)
        self.deviation = statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        """Show mean ± standard deviation."""
        spread = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        return f"{self.mean:.2f}{spread}"


def cells_of(runs: Runs, metric: str = "error") -> dict[tuple[str, str], Cell]:
    """Return the cells of a table by (method, data); ``metric`` as in `Result.score`.

    Raises:
        InputError: if no run has the metric.
    """
    cells = {}
    for (method, data), results in runs.cells().items():
        scores = [result.score(metric) for result in sorted(results, key=lambda r: str(r.seed))]
        values = [score for score in scores if score is not None]
        if not values:
            continue
        cells[method, data] = cell = Cell(method, data, values)
        first = results[0]  # the others differ in their seeds only
        published = _published().get(first.paper_key, {})
        if published.get(metric):
            cell.paper, epochs = float(published[metric]), int(published["epochs"])
            length = [] if first.epochs in (None, epochs) else [f"{first.epochs} epochs instead of {epochs}"]
            cell.unlike_paper = ", ".join([*length, *first.unlike_paper])
    if not cells and runs.results:
        raise InputError(
            f"no run has the metric {metric}: validate after the last epoch, or choose another one with --metric."
        )
    if metric.startswith("val/"):
        for data in dict.fromkeys(cell.data for cell in cells.values()):
            column = [cell for cell in cells.values() if cell.data == data]
            max(column, key=lambda cell: cell.mean).best = True
    return cells


@functools.cache
def _published() -> dict[tuple[str, ...], dict[str, str]]:
    """Return Tables 2 and 3 of Cui et al. 2019: errors and epochs by `Result.paper_key`."""
    with Path(__file__).with_name("paper.csv").open() as stream:
        return {tuple(row.values())[:7]: row for row in csv.DictReader(stream)}


@dataclass
class Difference:
    """A metric of a method minus that of its baseline on the same seeds, in percentage points."""

    method: str
    baseline: str
    data: str
    changes: list[float]  # on each seed that both have

    def __post_init__(self) -> None:
        """Compute the mean, and its 95 % interval (Student's t)."""
        self.mean, self.low, self.high = interval(self.changes)

    @property
    def verdict(self) -> str:
        """``higher`` or ``lower`` for a significant difference, else ``not significant``."""
        if self.low <= 0 <= self.high:
            return NOT_SIGNIFICANT
        return "higher" if self.mean > 0 else "lower"

    @property
    def texts(self) -> tuple[str, str]:
        """The mean, and the interval."""
        return signed(self.mean), f"{signed(self.low)} to {signed(self.high)}"


def paired_differences(runs: Runs, metric: str = "error", min_seeds: int = 2) -> list[Difference]:
    """Compare each method with its baseline on the seeds that both have, if these are at least ``min_seeds``.

    The baseline of a method is the first method that differs only in loss and weights, for example with the same number
    of epochs. Without such a method, it is the first of all.
    """
    cells, methods = runs.cells(), runs.methods()
    others = {result.method: result.others for result in runs.results}
    differences = []
    for data in runs.columns():
        for method in methods:
            alike = [name for name in methods if others[name] == others[method]]
            baseline = alike[0] if len(alike) > 1 else methods[0]
            reference, scores = (_by_seed(cells.get((name, data), []), metric) for name in (baseline, method))
            shared = sorted(reference.keys() & scores.keys())
            if method != baseline and len(shared) >= min_seeds:
                changes = [scores[seed] - reference[seed] for seed in shared]
                differences.append(Difference(method, baseline, data, changes))
    return differences


def _by_seed(results: Sequence[Result], metric: str) -> dict[tuple[int, int], float]:
    scores = {result.seed: result.score(metric) for result in results}
    return {seed: score for seed, score in scores.items() if score is not None}


def signed(value: float) -> str:
    """Return a number with its sign and two decimals; 0 is ``+0.00``."""
    return f"{round(value, 2) + 0.0:+.2f}"


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval (Student's t), which is empty for a single value."""
    mean, half = statistics.mean(values), half_width(values)
    return mean, mean - half, mean + half


def half_width(values: Sequence[float]) -> float:
    """Return half of the 95 % interval (Student's t) for the mean; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    quantile = float(stats.t.ppf(0.975, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def wilson(correct: int, counted: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of the rate ``correct / counted``, in [0, 1]; (0, 1) if nothing is counted."""
    if not counted:
        return 0.0, 1.0
    low, high = stats.binomtest(correct, counted).proportion_ci(method="wilson")
    return float(low), float(high)
