"""Charts of a report, made with altair. Names of classes and methods are data, never part of an expression."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np

from lt_cb.lab.report.extra import altair as alt
from lt_cb.lab.report.result import Result, Runs, is_error
from lt_cb.lab.report.tables import Cell, baselines_of, interval, paired_differences, wilson

# 12 colours with the largest least distance (OKLab), also with protanopia and deuteranopia, on white and on black
COLOURS = (
    *("#0078B4", "#D25A00", "#009669", "#A51E78", "#96B400", "#9696B4"),
    *("#874B2D", "#780FE1", "#F0A587", "#FF3C78", "#E196FF", "#F02DFF"),
)
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
MAX_MARKS = 100  # classes of a chart; more of them are drawn as so many bands
MAX_NAMED = 20  # classes with names on an axis
MAX_NARROW = 8  # methods of a chart that fits a column of a paper
MAX_DRAWN = len(COLOURS)  # methods of a chart by class or group; of more, the baseline and a chosen one are drawn
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
    methods: Sequence[str] = ()  # to choose from with the parameter ``method``


def figures(runs: Runs, cells: dict[tuple[str, str], Cell], metric: str, title: str) -> list[Picture]:
    """Return the charts that the runs have values for; ``cells`` hold ``metric``, whose name is ``title``."""
    styles = styles_of(runs.methods())
    made = [
        _means(runs, cells, metric, title, styles),
        _by_group(runs, metric, styles),
        _by_class(runs, metric, styles),
        _confusion(runs),
    ]
    return [picture for picture in made if picture is not None]


def styles_of(names: Iterable[str]) -> Styles:
    """Return colour and shape of each method, the same in all charts, and different from its neighbours."""
    return {
        name: (COLOURS[i % len(COLOURS)], SHAPES[(i + i // len(COLOURS)) % len(SHAPES)])
        for i, name in enumerate(dict.fromkeys(names))
    }


def encodings(styles: Styles, values: Values, legend: bool = True) -> tuple[list[str], Any, Any]:
    """Return the methods that occur in values, and their encodings by colour and shape, with a legend below."""
    drawn = {row["method"] for row in values}
    names = [name for name in styles if name in drawn]
    columns = alt.expr("width < 500 ? 1 : 3") if len(names) > 2 else 1
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


def specification(
    values: Values,
    height: int,
    *layers: Any,  # noqa: ANN401 - alt.Chart
    legend: bool = True,
    baselines: dict[str, str] | None = None,
    **params: str,
) -> dict[str, Any]:
    """Return layers over values, rows with a ``dataset``, as Vega-Lite: as wide as its place, and of one data set.

    With ``legend``, a legend selects methods. ``params`` are further columns to filter by, and the value to begin with;
    rows of the baseline of a chosen method stay, if there are ``baselines``.
    """
    *below, top = layers
    top = top.add_params(LEGEND).properties(name="marks") if legend else top
    chart = alt.layer(*below, top).properties(
        width="container", height=height, autosize=alt.AutoSizeParams(type="fit-x", contains="padding")
    )
    for column, value in {"dataset": values[0]["dataset"], **params}.items():
        choice = alt.BindDirect(element=f"#choose-{column}", event="change")
        chart = chart.add_params(alt.param(name=column, value=value, bind=choice))
        also = " || datum.method === baselines[method]" if baselines and column == "method" else ""
        chart = chart.transform_filter(f"datum.{column} === {column}{also}")
    if baselines:
        chart = chart.add_params(alt.param(name="baselines", value=baselines))
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


def dots(across: str, title: str, single_at: int = 0, faint: bool = False, **channels: Any) -> list[Any]:  # noqa: ANN401 - channels
    """Return small marks of seeds, rules from ``low`` to ``high``, and marks of means on the axis ``across``, x or y.

    ``single_at`` moves the seeds of a horizontal chart up, in pixels.
    """
    channel = alt.X if across == "x" else alt.Y
    low, value = ({across: number(channel, field, title)} for field in ("low", "value"))
    without_shape = {name: encoding for name, encoding in channels.items() if name != "shape"}
    offset = {"yOffset": -single_at} if single_at else {}
    rule = marks("isValid(datum.low)").mark_rule(strokeWidth=1 if faint else 2)
    return [
        marks("!datum.mean")
        .mark_point(size=30 if single_at else 14, strokeWidth=1, **offset)
        .encode(**channels, **value),
        rule.encode(**without_shape, **low, **{f"{across}2": "high:Q"}),
        marks("datum.mean").mark_point(filled=True, size=70).encode(**channels, **value),
    ]


def look_of(styles: Styles, values: Values, shown: dict[str, str], legend: bool) -> tuple[list[str], dict[str, Any]]:
    """Return the methods that occur in values, and their colour, shape, opacity and tooltip."""
    order, color, shape = encodings(styles, values, legend)
    opacity = faded() if legend else alt.value(0.9)
    return order, {"color": color, "shape": shape, "opacity": opacity, "tooltip": tooltip(**shown)}


def rows_of(row: dict[str, Any], scores: Sequence[float], least: float = 0.0) -> Values:
    """Return a row of the mean, with its interval between ``least`` and 100, and one of each of several seeds."""
    mean, low, high = interval(scores)
    made = {**row, "mean": True, "value": round(mean, 3), "text": f"{mean:.2f}, one seed"}
    if len(scores) == 1:
        return [made]
    made |= {"low": round(max(low, least), 3), "high": round(min(high, 100.0), 3)}
    made["text"] = f"{mean:.2f} ({made['low']:.2f} to {made['high']:.2f}), {len(scores)} seeds"
    return [made, *({**row, "value": round(score, 3), "text": f"{score:.2f}, a seed"} for score in scores)]


def _pair(runs: Runs, most: int) -> tuple[list[str], dict[str, Any]]:
    """Return the methods to choose from if there are more than ``most``, and options of `specification` for it."""
    baselines = baselines_of(runs)
    methods = sorted(baselines, key=lambda name: baselines[name] == name)
    if len(methods) <= most:
        return [], {}
    return methods, {"legend": False, "baselines": baselines, "method": methods[0]}


def _means(runs: Runs, cells: dict[tuple[str, str], Cell], metric: str, title: str, styles: Styles) -> Picture:
    values: Values = []
    for (method, data), cell in cells.items():
        values += rows_of({"dataset": data, "method": method}, cell.values)
    order, look = look_of(styles, values, {"method": "method", "text": title}, legend=False)
    y, text = alt.Y("method:N", sort=order, axis=None), f"{title.lower()} in %"
    # above its row, as neither a phone nor a column of a paper is wide enough for a name beside it
    names = marks("datum.mean").mark_text(align="left", dy=-22, limit=alt.expr("width"))
    layers = (
        *dots("x", text, 9, **look, y=y),
        names.encode(y, x=alt.value(0), text="method:N"),
    )
    words = "Filled: mean over seeds with its 95 % interval (Student's t). Open, above it: single seeds."
    spec = specification(values, (52 if len(order) <= MAX_DRAWN else 38) * len(order) + 50, *layers, legend=False)
    return Picture("means", f"{title} of each method", words, spec)


def _by_class(runs: Runs, metric: str, styles: Styles) -> Picture | None:
    longest = max(len(result.record.class_counts) for result in runs.results)
    values = _class_values(runs, metric, with_counts=longest <= MAX_NAMED)
    if not values:
        return None
    measure = runs.measure(metric)
    methods, options = _pair(runs, MAX_DRAWN if longest <= MAX_NAMED else 3)
    shown = {"label": "class", "method": "method", "images": "training images", "text": f"{measure}, %"}
    order, look = look_of(styles, values, shown, not methods)
    score, num = f"{measure} in %", 2 if methods else len(order)
    words = "Filled: mean over seeds with its 95 % interval (Student's t). Open: single seeds."
    if longest <= MAX_NAMED:  # a line for each class, as names are wide
        axis = alt.Axis(title=None, grid=True, ticks=False, tickBand="extent")
        y = alt.Y("counted:N", sort={"field": "rank"}, axis=axis)
        layers = dots("x", score, **look, y=y, yOffset=alt.YOffset("method:N", sort=order))
        words += " In brackets: training images."
        height = min(longest * (9 * num + 10) + 50, 1000)
    else:
        x = number(alt.X, "images", "training images of the class", scale=alt.Scale(type="log"))
        layers, height = dots("y", score, faint=True, **look, x=x), 380
    if not runs.task.multi_label:
        words += " Of one seed: Wilson's interval, due to the number of test images."
    if longest > MAX_MARKS:
        words += f" Each point is one of {MAX_MARKS} bands of classes with similar counts."
    words += " Drawn are the chosen method and its baseline, in the colours of the first chart." if methods else ""
    spec = specification(values, height, *layers, **options)
    name, title = f"{measure.replace(' ', '_')}_by_class", f"{measure.capitalize()} of each class"
    return Picture(name, title, words, spec, num > MAX_NARROW, methods)


def _class_values(runs: Runs, metric: str, with_counts: bool) -> Values:
    values: Values = []
    for (method, data), results in runs.cells().items():
        tests = results[0].record.test_counts
        scores = [result.class_scores(metric) for result in results]
        for rank, (label, members, images) in enumerate(_bands(results[0])):
            known = [[rate for c in members if (rate := by_class[c]) is not None] for by_class in scores]
            rates = [statistics.mean(each) for each in known if each]
            if not rates:
                continue
            row = {"dataset": data, "method": method, "label": label, "rank": rank, "images": images}
            made = rows_of(row | ({"counted": f"{label} ({images})"} if with_counts else {}), rates)
            tested = 0 if tests is None else sum(tests[c] for c in members)
            if len(rates) == 1 == len(members) and tested and not runs.task.multi_label:
                low, high = (round(100 * bound, 3) for bound in wilson(round(rates[0] / 100 * tested), tested))
                made[0] |= {"low": low, "high": high, "text": f"{rates[0]:.1f} ({low:.0f} to {high:.0f}), one seed"}
            values += made
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
        marks("datum.count > 0")
        .mark_text(fontSize=alt.expr("min(width / domain('x').length / 3.2, 11)"))
        .encode(x, y, text="count:Q", color=ink, tooltip=shown),
    )
    classes, drawn = max(row["i"] for row in values) + 1, {row["method"] for row in values}
    methods = [name for name in _pair(runs, 0)[0] if name in drawn]
    spec = specification(values, 30 * classes + 80, *layers, legend=False, method=methods[0])
    words = "Test images by true and predicted class, summed over seeds. Colour: share of the true class."
    return Picture("confusion", "Confusion matrix", words, spec, classes > 10, methods)


def _by_group(runs: Runs, metric: str, styles: Styles) -> Picture | None:
    groups = {name: group for group, name in runs.group_metrics(metric).items()}
    differences = paired_differences(runs, *groups, min_seeds=1)
    if not differences:
        return None
    values: Values = []
    for d in differences:
        row = {"dataset": d.data, "method": d.method, "group": groups[d.metric], "p": d.texts[2].strip("*")}
        values += rows_of(row, d.changes, -100.0)
    methods, options = _pair(runs, MAX_DRAWN)
    shown = {"method": "method", "group": "classes", "text": "difference in points", "p": "p (Holm)"}
    order, look = look_of(styles, values, shown, not methods)
    x = alt.X("group:N", sort=list(groups.values()), title="classes by training images", axis=alt.Axis(labelAngle=0))
    zero = marks().mark_rule().encode(y=alt.datum(0))
    measure = runs.measure(metric)
    layers = dots("y", f"{measure}, points", **look, x=x, xOffset=alt.XOffset("method:N", sort=order))
    better = "below" if is_error(metric) else "above"
    words = (
        f"{measure.capitalize()} minus that of {' or '.join(sorted({d.baseline for d in differences}))} on the same "
        f"seeds: mean, 95 % interval (Student's t) and single seeds. Better is {better} 0."
    )
    spec = specification(values, 300, zero, *layers, **options)
    wide = len(order) > MAX_NARROW
    return Picture("differences_by_group", "Difference by shot group", words, spec, wide, methods)
