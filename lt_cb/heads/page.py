"""Tables and chart of compared heads, in the terminal and on an HTML page."""

import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lt_cb.data import LongTailedDataModule
from lt_cb.heads.answers import Answers, set_table
from lt_cb.heads.folds import TIE
from lt_cb.heads.gallery import A_CLASS, MAX_CLASSES, STYLE, confusion_figures, suspect_gallery
from lt_cb.heads.recipes import Candidate
from lt_cb.lab.report import document
from lt_cb.lab.report.extra import altair as alt
from lt_cb.lab.report.figures import Picture, encodings, faded, marks, number, specification, styles_of, tooltip
from lt_cb.lab.report.page import page
from lt_cb.lab.report.sections import Section
from lt_cb.lab.report.tables import wilson
from lt_cb.runs.folder import RunDir
from lt_cb.text import printable

UNKNOWN = (
    "Is an image of none of these classes? lt-cb predict --unknown true says which share of the held-out training "
    "images looks more familiar. If you reject images from 0.95 on, you reject about 5 % of the images of the known "
    "classes. Many unknown images are not noticed, above all those that resemble a known class."
)
Scores = Mapping[Candidate, Sequence[float]]


def highest(scores: Scores, chosen: Candidate | None = None) -> Candidate:
    """Return the candidate of the highest mean score; of equal ones the chosen one."""
    means = {candidate: statistics.mean(values) for candidate, values in scores.items()}
    best = max(means, key=lambda candidate: means[candidate])
    return best if chosen is None or means[chosen] < means[best] - TIE else chosen


def score_table(scores: Scores, metric: str, note: str, chosen: Candidate | None = None) -> Section:
    """Return mean scores in percent of each candidate, by fold or seed: a row a recipe, a column an L2 strength.

    The highest score has the sign ↑, the chosen candidate ✓.
    """
    l2_strengths = sorted({candidate.l2_strength for candidate in scores}, reverse=True)
    cells = {candidate: f"{100 * statistics.mean(values):.1f}" for candidate, values in scores.items()}
    best = highest(scores, chosen)
    cells[best] += " ↑"
    if chosen is not None:
        cells[chosen] += " ✓"
    cells[chosen or best] = f"**{cells[chosen or best]}**"
    recipes = dict.fromkeys(candidate.recipe for candidate in scores)
    rows = [[str(recipe), *(cells[Candidate(recipe, strength)] for strength in l2_strengths)] for recipe in recipes]
    header = ["method", *(f"λ {l2_strength:g}" for l2_strength in l2_strengths)]
    return Section(f"{metric.capitalize()} by loss and L2 strength", note, header, rows)


def accuracy_table(
    names: Sequence[str], training: Sequence[int], held_out: Sequence[int], correct: Mapping[str, Tensor], note: str
) -> Section:
    """Return accuracies on held-out images with Wilson's interval of the first method, the rarest class first.

    Args:
        names: of the classes.
        training: training images of each class.
        held_out: images of each class that a repeat of the folds holds out.
        correct: of these, correctly classified ones by method and class.
        note: words below the title.
    """
    rows = []
    by_method = [values.tolist() for values in correct.values()]
    for name, images, total, *hits in zip(names, training, held_out, *by_method, strict=True):
        cells = ["–"] * (len(hits) + 1)
        if total:
            low, high = (100 * end for end in wilson(hits[0], total))
            first, *others = (f"{100 * right / total:.1f}" for right in hits)
            cells = [first, f"{low:.0f} to {high:.0f}", *others]
        rows.append([name, str(images), *cells])
    header = ["class", "training images", "accuracy, %", "95 % interval", *(f"{name}, %" for name in [*correct][1:])]
    return Section("Accuracy of the classes", note, header, sorted(rows, key=lambda row: int(row[1])))


