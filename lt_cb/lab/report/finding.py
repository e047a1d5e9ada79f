"""First lines of a report: the differences, the best method, and the settings that all runs share."""

from lt_cb.lab.report.result import LENGTH, STAGE, Runs, is_error, label, seeds_of
from lt_cb.lab.report.sections import METRIC_TITLES, lower_case
from lt_cb.lab.report.tables import Difference, cells_of, paired_differences, signed

MAX_SENTENCES = 3  # comparisons with a sentence each
MAX_LISTED = 6  # methods in a sentence
MAX_DATA = 3  # data sets with lines of their own
COMMON = {  # settings of all runs, and their words
    "model.backbone": "{}",
    "data.image_size": "{} pixels",
    LENGTH: "",  # as in the name of a method
    "data.batch_size": "batches of {}",
    "model.optimizer": "{}",
    "model.optimizer.lr": "lr {}",
    "model.optimizer.weight_decay": "weight decay {}",
    "trainer.gradient_clip_val": "gradient norm clipped to {}",
    "trainer.precision": "{}",
}


def finding(runs: Runs, metric: str) -> list[str]:
    """Return lines of text: differences from the baseline, the best method by validation, and what was compared."""
    columns, differences = runs.columns(), paired_differences(runs, metric)
    lines: list[str] = []
    for data in columns if len(columns) <= MAX_DATA else ():
        own = [d for d in differences if d.data == data]
        place = f"{data}: " if len(columns) > 1 else ""
        lines += [place + line for line in _compared(runs, own, metric)]
    if len(columns) > MAX_DATA and differences:
        better, worse = ([d for d in differences if d.is_significant and (d.mean < 0) == low] for low in (True, False))
        lines.append(
            f"Of {len(differences)} differences from {differences[0].baseline}, {len(better)} are significantly lower "
            f"and {len(worse)} significantly higher (Holm's correction for the comparisons of each data set)."
        )
    if not differences and len(runs.methods()) > 1:
        lines.append("No two methods share two seeds, so no difference has an interval.")
    lines += filter(None, (_best(runs, name, metric) for name in columns))
    return [*lines, _scope(runs), *_common(runs)]


def _compared(runs: Runs, differences: list[Difference], metric: str) -> list[str]:
    """Return the differences from the baseline on one data set: a sentence each, or lists by sign."""
    if not differences:
        return []
    measure = lower_case(METRIC_TITLES[metric])
    if len(differences) <= MAX_SENTENCES:
        family = f"Each p is corrected by Holm's method for the {len(differences)} comparisons."
        return [*(_sentence(runs, d, measure) for d in differences), *[family] * (len(differences) > 1)]
    baselines = {d.baseline for d in differences}
    than = "their baselines" if len(baselines) > 1 else "".join(baselines)
    lines = []
    for word, sign in (("lower", -1), ("higher", 1)) if is_error(metric) else (("higher", 1), ("lower", -1)):
        found = sorted((d for d in differences if d.is_significant and sign * d.mean > 0), key=lambda d: -abs(d.mean))
        texts = [f"{d.method}{'†' * bool(d.machines)} {signed(d.mean, 1)} ({d.interval(1)})" for d in found]
        lines += [f"Significantly {word} {measure} than {than}: {listed(texts)}."] if texts else []
    marked = [f"{d.method}{'†' * bool(d.machines)}" for d in differences if not d.is_significant]
    lines += [f"Not significant: {listed(marked)}."] if lines and marked else []
    correction = f"p < 0.05 after Holm's correction for {len(differences)} comparisons"
    if not lines:
        return [f"No method differs significantly in {measure} from {than} ({correction})."]
    words = f"Points with 95 % CI; significant: {correction}."
    crossed = any("†" in line for line in lines)
    return [*lines, words + " † Runs on another machine than the baseline's." * crossed]


def _sentence(runs: Runs, d: Difference, measure: str) -> str:
    others = {result.method: "".join(f", {text}" for text in result.others) for result in runs.results}
    names, shared = [d.method, d.baseline], ""
    if others[d.method] and others[d.method] == others[d.baseline]:
        names = [name.removesuffix(others[name]) for name in names]
        shared = others[d.method]
    verdict = "significant" if d.is_significant else "not significant"
    machines = f" The runs of the two were made on different machines ({d.machines})." if d.machines else ""
    return (
        f"{names[0]} vs {names[1]}{shared}: {abs(d.mean):.1f} points {'lower' if d.mean < 0 else 'higher'} {measure}, "
        f"{verdict} with {len(d.changes)} seeds (95 % CI {d.interval(1)}; p {d.holm:.2g}).{machines}"
    )


def _best(runs: Runs, data: str, metric: str) -> str:
    """Return the best method by validation; nothing if a run was not validated on held-out images."""
    results = [result for result in runs.results if result.data == data]
    tested = "mAP" if runs.task.multi_label else "balanced_acc" if metric.endswith("balanced_acc") else "error"
    chooser = "val/acc" if tested == "error" else f"val/{tested}"
    if any(r.record.validated_on in (None, "test") or chooser not in r.metrics for r in results):
        return ""
    best = next(cell for cell in cells_of(Runs(results), chooser).values() if cell.best)
    on_test = cells_of(Runs(results), tested)[best.method, data]
    return (
        f"Best on {data} by validation is {best.method}: {lower_case(METRIC_TITLES[chooser])} {best} %, and "
        f"{lower_case(METRIC_TITLES[tested])} {on_test} % on the test images. It has the best mean, which is no proof "
        "that it is better than another."
    )


def _scope(runs: Runs) -> str:
    """Return the number of methods, the data sets and the seeds."""
    classes = {result.data: len(result.record.class_counts) for result in reversed(runs.results)}
    data = [f"{name} ({classes[name]} classes)" for name in runs.columns()]
    seeds = seeds_of(runs.cells().values())
    methods = len(runs.methods())
    return f"{methods} method{'s' * (methods > 1)} on {listed(data)}, {seeds}{' each' * (methods > 1)}."


def _common(runs: Runs) -> list[str]:
    """Return the settings that all runs share; second stages and heads have their own."""
    own = {"second stages": [result for result in runs.results if result.settings.get(STAGE)]}
    own["heads"] = [result for result in runs.results if result.record.l2_strength is not None]
    trained = [result for result in runs.results if not any(result in found for found in own.values())] or runs.results
    shared = []
    for key, words in COMMON.items():
        values = {str(r.epochs if key == LENGTH else r.settings.get(key)) for r in trained}
        if len(values) == 1 and (value := values.pop()) != "None":
            shared.append(label(key, value) if key == LENGTH else words.format(value))
    but = [] if len(trained) == len(runs.results) else [f" but {kind}" for kind, found in own.items() if found]
    return [f"All runs{' and'.join(but)}: {', '.join(shared)}."] if shared else []


def listed(texts: list[str]) -> str:
    """Return texts in one sentence, as "A, B and C"; the last of very many are counted."""
    more = len(texts) - MAX_LISTED
    if more > 1:
        return f"{'; '.join(texts[:MAX_LISTED])}; and {more} more"
    separator = "; " if any("," in text for text in texts) else ", "
    return texts[0] if len(texts) == 1 else f"{separator.join(texts[:-1])} and {texts[-1]}"
