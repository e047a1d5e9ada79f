"""Figures in the documentation, recomputed from the correct images of each class in the kept rows."""

import csv
import math
import re
import statistics
from pathlib import Path

import pytest
import scipy.stats
import yaml

from lt_cb.__main__ import main
from lt_cb.runs.folder import flatten

ROOT = Path(__file__).parents[1]
LOSSES = {  # titles in the page's table, by experiment
    "softmax": "Softmax",
    "focal": "Focal, γ 1",
    "cb_softmax": "CB-Softmax, β 0.9999",
    "cb_focal": "CB-Focal, γ 1, β 0.9999",
}


def rows(name: str) -> list[dict[str, str]]:
    with (ROOT / "results" / name / "runs.csv").open() as stream:
        return list(csv.DictReader(stream))


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split()]


def accuracies(row: dict[str, str]) -> dict[str, float]:
    """Return mean accuracies over classes, of all and by shot group, in percent."""
    rates = [100 * c / n for c, n in zip(numbers(row["correct"]), numbers(row["counted"]), strict=True)]
    counts = numbers(row["class_counts"])
    groups = {
        "balanced": rates,
        "many": [r for r, n in zip(rates, counts, strict=True) if n > 100],
        "medium": [r for r, n in zip(rates, counts, strict=True) if 20 <= n <= 100],
        "few": [r for r, n in zip(rates, counts, strict=True) if n < 20],
    }
    return {name: statistics.mean(members) for name, members in groups.items() if members}


def test_the_quickstart_table_matches_its_rows() -> None:
    by_loss: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows("quickstart"):
        by_loss.setdefault(row["experiment"], {})[row["seed"]] = accuracies(row)
    page = (ROOT / "docs/quickstart.md").read_text().partition("## Differences")[0]
    for loss, title in LOSSES.items():
        (line,) = re.findall(rf"^\| {re.escape(title)} \| (.*) \|$", page, re.MULTILINE)
        *means, difference, bounds, _, seeds = line.split(" | ")
        runs = by_loss[loss]
        assert len(runs) == int(seeds) == 10
        for name, cell in zip(("balanced", "many", "medium", "few"), means, strict=True):
            values = [run[name] for run in runs.values()]
            assert cell == f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
        if loss == "softmax":
            assert difference == "–"
            continue
        gain = [runs[s]["balanced"] - by_loss["softmax"][s]["balanced"] for s in runs]
        assert f"{difference} ({bounds})" == interval(gain, digits=2)
    gains = {
        (loss, group): [runs[seed][group] - by_loss["softmax"][seed][group] for seed in runs]
        for loss, runs in by_loss.items()
        for group in ("many", "medium", "few")
        if loss != "softmax"
    }
    p = corrected({key: scipy.stats.ttest_1samp(each, 0).pvalue for key, each in gains.items()})
    assert min(p.values()) == p["cb_focal", "few"] > 0.05


TRAINED = {  # experiments by the epochs of the softmax runs that they are compared with
    200: {"softmax": ("cifar10_curve", "paper_200_softmax"), "cb_focal": ("cifar10_curve", "paper_200_cb_focal")}
    | {"crt": ("cifar10_crt_200", "crt_of_200")},
    40: {"softmax": ("cifar10_curve", "short_40_softmax"), "cb_focal": ("cifar10_curve", "short_40_cb_focal")}
    | {name: ("cifar10_losses", name) for name in ("balanced_softmax", "ldam_drw", "crt", "sigmoid", "focal")}
    | {name: ("cifar10_losses", name) for name in ("cb_softmax", "cb_sigmoid", "cb_softmax_samples")}
    | {"inverse_frequency": ("cifar10_losses", "inverse_frequency")},
    20: {"softmax": ("cifar10_curve", "short_20_softmax"), "cb_focal": ("cifar10_curve", "short_20_cb_focal")},
}


HEADLINE = {  # methods in the table of the README
    **{"cb_focal": "CB-Focal", "crt": "Softmax, cRT"},
    **{"balanced_softmax": "Balanced softmax", "ldam_drw": "LDAM-DRW"},
}


def text_of(page: str) -> str:
    return " ".join((ROOT / page).read_text().split())


