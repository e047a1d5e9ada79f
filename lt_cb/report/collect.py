"""From run folders to rows and columns: what was trained on what, and how it came out."""

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lt_cb.errors import InputError
from lt_cb.run import read_yaml

# where and by whom a run is fed, kept and watched, not what it trains
IGNORED = ("data.root", "data.subset_seed", "data.num_workers", "trainer.logger")
IGNORED_PREFIXES = ("trainer.callbacks", "trainer.logger.", "trainer.enable_", "trainer.default_root_dir")
SHOWN_APART = ("data.source", "data.imbalance_factor", "data.n_max", "data.imbalance_type", "data.subset_counts")
NETWORK: dict[str, Any] = {"model.backbone": "resnet32", "data.image_size": None}  # with their defaults
NOT_OF_THE_PAPER = (
    "data.val_fraction",
    "data.sampler",
    "model.mix",
    "model.defer_weighting",
    "model.second_stage",
    "model.backbone_args.pretrained",
)
ERRORS = {"error": "acc", "error_top5": "acc_top5"}  # each is 100 % less a metric
WHOLE = "whole"


@dataclass
class Result:
    """One finished run."""

    folder: Path
    data: str  # column
    method: str  # row
    family: str | None  # the row without its beta; None for other weights than those of an effective number
    source: str
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

    def score(self, metric: str) -> float:
        """Return ``error`` (top-1), ``error_top5``, ``acc`` or another of the metrics, in percent.

        Raises:
            InputError: (a ValueError) if the run has no such metric.
        """
        name = ERRORS.get(metric, metric)
        if name not in self.metrics:
            raise InputError(f"'{self.folder}' has no metric '{metric}', but error, {', '.join(self.metrics)}.")
        return 100.0 - 100.0 * self.metrics[name] if metric in ERRORS else 100.0 * self.metrics[name]


@dataclass
class Runs:
    """All that was found below a folder."""

    results: list[Result]
    missing: list[tuple[Path, str]]  # folder, and why it is not in the tables

    def cells(self) -> dict[tuple[str, str], list[Result]]:
        """Return the runs of each (method, data), over seeds."""
        cells: dict[tuple[str, str], list[Result]] = defaultdict(list)
        for result in self.results:
            cells[result.method, result.data].append(result)
        return cells

    def methods(self) -> list[str]:
        """Return the rows: losses without weights first."""
        first = {result.method: result for result in reversed(self.results)}
        order = ("SoftmaxLoss", "SigmoidLoss", "FocalLoss")
        return sorted(
            first,
            key=lambda m: (
                first[m].beta is not None,
                order.index(first[m].loss) if first[m].loss in order else len(order),
                m,
            ),
        )

    def columns(self) -> list[str]:
        """Return the data sets, each from the highest imbalance factor to the lowest."""
        keys = {result.data: (result.source, -result.imbalance_factor, result.data) for result in self.results}
        return sorted(keys, key=lambda data: keys[data])


def collect(folder: Path) -> Runs:
    """Read all runs below a folder.

    Raises:
        InputError: (a ValueError) if there are none.
    """
    files = sorted(folder.rglob("result.json"))
    alone = [file.parent for file in files if not file.with_name("config.yaml").is_file()]
    files = [file for file in files if file.parent not in alone]
    if not files:
        raise InputError(f"there is no run with a result.json in '{folder}': give the folder of finished runs.")
    configs = [_flat(read_yaml(file.with_name("config.yaml"))) for file in files]
    alike: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for config in configs:
        named = {k: v for k, v in config.items() if k in SHOWN_APART or k.startswith("model.loss")}
        alike[json.dumps(named, sort_keys=True, default=str)].append(config)
    # what goes with a loss or a data set, as a rate or a schedule may, is no method of its own
    varied = {key for group in alike.values() for key in _varied(group)}
    network = _varied(configs) & NETWORK.keys()
    extras = [varied | {key for key in network if c.get(key) != NETWORK[key]} for c in configs]
    tested = {_checkpoint(_read(file)) for file in files}
    found = [_result(*one, len(tested) > 1) for one in zip(files, configs, map(sorted, extras), strict=True)]
    newest: dict[tuple[str, str, tuple[int, int | None]], Result] = {}
    for result in sorted(found, key=lambda r: (r.folder / "result.json").stat().st_mtime_ns):
        newest[result.method, result.data, result.seed] = result
    results = [result for result in found if newest[result.method, result.data, result.seed] is result]
    missing = [(result.folder, "repeated later") for result in found if result not in results]
    missing += [(path, "without its config.yaml") for path in alone]
    begun = {file.parent for name in ("grid.json", "config.yaml") for file in folder.rglob(name)}
    states = {path: _state(path) for path in sorted(begun - {file.parent for file in files})}
    return Runs(results, missing + [(path, state) for path, state in states.items() if state])


def read_run(where: str | Path) -> Result:
    """Read one run.

    Args:
        where: its folder, or at W&B ``entity/project/run`` if it was logged by `lt_cb.loggers.WandB`.

    Raises:
        InputError: (a ValueError) if there is no finished run.
    """
    if not Path(where).is_dir() and re.fullmatch(r"[^/.]+/[^/]+/[^/]+", str(where)):
        return read_run(_download(str(where)))
    file = Path(where, "result.json")
    if not file.is_file():
        raise InputError(f"'{where}' has no result.json: give a finished run's folder, or entity/project/run of W&B.")
    return _result(file, _flat(read_yaml(file.with_name("config.yaml"))), [], name_checkpoint=False)


