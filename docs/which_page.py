"""Tables of docs/which.md, from the kept rows in results/."""

import csv
import statistics
from collections.abc import Iterable
from pathlib import Path

from results_page import BALANCED, DATA, DATA_10, DATA_100, DATA_200, FOCAL, FOCAL_100, RETRAINED, Campaign

from lt_cb.lab.report.tables import Difference, corrected, signed

HEADS, WHICH, TUNED = "heads.csv", "which.csv", "finetune.csv"
ROWS = {DATA: "`cifar10_*`", DATA_100: "`cifar100_losses`"}
ROWS |= dict.fromkeys((DATA_200, DATA_10), "`cifar10_factors`")
OTHERS = {DATA_200: "imbalance factor 200", DATA_10: "imbalance factor 10", DATA_100: "CIFAR-100"}
ADJUSTED = "logit adjustment"
QUERIES = ("least confident", "smallest balanced margin", "rarest predicted class")  # which images to label
PRIORS = ("as in training", "uniform", "inverted")
CORRECTIONS = {"none": "none", "uniform": "`--prior uniform`", "EM": "EM", "true": "the true prior"}
SETS = {  # rules of results/answers_sets.csv
    "softmax, all images together": "softmax, one threshold (split conformal)",
    "balanced, each class alone": "a threshold for each class (Mondrian)",
    "lt_cb": "`--sets 0.9`",
}


def gain(d: Difference) -> str:
    """Return mean and 95 % interval of a difference, with † for different machines."""
    return f"{signed(d.mean, 1)} ({d.interval(1)}){'†' * bool(d.machines)}"


def verdict(d: Difference, better: int = 1) -> str:
    """Return whether a method helps; ``better`` is the sign of an improvement."""
    if not d.is_significant:
        return "not shown"
    return "**yes**" if d.mean * better > 0 else "**no**"


def read(file: str) -> list[dict[str, str]]:
    """Return the rows of a file of results/."""
    with Path("results", file).open(newline="") as stream:
        return list(csv.DictReader(stream))


def _paired(question: str, method: str, rival: str) -> Difference:
    """Return the differences in results/which.csv, by data set and subset seed."""
    scores = {
        (row["method"], row["data"], row["subset_seed"]): float(row["score"])
        for row in read(WHICH)
        if row["question"] == question
    }
    tasks = [key[1:] for key in scores if key[0] == method]
    return Difference(method, rival, WHICH, [scores[method, *task] - scores[rival, *task] for task in tasks], "score")


def _by_data(method: str, rival: str) -> Difference:
    """Return the differences in results/heads.csv, averaged over the tasks of each data set."""
    found: dict[str, list[float]] = {}
    for row in read(HEADS):
        found.setdefault(row["data"], []).append(float(row[method]) - float(row[rival]))
    return Difference(method, rival, HEADS, [statistics.mean(values) for values in found.values()], "score")


def _tuned(method: str) -> Difference | None:
    """Return the gains of fine-tuning over the head that it starts from; None with fewer than three rows."""
    rows = {(row["data"], row["subset_seed"], row["backbone"], row["method"]): row for row in read(TUNED)}
    pairs = [(row, rows.get((*key[:3], "head"))) for key, row in rows.items() if key[3] == method]
    gains = [float(a["balanced_accuracy"]) - float(b["balanced_accuracy"]) for a, b in pairs if b is not None]
    return Difference(method, "head", TUNED, gains, "score") if len(gains) > 2 else None


def comparisons() -> dict[str, Difference]:
    """Return all comparisons of heads and pretrained networks; the comparisons of a file are one family of tests."""
    found = {
        "class weights": _by_data("cb_softmax", "softmax"),
        "class weights or adjustment": _by_data("cb_softmax", "balanced_softmax_0.1"),
        ADJUSTED: _by_data("balanced_softmax_0.1", "softmax"),
        "oversampling": _paired("head", "oversampling", ADJUSTED),
        "discriminant": _paired("head", "discriminant analysis", ADJUSTED),
        "synthetic": _paired("head", "synthetic features", ADJUSTED),
        "views": _paired("head", "logit adjustment, two views", ADJUSTED),
        "EM": _paired("prior", "inverted: EM", "inverted: uniform"),
        **{name: _paired("labels", name, "random") for name in QUERIES},
        "fine-tuning": _tuned("fine-tuned"),
        "lora": _tuned("lora"),
    }
    kept = {name: d for name, d in found.items() if d is not None}
    corrected(list(kept.values()))
    return kept


