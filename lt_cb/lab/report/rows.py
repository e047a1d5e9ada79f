"""Kept results: one row per run and each configuration once, enough to repeat every table. Imports no torch."""

import csv
import hashlib
import io
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lt_cb.errors import InputError
from lt_cb.lab.report.result import method_of, source_of
from lt_cb.runs.folder import RunDir, flatten, is_tested_in_part, read_yaml, whole_file, write_text
from lt_cb.runs.record import FACTS, PERCENT_COLUMNS, VERSIONS, Record, percent, read_bytes

ROWS, CONFIGS = "runs.csv", "configs"
# settings that do not change the training, or that have a column of their own
NOT_KEPT = (
    ("seed_everything",), ("name",), ("folder",), ("ckpt_path",), ("weights_only",),
    ("data", "root"), ("data", "subset_seed"), ("data", "num_workers"),
    ("trainer", "logger"), ("trainer", "default_root_dir"),
    ("trainer", "enable_progress_bar"), ("trainer", "enable_model_summary"),
)  # fmt: skip
FIRST_COLUMNS = (
    *("experiment", "method", "config", "seed", "subset_seed", *FACTS, *VERSIONS, "seconds", "checkpoint"),
    *("error", "balanced_acc", "many", "medium", "few", "loss", "val_acc", "val_balanced_acc"),
    *("best_epoch", "best_error", "best_balanced_acc"),
    *("class_names", "class_counts", "correct", "counted", "average_precision", "confusion"),
    *("history", "l2_strength"),
)
COLUMNS = (*FIRST_COLUMNS, *(name for name in PERCENT_COLUMNS if name not in FIRST_COLUMNS))
Row = dict[str, str]
Key = tuple[str, str, int, int]


def save(runs: Path, to: Path) -> tuple[int, int]:
    """Add the finished trainings below a folder to kept results; return the number of added rows, and of all rows.

    Rows of the same configuration and seeds are replaced. Runs that only test a checkpoint are no further seeds.
    """
    done = [run for run in RunDir.below(runs) if run.is_done and run.config.is_file()]
    done = [run for run in done if run.is_training and not is_tested_in_part(flatten(run.read_config()))]
    if not done:
        raise InputError(f"there is no finished training in '{runs}': give the folder of finished runs.")
    kept = _read(to / ROWS) if (to / ROWS).is_file() else {}
    before = len(kept)
    for run in done:
        row, config = _row(run)
        kept[_key(row)] = row
        write_text(to / CONFIGS / f"{row['config']}.yaml", yaml.safe_dump(config, sort_keys=False))
    with whole_file(to / ROWS) as stream:
        writer = csv.DictWriter(stream, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows([kept[key] for key in sorted(kept)])
    return len(kept) - before, len(kept)


def read(folder: Path) -> list[tuple[Path, Record, dict[str, Any], Row]]:
    """Return the path, record, configuration and row of each kept run."""
    return [
        (
            folder / row["experiment"] / f"seed_{row['seed']}_{row['subset_seed']}",
            Record.from_row(row, folder / ROWS),
            _config(folder, row),
            row,
        )
        for row in _read(folder / ROWS).values()
    ]


def command(row: Mapping[str, str], folder: Path) -> str:
    """Return the command that repeats a row, without the place of the data."""
    config = shlex.quote(str(folder / CONFIGS / f"{row['config']}.yaml"))
    return f"lt-cb fit --config {config} --seed_everything {row['seed']} --data.subset_seed {row['subset_seed']}"


def _key(row: Row) -> Key:
    return row["experiment"], row["config"], int(row["seed"]), int(row["subset_seed"])


def _row(run: RunDir) -> tuple[Row, dict[str, Any]]:
    record, config = run.read_result(), run.read_config()
    source = source_of(flatten(config))
    for *path, key in NOT_KEPT:
        place = config
        for name in path:
            place = place.get(name) or {}
        place.pop(key, None)
    if source_of(flatten(config)) != source:  # these data are named by their root
        config["data"]["root"] = source
    training = [config, record.history] if record.history else config
    digest = hashlib.sha256(json.dumps(training, sort_keys=True, default=str).encode()).hexdigest()[:12]
    main = "val/mAP" if record.task.multi_label else "val/acc"
    validated = [row for row in run.read_metrics() if row.get(main)]
    best = max(validated, key=lambda row: float(row[main]), default={})
    last = validated[-1] if validated else {}
    values = {
        "experiment": run.path.parent.name,
        "method": method_of(flatten(config)).name,
        "config": digest,
        **record.to_row(),
        **{column: percent(last.get(name)) for column, name in PERCENT_COLUMNS.items() if name.startswith("val/")},
        "best_epoch": best.get("epoch"),
        "best_error": percent(1.0 - float(best["val/acc"])) if "val/acc" in best else None,
        "best_balanced_acc": percent(best.get("val/balanced_acc")),
    }
    return {name: values[name] or "" for name in COLUMNS}, config


def _read(file: Path) -> dict[Key, Row]:
    """Read the rows; columns that older rows lack stay missing."""
    rows: dict[Key, Row] = {}
    try:
        with io.StringIO(read_bytes(file).decode(), newline="") as stream:
            for row in csv.DictReader(stream):
                if None in row or None in row.values():
                    raise ValueError(f"row {row.get('experiment')} seed {row.get('seed')} has too many or few columns")
                Record.from_row(row, file)
                experiment, config, *seeds = key = _key(row)
                if key in rows:
                    raise InputError(
                        f"'{file}' has two rows of {experiment} (configuration {config}, seeds {seeds[0]} and "
                        f"{seeds[1]}): delete one of them."
                    )
                rows[key] = row
    except InputError:
        raise
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, ValueError) as error:
        raise InputError(
            f"'{file}' is not a table of kept runs ({error}). Restore the file from the repository."
        ) from error
    return rows


def _config(folder: Path, row: Row) -> dict[str, Any]:
    config = read_yaml(folder / CONFIGS / f"{row['config']}.yaml")
    if not isinstance(config, dict):
        raise InputError(
            f"the configuration {row['config']} in '{folder}' is damaged. Restore the file from the repository."
        )
    return config
