"""Kept results: a row a run, and each configuration once, from which every table is made again. Imports no torch."""

import csv
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

from lt_cb.errors import InputError
from lt_cb.lab.report.names import method_of, source_of
from lt_cb.runs.folder import AVERAGE_PRECISION, RunDir, flatten, is_tested_in_part, read_yaml, whole_file, write_text

ROWS, CONFIGS = "runs.csv", "configs"
# what does not change what is trained, or has a column of its own
NOT_KEPT = (
    ("seed_everything",), ("name",), ("folder",), ("ckpt_path",), ("weights_only",),
    ("data", "root"), ("data", "subset_seed"), ("data", "num_workers"),
    ("trainer", "logger"), ("trainer", "default_root_dir"),
    ("trainer", "enable_progress_bar"), ("trainer", "enable_model_summary"),
)  # fmt: skip
FACTS = (
    "subset_sha256",
    "validated_on",
    "epochs",
    "precision",
    "device",
    "processor",
    "threads",
    "processes",
    "commit",
)
VERSIONS = ("lt_cb", "python", "torch", "lightning")
LISTS = ("class_names", "class_counts", "correct", "counted", "average_precision")
SEVERAL = {  # columns of several labels an image, and their metrics
    **{name: name for name in ("mAP", "auroc", "f1_macro", "f1_micro")},
    **{f"mAP_{group}": f"mAP/{group}" for group in ("many", "medium", "few")},
    "val_mAP": "val/mAP",
}
LATER = ("confusion", "average_precision", *SEVERAL)  # that rows have not which were kept before there were any
COLUMNS = (
    *("experiment", "method", "config", "seed", "subset_seed", *FACTS, *VERSIONS, "seconds", "checkpoint"),
    *("error", "balanced_acc", "many", "medium", "few", "loss", "val_acc", "val_balanced_acc"),
    *("best_epoch", "best_error", "best_balanced_acc", *LISTS, "confusion"),
    *SEVERAL,
)
Row = dict[str, str]


def save(runs: Path, to: Path) -> tuple[int, int]:
    """Add the finished trainings below a folder to the kept ones; one of the same configuration and seeds is replaced.

    Runs that only test a checkpoint are left out: they are no seeds of their own.

    Returns:
        How many rows were added, and how many there are.

    Raises:
        InputError: if there is no finished run, one is damaged, or the kept rows are.
    """
    done = [run for run in RunDir.below(runs) if run.is_done and run.config.is_file() and run.is_training]
    done = [run for run in done if not is_tested_in_part(flatten(run.read_config()))]
    if not done:
        raise InputError(f"there is no finished training in '{runs}': give the folder of finished runs.")
    kept = {_key(row): row for row in (_read(to / ROWS) if (to / ROWS).is_file() else [])}
    before = len(kept)
    for run in done:
        row, config = _row(run)
        kept[_key(row)] = row
        file = to / CONFIGS / f"{row['config']}.yaml"
        write_text(file, yaml.safe_dump(config, sort_keys=False))
    with whole_file(to / ROWS) as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows([kept[key] for key in sorted(kept)])
    return len(kept) - before, len(kept)


def read(folder: Path) -> list[tuple[Path, dict[str, Any], dict[str, Any]]]:
    """Return for each kept run what names it, its result as in ``result.json``, and its configuration.

    Raises:
        InputError: if a row or a configuration is damaged.
    """
    return [
        (folder / row["experiment"] / f"seed_{row['seed']}_{row['subset_seed']}", _result(row), _config(folder, row))
        for row in _read(folder / ROWS)
    ]


def command(row: Mapping[str, str], folder: Path) -> str:
    """Return the command that repeats a row, but for where the data lie."""
    config = folder / CONFIGS / f"{row['config']}.yaml"
    return f"lt-cb fit --config {config} --seed_everything {row['seed']} --data.subset_seed {row['subset_seed']}"


def _key(row: Row) -> tuple[str, str, int, int]:
    return row["experiment"], row["config"], int(row["seed"]), int(row["subset_seed"])


