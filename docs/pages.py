"""Update the pages and tables of kept results: uv run python docs/pages.py.

A page has a report between ``<!-- lt-cb report results/NAME ... -->`` and ``<!-- end -->``; ``report.html`` is one.
Other tables are between ``<!-- NAME ... -->`` and ``<!-- end -->``. The names are the keys of ``tables`` in `filled`.
"""

import csv
import math
import re
import shlex
import statistics
import tempfile
from pathlib import Path

import which_page
from results_page import DATA_100, findings, headline, pictures, recipes_table, results_table

from lt_cb.lab.report import Runs, collect, main
from lt_cb.lab.report.tables import Difference, cells_of, half_width, paired_differences

METHODS = {  # columns of results/heads.csv
    "recommended": "recommended",
    "balanced_softmax_0.03": "BS, λ 0.03",
    "balanced_softmax_0.1": "BS, λ 0.1",
    "balanced_softmax_0.3": "BS, λ 0.3",
    "cb_softmax": "CB softmax",
    "softmax": "softmax",
    "logistic": "logistic",
    "ridge": "ridge",
    "class_means": "class means",
    "best": "best of the grid",
}
SCALED = {  # parts of results/scale.csv
    "table": "read a table",
    "features": "features, without a network",
    "kept_features": "kept features",
    "head": "one head",
    "fold": "one fold",
    "report": "report",
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
        r"(<!-- results -->\n)(.*?)(<!-- end -->)": lambda m: results_table(),
        r"(<!-- results cifar100 -->\n)(.*?)(<!-- end -->)": lambda m: results_table(DATA_100),
        r"(<!-- results factor (?:\d+) -->\n)(.*?)(<!-- end -->)": lambda m: results_table(
            f"CIFAR-10 IF {m[1].split()[3]}"
        ),
        r"(<!-- recipes -->\n)(.*?)(<!-- end -->)": lambda m: recipes_table(),
        r"(<!-- headline -->\n)(.*?)(<!-- end -->)": lambda m: headline(),
        r"(<!-- findings -->\n)(.*?)(<!-- end -->)": lambda m: findings(),
        r"(<!-- finetune -->\n)(.*?)(<!-- end -->)": lambda m: finetune(),
        r"(<!-- finetune seeds -->\n)(.*?)(<!-- end -->)": lambda m: finetune_seeds(),
        r"(<!-- heads -->\n)(.*?)(<!-- end -->)": lambda m: heads(),
        r"(<!-- rules -->\n)(.*?)(<!-- end -->)": lambda m: rules(),
        r"(<!-- scale (?:.*?) -->\n)(.*?)(<!-- end -->)": lambda m: scale(m[1].split()[2:-1]),
        **{
            rf"(<!-- {n} -->\n)(.*?)(<!-- end -->)": lambda m, make=make: make()
            for n, make in which_page.TABLES.items()
        },
        r"(<!-- several (?:.*?) -->\n)(.*?)(<!-- end -->)": lambda m: several(m[1].split()[2]),
    }
    text = PLACE.sub(made, text)
    for place, make in tables.items():
        text = re.sub(place, lambda m, make=make: f"{m[1]}\n{make(m)}\n{m[3]}", text, flags=re.DOTALL)
    return text


