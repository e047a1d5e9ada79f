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

ROOT = Path(__file__).parents[1]
LOSSES = {
    "softmax": "softmax",
    "focal": "focal (γ = 1)",
    "cb_softmax": "class-balanced softmax (β = 0.9999)",
    "cb_focal": "class-balanced focal (γ = 1, β = 0.9999)",
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
    page = (ROOT / "README.md").read_text().partition("## Your own images")[0]
    for loss, title in LOSSES.items():
        (line,) = re.findall(rf"^\| {re.escape(title)} \| (.*) \|$", page, re.MULTILINE)
        balanced, difference, *groups = line.split(" | ")
        runs = by_loss[loss]
        assert len(runs) == 10
        for name, cell in zip(("balanced", "many", "medium", "few"), (balanced, *groups), strict=True):
            values = [run[name] for run in runs.values()]
            assert cell == f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
        if loss == "softmax":
            assert difference == "–"
            continue
        assert difference == interval([runs[s]["balanced"] - by_loss["softmax"][s]["balanced"] for s in runs])
    apart = {}
    for loss, runs in by_loss.items():
        for group in ("many", "medium", "few"):
            gains = [runs[seed][group] - by_loss["softmax"][seed][group] for seed in runs]
            low, high = re.findall(r"[(o] ?([+-][\d.]+)", interval(gains)) if loss != "softmax" else ("-", "+")
            if low[0] == high[0]:
                apart[loss, group] = interval(gains)
    assert apart == {("cb_focal", "few"): "+4.4 (+0.4 to +8.4)"}
    assert "class-balanced focal loss on few-shot classes, +4.4 points (95 % CI +0.4 to +8.4)" in " ".join(page.split())


@pytest.mark.parametrize("length", ["short_20", "short_40", "paper_200"])
def test_sentences_on_the_claim_of_the_paper_match_the_rows(length: str) -> None:
    by_method = {
        method: {
            row["seed"]: accuracies(row) for row in rows("cifar10_curve") if row["experiment"] == f"{length}_{method}"
        }
        for method in ("softmax", "cb_focal")
    }
    softmax, focal = ([by_method[method][seed] for seed in ("0", "1", "2")] for method in by_method)

    def spread(runs: list[dict[str, float]], group: str = "balanced") -> str:
        values = [100 - run[group] if group == "balanced" else run[group] for run in runs]
        return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"

    more = interval([f["balanced"] - s["balanced"] for s, f in zip(softmax, focal, strict=True)], sign=-1)
    readme = " ".join((ROOT / "README.md").read_text().split())
    page = " ".join((ROOT / "docs/results.md").read_text().split())
    for text in (page,) if length == "short_20" else (readme, page):
        assert f"{spread(softmax)} % with softmax and {spread(focal)} % with class-balanced focal loss" in text
        assert f"{more} points" in text
    for group in ("many", "medium") if length != "short_20" else ():
        gain = interval([f[group] - s[group] for s, f in zip(softmax, focal, strict=True)])
        said = f"{spread(softmax, group)} % with softmax, {spread(focal, group)} % with class-balanced focal ({gain})"
        assert said in page


def test_sentences_on_other_losses_match_the_rows() -> None:
    def balanced(table: str, experiment: str) -> dict[str, float]:
        return {r["seed"]: accuracies(r)["balanced"] for r in rows(table) if r["experiment"] == experiment}

    page = " ".join((ROOT / "docs/results.md").read_text().split())
    readme = " ".join((ROOT / "README.md").read_text().split())
    for table, experiment, softmax, sentence in (
        (
            "cifar10_losses",
            "balanced_softmax",
            "short_40_softmax",
            "balanced softmax (which equals logit adjustment with τ = 1), {} % or {} points",
        ),
        ("cifar10_losses", "ldam_drw", "short_40_softmax", "LDAM-DRW, {} % or {} points"),
        ("cifar10_losses", "crt", "short_40_softmax", "has {} % error, {} points against softmax on the same seeds"),
        ("cifar10_crt_200", "crt_of_200", "paper_200_softmax", "softmax runs has {} % error, {} points against those"),
    ):
        reference, values = balanced("cifar10_curve", softmax), balanced(table, experiment)
        errors = [100 - value for value in values.values()]
        spread = f"{statistics.mean(errors):.1f} ± {statistics.stdev(errors):.1f}"
        said = sentence.format(spread, interval([values[s] - reference[s] for s in ("0", "1", "2")], sign=-1))
        assert said in page
        assert experiment != "balanced_softmax" or f"{spread} % with balanced softmax" in readme
    verdicts = {"lower": set(), "higher": set()}
    reference = balanced("cifar10_curve", "short_40_softmax")
    for experiment in {row["experiment"] for row in rows("cifar10_losses")} - {"short_40_softmax"}:
        values = balanced("cifar10_losses", experiment)
        low, high = re.findall(r"[(o] ?([+-][\d.]+)", interval([values[s] - reference[s] for s in reference]))
        if low[0] == high[0]:
            verdicts["lower" if low[0] == "+" else "higher"].add(experiment)
    assert verdicts == {
        "lower": {"balanced_softmax", "ldam_drw", "crt"},
        "higher": {"cb_sigmoid", "inverse_frequency", "cb_softmax_samples"},
    }


SEVERAL = {  # rows of the page's tables by the experiments of the kept rows
    "sigmoid": "sigmoid",
    "focal": "focal (γ = 1)",
    "asymmetric": "asymmetric",
    "distribution_balanced": "distribution-balanced",
    "cb_sigmoid": "sigmoid, CB β 0.9999",
    "cb_sigmoid_label": "sigmoid, CB β 0.9999 by label",
    "cb_sigmoid_positive": "sigmoid, CB β 0.9999 by positive",
    "cb_focal": "focal (γ = 1), CB β 0.9999",
    "cb_focal_label": "focal (γ = 1), CB β 0.9999 by label",
    "cb_focal_positive": "focal (γ = 1), CB β 0.9999 by positive",
}


@pytest.mark.parametrize("name", ["several_labels", "several_labels_fashion"])
def test_tables_of_several_labels_match_their_rows(name: str) -> None:
    page = (ROOT / "docs/several_labels.md").read_text().partition(f"<!-- several results/{name} -->")[2]
    by_loss: dict[str, dict[str, tuple[float, float]]] = {}
    for row in rows(name):
        precision, counts = [float(v) for v in row["average_precision"].split()], numbers(row["class_counts"])
        few = [p for p, n in zip(precision, counts, strict=True) if n < 20]
        by_loss.setdefault(row["experiment"], {})[row["seed"]] = statistics.mean(precision), statistics.mean(few)
    assert by_loss.keys() == SEVERAL.keys()
    for loss, title in SEVERAL.items():
        cells = re.search(rf"^\| {re.escape(title)} \| (.*) \|$", page, re.MULTILINE)[1].split(" | ")
        means, few = zip(*by_loss[loss].values(), strict=True)
        assert cells[0] == f"{statistics.mean(means):.1f} ± {statistics.stdev(means):.1f}"
        assert cells[4] == f"{statistics.mean(few):.1f}"
        for column, part in ((1, 0), (5, 1)):
            gains = [each[part] - by_loss["sigmoid"][seed][part] for seed, each in by_loss[loss].items()]
            assert cells[column] == ("–" if loss == "sigmoid" else interval(gains))


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
    page = " ".join((ROOT / "docs/results.md").read_text().split())

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


def test_every_row_has_its_configuration() -> None:
    for table in filter(Path.is_dir, (ROOT / "results").iterdir()):
        used = {row["config"] for row in rows(table.name)}
        assert {file.stem for file in (table / "configs").iterdir()} == used


def test_fit_accepts_every_kept_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # of sources that recipes were chosen by
    for file in sorted((ROOT / "results").glob("*/configs/*.yaml")):
        with pytest.raises(SystemExit, match="0"):
            main(["fit", "--config", str(file), "--print_config"])
        kept, now = yaml.safe_load(file.read_text()), yaml.safe_load(capsys.readouterr().out)
        assert {**now["data"], **kept["data"]} == now["data"]
        loss = now["model"]["loss"]["init_args"]  # which has got options since
        kept["model"]["loss"]["init_args"] = {**loss, **kept["model"]["loss"]["init_args"]}
        assert {**now["model"], **kept["model"]} == now["model"]
