"""The tables of a report, each with a title and what it is."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from lt_cb.lab.report.collect import ERRORS, Result, Runs
from lt_cb.lab.report.posthoc import MEANS, SHIFTS, TAUS, analyse, class_means
from lt_cb.lab.report.rows import command
from lt_cb.lab.report.tables import Cell, Difference, cells_of, paired_differences, wilson
from lt_cb.runs.folder import RunDir

METRICS = {
    "error": "Error",
    "acc": "Accuracy",
    "balanced_acc": "Balanced accuracy",
    "val/acc": "Validation accuracy",
    "val/balanced_acc": "Balanced validation accuracy",
    "mAP": "Mean average precision",
    "f1_macro": "Macro F1",
    "f1_micro": "Micro F1",
    "auroc": "Mean AUROC",
    "val/mAP": "Mean average precision in validation",
}
CLASSES = 100  # of a data set, whose table is read
MEANINGS = {
    "error": "Top-1 error",
    "acc": "Top-1 accuracy",
    "balanced_acc": "Mean accuracy over classes",
    "mAP": "Mean over classes of the average precision",
    "f1_macro": "Mean over classes of F1 at their thresholds",
    "f1_micro": "F1 at the thresholds, of all labels together",
    "auroc": "Mean over classes of the area under the ROC curve",
}
TOLD = 6  # differences that a finding lists
NO_BEST = "not all runs held out images to validate on, so none is called the best."
ALONE = "no two methods share two seeds, so none can be told apart from another."


@dataclass
class Section:
    """A table; its cells are text, bold between two pairs of asterisks."""

    title: str
    words: str
    header: list[str]
    rows: list[list[str]]


def sections(runs: Runs, cells: dict[tuple[str, str], Cell], metric: str) -> list[Section]:
    """Return the tables that the runs have something for.

    Args:
        runs: finished and missing ones.
        cells: of ``metric``.
        metric: of the first table, a key of ``METRICS``.
    """
    errors = {} if runs.task.multi_label else cells if metric == "error" else cells_of(runs)
    top5 = cells_of(Runs([result for result in runs.results if "acc_top5" in result.metrics], []), "error_top5")
    papers = [_papers(errors, "Beside the paper", "Top-1"), _papers(top5, "Beside the paper, top-5", "Top-5")]
    parts = [
        _main(runs, cells, metric),
        _chosen(runs, cells, metric),
        *papers,
        _differences(paired_differences(runs, metric), metric),
        _groups(runs),
    ]
    return [s for s in [*parts, *_by_class(runs), *_from_logits(runs), _kept(runs), _missing(runs)] if s.rows]


def finding(runs: Runs, metric: str) -> str:
    """Return in words what was compared, what is best by validation, and what is told apart from its baseline."""
    methods, columns, differences = runs.methods(), runs.columns(), paired_differences(runs, metric)
    seeds = sorted({len(results) for results in runs.cells().values()})
    number = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    named = f": {'; '.join(methods)}" if len(methods) <= TOLD else ""
    data = [f"{name} ({len(_first(runs, name).record.class_counts)} classes)" for name in columns]
    said = [
        f"{len(methods)} {'method' if len(methods) == 1 else 'methods'} on {_listed(data)}, over {number} "
        f"{'seed' if seeds[-1] == 1 else 'seeds'}{' each' if len(methods) > 1 else ''}{named}.",
    ]
    if len(methods) > 1:
        said += _all_or_each(columns, lambda name: _best(runs, name, metric), NO_BEST)
        said += _all_or_each(
            columns, lambda name: _told([d for d in differences if d.data == name], name, metric), ALONE
        )
    return " ".join(said)


def _all_or_each(columns: list[str], say: Callable[[str], str], nothing: str) -> list[str]:
    """Return a sentence for each data set, and one for all those of which there is nothing to say."""
    each = {name: say(name) for name in columns}
    silent = [name for name, text in each.items() if not text]
    return [*[text for text in each.values() if text], *([f"On {_listed(silent)} {nothing}"] if silent else [])]


def _first(runs: Runs, data: str) -> Result:
    return next(result for result in runs.results if result.data == data)


def _listed(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _best(runs: Runs, data: str, metric: str) -> str:
    """Say which method the held-out images choose, if all runs have some, else nothing."""
    results = [result for result in runs.results if result.data == data]
    balanced = metric.endswith("balanced_acc")
    chooser = "val/mAP" if runs.task.multi_label else "val/balanced_acc" if balanced else "val/acc"
    if any(r.record.validated_on in (None, "test") or chooser not in r.metrics for r in results):
        return ""
    cells = cells_of(Runs(results, []), chooser)
    best = next(cell for cell in cells.values() if cell.best)
    shown = "mAP" if runs.task.multi_label else "balanced_acc" if balanced else "error"
    tested = cells_of(Runs(results, []), shown)[best.method, data]
    name, reached = _lower(METRICS[chooser]), f"{_lower(METRICS[shown])} of {tested} %"
    return f"Best on {data} by validation is {best.method}: {name} {best} %, and on the test images {reached}."


def _told(differences: list[Difference], data: str, metric: str) -> str:
    """Say which methods are told apart from their baseline, and by how much; nothing without a shared seed."""
    if not differences:
        return ""
    several = len({d.baseline for d in differences}) > 1

    def listed(members: list[Difference]) -> str:
        texts = []
        for d in members[:TOLD]:
            mean, low, high = (-d.mean, -d.high, -d.low) if metric in ERRORS else (d.mean, d.low, d.high)
            than = f", against {d.baseline}" if several else ""
            texts.append(f"{d.method} ({mean:+.2f}, {low:+.2f} to {high:+.2f}{than})")
        return "; ".join([*texts, *([f"and {len(members) - TOLD} more"] if len(members) > TOLD else [])])

    first = ("lower", "higher") if metric in ERRORS else ("higher", "lower")
    groups = {name: [d for d in differences if d.verdict(metric) == name] for name in (*first, "not told apart")}
    parts = [f"{name}: {listed(members)}" for name, members in groups.items() if members]
    baseline = "each method's baseline" if several else differences[0].baseline
    less = f"{METRICS[metric]} on {data} less that of {baseline}, in points with 95 % intervals over seeds"
    return f"{less} – {'. '.join(parts)}."


def _main(runs: Runs, cells: dict[tuple[str, str], Cell], metric: str) -> Section:
    columns = runs.columns()
    most = max(len(cell.values) for cell in cells.values())
    checkpoints = " and ".join(sorted({result.record.tested for result in runs.results}))
    validation, what = metric.startswith("val/"), MEANINGS[metric.removeprefix("val/")]
    seeds = f"{most} {'seed' if most == 1 else 'seeds'}"
    images = "images held out for validation" if validation else "test images"
    choice = "Bold: the best mean of a column." if validation else "Nothing may be chosen by it."
    words = (
        f"{what} on the {images} in percent: mean ± standard deviation over {seeds} (fewer where that is said), of "
        f"the checkpoint: {checkpoints}. {choice} –: no finished run."
    )

    def text(cell: Cell | None) -> str:
        if cell is None:
            return "–"
        fewer = f" ({len(cell.values)} of {most} seeds)" if len(cell.values) < most else ""
        return (f"**{cell}**" if cell.best else str(cell)) + fewer

    rows = [[method, *[text(cells.get((method, data))) for data in columns]] for method in runs.methods()]
    return Section(METRICS[metric], words, ["method", *columns], rows)


def _chosen(runs: Runs, cells: dict[tuple[str, str], Cell], metric: str) -> Section:
    """Return the test figures of what a validation metric chooses."""
    names = ("mAP", "f1_macro") if runs.task.multi_label else ("error", "balanced_acc")
    tested = [cells_of(runs, name) for name in names]
    rows = [
        [data, cell.method, str(cell), *[str(test[method, data]) for test in tested]]
        for (method, data), cell in cells.items()
        if cell.best
    ]
    words = "What the validation images choose, by their mean over seeds, and what it reaches on the test images."
    header = ["data", "method", METRICS[metric], *[name.replace("_", " ") for name in names]]
    return Section("Chosen by validation", words, header, rows)


def _papers(cells: dict[tuple[str, str], Cell], title: str, what: str) -> Section:
    rows = []
    for cell in cells.values():
        if cell.paper is not None:
            agrees = {None: "one seed", True: "yes", False: "no"}[cell.agrees]
            difference = f"{cell.mean - cell.paper:+.2f}"
            unlike = cell.unlike_paper or "–"
            rows.append([cell.method, cell.data, str(cell), f"{cell.paper:.2f}", difference, agrees, unlike])
    words = (
        f"{what} error in percent, and that of Cui et al. 2019 (Tables 2 and 3, one run a figure): whether it is "
        "within the 95 % interval of our mean (Student's t over seeds). Unlike the paper's are runs of another length, "
        "and those with images held out, a sampler, mixed images, deferred weights, a second stage or pretrained "
        "weights; learning rate, batch size, augmentation and the rest are not compared."
    )
    header = ["method", "data", "ours", "paper", "difference", "within the interval", "unlike the paper"]
    return Section(title, words, header, rows)


def _differences(differences: list[Difference], metric: str) -> Section:
    better = "lower" if metric in ERRORS else "higher"
    several = len({d.baseline for d in differences}) > 1
    rows = []
    for d in differences:
        interval = f"{d.low:+.2f} to {d.high:+.2f}"
        than = [d.baseline] if several else []
        rows.append([d.method, *than, d.data, f"{d.mean:+.2f}", interval, str(d.seeds), d.verdict(metric)])
    baseline = "the method beside it" if several else differences[0].baseline if differences else ""
    words = (
        f"How much {better} the {_lower(METRICS[metric])} is than that of {baseline}, in points, on the same "
        "seeds: mean and 95 % interval of Student's t over the paired differences. Where it holds 0, the two are not "
        "told apart."
    )
    header = ["method", *(["than"] if several else []), "data", f"{better} by", "interval", "seeds", "verdict"]
    return Section("Differences", words, header, rows)


def _groups(runs: Runs) -> Section:
    names = [runs.task.main_metric, *runs.group_means.values()] + (
        ["auroc", "f1_macro", "f1_micro"] if runs.task.multi_label else []
    )
    rows = []
    for (method, data), results in _ordered(runs):
        groups = [_percent(r.metrics[n] for r in results if n in r.metrics) for n in names]
        means = [class_means(r.record.scores) for r in results]
        spread = [_percent(m[n] for m in means) for n in MEANS]
        rows.append([method, data, *groups, *spread, str(len(results))])
    words = (
        "Means over seeds in percent: over classes, over those of many, medium and few training images; and of the "
        f"{'average precisions' if runs.task.multi_label else 'accuracies'} of classes the lowest, the geometric and the "
        "harmonic mean."
    )
    if runs.task.multi_label:
        words += (
            " F1 is at the thresholds of the run, each class's own, chosen on held-out images, or 0.5 where there were "
            "none; f1_micro is of all labels together."
        )
    header = ["method", "data", *names, "worst class", "geometric mean", "harmonic mean", "seeds"]
    return Section(f"{runs.measure.capitalize()} of the classes", words, header, rows)


def _by_class(runs: Runs) -> list[Section]:
    """Return a table of classes for each data set that says how many of their images were right."""
    tables = []
    by_cell = runs.cells()
    for data in runs.columns():
        columns = {method: by_cell[method, data] for method in runs.methods() if (method, data) in by_cell}
        first = next(iter(columns.values()))[0]
        if not first.record.test_counts or len(first.record.class_counts) > CLASSES:
            continue
        rows = []
        for c, name in enumerate(first.record.class_names):
            cells = []
            for results in columns.values():
                tested = first.record.test_counts[c]
                if runs.task.multi_label:
                    cells.append(_spread([r.record.scores[c] for r in results]))
                    continue
                right = tested * statistics.mean(r.record.scores[c] or 0.0 for r in results)
                low, high = wilson(round(right), tested)
                cells.append(f"{100 * right / tested:.1f} ({100 * low:.0f} to {100 * high:.0f})" if tested else "–")
            rows.append([name, str(first.record.class_counts[c]), str(first.record.test_counts[c]), *cells])
        words = (
            "Accuracy in percent, mean over seeds, and in brackets Wilson's 95 % interval of one run, which is what "
            "the number of test images leaves open."
        )
        if runs.task.multi_label:
            words = "Average precision in percent, mean ± standard deviation over seeds; images: those of the label."
        header = ["class", "training images", "test images", *columns]
        tables.append(Section(f"Classes of {data}", words, header, rows))
    return tables


def _from_logits(runs: Runs) -> list[Section]:
    """Return what saved logits tell: post-hoc adjustment, shifted priors, calibration."""
    by_tau: list[list[str]] = []
    by_prior: list[list[str]] = []
    calibrated: list[list[str]] = []
    for (method, data), results in _ordered(runs):
        kept = [r for r in results if RunDir(r.folder).logits.is_file() and not r.record.task.multi_label]
        saved = [analyse(result) for result in kept]
        if saved:
            row, seeds = [method, data], str(len(saved))
            swept = np.mean([p.by_tau for p in saved], 0)
            texts = [f"**{100 * v:.2f}**" if v == swept.max() else f"{100 * v:.2f}" for v in swept]
            by_tau.append([*row, *texts, seeds])
            for name, shifted in (
                ("as it is", np.mean([p.by_prior for p in saved], 0)),
                ("prior known", np.mean([p.by_known_prior for p in saved], 0)),
            ):
                by_prior.append([*row, name, *[f"{100 * v:.2f}" for v in shifted], seeds])
            groups = ("all", "many", "medium", "few")
            errors = [_percent(p.calibration[g] for p in saved if g in p.calibration) for g in groups]
            calibrated.append([*row, *errors, _percent(p.overconfidence for p in saved), seeds])
    return [
        Section(
            "Post-hoc logit adjustment",
            "Balanced accuracy in percent of the saved logits less τ log prior of the training (Menon et al. 2021), "
            "means over seeds. τ 0 is the loss's own prediction, which may be adjusted already. Bold: the best τ, "
            "chosen on the test images and therefore optimistic.",
            ["method", "data", *[f"τ {tau:g}" for tau in TAUS], "seeds"],
            by_tau,
        ),
        Section(
            "Shifted test priors",
            "Accuracy in percent if the share of classes in the test decayed with their training images by this "
            "imbalance factor, or, below 1, the other way round (Hong et al. 2021), means over seeds: of the "
            "predictions as they are, and with the logits moved from the training prior to the test's, which is right "
            "for a loss that learns the training prior, as softmax without weights does.",
            ["method", "data", "predictions", *[f"{s:g}" if s >= 1 else f"1/{1 / s:g}" for s in SHIFTS], "seeds"],
            by_prior,
        ),
        Section(
            "Calibration",
            "Expected calibration error in percent (15 bins) of all test images and of those of many-, medium- and "
            "few-shot classes, and mean confidence less accuracy in points, means over seeds. The confidence is the "
            "loss's own probability of the predicted class: of sigmoid and focal losses, a sigmoid.",
            ["method", "data", "all", "many", "medium", "few", "overconfident by", "seeds"],
            calibrated,
        ),
    ]


def _kept(runs: Runs) -> Section:
    """Return each configuration of kept results, and how to train it again."""
    trained: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in runs.results:
        if result.row:
            trained[result.row["experiment"], result.row["config"]].append(result)
    rows = []
    for results in trained.values():
        first = results[0]
        minutes = statistics.median(float(result.row["seconds"]) for result in results) / 60
        seeds = " ".join(result.row["seed"] for result in results)
        where = f"{first.row['processor']}, {first.row['threads']} thread(s), {first.row['precision']}"
        again = command(first.row, first.folder.parents[1])
        rows.append([first.method, first.data, seeds, f"{minutes:.1f}", where, first.row["commit"], f"`{again}`"])
    words = (
        "The command repeats the run of the first seed; --data.root says where the data lie. On such a CPU, with as "
        "many threads (OMP_NUM_THREADS) and the same versions, it gives the same figures to the digit; a GPU may round "
        "otherwise each time."
    )
    if runs.unnamed:
        words += (
            " Methods of one loss differ in more than their names say: "
            f"{', '.join(key.partition('.')[2] for key in runs.unnamed)}."
        )
    return Section("The runs", words, ["method", "data", "seeds", "minutes", "on", "commit", "command"], rows)


def _missing(runs: Runs) -> Section:
    rows = [[str(folder), state] for folder, state in runs.missing]
    return Section("Missing runs", "Folders of runs that are not in the tables.", ["folder", "state"], rows)


def _ordered(runs: Runs) -> list[tuple[tuple[str, str], list[Result]]]:
    columns, methods = runs.columns(), runs.methods()
    return sorted(runs.cells().items(), key=lambda item: (columns.index(item[0][1]), methods.index(item[0][0])))


def _spread(values: Iterable[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{spread}" if known else "–"


def _lower(name: str) -> str:
    """Return the name of a metric within a sentence."""
    return name if name.isupper() else name[:1].lower() + name[1:]


def _percent(values: Iterable[float]) -> str:
    known = list(values)
    return f"{100 * statistics.mean(known):.2f}" if known else "–"
