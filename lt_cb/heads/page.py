"""Tables and charts of compared heads, in the terminal and on an HTML page."""

import re
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import altair as alt
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text
from scipy import stats
from torch import Tensor

from lt_cb.heads.folds import half_width
from lt_cb.heads.recipes import Candidate

ACCURACY, PRECISION = "balanced accuracy", "mean average precision"
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 1rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .2rem; } h2 + p { color: #667; font-size: .9rem; }
.finding { background: #f4f6f9; border-left: 4px solid #0072b2; padding: .8rem 1rem; }
div { overflow-x: auto; } .vega-embed { width: 100%; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #dde; text-align: right; }
th { color: #667; } th:first-child, td:first-child { text-align: left; }"""
Scores = Mapping[Candidate, Sequence[float]]


class Table(NamedTuple):
    """A table of text; cells between two pairs of asterisks are bold."""

    title: str
    note: str
    header: list[str]
    rows: list[list[str]]


def score_table(scores: Scores, metric: str, note: str) -> Table:
    """Return mean scores in percent, a row for each recipe and a column for each L2 strength.

    Args:
        scores: scores of each candidate by fold or seed, in [0, 1].
        metric: name of the score.
        note: text below the title.
    """
    l2_strengths = sorted({candidate.l2_strength for candidate in scores}, reverse=True)
    best = max(scores, key=lambda c: statistics.mean(scores[c]))
    rows = []
    for recipe in dict.fromkeys(candidate.recipe for candidate in scores):
        row = [str(recipe)]
        for candidate in (Candidate(recipe, l2_strength) for l2_strength in l2_strengths):
            cell = f"{100 * statistics.mean(scores[candidate]):.1f}"
            row.append(f"**{cell}**" if candidate == best else cell)
        rows.append(row)
    header = ["method", *(f"λ {l2_strength:g}" for l2_strength in l2_strengths)]
    return Table(f"{metric.capitalize()} by loss and L2 strength", note, header, rows)


def accuracy_table(names: Sequence[str], correct: Mapping[str, Tensor], counts: Tensor, note: str) -> Table:
    """Return held-out accuracies of the classes, with Wilson's 95 % interval of the last method.

    Args:
        names: class names.
        correct: correctly predicted images of each method, int64 of shape (C,).
        counts: held-out images, int64 of shape (C,).
        note: text below the title.
    """
    rows = []
    for i, (name, total) in enumerate(zip(names, counts.tolist(), strict=True)):
        hits = [int(values[i]) for values in correct.values()]
        cells = [f"{100 * right / total:.1f}" if total else "–" for right in hits]
        interval = stats.binomtest(hits[-1], total).proportion_ci(method="wilson") if total else None
        bounds = "–" if interval is None else f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
        rows.append([name, str(total), *cells, bounds])
    header = ["class", "held-out images", *(f"{method}, percent" for method in correct), "95 % interval"]
    return Table("Accuracy of the classes", note, header, rows)


def precision_table(names: Sequence[str], rates: Tensor, counts: Tensor, note: str) -> Table:
    """Return average precisions of the classes in percent, as mean and standard deviation over folds.

    Args:
        names: class names.
        rates: average precision by fold and class, shape (K, C), NaN where unknown.
        counts: held-out images that have the label, int64 of shape (C,).
        note: text below the title.
    """
    rows = []
    for name, by_fold, total in zip(names, rates.T, counts.tolist(), strict=True):
        known = (100 * by_fold[~by_fold.isnan()]).tolist()
        deviation = f"{statistics.stdev(known):.1f}" if len(known) > 1 else "–"
        rows.append([name, str(total), f"{statistics.mean(known):.1f}" if known else "–", deviation])
    header = ["class", "held-out images", "average precision", "standard deviation"]
    return Table("Average precision of the classes", note, header, rows)


def score_chart(scores: Scores, metric: str) -> alt.LayerChart:
    """Return a chart of mean scores by L2 strength, a line for each recipe; a click in the legend highlights one.

    Args:
        scores: scores of each candidate by fold or seed, in [0, 1].
        metric: name of the score.
    """
    rows = []
    for (recipe, l2_strength), values in scores.items():
        mean, half = 100 * statistics.mean(values), 100 * half_width(values) if len(values) > 1 else 0.0
        row = {"method": str(recipe), "lambda": l2_strength, "mean": round(mean, 3)}
        rows.append({**row, "interval": f"{mean:.1f} ± {half:.1f}"})
    highlighted = alt.selection_point(fields=["method"], bind="legend")
    legend = alt.Legend(orient="bottom", columns=2, labelLimit=0, symbolLimit=0, title=None)
    base = alt.Chart(alt.InlineData(rows)).encode(
        x=alt.X("lambda:Q", title="L2 strength λ").scale(
            type="log" if min(c.l2_strength for c in scores) else "symlog"
        ),
        y=alt.Y("mean:Q", title=f"{metric} in %").scale(zero=False),
        color=alt.Color("method:N", sort=None, legend=legend).scale(scheme="tableau20"),
        opacity=alt.when(highlighted).then(alt.value(1)).otherwise(alt.value(0.1)),
        tooltip=["method:N", "lambda:Q", alt.Tooltip("interval:N", title="%, mean and half of its 95 % interval")],
    )
    points = base.mark_point(filled=True, size=70).encode(shape=alt.Shape("method:N", sort=None, legend=legend))
    chart: alt.LayerChart = (base.mark_line() + points).properties(width="container", height=380)
    return chart.add_params(highlighted)


def html(title: str, finding: str, tables: Sequence[Table], chart: alt.LayerChart) -> str:
    """Return a page that loads nothing: the finding, the first table, the chart, and the other tables."""
    actions = {"export": True, "source": False, "compiled": False, "editor": False}
    drawn = chart.to_html(
        inline=True, fullhtml=False, embed_options={"ast": True, "renderer": "svg", "actions": actions}
    )
    body = "\n".join([_html_table(tables[0]), drawn, *map(_html_table, tables[1:])])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>lt_cb {title.lower()}</title>
<style>{STYLE}</style></head>
<body><h1>{title}</h1>
<p class="finding">{escape(finding)}</p>
{body}
</body></html>
"""


def _html_table(table: Table) -> str:
    def line(cells: list[str], tag: str) -> str:
        inner = (re.sub(r"\*\*(.*)\*\*", r"<b>\1</b>", escape(cell)) for cell in cells)
        return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in inner)}</tr>"

    lines = "\n".join([line(table.header, "th"), *(line(row, "td") for row in table.rows)])
    return f"<h2>{escape(table.title)}</h2>\n<p>{escape(table.note)}</p>\n<div><table>{lines}</table></div>"


def show(tables: Sequence[Table], finding: str) -> None:
    """Print tables and finding."""
    console = Console(highlight=False)
    for table in tables:
        printed = RichTable(title=table.title, caption=table.note)
        for i, name in enumerate(table.header):
            printed.add_column(name, justify="right" if i else "left")
        for name, *cells in table.rows:
            printed.add_row(name, *(Text(cell.strip("*"), "bold" if cell.startswith("**") else "") for cell in cells))
        console.print(printed)
    console.print(finding, soft_wrap=True)
