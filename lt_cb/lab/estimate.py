"""How long runs will take, from finished ones. Imports no torch."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lt_cb.errors import InputError
from lt_cb.lab.plan import Plan, Run
from lt_cb.runs.folder import RunDir, flatten

NEWEST = 20  # runs outside of a grid that are looked at
NETWORK = {"data.source": "digits", "data.image_size": None, "model.backbone": "resnet32"}  # with their defaults


@dataclass
class _Finished:
    settings: dict[str, Any]
    counts: list[int]
    seconds: float


def time_left(plan: Plan, runs: Sequence[Run]) -> tuple[float | None, float, int]:
    """Estimate the time of what is to do, one run after the other.

    A run takes as long as those on its data, by epoch; or else as those of the same network on the same source, by
    image and epoch, in the grid or among the newest beside it.

    Args:
        plan: of the grid.
        runs: those of its runs to estimate.

    Returns:
        Seconds of a finished run of the grid, None without one; seconds of all that is to do; and the number of runs
        without a comparable finished run, which are not in it.
    """
    finished = [_finished(run.dir, run.settings()) for run in plan.runs if run.dir.is_done]
    by_kind: dict[str, list[_Finished]] = defaultdict(list)
    for run in [*finished, *_beside(plan.folder)]:
        for kind in _kinds(run.settings):
            by_kind[kind].append(run)
    total, unknown = 0.0, 0
    for planned in [run for run in runs if not run.dir.is_done]:
        settings = planned.settings()
        comparable = next((by_kind[kind] for kind in _kinds(settings) if kind in by_kind), None)
        if comparable is None:
            unknown += 1
            continue
        try:
            rate = statistics.mean(other.seconds / sum(other.counts) / _epochs(other.settings) for other in comparable)
            total += rate * _images(settings, comparable[0]) * max(_epochs(settings) - _trained(planned.dir), 0.0)
        except (TypeError, ValueError, ArithmeticError):  # what is set is wrong, as fit will say
            unknown += 1
    return statistics.mean(run.seconds for run in finished) if finished else None, total, unknown


def _finished(run: RunDir, settings: dict[str, Any]) -> _Finished:
    result = run.read_result()
    return _Finished(settings, result.class_counts, result.seconds)


def _beside(folder: Path) -> Iterator[_Finished]:
    files = [file for file in folder.parent.rglob(RunDir(folder).result.name) if folder not in file.parents]
    for file in sorted(files, key=lambda file: -file.stat().st_mtime_ns)[:NEWEST]:
        run = RunDir(file.parent)
        try:
            yield _finished(run, flatten(run.read_config()))
        except InputError:  # no run, or damaged: it is the report that says so
            continue


def _kinds(settings: dict[str, Any]) -> tuple[str, str]:
    """Return what runs of the same length have in common: the data, or source, image size and network."""
    data = {key: value for key, value in settings.items() if key.startswith("data.")}
    network = [settings.get(key, default) for key, default in NETWORK.items()]
    return json.dumps(data, sort_keys=True, default=str), json.dumps(network, default=str)


def _epochs(settings: dict[str, Any]) -> float:
    return max(float(settings.get("trainer.max_epochs") or 1), 1.0)


def _trained(run: RunDir) -> float:
    """Return how many epochs a run that was interrupted has behind it."""
    try:
        rows = run.read_metrics() if run.checkpoint.is_file() else []
    except InputError:
        return 0.0
    return 1.0 + max((float(row["epoch"]) for row in rows if row.get("epoch")), default=-1.0)


def _images(settings: dict[str, Any], run: _Finished) -> float:
    """Return the training images of a run on the source of a finished one."""
    from lt_cb.longtail.profile import class_counts_exponential, class_counts_step

    if _kinds(settings)[0] == _kinds(run.settings)[0]:
        return sum(run.counts)
    if settings.get("data.subset_counts"):
        return float(sum(settings["data.subset_counts"]))
    profile = class_counts_step if settings.get("data.imbalance_type") == "step" else class_counts_exponential
    n_max = settings.get("data.n_max") or max(run.counts)
    return float(sum(profile(n_max, len(run.counts), float(settings.get("data.imbalance_factor") or 1))))
