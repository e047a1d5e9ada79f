"""Pictures of a report as Vega-Lite specifications: names stand in their data alone, never in an expression."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lt_cb.lab.report.collect import Result, Runs
from lt_cb.lab.report.tables import Cell, half_width, paired_gains, wilson

VEGA_LITE = "6.4"
# of Okabe and Ito 2008, less black and yellow, and two greys: told apart by the colour-blind, on white and on black
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A", "#A39A2E")
SHAPES = {"circle": "●", "square": "■", "triangle-up": "▲", "diamond": "◆", "triangle-down": "▼", "cross": "✚"}
MARKS = 100  # classes, or else bands of classes, of a picture
NAMED = 20  # classes that have their names on an axis
FEW = 8  # methods of which a column of a paper has the width


@dataclass
class Picture:
    """A specification, of which ``--figures`` makes a file a data set."""

    name: str  # of files
    title: str
    words: str
    spec: dict[str, Any]
    wide: bool = False  # needs the width of a page


def methods_and_families(runs: Runs) -> list[str]:
    """Return what is told apart by colour and shape, the same in all pictures."""
    return [*runs.methods(), *(result.family for result in runs.results if result.family)]


def style_of(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return colour and shape of each name."""
    shapes = list(SHAPES)
    return {
        name: (COLOURS[i % len(COLOURS)], shapes[i // len(COLOURS) % len(shapes)])
        for i, name in enumerate(dict.fromkeys(names))
    }


def figures(runs: Runs, cells: dict[tuple[str, str], Cell], metric: str, title: str) -> list[Picture]:
    """Return the pictures that the runs have something for.

    Args:
        runs: finished ones.
        cells: of ``metric``.
        metric: as of `Result.score`.
        title: what the metric is called.
    """
    made = [
        _means(runs, cells, metric, title),
        _by_class(runs),
        _confusion(runs),
        _by_beta(runs, cells, title),
        _gains(runs),
        _counts(runs),
    ]
    return [picture for picture in made if picture is not None]


def specification(
    values: list[dict[str, Any]], height: int, layers: list[dict[str, Any]], **more: object
) -> dict[str, Any]:
    """Return a specification as wide as its place, of the data set and the methods that are chosen."""
    params = {"dataset": values[0]["dataset"], "hidden": [], "ink": "#222222", "paper": "#ffffff"}
    return {
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "params": [{"name": name, "value": value} for name, value in params.items()],
        "data": {"values": values},
        "transform": [{"filter": "datum.dataset === dataset && indexof(hidden, datum.method) < 0"}],
        "layer": layers,
        **more,
    }


def coloured(named: Iterable[str], values: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the encoding of methods, out of those named, by colour and shape, with a legend below."""
    styles, used = style_of(named), {row["method"] for row in values}
    names = [name for name in styles if name in used]
    legend = {"orient": "bottom", "columns": 1 if len(names) <= FEW else 2, "title": None, "symbolOpacity": 1}
    scales = [{"domain": names, "range": [styles[name][part] for name in names]} for part in (0, 1)]
    return {
        name: {"field": "method", "type": "nominal", "sort": names, "scale": scale, "legend": legend}
        for name, scale in zip(("color", "shape"), scales, strict=True)
    }


def hover(**fields: str) -> list[dict[str, str]]:
    """Return what a mark says: fields, and what they are called."""
    return [{"field": field, "title": title} for field, title in fields.items()]


def quantity(field: str, title: str, **more: object) -> dict[str, Any]:
    """Return the encoding of a number, on an axis that need not begin at 0."""
    return {"field": field, "type": "quantitative", "title": title, "scale": {"zero": False}, **more}


def _interval(mean: float, low: float, high: float) -> dict[str, Any]:
    return {"value": round(mean, 3), "low": round(low, 3), "high": round(high, 3)} | {
        "said": f"{mean:.2f} ({low:.2f} to {high:.2f})"
    }


def _means(runs: Runs, cells: dict[tuple[str, str], Cell], metric: str, title: str) -> Picture:
    order = [method for method in runs.methods() if any(method == name for name, _ in cells)]
    values: list[dict[str, Any]] = []
    for (method, data), cell in cells.items():
        half = half_width(cell.values) if len(cell.values) > 1 else 0.0
        row = {"dataset": data, "method": method, "seeds": len(cell.values)}
        values.append({**row, **_interval(cell.mean, cell.mean - half, cell.mean + half), "mean": True})
        values += [
            {**row, "value": round(score, 3), "said": f"{score:.2f}", "seed": r.seed[0]}
            for r in runs.cells()[method, data]
            if (score := r.score(metric)) is not None
        ]
    y = {"field": "method", "type": "nominal", "sort": order, "axis": None}
    colour = {
        name: {**channel, "legend": None} for name, channel in coloured(methods_and_families(runs), values).items()
    }
    x = quantity("value", f"{title.lower()} in %", axis={"tickCount": 6})
    layers: list[dict[str, Any]] = [
        {
            "transform": [{"filter": "!datum.mean"}],
            "mark": {"type": "point", "size": 35, "opacity": 0.75, "yOffset": -9},
            "encoding": {"x": x, "y": y, **colour, "tooltip": hover(method="method", seed="seed", said="%")},
        },
        {
            "transform": [{"filter": "datum.mean"}],
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y, "color": colour["color"]},
        },
        {
            "transform": [{"filter": "datum.mean"}],
            "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
            "encoding": {"x": x, "y": y, **colour, "tooltip": hover(method="method", said="mean, %", seeds="seeds")},
        },
        {  # above its row, as a phone and a column of a paper have no width for it beside
            "transform": [{"filter": "datum.mean"}],
            "mark": {"type": "text", "style": "name", "align": "left", "dy": -22, "limit": {"expr": "width"}},
            "encoding": {"x": {"value": 0}, "y": y, "text": {"field": "method"}, "color": {"value": {"expr": "ink"}}},
        },
    ]
    words = "Filled: mean over seeds, with its 95 % interval of Student's t. Above it, open: the seeds."
    return Picture("means", f"{title} of each method", words, specification(values, 52 * len(order) + 50, layers))


def _by_class(runs: Runs) -> Picture | None:
    values: list[dict[str, Any]] = []
    longest = max(len(result.record.class_counts) for result in runs.results)
    for (method, data), results in runs.cells().items():
        for rank, (label, members, images) in enumerate(_bands(results[0])):
            rates = [r.record.scores[c] for r in results for c in members]
            known = [rate for rate in rates if rate is not None]
            if not known:
                continue
            rate = 100 * statistics.mean(known)
            row: dict[str, Any] = {"dataset": data, "method": method, "label": label, "rank": rank, "images": images}
            row |= {"counted": f"{label} ({images})"} if longest <= NAMED else {}
            row |= {"value": round(rate, 3), "said": f"{rate:.1f}", "seeds": len(results)}
            tested = sum(results[0].record.test_counts[c] for c in members) if results[0].record.test_counts else None
            if tested is not None and len(members) == 1 and not runs.task.multi_label:
                low, high = (100 * bound for bound in wilson(round(rate / 100 * tested), tested))
                row |= {"low": round(low, 3), "high": round(high, 3)}
                row["said"] += f" ({low:.0f} to {high:.0f})"
            values.append({**row, "tested": "unknown" if tested is None else tested})
    if not values:
        return None
    named = longest <= NAMED
    colour = coloured(methods_and_families(runs), values)
    order = colour["color"]["sort"]
    accuracy = quantity("value", f"{runs.measure} in %")
    counted = {"images": "training images", "tested": "test images", "said": f"{runs.measure}, %"}
    said = hover(label="class", method="method", **counted)
    shown = {**colour, "tooltip": [*said, *hover(seeds="seeds")]}
    points = {"type": "point", "filled": True, "size": 55 if named else 30, "opacity": 0.9}
    layers: list[dict[str, Any]]
    if named:  # a line a class, as names are wide
        axis = {"title": None, "grid": True, "ticks": False, "tickBand": "extent"}
        y = {"field": "counted", "type": "nominal", "sort": {"field": "rank"}, "axis": axis}
        place = {"y": y, "yOffset": {"field": "method", "sort": order}}
        bounds = {"x": {**accuracy, "field": "low"}, "x2": {"field": "high"}, "color": colour["color"]}
        layers = [
            {"mark": {"type": "rule", "opacity": 0.8}, "encoding": {**place, **bounds}},
            {"mark": points, "encoding": {**place, "x": accuracy, **shown}},
        ]
        interval = "" if runs.task.multi_label else ", with Wilson's 95 % interval of one run"
        words = f"Mean over seeds{interval}. In brackets: training images."
        height = min(longest * (9 * len(order) + 10) + 50, 800)
    else:
        x = quantity("images", "training images of the class", scale={"type": "log"}, axis={"tickCount": 6})
        layers = [{"mark": points, "encoding": {"x": x, "y": accuracy, **shown}}]
        words, height = "Mean over seeds.", 340
    if longest > MARKS:
        words += f" More than {MARKS} classes are drawn as {MARKS} bands of as many classes."
    name, title = f"{runs.measure.replace(' ', '_')}_by_class", f"{runs.measure.capitalize()} of each class"
    return Picture(name, title, words, specification(values, height, layers), len(order) > FEW)


def _bands(result: Result) -> list[tuple[str, list[int], float]]:
    """Return name, classes and mean training images of each class, or of 100 bands of them, the most frequent first."""
    counts = result.record.class_counts
    names = result.record.class_names
    order = sorted(range(len(counts)), key=lambda c: -counts[c])
    cuts = [len(order) * i // min(len(order), MARKS) for i in range(min(len(order), MARKS) + 1)]
    bands = [order[a:b] for a, b in pairwise(cuts)]
    return [
        (names[b[0]] if len(b) == 1 else f"{len(b)} classes", b, statistics.mean(counts[c] for c in b)) for b in bands
    ]


def _confusion(runs: Runs) -> Picture | None:
    values: list[dict[str, Any]] = []
    by_cell = runs.cells()
    for method, data in [(m, d) for d in runs.columns() for m in runs.methods() if (m, d) in by_cell]:
        results = by_cell[method, data]
        counted = [r for r in results if r.record.confusion]
        if not counted:
            continue
        names = counted[0].record.class_names
        total = [
            [sum(ns) for ns in zip(*lines, strict=True)]
            for lines in zip(*(r.record.confusion for r in counted), strict=True)
        ]
        for i, line in enumerate(total):
            for j, n in enumerate(line):
                row = {"dataset": data, "method": method, "true": names[i], "predicted": names[j], "i": i, "j": j}
                values.append(
                    {**row, "count": n, "share": round(100 * n / max(sum(line), 1), 2), "seeds": len(counted)}
                )
    if not values:
        return None
    x = {"field": "predicted", "type": "nominal", "sort": {"field": "j"}, "title": "predicted class"}
    y = {"field": "true", "type": "nominal", "sort": {"field": "i"}, "title": "true class"}
    said = hover(true="true class", predicted="predicted", count="images", share="% of the class", method="method")
    share = {"field": "share", "type": "quantitative", "scale": {"domain": [0, 100]}, "legend": None}
    ink = {"condition": {"test": "datum.share > 50", "value": {"expr": "paper"}}, "value": {"expr": "ink"}}
    layers: list[dict[str, Any]] = [
        {"mark": "rect", "encoding": {"color": share, "tooltip": [*said, *hover(seeds="seeds")]}},
        {
            "transform": [{"filter": "datum.count > 0"}],
            "mark": {"type": "text", "style": "count", "tooltip": None},
            "encoding": {"text": {"field": "count"}, "color": ink, "tooltip": [*said, *hover(seeds="seeds")]},
        },
    ]
    classes = max(row["i"] for row in values) + 1
    spec = specification(values, 30 * classes + 80, layers, encoding={"x": {**x, "axis": {"labelAngle": -40}}, "y": y})
    spec["params"].append({"name": "confused", "value": values[0]["method"]})
    spec["transform"] = [{"filter": "datum.dataset === dataset && datum.method === confused"}]
    words = "Test images by true and predicted class, summed over seeds; the colour is their share of the true class."
    return Picture("confusion", "Confusion matrix", words, spec, wide=classes > 10)


def _by_beta(runs: Runs, cells: dict[tuple[str, str], Cell], title: str) -> Picture | None:
    """Draw each loss by beta, without weights at the left: Figure 5 of Cui et al. 2019."""
    drawn = {(r.method, r.data): r for r in runs.results if r.family is not None and (r.method, r.data) in cells}
    betas = sorted({r.beta for r in drawn.values() if r.beta is not None})
    if len(betas) < 2:
        return None
    values = []
    for key, r in drawn.items():
        cell, spread = cells[key], cells[key].deviation or 0.0
        row: dict[str, Any] = {
            "dataset": r.data,
            "method": r.family,
            "beta": "none" if r.beta is None else f"{r.beta:g}",
        }
        row |= {"low": cell.mean - spread, "high": cell.mean + spread, "seeds": len(cell.values)}
        values.append({**row, "value": round(cell.mean, 3), "said": str(cell)})
    order = ["none", *[f"{beta:g}" for beta in betas]]
    x = {"field": "beta", "type": "ordinal", "sort": order, "title": "β", "axis": {"labelAngle": 0}}
    y, colour = quantity("value", f"{title.lower()} in %"), coloured(methods_and_families(runs), values)
    said = hover(method="loss", beta="β", said="%, mean ± standard deviation", seeds="seeds")
    layers: list[dict[str, Any]] = [
        {"mark": "line", "encoding": {"x": x, "y": y, "color": colour["color"]}},
        {
            "mark": {"type": "rule", "opacity": 0.8},
            "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour["color"]},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
            "encoding": {"x": x, "y": y, **colour, "tooltip": said},
        },
    ]
    words = "Mean ± standard deviation over seeds; at the left without weights."
    return Picture(
        "by_beta", f"{title} by β", words, specification(values, 320, layers), len(colour["color"]["sort"]) > FEW
    )


def _gains(runs: Runs) -> Picture | None:
    names, groups = list(runs.group_means.values()), list(runs.group_means)
    values: list[dict[str, Any]] = []
    baselines = set()
    for name, group in zip(names, groups, strict=True):
        for method, baseline, data, gains in paired_gains(runs, name):
            if gains:
                half, mean = half_width(gains) if len(gains) > 1 else 0.0, statistics.mean(gains)
                row = {"dataset": data, "method": method, "group": group, "seeds": len(gains)}
                values.append({**row, **_interval(mean, mean - half, mean + half)})
                baselines.add(baseline)
    if not values:
        return None
    colour = coloured(methods_and_families(runs), values)
    axis = {"labelAngle": 0, "grid": False}
    x = {"field": "group", "type": "nominal", "sort": groups, "title": "classes by training images", "axis": axis}
    place = {"x": x, "xOffset": {"field": "method", "sort": colour["color"]["sort"]}}
    y = quantity("value", "gain in points")
    said = hover(method="method", group="classes", said="gain in points", seeds="seeds")
    rule = {"y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour["color"]}
    points = {"type": "point", "filled": True, "size": 90, "opacity": 1}
    layers: list[dict[str, Any]] = [
        {"mark": {"type": "rule", "color": {"expr": "ink"}}, "encoding": {"y": {"datum": 0}}},
        {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": {**place, **rule}},
        {"mark": points, "encoding": {**place, "y": y, **colour, "tooltip": said}},
    ]
    compared = ", or ".join(sorted(baselines))
    words = (
        f"{runs.measure.capitalize()} less that of {compared} on the same seeds: mean and 95 % interval of Student's "
        "t. One that crosses the line at 0 is not told apart from it."
    )
    wide = len(colour["color"]["sort"]) > FEW
    return Picture("gain_by_group", "Gain by shot group", words, specification(values, 300, layers), wide)


def _counts(runs: Runs) -> Picture:
    firsts = {result.data: result for result in reversed(runs.results)}
    values: list[dict[str, Any]] = [
        {"dataset": data, "method": "", "label": label, "rank": rank, "images": images}
        for data, result in firsts.items()
        for rank, (label, _, images) in enumerate(_bands(result))
        if images > 0  # which a logarithm needs
    ]
    named = max(row["rank"] for row in values) < NAMED
    axis = {"labels": named, "ticks": named, "labelAngle": -40, "title": "class, most frequent first"}
    x = {"field": "rank", "type": "ordinal", "axis": axis}
    if named:
        x |= {"field": "label", "sort": {"field": "rank"}}
    y = quantity("images", "training images", scale={"type": "log"}, axis={"tickCount": 4, "grid": False})
    encoding = {"x": x, "y": y, "tooltip": hover(label="class", images="training images")}
    layer = {
        "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1, "color": COLOURS[0]},
        "encoding": encoding,
    }
    return Picture("class_counts", "Training images of each class", "", specification(values, 240, [layer]))
