"""Names of data sets and methods in a report, from the settings of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lt_cb.data.sources.names import canonical_source
from lt_cb.runs.callbacks import LIBRARIES
from lt_cb.runs.folder import flatten

CALLBACKS, STAGE, LENGTH = "trainer.callbacks", "model.second_stage", "trainer.max_epochs"
WHOLE = "whole"
NAMED_BY_ROOT = ("ImageFolder", "Manifest", "COCO")  # the user's own images


class Method(NamedTuple):
    """Loss and class weights of a run."""

    loss: str  # class name
    gamma: float | None  # of a focal loss
    beta: float | None  # of the effective number; None without weights
    name: str  # for example "Focal gamma 1, CB β 0.999"
    family: str | None  # the name without beta; None for weights other than the effective number


def method_of(settings: Mapping[str, Any]) -> Method:
    """Return loss and weights of a flattened configuration."""
    loss, weighting = str(settings.get("model.loss", "?")), settings.get("model.loss.weighting")
    options = {key.removeprefix("model.loss."): v for key, v in settings.items() if key.startswith("model.loss.")}
    named = [
        f"{key} {v:g}"
        for key, v in options.items()
        if isinstance(v, float | int) and not isinstance(v, bool) and not key.startswith("weighting")
    ]
    if options.get("reduction") not in (None, "mean"):
        named.append(str(options["reduction"]))
    beta, weights, by = None, [], ""
    if isinstance(weighting, str):
        beta, normalization = options.get("weighting.beta"), options.get("weighting.normalization")
        by = "" if (of := options.get("weight_of", "sample")) == "sample" else f" by {of}"
        text = f"CB β {beta:g}" if weighting == "EffectiveNumber" and beta is not None else weighting
        weights = [text + by + (f" normalization {normalization}" if normalization not in (None, "classes") else "")]
    name = " ".join([loss.removesuffix("Loss"), *named])
    family = name + by if weighting in (None, "EffectiveNumber") else None
    return Method(loss, options.get("gamma"), beta, ", ".join([name, *weights]), family)


def source_of(settings: Mapping[str, Any]) -> str:
    """Return the name of the data set; the user's own images are named by their folder or table."""
    source = str(settings.get("data.source", "?"))
    last = source.rpartition(".")[2]
    return (
        (Path(str(settings.get("data.root", ""))).name or last) if canonical_source(source) in NAMED_BY_ROOT else last
    )


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

    ``data.source`` is the class name of a data set of lt_cb. ``trainer.callbacks`` lists the callbacks that change
    training by name. Each of their options has a key, for example ``trainer.EMAWeightAveraging.decay``.
    """
    settings = {key: value for key, value in flatten(config).items() if not key.startswith(CALLBACKS)}
    if "data.source" in settings:
        settings["data.source"] = canonical_source(str(settings["data.source"]))
    names: list[str] = []
    for callback in callbacks:
        path = str(callback["class_path"])
        name = path.rpartition(".")[2] if path.partition(".")[0] in LIBRARIES else path
        names.append(name if name not in names else f"{name} {len(names)}")
        settings |= flatten({names[-1]: callback.get("init_args") or {}}, "trainer.")
    return settings | ({CALLBACKS: " + ".join(names)} if names else {})
