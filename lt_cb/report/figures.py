"""Pictures of a report, as SVG."""

import io
import re
import statistics
import textwrap
from collections import defaultdict
from typing import Any

from lt_cb.report.collect import Result, Runs
from lt_cb.report.tables import Cell

SHOWN = 6  # methods in one picture of classes


def figures(runs: Runs, cells: dict[tuple[str, str], Cell], metric: str) -> list[tuple[str, str]]:
    """Return title and SVG of each picture that the runs have something for; ``metric`` names that of the cells."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    mpl.rcParams["svg.hashsalt"] = "lt_cb"  # the same report is the same file
    colours = _colours(runs)
    by_class, gain = _accuracy_by_class(runs, colours), _gain_by_group(runs, colours)
    drawn = [_class_counts(runs), _by_beta(runs, cells, metric, colours), by_class, gain]
    return [figure for figure in drawn if figure is not None]


def _colours(runs: Runs) -> dict[str, Any]:
    """Return the colour of each method, the same in all pictures; a family has that of its method without weights."""
    import matplotlib as mpl

    names = dict.fromkeys([*runs.methods(), *(result.family for result in runs.results if result.family)])
    palette = [mpl.colormaps["tab20"](i) for i in (*range(0, 20, 2), *range(1, 20, 2))]  # strong ones first
    return {str(name): palette[i % len(palette)] for i, name in enumerate(names)}


def _axes(count: int) -> tuple[Any, list[Any]]:
    """Return a figure of ``count`` axes."""
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots(-(-count // 3), min(count, 3), squeeze=False).flatten().tolist()
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def _svg(figure: Any, axes: list[Any], title: str = "") -> str:  # noqa: ANN401 - matplotlib is not typed
    """Return a figure as SVG, with one legend for all axes, below them, as names may be long.

    matplotlib's own layouts take longer than the drawing.
    """
    named = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    names = [_wrapped(name) for name in named]
    rows, columns = -(-len(axes) // 3), min(len(axes), 3)
    legend = 0.15 * sum(name.count("\n") + 1 for name in names) + 0.15  # inches, as all that follows
    width, height = max(4.2 * columns, 6.0), 3.2 * rows + legend + 0.3
    left, right, top, bottom, gap = 0.6, 0.15, 0.55, legend + 0.5, 0.75
    figure.set_size_inches(width, height)
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        top=1 - top / height,
        bottom=bottom / height,
        wspace=gap * columns / (width - left - right - gap * (columns - 1)),
        hspace=gap * rows / (height - top - bottom - gap * (rows - 1)),
    )
    figure.legend(named.values(), names, loc="lower left", fontsize=7, bbox_to_anchor=(0.1 / width, 0.05 / height))
    figure.suptitle(_wrapped(title), fontsize=8, y=1 - 0.05 / height)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return re.sub(r"<\?xml.*?<svg", "<svg", stream.getvalue(), flags=re.DOTALL)


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, 90))


def _class_counts(runs: Runs) -> tuple[str, str]:
    figure, (axis,) = _axes(1)
    for data in runs.columns():
        counts = next(result.class_counts for result in runs.results if result.data == data)
        axis.plot(range(len(counts)), counts, marker="." if len(counts) <= 30 else None, label=data)
    axis.set(xlabel="class", ylabel="training images", yscale="log")
    return "Training images of each class", _svg(figure, [axis])


def _by_beta(
    runs: Runs, cells: dict[tuple[str, str], Cell], metric: str, colours: dict[str, Any]
) -> tuple[str, str] | None:
    """Draw each loss by beta, without weights at the left: Figure 5 of Cui et al. 2019."""
    lines: dict[str, dict[str, dict[float | None, Cell]]] = defaultdict(lambda: defaultdict(dict))
    drawn = [r for r in runs.results if r.family is not None and (r.method, r.data) in cells]
    for result in drawn:
        lines[result.data][str(result.family)][result.beta] = cells[result.method, result.data]
    betas = sorted({result.beta for result in drawn if result.beta is not None})
    if not betas:
        return None
    figure, axes = _axes(len(runs.columns()))
    places: list[float | None] = [None, *betas]
    for axis, data in zip(axes, runs.columns(), strict=True):
        for name, points in lines[data].items():
            x = [i for i, beta in enumerate(places) if beta in points]
            y = [points[places[i]] for i in x]
            spread = [c.deviation or 0 for c in y]
            style = {"marker": ".", "capsize": 2, "color": colours[name], "label": name}
            axis.errorbar(x, [c.mean for c in y], spread, **style)
        axis.set_xticks(range(len(places)), ["none", *[f"{beta:g}" for beta in betas]])
        axis.set(title=data, xlabel="β", ylabel=f"{metric.lower()} in %")
    return f"{metric} by β", _svg(figure, axes)


def _mean_per_class(results: list[Result]) -> list[float]:
    columns = [[v for v in column if v is not None] for column in zip(*(r.per_class for r in results), strict=True)]
    return [statistics.mean(column) if column else float("nan") for column in columns]


def _accuracy_by_class(runs: Runs, colours: dict[str, Any]) -> tuple[str, str]:
    figure, axes = _axes(len(runs.columns()))
    by_cell = runs.cells()
    for axis, data in zip(axes, runs.columns(), strict=True):
        for method in [method for method in runs.methods() if (method, data) in by_cell][:SHOWN]:
            results = by_cell[method, data]
            accuracy = [100 * a for a in _mean_per_class(results)]
            axis.plot(results[0].class_counts, accuracy, ".", ms=5, alpha=0.8, color=colours[method], label=method)
        axis.set(title=data, xlabel="training images of the class", ylabel="accuracy in %", xscale="log")
        axis.minorticks_off()
    note = f" (the first {SHOWN} methods)" if len(runs.methods()) > SHOWN else ""
    return f"Accuracy of each class by its training images{note}", _svg(figure, axes)


def _gain_by_group(runs: Runs, colours: dict[str, Any]) -> tuple[str, str] | None:
    groups = [g for g in ("many", "medium", "few") if any(f"acc/{g}" in r.metrics for r in runs.results)]
    baseline, *others = runs.methods()
    if not groups or not others:
        return None
    figure, axes = _axes(len(runs.columns()))
    by_cell = runs.cells()
    width = 0.8 / min(len(others), SHOWN)

    def mean(method: str, data: str, group: str) -> float:
        values = [r.metrics.get(f"acc/{group}", float("nan")) for r in by_cell.get((method, data), [])]
        return 100 * statistics.mean(values) if values else float("nan")

    for axis, data in zip(axes, runs.columns(), strict=True):
        for i, method in enumerate(others[:SHOWN]):
            gains = [mean(method, data, g) - mean(baseline, data, g) for g in groups]
            axis.bar([k + i * width for k in range(len(groups))], gains, width, color=colours[method], label=method)
        axis.axhline(0, color="black", lw=0.6)
        axis.set_xticks([k + 0.4 - width / 2 for k in range(len(groups))], groups)
        axis.set(title=data, ylabel="gain in accuracy, points")
    return "Gain by shot group", _svg(figure, axes, f"over {baseline}")
