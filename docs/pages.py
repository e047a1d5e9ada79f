"""Update the pages and tables of kept results: uv run python docs/pages.py.

A page has a report between ``<!-- lt-cb report results/NAME ... -->`` and ``<!-- end -->``; ``report.html`` is one. The
table of `benchmarks/heads.py` is between ``<!-- heads -->`` and ``<!-- end -->``, and the table of runs with several
labels an image is between ``<!-- several results/NAME -->`` and ``<!-- end -->``.
"""

import csv
import re
import shlex
import tempfile
from pathlib import Path

from lt_cb.lab.report import collect, main
from lt_cb.lab.report.tables import Difference, cells_of, paired_differences

METHODS = {  # columns of results/heads.csv
    "recommended": "recommended",
    "softmax": "softmax",
    "cb_softmax_0.9999": "CB softmax",
    "cb_focal_0.9999": "CB focal",
    "balanced_softmax": "balanced softmax",
    "scikit_learn": "scikit-learn",
    "best": "best of the grid",
}
PLACE = re.compile(r"(<!-- lt-cb report (.*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def report(file: str, args: list[str]) -> str:
    """Return the content of a file that ``lt-cb report`` writes."""
    with tempfile.TemporaryDirectory() as out:
        main([*args, "--out", out])
        return (Path(out) / file).read_text()


def filled(text: str) -> str:
    """Return a page with all its tables made from the kept rows. Call it from the root of the repository."""

    def made(match: re.Match[str]) -> str:
        return f"{match[1]}\n{report('report.md', shlex.split(match[2]))}\n{match[4]}"

    tables = {
        r"(<!-- heads -->\n)(.*?)(<!-- end -->)": lambda m: heads(),
        r"(<!-- several (?:.*?) -->\n)(.*?)(<!-- end -->)": lambda m: several(m[1].split()[2]),
    }
    text = PLACE.sub(made, text)
    for place, make in tables.items():
        text = re.sub(place, lambda m, make=make: f"{m[1]}\n{make(m)}\n{m[3]}", text, flags=re.DOTALL)
    return text


def heads() -> str:
    """Return the table of heads: balanced accuracies averaged over subset seeds, and the mean regret over tasks."""
    tasks: dict[tuple[str, float], list[dict[str, str]]] = {}
    with Path("results/heads.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            tasks.setdefault((row["data"], float(row["imbalance_factor"])), []).append(row)
    lines = [["data", "IF", "seeds", *METHODS.values()], ["---"] * (3 + len(METHODS))]
    regrets: dict[str, list[float]] = {name: [] for name in METHODS}
    for (data, factor), rows in sorted(tasks.items()):
        means = {name: sum(float(row[name]) for row in rows) / len(rows) for name in METHODS}
        lines.append([data, f"{factor:g}", str(len(rows)), *(f"{value:.1f}" for value in means.values())])
        for name, value in means.items():
            regrets[name].append(means["best"] - value)
    lines.append(["mean regret", "", "", *(f"{sum(values) / len(values):.2f}" for values in regrets.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def several(folder: str) -> str:
    """Return the table of runs with several labels: average precision, gain over sigmoid loss, and F1."""
    runs = collect(Path(folder))
    metrics = ("mAP", "mAP/many", "mAP/medium", "mAP/few", "f1_macro")
    cells = {metric: cells_of(runs, metric) for metric in metrics}
    gains = {metric: {d.method: d for d in paired_differences(runs, metric)} for metric in ("mAP", "mAP/few")}
    titles = [
        "loss",
        "mAP",
        "more than sigmoid",
        "many-shot",
        "medium-shot",
        "few-shot",
        "more than sigmoid",
        "macro F1",
    ]
    lines = [titles, ["---"] * len(titles)]
    for method in runs.methods():
        shown = {m: f"{cells[m][method, runs.columns()[0]].mean:.1f}" for m in metrics}
        deviation = cells["mAP"][method, runs.columns()[0]].deviation
        more = {metric: _interval(each.get(method)) for metric, each in gains.items()}
        first = [_short(method), f"{shown['mAP']} ± {deviation:.1f}", more["mAP"]]
        groups = [shown[f"mAP/{group}"] for group in ("many", "medium", "few")]
        lines.append([*first, *groups, more["mAP/few"], shown["f1_macro"]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _interval(gain: Difference | None) -> str:
    return "–" if gain is None else f"{gain.mean:+.1f} ({gain.low:+.1f} to {gain.high:+.1f})"


def _short(method: str) -> str:
    """Return the name of a method for the page, without the options that its overlay sets."""
    name, comma, weights = method.partition(", ")
    name = {"Asymmetric": "asymmetric", "DistributionBalanced": "distribution-balanced"}.get(name.split()[0], name)
    return name.replace("Sigmoid", "sigmoid").replace("Focal gamma 1", "focal (γ = 1)") + comma + weights


def campaign() -> str:
    """Return the report page of the runs that test the paper's claim."""
    return report("report.html", ["results/cifar10_curve"])


if __name__ == "__main__":
    for page in Path("docs").glob("*.md"):
        page.write_text(filled(page.read_text()))
    Path("docs/report.html").write_text(campaign())