def corrected(p_values: dict) -> dict:
    """Return p after Holm's correction: the largest, over all p that are no larger, of p times the number left."""
    left = {key: sum(other >= p for other in p_values.values()) for key, p in p_values.items()}
    return {
        key: min(1.0, max(p_values[k] * left[k] for k in p_values if p_values[k] <= p)) for key, p in p_values.items()
    }


def test_statements_on_losses_match_the_rows() -> None:
    """Statements of README and the page of results, from the correct images of each class, scipy and another Holm."""
    runs = {
        (epochs, name): [accuracies(row) for row in rows(table) if row["experiment"] == experiment]
        for epochs, methods in TRAINED.items()
        for name, (table, experiment) in methods.items()
    }
    errors = {key: [100 - run["balanced"] for run in each] for key, each in runs.items()}
    gains = {
        (epochs, name): [x - y for x, y in zip(values, errors[epochs, "softmax"], strict=True)]
        for (epochs, name), values in errors.items()
        if name != "softmax"
    }
    p = corrected({key: scipy.stats.ttest_1samp(each, 0).pvalue for key, each in gains.items()})

    def spread(values: list[float]) -> str:
        return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"

    def change(epochs: int, name: str) -> str:
        mean, bounds = interval(gains[epochs, name])[:-1].split(" (")
        verdict = "significant" if p[epochs, name] < 0.05 else "not significant"
        dagger = "" if (epochs, name) in ((200, "cb_focal"), (40, "crt")) else "†"
        return f"{mean} points{dagger} (95 % CI {bounds}; {verdict}, p {p[epochs, name]:.2g})"

    readme, page = text_of("README.md"), text_of("docs/results.md")
    for name, title in HEADLINE.items():
        for epochs in (200, 40):
            if (epochs, name) in gains:
                shown = f"**{p[epochs, name]:.2g}**" if p[epochs, name] < 0.05 else f"{p[epochs, name]:.2g}"
                row = f"| {epochs} | {title} | {spread(errors[epochs, name])} | {interval(gains[epochs, name])}"
                assert re.search(rf"{re.escape(row)}†? \| {re.escape(shown)} \|", readme), row
    assert {key for key in p if p[key] < 0.05} == {(40, "balanced_softmax"), (40, "ldam_drw")}
    for sentence, key in (
        ("After 200 epochs, CB-Focal minus softmax is {}.", (200, "cb_focal")),
        ("Balanced softmax minus softmax is {}.", (40, "balanced_softmax")),
        ("LDAM-DRW minus softmax is {}.", (40, "ldam_drw")),
        ("against softmax, it is {} after 200 epochs.", (200, "crt")),
        ("After 40 epochs it is {}.", (40, "crt")),
    ):
        assert sentence.format(change(*key)) in page
    retrained = [row for table in ("cifar10_losses", "cifar10_crt_200") for row in rows(table)]
    assert max(float(row["seconds"]) for row in retrained if "crt" in row["experiment"]) < 60
    assert "(cRT) of a softmax network takes under a minute." in page
    ranges = []
    for name, paper in (("softmax", 29.64), ("cb_focal", 25.43)):
        values = errors[200, name]
        low, high = scipy.stats.t.interval(0.95, 2, statistics.mean(values), statistics.stdev(values) * (4 / 3) ** 0.5)
        assert low < paper < high
        ranges.append(f"{low:.1f} to {high:.1f} %")
    assert f"predict 95 % of further ones: {ranges[0]} for Softmax, and {ranges[1]} for CB-Focal." in page
    alone = scipy.stats.ttest_1samp(gains[200, "cb_focal"], 0).pvalue
    assert f"Alone, without correction, its p is {alone:.2g}." in page
    pairs = zip(errors[40, "balanced_softmax"], errors[40, "ldam_drw"], strict=True)
    mean, bounds = interval([x - y for x, y in pairs])[:-1].split(" (")
    assert f"no difference is shown: {mean} points ({bounds})" in page
    lengths = [f"{interval(gains[n, 'cb_focal'])[:-1]}; p {p[n, 'cb_focal']:.2g}) after {n}" for n in (20, 40, 200)]
    assert f"CB-Focal minus softmax is {', '.join(lengths)} epochs." in page
    for n in (40, 200):
        for group in ("many", "medium"):
            both = [statistics.mean(100 - run[group] for run in runs[n, name]) for name in ("cb_focal", "softmax")]
            assert f"{both[0]:.1f} instead of {both[1]:.1f} %" in page
    assert "CB-Focal) lowers the error: by 4.2 points in one run" in page
    assert round(29.64 - 25.43, 1) == 4.2
    means = {key: statistics.mean(each) for key, each in errors.items()}
    assert means[40, "balanced_softmax"] < min(mean for (epochs, _), mean in means.items() if epochs == 200)
    assert "balanced softmax has a lower mean error than each method that was run with 200" in page
    less = -statistics.mean(gains[40, "balanced_softmax"])
    assert f"balanced softmax has {less:.1f} points less error than softmax" in text_of("docs/results_recipe.md")


