"""Record: the result of one tested run, as ``result.json`` and as a row of kept results. Imports no torch."""

import errno
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Self, get_type_hints
from urllib.parse import unquote

from lt_cb.errors import InputError
from lt_cb.runs.schema import Callback, ClassIndex, Counts, PerClass, Rate, Seconds, mismatch
from lt_cb.task import SEVERAL_LABELS, Task


class Metric(NamedTuple):
    """A metric of all classes that a run is tested by, a rate in [0, 1]."""

    title: str  # of a table
    meaning: str  # first words of the sentence below the title


METRICS = {  # by the name behind "test/" in result.json, which is also the column of kept rows
    "acc": Metric("Accuracy", "Top-1 accuracy"),
    "balanced_acc": Metric("Balanced accuracy", "Mean accuracy over classes"),
    "mAP": Metric("Mean average precision", "Mean average precision over classes"),
    "auroc": Metric("Mean AUROC", "Mean area under the ROC curve over classes"),
    "f1_macro": Metric("Macro F1", "Mean F1 over classes, each at its own threshold"),
    "f1_micro": Metric("Micro F1", "F1 of all labels together, each at its own threshold"),
}
SHOTS = ("many", "medium", "few")
PERCENT_COLUMNS = {  # column of kept rows -> metric; the accuracy is kept as its error
    **{name: f"test/{name}" for name in METRICS if name != "acc"},
    **{shot: f"test/acc/{shot}" for shot in SHOTS},
    **{f"mAP_{shot}": f"test/mAP/{shot}" for shot in SHOTS},
    **{f"val_{name}": f"val/{name}" for name in ("acc", "balanced_acc", "mAP")},
}
FACTS = (  # columns of kept rows with the same name in result.json
    *("subset_sha256", "validated_on", "epochs", "precision", "device", "processor", "threads", "processes", "commit"),
)
VERSIONS = ("lt_cb", "python", "torch", "lightning")
MAX_BYTES = 2**28  # of a result, a configuration, or metrics
SEEDS = {"seed_everything", "subset_seed"}
# Callbacks of lightning and lt_cb that only observe, save or print. Any other callback counts as a change of training,
# also EarlyStopping and Timer, which change its length.
OBSERVERS = {
    *("ResultFile", "SaveLogits", "ClassesToWandB", "LastCheckpoint"),
    *("Checkpoint", "ModelCheckpoint", "OnExceptionCheckpoint"),
    *("ProgressBar", "RichProgressBar", "TQDMProgressBar", "ModelSummary", "RichModelSummary"),
    *("DeviceStatsMonitor", "LearningRateMonitor", "ThroughputMonitor"),
}
LOSS_FACTS = ("class_counts", "num_images", "num_unlabelled")  # the data give them to a loss that takes them
LIBRARIES = ("lt_cb", "lightning", "pytorch_lightning", "")  # "" is a class named without its module


