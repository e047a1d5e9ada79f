"""Means over seeds, the paper's figures, and differences paired by seed."""

import csv
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lt_cb.report.collect import ERRORS, WHOLE, Result, Runs

RESAMPLES = 10_000
KINDS = {"SoftmaxLoss": "softmax", "SigmoidLoss": "sigmoid", "FocalLoss": "focal"}
PUBLISHED: dict[str, tuple[int, dict[str, str]]] = {  # epochs of a table's runs, and the columns of metrics
    "paper_table2.csv": (200, {"error": "error"}),
    "paper_table3.csv": (90, {"error": "top1_error", "error_top5": "top5_error"}),
}
# source, subset, backbone, image size, kind of loss, gamma, beta
Key = tuple[str, str, str, int, str, float | None, float | None]


@dataclass
class Cell:
    """A metric of one method on one data set, over seeds, in percent."""

    method: str
    data: str
    values: list[float]
    best: bool = False  # best mean of its column
    paper: float | None = None
    unlike_paper: str = ""  # what is known to differ from the paper's run

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
    """Return the cells of the table of a metric, ``error``, ``error_top5``, ``acc`` or ``balanced_acc``."""
    published = _published(metric)
    cells = {}
    for (method, data), results in runs.cells().items():
        values = [result.score(metric) for result in sorted(results, key=lambda r: str(r.seed))]
        cells[method, data] = cell = Cell(method, data, values)
        first = results[0]  # what they could differ in is in the names of method and data
        if (key := _key(first)) in published:
            cell.paper, epochs = published[key]
            length = [] if first.epochs in (None, epochs) else [f"{first.epochs} epochs in place of {epochs}"]
            cell.unlike_paper = ", ".join([*length, *first.unlike_paper])
    for data in runs.columns():
        column = [cell for cell in cells.values() if cell.data == data]
        best = (min if metric in ERRORS else max)(cell.mean for cell in column)
        for cell in column:
            cell.best = cell.mean == best
    return cells


def _key(result: Result) -> Key | None:
    if result.family is None:
        return None  # weighted as nothing in the paper
    kind = KINDS.get(result.loss, result.loss)
    gamma = float(result.gamma or 0) if kind == "focal" else None
    beta = None if result.imbalance_factor == 1 else result.beta
    size = result.image_size or 32  # CIFAR's own; runs on larger images say theirs
    return result.source, result.subset, result.backbone, size, kind, gamma, beta


def _published(metric: str) -> dict[Key, tuple[float, int]]:
    """Return figures and epochs of Cui et al. 2019; Table 2's class-balanced row has the best beta and gamma only."""
    published: dict[Key, tuple[float, int]] = {}
    for file, (epochs, columns) in PUBLISHED.items():
        if metric not in columns:
            continue
        with Path(__file__).with_name(file).open() as stream:
            rows = list(csv.DictReader(stream))
        for row in rows:
            gamma, beta = (float(row[name]) if row[name] else None for name in ("gamma", "beta"))
            if row["loss"].startswith("cb_") and beta is None:
                continue  # at imbalance factor 1 it repeats the row without weights
            subset = f"IF {row['imbalance_factor']}" if "imbalance_factor" in row else WHOLE
            network = row.get("backbone", "resnet32"), int(row.get("input_size", 32))
            key = row["dataset"], subset, *network, row["loss"].removeprefix("cb_"), gamma, beta
            published[key] = float(row[columns[metric]]), epochs
    return published


@dataclass
class Difference:
    """How much better a method is than the baseline, on the same seeds, in percentage points."""

    method: str
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
            scores = {result.seed: result.score(metric) for result in cells.get((method, data), [])}
            gains = np.array(
                [sign * (scores[s] - reference[s]) for s in sorted(reference.keys() & scores.keys(), key=str)]
            )
            if len(gains) > 1:
                means = rng.choice(gains, (RESAMPLES, len(gains))).mean(1)
                low, high = np.quantile(means, [0.025, 0.975])
                differences.append(Difference(method, data, float(gains.mean()), float(low), float(high), len(gains)))
    return differences