def test_the_picture_of_the_readme_shows_what_its_text_says() -> None:
    """Means over the four most frequent and the four rarest classes after 200 epochs."""
    frequent, rare = {}, {}
    for name in ("softmax", "cb_focal", "crt"):
        table, experiment = TRAINED[200][name]
        runs = [numbers(row["correct"]) for row in rows(table) if row["experiment"] == experiment]
        frequent[name] = statistics.mean(correct for run in runs for correct in run[:4])
        rare[name] = statistics.mean(correct for run in runs for correct in run[-4:])
    assert frequent["cb_focal"] < frequent["crt"] < frequent["softmax"]
    assert rare["softmax"] < min(rare["cb_focal"], rare["crt"])
    assert (
        "trades accuracy on the four most frequent classes for accuracy on rare ones. Classifier re-training (cRT)"
        " gives up less." in text_of("README.md")
    )


OTHER_DATA = {  # name of the table, folder and start of its experiments, and titles of the rows
    "cifar100": (
        "cifar100_losses",
        "",
        {"balanced_softmax": "Balanced softmax", "crt": "Softmax, cRT", "lws": "Softmax, LWS", "ldam_drw": "LDAM-DRW"}
        | {"cb_focal": "CB-Focal, γ 0.5, β 0.999", "cb_focal_paper": "CB-Focal, γ 1, β 0.9"}
        | {"cb_softmax": "CB-Softmax, β 0.99", "crt_over_smoothing": "Softmax, cRT with label over-smoothing"},
    ),
    "factor 200": (
        "cifar10_factors",
        "if200_",
        {"balanced_softmax": "Balanced softmax", "crt": "Softmax, cRT", "ldam_drw": "LDAM-DRW"}
        | {"cb_focal": "CB-Focal", "cb_softmax": "CB-Softmax"},
    ),
    "factor 10": (
        "cifar10_factors",
        "if10_",
        {"balanced_softmax": "Balanced softmax", "crt": "Softmax, cRT", "cb_focal": "CB-Focal"},
    ),
}


def against_softmax(name: str) -> tuple[dict, dict, dict]:
    """Return accuracies of the seeds, error minus that of softmax, and corrected p, by experiment."""
    folder, start, _ = OTHER_DATA[name]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows(folder):
        if row["experiment"].startswith(start):
            found.setdefault(row["experiment"].removeprefix(start), {})[row["seed"]] = accuracies(row)
    assert all(len(by_seed) == 3 for by_seed in found.values())
    softmax = found.pop("softmax")
    gains = {
        experiment: [softmax[seed]["balanced"] - run["balanced"] for seed, run in by_seed.items()]
        for experiment, by_seed in found.items()
    }
    return found, gains, corrected({key: scipy.stats.ttest_1samp(each, 0).pvalue for key, each in gains.items()})


