"""The tables, the findings and the pictures of docs/results.md, from kept rows and docs/published.csv."""

import csv
import re
import statistics
import textwrap
from pathlib import Path

from lt_cb.lab.report import rows
from lt_cb.lab.report.extra import altair as alt
from lt_cb.lab.report.figures import Picture, dots, look_of, rows_of, specification, styles_of
from lt_cb.lab.report.finding import listed
from lt_cb.lab.report.page import write_figures
from lt_cb.lab.report.result import Result, Runs
from lt_cb.lab.report.tables import (
    Difference,
    cells_of,
    corrected,
    interval,
    paired_differences,
    prediction_width,
    signed,
)

DATA, DATA_100 = "CIFAR-10 IF 100", "CIFAR-100 IF 100"
DATA_200, DATA_10 = "CIFAR-10 IF 200", "CIFAR-10 IF 10"
SOFTMAX, FOCAL, FOCAL_100 = "Softmax", "CB-Focal, γ 1, β 0.9999", "CB-Focal, γ 1, β 0.9"  # the paper's γ and β
BALANCED, LDAM, RETRAINED = "Balanced softmax", "LDAM-DRW", "Softmax, cRT"
OF_CIFAR10 = (  # epochs, method, folder and experiment of the rows
    (200, SOFTMAX, "cifar10_curve", "paper_200_softmax"),
    (200, FOCAL, "cifar10_curve", "paper_200_cb_focal"),
    (200, RETRAINED, "cifar10_crt_200", "crt_of_200"),
    (40, SOFTMAX, "cifar10_losses", "short_40_softmax"),
    (40, BALANCED, "cifar10_losses", "balanced_softmax"),
    (40, LDAM, "cifar10_losses", "ldam_drw"),
    (40, RETRAINED, "cifar10_losses", "crt"),
    (40, "Sigmoid", "cifar10_losses", "sigmoid"),
    (40, "Focal, γ 1", "cifar10_losses", "focal"),
    (40, FOCAL, "cifar10_losses", "short_40_cb_focal"),
    (40, "CB-Softmax, β 0.9999", "cifar10_losses", "cb_softmax"),
    (40, "CB-Sigmoid, β 0.9999", "cifar10_losses", "cb_sigmoid"),
    (40, "Softmax, inverse frequency", "cifar10_losses", "inverse_frequency"),
    (40, "CB-Softmax, β 0.9999, normalised over samples", "cifar10_losses", "cb_softmax_samples"),
    (20, SOFTMAX, "cifar10_curve", "short_20_softmax"),
    (20, FOCAL, "cifar10_curve", "short_20_cb_focal"),
)
OF_CIFAR100 = (
    (40, SOFTMAX, "cifar100_losses", "softmax"),
    (40, BALANCED, "cifar100_losses", "balanced_softmax"),
    (40, LDAM, "cifar100_losses", "ldam_drw"),
    (40, RETRAINED, "cifar100_losses", "crt"),
    (40, "Softmax, cRT with label over-smoothing", "cifar100_losses", "crt_over_smoothing"),
    (40, "Softmax, LWS", "cifar100_losses", "lws"),
    (40, "CB-Focal, γ 0.5, β 0.999", "cifar100_losses", "cb_focal"),
    (40, FOCAL_100, "cifar100_losses", "cb_focal_paper"),
    (40, "CB-Softmax, β 0.99", "cifar100_losses", "cb_softmax"),
)
OF_FACTORS = {  # method, and its experiment without the factor
    SOFTMAX: "softmax",
    BALANCED: "balanced_softmax",
    LDAM: "ldam_drw",
    RETRAINED: "crt",
    FOCAL: "cb_focal",
    "CB-Softmax, β 0.9999": "cb_softmax",
}
LOSSES = {  # names in configs/grids/cifar10_recipes.yaml: title, and experiment without a change of the recipe
    "softmax": (SOFTMAX, "short_40_softmax"),
    "balanced_softmax": (BALANCED, "balanced_softmax"),
    "cb_focal": (FOCAL, "short_40_cb_focal"),
    "ldam_drw": (LDAM, "ldam_drw"),
}
RECIPES = {
    "wd2e-4": "weight decay 2e-4",
    "wd1e-3": "weight decay 1e-3",
    "randaugment": "RandAugment",
    "sam": "SAM",
}
EXPERIMENTS = {DATA: OF_CIFAR10, DATA_100: OF_CIFAR100} | {
    data: tuple((40, method, "cifar10_factors", f"{factor}_{name}") for method, name in OF_FACTORS.items())
    for data, factor in ((DATA_200, "if200"), (DATA_10, "if10"))
}
GROUPS: dict[str, tuple[str, ...]] = {  # of classes; at imbalance factor 10 all are many-shot
    DATA: ("many", "medium"),
    DATA_100: ("many", "medium", "few"),
    DATA_200: ("many", "medium"),
    DATA_10: (),
}
SEEDS = 3  # fewer are not shown
CORRECTION = (
    "The p values are of paired t-tests, corrected by Holm's method for the comparisons with softmax in one table: "
    "{} at imbalance factor 100, {} on CIFAR-100, {} at factor 200 and {} at factor 10. More comparisons make p "
    "larger. The intervals are of single comparisons: one can exclude 0 while the corrected p is above 0.05."
)
Key = tuple[int, str]


