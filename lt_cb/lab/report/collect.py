"""From run folders to rows and columns: what was trained on what, and how it came out."""

import contextlib
import json
import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lt_cb.errors import InputError
from lt_cb.lab.report import rows
from lt_cb.lab.report.names import WHOLE, method_of, source_of, subset_of
from lt_cb.runs.folder import AVERAGE_PRECISION, RunDir, flatten, is_tested_in_part

# keys that do not change what is trained: paths, workers, loggers, callbacks
IGNORED = (
    *("data.root", "data.subset_seed", "data.num_workers", "data.source.separator", "trainer.logger", "model.metrics"),
)
IGNORED_PREFIXES = ("trainer.callbacks", "trainer.logger.", "trainer.enable_", "trainer.default_root_dir")
NAMED = ("data.source", "data.imbalance_factor", "data.n_max", "data.imbalance_type", "data.subset_counts")
NETWORK: dict[str, Any] = {"model.backbone": "resnet32", "data.image_size": None}  # with their defaults
LATER: dict[str, Any] = {  # options of which runs of earlier versions say nothing
    "data.interpolation": "bilinear",
    "data.on_unreadable": "refuse",
}
STAGE, LENGTH = "model.second_stage", "trainer.max_epochs"
NOT_OF_THE_PAPER = (
    "data.val_fraction",
    "data.sampler",
    "model.mix",
    "model.drw_start",
    STAGE,
    "model.backbone_args.pretrained",
)
ERRORS = {"error": "acc", "error_top5": "acc_top5"}  # each is 100 % less a metric


@dataclass
class Result:
    """One finished run."""

    folder: Path
    data: str  # column
    method: str  # row
    family: str | None  # the row without its beta; None for other weights than those of an effective number
    others: list[str]  # what else the method's name has, as its number of epochs
    source: str  # of the data, or their own name
    imbalance_factor: float
    subset: str  # of the source's training images: WHOLE, or what was asked for
    backbone: str
    image_size: int | None  # None is the source's
    epochs: int | None
    unlike_paper: list[str]  # settings that none of the paper's runs has
    loss: str
    gamma: float | None
    beta: float | None  # None without weights
    seed: tuple[int, int | None]  # of training and subset
    metrics: dict[str, float]
    class_names: list[str]
    class_counts: list[int]
    shot_groups: dict[str, list[int]]
    per_class: list[float | None]
    checkpoint: str  # last, best or none
    validated_on: str | None  # held_out or val, or the test images
    counted: list[int]  # test images of each class
    confusion: list[list[int]]  # test images by true, then predicted class; empty of many classes
    multi_label: bool  # several labels an image, whose per_class is average precision, and accuracy else
    row: dict[str, str]  # of kept results

    @property
    def measure(self) -> str:
        """What each class is measured by."""
        return "average precision" if self.multi_label else "accuracy"

    @property
    def means(self) -> tuple[str, ...]:
        """The names of the means over all classes and over those of each shot group, if there are any."""
        mean, group = ("mAP", "mAP") if self.multi_label else ("balanced_acc", "acc")
        return mean, *[f"{group}/{name}" for name in ("many", "medium", "few")]

    def score(self, metric: str) -> float | None:
        """Return ``error`` (top-1), ``error_top5``, ``acc`` or another of the metrics, in percent, None without it.

        Raises:
            InputError: if it is a validation metric, but of the test images.
        """
        if metric.startswith("val/") and self.validated_on in (None, "test"):
            raise InputError(
                f"'{self.folder}' was validated on the test images, by which nothing may be chosen: train with "
                "--data.val_fraction 0.1, or with validation images of your own."
            )
        value = self.metrics.get(ERRORS.get(metric, metric))
        return None if value is None else 100.0 - 100.0 * value if metric in ERRORS else 100.0 * value


@dataclass
class Runs:
    """The runs below a folder."""

    results: list[Result]
    missing: list[tuple[Path, str]]  # folder, and why it is not in the tables
    unnamed: list[str] = field(default_factory=list)  # settings that differ beside those in the names of methods

    @property
    def multi_label(self) -> bool:
        """Whether the runs are of several labels an image, as all are or none is."""
        return any(result.multi_label for result in self.results)

    @property
    def measure(self) -> str:
        """What each class is measured by."""
        return self.results[0].measure

    @property
    def means(self) -> list[str]:
        """The names of the means over all classes and over those of shot groups that runs have."""
        return [name for name in self.results[0].means if any(name in result.metrics for result in self.results)]

    def cells(self) -> dict[tuple[str, str], list[Result]]:
        """Return the runs of each (method, data), over seeds."""
        cells: dict[tuple[str, str], list[Result]] = defaultdict(list)
        for result in self.results:
            cells[result.method, result.data].append(result)
        return cells

    def methods(self) -> list[str]:
        """Return the rows: losses without weights first, of those what has no second stage, sampler or the like."""
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