@dataclass
class Record:
    """The result of a tested run. The types of its fields are the schema of ``result.json``."""

    metrics: dict[str, float]  #: value by name, ``test/...`` and, of the last validation, ``val/...``
    class_counts: Counts  #: training images of each class
    per_class: dict[str, PerClass[Rate | None]]  #: scores by ``Task.measures``; None for a class without test images
    class_names: PerClass[str] = field(default_factory=list)  #: by default ``"0"``, ``"1"``, ...
    shot_groups: dict[str, list[ClassIndex]] = field(default_factory=dict)  #: many-, medium- and few-shot classes
    correct: PerClass[int] | None = None  #: correctly classified test images; None with several labels an image
    test_counts: Counts | None = None  #: test images of each class, or with its label
    known_counts: PerClass[int] | None = None  #: test images with a known label; None with one label an image
    thresholds: PerClass[Rate] | None = None  #: probability from which on each label is predicted; None is 0.5
    set_level: Rate | None = None  #: promised share of prediction sets with the true class; None without sets
    set_coverage: PerClass[Rate | None] | None = None  #: share of prediction sets with the true class, by true class
    set_size: PerClass[float | None] | None = None  #: mean number of classes in a set, by true class
    confusion: PerClass[PerClass[int]] | None = None  #: by true, then predicted class; None for many classes
    test_images: int | None = None  #: number of test images
    tested_on: str | None = None  #: root of the tested data; None for the test images of the training's data
    skipped_images: dict[str, int] = field(default_factory=dict)  #: skipped unreadable images by split
    groups: dict[str, int] = field(default_factory=dict)  #: groups, such as patients, by split; empty without groups
    prior: PerClass[Rate] | None = None  #: class shares given by ``--prior``
    epochs: int | None = None  #: completed epochs of training
    l2_strength: Seconds | None = None  #: λ of a head on a frozen network; None if the network was trained
    checkpoint: str | None = None  #: tested file; None for the weights as they were, or an average
    averaged: list[str] = field(default_factory=list)  #: files of an average; training facts belong to the first
    callbacks: list[Callback] | None = None  #: callbacks that change the training; None if unknown
    history: dict[str, Any] = field(default_factory=dict)  #: settings of earlier parts of the training
    seed_everything: int | None = None  #: seed of the training
    subset_seed: int | None = None  #: seed of the subset
    subset_sha256: str | None = None  #: digest of the training subset
    validated_on: str | None = None  #: ``held_out``, ``val`` or ``test`` images
    parameters: int | None = None  #: number of weights of the backbone
    wall_time_s: dict[str, Seconds] = field(default_factory=dict)  #: by stage
    precision: str | None = None  #: of the Trainer
    device: str | None = None  #: for example ``cuda:0``
    processor: str | None = None  #: name of the CPU or GPU
    threads: int | None = None  #: CPU threads of torch
    processes: int | None = None  #: of a distributed training
    wandb_run: str | None = None  #: id of the run at W&B
    grid: str | None = None  #: digest of the run in its grid
    commit: str | None = None  #: of the code
    versions: dict[str, str | None] = field(default_factory=dict)  #: of lt_cb, Python, torch and lightning

    def __post_init__(self) -> None:
        """Name classes by their index if they have no names; drop metrics that are not finite."""
        self.class_names = self.class_names or [str(label) for label in range(len(self.class_counts))]
        self.metrics = {name: value for name, value in self.metrics.items() if math.isfinite(value)}

    @property
    def task(self) -> Task:
        """One label or several labels an image."""
        return Task.of(SEVERAL_LABELS.measures[0] in self.per_class)

    @property
    def scores(self) -> list[float | None]:
        """C scores of the first measure, accuracy or average precision."""
        return self.per_class[self.task.measures[0]]

    @property
    def seconds(self) -> float:
        """Wall time of all stages."""
        return sum(self.wall_time_s.values())

    @property
    def tested(self) -> str:
        """Kind of the tested checkpoint, ``last``, ``best`` (any other file) or ``none``."""
        file = self.checkpoint or next(iter(self.averaged), None)
        return "none" if not file else "last" if Path(file).stem.startswith("last") else "best"

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``result.json``."""
        raw = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        seeds = {name: raw.pop(name) for name in sorted(SEEDS)}
        per_class = {f"per_class_{measure}": values for measure, values in raw.pop("per_class").items()}
        return {"metrics": raw.pop("metrics"), **per_class, "seeds": seeds, **raw}

    @classmethod
    def from_json(cls, raw: Any, file: str | Path) -> Self:  # noqa: ANN401 - JSON
        """Read parsed JSON of a ``file``; raise InputError if a value is missing, or cannot be the result of a run."""
        try:
            return cls._checked(raw)
        except ValueError as error:
            raise _damaged(file, str(error)) from error

    @classmethod
    def _checked(cls, raw: Any) -> Self:  # noqa: ANN401 - JSON
        """Return a record from JSON; raise ValueError for the first value that is missing or impossible."""
        if not isinstance(raw, dict) or not isinstance(raw.get("class_counts"), list):
            raise ValueError("it is not the result of a run")
        task = Task.of(f"per_class_{SEVERAL_LABELS.measures[0]}" in raw)
        kinds = get_type_hints(cls, include_extras=True) | {"seeds": dict[str, int | None]}
        scores = {f"per_class_{measure}": measure for measure in task.measures}
        kinds |= dict.fromkeys(scores, PerClass[Rate | None])
        required = ("metrics", "class_counts", "seeds", f"per_class_{task.measures[0]}")
        for name, kind in kinds.items():
            words = mismatch(raw.get(name), kind, len(raw["class_counts"]))
            if words and (raw.get(name) is not None or name in required):
                raise ValueError(f"{name} must be {words}")
        if not raw["seeds"].keys() >= SEEDS:
            raise ValueError(f"seeds must be a mapping of {' and '.join(sorted(SEEDS))}")
        if (main := f"test/{task.group_metric}") not in raw["metrics"]:
            raise ValueError(f"{main} is missing in metrics")
        for name, value in raw["metrics"].items():
            _, _, metric = name.partition("/")
            if metric.partition("/")[0] in (*METRICS, "acc_top5") and (words := mismatch(value, Rate, 0)):
                raise ValueError(f"{name} must be {words}")
        correct, confusion, tested = (raw.get(name) for name in ("correct", "confusion", "test_counts"))
        if tested and correct and any(right > n for right, n in zip(correct, tested, strict=True)):
            raise ValueError("correct must be at most test_counts")
        if tested and confusion and list(map(sum, confusion)) != tested:
            raise ValueError("rows of confusion must sum to test_counts")
        per_class = {measure: raw[name] for name, measure in scores.items() if raw.get(name) is not None}
        given = {**raw, **raw["seeds"], "per_class": per_class}
        names = [entry.name for entry in fields(cls)]
        return cls(**{name: given[name] for name in names if given.get(name) is not None})

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read ``result.json``; raise InputError if it is damaged, and OSError if it cannot be read."""
        try:
            raw = json.loads(read_bytes(file).decode())
        except (ValueError, RecursionError) as error:  # neither JSON nor UTF-8, or nested without an end
            raise _damaged(file, f"it is not JSON ({error})") from error
        return cls.from_json(raw, file)

    def to_row(self) -> dict[str, str]:
        """Return the columns of a row of kept results that the record fills."""
        accuracy, correct = self.metrics.get("test/acc"), self.correct
        if correct is None and not self.task.multi_label and self.test_counts:
            correct = [round((rate or 0.0) * n) for rate, n in zip(self.scores, self.test_counts, strict=True)]
        precisions = self.scores if self.task.multi_label else []
        row: dict[str, Any] = {
            "seed": self.seed_everything,
            "subset_seed": self.subset_seed,
            **{name: getattr(self, name) for name in FACTS},
            **{name: self.versions.get(name) for name in VERSIONS},
            "seconds": round(self.seconds),
            "checkpoint": Path(self.checkpoint or "none").stem,
            "error": None if accuracy is None else percent(1.0 - accuracy),
            "loss": self.metrics.get("test/loss"),
            **{column: percent(self.metrics.get(name)) for column, name in PERCENT_COLUMNS.items()},
            "class_names": ";".join(name.replace("%", "%25").replace(";", "%3B") for name in self.class_names),
            "class_counts": _words(self.class_counts),
            "correct": _words(correct or []),
            "counted": _words(self.test_counts or []),
            "confusion": ";".join(map(_words, self.confusion or [])),
            "history": json.dumps(self.history, sort_keys=True) if self.history else None,
            "l2_strength": self.l2_strength,
            "average_precision": _words("nan" if rate is None else percent(rate) for rate in precisions),
        }
        return {name: "" if value is None else str(value) for name, value in row.items()}

    @classmethod
    def from_row(cls, row: Mapping[str, str], file: str | Path) -> Self:
        """Read a row of kept results; raise InputError if a value is missing, or cannot be the result of a run."""
        try:
            return cls._checked(_json_of_row(row))
        except (KeyError, ValueError, AttributeError) as error:
            reason = f"column {error} is missing" if isinstance(error, KeyError) else str(error)
            raise InputError(
                f"'{file}' is not a table of kept runs (row {row.get('experiment')}, seed {row.get('seed')}: {reason})."
                " Restore the file from the repository."
            ) from error