@pytest.mark.parametrize("name", OTHER_DATA)
def test_tables_of_other_data_match_the_rows(name: str) -> None:
    found, gains, p = against_softmax(name)
    titles = OTHER_DATA[name][2]
    assert found.keys() == titles.keys()
    page = ROOT / "docs" / ("results_cifar100.md" if name == "cifar100" else "results_factors.md")
    table = page.read_text().partition(f"<!-- results {name} -->")[2].partition("<!-- end")[0]
    for experiment, title in titles.items():
        cells = row_of(table.replace("\N{NO-BREAK SPACE}", " "), f"40 | {title}")
        runs = found[experiment].values()
        groups = [group for group in ("many", "medium", "few") if group in next(iter(runs))]
        shown = ["balanced", *(groups if len(groups) > 1 else [])]  # one group has all classes
        errors = [[100 - run[group] for run in runs] for group in shown]
        spreads = [f"{statistics.mean(each):.1f} ± {statistics.stdev(each):.1f}" for each in errors]
        bold = "**" if p[experiment] < 0.05 else ""
        assert cells[:-1] == [*spreads, interval(gains[experiment]), f"{bold}{p[experiment]:.2g}{bold}"]


@pytest.mark.parametrize(
    ("name", "helpful", "harmful", "place", "statement"),
    [
        (
            "cifar100",
            {"balanced_softmax", "crt", "lws"},
            {"cb_focal"},
            "on [CIFAR-100](results_cifar100.md)",
            "balanced softmax, LWS and cRT help, and CB-Focal with γ 0.5 and β 0.999 harms.",
        ),
        (
            "factor 200",
            {"balanced_softmax", "crt", "ldam_drw"},
            {"cb_softmax", "cb_focal"},
            "At [imbalance factor 200](results_factors.md#imbalance-factor-200)",
            "balanced softmax, cRT and LDAM-DRW help, and CB-Softmax and CB-Focal harm.",
        ),
        (
            "factor 10",
            {"crt"},
            set(),
            "At [imbalance factor 10](results_factors.md#imbalance-factor-10)",
            "cRT helps.",
        ),
    ],
)
def test_statements_on_other_data_match_the_rows(
    name: str, helpful: set[str], harmful: set[str], place: str, statement: str
) -> None:
    _, gains, p = against_softmax(name)
    significant = {method: statistics.mean(each) < 0 for method, each in gains.items() if p[method] < 0.05}
    assert significant == dict.fromkeys(helpful, True) | dict.fromkeys(harmful, False)
    assert f"{place}, {statement}" in text_of("docs/results.md")
    if name == "cifar100":
        assert "No difference is shown for LDAM-DRW and for the paper's γ 1 and β 0.9." in text_of("docs/results.md")
        assert min(p["ldam_drw"], p["cb_focal_paper"]) >= 0.05
    page, weighted = (ROOT / "docs/which.md").read_text(), "cb_focal_paper" if name == "cifar100" else "cb_focal"
    data = "CIFAR-100" if name == "cifar100" else f"imbalance {name}"
    for method, title in (
        (weighted, "class weights, trained from scratch"),
        ("balanced_softmax", "logit adjustment (balanced softmax), trained from scratch"),
        ("crt", "second stage: classifier re-training (cRT)"),
    ):
        answer = {True: "**yes**", False: "**no**"}.get(significant.get(method), "not shown")
        assert row_of(page, f"{title}, {data}")[:2] == [answer, f"error {interval(gains[method])} after 40 epochs"]


def test_the_readme_says_what_helps_at_other_factors() -> None:
    for sentence in (
        "with 40 epochs, balanced softmax, cRT and LDAM-DRW help. Class weights from the first step harm.",
        "At factor 10 cRT helps. No difference is shown for balanced softmax and CB-Focal.",
    ):
        assert sentence in text_of("README.md")  # with test_statements_on_other_data_match_the_rows


CHANGES = {"wd2e-4": "weight decay 2e-4", "wd1e-3": "weight decay 1e-3", "randaugment": "RandAugment", "sam": "SAM"}


