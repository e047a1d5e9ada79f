"""Finished runs with the names of their methods (rows of a table) and data sets (columns)."""

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

from lt_cb.data.sources.names import OWN_IMAGES, canonical_source
from lt_cb.errors import InputError
from lt_cb.runs.folder import RunDir, flatten
from lt_cb.runs.record import LIBRARIES, SHOTS, Record, training_callbacks
from lt_cb.task import Task

CALLBACKS, STAGE, LENGTH = "trainer.callbacks", "model.second_stage", "trainer.max_epochs"
CLASSES = "data.classes"  # digest of names and counts, among the settings of a run
WHOLE = "whole"
SHORTENED = (*LIBRARIES, "torch", "torchvision", "torchmetrics")  # classes of these libraries go by their bare names
NAMES = {  # names of losses in the field; other losses are named by their class
    "BalancedSoftmax": "Balanced softmax",
    "LogitAdjusted": "Logit adjustment",
    "PostHocLogitAdjustment": "Post-hoc logit adjustment",
    "VectorScaling": "VS",
    "ClassDependentTemperature": "CDT",
    "Equalization": "EQL",
    "LabelSmoothing": "Label smoothing",
    "LabelAwareSmoothing": "Label-aware smoothing",
    "Asymmetric": "ASL",
    "DistributionBalanced": "DB",
}
WEIGHTS = {"InverseFrequency": "inverse frequency", "SquareRootInverse": "square-root inverse frequency"}
SYMBOLS = {"gamma": "γ", "tau": "τ"}  # options of a loss that are part of its name
SETTINGS = {  # words for a setting in the name of a method
    LENGTH: "{} epochs",
    STAGE: "{}",
    "model.optimizer.lr": "lr {}",
    "model.optimizer.weight_decay": "weight decay {}",
    "trainer.gradient_clip_val": "clip {}",
}
STAGES = {"ClassifierRetraining": "cRT", "LearnableWeightScaling": "LWS", "TauNormalization": "τ-normalisation"}
# settings that a head on a frozen network does not use
OF_TRAINING = ("model.optimizer", "model.lr_scheduler", "data.batch_size", "trainer.gradient_clip", LENGTH)
# settings that are named wherever they differ from their defaults, if they differ between runs
ALWAYS_NAMED: dict[str, Any] = {"model.backbone": "resnet32", "data.image_size": None, CALLBACKS: None}
NOT_IN_PAPER = (
    *("data.val_fraction", "data.sampler", "model.mix", "model.drw_start", STAGE, "model.backbone_args.pretrained"),
    CALLBACKS,
)


class Method(NamedTuple):
    """Loss and class weights of a run."""

    loss: str  # class name
    gamma: float | None  # of a focal loss
    beta: float | None  # of the effective number; None without weights
    name: str  # for example "CB-Focal, γ 1, β 0.999"
    weighting: str | None  # class name


def is_error(metric: str) -> bool:
    """Whether lower values of a metric are better."""
    return metric.startswith("error")