def _download(run: str) -> Path:
    import wandb

    folder = tempfile.mkdtemp(prefix="lt_cb_")
    for name in ("config.yaml", "result.json"):
        wandb.Api().run(run).file(f"run/{name}").download(root=folder)
    return Path(folder, "run")


def _state(folder: Path) -> str | None:
    if (folder / "error.txt").exists():
        return "failed"
    if not (folder / "config.yaml").exists():
        return "not begun"
    command = read_yaml(folder / "config.yaml")
    return None if "verbose" in command or "return_predictions" in command else "unfinished"  # not of a training


def _read(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"'{file}' is damaged ({error}): remove it.") from error
    if not isinstance(raw, dict) or not {"metrics", "class_counts", "per_class_accuracy", "seeds"} <= raw.keys():
        raise InputError(f"'{file}' is not the result of a run: remove it.")
    return raw


def _checkpoint(raw: Mapping[str, Any]) -> str:
    """Return whether a run has tested the last checkpoint of a training, another one (the best), or none."""
    path = raw.get("checkpoint")
    return "none" if not path else "last" if Path(path).stem.startswith("last") else "best"


def _varied(configs: list[dict[str, Any]]) -> set[str]:
    """Return the keys by which the configurations train differently, but those of the loss and of the subset."""
    told, apart = ("model.", "data.", "trainer."), ("model.loss", *IGNORED_PREFIXES)
    keys = {key for config in configs for key in config if key.startswith(told) and not key.startswith(apart)}
    keys -= {*IGNORED, *SHOWN_APART}
    return {key for key in keys if len({json.dumps(c.get(key), default=str) for c in configs}) > 1}


def _source(config: Mapping[str, Any]) -> str:
    return str(config.get("data.source", "?")).rpartition(".")[2]


def _subset(config: Mapping[str, Any], factor: float) -> str:
    if given := config.get("data.subset_counts"):
        return f"IF {factor:g}, subset_counts of {sum(given)} images"
    if not config.get("data.imbalance_factor") and factor != 1:
        return WHOLE
    step = ", step" if config.get("data.imbalance_type") == "step" else ""
    n_max = config.get("data.n_max")
    return f"IF {factor:g}{step}" + (f", n_max {n_max}" if n_max else "")


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = prefix + ("" if key == "init_args" else f"{key}.")
        if isinstance(value, dict):
            flat |= _flat(value, name)
        elif key == "class_path":
            flat[prefix.rstrip(".")] = str(value).rpartition(".")[2]
        else:
            flat[prefix + key] = value
    return flat


def _result(file: Path, config: dict[str, Any], extra: list[str], name_checkpoint: bool) -> Result:
    raw = _read(file)
    counts = [int(n) for n in raw["class_counts"]]
    factor = config.get("data.imbalance_factor") or max(counts) / max(min(counts), 1)
    source, subset = _source(config), _subset(config, factor)
    loss = str(config.get("model.loss", "?"))
    weighting = config.get("model.loss.weighting")
    weighted = isinstance(weighting, str)
    options = {
        key.removeprefix("model.loss."): value
        for key, value in config.items()
        if key.startswith("model.loss.") and not key.startswith("model.loss.weighting")
    }
    named = [f"{k} {v:g}" for k, v in options.items() if isinstance(v, float | int) and not isinstance(v, bool)]
    if options.get("reduction") not in (None, "mean"):
        named.append(str(options["reduction"]))
    beta = config.get("model.loss.weighting.beta") if weighted else None
    parts = [" ".join([loss.removesuffix("Loss"), *named])]
    if weighted:
        normalization = config.get("model.loss.weighting.normalization")
        parts.append(f"CB β {beta:g}" if weighting == "EffectiveNumber" and beta is not None else str(weighting))
        parts[-1] += f" normalization {normalization}" if normalization not in (None, "classes") else ""
    weights = parts[1:]
    parts += [f"{key.partition('.')[2]} {config[key]}" for key in extra if config.get(key) is not None]
    parts += [f"{_checkpoint(raw)} checkpoint"] if name_checkpoint else []
    return Result(
        folder=file.parent,
        data=f"{source} {subset}" + (f", IF {factor:g}" if subset == WHOLE else ""),
        method=", ".join(parts),
        family=", ".join(part for part in parts if part not in weights)
        if weighting in (None, "EffectiveNumber")
        else None,
        source=source,
        imbalance_factor=float(factor),
        subset=subset,
        backbone=config.get("model.backbone", NETWORK["model.backbone"]),
        image_size=config.get("data.image_size"),
        epochs=raw.get("epochs") or config.get("trainer.max_epochs"),  # 0 after a test from a checkpoint
        unlike_paper=[f"{key.partition('.')[2]} {config[key]}" for key in NOT_OF_THE_PAPER if config.get(key)],
        loss=loss,
        gamma=options.get("gamma"),
        beta=beta,
        seed=(raw["seeds"]["seed_everything"], raw["seeds"]["subset_seed"]),
        metrics={name.removeprefix("test/"): value for name, value in raw["metrics"].items()},
        class_names=raw.get("class_names", []),
        class_counts=counts,
        shot_groups=raw.get("shot_groups", {}),
        per_class=raw["per_class_accuracy"],
        checkpoint=_checkpoint(raw),
    )