class Campaign:
    """Kept runs on one data set: scores of each method, differences from softmax, and published figures."""

    def __init__(self, data: str = DATA) -> None:
        """Read the rows. Call it from the root of the repository."""
        self.data = data
        found: dict[Key, list[Result]] = {}
        for epochs, method, folder, experiment in EXPERIMENTS[data]:
            if kept := results_of(folder, experiment, f"{method}, {epochs} epochs", f"{epochs} epochs", data):
                found[epochs, method] = kept
        self.runs = Runs([result for kept in found.values() for result in kept])
        self.keys = {f"{method}, {epochs} epochs": (epochs, method) for epochs, method in found}
        self.differences = {self.keys[d.method]: d for d in paired_differences(self.runs, "error")}
        with Path("docs/published.csv").open(newline="") as stream:
            self.published = [row for row in csv.DictReader(stream) if row["data"] == data]

    def cell(self, key: Key, metric: str = "error") -> str:
        """Return the mean ± standard deviation of a metric."""
        cell = cells_of(self.runs, metric)[f"{key[1]}, {key[0]} epochs", self.data]
        return f"{cell.mean:.1f} ± {cell.deviation:.1f}"

    def values(self, key: Key) -> list[float]:
        """Return the errors of the seeds."""
        return cells_of(self.runs)[f"{key[1]}, {key[0]} epochs", self.data].values

    def of_others(self, key: Key) -> str:
        """Return published errors with their sources."""
        found = [row for row in self.published if (int(row["epochs"]), row["method"]) == key]
        texts = [f"{r['error']}{' ± ' * bool(r['deviation'])}{r['deviation']} ({r['source']})" for r in found]
        return ", ".join(texts) or "–"


def results_of(folder: str, experiment: str, method: str, group: str, data: str = DATA) -> list[Result]:
    """Return the rows of an experiment, or none if it has too few seeds. Methods of one group are compared."""
    kept = [Result.of(*row) for row in rows.read(Path("results", folder)) if row[3]["experiment"] == experiment]
    for result in kept:
        result.method, result.others, result.data = method, [group], data
    return kept if len(kept) >= SEEDS else []


def recipes_table() -> str:
    """Return the table of losses with changes of the short recipe, and differences from the same loss without."""
    found, names = list[Result](), dict[str, tuple[str, str]]()
    for loss, (title, unchanged) in LOSSES.items():
        changed = [
            result
            for recipe, text in RECIPES.items()
            for result in results_of("cifar10_recipes", f"{loss}_{recipe}", f"{title}, {text}", title)
        ]
        if changed:
            found += [*results_of("cifar10_losses", unchanged, title, title), *changed]
            names |= {title: (title, "–")} | {f"{title}, {text}": (title, text) for text in RECIPES.values()}
    runs = Runs(found)
    differences = {d.method: d for d in paired_differences(runs, "error")}
    header = ["loss", "change", "error", "many-shot error", "medium-shot error", "difference (95 % CI)", "p (Holm)"]
    lines = [header, ["---"] * len(header)]
    for method in runs.methods():
        spreads = [cells_of(runs, metric)[method, DATA] for metric in ("error", "error/many", "error/medium")]
        errors = [f"{cell.mean:.1f} ± {cell.deviation:.1f}" for cell in spreads]
        title, text = names[method]
        lines.append([plain(title), text, *errors, *_difference(differences.get(method))])
    return _markdown(lines)