def precision_table(names: Sequence[str], training: Sequence[int], rates: Tensor, note: str) -> Section:
    """Return average precisions, mean and deviation over folds, the rarest class first; ``rates`` are (J K, C)."""
    rows = []
    for name, images, by_fold in zip(names, training, rates.T, strict=True):
        known = (100 * by_fold[~by_fold.isnan()]).tolist()
        deviation = f"{statistics.stdev(known):.1f}" if len(known) > 1 else "–"
        rows.append([name, str(images), f"{statistics.mean(known):.1f}" if known else "–", deviation])
    header = ["class", "training images", "average precision, %", "deviation over folds"]
    return Section("Average precision of the classes", note, header, sorted(rows, key=lambda row: int(row[1])))


def html(
    title: str, finding: str, table: Section, scores: Scores, metric: str, before: str = "", after: str = ""
) -> str:
    """Return a page that loads nothing: the finding, the table and a chart of mean scores, with HTML around them."""
    values = []
    for (recipe, l2_strength), each in scores.items():
        row = {"dataset": "", "method": str(recipe), "lambda": l2_strength}
        mean = 100 * statistics.mean(each)
        values.append({**row, "value": round(mean, 3), "text": f"{mean:.1f}"})
    l2_strengths = sorted({candidate.l2_strength for candidate in scores})
    scale = alt.Scale(type="log" if l2_strengths[0] > 0 else "symlog", nice=False, padding=16)
    x = number(alt.X, "lambda", "L2 strength λ", scale=scale, axis=alt.Axis(values=l2_strengths))
    y = number(alt.Y, "value", f"{metric} in %")
    _, color, shape = encodings(styles_of(str(candidate.recipe) for candidate in scores), values)
    shown = tooltip(**{"method": "method", "lambda": "λ", "text": "%, mean"})
    layers = (
        marks().mark_line().encode(x, y, color, opacity=faded()),
        marks().mark_point(filled=True, size=70).encode(x, y, color, shape, opacity=faded(), tooltip=shown),
    )
    note = "Means. Click a method in the legend to highlight it."
    chart = Picture("scores", f"{metric.capitalize()} by L2 strength", note, specification(values, 380, *layers))
    return page(title, [finding], [table], [chart], [""], before, after)


def answers_html(
    notes: Sequence[str], classes: Section, answers: Answers | None, data: LongTailedDataModule, run: RunDir
) -> str:
    """Return what stands above the scores on the page of a recommendation: classes, sets, suspects, unknown images."""
    parts, words = [STYLE, f"<p>{'<br>'.join(map(escape, notes))}</p>"], classes.words
    figures: dict[int, str] = {}
    if answers is not None:
        by_class = confusion_figures(answers.confusions, data)
        order = sorted(range(len(data.class_counts)), key=data.class_counts.__getitem__)
        figures = {i: by_class[c] for i, c in enumerate(order) if c in by_class}
        words += f" Below a class: up to {A_CLASS} held-out images that are most surely taken for another class"
        words += f", for the {MAX_CLASSES} rarest classes." if len(order) > MAX_CLASSES else "."
    parts.append(document.table(classes.title, words, classes.header, classes.rows, figures))
    if run.result.exists() and (sets := set_table(run.read_result())) is not None:
        parts.append(document.table(sets.title, sets.words, sets.header, sets.rows))
    if answers is not None:
        parts += [suspect_gallery(answers.suspects, data), document.heading("Unknown images", UNKNOWN)]
    return "\n".join(parts)


def made_by(command: str) -> str:
    """Return the last lines of a page: the command that made it, and the date."""
    return f"<p><code>{escape(printable(command))}</code><br>{datetime.now():%Y-%m-%d %H:%M}</p>"


def show(tables: Sequence[Section], sentences: Sequence[str]) -> None:
    """Print tables and sentences. Names of classes are shown as they are, and are neither markup nor emoji."""
    console = Console(highlight=False, markup=False, emoji=False)
    for section in tables:
        table = Table(title=section.title, caption=section.words)
        for i, name in enumerate(section.header):
            table.add_column(name, justify="right" if i else "left")
        for name, *cells in section.rows:
            texts = (Text(cell.strip("*"), "bold" if cell.startswith("**") else "") for cell in cells)
            table.add_row(printable(name), *texts)
        console.print(table)
    for sentence in sentences:
        console.print(printable(sentence), soft_wrap=True)
