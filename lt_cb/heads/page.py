"""Tables and chart of compared heads, in the terminal and on an HTML page."""

import statistics
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lt_cb.heads.recipes import Candidate
from lt_cb.lab.report.extra import altair as alt
from lt_cb.lab.report.figures import Picture, encodings, faded, marks, number, specification, styles_of, tooltip
from lt_cb.lab.report.page import page
from lt_cb.lab.report.sections import Section
from lt_cb.lab.report.tables import wilson
from lt_cb.text import printable

Scores = Mapping[Candidate, Sequence[float]]


def score_table(scores: Scores, metric: str, note: str) -> Section:
    """Return mean scores in percent of each candidate, by fold or seed: a row a recipe, a column an L2 strength."""
    l2_strengths = sorted({candidate.l2_strength for candidate in scores}, reverse=True)
    best = max(scores, key=lambda c: statistics.mean(scores[c]))
    cells = {candidate: f"{100 * statistics.mean(values):.1f}" for candidate, values in scores.items()}
    cells[best] = f"**{cells[best]}**"
    recipes = dict.fromkeys(candidate.recipe for candidate in scores)
    rows = [[str(recipe), *(cells[Candidate(recipe, strength)] for strength in l2_strengths)] for recipe in recipes]
    header = ["method", *(f"λ {l2_strength:g}" for l2_strength in l2_strengths)]
    return Section(f"{metric.capitalize()} by loss and L2 strength", note, header, rows)


def accuracy_table(names: Sequence[str], correct: Mapping[str, Tensor], counts: Sequence[int], note: str) -> Section:
    """Return held-out accuracies from correct images by method and class, with Wilson's interval of the last method."""
    rows = []
    for name, total, *hits in zip(names, counts, *(values.tolist() for values in correct.values()), strict=True):
        cells = ["–"] * (len(hits) + 1)
        if total:
            low, high = (100 * end for end in wilson(hits[-1], total))
            cells = [*(f"{100 * right / total:.1f}" for right in hits), f"{low:.1f} to {high:.1f}"]
        rows.append([name, str(total), *cells])
    header = ["class", "held-out images", *(f"{method}, percent" for method in correct), "95 % interval"]
    return Section("Accuracy of the classes", note, header, rows)


def precision_table(names: Sequence[str], rates: Tensor, counts: Sequence[int], note: str) -> Section:
    """Return average precisions of the classes, mean and deviation over folds; ``rates`` have shape (K, C)."""
    rows = []
    for name, by_fold, total in zip(names, rates.T, counts, strict=True):
        known = (100 * by_fold[~by_fold.isnan()]).tolist()
        deviation = f"{statistics.stdev(known):.1f}" if len(known) > 1 else "–"
        rows.append([name, str(total), f"{statistics.mean(known):.1f}" if known else "–", deviation])
    header = ["class", "held-out images", "average precision", "standard deviation"]
    return Section("Average precision of the classes", note, header, rows)


def html(title: str, finding: str, tables: list[Section], scores: Scores, metric: str) -> str:
    """Return a page that loads nothing: the finding, the tables, and a chart of mean scores by L2 strength."""
    values = []
    for (recipe, l2_strength), each in scores.items():
        row = {"dataset": "", "method": str(recipe), "lambda": l2_strength}
        mean = 100 * statistics.mean(each)
        values.append({**row, "value": round(mean, 3), "text": f"{mean:.1f}"})
    scale = alt.Scale(type="log" if min(candidate.l2_strength for candidate in scores) > 0 else "symlog")
    x, y = number(alt.X, "lambda", "L2 strength λ", scale=scale), number(alt.Y, "value", f"{metric} in %")
    _, color, shape = encodings(styles_of(str(candidate.recipe) for candidate in scores), values)
    shown = tooltip(**{"method": "method", "lambda": "λ", "text": "%, mean"})
    layers = (
        marks().mark_line().encode(x, y, color, opacity=faded()),
        marks().mark_point(filled=True, size=70).encode(x, y, color, shape, opacity=faded(), tooltip=shown),
    )
    note = "Means. Click a method in the legend to highlight it."
    chart = Picture("scores", f"{metric.capitalize()} by L2 strength", note, specification(values, 380, *layers))
    return page(title, finding, tables, [chart], [""])


def show(tables: Sequence[Section], finding: str) -> None:
    """Print tables and finding. Names of classes are shown as they are, and are neither markup nor emoji."""
    console = Console(highlight=False, markup=False, emoji=False)
    for section in tables:
        table = Table(title=section.title, caption=section.words)
        for i, name in enumerate(section.header):
            table.add_column(name, justify="right" if i else "left")
        for name, *cells in section.rows:
            texts = (Text(cell.strip("*"), "bold" if cell.startswith("**") else "") for cell in cells)
            table.add_row(printable(name), *texts)
        console.print(table)
    console.print(printable(finding), soft_wrap=True)
