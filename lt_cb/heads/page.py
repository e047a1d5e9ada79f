"""Pictures and page of heads: scores by L2 strength for each recipe, and of the classes."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lt_cb.heads.recipes import Candidate
from lt_cb.lab.report.figures import NAMED, Picture, coloured, hover, quantity, specification
from lt_cb.lab.report.page import page
from lt_cb.lab.report.sections import Section
from lt_cb.lab.report.tables import half_width, wilson

BALANCED, PRECISION = "balanced accuracy", "mean average precision"


def html(
    title: str,
    finding: str,
    tables: list[Section],
    scores: Mapping[Candidate, Sequence[float]],
    parts: str,
    classes: Iterable[tuple[str, str, int, int, int]] = (),
    metric: str = BALANCED,
) -> str:
    """Return one page without anything outside of it.

    Args:
        title: of the page.
        finding: its first paragraph.
        tables: at least one.
        scores: of each candidate in [0, 1], by fold or by seed.
        parts: which of the two.
        classes: method, class name, its training images, images that were right, and that were counted.
        metric: what the scores are.
    """
    methods = [str(recipe) for recipe in dict.fromkeys(candidate.recipe for candidate in scores)]
    pictures = [_surface(methods, scores, parts, metric), *filter(None, [_by_class(methods, list(classes))])]
    return page(title, finding, tables, pictures, methods, [""])


def surface(scores: Mapping[Candidate, Sequence[float]], words: str, metric: str = BALANCED) -> Section:
    """Return the table of mean scores, in percent: a row a recipe, a column an L2 strength."""
    strengths = sorted({candidate.l2_strength for candidate in scores}, reverse=True)
    best = max(scores, key=lambda c: statistics.mean(scores[c]))
    rows = []
    for recipe in dict.fromkeys(candidate.recipe for candidate in scores):
        cells = [f"{100 * statistics.mean(scores[Candidate(recipe, strength)]):.1f}" for strength in strengths]
        rows.append(
            [str(recipe), *(f"**{c}**" if (recipe, s) == best else c for c, s in zip(cells, strengths, strict=True))]
        )
    header = ["method", *(f"λ {strength:g}" for strength in strengths)]
    return Section(f"{metric.capitalize()} by loss and L2 strength", words, header, rows)


def class_section(names: Sequence[str], correct: Tensor, counted: Tensor, words: str) -> Section:
    """Return the table of held-out accuracies by class, with Wilson's 95 % interval."""
    rows = []
    for name, right, total in zip(names, correct.tolist(), counted.tolist(), strict=True):
        low, high = (100 * bound for bound in wilson(right, total)) if total else (0.0, 0.0)
        cells = [f"{100 * right / total:.1f}", f"{low:.1f} to {high:.1f}"] if total else ["–", "–"]
        rows.append([name, str(total), *cells])
    return Section("Accuracy of the classes", words, ["class", "held-out images", "percent", "interval"], rows)


def precision_section(names: Sequence[str], rates: Tensor, counted: Tensor, words: str) -> Section:
    """Return the table of average precisions, of shape (K, C) by fold and class, with the images of each label."""
    rows = []
    for name, each, total in zip(names, rates.T, counted.tolist(), strict=True):
        known = (100 * each[~each.isnan()]).tolist()
        spread = f"{statistics.stdev(known):.1f}" if len(known) > 1 else "–"
        rows.append([name, str(total), f"{statistics.mean(known):.1f}" if known else "–", spread])
    header = ["class", "held-out images", "average precision", "standard deviation"]
    return Section("Average precision of the classes", words, header, rows)


def _surface(methods: list[str], scores: Mapping[Candidate, Sequence[float]], parts: str, metric: str) -> Picture:
    values: list[dict[str, Any]] = []
    for (recipe, strength), each in scores.items():
        mean, half = 100 * statistics.mean(each), 100 * half_width(each) if len(each) > 1 else 0.0
        row = {"dataset": "", "method": str(recipe), "strength": strength, "value": round(mean, 3)}
        values.append({**row, "said": f"{mean:.1f} ± {half:.1f}"})
    colour = coloured(methods, values)
    log = min(row["strength"] for row in values) > 0
    x = {"field": "strength", "type": "quantitative", "title": "L2 strength λ", "scale": {"type": "log"}}
    if not log:
        x |= {"type": "ordinal", "scale": {}}
    y = quantity("value", f"{metric} in %")
    said = hover(method="method", strength="λ", said="%, mean and half of its 95 % interval")
    layers: list[dict[str, Any]] = [
        {"mark": "line", "encoding": {"x": x, "y": y, "color": colour["color"]}},
        {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
            "encoding": {"x": x, "y": y, **colour, "tooltip": said},
        },
    ]
    words = f"Means over {parts}."
    title = f"{metric.capitalize()} by L2 strength"
    return Picture("surface", title, words, specification(values, 380, layers))


def _by_class(methods: list[str], classes: list[tuple[str, str, int, int, int]]) -> Picture | None:
    values: list[dict[str, Any]] = []
    for method, name, images, right, total in classes:
        if total:
            low, high = (100 * bound for bound in wilson(right, total))
            row = {"dataset": "", "method": method, "label": f"{name} ({images})", "rank": -images, "images": images}
            values.append(
                {
                    **row,
                    "value": 100 * right / total,
                    "low": low,
                    "high": high,
                    "said": f"{100 * right / total:.1f} ({low:.0f} to {high:.0f})",
                }
            )
    labels = {row["label"] for row in values}
    if not values or len(labels) > 5 * NAMED:
        return None
    colour = coloured(methods, values)
    y = {"field": "label", "type": "nominal", "sort": {"field": "rank"}, "axis": {"title": None, "labelLimit": 240}}
    place = {"y": y, "yOffset": {"field": "method", "sort": colour["color"]["sort"]}}
    x = quantity("value", "accuracy of held-out images in %")
    bounds = {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "color": colour["color"]}
    said = hover(label="class (training images)", method="method", said="%, Wilson's 95 % interval")
    layers: list[dict[str, Any]] = [
        {"mark": {"type": "rule", "opacity": 0.6}, "encoding": {**place, **bounds}},
        {
            "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
            "encoding": {**place, "x": x, **colour, "tooltip": said},
        },
    ]
    words = "With Wilson's 95 % interval; in brackets training images."
    return Picture(
        "accuracy_by_class", "Accuracy of each class", words, specification(values, 34 * len(labels) + 60, layers)
    )
