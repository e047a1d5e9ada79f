"""Collect finished runs and name their methods and data sets."""

import contextlib
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

from lt_cb.errors import InputError
from lt_cb.lab.report import rows
from lt_cb.lab.report.result import ALWAYS_NAMED, CLASSES, LENGTH, STAGE, Result, Runs
from lt_cb.runs.folder import RunDir, flatten, is_tested_in_part
from lt_cb.runs.record import LOSS_FACTS, METRICS, Record

# settings that do not change training: paths, workers, loggers
IGNORED = (
    *("data.root", "data.subset_seed", "data.num_workers", "data.source.separator"),
    *("trainer.logger", "model.metrics"),
)
IGNORED_PREFIXES = ("trainer.logger.", "trainer.enable_", "trainer.default_root_dir")
DATA_SETTINGS = ("data.source", "data.imbalance_factor", "data.n_max", "data.imbalance_type", "data.subset_counts")
NEWER_DEFAULTS: dict[str, Any] = {  # of settings that older kept configurations lack
    "data.interpolation": "bilinear",
    "data.on_unreadable": "refuse",
    "data.split": 0.2,
    "data.task": None,
}


def collect(folder: Path) -> Runs:
    """Read all runs below a folder, or all rows of a folder of kept results.

    Raises:
        InputError: if there are none.
    """
    if (folder / rows.ROWS).is_file():
        found, missing = [Result.of(*kept) for kept in rows.read(folder)], list[tuple[Path, str]]()
    else:
        found, missing = _read_folders(folder)
    several = [result for result in found if result.record.task.multi_label]
    if 0 < len(several) < len(found):
        why = "several labels an image: report them from a folder of their own"
        missing = [(result.folder, why) for result in several] + missing
        found = [result for result in found if not result.record.task.multi_label]
    found, tests = _without_tests(found)
    unnamed = _name_methods(found)
    latest = {(r.method, r.data, r.seed): r for r in sorted(found, key=lambda r: r.time)}
    is_latest = [latest[r.method, r.data, r.seed] is r for r in found]
    repeated = [(r.folder, "repeated later") for r, latest in zip(found, is_latest, strict=True) if not latest]
    return Runs(list(compress(found, is_latest)), [*tests, *repeated, *missing], unnamed)


def read_run(where: str | Path) -> Result:
    """Read one run.

    Args:
        where: its folder. For a run logged by `lt_cb.loggers.WandB` also ``entity/project/run``.

    Raises:
        InputError: if there is no finished run.
    """
    if not Path(where).is_dir() and re.fullmatch(r"[^/.]+/[^/]+/[^/]+", str(where)):
        return read_run(_download(str(where)))
    return _read_folder(RunDir(where), RunDir(where).read_result())


def _read_folders(folder: Path) -> tuple[list[Result], list[tuple[Path, str]]]:
    """Return the finished runs below a folder, and why the others are missing."""
    found: list[Result] = []
    missing: list[tuple[Path, str]] = []
    for run in RunDir.below(folder):
        try:
            if (record := run.finished) is None:
                if run.result.exists():
                    run.read_result()  # raises InputError, unless the result is of another run
                if run.state is not None:
                    missing.append((run.path, run.state))
            elif not run.config.is_file():
                missing.append((run.path, f"without its {run.config.name}"))
            elif is_tested_in_part((result := _read_folder(run, record)).settings):
                missing.append((run.path, "tested on a part of the images (--trainer.limit_test_batches)"))
            else:
                found.append(result)
        except InputError as error:
            missing.append((run.path, str(error)))
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError):  # a value no configuration has
            missing.append((run.path, f"its {run.config.name} is damaged"))
    if not found:
        reasons = [reason for path, reason in missing if RunDir(path).result.exists()]
        name = RunDir(folder).result.name
        raise InputError(
            reasons[0] if reasons else f"there is no run with a {name} in '{folder}': give the folder of finished runs."
        )
    return found, missing


def _read_folder(run: RunDir, record: Record) -> Result:
    """Return a run with the metrics of its last validation."""
    config = run.read_config()
    last = _last_validation(run)
    if not last and record.prior is None and record.tested_on is None and record.checkpoint:
        trained = RunDir(Path(record.checkpoint).parent.parent)
        with contextlib.suppress(InputError):
            stages = [each["model"].get("second_stage") for each in (trained.read_config(), config)]
            last = _last_validation(trained) if stages[0] == stages[1] else {}  # else of other predictions
    validation = {name: float(value) for name, value in last.items() if name.startswith("val/") and value}
    if any(not 0 <= value <= 1 for name, value in validation.items() if name.split("/")[1] in METRICS):
        raise InputError(f"'{run.metrics}' is damaged (a rate is outside [0, 1]). Remove the file.")
    if not {"model.loss", "data.source"} <= flatten(config).keys():
        raise InputError(f"its {run.config.name} is damaged")
    record = replace(record, metrics=validation | record.metrics)
    return Result.of(run.path, record, config, {}, run.result.stat().st_mtime_ns)