def test_recipes_match_the_rows() -> None:
    """Each change of the recipe with three seeds is compared with the same loss without it, over one family."""
    without = {
        "softmax": ("Softmax", "cifar10_curve", "short_40_softmax"),
        "balanced_softmax": ("Balanced softmax", "cifar10_losses", "balanced_softmax"),
        "cb_focal": ("CB-Focal", "cifar10_curve", "short_40_cb_focal"),
        "ldam_drw": ("LDAM-DRW", "cifar10_losses", "ldam_drw"),
    }
    table = (ROOT / "docs/results_recipe.md").read_text().partition("<!-- recipes -->")[2].partition("<!-- end -->")[0]
    table = table.replace("\N{NO-BREAK SPACE}", " ").replace("†", "")
    gains, lines = {}, {}
    for loss, (title, folder, experiment) in without.items():
        plain = {row["seed"]: accuracies(row) for row in rows(folder) if row["experiment"] == experiment}
        for change, text in CHANGES.items():
            name = f"{loss}_{change}"
            runs = {row["seed"]: accuracies(row) for row in rows("cifar10_recipes") if row["experiment"] == name}
            if len(runs) < 3:
                continue
            gains[name] = [plain[seed]["balanced"] - run["balanced"] for seed, run in runs.items()]
            errors = [[100 - run[group] for run in runs.values()] for group in ("balanced", "many", "medium")]
            spreads = [f"{statistics.mean(each):.1f} ± {statistics.stdev(each):.1f}" for each in errors]
            lines[name] = f"| {title} | {text} | {' | '.join(spreads)} | {interval(gains[name])} |"
    p = corrected({name: scipy.stats.ttest_1samp(each, 0).pvalue for name, each in gains.items()})
    assert gains
    shown_to_help = [name for name, each in gains.items() if p[name] < 0.05 and statistics.mean(each) < 0]
    said = "No gain is shown so far for RandAugment or weight decay 1e-3." in text_of("docs/results_recipe.md")
    assert said == (not shown_to_help)
    for name, line in lines.items():
        shown = f"**{p[name]:.2g}**" if p[name] < 0.05 else f"{p[name]:.2g}"
        assert f"{line} {shown} |" in table
    assert table.count("\n| ") == len(gains) + len({name.rpartition("_")[0] for name in gains}) + 2  # and header


SEVERAL = {  # rows of the page's tables by the experiments of the kept rows
    "sigmoid": "Sigmoid",
    "focal": "Focal, γ 1",
    "asymmetric": "ASL",
    "distribution_balanced": "DB, γ 2",
    "cb_sigmoid": "CB-Sigmoid, β 0.9999",
    "cb_sigmoid_label": "CB-Sigmoid, β 0.9999, weight of the label",
    "cb_sigmoid_positive": "CB-Sigmoid, β 0.9999, weight of the positive",
    "cb_focal": "CB-Focal, γ 1, β 0.9999",
    "cb_focal_label": "CB-Focal, γ 1, β 0.9999, weight of the label",
    "cb_focal_positive": "CB-Focal, γ 1, β 0.9999, weight of the positive",
}


@pytest.mark.parametrize(
    ("name", "significant"),
    [("several_labels", set()), ("several_labels_fashion", {"focal", "cb_sigmoid_label", "cb_focal_label"})],
)
def test_tables_of_several_labels_match_their_rows(name: str, significant: set[str]) -> None:
    page = (ROOT / "docs/several_labels.md").read_text().partition(f"<!-- several results/{name} -->")[2]
    by_loss: dict[str, dict[str, tuple[float, float]]] = {}
    for row in rows(name):
        precision, counts = [float(v) for v in row["average_precision"].split()], numbers(row["class_counts"])
        few = [p for p, n in zip(precision, counts, strict=True) if n < 20]
        by_loss.setdefault(row["experiment"], {})[row["seed"]] = statistics.mean(precision), statistics.mean(few)
    assert by_loss.keys() == SEVERAL.keys()
    gains = {
        (loss, part): [each[part] - by_loss["sigmoid"][seed][part] for seed, each in runs.items()]
        for loss, runs in by_loss.items()
        for part in (0, 1)
    }
    p = corrected({key: scipy.stats.ttest_1samp(g, 0).pvalue for key, g in gains.items() if key[0] != "sigmoid"})
    assert {key for key in p if p[key] < 0.05} == {(loss, 0) for loss in significant}
    for loss, title in SEVERAL.items():
        cells = re.search(rf"^\| {re.escape(title)} \| (.*) \|$", page, re.MULTILINE)[1].split(" | ")
        means, few = zip(*by_loss[loss].values(), strict=True)
        assert cells[0] == f"{statistics.mean(means):.1f} ± {statistics.stdev(means):.1f}"
        assert cells[5] == f"{statistics.mean(few):.1f}"
        for column, part in ((1, 0), (6, 1)):
            said = ("–", "–") if loss == "sigmoid" else (interval(gains[loss, part]), f"{p[loss, part]:.2g}")
            assert (cells[column], cells[column + 1].strip("*")) == said


