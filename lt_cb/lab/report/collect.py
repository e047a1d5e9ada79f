"""Collect finished runs and name their methods and data sets."""

import contextlib
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lt_cb.errors import InputError
from lt_cb.lab.report import rows
from lt_cb.lab.report.names import NAMED_BY_ROOT, WHOLE, method_of, settings_of, source_of, subset_of
from lt_cb.lab.report.result import Result, Runs
from lt_cb.runs.callbacks import training_callbacks
from lt_cb.runs.folder import RunDir, flatten, is_tested_in_part
from lt_cb.runs.record import Record

# settings that do not change training: paths, workers, loggers
IGNORED = (
    *("data.root", "data.subset_seed", "data.num_workers", "data.source.separator", "trainer.logger", "model.metrics"),
)
IGNORED_PREFIXES = ("model.loss", "trainer.logger.", "trainer.enable_", "trainer.default_root_dir")
DATA_SETTINGS = ("data.source", "data.imbalance_factor", "data.n_max", "data.imbalance_type", "data.subset_counts")
CALLBACKS, STAGE, LENGTH = "trainer.callbacks", "model.second_stage", "trainer.max_epochs"
# settings that are named wherever they differ from their defaults, if they differ between runs
ALWAYS_NAMED: dict[str, Any] = {"model.backbone": "resnet32", "data.image_size": None, CALLBACKS: None}
NEWER_DEFAULTS: dict[str, Any] = {  # of settings that older kept configurations lack
    "data.interpolation": "bilinear",
    "data.on_unreadable": "refuse",
}
NOT_IN_PAPER = (
    *("data.val_fraction", "data.sampler", "model.mix", "model.drw_start", STAGE, "model.backbone_args.pretrained"),
    CALLBACKS,
)


class Run(NamedTuple):
    """A finished run before it has a name."""

    path: Path
    record: Record
    settings: dict[str, Any]
    source: str  # as the configuration spells it, or the name of the user's own images
    row: dict[str, str]  # of kept results, else empty
    time: int = 0  # of writing, in nanoseconds


def collect(folder: Path) -> Runs:
    """Read all runs below a folder, or all rows of a folder of kept results.

    Raises:
        InputError: if there are none.
    """
    missing: list[tuple[Path, str]] = []
    if (folder / rows.ROWS).is_file():
        kept = rows.read(folder)
        found = [_run(path, record, config, row) for path, record, config, row in kept]
    else:
        found, missing = _read_folders(folder)
    one_label = [run for run in found if not run.record.task.multi_label]
    if 0 < len(one_label) < len(found):
        why = "several labels an image: report them from a folder of their own"
        missing = [(run.path, why) for run in found if run.record.task.multi_label] + missing
        found = one_label
    results, unnamed = _named(_one_spelling(found))
    by_time = sorted(range(len(found)), key=lambda place: found[place].time)
    latest = {(results[place].method, results[place].data, results[place].seed): place for place in by_time}
    kept_places = set(latest.values())
    repeated = [(result.folder, "repeated later") for i, result in enumerate(results) if i not in kept_places]
    return Runs([result for i, result in enumerate(results) if i in kept_places], [*repeated, *missing], unnamed)


def read_run(where: str | Path) -> Result:
    """Read one run.

    Args:
        where: its folder. For a run logged by `lt_cb.loggers.WandB` also ``entity/project/run``.

    Raises:
        InputError: if there is no finished run.
    """
    if not Path(where).is_dir() and re.fullmatch(r"[^/.]+/[^/]+/[^/]+", str(where)):
        return read_run(_download(str(where)))
    return _result(_read_folder(RunDir(where)))


def _read_folders(folder: Path) -> tuple[list[Run], list[tuple[Path, str]]]:
    """Return the finished runs below a folder, and why the others are missing."""
    found: list[Run] = []
    missing: list[tuple[Path, str]] = []
    for run in RunDir.below(folder):
        try:
            if not run.is_done:
                if run.result.exists():
                    run.read_result()  # raises InputError, unless the result is of another run
                if run.state is not None:
                    missing.append((run.path, run.state))
            elif not run.config.is_file():
                missing.append((run.path, f"without its {run.config.name}"))
            elif is_tested_in_part(flatten(run.read_config())):
                missing.append((run.path, "tested on a part of the images (--trainer.limit_test_batches)"))
            else:
                read = _read_folder(run)
                _result(read)
                found.append(read)
        except InputError as error:
            missing.append((run.path, str(error)))
        except (
            TypeError,
            ValueError,
            AttributeError,
            LookupError,
            ArithmeticError,
        ):  # a value that no configuration has
            missing.append((run.path, f"its {run.config.name} is damaged"))
    if not found:
        reasons = [reason for path, reason in missing if RunDir(path).result.exists()]
        name = RunDir(folder).result.name
        raise InputError(
            reasons[0] if reasons else f"there is no run with a {name} in '{folder}': give the folder of finished runs."
        )
    return found, missing


def _read_folder(run: RunDir) -> Run:
    """Read a run with the metrics of its last validation."""
    record, config = run.read_result(), run.read_config()
    last = _last_validation(run)
    if not last and record.prior is None and record.checkpoint:
        trained = RunDir(Path(record.checkpoint).parent.parent)
        with contextlib.suppress(InputError):
            stages = [each["model"].get("second_stage") for each in (trained.read_config(), config)]
            last = _last_validation(trained) if stages[0] == stages[1] else {}  # else of other predictions
    validation = {name: float(value) for name, value in last.items() if name.startswith("val/") and value}
    record = replace(record, metrics=validation | record.metrics)
    return _run(run.path, record, config, {}, run.result.stat().st_mtime_ns)


