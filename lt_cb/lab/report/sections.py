"""Tables of a report, each with a title and a short explanation."""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from lt_cb.errors import InputError
from lt_cb.lab.report.posthoc import COLUMNS, MEANS, analyse, class_means
from lt_cb.lab.report.result import Result, Runs, is_error, seeds_of
from lt_cb.lab.report.rows import command
from lt_cb.lab.report.tables import Cell, Difference, cells_of, paired_differences, prediction_width, signed, wilson
from lt_cb.runs.record import METRICS

METRIC_TITLES = {  # of the option --metric
    "error": "Error",
    **{name: info.title for name, info in METRICS.items()},
    "val/acc": "Validation accuracy",
    "val/balanced_acc": "Balanced validation accuracy",
    "val/mAP": "Mean average precision in validation",
}
MAX_CLASSES = 100  # of a table of classes
FROM_LOGITS = {  # words of each table, by title; the columns are in `COLUMNS`
    "Post-hoc logit adjustment": "Balanced accuracy in percent of the saved logits minus τ log prior of the training "
    "(Menon et al. 2021), means over seeds. τ 0 is the prediction of the loss, which may be adjusted already. Bold: "
    "best τ. It is chosen on the test images and therefore optimistic.",
    "Shifted test priors": "Accuracy in percent if the test images had a long tail with this imbalance factor (below "
    "1: the rare classes are frequent; Hong et al. 2021), means over seeds. As it is: unchanged predictions. Prior "
    "known: logits moved from the training prior to the test prior, which is right for losses that learn the training "
    "prior, such as softmax without weights.",
    "Calibration": "Expected calibration error in percent (15 bins) of all test images and of many-, medium- and "
    "few-shot classes, and mean confidence minus accuracy in points; means over seeds. The confidence is the loss's "
    "probability of the predicted class: a sigmoid for sigmoid and focal losses.",
}
DIFFERENCE = "Difference: mean and 95 % interval (Student's t) over shared seeds, in points,"
CORRECTED = (
    "p: paired t-test, with Holm's correction for all comparisons of a data set in this table. Bold: below 0.05."
)
Cells = dict[tuple[str, str], Cell]


@dataclass
class Section:
    """A table of text; cells between two pairs of asterisks are bold. A folded one is opened by a click."""

    title: str
    words: str
    header: list[str]
    rows: list[list[str]]
    folded: bool = False


def sections(runs: Runs, cells: Cells, metric: str) -> list[Section]:
    """Return the tables that the runs have values for; the first one shows ``cells``, which hold ``metric``."""
    errors = {} if runs.task.multi_label else cells if metric == "error" else cells_of(runs)
    top5 = cells_of(Runs([result for result in runs.results if "acc_top5" in result.metrics]), "error_top5")
    analysed, unread = _from_logits(runs)
    missing = [[str(folder), reason] for folder, reason in [*runs.missing, *unread]]
    by_group = paired_differences(runs, *runs.group_metrics(metric).values())
    made = [
        _matrix(runs, cells, metric),
        _results(runs, cells, metric),
        _paper(errors, "Beside the paper", "Top-1"),
        _paper(top5, "Beside the paper, top-5", "Top-5"),
        _differences(by_group, metric),
        _scores(runs),
        *_by_class(runs, metric),
        *analysed,
        Section(
            "Missing runs",
            "Folders of runs that are not in the tables, or without their logits.",
            ["folder", "state"],
            missing,
        ),
        _kept(runs),
    ]
    return [section for section in made if section.rows]


def lower_case(title: str) -> str:
    """Return the title of a metric for the middle of a sentence."""
    return title[:1].lower() + title[1:]


def _matrix(runs: Runs, cells: Cells, metric: str) -> Section:
    """Return a table of methods by data sets, if there are several."""
    columns = runs.columns()
    most = max(len(cell.values) for cell in cells.values())

    def text(cell: Cell | None) -> str:
        if cell is None:
            return "–"
        fewer = f" ({len(cell.values)} of {most} seeds)" if len(cell.values) < most else ""
        return (f"**{cell}**" if cell.best else str(cell)) + fewer

    rows = [[method, *[text(cells.get((method, data))) for data in columns]] for method in runs.methods()]
    title = METRIC_TITLES[metric]
    return Section(title, _meaning(runs, metric), ["method", *columns], rows if len(columns) > 1 else [])


def _meaning(runs: Runs, metric: str) -> str:
    """Return a sentence on a metric: its meaning, the images, and the kind of its deviation."""
    name = metric.removeprefix("val/")
    validation = metric.startswith("val/")
    text = f"{'Top-1 error' if name == 'error' else METRICS[name].meaning} in percent on the "
    text += "held-out images" if validation else "test images, by which nothing may be chosen"
    seeds = seeds_of(results for results in runs.cells().values() if len(results) > 1)
    text += f": mean ± standard deviation over {seeds}." if seeds else ", from one seed."
    checkpoints = " and ".join(sorted({result.record.tested for result in runs.results}))
    return f"{text} Checkpoint: {checkpoints}.{' Bold: best mean.' if validation else ''}"


