"""From run folders to rows and columns: what was trained on what, and how it came out."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lt_cb.errors import InputError
from lt_cb.files import read_yaml

# where a run is kept and watched, not what it trains
IGNORED = ("seed_everything", "ckpt_path", "weights_only", "data.root", "data.subset_seed", "trainer.logger")
IGNORED_PREFIXES = ("trainer.callbacks", "trainer.logger.", "trainer.enable_", "trainer.default_root_dir")
SHOWN_APART = ("data.source", "data.imbalance_factor", "data.n_max", "data.imbalance_type", "data.subset_counts")


@dataclass
class Result:
    """One finished run."""

    folder: Path
    data: str  # column
    method: str  # row
    source: str
    imbalance_factor: float
    loss: str
    gamma: float | None
    beta: float | None  # None without weights
    seed: tuple[int, int | None]  # of training and subset
    metrics: dict[str, float]
    class_counts: list[int]
    per_class: list[float | None]
    checkpoint: str  # last, or the name of another

    def error(self) -> float:
        """Return the top-1 error in percent."""
        return 100.0 - 100.0 * self.metrics["acc"]


@dataclass
class Runs:
    """All that was found below a folder."""

    results: list[Result]
    missing: list[tuple[Path, str]]  # folder, and failed or unfinished

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
    if not files:
        raise InputError(f"there is no run with a result.json in '{folder}': give the folder of finished runs.")
    resolved = [file.with_name("config.yaml") for file in files]
    configs = [_flat(read_yaml(file)) if file.is_file() else {} for file in resolved]
    kept = [{k: v for k, v in config.items() if not _ignored(k)} for config in configs]
    keys = {key for config in kept for key in config}
    varied = {key for key in keys if len({json.dumps(c.get(key), default=str) for c in kept}) > 1}
    extra = sorted(k for k in varied if k not in SHOWN_APART and not k.startswith("model.loss"))
    results = [_result(file, config, extra) for file, config in zip(files, configs, strict=True)]
    begun = {file.parent for name in ("grid.json", "config.yaml") for file in folder.rglob(name)}
    missing = [
        (path, "failed" if (path / "error.txt").exists() else "unfinished")
        for path in sorted(begun - {file.parent for file in files})
    ]
    return Runs(results, missing)


def _ignored(key: str) -> bool:
    return key in IGNORED or key.startswith(IGNORED_PREFIXES)


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


def _result(file: Path, config: dict[str, Any], extra: list[str]) -> Result:
    raw = json.loads(file.read_text())
    counts = [int(n) for n in raw["class_counts"]]
    factor = config.get("data.imbalance_factor") or max(counts) / max(min(counts), 1)
    source = str(config.get("data.source", "?")).rpartition(".")[2]
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
        parts.append(f"CB β {beta:g}" if weighting == "EffectiveNumber" and beta is not None else str(weighting))
        normalization = config.get("model.loss.weighting.normalization")
        parts += [f"normalization {normalization}"] if normalization not in (None, "classes") else []
    parts += [f"{key.partition('.')[2]} {config[key]}" for key in extra if config.get(key) is not None]
    checkpoint = Path(raw["checkpoint"]).stem if raw.get("checkpoint") else "none"
    return Result(
        folder=file.parent,
        data=f"{source} IF {factor:g}",
        method=", ".join(parts),
        source=source,
        imbalance_factor=float(factor),
        loss=loss,
        gamma=options.get("gamma"),
        beta=beta,
        seed=(raw["seeds"]["seed_everything"], raw["seeds"]["subset_seed"]),
        metrics={name.removeprefix("test/"): value for name, value in raw["metrics"].items()},
        class_counts=counts,
        per_class=raw["per_class_accuracy"],
        checkpoint=checkpoint,
    )