def plain(method: str) -> str:
    """Return a method without γ and β, if they are those of all rows on CIFAR-10."""
    return method.replace(", γ 1, β 0.9999", "").removesuffix(", γ 1").replace(", β 0.9999", "")


def change(d: Difference) -> str:
    """Return mean, interval and verdict of a difference."""
    verdict = "significant" if d.is_significant else "not significant"
    dagger = "†" * bool(d.machines)
    return f"{signed(d.mean, 1)} points{dagger} (95 % CI {d.interval(1)}; {verdict}, p {d.holm:.2g})"


def results_table(data: str = DATA) -> str:
    """Return the table of methods with published errors, and rows of published methods that were not run here."""
    campaign = Campaign(data)
    by_group = [f"{group}-shot error" for group in GROUPS[data]]
    header = ["epochs", "method", "error", *by_group, "difference (95 % CI)", "p (Holm)", "published"]
    lines = [header, ["---"] * len(header)]
    for key in campaign.keys.values():
        groups = [campaign.cell(key, f"error/{group}") for group in GROUPS[data]]
        epochs, method, error, *compared = _cells(campaign, key)
        lines.append([epochs, method, error, *groups, *compared])
    others = dict.fromkeys((int(row["epochs"]), row["method"]) for row in campaign.published)
    for key in others:
        if key not in campaign.keys.values():
            lines.append([str(key[0]), plain(key[1]), "not run", *["–"] * (2 + len(by_group)), campaign.of_others(key)])
    return _markdown(lines)


def headline() -> str:
    """Return a few rows of the table, for the README."""
    campaign = Campaign()
    header = ["epochs", "method", "error", "difference (95 % CI)", "p (Holm)", "in the paper"]
    shown = [(200, m) for m in (SOFTMAX, FOCAL, RETRAINED)]
    shown += [(40, m) for m in (SOFTMAX, FOCAL, RETRAINED, BALANCED, LDAM)]
    rows = [_cells(campaign, key) for key in shown]
    paper = [next((part for part in row[-1].split(", ") if "Cui" in part), "–").split(" ")[0] for row in rows]
    return _markdown([header, ["---"] * len(header), *([*row[:-1], own] for row, own in zip(rows, paper, strict=True))])


def _cells(campaign: Campaign, key: Key) -> list[str]:
    """Return epochs, method, error, difference from softmax, its p, and published errors."""
    compared = _difference(campaign.differences.get(key))
    return [str(key[0]), plain(key[1]), campaign.cell(key), *compared, campaign.of_others(key)]


def _difference(d: Difference | None) -> tuple[str, str]:
    """Return a difference with its interval, and its p."""
    if d is None:
        return "–", "–"
    return f"{signed(d.mean, 1)} ({d.interval(1)}){'†' * bool(d.machines)}", d.texts[2]


def _markdown(lines: list[list[str]]) -> str:
    """Return a table without breaks within its numbers."""
    spaced = [[re.sub(r" (?=[±(t])|(?<=[±o]) ", "\N{NO-BREAK SPACE}", cell) for cell in line] for line in lines[2:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*lines[:2], *spaced]) + "\n"