def _row(run: RunDir) -> tuple[Row, dict[str, Any]]:
    raw, config = run.read_result(), run.read_config()
    root = source_of(flatten(config))
    for *path, key in NOT_KEPT:
        place = config
        for name in path:
            place = place.get(name) or {}
        place.pop(key, None)
    if source_of(flatten(config)) != root:  # the data have no name but their root's
        config["data"]["root"] = root
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:12]
    counted = raw["test_counts"]
    rates = [rate or 0.0 for rate in raw.get("per_class_accuracy", [])]
    correct = raw.get("correct") or [round(rate * n) for rate, n in zip(rates, counted, strict=bool(rates))]
    metrics = {name.removeprefix("test/"): value for name, value in raw["metrics"].items()}
    chooser = "val/mAP" if "mAP" in metrics else "val/acc"
    validated = [row for row in run.read_metrics() if row.get(chooser)]
    best = max(validated, key=lambda row: float(row[chooser]), default={})
    last = validated[-1] if validated else {}
    values: dict[str, Any] = {
        "experiment": run.path.parent.name,
        "method": method_of(flatten(config)).name,
        "config": digest,
        "seed": raw["seeds"]["seed_everything"],
        "subset_seed": raw["seeds"]["subset_seed"],
        **{name: raw.get(name) for name in FACTS},
        **{name: raw.get("versions", {}).get(name) for name in VERSIONS},
        "seconds": round(sum(raw.get("wall_time_s", {}).values())),
        "checkpoint": Path(raw.get("checkpoint") or "none").stem,
        "error": _percent(1.0 - metrics["acc"]) if "acc" in metrics else None,
        "balanced_acc": _percent(metrics.get("balanced_acc")),
        **{name: _percent(metrics.get(f"acc/{name}")) for name in ("many", "medium", "few")},
        "loss": metrics.get("loss"),
        "val_acc": _percent(last.get("val/acc")),
        "val_balanced_acc": _percent(last.get("val/balanced_acc")),
        "best_epoch": best.get("epoch"),
        "best_error": _percent(1.0 - float(best["val/acc"])) if "val/acc" in best else None,
        "best_balanced_acc": _percent(best.get("val/balanced_acc")),
        "class_names": ";".join(name.replace("%", "%25").replace(";", "%3B") for name in raw.get("class_names", [])),
        "class_counts": " ".join(map(str, raw["class_counts"])),
        "correct": " ".join(map(str, correct)),
        "counted": " ".join(map(str, counted)),
        "confusion": ";".join(" ".join(map(str, line)) for line in raw.get("confusion") or []),
        "average_precision": " ".join(
            "nan" if value is None else f"{100 * value:.4f}" for value in raw.get(AVERAGE_PRECISION, [])
        ),
        **{column: _percent(metrics.get(name, last.get(name))) for column, name in SEVERAL.items()},
    }
    return {name: "" if values[name] is None else str(values[name]) for name in COLUMNS}, config


def _percent(value: float | str | None) -> str | None:
    return None if value in (None, "") else f"{100 * float(value):.4f}"


def _read(file: Path) -> list[Row]:
    try:
        with file.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        for row in rows:
            for name in LATER:
                row.setdefault(name, "")
            lengths = {len(row[name].split(";" if name == "class_names" else None)) for name in LISTS if row[name]}
            lengths |= {len(line.split()) for line in row["confusion"].split(";") if row["confusion"]}
            if len(lengths) != 1 or any(row[name] is None for name in COLUMNS):
                raise ValueError(f"row {row['experiment']} seed {row['seed']}")
            _key(row)
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"'{file}' is not a table of kept runs ({error}): take it from the repository again."
        ) from error
    return rows


def _config(folder: Path, row: Row) -> dict[str, Any]:
    config = read_yaml(folder / CONFIGS / f"{row['config']}.yaml")
    if not isinstance(config, dict):
        raise InputError(
            f"the configuration {row['config']} in '{folder}' is damaged: take it from the repository again."
        )
    return config


def _result(row: Row) -> dict[str, Any]:
    correct, counted, counts = ([int(n) for n in row[name].split()] for name in ("correct", "counted", "class_counts"))
    percent = {"acc": str(100.0 - float(row["error"])) if row["error"] else "", "balanced_acc": row["balanced_acc"]}
    percent |= {name: row[column] for column, name in SEVERAL.items()}
    percent |= {f"acc/{name}": row[name] for name in ("many", "medium", "few")}
    percent |= {"val/acc": row["val_acc"], "val/balanced_acc": row["val_balanced_acc"]}
    metrics = {name: float(value) / 100 for name, value in percent.items() if value}
    values = [float(value) / 100 for value in row["average_precision"].split()]
    several = {AVERAGE_PRECISION: [None if math.isnan(value) else value for value in values]}
    single = [right / n if n else None for right, n in zip(correct, counted, strict=not values)]
    return {
        "metrics": metrics | ({"loss": float(row["loss"])} if row["loss"] else {}),
        "class_names": [unquote(name) for name in row["class_names"].split(";")] if row["class_names"] else [],
        "class_counts": counts,
        **(several if values else {"per_class_accuracy": single}),
        "test_counts": counted,
        "correct": correct,
        "confusion": [[int(n) for n in line.split()] for line in row["confusion"].split(";") if line],
        "epochs": int(row["epochs"] or 0),
        "checkpoint": None if row["checkpoint"] == "none" else row["checkpoint"],
        "seeds": {"seed_everything": int(row["seed"]), "subset_seed": int(row["subset_seed"])},
        "validated_on": row["validated_on"] or None,
        "row": row,
    }