def heads() -> str:
    """Return the table of heads: balanced accuracies averaged over subset seeds, and the mean regret over data sets."""
    tasks: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    with Path("results/heads.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            tasks.setdefault((row["data"], row["n_max"], row["imbalance_factor"]), []).append(row)
    lines = [["data", "largest class", "IF", "images", "seeds", *METHODS.values()], ["---"] * (5 + len(METHODS))]
    regrets: dict[str, dict[str, list[float]]] = {name: {} for name in METHODS}
    for (data, n_max, factor), rows in tasks.items():
        cells = [data, n_max or "all", f"{float(factor):g}", rows[0]["training_images"], str(len(rows))]
        for name, by_set in regrets.items():
            cells.append(f"{statistics.mean(float(row[name]) for row in rows):.1f}")
            by_set.setdefault(data, []).extend(float(row["best"]) - float(row[name]) for row in rows)
        lines.append(cells)
    means = [[statistics.mean(values) for values in by_set.values()] for by_set in regrets.values()]
    intervals = [f"{statistics.mean(values):.2f} ± {half_width(values):.2f}" for values in means]
    lines.append(["mean regret", "", "", "", "", *intervals])
    largest = [max(max(values) for values in by_set.values()) for by_set in regrets.values()]
    lines.append(["largest regret", "", "", "", "", *(f"{value:.2f}" for value in largest)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


TRAINED = {"fine-tuned": "all weights", "fine-tuned on all": "all weights, no image held out", "lora": "LoRA"}
PLACES = {"cifar10": "CIFAR-10", "cifar100_20": "CIFAR-100, 20 classes"}
NETWORKS = {"efficientnet_lite0": "EfficientNet-Lite0", "vit_small": "ViT-S/14"}


def _tuned() -> dict[tuple[str, str, str], list[tuple[dict[str, str], dict[str, str]]]]:
    """Return the rows of head and fine-tuned network of each seed, by data, network and method."""
    with Path("results/finetune.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    heads = {(row["data"], row["subset_seed"], row["backbone"]): row for row in rows if row["method"] == "head"}
    found: dict[tuple[str, str, str], list[tuple[dict[str, str], dict[str, str]]]] = {}
    for row in sorted(rows, key=lambda row: list(TRAINED).index(row["method"]) if row["method"] in TRAINED else 9):
        if row["method"] in TRAINED:
            network = f"{NETWORKS[row['backbone']]}, {row['image_size']} px"
            pair = heads[row["data"], row["subset_seed"], row["backbone"]], row
            found.setdefault((PLACES[row["data"]], network, TRAINED[row["method"]]), []).append(pair)
    return found


def finetune() -> str:
    """Return the table of means over seeds, of the head and the network that is trained from it."""
    lines = [
        "| data | network | trained | head | after | gain (95 % CI over seeds) | seeds | minutes |",
        "|---" * 8 + "|",
    ]
    for (data, network, method), pairs in _tuned().items():
        scores = [[float(row["balanced_accuracy"]) for row in each] for each in zip(*pairs, strict=True)]
        gains = [after - before for before, after in zip(*scores, strict=True)]
        means = [f"{statistics.mean(each):.1f}" for each in scores]
        mean, width = statistics.mean(gains), half_width(gains) if len(gains) > 1 else math.nan
        gain = f"{mean:+.1f} ({mean - width:+.1f} to {mean + width:+.1f})"
        minutes = statistics.mean(float(row["seconds"]) / 60 for _, row in pairs)
        cells = [data, network, method, *means, gain, str(len(pairs)), f"{minutes:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def finetune_seeds() -> str:
    """Return the table of all seeds, with an interval over the test images."""
    lines = [
        "| data | trained | seed | head | after | gain (95 % CI over test images) | kept epoch |",
        "|---" * 7 + "|",
    ]
    for (data, _, method), pairs in _tuned().items():
        for head, row in pairs:
            gain = f"{float(row['gain']):+.1f} ({float(row['low']):+.1f} to {float(row['high']):+.1f})"
            scores = [f"{float(each['balanced_accuracy']):.1f}" for each in (head, row)]
            cells = [data, method, row["subset_seed"], *scores, gain, row["kept_epoch"] or "–"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def rules() -> str:
    """Return the table of rules of choice: mean regret by data set, over data sets, and the largest of a task."""
    with Path("results/heads_rules.csv").open(newline="") as stream:
        header, *rows = csv.reader(stream)
    lines = [header, ["---"] * len(header), *([name, *(f"{float(v):.2f}" for v in values)] for name, *values in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def scale(parts: list[str]) -> str:
    """Return the table of parts of results/scale.csv: CPU seconds and memory, with a column for each size."""
    with Path("results/scale.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["part"] in parts]
    cells = {(row["part"], int(row["classes"]), int(row["size"])): _used(row) for row in rows}
    sizes = sorted({size for _, _, size in cells})
    lines = [["part", "classes", *(f"{size:,}" for size in sizes)], ["---"] * (2 + len(sizes))]
    for part, classes in sorted({key[:2] for key in cells}, key=lambda key: (parts.index(key[0]), key[1])):
        found = [cells.get((part, classes, size), "–") for size in sizes]
        lines.append([SCALED[part], f"{classes:,}", *found])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _used(row: dict[str, str]) -> str:
    if row["reason"]:
        return f"not run: {row['reason']}"
    seconds, mib = float(row["cpu_s"]), int(row["added_mib"])
    memory = f"{mib / 1024:.1f} GiB" if mib >= 1000 else f"{mib} MiB"
    return f"{seconds:.{0 if seconds >= 10 else 1 if seconds >= 1 else 2}f} s, {memory}"


def several(folder: str) -> str:
    """Return the table of runs with several labels: average precision, gain over sigmoid loss, and F1."""
    runs = collect(Path(folder))
    metrics = ("mAP", "mAP/many", "mAP/medium", "mAP/few", "f1_macro")
    cells = {metric: cells_of(runs, metric) for metric in metrics}
    gains = {metric: {d.method: d for d in by_group} for metric, by_group in _gains(runs).items()}
    header = ["loss", "mAP", "more than sigmoid", "p (Holm)", "many", "medium", "few", "more than sigmoid", "p (Holm)"]
    lines = [[*header, "macro F1"], ["---"] * 10]
    for method in runs.methods():
        shown = {m: f"{cells[m][method, runs.columns()[0]].mean:.1f}" for m in metrics}
        deviation = cells["mAP"][method, runs.columns()[0]].deviation
        more = {metric: _interval(each.get(method)) for metric, each in gains.items()}
        groups = [shown[f"mAP/{group}"] for group in ("many", "medium", "few")]
        first = [method, f"{shown['mAP']} ± {deviation:.1f}", *more["mAP"]]
        lines.append([*first, *groups, *more["mAP/few"], shown["f1_macro"]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _gains(runs: Runs) -> dict[str, list[Difference]]:
    """Return the differences in mAP and in few-shot mAP, which are one family of comparisons."""
    differences = paired_differences(runs, "mAP", "mAP/few")
    return {metric: [d for d in differences if d.metric == metric] for metric in ("mAP", "mAP/few")}


def _interval(gain: Difference | None) -> tuple[str, str]:
    return ("–", "–") if gain is None else (f"{gain.mean:+.1f} ({gain.interval(1)})", gain.texts[2])


def campaign() -> str:
    """Return the report page of the runs that test the paper's claim."""
    return report("report.html", ["results/cifar10_curve"])


if __name__ == "__main__":
    for page in (Path("README.md"), *Path("docs").glob("*.md")):
        page.write_text(filled(page.read_text()))
    Path("docs/report.html").write_text(campaign())
    pictures(Path("docs/images"))