def interval(gains: list[float], sign: int = 1, digits: int = 1) -> str:
    """Return mean and 95 % interval of Student's t, of the gains or, by the sign, of the losses."""
    gains = [sign * gain for gain in gains]
    mean, error = statistics.mean(gains), statistics.stdev(gains) / math.sqrt(len(gains))
    low, high = scipy.stats.t.interval(0.95, len(gains) - 1, mean, error)
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_reports_in_pages_match_the_rows(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "docs")
    from pages import filled

    assert filled(page.read_text()) == page.read_text()


def test_the_report_page_matches_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "docs")
    from pages import campaign

    kept = (ROOT / "docs/report.html").read_text()
    made, page = (re.sub("<script>.*?</script>", "", text, count=1, flags=re.DOTALL) for text in (campaign(), kept))
    assert page == made  # except Vega, whose version may be newer
    for row in rows("cifar10_curve"):
        assert all(f"<td>{name}</td>" in page for name in row["class_names"].split(";"))


def test_the_regret_of_heads_matches_its_rows() -> None:
    with (ROOT / "results/heads.csv").open() as stream:
        tasks = list(csv.DictReader(stream))
    page = text_of("docs/results_heads.md")

    def losses(name: str, other: str = "best") -> list[float]:
        return [float(row[other]) - float(row[name]) for row in tasks]

    def by_set(values: list[float]) -> list[float]:
        names = dict.fromkeys(row["data"] for row in tasks)
        return [statistics.mean(v for v, row in zip(values, tasks, strict=True) if row["data"] == d) for d in names]

    fixed = "balanced_softmax_0.1"
    means = {
        name: statistics.mean(by_set(losses(name))) for name in ("recommended", fixed, "logistic", "ridge", "softmax")
    }
    assert f"costs {means['recommended']:.2f} points of balanced accuracy" in page
    rivals = f"{means['ridge']:.1f} to {means['logistic']:.1f}, and plain softmax {means['softmax']:.1f}."
    assert f"at the best fixed λ, 0.1, costs {means[fixed]:.2f}, scikit-learn's methods {rivals}" in page
    assert f"{interval(by_set(losses(fixed, 'recommended')), digits=2)} points" in page
    best_fixed = [max(float(row[f"balanced_softmax_{v}"]) for v in ("0.03", "0.1", "0.3")) for row in tasks]
    worst = max(best - float(row["recommended"]) for best, row in zip(best_fixed, tasks, strict=True))
    assert worst <= 2
    assert f"at most {worst:.1f} points below the best of the three λ on a task" in page
    for strength, data, title in (("0.3", "cifar100", "CIFAR-100"), ("0.03", "cifar10", "CIFAR-10")):
        own = [row for row in tasks if row["data"] == data]
        lost = statistics.mean(float(row["best"]) - float(row[f"balanced_softmax_{strength}"]) for row in own)
        assert re.search(rf"λ = {strength} costs {lost:.1f} (points )?on {title}", page)
    gains = losses("softmax", "recommended")
    covered = sum(float(row["low"]) <= gain <= float(row["high"]) for gain, row in zip(gains, tasks, strict=True))
    assert f"holds the gain on the test images in {covered} of {len(tasks)} tasks" in page
    optimism = statistics.mean(float(row["gain_by_folds"]) - gain for gain, row in zip(gains, tasks, strict=True))
    assert f"{optimism:.1f} points too high on average" in page
    shown = [gain for gain, row in zip(gains, tasks, strict=True) if float(row["low"]) > 0]
    assert min(shown) > 0
    assert f"shown to beat plain softmax in {len(shown)} tasks, and does in {sum(gain > 0 for gain in gains)}" in page
    assert all(1e-4 < float(row["logistic_setting"]) < 1e3 for row in tasks)  # no end of the grids
    assert all(1e-3 < float(row["ridge_setting"]) < 1e6 for row in tasks)
    repeats = [row["repeats_that_choose_it"] for row in tasks]
    assert f"choose the same head in {repeats.count('3')} of {len(tasks)} tasks. In {repeats.count('0')} tasks" in page
    with (ROOT / "results/heads_rules.csv").open() as stream:
        assert float(next(csv.DictReader(stream))["mean"]) == pytest.approx(means["recommended"], abs=2e-3)


