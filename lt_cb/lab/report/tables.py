"""Means over seeds, the paper's figures, and differences paired by seed."""

import csv
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lt_cb.data.sources.names import canonical_source
from lt_cb.errors import InputError
from lt_cb.lab.report.collect import ERRORS, Result, Runs
from lt_cb.lab.report.names import WHOLE

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
    best: bool = False  # best mean of its column, of a metric of images that are held out to choose by
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
        """Whether the paper's figure is in the 95 % interval of our mean, of Student's t; None for a single seed."""
        if self.paper is None or self.deviation is None:
            return None
        return abs(self.mean - self.paper) <= half_width(self.values)

    def __str__(self) -> str:
        """Show mean ± standard deviation."""
        spread = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        return f"{self.mean:.2f}{spread}"


def cells_of(runs: Runs, metric: str = "error") -> dict[tuple[str, str], Cell]:
    """Return the cells of the table of a metric, ``error``, ``error_top5``, ``acc`` or ``balanced_acc``."""
    published = _published(metric)
    cells = {}
    for (method, data), results in runs.cells().items():
        scores = [result.score(metric) for result in sorted(results, key=lambda r: str(r.seed))]
        values = [score for score in scores if score is not None]
        if not values:
            continue
        cells[method, data] = cell = Cell(method, data, values)
        first = results[0]  # what they could differ in is in the names of method and data
        if (key := _key(first)) in published:
            cell.paper, epochs = published[key]
            length = [] if first.epochs in (None, epochs) else [f"{first.epochs} epochs in place of {epochs}"]
            cell.unlike_paper = ", ".join([*length, *first.unlike_paper])
    if not cells and runs.results:
        raise InputError(f"no run has the metric {metric}: validate at the end, or choose another by --metric.")
    if metric.startswith("val/"):
        for data in dict.fromkeys(cell.data for cell in cells.values()):
            column = [cell for cell in cells.values() if cell.data == data]
            max(column, key=lambda cell: cell.mean).best = True
    return cells


def _key(result: Result) -> Key | None:
    if result.family is None:
        return None  # weighted as nothing in the paper
    kind = KINDS.get(result.loss, result.loss)
    gamma = float(result.gamma or 0) if kind == "focal" else None
    beta = None if result.imbalance_factor == 1 else result.beta
    size = result.image_size or 32  # CIFAR's own; runs on larger images say theirs
    return result.source_class, result.subset, result.backbone, size, kind, gamma, beta


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
            key = canonical_source(row["dataset"]), subset, *network, row["loss"].removeprefix("cb_"), gamma, beta
            published[key] = float(row[columns[metric]]), epochs
    return published


@dataclass
class Difference:
    """How much better a method is than its baseline, on the same seeds, in percentage points."""

    method: str
    baseline: str
    data: str
    mean: float
    low: float  # of the 95 % interval of Student's t over seeds
    high: float
    seeds: int

    def verdict(self, metric: str) -> str:
        """Say whether the metric is lower or higher than the baseline's, or the interval holds 0."""
        if self.low <= 0 <= self.high:
            return "not told apart"
        return "higher" if (self.mean > 0) != (metric in ERRORS) else "lower"


def paired_differences(runs: Runs, metric: str = "error") -> list[Difference]:
    """Compare each method with its baseline, on two or more seeds that both have."""
    differences = []
    for method, baseline, data, gains in paired_gains(runs, metric):
        if len(gains) > 1:
            mean, half = statistics.mean(gains), half_width(gains)
            differences.append(Difference(method, baseline, data, mean, mean - half, mean + half, len(gains)))
    return differences


def paired_gains(runs: Runs, metric: str) -> list[tuple[str, str, str, list[float]]]:
    """Return method, baseline, data, and how much better the method is on each seed that both have, in points.

    The baseline is the first of the methods that differ from it by loss and weights alone, as those of the same number
    of epochs; of a method that stands alone in that, the first of all.
    """
    sign = -1 if metric in ERRORS else 1
    cells, methods = runs.cells(), runs.methods()
    others = {result.method: result.others for result in runs.results}
    paired = []
    for data in runs.columns():
        for method in methods:
            alike = [name for name in methods if others[name] == others[method]]
            baseline = alike[0] if len(alike) > 1 else methods[0]
            if method == baseline:
                continue
            reference = _by_seed(cells.get((baseline, data), []), metric)
            scores = _by_seed(cells.get((method, data), []), metric)
            shared = sorted(reference.keys() & scores.keys(), key=str)
            paired.append((method, baseline, data, [sign * (scores[s] - reference[s]) for s in shared]))
    return paired


def _by_seed(results: Sequence[Result], metric: str) -> dict[tuple[int, int | None], float]:
    scores = {result.seed: result.score(metric) for result in results}
    return {seed: score for seed, score in scores.items() if score is not None}


def half_width(values: Sequence[float]) -> float:
    """Return half of the 95 % interval of Student's t for the mean of two or more values."""
    return student_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def student_quantile(freedom: int, level: float = 0.95) -> float:
    """Return the t that a variable of Student's distribution is within with a probability.

    The probability is the finite sum of Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.

    Args:
        freedom: degrees of freedom, at least 1.
        level: probability of [-t, t], in (0, 1).
    """

    def inside(t: float) -> float:
        angle = math.atan(t / math.sqrt(freedom))
        term = math.cos(angle) if freedom % 2 else 1.0
        total = 0.0
        for k in range(2 if freedom % 2 else 1, freedom, 2):
            total, term = total + term, term * math.cos(angle) ** 2 * k / (k + 1)
        total *= math.sin(angle)
        return 2 / math.pi * (angle + total) if freedom % 2 else total

    low, high = 0.0, 1.0
    while inside(high) < level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < level else (low, middle)
    return high


def wilson(correct: int, counted: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % interval of a rate after Wilson 1927, in [0, 1]: of 40 test images it is 30 points wide at 50 %.

    Args:
        correct: successes.
        counted: trials; without any the interval is [0, 1].
        z: quantile of the normal distribution.
    """
    if not counted:
        return 0.0, 1.0
    rate, shrunk = correct / counted, 1 + z**2 / counted
    centre = (rate + z**2 / (2 * counted)) / shrunk
    half = z / shrunk * math.sqrt(rate * (1 - rate) / counted + z**2 / (4 * counted**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)