def collect(folder: Path) -> Runs:
    """Read all runs below a folder.

    Raises:
        InputError: if there are none.
    """
    damaged: dict[Path, str] = {}
    if (folder / rows.ROWS).is_file():
        existing = []
        done = [(path, raw, flatten(config)) for path, raw, config in rows.read(folder)]
    else:
        existing, done = RunDir.below(folder), []
        for run in existing:
            if run.is_done and run.config.is_file():
                try:
                    raw, config = _raw(run), flatten(run.read_config())
                    _result(run.path, raw, config)
                    if is_tested_in_part(config):
                        damaged[run.path] = "tested on a part of the images (--trainer.limit_test_batches)"
                    else:
                        done.append((run.path, raw, config))
                except InputError as error:
                    damaged[run.path] = str(error)
                except (TypeError, ValueError, AttributeError, LookupError):  # of a value that no run has
                    damaged[run.path] = f"its {run.config.name} is damaged"
    if not done:
        for run in existing:
            if run.result.exists():
                run.read_result()  # says what is wrong with it
        if damaged:
            raise InputError(next(iter(damaged.values())))
        name = RunDir(folder).result.name
        raise InputError(f"there is no run with a {name} in '{folder}': give the folder of finished runs.")
    singles = [each for each in done if AVERAGE_PRECISION not in each[1]]
    if 0 < len(singles) < len(done):
        why = "several labels an image, to be reported from a folder of their own"
        damaged |= {path: why for path, raw, _ in done if AVERAGE_PRECISION in raw}
        done = singles
    paths, raws, configs = map(list, zip(*done, strict=True))
    by_method: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for config in configs:
        named = {k: v for k, v in config.items() if k in NAMED or k.startswith("model.loss")}
        by_method[json.dumps(named, sort_keys=True, default=str)].append(config)
    # what goes with a loss or a data set, as a rate or a schedule may, is no method of its own
    varied = {key for group in by_method.values() for key in _varied(group)}
    network = _varied(configs) & NETWORK.keys()
    telling = _telling(list(by_method.values()), varied, {STAGE, *network}) | (varied & network)
    extras = [sorted(telling | {key for key in network if c.get(key) != NETWORK[key]}) for c in configs]
    several = len({_checkpoint(raw) for raw in raws}) > 1
    results = [_result(*each, several) for each in zip(paths, raws, configs, extras, strict=True)]
    newest = {
        (result.method, result.data, result.seed): result.folder
        for result in (
            sorted(results, key=lambda r: RunDir(r.folder).result.stat().st_mtime_ns) if existing else results
        )
    }
    kept = [result for result in results if newest[result.method, result.data, result.seed] == result.folder]
    missing = {result.folder: "repeated later" for result in results if result not in kept}
    missing |= {run.path: f"without its {run.config.name}" for run in existing if run.is_done and run.path not in paths}
    missing |= damaged
    missing |= {run.path: state for run in existing if not run.is_done and (state := run.state)}
    return Runs(kept, list(missing.items()), sorted(varied - telling - {STAGE}))


def read_run(where: str | Path) -> Result:
    """Read one run.

    Args:
        where: its folder, or at W&B ``entity/project/run`` if it was logged by `lt_cb.loggers.WandB`.

    Raises:
        InputError: if there is no finished run.
    """
    if not Path(where).is_dir() and re.fullmatch(r"[^/.]+/[^/]+/[^/]+", str(where)):
        return read_run(_download(str(where)))
    run = RunDir(where)
    return _result(run.path, _raw(run), flatten(run.read_config()))


def _raw(run: RunDir) -> dict[str, Any]:
    """Return the result of a run with the metrics of its last validation."""
    raw = run.read_result()
    last = _validation(run)
    if not last and raw.get("prior") is None and raw.get("checkpoint"):
        trained = RunDir(Path(raw["checkpoint"]).parent.parent)  # whose checkpoint it has tested
        with contextlib.suppress(InputError):
            stages = [r.read_config()["model"].get("second_stage") for r in (trained, run)]
            last = _validation(trained) if stages[0] == stages[1] else {}  # else of other predictions
    validation = {name: float(value) for name, value in last.items() if name.startswith("val/") and value}
    return {**raw, "metrics": {**validation, **raw["metrics"]}}