def findings() -> str:
    """Return the findings in sentences."""
    campaign = Campaign()
    by_key = campaign.differences
    papers = {row["method"]: float(row["error"]) for row in campaign.published if row["source"] == "Cui"}
    bounds, inside = {}, []
    for method, figure in papers.items():
        values = campaign.values((200, method))
        mean, width = interval(values)[0], prediction_width(values)
        bounds[method] = f"{mean - width:.1f} to {mean + width:.1f} % for {plain(method)}"
        inside.append(abs(figure - mean) <= width)
    own, other = (dict(_by_seed(campaign, (40, method))) for method in (BALANCED, LDAM))
    (between,) = corrected([Difference(BALANCED, LDAM, DATA, [own[seed] - other[seed] for seed in own], "error")])
    better = [method for (epochs, method), d in by_key.items() if epochs == 40 and d.is_significant and d.mean < 0]
    retrained = [change(by_key[epochs, RETRAINED]) for epochs in (200, 40)]
    lengths = [
        f"{signed(d.mean, 1)} ({d.interval(1)}; p {d.holm:.2g}) after {n}"
        for n in (20, 40, 200)
        for d in [by_key[n, FOCAL]]
    ]
    balanced = statistics.mean(campaign.values((40, BALANCED)))
    assert balanced < min(statistics.mean(campaign.values(key)) for key in campaign.keys.values() if key[0] == 200)
    shown = [n for n in (20, 40, 200) if by_key[n, FOCAL].is_significant]
    assert not shown, "the third finding says that no difference is significant"
    focal = by_key[200, FOCAL]
    groups = [
        " instead of ".join(campaign.cell((epochs, m), f"error/{group}").split(" ")[0] for m in (FOCAL, SOFTMAX))
        for epochs in (40, 200)
        for group in ("many", "medium")
    ]
    reproduced = "consistent with the paper" if all(inside) and focal.mean < 0 else "not consistent with the paper"
    points = [
        f"**CB-Focal: our runs are {reproduced}, and {'show' if focal.is_significant else 'do not prove'} its claim.** "
        f"After 200 epochs, CB-Focal minus softmax is {change(focal)}. Alone, without correction, its p is "
        f"{focal.p:.2g}. The paper's single runs, {papers[SOFTMAX]} and {papers[FOCAL]} %, lie where our "
        f"runs predict 95 % of further ones: {bounds[SOFTMAX]}, and {bounds[FOCAL]}. These intervals overlap, so that "
        "this cannot tell the two losses apart.",
        f"**Which loss? At imbalance factor 100, with 40 epochs, {' or '.join(map(_in_a_sentence, better))}.** "
        f"Balanced softmax minus softmax is {change(by_key[40, BALANCED])}. LDAM-DRW minus softmax is "
        f"{change(by_key[40, LDAM])}. Between the two, no difference is shown: {signed(between.mean, 1)} points "
        f"({between.interval(1)}). †: the softmax runs are from another machine. Balanced softmax also helps where one "
        "machine ran both, on CIFAR-100 and at factor 200. Neither loss was run with 200 epochs. After 40, balanced "
        "softmax has a lower mean error than each method that was run with 200; the recipes differ.",
        f"**Class weights from the first step: no gain in error is shown at any length.** CB-Focal minus softmax is "
        f"{', '.join(lengths)} epochs. After 40 epochs they trade classes: the many-shot error is {groups[0]} %, and "
        f"the medium-shot error, of two classes, {groups[1]} %. After 200 epochs they are {groups[2]} % and "
        f"{groups[3]} %. The recipe changes with the length, so that the cause is not known.",
    ]
    on_100, on_200, on_10 = Campaign(DATA_100), Campaign(DATA_200), Campaign(DATA_10)
    assert not any(on_100.differences[40, method].is_significant for method in (LDAM, FOCAL_100))
    second_stage = (
        "Re-training the classifier (cRT) of a softmax network takes under a minute. No gain is shown after "
        f"correction: against softmax, it is {retrained[0]} after 200 epochs. After 40 epochs it is {retrained[1]}."
    )
    other_data = (
        f"Other data, 40 epochs: on [CIFAR-100](results_cifar100.md), {_effects(on_100)}. No difference is shown "
        f"for LDAM-DRW and for the paper's γ 1 and β 0.9. At [imbalance factor "
        f"200](results_factors.md#imbalance-factor-200), {_effects(on_200)}. At [imbalance factor "
        f"10](results_factors.md#imbalance-factor-10), {_effects(on_10)}."
    )
    compared = [len(each.differences) for each in (campaign, on_100, on_200, on_10)]
    correction = CORRECTION.format(*compared)
    texts = [*(f"- {text}" for text in points), "", second_stage, "", other_data, "", correction]
    return (
        "\n".join(
            textwrap.fill(text, 130, subsequent_indent="  " * text.startswith("-"), break_on_hyphens=False)
            for text in texts
        )
        + "\n"
    )


