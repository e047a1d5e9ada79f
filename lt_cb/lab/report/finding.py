"""First paragraph of a report: the compared methods, and the better ones."""

from lt_cb.lab.report.result import ERRORS, Runs
from lt_cb.lab.report.sections import METRIC_TITLES, lower_case
from lt_cb.lab.report.tables import NOT_SIGNIFICANT, Difference, cells_of, paired_differences

MAX_LISTED = 6  # methods or differences in a sentence
NO_BEST = "no method is called the best, as not all runs were validated on held-out images."
NO_PAIRS = "no two methods share two seeds, so differences have no interval."


def finding(runs: Runs, metric: str) -> str:
    """Return the compared methods, the best one by validation, and significant differences from the baseline."""
    methods, columns, differences = runs.methods(), runs.columns(), paired_differences(runs, metric)
    seeds = sorted({len(results) for results in runs.cells().values()})
    number = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    named = f": {'; '.join(methods)}" if len(methods) <= MAX_LISTED else ""
    classes = {result.data: len(result.record.class_counts) for result in reversed(runs.results)}
    data = [f"{name} ({classes[name]} classes)" for name in columns]
    sentences = [
        f"{len(methods)} {'method' if len(methods) == 1 else 'methods'} on {_listed(data)}, over {number} "
        f"{'seed' if seeds[-1] == 1 else 'seeds'}{' each' if len(methods) > 1 else ''}{named}.",
    ]
    best = {name: _best(runs, name, metric) for name in columns}
    compared = {name: _compared([d for d in differences if d.data == name], name, metric) for name in columns}
    for of_data, otherwise in ((best, NO_BEST), (compared, NO_PAIRS)) if len(methods) > 1 else ():
        sentences += filter(None, of_data.values())
        without = [name for name, sentence in of_data.items() if not sentence]
        sentences += [f"On {_listed(without)}, {otherwise}"] if without else []
    return " ".join(sentences)


def _best(runs: Runs, data: str, metric: str) -> str:
    """Return the best method by validation; nothing if a run was not validated on held-out images."""
    results = [result for result in runs.results if result.data == data]
    tested = "mAP" if runs.task.multi_label else "balanced_acc" if metric.endswith("balanced_acc") else "error"
    chooser = f"val/{ERRORS.get(tested, tested)}"
    if any(r.record.validated_on in (None, "test") or chooser not in r.metrics for r in results):
        return ""
    best = next(cell for cell in cells_of(Runs(results), chooser).values() if cell.best)
    on_test = cells_of(Runs(results), tested)[best.method, data]
    return (
        f"Best on {data} by validation is {best.method}: {lower_case(METRIC_TITLES[chooser])} {best} %, and "
        f"{lower_case(METRIC_TITLES[tested])} {on_test} % on the test images."
    )


def _compared(differences: list[Difference], data: str, metric: str) -> str:
    """Return the differences from the baseline by verdict; nothing without two shared seeds."""
    if not differences:
        return ""
    several = len({d.baseline for d in differences}) > 1
    baseline = "the baseline of each method" if several else differences[0].baseline
    parts = [f"{METRIC_TITLES[metric]} on {data} compared with {baseline}, in points with 95 % intervals over seeds"]
    better_first = ("lower", "higher") if metric in ERRORS else ("higher", "lower")
    for verdict in (*better_first, NOT_SIGNIFICANT):
        listed = []
        for d in (members := [d for d in differences if d.verdict == verdict])[:MAX_LISTED]:
            than = f", compared with {d.baseline}" if several else ""
            listed.append(f"{d.method} ({', '.join(d.texts)}{than})")
        more = [f"and {len(members) - MAX_LISTED} more"] if len(members) > MAX_LISTED else []
        if listed:
            parts.append(f"{verdict}: {'; '.join(listed + more)}.")
    return f"{parts[0]} – {' '.join(parts[1:])}"


def _listed(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
