"""Means over seeds, figures of the paper, and differences paired by seed."""

import csv
import functools
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from pathlib import Path

from lt_cb.errors import InputError
from lt_cb.lab.report.extra import stats
from lt_cb.lab.report.result import Result, Runs

LEVEL = 0.05  # level of significance


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
    """Difference of a metric between a method and its baseline on the same seeds, in percentage points.

    ``p`` is the two-sided p of the paired t-test, and ``holm`` the same after Holm's correction for the family: all
    comparisons that are reported together on one data set. Both are None for one seed.
    """

    method: str
    baseline: str
    data: str
    changes: list[float]  # on each seed that both have
    metric: str
    machines: str = ""  # names of both machines, if method and baseline ran on different ones
    holm: float | None = None

    def __post_init__(self) -> None:
        """Compute the mean, its 95 % interval and its p (Student's t)."""
        self.mean, self.low, self.high = interval(self.changes)
        self.p = p_value(self.changes)

    @property
    def is_significant(self) -> bool:
        """Whether p is below 0.05 after Holm's correction."""
        return self.holm is not None and self.holm < LEVEL

    @property
    def texts(self) -> tuple[str, str, str]:
        """The mean, the interval, and the corrected p: in bold if significant."""
        if self.holm is None:
            return signed(self.mean), "–", "–"
        p = f"{self.holm:.2g}"
        return signed(self.mean), self.interval(), f"**{p}**" if self.is_significant else p

    def interval(self, digits: int = 2) -> str:
        """Return the interval, for example ``-6.37 to +0.22``; differences of rates are at most 100 points."""
        return f"{signed(max(self.low, -100.0), digits)} to {signed(min(self.high, 100.0), digits)}"


def corrected(differences: list[Difference]) -> list[Difference]:
    """Correct the p of each data set for the number of its comparisons; return the same differences."""
    for data in {d.data for d in differences}:
        family = [d for d in differences if d.data == data and d.p is not None]
        for d, p in zip(family, holm([d.p or 0.0 for d in family]), strict=True):
            d.holm = p
    return differences


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p of several tests, corrected by the step-down method of Holm (1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    steps = [min((len(order) - i) * p_values[k], 1.0) for i, k in enumerate(order)]
    by_test = dict(zip(order, accumulate(steps, max), strict=True))
    return [by_test[k] for k in range(len(order))]


def baselines_of(runs: Runs) -> dict[str, str]:
    """Return the baseline of each method: the first that differs only in loss, weights and second stage, or itself.

    For example, they have the same number of epochs. Without such a method, it is the first of all.
    """
    methods, others = runs.methods(), {result.method: result.others_but_stage for result in runs.results}
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for method in methods:
        alike[others[method]].append(method)
    first = {names: named[0] if len(named) > 1 else methods[0] for names, named in alike.items()}
    return {method: first[others[method]] for method in methods}


def paired_differences(runs: Runs, *metrics: str, min_seeds: int = 2) -> list[Difference]:
    """Compare each method with its baseline on the seeds that both have, if these are at least ``min_seeds``.

    All comparisons of a data set, by these metrics, are one family.
    """
    cells, differences = runs.cells(), list[Difference]()
    for data, (method, baseline), metric in product(runs.columns(), baselines_of(runs).items(), metrics):
        reference, own = (_by_seed(cells.get((name, data), []), metric) for name in (baseline, method))
        shared = sorted(reference.keys() & own.keys())
        if method == baseline or len(shared) < min_seeds:
            continue
        machines = {(own[seed][1], reference[seed][1]) for seed in shared}
        text = "; ".join(sorted(f"{one} / {other}" for one, other in machines if one != other))
        changes = [own[seed][0] - reference[seed][0] for seed in shared]
        differences.append(Difference(method, baseline, data, changes, metric, text))
    return corrected(differences)


def _by_seed(results: Sequence[Result], metric: str) -> dict[tuple[int, int], tuple[float, str]]:
    """Return score and machine of each seed."""
    scores = {result.seed: (result.score(metric), result.record.processor or "unknown") for result in results}
    return {seed: (score, machine) for seed, (score, machine) in scores.items() if score is not None}


def signed(value: float, digits: int = 2) -> str:
    """Return a number with its sign and so many decimals; 0 is ``+0.00``."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


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


def prediction_width(values: Sequence[float]) -> float:
    """Return half of the 95 % prediction interval of one more value: t s sqrt(1 + 1/n); infinite for a single value."""
    return half_width(values) * math.sqrt(len(values) + 1) if len(values) > 1 else math.inf


def p_value(values: Sequence[float]) -> float | None:
    """Return the two-sided p of the mean against 0 (Student's t); None for a single value."""
    if len(values) < 2:
        return None
    mean, error = statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))
    if error == 0:
        return float(mean == 0)
    return 2 * float(stats.t.sf(abs(mean) / error, len(values) - 1))


def wilson(correct: int, counted: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of the rate ``correct / counted``, in [0, 1]; (0, 1) if nothing is counted."""
    if not counted:
        return 0.0, 1.0
    low, high = stats.binomtest(correct, counted).proportion_ci(method="wilson")
    return float(low), float(high)