def answers() -> str:
    """Return the table of answers."""
    family, trained = comparisons(), {data: Campaign(data).differences for data in ROWS}

    def row(title: str, name: str, rest: str) -> tuple[str, ...]:
        d = family[name]
        return title, verdict(d), f"{gain(d)} points {rest}", f"`{d.data}`"

    def from_scratch(title: str, method: str, *epochs: int, data: str = DATA) -> tuple[str, ...]:
        found = [trained[data][n, method] for n in epochs]
        parts = [f"{gain(d)} after {n} epochs" for d, n in zip(found, epochs, strict=True)]
        return title, verdict(found[0], -1), f"error {', '.join(parts)}", ROWS[data]

    def on_others(title: str, *methods: str) -> list[tuple[str, ...]]:
        return [
            from_scratch(f"{title}, {text}", method, 40, data=data)
            for data, text in OTHERS.items()
            for method in methods
            if (40, method) in trained[data]
        ]

    query = max(QUERIES, key=lambda name: family[name].mean)
    adapters = ("adapters (LoRA)", "not measured here", "Shi et al. 2024 report gains for CLIP", "–")
    weights = "class weights, trained from scratch"
    balanced = "logit adjustment (balanced softmax), trained from scratch"
    retrained = "second stage: classifier re-training (cRT)"
    lines = [
        from_scratch(weights, FOCAL, 200, 40),
        *on_others(weights, FOCAL, FOCAL_100),
        row("class weights, head", "class weights", "over softmax"),
        row("class weights instead of logit adjustment, head", "class weights or adjustment", "over logit adjustment"),
        from_scratch(balanced, BALANCED, 40),
        *on_others(balanced, BALANCED),
        row("logit adjustment, head", ADJUSTED, "over softmax"),
        row("oversampling instead of logit adjustment, head", "oversampling", "over logit adjustment"),
        ("mixup", "not measured here", "Zhong et al. 2021: it helps features, not the classifier", "–"),
        from_scratch(retrained, RETRAINED, 200, 40),
        *on_others(retrained, RETRAINED),
        row("fine-tuning all weights", "fine-tuning", "over the head"),
        row("adapters (LoRA)", "lora", "over the head") if "lora" in family else adapters,
        row("prior correction by EM", "EM", "over `--prior uniform`, tail inverted"),
        row("active labelling", query, f"over random images ({query})"),
        row("LDA head", "discriminant", "over logit adjustment"),
        row("synthetic features", "synthetic", "over logit adjustment"),
        row("test-time views", "views", "by the mirror image"),
    ]
    return _table([("method", "does it help?", "what the rows show (95 % interval)", "rows"), *lines])


def priors() -> str:
    """Return the table of corrections of the prior: accuracies under each class prior of the test images."""
    rows = [row for row in read(WHICH) if row["question"] == "prior"]
    lines: list[tuple[str, ...]] = [("correction", *(f"test {kind}" for kind in PRIORS))]
    for name, title in CORRECTIONS.items():
        means = [_mean(row["score"] for row in rows if row["method"] == f"{kind}: {name}") for kind in PRIORS]
        lines.append((title, *(f"{mean:.1f}" for mean in means)))
    return _table(lines)


def sets() -> str:
    """Return the table of prediction sets at 90 %."""
    rows = [row for row in read("answers_sets.csv") if row["level"] == "0.9"]
    lines: list[tuple[str, ...]] = [("rule", "coverage, mean over classes", "few-shot", "worst class", "classes a set")]
    for name, title in SETS.items():
        own = [row for row in rows if row["method"] == name]
        shares = [f"{100 * _mean(row[key] for row in own):.0f} %" for key in ("coverage", "few", "worst_class")]
        lines.append((title, *shares, f"{_mean(row['size'] for row in own):.1f}"))
    return _table(lines)


def labels() -> str:
    """Return the table of label errors."""
    lines: list[tuple[str, ...]] = [
        ("score", "mean AUROC", "clean images of the three rarest classes in the worst tenth")
    ]
    rows = read("answers_suspects.csv")
    for name, title in (
        ("self-confidence", "self-confidence, as in cleanlab"),
        ("balanced posterior", "`suspects.csv`"),
    ):
        own = [row for row in rows if row["method"] == name]
        wrong, clean = (sum(int(row[key]) for row in own) for key in ("clean_tail_in_worst_tenth", "clean_tail"))
        lines.append((title, f"{_mean(row['auroc'] for row in own):.3f}", f"{wrong} of {clean}"))
    return _table(lines)


def _mean(values: Iterable[str]) -> float:
    return statistics.mean(map(float, values))


def _table(lines: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], ("---",) * len(lines[0]), *lines[1:]]) + "\n"


TABLES = {"which": answers, "which priors": priors, "which sets": sets, "which labels": labels}