def short(value: float) -> str:
    """Return a number with as many digits as it needs, at least as ``%g``."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def method_of(settings: Mapping[str, Any]) -> Method:
    """Return loss and weights of a flattened configuration."""
    loss, weighting = _class_name(settings.get("model.loss", "?")), settings.get("model.loss.weighting")
    options = {key.removeprefix("model.loss."): v for key, v in settings.items() if key.startswith("model.loss.")}
    beta = options.get("weighting.beta") if weighting == "EffectiveNumber" else None
    name = NAMES.get(loss.removesuffix("Loss"), loss.removesuffix("Loss"))
    deferred = "-DRW" if weighting and settings.get("model.drw_start") else ""
    balanced = "CB-" if beta is not None and not deferred else ""
    values = {sign: options.get(key) for key, sign in SYMBOLS.items()}
    numbers = [f"{sign} {short(value)}" for sign, value in values.items() if isinstance(value, float | int)]
    weights = []
    if isinstance(weighting, str):
        weights = [f"β {short(beta)}" if beta is not None else WEIGHTS.get(weighting, _class_name(weighting))]
        by, over = options.get("weight_of", "sample"), options.get("weighting.normalization")
        weights += [f"weight of the {by}"] * (by != "sample")
        weights += [f"normalised over {over}"] * (over not in (None, "classes"))
    return Method(
        loss, options.get("gamma"), beta, ", ".join([f"{balanced}{name}{deferred}", *numbers, *weights]), weighting
    )


def _class_name(path: object) -> str:
    return str(path).rpartition(".")[2]


def label(key: str, value: object) -> str:
    """Return a setting for the name of a method, for example ``200 epochs``."""
    if (key, str(value)) == (LENGTH, "1"):
        return "1 epoch"
    value = STAGES.get(str(value), value) if key == STAGE else value
    return SETTINGS.get(key, f"{key.partition('.')[2] or key} {{}}").format(value)


def seeds_of(cells: Iterable[Sequence["Result"]]) -> str:
    """Return the numbers of seeds of cells, and whether they differ in the drawn subset too or in training alone."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for results in cells:
        subsets = {result.record.subset_sha256 or result.record.subset_seed for result in results}
        kind = "seeds with drawn subsets" if len(subsets) > 1 else "training seeds on one fixed subset"
        numbers["seed" if len(results) == 1 else kind].add(len(results))
    spans = {kind: sorted({min(counts), max(counts)}) for kind, counts in sorted(numbers.items())}
    return " or ".join(f"{' to '.join(map(str, span))} {kind}" for kind, span in spans.items())


def source_of(settings: Mapping[str, Any]) -> str:
    """Return the name of the data set; the user's own images are named by their folder or table."""
    source = _class_name(canonical_source(str(settings.get("data.source", "?"))))
    return (Path(str(settings.get("data.root", ""))).name if source in OWN_IMAGES else "") or source


def subset_of(settings: Mapping[str, Any], factor: float) -> str:
    """Return the requested profile of the training images, or ``WHOLE``."""
    if given := settings.get("data.subset_counts"):
        return f"IF {factor:g}, subset_counts of {sum(given)} images"
    if not settings.get("data.imbalance_factor") and factor != 1:
        return WHOLE
    step = ", step" if settings.get("data.imbalance_type") == "step" else ""
    n_max = settings.get("data.n_max")
    return f"IF {factor:g}{step}" + (f", n_max {n_max}" if n_max else "")


