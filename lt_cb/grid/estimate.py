"""How long runs will take, from those that are done. Imports no torch."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lt_cb.errors import InputError
from lt_cb.grid.plan import Run
from lt_cb.grid.work import is_done
from lt_cb.run import read_yaml

NEWEST = 20  # runs outside of a grid that are looked at


@dataclass
class _Done:
    config: dict[str, Any]
    counts: list[int]
    seconds: float

    @property
    def rate(self) -> float:
        """Seconds an image and epoch."""
        return self.seconds / sum(self.counts) / _epochs(self.config)


def seconds(run: Run) -> float:
    """Return how long a finished run took."""
    return _read(run.folder, run.config).seconds


def time_left(all_runs: Sequence[Run], runs: Sequence[Run], folder: Path) -> tuple[float, int]:
    """Estimate the time of what is to do, one run after the other.

    A run takes as long as those on its data, by epoch; or else as those of the same network on the same source, by
    image and epoch, in the grid or among the newest beside it.

    Args:
        all_runs: those of the grid.
        runs: those to estimate.
        folder: of the grid.

    Returns:
        Seconds, and the number of runs that nothing done is like.
    """
    done = [_read(run.folder, run.config) for run in all_runs if is_done(run)]
    done += _beside(folder)
    alike: dict[str, list[_Done]] = defaultdict(list)
    for one in done:
        for key in {_data(one.config), _kind(one.config)}:
            alike[key].append(one)
    total, unknown = 0.0, 0
    for run in runs:
        if is_done(run):
            continue
        likest = alike.get(_data(run.config)) or alike.get(_kind(run.config))
        if likest is None:
            unknown += 1
        else:
            rate = statistics.mean(one.rate for one in likest)
            total += rate * _images(run.config, likest[0]) * _epochs(run.config)
    return total, unknown


def _beside(folder: Path) -> Iterable[_Done]:
    files = [file for file in folder.parent.glob("**/result.json") if folder not in file.parents]
    for file in sorted(files, key=lambda file: -file.stat().st_mtime_ns)[:NEWEST]:
        try:
            yield _read(file.parent, read_yaml(file.with_name("config.yaml")))
        except (InputError, ValueError, KeyError, TypeError):  # no run, or damaged: it is the report that says so
            continue


def _read(folder: Path, config: dict[str, Any]) -> _Done:
    result = json.loads((folder / "result.json").read_text())
    return _Done(config, [int(n) for n in result["class_counts"]], float(sum(result["wall_time_s"].values())))


def _data(config: dict[str, Any]) -> str:
    return json.dumps(config.get("data"), sort_keys=True, default=str)


def _kind(config: dict[str, Any]) -> str:
    data, model = config.get("data") or {}, config.get("model") or {}
    return json.dumps([data.get("source", "digits"), data.get("image_size"), model.get("backbone", "resnet32")])


def _epochs(config: dict[str, Any]) -> float:
    return max(float((config.get("trainer") or {}).get("max_epochs") or 1), 1.0)


def _images(config: dict[str, Any], like: _Done) -> float:
    """Return the training images of a run whose source is that of another."""
    data = config.get("data") or {}
    if data == like.config.get("data"):
        return sum(like.counts)
    if data.get("subset_counts"):
        return float(sum(data["subset_counts"]))
    n_max, classes = data.get("n_max") or max(like.counts), len(like.counts)
    factor = float(data.get("imbalance_factor") or 1)
    if data.get("imbalance_type") == "step":
        return float(n_max * classes * (1 + 1 / factor) / 2)
    return float(sum(n_max * factor ** (-c / max(classes - 1, 1)) for c in range(classes)))