def read(name: str) -> list[dict[str, str]]:
    with (ROOT / "results" / name).open() as stream:
        return list(csv.DictReader(stream))


def row_of(page: str, title: str) -> list[str]:
    """Return the cells of a row of a page's table, without its title."""
    (line,) = re.findall(rf"^\| {re.escape(title)} \| (.*) \|$", page, re.MULTILINE)
    return line.split(" | ")


def test_the_answers_of_which_match_their_rows() -> None:
    page = (ROOT / "docs/which.md").read_text()
    scores = {
        (row["question"], row["method"], row["data"], row["subset_seed"]): float(row["score"])
        for row in read("which.csv")
    }

    def paired(question: str, method: str, rival: str) -> list[float]:
        tasks = [key[2:] for key in scores if key[:2] == (question, method)]
        assert len(tasks) == len(set(tasks)) == 6
        return [scores[question, method, *task] - scores[question, rival, *task] for task in tasks]

    def over_sets(method: str, rival: str) -> list[float]:
        tasks = read("heads.csv")
        names = {row["data"] for row in tasks}
        assert len(names) == 5
        return [
            statistics.mean(float(row[method]) - float(row[rival]) for row in tasks if row["data"] == name)
            for name in sorted(names)
        ]

    tuned = {(row["data"], row["subset_seed"], row["backbone"], row["method"]): row for row in read("finetune.csv")}
    adjusted, prior = "logit adjustment", "over `--prior uniform`, tail inverted"
    labelled = ("least confident", "smallest balanced margin", "rarest predicted class")
    gains = {
        ("class weights, head", "over softmax"): over_sets("cb_softmax", "softmax"),
        ("class weights instead of logit adjustment, head", "over logit adjustment"): over_sets(
            "cb_softmax", "balanced_softmax_0.1"
        ),
        ("logit adjustment, head", "over softmax"): over_sets("balanced_softmax_0.1", "softmax"),
        ("oversampling instead of logit adjustment, head", "over logit adjustment"): paired(
            "head", "oversampling", adjusted
        ),
        ("LDA head", "over logit adjustment"): paired("head", "discriminant analysis", adjusted),
        ("synthetic features", "over logit adjustment"): paired("head", "synthetic features", adjusted),
        ("test-time views", "by the mirror image"): paired("head", "logit adjustment, two views", adjusted),
        ("prior correction by EM", prior): paired("prior", "inverted: EM", "inverted: uniform"),
        **{(rule, "labels"): paired("labels", rule, "random") for rule in labelled},
    }
    for method, title in (("fine-tuned", "fine-tuning all weights"), ("lora", "adapters (LoRA)")):
        found = [key for key in tuned if key[3] == method and (*key[:3], "head") in tuned]
        pairs = [(tuned[key], tuned[(*key[:3], "head")]) for key in found]
        if len(pairs) > 2:
            values = [float(a["balanced_accuracy"]) - float(b["balanced_accuracy"]) for a, b in pairs]
            gains[title, "over the head"] = values
    of_heads = list(gains)[:3]
    of_tuning = [key for key in gains if key[1] == "over the head"]
    p: dict = {}
    for family in (of_heads, [key for key in gains if key not in of_heads + of_tuning], of_tuning):  # by file
        p |= corrected({key: scipy.stats.ttest_1samp(gains[key], 0).pvalue for key in family})
    best = max(labelled, key=lambda rule: statistics.mean(gains[rule, "labels"]))
    gains["active labelling", f"over random images ({best})"] = gains[best, "labels"]
    p["active labelling", f"over random images ({best})"] = p[best, "labels"]
    for (title, rest), values in gains.items():
        if rest == "labels":
            continue
        answer, text, _ = row_of(page, title)
        assert text == f"{interval(values)} points {rest}"
        helps = "**yes**" if statistics.mean(values) > 0 else "**no**"
        assert answer == (helps if p[title, rest] < 0.05 else "not shown")
    errors = {
        key: [100 - accuracies(row)["balanced"] for row in rows(table) if row["experiment"] == experiment]
        for key, (table, experiment) in {
            (n, name): place for n, methods in TRAINED.items() for name, place in methods.items()
        }.items()
    }
    for title, name, epochs, answer in (
        ("class weights, trained from scratch", "cb_focal", (200, 40), "not shown"),
        ("logit adjustment (balanced softmax), trained from scratch", "balanced_softmax", (40,), "**yes**"),
        ("second stage: classifier re-training (cRT)", "crt", (200, 40), "not shown"),
    ):
        changes = [[x - y for x, y in zip(errors[n, name], errors[n, "softmax"], strict=True)] for n in epochs]
        texts = [f"{interval(change)} after {n} epochs" for n, change in zip(epochs, changes, strict=True)]
        assert [cell.replace("†", "") for cell in row_of(page, title)[:2]] == [
            answer,
            f"error {', '.join(texts)}",
        ]  # p: test_statements_on_losses


