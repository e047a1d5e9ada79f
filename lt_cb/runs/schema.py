"""Checks of ``result.json``: types, ranges and lengths. Imports no torch."""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from lt_cb.task import SEVERAL_LABELS, Task

LARGEST = 1e39  # float32 ends below it
MOST = 10**15  # images, seeds, parameters


class Kind(NamedTuple):
    """A kind of JSON value."""

    words: str  # allowed values
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:  # noqa: ANN401 - JSON
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST  # NaN is not


def _is_count(value: Any) -> bool:  # noqa: ANN401 - JSON
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST


def _list(kind: Kind, length: int) -> Kind:
    return Kind(
        f"a list of {length} entries, each {kind.words}",
        lambda v: isinstance(v, list) and len(v) == length and all(map(kind.holds, v)),
    )


def _table(kind: Kind) -> Kind:
    return Kind(
        f"a mapping whose values are {kind.words}", lambda v: isinstance(v, dict) and all(map(kind.holds, v.values()))
    )


NUMBER = Kind("a finite number", _is_number)
SECONDS = Kind("a number of at least 0", lambda v: _is_number(v) and v >= 0)
RATE = Kind("a number in [0, 1]", lambda v: _is_number(v) and 0 <= v <= 1)
RATE_OR_NULL = Kind("a number in [0, 1] or null", lambda v: v is None or RATE.holds(v))
COUNT = Kind("a whole number of at least 0", _is_count)
SEED = Kind("a whole number of at least 0, or null", lambda v: v is None or _is_count(v))
TEXT = Kind("a text", lambda v: isinstance(v, str))
TEXT_OR_NULL = Kind("a text or null", lambda v: v is None or isinstance(v, str))
CALLBACK = Kind("a mapping with class_path", lambda v: isinstance(v, dict) and isinstance(v.get("class_path"), str))


def problem_of(raw: Any, rates: Iterable[str]) -> str | None:  # noqa: ANN401 - JSON
    """Return the first reason why JSON is not the result of a run, None without any.

    Args:
        raw: parsed ``result.json``.
        rates: names of metrics in [0, 1].
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("class_counts"), list):
        return "it is not the result of a run"
    size = len(raw["class_counts"])
    task = Task.of(f"per_class_{SEVERAL_LABELS.measures[0]}" in raw)
    counts, scores, index = (
        _list(COUNT, size),
        _list(RATE_OR_NULL, size),
        Kind(f"a class index below {size}", lambda v: _is_count(v) and v < size),
    )
    seeds = {"seed_everything", "subset_seed"}
    required = {
        "class_counts": Kind(f"{counts.words}, not all 0", lambda v: counts.holds(v) and sum(v) > 0),
        "metrics": _table(NUMBER),
        f"per_class_{task.measures[0]}": scores,
        "seeds": Kind("a mapping of two seeds", lambda v: _table(SEED).holds(v) and seeds <= v.keys()),
    }
    optional = {
        "class_names": _list(TEXT, size),
        "shot_groups": _table(
            Kind(f"lists of {index.words}", lambda v: isinstance(v, list) and all(map(index.holds, v)))
        ),
        **{f"per_class_{measure}": scores for measure in task.measures},
        "correct": counts,
        "test_counts": required["class_counts"],
        "known_counts": counts,
        "thresholds": _list(RATE, size),
        "confusion": _list(counts, size),
        "skipped_images": _table(COUNT),
        "prior": _list(RATE, size),
        "callbacks": Kind("a list of mappings", lambda v: isinstance(v, list) and all(map(CALLBACK.holds, v))),
        "wall_time_s": _table(SECONDS),
        "versions": _table(TEXT_OR_NULL),
        **dict.fromkeys(("test_images", "epochs", "parameters", "threads", "processes"), COUNT),
        **dict.fromkeys(("checkpoint", "subset_sha256", "validated_on", "precision", "device"), TEXT),
        **dict.fromkeys(("processor", "wandb_run", "grid", "commit"), TEXT),
    }
    for name, kind in required.items():
        if not kind.holds(raw.get(name)):
            return f"{name} must be {kind.words}"
    for name, kind in optional.items():
        if raw.get(name) is not None and not kind.holds(raw[name]):
            return f"{name} must be {kind.words}"
    main = "test/mAP" if task.multi_label else "test/acc"
    if main not in raw["metrics"]:
        return f"{main} is missing in metrics"
    is_rate = re.compile(rf"(test|val)/({'|'.join(rates)}|acc_top5)(/.*)?")
    wrong = [name for name, value in raw["metrics"].items() if is_rate.fullmatch(name) and not RATE.holds(value)]
    return f"{wrong[0]} must be {RATE.words}" if wrong else None
