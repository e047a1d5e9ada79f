"""Pictures of a report, as SVG."""

import io
import re
import statistics
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
    drawn = [_class_counts(runs), _by_beta(runs, cells, metric), _accuracy_by_class(runs), _gain_by_group(runs)]
    return [figure for figure in drawn if figure is not None]


def _axes(count: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * min(count, 3), 3.2 * -(-count // 3)), layout="constrained")
    axes = figure.subplots(-(-count // 3), min(count, 3), squeeze=False).flatten().tolist()
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def _svg(figure: Any) -> str:  # noqa: ANN401 - matplotlib is not typed
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return re.sub(r"<\?xml.*?<svg", "<svg", stream.getvalue(), flags=re.DOTALL)


def _class_counts(runs: Runs) -> tuple[str, str] | None:
    figure, (axis,) = _axes(1)
    for data in runs.columns():
        counts = next(result.class_counts for result in runs.results if result.data == data)
        axis.plot(range(len(counts)), counts, marker="." if len(counts) <= 30 else None, label=data)
    axis.set(xlabel="class", ylabel="training images", yscale="log")
    axis.legend(fontsize=7)
    return "Training images of each class", _svg(figure)


def _by_beta(runs: Runs, cells: dict[tuple[str, str], Cell], metric: str) -> tuple[str, str] | None:
    """Draw each loss by beta, without weights at the left: Figure 5 of Cui et al. 2019."""
    lines: dict[str, dict[str, dict[float | None, Cell]]] = defaultdict(lambda: defaultdict(dict))
    for result in runs.results:
        name = result.method.split(",")[0]
        lines[result.data][name][result.beta] = cells[result.method, result.data]
    betas = sorted({r.beta for r in runs.results if r.beta is not None})
    if not betas:
        return None
    figure, axes = _axes(len(runs.columns()))
    places: list[float | None] = [None, *betas]
    for axis, data in zip(axes, runs.columns(), strict=True):
        for name, points in lines[data].items():
            there = [i for i, beta in enumerate(places) if beta in points]
            values = [points[places[i]] for i in there]
            axis.errorbar(
                there, [c.mean for c in values], [c.deviation or 0 for c in values], marker=".", capsize=2, label=name
            )
        axis.set_xticks(range(len(places)), ["none", *[f"{beta:g}" for beta in betas]])
        axis.set(title=data, xlabel="β", ylabel=f"{metric.lower()} in %")
    axes[0].legend(fontsize=7)
    return f"{metric} by β", _svg(figure)


def _mean_per_class(results: list[Result]) -> list[float]:
    columns = [[v for v in column if v is not None] for column in zip(*(r.per_class for r in results), strict=True)]
    return [statistics.mean(column) if column else float("nan") for column in columns]


def _accuracy_by_class(runs: Runs) -> tuple[str, str] | None:
    figure, axes = _axes(len(runs.columns()))
    by_cell = runs.cells()
    for axis, data in zip(axes, runs.columns(), strict=True):
        there = [method for method in runs.methods() if (method, data) in by_cell]
        for method in there[:SHOWN]:
            results = by_cell[method, data]
            accuracy = [100 * a for a in _mean_per_class(results)]
            axis.plot(results[0].class_counts, accuracy, ".", ms=5, alpha=0.8, label=method)
        axis.set(title=data, xlabel="training images of the class", ylabel="accuracy in %", xscale="log")
        axis.legend(fontsize=6)
    note = f" (the first {SHOWN} methods)" if len(runs.methods()) > SHOWN else ""
    return f"Accuracy of each class by its training images{note}", _svg(figure)


def _gain_by_group(runs: Runs) -> tuple[str, str] | None:
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
            axis.bar([k + i * width for k in range(len(groups))], gains, width, label=method)
        axis.axhline(0, color="black", lw=0.6)
        axis.set_xticks([k + 0.4 - width / 2 for k in range(len(groups))], groups)
        axis.set(title=data, ylabel="gain in accuracy, points")
    axes[0].legend(fontsize=6)
    return f"Gain over {baseline} by shot group", _svg(figure)