def test_the_tables_of_which_match_their_rows() -> None:
    page = (ROOT / "docs/which.md").read_text()

    def mean(rows: list[dict[str, str]], column: str) -> float:
        return statistics.mean(float(row[column]) for row in rows)

    corrections = (("none", "none"), ("uniform", "`--prior uniform`"), ("EM", "EM"), ("true", "the true prior"))
    for name, title in corrections:
        for cell, kind in zip(row_of(page, title), ("as in training", "uniform", "inverted"), strict=True):
            found = [row for row in read("which.csv") if row["method"] == f"{kind}: {name}"]
            assert len(found) == 6
            assert cell == f"{mean(found, 'score'):.1f}"
    for rule, title in (
        ("softmax, all images together", "softmax, one threshold (split conformal)"),
        ("balanced, each class alone", "a threshold for each class (Mondrian)"),
        ("lt_cb", "`--sets 0.9`"),
    ):
        found = [row for row in read("answers_sets.csv") if (row["method"], row["level"]) == (rule, "0.9")]
        shares = [f"{100 * mean(found, column):.0f} %" for column in ("coverage", "few", "worst_class")]
        assert row_of(page, title) == [*shares, f"{mean(found, 'size'):.1f}"]
        assert len(found) == 9
    for score, title in (
        ("self-confidence", "self-confidence, as in cleanlab"),
        ("balanced posterior", "`suspects.csv`"),
    ):
        found = [row for row in read("answers_suspects.csv") if row["method"] == score]
        wrong, all_clean = (sum(int(row[f"clean_tail{part}"]) for row in found) for part in ("_in_worst_tenth", ""))
        assert row_of(page, title) == [f"{mean(found, 'auroc'):.3f}", f"{wrong} of {all_clean}"]


def test_every_row_has_its_configuration() -> None:
    for table in filter(Path.is_dir, (ROOT / "results").iterdir()):
        used = {row["config"] for row in rows(table.name)}
        assert {file.stem for file in (table / "configs").iterdir()} == used


def test_fit_accepts_every_kept_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # of sources that recipes were chosen by
    files = {tuple(flatten(yaml.safe_load(file.read_text()))): file for file in (ROOT / "results").glob("*/configs/*")}
    for file in files.values():  # one of each set of options
        with pytest.raises(SystemExit, match="0"):
            main(["fit", "--config", str(file), "--print_config"])
        kept, now = yaml.safe_load(file.read_text()), yaml.safe_load(capsys.readouterr().out)
        assert {**now["data"], **kept["data"]} == now["data"]
        loss = now["model"]["loss"]["init_args"]  # which has got options since
        kept["model"]["loss"]["init_args"] = {**loss, **kept["model"]["loss"]["init_args"]}
        assert {**now["model"], **kept["model"]} == now["model"]
