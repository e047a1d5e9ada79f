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
    """Error of one method on one data set, over seeds, in percent."""

    method: str
    data: str
    errors: list[float]
    best: bool = False  # lowest mean of its column
    paper: float | None = None

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.mean(self.errors)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over seeds, None for one."""
        return statistics.stdev(self.errors) if len(self.errors) > 1 else None

    @property
    def agrees(self) -> bool | None:
        """Whether the paper's figure is within two standard errors of the mean; None if that cannot be said."""
        if self.paper is None or self.deviation is None:
            return None
        return abs(self.mean - self.paper) <= 2 * self.deviation / math.sqrt(len(self.errors))

    def __str__(self) -> str:
        """Show mean ± standard deviation."""
        spread = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        return f"{self.mean:.2f}{spread}"


def error_cells(runs: Runs) -> dict[tuple[str, str], Cell]:
    """Return the cells of the table of errors."""
    published = _published()
    cells = {}
    for (method, data), results in runs.cells().items():
        errors = [result.error() for result in sorted(results, key=lambda r: str(r.seed))]
        cells[method, data] = Cell(method, data, errors, paper=published.get(_key(results[0])))
    for data in runs.columns():
        column = [cell for cell in cells.values() if cell.data == data]
        lowest = min(cell.mean for cell in column)
        for cell in column:
            cell.best = cell.mean == lowest
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
    """How much lower the error of a method is than the baseline's, on the same seeds, in percentage points."""

    method: str
    baseline: str
    data: str
    mean: float
    low: float  # of the 95 % bootstrap interval over seeds
    high: float
    seeds: int


def paired_differences(runs: Runs, seed: int = 0) -> list[Difference]:
    """Compare each method with the first on the seeds that both have."""
    rng = np.random.default_rng(seed)
    cells = runs.cells()
    baseline, *others = runs.methods()
    differences = []
    for data in runs.columns():
        reference = {result.seed: result.error() for result in cells.get((baseline, data), [])}
        for method in others:
            here = {result.seed: result.error() for result in cells.get((method, data), [])}
            gains = np.array([reference[s] - here[s] for s in sorted(reference.keys() & here.keys(), key=str)])
            if len(gains) > 1:
                means = rng.choice(gains, (RESAMPLES, len(gains))).mean(1)
                low, high = np.quantile(means, [0.025, 0.975])
                differences.append(
                    Difference(method, baseline, data, float(gains.mean()), float(low), float(high), len(gains))
                )
    return differences