def _validation(run: RunDir) -> dict[str, str]:
    rows = [row for row in run.read_metrics() if row.get("val/acc") or row.get("val/mAP")]
    return rows[-1] if rows else {}


def _download(name: str) -> Path:
    import wandb

    run = RunDir(Path(tempfile.mkdtemp(prefix="lt_cb_"), "run"))
    for file in (run.config, run.result):
        wandb.Api().run(name).file(f"run/{file.name}").download(root=str(run.path.parent))
    return run.path


def _checkpoint(raw: Mapping[str, Any]) -> str:
    """Return whether a run has tested the last checkpoint of a training, another one (the best), or none."""
    path = raw.get("checkpoint")
    return "none" if not path else "last" if Path(path).stem.startswith("last") else "best"


def _varied(configs: list[dict[str, Any]]) -> set[str]:
    """Return the keys by which the configurations train differently, but those of the loss and of the subset."""
    groups, ignored = ("model", "data", "trainer."), ("model.loss", *IGNORED_PREFIXES)
    keys = {key for config in configs for key in config if key.startswith(groups) and not key.startswith(ignored)}
    keys -= {*IGNORED, *NAMED}
    return {key for key in keys if len({json.dumps(c.get(key, LATER.get(key)), default=str) for c in configs}) > 1}


def _telling(groups: list[list[dict[str, Any]]], varied: set[str], said: set[str]) -> set[str]:
    """Return the fewest settings, found greedily, that beside what is said tell apart what all that vary do.

    Of settings that tell as much apart the length of the training is taken, or else the first by name.
    """

    def said_by(config: dict[str, Any], keys: set[str]) -> str:
        return json.dumps([config.get(key, LATER.get(key)) for key in sorted(keys)], default=str)

    def told(keys: set[str]) -> int:
        return sum(len({said_by(config, keys) for config in group}) for group in groups)

    telling: set[str] = set()
    while told(telling | said) < told(varied | said):
        left = sorted(varied - telling - said, key=lambda key: (key != LENGTH, key))
        telling.add(max(left, key=lambda key: told(telling | said | {key})))
    return telling


def _result(
    folder: Path, raw: dict[str, Any], config: dict[str, Any], extra: Sequence[str] = (), name_checkpoint: bool = False
) -> Result:
    counts = [int(n) for n in raw["class_counts"]]
    factor = config.get("data.imbalance_factor") or max(counts) / max(min(counts), 1)
    source, subset, method = source_of(config), subset_of(config, factor), method_of(config)
    stage = config.get(STAGE)  # is said also where all runs have it
    named = sorted({*extra, *([STAGE] if stage else [])})
    others = [f"{key.partition('.')[2] or key} {config[key]}" for key in named if config.get(key) is not None]
    others += [f"{_checkpoint(raw)} checkpoint"] if name_checkpoint else []
    others += [f"prior {config['prior']}"] if config.get("prior") else []  # of a test
    return Result(
        folder=folder,
        data=f"{source}, IF {factor:g}" if subset == WHOLE else f"{source} {subset}",
        method=", ".join([method.name, *others]),
        family=None if method.family is None else ", ".join([method.family, *others]),
        others=others,
        source=source,
        imbalance_factor=float(factor),
        subset=subset,
        backbone=str(config.get("model.backbone", NETWORK["model.backbone"])),
        image_size=None if (size := config.get("data.image_size")) is None else int(size),
        epochs=None if (length := raw.get("epochs") or config.get("trainer.max_epochs")) is None else int(length),
        unlike_paper=[f"{key.partition('.')[2]} {config[key]}" for key in NOT_OF_THE_PAPER if config.get(key)],
        loss=method.loss,
        gamma=method.gamma,
        beta=method.beta,
        seed=(raw["seeds"]["seed_everything"], raw["seeds"]["subset_seed"]),
        metrics={name.removeprefix("test/"): value for name, value in raw["metrics"].items() if not math.isnan(value)},
        class_names=raw.get("class_names") or list(map(str, range(len(counts)))),
        class_counts=counts,
        shot_groups=raw.get("shot_groups", {}),
        per_class=raw.get(AVERAGE_PRECISION) or raw["per_class_accuracy"],
        checkpoint=_checkpoint(raw),
        validated_on=raw.get("validated_on") or ("held_out" if config.get("data.val_fraction") else None),
        counted=raw.get("test_counts", []),
        confusion=raw.get("confusion") or [],
        multi_label=AVERAGE_PRECISION in raw,
        row=raw.get("row", {}),
    )