def _effects(campaign: Campaign) -> str:
    """Return which methods differ significantly from softmax, and how."""
    parts = []
    for verb, sign in (("help", -1), ("harm", 1)):
        found = [key for key, d in campaign.differences.items() if d.is_significant and d.mean * sign > 0]
        if names := [_in_a_sentence(method) for _, method in found]:
            parts.append(f"{listed(names)} {verb}{'s' * (len(names) == 1)}")
    return ", and ".join(parts) or "no difference from softmax is shown"


def _in_a_sentence(method: str) -> str:
    name = plain(method).removeprefix("Softmax, ").replace("Bal", "bal")
    return name.replace(", ", " with ", 1).replace(", ", " and ")


def _by_seed(campaign: Campaign, key: Key) -> list[tuple[tuple[int, int], float]]:
    kept = campaign.runs.cells()[f"{key[1]}, {key[0]} epochs", DATA]
    return [(result.seed, error) for result in kept if (error := result.score("error")) is not None]


def pictures(folder: Path) -> None:
    """Write lengths.svg, the error by length of training, and classes.svg, the accuracy of each class."""
    _lengths(Campaign(), folder)
    _classes(Campaign(), folder)


def _classes(campaign: Campaign, folder: Path) -> None:
    """Write mean and seeds of the accuracy of each class after 200 epochs, the most frequent class first."""
    values, shown = [], (SOFTMAX, FOCAL, RETRAINED)
    for method in shown:
        records = [result.record for result in campaign.runs.cells()[f"{method}, 200 epochs", DATA]]
        counts = [f"{count:,}" for count in records[0].class_counts]
        for c, name in enumerate(records[0].class_names):
            row = {"dataset": DATA, "method": plain(method), "class": f"{name} ({counts[c]})"}
            scores = [100 * record.correct[c] / record.test_counts[c] for record in records]
            values += [{k: v for k, v in made.items() if k not in ("low", "high")} for made in rows_of(row, scores)]
    order, look = look_of(styles_of(map(plain, shown)), values, {"method": "method", "text": "accuracy"}, legend=True)
    classes = list(dict.fromkeys(row["class"] for row in values))
    x = alt.X("class:N", sort=classes, title="class (training images)", axis=alt.Axis(labelAngle=-30))
    layers = dots("y", "accuracy in %", **look, x=x, xOffset=alt.XOffset("method:N", sort=order))
    spec = specification(values, 300, *layers)
    write_figures([Picture("classes", "Accuracy of each class", "", spec, wide=True)], [DATA], folder, "svg")


def _lengths(campaign: Campaign, folder: Path) -> None:
    shown = [key for key in campaign.keys.values() if key[1] in (SOFTMAX, FOCAL, BALANCED, LDAM)]
    values = []
    for epochs, method in shown:
        row = {"dataset": DATA, "method": plain(method), "epochs": str(epochs)}
        values += rows_of(row, campaign.values((epochs, method)))
    styles = styles_of([SOFTMAX, plain(FOCAL), BALANCED, LDAM])
    order, look = look_of(styles, values, {"method": "method", "text": "error"}, legend=True)
    x = alt.X("epochs:N", sort=["20", "40", "200"], title="epochs", axis=alt.Axis(labelAngle=0))
    layers = dots("y", "error in %", **look, x=x, xOffset=alt.XOffset("method:N", sort=order))
    spec = specification(values, 300, *layers)
    write_figures([Picture("lengths", "Error by length of training", "", spec, wide=True)], [DATA], folder, "svg")