def _results(runs: Runs, cells: Cells, metric: str) -> Section:
    """Return the metric of each method, of all classes and by shot group, and its difference from the baseline."""
    differences = {(d.method, d.data): d for d in paired_differences(runs, metric)}
    groups = {} if metric.startswith("val/") else runs.group_metrics(metric)
    by_group = [cells_of(runs, name) for name in groups.values()]
    columns = {
        "data": len(runs.columns()) > 1,
        "minus": len({d.baseline for d in differences.values()}) > 1,
        "machines": any(d.machines for d in differences.values()),
    }
    rows = []
    for (method, data), _ in _ordered(runs):
        cell, d = cells.get((method, data)), differences.get((method, data))
        texts = {"data": data, "minus": d.baseline if d else "–", "machines": (d and d.machines) or "–"}
        shown = {name: [text] * columns[name] for name, text in texts.items()}
        scores = [
            f"**{cell}**" if cell and cell.best else str(cell or "–"),
            *(str(each.get((method, data), "–")) for each in by_group),
        ]
        numbers = d.texts if d else ("–", "–", "–")
        seeds = str(len(cell.values) if cell else 0)
        rows.append([method, *shown["data"], *scores, *shown["minus"], *numbers, seeds, *shown["machines"]])
    words = "" if columns["data"] else f"{_meaning(runs, metric)} "
    if groups:
        words += "Many, medium and few: classes by training images, over 100, 20 to 100, and fewer. "
    if differences:
        words += f"{DIFFERENCE} from {_baseline(list(differences.values()))}. {CORRECTED}"
    if columns["machines"]:
        words += " Machines: the method's / its baseline's, where they differ."
    title = METRIC_TITLES[metric]
    header = ["method", *["data"] * columns["data"], lower_case(title), *groups, *["minus"] * columns["minus"]]
    header += ["difference", "95 % CI", "p (Holm)", "seeds", *["machines"] * columns["machines"]]
    return Section(f"{title}, differences" if columns["data"] else title, words, header, rows)


def _baseline(differences: list[Difference]) -> str:
    baselines = {d.baseline for d in differences}
    return "the method beside it" if len(baselines) > 1 else "".join(baselines)


def _paper(cells: Cells, title: str, kind: str) -> Section:
    rows = []
    for cell in cells.values():
        if cell.paper is not None:
            difference = cell.mean - cell.paper
            width = prediction_width(cell.values)
            bounds, agrees = "–", "one seed"
            if len(cell.values) > 1:
                bounds = f"{max(cell.mean - width, 0):.2f} to {min(cell.mean + width, 100):.2f}"
                agrees = "yes" if abs(difference) <= width else "no"
            figures = [str(cell), f"{cell.paper:.2f}", signed(difference), bounds]
            rows.append([cell.method, cell.data, *figures, agrees, cell.unlike_paper or "–"])
    words = (
        f"{kind} error in percent, beside Cui et al. 2019 (Tables 2 and 3, one run each). The prediction interval, "
        "mean ± t s √(1 + 1/n), holds one more run with a probability of 95 %. Inside: whether it holds the paper's "
        "run. Unlike the paper: another length of training, held-out images, a sampler, mixed images, deferred "
        "weights, a second stage, pretrained weights or callbacks. Other settings are not compared."
    )
    header = ["method", "data", "ours", "paper", "difference", "prediction interval", "inside", "unlike the paper"]
    return Section(title, words, header, rows)


def _differences(differences: list[Difference], metric: str) -> Section:
    """Return the differences by shot group."""
    several = len({d.baseline for d in differences}) > 1
    rows = []
    for d in differences:
        group = d.metric.rpartition("/")[2]
        rows.append([d.method, d.data, group, *[d.baseline] * several, *d.texts, str(len(d.changes))])
    name = "error" if is_error(metric) else METRIC_TITLES[metric.removeprefix("val/")].lower()
    words = f"{DIFFERENCE} in {name} from {_baseline(differences)}. {CORRECTED}" if differences else ""
    header = ["method", "data", "classes", *["minus"] * several, "difference", "95 % CI", "p (Holm)", "seeds"]
    return Section("Differences by shot group", words, header, rows, folded=True)


def _scores(runs: Runs) -> Section:
    names = [name for name in METRICS if name != "acc" and any(name in result.metrics for result in runs.results)]
    rows = []
    for place, results in _ordered(runs):
        scores = [_percent(r.metrics[n] for r in results if n in r.metrics) for n in names]
        means = [class_means(r.record.scores) for r in results]
        rows.append([*place, *scores, *[_percent(m[n] for m in means) for n in MEANS], str(len(results))])
    measure = runs.measure("")
    words = f"Means over seeds in percent, with the lowest, geometric mean and harmonic mean of each class's {measure}."
    if runs.task.multi_label:
        words += (
            " F1 uses a threshold for each class, chosen on held-out images, or 0.5 without any; f1_micro counts all "
            "labels together."
        )
    header = ["method", "data", *names, f"lowest {measure}", "geometric mean", "harmonic mean", "seeds"]
    return Section("More scores", words, header, rows, folded=True)