def _last_validation(run: RunDir) -> dict[str, str]:
    return [{}, *(row for row in run.read_metrics() if row.get("val/acc") or row.get("val/mAP"))][-1]


def _download(name: str) -> Path:
    import wandb

    run = RunDir(Path(tempfile.mkdtemp(prefix="lt_cb_"), "run"))
    for file in (run.config, run.result):
        wandb.Api().run(name).file(f"run/{file.name}").download(root=str(run.path.parent))
    return run.path


def _without_tests(found: list[Result]) -> tuple[list[Result], list[tuple[Path, str]]]:
    """Return the runs without tests that repeat the test of a training or another test, and these tests.

    Logits that only a repeated test has saved stay with the run that it repeats.
    """

    def tested(result: Result) -> tuple[Any, ...]:
        files = [Path(file) for file in result.record.averaged or [result.record.checkpoint or "none"]]
        files = files if result.is_test else [result.folder / file.parent.name / file.name for file in files]
        prior, stage = result.record.prior, result.settings.get(STAGE)
        return frozenset(file.parts[-4:] for file in files), result.source, prior and tuple(prior), stage, result.seed

    kept = {tested(result): result for result in found if not result.is_test}
    repeated: list[Result] = []
    for result in sorted((result for result in found if result.is_test), key=lambda result: -result.time):
        first = kept.setdefault(tested(result), result)
        if first is not result:
            repeated.append(result)
            first.logits = first.logits if first.logits.exists() else result.logits
    dropped = set(map(id, repeated))
    left = [result for result in found if id(result) not in dropped]
    return left, [(result.folder, "tests a checkpoint again") for result in repeated]


def _name_methods(found: list[Result]) -> list[str]:
    """Name the runs by the settings that distinguish them; return the settings that vary without being named."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for result in found:
        groups[result.plain_name, result.data].append(result.settings)
    # settings that go with a loss or a data set, such as its learning rate, make no method of their own
    varied = {key for group in groups.values() for key in _varied(group)}
    always = _varied([result.settings for result in found]) & ALWAYS_NAMED.keys()
    distinguishing = _distinguishing(list(groups.values()), varied, {STAGE, *always}) | (varied & always)
    by_checkpoint = len({result.record.tested for result in found if result.record.l2_strength is None}) > 1
    for result in found:
        keys = distinguishing | {key for key in always if result.settings.get(key) != ALWAYS_NAMED[key]}
        result.name_by(sorted(keys), by_checkpoint)
    return sorted(varied - distinguishing - {STAGE, CLASSES})


def _varied(runs: Sequence[dict[str, Any]]) -> set[str]:
    """Return the settings of training that differ between runs, except data set and subset."""
    keys = {key for settings in runs for key in settings if key.startswith(("model", "data", "trainer."))}
    keys = {key for key in keys - {*IGNORED, *DATA_SETTINGS} if not key.startswith(IGNORED_PREFIXES)}
    keys = {key for key in keys if key.rpartition(".")[2] not in LOSS_FACTS}
    return {key for key in keys if len({_text(settings, [key]) for settings in runs}) > 1}


def _distinguishing(groups: list[list[dict[str, Any]]], varied: set[str], named: set[str]) -> set[str]:
    """Return the smallest set of settings that, with those already named, still distinguishes all runs (greedy).

    For example, runs with 200 epochs and padding 4, and with 40 epochs and padding 2, are distinguished by the epochs
    alone. A third run with 40 epochs and padding 4 needs both. Of equally good settings, the length of training is
    taken first, then the first by name, and the digest of the classes last.
    """

    def num_distinct(keys: set[str]) -> int:
        return sum(len({_text(settings, sorted(keys)) for settings in group}) for group in groups)

    chosen: set[str] = set()
    while num_distinct(chosen | named) < num_distinct(varied | named):
        left = sorted(varied - chosen - named, key=lambda key: (key != LENGTH, key == CLASSES, key))
        chosen.add(max(left, key=lambda key: num_distinct(chosen | named | {key})))
    return chosen


def _text(settings: dict[str, Any], keys: Sequence[str]) -> str:
    return json.dumps([settings.get(key, NEWER_DEFAULTS.get(key)) for key in keys], default=str)
