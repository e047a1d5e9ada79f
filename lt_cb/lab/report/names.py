"""What a report calls data and methods."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WHOLE = "whole"
# sources whose data have no name but their root's
FOLDERS = ("image_folder", "ImageFolder", "manifest", "Manifest", "coco", "COCO")


@dataclass(frozen=True)
class Method:
    """Loss and weights as options of a configuration say them; the class weights are those of an effective number."""

    loss: str
    gamma: float | None
    beta: float | None  # None without weights
    name: str  # as "Focal gamma 1, CB β 0.999"
    family: str | None  # the name without beta; None for weights that are no effective number's


def method_of(config: Mapping[str, Any]) -> Method:
    """Return what a configuration trains by, whatever else it has."""
    loss, weighting = str(config.get("model.loss", "?")), config.get("model.loss.weighting")
    options = {key.removeprefix("model.loss."): v for key, v in config.items() if key.startswith("model.loss.")}
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


def source_of(config: Mapping[str, Any]) -> str:
    """Return the name of the data that a configuration trains on: of a folder or a table of one's own, its own."""
    source = str(config.get("data.source", "?")).rpartition(".")[2]
    return (Path(str(config.get("data.root", ""))).name or source) if source in FOLDERS else source


def subset_of(config: Mapping[str, Any], factor: float) -> str:
    """Return how the training images were drawn from the source's: ``WHOLE``, or what was asked for."""
    if given := config.get("data.subset_counts"):
        return f"IF {factor:g}, subset_counts of {sum(given)} images"
    if not config.get("data.imbalance_factor") and factor != 1:
        return WHOLE
    step = ", step" if config.get("data.imbalance_type") == "step" else ""
    n_max = config.get("data.n_max")
    return f"IF {factor:g}{step}" + (f", n_max {n_max}" if n_max else "")