def _by_class(runs: Runs, metric: str) -> list[Section]:
    """Return a table of classes for each data set whose test images are counted."""
    measure = runs.measure(metric).capitalize()
    words = f"{measure} in percent: mean ± standard deviation over seeds."
    if runs.task.multi_label:
        words += " Images: those with the label."
    else:
        words += " Of one seed: in brackets Wilson's 95 % interval, due to the number of test images."
    tables = []
    by_cell = runs.cells()
    for data in runs.columns():
        columns = {method: by_cell[method, data] for method in runs.methods() if (method, data) in by_cell}
        first = next(iter(columns.values()))[0].record
        if first.test_counts is None or len(first.class_counts) > MAX_CLASSES:
            continue
        scores = [[result.class_scores(metric) for result in results] for results in columns.values()]
        rows = []
        for c, (name, images, tested) in enumerate(
            zip(first.class_names, first.class_counts, first.test_counts, strict=True)
        ):
            by_method = [[by_class[c] for by_class in each] for each in scores]
            cells = [_rate(each, None if runs.task.multi_label else tested) for each in by_method]
            rows.append([name, str(images), str(tested), *cells])
        header = ["class", "training images", "test images", *columns]
        tables.append(Section(f"{measure} of the classes of {data}", words, header, rows, folded=True))
    return tables


def _rate(rates: list[float | None], tested: int | None) -> str:
    """Return mean ± standard deviation over seeds, or Wilson's interval of one seed; ``tested`` counts its images."""
    known = [rate for rate in rates if rate is not None]
    if not known:
        return "–"
    if len(known) > 1:
        return f"{statistics.mean(known):.1f} ± {statistics.stdev(known):.1f}"
    if not tested:
        return f"{known[0]:.1f}"
    low, high = wilson(round(known[0] / 100 * tested), tested)
    return f"{known[0]:.1f} ({100 * low:.0f} to {100 * high:.0f})"


def _from_logits(runs: Runs) -> tuple[list[Section], list[tuple[Path, str]]]:
    """Return post-hoc adjustment, shifted priors and calibration of runs with saved logits; and damaged files."""
    saved: dict[tuple[str, str], list[dict[str, dict[str, float]]]] = defaultdict(list)
    unread, tables = [], []
    for place, results in _ordered(runs) if not runs.task.multi_label else ():
        for result in results:
            try:
                if result.logits.is_file():
                    saved[place].append(analyse(result))
            except InputError as error:
                unread.append((result.folder, str(error)))
    for (title, words), (names, columns) in zip(FROM_LOGITS.items(), COLUMNS.items(), strict=True):
        several = len(names) > 1
        rows = []
        for (place, seeds), name in product(saved.items(), names):
            rates = [[values[name][column] for values in seeds if column in values[name]] for column in columns]
            texts = list(map(_percent, rates))
            if seeds and name == "adjusted":
                means = list(map(statistics.mean, rates))
                texts = [f"**{text}**" if mean == max(means) else text for text, mean in zip(texts, means, strict=True)]
            if seeds:
                rows.append([*place, *([name] if several else []), *texts, str(len(seeds))])
        header = ["method", "data", *(["predictions"] if several else []), *columns, "seeds"]
        tables.append(Section(title, words, header, rows))
    return tables, unread


def _kept(runs: Runs) -> Section:
    """Return each configuration of kept results with the command that trains it again."""
    trained: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in runs.results:
        if result.row:
            trained[result.row["experiment"], result.row["config"]].append(result)
    rows = []
    for results in trained.values():
        first = results[0]
        minutes = statistics.median(result.record.seconds for result in results) / 60
        seeds = " ".join(result.row["seed"] for result in results)
        where = f"{first.row['processor']}, {first.row['threads']} thread(s), {first.row['precision']}"
        again = command(first.row, first.folder.parents[1])
        rows.append([first.method, first.data, seeds, f"{minutes:.1f}", where, first.row["commit"], f"`{again}`"])
    words = (
        "The command repeats the run of the first seed; add --data.root for the place of the data. On the same kind of "
        "CPU, with as many threads (OMP_NUM_THREADS) and the same versions, it gives the same figures to the digit. A "
        "GPU may round differently each time."
    )
    if runs.unnamed:
        names = ", ".join(key.partition(".")[2] for key in runs.unnamed)
        words += f" Methods of one loss also differ in settings that are not in their names: {names}."
    return Section(
        "Commands", words, ["method", "data", "seeds", "minutes", "on", "commit", "command"], rows, folded=True
    )


def _ordered(runs: Runs) -> list[tuple[tuple[str, str], list[Result]]]:
    cells = runs.cells()
    return [((m, d), cells[m, d]) for d, m in product(runs.columns(), runs.methods()) if (m, d) in cells]


def _percent(values: Iterable[float]) -> str:
    known = list(values)
    return f"{100 * statistics.mean(known):.2f}" if known else "–"
