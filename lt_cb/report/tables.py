"""Means over seeds, the paper's figures, and differences paired by seed."""

import csv
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lt_cb.report.collect import Result, Runs

RESAMPLES = 10_000
KINDS = {"SoftmaxLoss": "softmax", "SigmoidLoss": "sigmoid", "FocalLoss": "focal"}


@dataclass
class Cell:
    """A metric of one method on one data set, over seeds, in percent."""

    method: str
    data: str
    values: list[float]
    best: bool = False  # best mean of its column
    paper: float | None = None  # error

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.mean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over seeds, None for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def agrees(self) -> bool | None:
        """Whether the paper's figure is within two standard errors of the mean; None if that cannot be said."""
        if self.paper is None or self.deviation is None:
            return None
        return abs(self.mean - self.paper) <= 2 * self.deviation / math.sqrt(len(self.values))

    def __str__(self) -> str:
        """Show mean ± standard deviation."""
        spread = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        return f"{self.mean:.2f}{spread}"


def cells_of(runs: Runs, metric: str = "error") -> dict[tuple[str, str], Cell]:
    """Return the cells of the table of a metric, ``error``, ``acc`` or ``balanced_acc``."""
    published = _published() if metric == "error" else {}
    cells = {}
    for (method, data), results in runs.cells().items():
        values = [result.score(metric) for result in sorted(results, key=lambda r: str(r.seed))]
        cells[method, data] = Cell(method, data, values, paper=published.get(_key(results[0])))
    for data in runs.columns():
        column = [cell for cell in cells.values() if cell.data == data]
        best = (min if metric == "error" else max)(cell.mean for cell in column)
        for cell in column:
            cell.best = cell.mean == best
    return cells


def _key(result: Result) -> tuple[str, float, str, float | None, float | None]:
    kind = KINDS.get(result.loss, result.loss)
    gamma = float(result.gamma or 0) if kind == "focal" else None
    beta = None if result.imbalance_factor == 1 else result.beta
    return result.source, result.imbalance_factor, kind, gamma, beta


def _published() -> dict[tuple[str, float, str, float | None, float | None], float]:
    """Return Table 2 of Cui et al. 2019, whose class-balanced row has the best beta and gamma of each column."""
    with Path(__file__).with_name("paper_table2.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    table = {}
    for row in rows:
        kind = row["loss"].removeprefix("cb_")
        gamma = float(row["gamma"]) if row["gamma"] else None
        beta = float(row["beta"]) if row["beta"] else None
        if row["loss"].startswith("cb_") and beta is None:
            continue  # at imbalance factor 1 it repeats the row without weights
        table[row["dataset"], float(row["imbalance_factor"]), kind, gamma, beta] = float(row["error"])
    return table


@dataclass
class Difference:
    """How much better a method is than the baseline, on the same seeds, in percentage points."""

    method: str
    baseline: str
    data: str
    mean: float
    low: float  # of the 95 % bootstrap interval over seeds
    high: float
    seeds: int


def paired_differences(runs: Runs, metric: str = "error", seed: int = 0) -> list[Difference]:
    """Compare each method with the first on the seeds that both have."""
    sign = -1 if metric == "error" else 1
    rng = np.random.default_rng(seed)
    cells = runs.cells()
    baseline, *others = runs.methods()
    differences = []
    for data in runs.columns():
        reference = {result.seed: result.score(metric) for result in cells.get((baseline, data), [])}
        for method in others:
            here = {result.seed: result.score(metric) for result in cells.get((method, data), [])}
            gains = np.array([sign * (here[s] - reference[s]) for s in sorted(reference.keys() & here.keys(), key=str)])
            if len(gains) > 1:
                means = rng.choice(gains, (RESAMPLES, len(gains))).mean(1)
                low, high = np.quantile(means, [0.025, 0.975])
                differences.append(
                    Difference(method, baseline, data, float(gains.mean()), float(low), float(high), len(gains))
                )
    return differences