def read_bytes(file: Path) -> bytes:
    """Return the content of a file; OSError for a pipe, a device or a huge file, which block or fill the memory."""
    if file.exists() and not (file.is_file() and file.stat().st_size < MAX_BYTES):
        raise OSError(errno.EINVAL, "no regular file of a sensible size", str(file))
    return file.read_bytes()


def _damaged(file: str | Path, reason: str) -> InputError:
    return InputError(f"'{file}' is damaged: {reason}. Remove the file, or test the run again with lt-cb test.")


def percent(value: float | str | None) -> str | None:
    """Return a rate in percent with four decimals, None for a missing value."""
    return None if value in (None, "") else f"{100 * float(value):.4f}"


def _words(values: Any) -> str:  # noqa: ANN401 - of numbers or texts
    return " ".join(map(str, values))


def _json_of_row(row: Mapping[str, str]) -> dict[str, Any]:
    """Return a row of kept results as ``result.json``."""
    correct, counted, counts = ([int(n) for n in row[name].split()] for name in ("correct", "counted", "class_counts"))
    percents = {name: row.get(column) or "" for column, name in PERCENT_COLUMNS.items()}
    percents["test/acc"] = str(100.0 - float(row["error"])) if row["error"] else ""
    precisions = [float(value) / 100 for value in row.get("average_precision", "").split()]
    one = {"per_class_accuracy": [r / n if n else None for r, n in zip(correct, counted, strict=not precisions)]}
    several = {"per_class_average_precision": [None if math.isnan(value) else value for value in precisions]}
    texts = {name: row[name] or None for name in FACTS}
    return {
        **texts,
        **{name: int(texts[name] or 0) or None for name in ("epochs", "threads", "processes")},
        "metrics": {name: float(value) / 100 for name, value in percents.items() if value}
        | ({"test/loss": float(row["loss"])} if row["loss"] else {}),
        **(several if precisions else one),
        "class_names": [unquote(name) for name in row["class_names"].split(";")] if row["class_names"] else None,
        "class_counts": counts,
        "test_counts": counted or None,
        "correct": correct or None,
        "confusion": [[int(n) for n in line.split()] for line in row.get("confusion", "").split(";") if line] or None,
        "history": json.loads(row.get("history") or "{}"),
        "l2_strength": float(row["l2_strength"]) if row.get("l2_strength") else None,
        "checkpoint": None if row["checkpoint"] == "none" else row["checkpoint"],
        "seeds": {"seed_everything": int(row["seed"]), "subset_seed": int(row["subset_seed"])},
        "wall_time_s": {"fit and test": float(row["seconds"])},
        "versions": {name: row[name] for name in VERSIONS},
    }


def changes_training(class_path: str) -> bool:
    """Return whether a callback counts as a change of training: all but the known observers."""
    module, _, name = class_path.rpartition(".")
    return name not in OBSERVERS or module.partition(".")[0] not in LIBRARIES


def training_callbacks(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of ``trainer.callbacks`` that change training, with ``class_path`` and ``init_args``."""
    listed = (config.get("trainer") or {}).get("callbacks") or []
    listed = listed if isinstance(listed, list) else [listed]
    entries = [entry if isinstance(entry, dict) else {"class_path": str(entry)} for entry in listed]
    return [entry for entry in entries if changes_training(str(entry.get("class_path")))]