def settings_of(config: Mapping[str, Any], callbacks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a flattened configuration in which one thing has one name.

    Classes of well-known libraries go by their bare names, custom classes by their paths. ``trainer.callbacks`` lists
    the callbacks that change training. Each of their options has a key, as ``trainer.EMAWeightAveraging.decay``.
    """
    settings = {
        key: _shortened(value) if key.startswith(("model", "data")) else value
        for key, value in flatten(config, full_paths=True).items()
        if not key.startswith(CALLBACKS)
    }
    if "data.source" in settings:
        settings["data.source"] = canonical_source(str(settings["data.source"]))
    names: list[str] = []
    for callback in callbacks:
        name = _shortened(str(callback["class_path"]))
        names.append(name if name not in names else f"{name} {len(names)}")
        settings |= flatten({names[-1]: callback.get("init_args") or {}}, "trainer.")
    return settings | ({CALLBACKS: " + ".join(names)} if names else {})


def _shortened(value: Any) -> Any:  # noqa: ANN401 - YAML
    """Return the bare name of a class of a well-known library, any other value unchanged."""
    is_path = isinstance(value, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", value) is not None
    return _class_name(value) if is_path and value.partition(".")[0] in SHORTENED else value


def classes_of(record: Record) -> str:
    """Return a digest of the class names and of the counts of test images, which all runs on a data set share."""
    vary = record.task.multi_label or record.groups  # by seed
    facts = [record.class_names, [] if vary else record.test_counts or record.class_counts]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:6]


@dataclass
class Result:
    """One finished run with its names.

    Attributes:
        folder: of the run; of a kept row, experiment and seeds.
        record: content of ``result.json``, with the metrics of the last validation.
        settings: flattened configuration, from ``settings_of``.
        source: name of the data set, or of the user's own images.
        row: columns of a kept row, else empty.
        time: of writing, in nanoseconds.
        is_test: whether the run only tested a checkpoint.
        logits: file of `SaveLogits`, which need not exist.
        data: name of the data set with the subset, a column of a table.
        method: name of the method, a row of a table.
        others: parts of the method's name behind loss and weights, for example ``max_epochs 40``.
        loss: class name; with ``gamma`` of a focal loss, ``weighting``, and ``beta`` of the effective number.
        epochs: of the training, None if unknown.
        unlike_paper: settings that no run of the paper has.
        paper_key: values of the first columns of ``paper.csv``.
    """

    folder: Path
    record: Record
    settings: dict[str, Any]
    source: str
    row: dict[str, str]
    time: int
    is_test: bool = field(default=False, init=False)

    @classmethod
    def of(cls, folder: Path, record: Record, config: dict[str, Any], row: dict[str, str], time: int = 0) -> Self:
        """Make the result of a run from the content of its ``config.yaml``."""
        callbacks = training_callbacks(config) if record.callbacks is None else record.callbacks
        settings = settings_of(config, callbacks) | {f"model.{key}": value for key, value in record.history.items()}
        settings[CLASSES] = classes_of(record)
        if record.l2_strength is not None:
            settings = {key: value for key, value in settings.items() if not key.startswith(OF_TRAINING)}
        made = cls(folder, record, settings, record.tested_on or source_of(flatten(config)), row, time)
        made.is_test = bool({"verbose", "prior"} & config.keys())
        return made

    def __post_init__(self) -> None:
        """Read the settings, so that values that no configuration has raise here."""
        counts, get = self.record.class_counts, self.settings.get
        self.logits = RunDir(self.folder).logits
        self.source_class = str(get("data.source", "?"))  # class name or class path
        self.imbalance_factor = float(get("data.imbalance_factor") or max(counts) / max(min(counts), 1))
        if not 1 <= self.imbalance_factor < math.inf:
            raise ValueError("no imbalance factor")
        self.loss, self.gamma, self.beta, self.plain_name, self.weighting = method_of(self.settings)
        epochs = self.record.epochs or get(LENGTH)
        self.epochs = None if epochs is None else int(epochs)
        self.unlike_paper = [f"{key.partition('.')[2]} {get(key)}" for key in NOT_IN_PAPER if get(key)]
        averaged = len(self.record.averaged)
        self._average = [f"average of {averaged} checkpoints"] if averaged else []
        self.unlike_paper += self._average
        self._subset = subset_of(self.settings, self.imbalance_factor)
        network = str(get("model.backbone", ALWAYS_NAMED["model.backbone"])), str(get("data.image_size") or 32)
        gamma = f"{self.gamma or 0:g}" if self.loss == "FocalLoss" else ""
        beta = "" if self.beta is None or self.imbalance_factor == 1 else short(self.beta)
        loss = self.loss if self.weighting in (None, "EffectiveNumber") else ""  # the paper has no other weights
        self.paper_key = (self.source_class, self._subset, *network, loss, gamma, beta)
        self.name_by([])

    def name_by(self, keys: list[str], by_checkpoint: bool = False) -> None:
        """Name the method by settings, and by the kind of the tested checkpoint; name the data set."""
        get = self.settings.get
        named = [key for key in sorted({*keys, STAGE}) if get(key) is not None and (key in keys or get(key))]
        self.others = [label(key, get(key)) for key in named]
        strength = self.record.l2_strength
        self.others += [] if strength is None else [f"head on the frozen network, λ {short(strength)}"]
        self.others += [f"{self.record.tested} checkpoint"] if by_checkpoint and strength is None else []
        self.others += self._average
        self.others += [f"prior {get('prior')}"] if get("prior") else []  # of a test
        self.method = ", ".join([self.plain_name, *self.others])
        self.data = self.source if self._subset == WHOLE else f"{self.source} {self._subset}"

    @property
    def others_but_stage(self) -> tuple[str, ...]:
        """The parts of the method's name behind loss and weights, without the second stage."""
        return tuple(text for text in self.others if text != label(STAGE, self.settings.get(STAGE)))

    @property
    def seed(self) -> tuple[int, int]:
        """Seeds of training and subset; -1 is an unknown seed."""
        seeds = self.record.seed_everything, self.record.subset_seed
        return -1 if seeds[0] is None else seeds[0], -1 if seeds[1] is None else seeds[1]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Values of the test by name, ``acc``, and of the last validation, ``val/acc``."""
        return {name.removeprefix("test/"): value for name, value in self.record.metrics.items()}

    def score(self, metric: str) -> float | None:
        """Return a metric in percent: a name of ``metrics``, or ``error`` for 100 - ``acc``; None without it.

        ``error_top5`` and ``error/few`` are 100 - ``acc_top5`` and 100 - ``acc/few``.

        Raises:
            InputError: for a validation metric that was measured on the test images.
        """
        if metric.startswith("val/") and self.record.validated_on in (None, "test"):
            raise InputError(
                f"'{self.folder}' was validated on the test images, and nothing may be chosen by them: train with "
                "--data.val_fraction 0.1, or with validation images of your own."
            )
        value = self.metrics.get(re.sub("^error", "acc", metric))
        return None if value is None else 100.0 - 100.0 * value if is_error(metric) else 100.0 * value

    def class_scores(self, metric: str) -> list[float | None]:
        """Return the score of each class in percent: its error if the metric is one, else its accuracy or precision."""
        rates = [None if rate is None else 100.0 * rate for rate in self.record.scores]
        return [None if rate is None else 100.0 - rate for rate in rates] if is_error(metric) else rates


@dataclass
class Runs:
    """The runs below a folder.

    Attributes:
        results: runs in the tables, all of one task.
        missing: folder of each other run, and why it is not in the tables.
        unnamed: settings that differ between methods of one loss, but are not in their names.
    """

    results: list[Result]
    missing: list[tuple[Path, str]] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)

    @property
    def task(self) -> Task:
        """One label or several labels an image."""
        return self.results[0].record.task

    def measure(self, metric: str) -> str:
        """Return the score of a class: ``error`` if the metric is one, else ``accuracy`` or ``average precision``."""
        return "error" if is_error(metric) else self.task.measures[0].replace("_", " ")

    def group_metrics(self, metric: str) -> dict[str, str]:
        """Return the metric of each shot group that runs have, by its name; errors if the given metric is one."""
        name = "error" if is_error(metric) else self.task.group_metric
        metrics = {shot: f"{name}/{shot}" for shot in SHOTS}
        return {shot: name for shot, name in metrics.items() if any(r.score(name) is not None for r in self.results)}

    def cells(self) -> dict[tuple[str, str], list[Result]]:
        """Return the runs of each (method, data), over seeds."""
        cells: dict[tuple[str, str], list[Result]] = defaultdict(list)
        for result in self.results:
            cells[result.method, result.data].append(result)
        return cells

    def methods(self) -> list[str]:
        """Return the rows: unweighted losses first, and of these the ones closest to the paper's training first."""
        order = {"SoftmaxLoss": 0, "SigmoidLoss": 1, "FocalLoss": 2}

        def place(r: Result) -> tuple[bool, bool, int, str]:
            by_number = re.sub(r"\d+", lambda digits: digits[0].zfill(8), r.method)
            return r.weighting is not None, bool(r.unlike_paper), order.get(r.loss, 3), by_number

        places = {r.method: place(r) for r in reversed(self.results)}
        return sorted(places, key=lambda method: places[method])

    def columns(self) -> list[str]:
        """Return the data sets, each from the highest imbalance factor to the lowest."""
        keys = {result.data: (result.source, -result.imbalance_factor, result.data) for result in self.results}
        return sorted(keys, key=lambda data: keys[data])
