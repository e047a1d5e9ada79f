"""Makes the pages of kept results again: uv run python docs/pages.py.

A page has a report between ``<!-- lt-cb report results/NAME ... -->`` and ``<!-- end -->``; ``report.html`` is one. The
table of `benchmarks/heads.py` stands between ``<!-- heads -->`` and ``<!-- end -->``.
"""

import csv
import re
import shlex
import tempfile
from pathlib import Path

from lt_cb.report import main

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
    """Return a file of the report, from the root of the repository."""
    with tempfile.TemporaryDirectory() as out:
        main([*args, "--out", out])
        return (Path(out) / file).read_text()


def filled(text: str) -> str:
    """Return a page with its reports as the kept rows give them, from the root of the repository."""

    def made(match: re.Match[str]) -> str:
        return f"{match[1]}\n{report('report.md', shlex.split(match[2]))}\n{match[4]}"

    return re.sub(
        r"(<!-- heads -->\n)(.*?)(<!-- end -->)",
        lambda m: f"{m[1]}\n{heads()}\n{m[3]}",
        PLACE.sub(made, text),
        flags=re.DOTALL,
    )


def heads() -> str:
    """Return the table of heads: balanced accuracies, means over subset seeds, and the mean regret over tasks."""
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


def campaign() -> str:
    """Return the page of the runs that test the paper's claim."""
    return report("report.html", ["results/cifar10_curve"])


if __name__ == "__main__":
    for page in Path("docs").glob("*.md"):
        page.write_text(filled(page.read_text()))
    Path("docs/report.html").write_text(campaign())
