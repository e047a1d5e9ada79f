"""Finished runs with the names of their methods (rows of a table) and data sets (columns)."""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from lt_cb.errors import InputError
from lt_cb.runs.record import SHOTS, Record
from lt_cb.task import Task

ERRORS = {"error": "acc", "error_top5": "acc_top5"}  # error in percent -> accuracy


@dataclass
class Result:
    """One finished run with its names.

    Attributes:
        folder: of the run; of a kept row, experiment and seeds.
        record: content of ``result.json``, with the metrics of the last validation.
        data: name of the data set, with the subset (a column).
        method: name of the method (a row).
        family: the method without its beta; None for weights other than the effective number.
        others: parts of the method's name behind loss and weights, for example ``max_epochs 40``.
        source: name of the data set, or of the user's own images.
        source_class: class name or class path of the data set.
        imbalance_factor: largest over smallest class count.
        subset: ``WHOLE``, or the requested profile.
        backbone: name.
        image_size: in pixels; None is the size of the source.
        epochs: of the training, None if unknown.
        unlike_paper: settings that no run of the paper has.
        loss: class name.
        gamma: of a focal loss.
        beta: of the effective number; None without weights.
        row: columns of a kept row.
    """

    folder: Path
    record: Record
    data: str
    method: str
    family: str | None
    others: list[str]
    source: str
    source_class: str
    imbalance_factor: float
    subset: str
    backbone: str
    image_size: int | None
    epochs: int | None
    unlike_paper: list[str]
    loss: str
    gamma: float | None
    beta: float | None
    row: dict[str, str]

    @property
    def seed(self) -> tuple[int, int]:
        """Seeds of training and subset; -1 is an unknown seed."""
        seeds = self.record.seed_everything, self.record.subset_seed
        return -1 if seeds[0] is None else seeds[0], -1 if seeds[1] is None else seeds[1]

    @property
    def metrics(self) -> dict[str, float]:
        """Values of the test by name, ``acc``, and of the last validation, ``val/acc``."""
        return {name.removeprefix("test/"): value for name, value in self.record.metrics.items()}

    def score(self, metric: str) -> float | None:
        """Return a metric in percent: ``error`` (top-1), ``error_top5``, or a name of ``metrics``; None without it.

        Raises:
            InputError: for a validation metric that was measured on the test images.
        """
        if metric.startswith("val/") and self.record.validated_on in (None, "test"):
            raise InputError(
                f"'{self.folder}' was validated on the test images, and nothing may be chosen by them: train with "
                "--data.val_fraction 0.1, or with validation images of your own."
            )
        value = self.metrics.get(ERRORS.get(metric, metric))
        return None if value is None else 100.0 - 100.0 * value if metric in ERRORS else 100.0 * value


@dataclass
class Runs:
    """The runs below a folder.

    Attributes:
        results: runs in the tables, all of one task.
        missing: folder of each other run, and why it is not in the tables.
        unnamed: settings that differ between methods of one loss, but are not in their names.
    """

    results: list[Result]
    missing: list[tuple[Path, str]]
    unnamed: list[str] = field(default_factory=list)

    @property
    def task(self) -> Task:
        """One label or several labels an image."""
        return self.results[0].record.task

    @property
    def measure(self) -> str:
        """Score of a class, ``accuracy`` or ``average precision``."""
        return self.task.measures[0].replace("_", " ")

    @property
    def group_means(self) -> dict[str, str]:
        """Metric of each shot group that runs have, by the name of the group."""
        names = {shot: f"{self.task.group_metric}/{shot}" for shot in SHOTS}
        return {shot: name for shot, name in names.items() if any(name in result.metrics for result in self.results)}

    def cells(self) -> dict[tuple[str, str], list[Result]]:
        """Return the runs of each (method, data), over seeds."""
        cells: dict[tuple[str, str], list[Result]] = defaultdict(list)
        for result in self.results:
            cells[result.method, result.data].append(result)
        return cells

    def methods(self) -> list[str]:
        """Return the rows: unweighted losses first, and of these the ones closest to the paper's training first."""
        order = {"SoftmaxLoss": 0, "SigmoidLoss": 1, "FocalLoss": 2}

        def place(r: Result) -> tuple[bool, bool, int, str]:
            by_number = re.sub(r"\d+", lambda digits: digits[0].zfill(8), r.method)
            return r.beta is not None or r.family is None, bool(r.unlike_paper), order.get(r.loss, 3), by_number

        places = {r.method: place(r) for r in reversed(self.results)}
        return sorted(places, key=lambda method: places[method])

    def columns(self) -> list[str]:
        """Return the data sets, each from the highest imbalance factor to the lowest."""
        keys = {result.data: (result.source, -result.imbalance_factor, result.data) for result in self.results}
        return sorted(keys, key=lambda data: keys[data])