def _last_validation(run: RunDir) -> dict[str, str]:
    validated = [row for row in run.read_metrics() if row.get("val/acc") or row.get("val/mAP")]
    return validated[-1] if validated else {}


def _run(path: Path, record: Record, config: dict[str, Any], row: dict[str, str], time: int = 0) -> Run:
    callbacks = training_callbacks(config) if record.callbacks is None else record.callbacks
    return Run(path, record, settings_of(config, callbacks), source_of(flatten(config)), row, time)


def _download(name: str) -> Path:
    import wandb

    run = RunDir(Path(tempfile.mkdtemp(prefix="lt_cb_"), "run"))
    for file in (run.config, run.result):
        wandb.Api().run(name).file(f"run/{file.name}").download(root=str(run.path.parent))
    return run.path


def _one_spelling(found: list[Run]) -> list[Run]:
    """Return the runs with one spelling of each data set: the runs' own if they agree, else the class name."""
    spellings: dict[str, set[str]] = defaultdict(set)
    for run in found:
        spellings[_source_class(run)].add(run.source)
    mixed = {path for path, names in spellings.items() if len(names) > 1 and path not in NAMED_BY_ROOT}
    return [run._replace(source=_source_class(run)) if _source_class(run) in mixed else run for run in found]


def _source_class(run: Run) -> str:
    return str(run.settings.get("data.source", "?"))


def _named(found: list[Run]) -> tuple[list[Result], list[str]]:
    """Return the runs with their names, and the settings that vary without being named."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in found:
        named = {k: v for k, v in run.settings.items() if k in DATA_SETTINGS or k.startswith("model.loss")}
        groups[json.dumps(named, sort_keys=True, default=str)].append(run.settings)
    # settings that go with a loss or a data set, such as its learning rate, make no method of their own
    varied = {key for group in groups.values() for key in _varied(group)}
    always = _varied([run.settings for run in found]) & ALWAYS_NAMED.keys()
    distinguishing = _distinguishing(list(groups.values()), varied, {STAGE, *always}) | (varied & always)
    by_checkpoint = len({run.record.tested for run in found}) > 1
    results = []
    for run in found:
        keys = distinguishing | {key for key in always if run.settings.get(key) != ALWAYS_NAMED[key]}
        results.append(_result(run, sorted(keys), by_checkpoint))
    return results, sorted(varied - distinguishing - {STAGE})


def _varied(runs: Sequence[dict[str, Any]]) -> set[str]:
    """Return the settings of training that differ between runs, except loss, data set and subset."""
    keys = {key for settings in runs for key in settings if key.startswith(("model", "data", "trainer."))}
    keys = {key for key in keys - {*IGNORED, *DATA_SETTINGS} if not key.startswith(IGNORED_PREFIXES)}
    return {key for key in keys if len({_text(settings, [key]) for settings in runs}) > 1}


def _distinguishing(groups: list[list[dict[str, Any]]], varied: set[str], named: set[str]) -> set[str]:
    """Return the smallest set of settings that, with those already named, still distinguishes all runs (greedy).

    For example, runs with 200 epochs and padding 4, and with 40 epochs and padding 2, are distinguished by the epochs
    alone. A third run with 40 epochs and padding 4 needs both.

    Args:
        groups: settings of the runs of one loss on one data set.
        varied: settings that differ within a group. Of equally good ones, the length of training is taken first, then
            the first by name.
        named: settings that are named anyway.
    """

    def num_distinct(keys: set[str]) -> int:
        return sum(len({_text(settings, sorted(keys)) for settings in group}) for group in groups)

    chosen: set[str] = set()
    while num_distinct(chosen | named) < num_distinct(varied | named):
        left = sorted(varied - chosen - named, key=lambda key: (key != LENGTH, key))
        chosen.add(max(left, key=lambda key: num_distinct(chosen | named | {key})))
    return chosen


def _text(settings: dict[str, Any], keys: Sequence[str]) -> str:
    return json.dumps([settings.get(key, NEWER_DEFAULTS.get(key)) for key in keys], default=str)


def _result(run: Run, keys: Sequence[str] = (), name_checkpoint: bool = False) -> Result:
    """Return a run with its names; ``keys`` are the settings in the name of its method."""
    record, settings = run.record, run.settings
    counts = record.class_counts
    factor = settings.get("data.imbalance_factor") or max(counts) / max(min(counts), 1)
    subset, method = subset_of(settings, factor), method_of(settings)
    named = sorted({*keys, *([STAGE] if settings.get(STAGE) else [])})
    others = [f"{key.partition('.')[2] or key} {settings[key]}" for key in named if settings.get(key) is not None]
    others += [f"{record.tested} checkpoint"] if name_checkpoint else []
    others += [f"prior {settings['prior']}"] if settings.get("prior") else []  # of a test
    epochs, size = record.epochs or settings.get(LENGTH), settings.get("data.image_size")
    return Result(
        folder=run.path,
        record=record,
        data=f"{run.source}, IF {factor:g}" if subset == WHOLE else f"{run.source} {subset}",
        method=", ".join([method.name, *others]),
        family=None if method.family is None else ", ".join([method.family, *others]),
        others=others,
        source=run.source,
        source_class=_source_class(run),
        imbalance_factor=float(factor),
        subset=subset,
        backbone=str(settings.get("model.backbone", ALWAYS_NAMED["model.backbone"])),
        image_size=None if size is None else int(size),
        epochs=None if epochs is None else int(epochs),
        unlike_paper=[f"{key.partition('.')[2]} {settings[key]}" for key in NOT_IN_PAPER if settings.get(key)],
        loss=method.loss,
        gamma=method.gamma,
        beta=method.beta,
        row=run.row,
    )
