"""Charts of a report, made with altair. Names of classes and methods are data, never part of an expression."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np

from lt_cb.lab.report.extra import altair as alt
from lt_cb.lab.report.result import Result, Runs
from lt_cb.lab.report.tables import Cell, interval, paired_differences, wilson

# Okabe and Ito 2008 without black and yellow, and two greys: distinct for the colour-blind, on white and on black
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A", "#A39A2E")
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
MAX_MARKS = 100  # classes of a chart; more of them are drawn as so many bands
MAX_NAMED = 20  # classes with names on an axis
MAX_NARROW = 8  # methods of a chart that fits a column of a paper
LEGEND = alt.selection_point(name="legend", fields=["method"], bind="legend")  # a click fades the other methods

Values = list[dict[str, Any]]
Styles = dict[str, tuple[str, str]]


@dataclass
class Picture:
    """A chart of all data sets; its parameter ``dataset`` selects one."""

    name: str  # of the files
    title: str
    words: str  # below the title
    spec: dict[str, Any]  # Vega-Lite
    wide: bool = False  # whether a paper needs the width of a page


def figures(runs: Runs, cells: dict[tuple[str, str], Cell], metric: str, title: str) -> list[Picture]:
    """Return the charts that the runs have values for; ``cells`` hold ``metric``, whose name is ``title``."""
    styles = styles_of([*runs.methods(), *(result.family for result in runs.results if result.family)])
    made = [
        _means(runs, cells, metric, title, styles),
        _by_class(runs, styles),
        _confusion(runs),
        _by_beta(runs, cells, title, styles),
        _gains(runs, styles),
        _counts(runs),
    ]
    return [picture for picture in made if picture is not None]


def styles_of(names: Iterable[str]) -> Styles:
    """Return colour and shape of each method or family, the same in all charts."""
    return {
        name: (COLOURS[i % len(COLOURS)], SHAPES[i // len(COLOURS) % len(SHAPES)])
        for i, name in enumerate(dict.fromkeys(names))
    }


def encodings(styles: Styles, values: Values, legend: bool = True) -> tuple[list[str], Any, Any]:
    """Return the methods that occur in values, and their encodings by colour and shape, with a legend below."""
    drawn = {row["method"] for row in values}
    names = [name for name in styles if name in drawn]
    columns = 1 if len(names) <= MAX_NARROW else 2
    below = alt.Legend(orient="bottom", columns=columns, title=None, symbolOpacity=1) if legend else None
    color, shape = (alt.Scale(domain=names, range=[styles[name][part] for name in names]) for part in (0, 1))
    options: dict[str, Any] = {"sort": names, "legend": below}
    return names, alt.Color("method:N", scale=color, **options), alt.Shape("method:N", scale=shape, **options)


def faded(opacity: float = 0.9) -> Any:  # noqa: ANN401 - a condition
    """Return the opacity of a mark, low if another method is chosen in the legend."""
    return alt.when(LEGEND).then(alt.value(opacity)).otherwise(alt.value(0.08))


def marks(keep: str | None = None) -> Any:  # noqa: ANN401 - alt.Chart
    """Return an empty layer, of the rows for which the expression ``keep`` holds."""
    return alt.Chart() if keep is None else alt.Chart().transform_filter(keep)


def specification(values: Values, height: int, *layers: Any, legend: bool = True, **params: str) -> dict[str, Any]:  # noqa: ANN401 - alt.Chart
    """Return layers over values, rows with a ``dataset``, as Vega-Lite: as wide as its place, and of one data set.

    With ``legend``, a legend selects methods. ``params`` are further columns to filter by, and the value to begin with.
    """
    *below, top = layers
    top = top.add_params(LEGEND).properties(name="marks") if legend else top
    chart = alt.layer(*below, top).properties(
        width="container", height=height, autosize=alt.AutoSizeParams(type="fit-x", contains="padding")
    )
    for column, value in {"dataset": values[0]["dataset"], **params}.items():
        choice = alt.BindDirect(element=f"#choose-{column}", event="change")
        chart = chart.add_params(alt.param(name=column, value=value, bind=choice))
        chart = chart.transform_filter(f"datum.{column} === {column}")
    spec = {key: value for key, value in chart.to_dict().items() if key not in ("$schema", "config")}
    for layer in spec["layer"]:
        layer.pop("data", None)  # altair's placeholder, which would hide the values
    return {**spec, "data": {"values": values}}  # added here, as altair would check each value


def tooltip(**fields: str) -> list[Any]:
    """Return a tooltip of fields with their titles."""
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in fields.items()]


def number(channel: Callable[..., Any], field: str, title: str, **options: Any) -> Any:  # noqa: ANN401 - a channel
    """Return the encoding of a number on an axis that need not start at 0."""
    return channel(f"{field}:Q", title=title, **{"scale": alt.Scale(zero=False), **options})


def _dots(across: str, title: str, keep: str | None = None, **channels: Any) -> list[Any]:  # noqa: ANN401 - channels
    """Return rules from ``low`` to ``high`` and marks at ``value`` on the axis ``across``, which is ``x`` or ``y``."""
    channel = alt.X if across == "x" else alt.Y
    low, value = ({across: number(channel, field, title)} for field in ("low", "value"))
    channels = {"opacity": faded(), **channels}
    without_shape = {name: encoding for name, encoding in channels.items() if name != "shape"}
    return [
        marks(keep).mark_rule(strokeWidth=2).encode(**without_shape, **low, **{f"{across}2": "high:Q"}),
        marks(keep).mark_point(filled=True, size=70).encode(**channels, **value),
    ]


def _look(
    styles: Styles, values: Values, shown: dict[str, str], legend: bool = True
) -> tuple[list[str], dict[str, Any]]:
    """Return the methods that occur in values, and their colour, shape and tooltip."""
    order, color, shape = encodings(styles, values, legend)
    return order, {"color": color, "shape": shape, "tooltip": tooltip(**shown)}


def _with_interval(scores: list[float], least: float = 0.0) -> dict[str, Any]:
    mean, low, high = interval(scores)
    low, high = max(low, least), min(high, 100.0)
    bounds = {"value": round(mean, 3), "low": round(low, 3), "high": round(high, 3)}
    return {**bounds, "text": f"{mean:.2f} ({low:.2f} to {high:.2f})"}


def _means(runs: Runs, cells: dict[tuple[str, str], Cell], metric: str, title: str, styles: Styles) -> Picture:
    values: Values = []
    for (method, data), cell in cells.items():
        row = {"dataset": data, "method": method, "seeds": len(cell.values)}
        values.append({**row, **_with_interval(cell.values), "mean": True})
        values += [
            {**row, "value": round(score, 3), "text": f"{score:.2f}", "seed": r.seed[0]}
            for r in runs.cells()[method, data]
            if (score := r.score(metric)) is not None
        ]
    order, look = _look(styles, values, {"method": "method", "text": "mean, %", "seeds": "seeds"}, legend=False)
    y, text = alt.Y("method:N", sort=order, axis=None), f"{title.lower()} in %"
    seeds = marks("!datum.mean").mark_point(size=35, opacity=0.75, yOffset=-9)
    # above its row, as neither a phone nor a column of a paper is wide enough for a name beside it
    names = marks("datum.mean").mark_text(align="left", dy=-22, limit=alt.expr("width"))
    own = {**look, "tooltip": tooltip(method="method", seed="seed", text="%")}
    layers = (
        seeds.encode(number(alt.X, "value", text), y, **own),
        *_dots("x", text, "datum.mean", **look, y=y, opacity=alt.value(1)),
        names.encode(y, x=alt.value(0), text="method:N"),
    )
    words = "Filled: mean over seeds with its 95 % interval (Student's t). Open, above it: single seeds."
    spec = specification(values, 52 * len(order) + 50, *layers, legend=False)
    return Picture("means", f"{title} of each method", words, spec)


def _by_class(runs: Runs, styles: Styles) -> Picture | None:
    longest = max(len(result.record.class_counts) for result in runs.results)
    values = _class_values(runs, with_counts=longest <= MAX_NAMED)
    if not values:
        return None
    shown = {"label": "class", "method": "method", "images": "training images", "tested": "test images"}
    order, look = _look(styles, values, {**shown, "text": f"{runs.measure}, %", "seeds": "seeds"})
    score = f"{runs.measure} in %"
    if longest <= MAX_NAMED:  # a line for each class, as names are wide
        axis = alt.Axis(title=None, grid=True, ticks=False, tickBand="extent")
        y = alt.Y("counted:N", sort={"field": "rank"}, axis=axis)
        layers = _dots("x", score, **look, y=y, yOffset=alt.YOffset("method:N", sort=order))
        words = "Mean over seeds with its 95 % interval (Student's t). In brackets: training images."
        if not runs.task.multi_label:
            words += " Of one seed: Wilson's interval, due to the number of test images."
        height = min(longest * (9 * len(order) + 10) + 50, 800)
    else:
        x = number(alt.X, "images", "training images of the class", scale=alt.Scale(type="log"))
        points, y = marks().mark_point(filled=True, size=30), number(alt.Y, "value", score)
        layers = [points.encode(x, y, **look, opacity=faded())]
        words, height = "Mean over seeds.", 340
    if longest > MAX_MARKS:
        words += f" Each point is one of {MAX_MARKS} bands of classes with similar counts."
    name, title = f"{runs.measure.replace(' ', '_')}_by_class", f"{runs.measure.capitalize()} of each class"
    return Picture(name, title, words, specification(values, height, *layers), len(order) > MAX_NARROW)


def _class_values(runs: Runs, with_counts: bool) -> Values:
    values: Values = []
    for (method, data), results in runs.cells().items():
        tests = results[0].record.test_counts
        for rank, (label, members, images) in enumerate(_bands(results[0])):
            rates = [rate for r in results for c in members if (rate := r.record.scores[c]) is not None]
            if not rates:
                continue
            rate = 100 * statistics.mean(rates)
            row: dict[str, Any] = {"dataset": data, "method": method, "label": label, "rank": rank, "images": images}
            row |= {"counted": f"{label} ({images})"} if with_counts else {}
            row |= {"value": round(rate, 3), "text": f"{rate:.1f}", "seeds": len(results)}
            tested = None if tests is None else sum(tests[c] for c in members)
            if len(members) == 1 and len(rates) > 1:
                row |= _with_interval([100 * rate for rate in rates])
            elif len(members) == 1 and tested and not runs.task.multi_label:
                low, high = (100 * bound for bound in wilson(round(rate / 100 * tested), tested))
                row |= {"low": round(low, 3), "high": round(high, 3), "text": f"{rate:.1f} ({low:.0f} to {high:.0f})"}
            values.append({**row, "tested": "unknown" if tested is None else tested})
    return values


def _bands(result: Result) -> list[tuple[str, list[int], float]]:
    """Return name, indices and mean training images of each class, or of 100 bands of classes; most frequent first."""
    counts, names = result.record.class_counts, result.record.class_names
    order = sorted(range(len(counts)), key=lambda c: -counts[c])
    num_bands = min(len(order), MAX_MARKS)
    bands = [order[a:b] for a, b in pairwise(len(order) * i // num_bands for i in range(num_bands + 1))]
    return [
        (names[b[0]] if len(b) == 1 else f"{len(b)} classes", b, statistics.mean(counts[c] for c in b)) for b in bands
    ]


def _confusion(runs: Runs) -> Picture | None:
    values: Values = []
    cells = runs.cells()
    for data, method in product(runs.columns(), runs.methods()):
        records = [result.record for result in cells.get((method, data), [])]
        matrices = [record.confusion for record in records if record.confusion]
        if not matrices:
            continue
        total, names = np.sum(matrices, 0), records[0].class_names
        shares = (100 * total / np.maximum(total.sum(1, keepdims=True), 1)).round(2)
        for (i, j), count in np.ndenumerate(total):
            row = {"dataset": data, "method": method, "true": names[i], "predicted": names[j], "i": i, "j": j}
            values.append({**row, "count": int(count), "share": float(shares[i, j]), "seeds": len(matrices)})
    if not values:
        return None
    shown = tooltip(true="true class", predicted="predicted", count="images", share="% of the class", seeds="seeds")
    x = alt.X("predicted:N", sort={"field": "j"}, title="predicted class", axis=alt.Axis(labelAngle=-40))
    y = alt.Y("true:N", sort={"field": "i"}, title="true class")
    share = alt.Color("share:Q", scale=alt.Scale(domain=[0, 100]), legend=None)
    ink = alt.when("datum.share > 50").then(alt.value("#ffffff")).otherwise(alt.value("#333a44"))
    layers = (
        marks().mark_rect().encode(x, y, share, tooltip=shown),
        marks("datum.count > 0").mark_text(fontSize=11).encode(x, y, text="count:Q", color=ink, tooltip=shown),
    )
    classes = max(row["i"] for row in values) + 1
    spec = specification(values, 30 * classes + 80, *layers, legend=False, method=values[0]["method"])
    words = "Test images by true and predicted class, summed over seeds. Colour: share of the true class."
    return Picture("confusion", "Confusion matrix", words, spec, wide=classes > 10)


def _by_beta(runs: Runs, cells: dict[tuple[str, str], Cell], title: str, styles: Styles) -> Picture | None:
    """Draw each loss by beta, as in Figure 5 of Cui et al. 2019; without weights at the left."""
    drawn = {(r.method, r.data): r for r in runs.results if r.family is not None and (r.method, r.data) in cells}
    betas = sorted({r.beta for r in drawn.values() if r.beta is not None})
    if len(betas) < 2:
        return None
    values: Values = []
    for key, r in drawn.items():
        cell, spread = cells[key], cells[key].deviation or 0.0
        row = {"dataset": r.data, "method": r.family, "beta": "none" if r.beta is None else f"{r.beta:g}"}
        low, high = max(cell.mean - spread, 0.0), min(cell.mean + spread, 100.0)
        bounds = {"low": low, "high": high, "seeds": len(cell.values)}
        values.append({**row, **bounds, "value": round(cell.mean, 3), "text": str(cell)})
    x = alt.X("beta:O", sort=["none", *[f"{beta:g}" for beta in betas]], title="β", axis=alt.Axis(labelAngle=0))
    text = f"{title.lower()} in %"
    shown = {"method": "loss", "beta": "β", "text": "%, mean ± standard deviation", "seeds": "seeds"}
    order, look = _look(styles, values, shown)
    line = marks().mark_line().encode(x, number(alt.Y, "value", text), look["color"], opacity=faded())
    spec = specification(values, 320, line, *_dots("y", text, **look, x=x))
    words = "Mean ± standard deviation over seeds. At the left: without weights."
    return Picture("by_beta", f"{title} by β", words, spec, len(order) > MAX_NARROW)


def _gains(runs: Runs, styles: Styles) -> Picture | None:
    differences = [
        (group, d) for group, name in runs.group_means.items() for d in paired_differences(runs, name, min_seeds=1)
    ]
    if not differences:
        return None
    values: Values = [
        {
            "dataset": d.data,
            "method": d.method,
            "group": group,
            "seeds": len(d.changes),
            **_with_interval(d.changes, -100.0),
        }
        for group, d in differences
    ]
    shown = {"method": "method", "group": "classes", "text": "gain in points", "seeds": "seeds"}
    order, look = _look(styles, values, shown)
    axis = alt.Axis(labelAngle=0, grid=False)
    x = alt.X("group:N", sort=list(runs.group_means), title="classes by training images", axis=axis)
    zero = marks().mark_rule().encode(y=alt.datum(0))
    layers = _dots("y", "gain in points", **look, x=x, xOffset=alt.XOffset("method:N", sort=order))
    words = (
        f"Gain in {runs.measure} over {' or '.join(sorted({d.baseline for _, d in differences}))} on the same seeds: "
        "mean and 95 % interval (Student's t). An interval that contains 0 is not significant."
    )
    spec = specification(values, 300, zero, *layers)
    return Picture("gain_by_group", "Gain by shot group", words, spec, len(order) > MAX_NARROW)


def _counts(runs: Runs) -> Picture:
    firsts = {result.data: result for result in reversed(runs.results)}
    values: Values = [
        {"dataset": data, "method": "", "label": label, "rank": rank, "images": images}
        for data, result in firsts.items()
        for rank, (label, _, images) in enumerate(_bands(result))
        if images > 0  # the axis is logarithmic
    ]
    named = max(row["rank"] for row in values) < MAX_NAMED
    axis = alt.Axis(labels=named, ticks=named, labelAngle=-40, title="class, most frequent first")
    x = alt.X("label:N", sort={"field": "rank"}, axis=axis) if named else alt.X("rank:O", axis=axis)
    y = number(alt.Y, "images", "training images", scale=alt.Scale(type="log"), axis=alt.Axis(grid=False))
    points = marks().mark_point(filled=True, size=60, opacity=1, color=COLOURS[0])
    layer = points.encode(x, y, tooltip=tooltip(label="class", images="training images"))
    return Picture("class_counts", "Training images of each class", "", specification(values, 240, layer, legend=False))
