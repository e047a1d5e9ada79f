"""Reports of runs, compared with the numbers in their files."""

import contextlib
import csv
import itertools
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import scipy.stats
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score
from strategies import places
from torchmetrics.functional.classification import multiclass_calibration_error

from lt_cb.__main__ import main
from lt_cb.errors import InputError
from lt_cb.lab.report import collect, read_run
from lt_cb.lab.report.figures import figures, rows_of, styles_of
from lt_cb.lab.report.finding import finding
from lt_cb.lab.report.posthoc import class_means
from lt_cb.lab.report.sections import sections
from lt_cb.lab.report.tables import cells_of


def report(folder: Path, *options: str) -> str:
    """Run ``lt-cb report`` and return ``report.md``."""
    with pytest.raises(SystemExit, match="0"):
        main(["report", str(folder), *options])
    return (folder / "report.md").read_text()


def write(
    folder: Path,
    error: float,
    *,
    checkpoint: str = "last",
    loss: str = "SoftmaxLoss",
    beta: float | None = None,
    gamma: float | None = None,
    source: str = "cifar10",
    factor: float | None = 100,
    seed: int = 0,
    top5: float | None = None,
    epochs: int | None = None,
    data: dict | None = None,
    trainer: dict | None = None,
    weighting: str | None = None,
    **config: object,
) -> None:
    """Write the files of a run with these errors in percent, and further options of ``data`` and ``model``."""
    arguments: dict = {"reduction": "mean", "weighting": weighting} | ({} if gamma is None else {"gamma": gamma})
    if beta is not None:
        arguments["weighting"] = {"class_path": "lt_cb.losses.EffectiveNumber", "init_args": {"beta": beta}}
    folder.mkdir(parents=True)
    resolved = {
        "seed_everything": seed,
        "model": {"loss": {"class_path": f"lt_cb.losses.{loss}", "init_args": arguments}, **config},
        "data": {"source": source, "imbalance_factor": factor, "root": f"/somewhere/{seed}", **(data or {})},
        "trainer": trainer or {},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(resolved))
    accuracy = 1 - error / 100
    metrics = {"acc": accuracy, "balanced_acc": accuracy, "acc/many": accuracy + 0.01, "acc/few": accuracy - 0.02}
    metrics |= {} if top5 is None else {"acc_top5": 1 - top5 / 100}
    result = {
        "metrics": {f"test/{name}": value for name, value in metrics.items()},
        "class_counts": [5000, 500, 50],
        "per_class_accuracy": [accuracy, accuracy, None],
        "seeds": {"seed_everything": seed, "subset_seed": 0},
        "shot_groups": {"many": [0, 1], "medium": [2]},
        "epochs": epochs,
        "checkpoint": f"somewhere/checkpoints/{checkpoint}.ckpt",
        "wall_time_s": {"fit": 10.0, "test": 1.0},
    }
    (folder / "result.json").write_text(json.dumps(result))


def table(page: str, title: str) -> dict[tuple[str, ...], dict[str, str]]:
    """Return the rows of a section by their first cell, or first two where there is a data column."""
    section = page.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [[c.strip() for c in row.strip("|").split("|")] for row in section.splitlines() if row.startswith("|")]
    header, _, *rows = lines
    keys = 2 if "data" in header else 1
    return {tuple(row[:keys]): dict(zip(header, row, strict=True)) for row in rows}


def errors(folder: Path) -> dict[str, str]:
    """Return the error of each method, on one data set."""
    return {method: str(cell) for (method, _), cell in cells_of(collect(folder)).items()}


@pytest.mark.parametrize(("changed", "has"), [({}, True), ({"prior": [0.4, 0.3, 0.3]}, False)])
def test_a_tested_checkpoint_has_the_validation_metrics_of_its_training(
    tmp_path: Path, changed: dict, has: bool
) -> None:
    write(tmp_path / "trained", 30.0)
    (tmp_path / "trained/metrics.csv").write_text("epoch,val/acc,val/balanced_acc\n0,0.5,0.5\n1,0.6,0.6\n")
    write(tmp_path / "tested", 30.0)
    result = json.loads((tmp_path / "tested/result.json").read_text())
    result |= {"checkpoint": str(tmp_path / "trained/checkpoints/last.ckpt"), "validated_on": "held_out", **changed}
    (tmp_path / "tested/result.json").write_text(json.dumps(result))
    assert read_run(tmp_path / "tested").metrics.get("val/acc") == (0.6 if has else None)


def test_means_differences_and_the_paper(tmp_path: Path) -> None:
    errors = {"plain": [29.0, 30.0, 31.0], "cb": [25.0, 25.1, 25.2]}
    for seed in range(3):
        write(tmp_path / f"a/{seed}", errors["plain"][seed], seed=seed)
        write(tmp_path / f"b/{seed}", errors["cb"][seed], loss="FocalLoss", gamma=1.0, beta=0.9999, seed=seed)
    write(tmp_path / "c", 77.0, source="lt_cb.data.sources.Digits", factor=50)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/config.yaml").write_text("{}")
    (tmp_path / "d/error.txt").write_text("it broke")
    page = report(tmp_path)
    error = table(page, "Error")
    plain, cb = error["Softmax",], error["CB-Focal, γ 1, β 0.9999",]
    assert plain["CIFAR10 IF 100"] == f"30.00 ± {statistics.stdev(errors['plain']):.2f}"
    assert cb["CIFAR10 IF 100"] == f"25.10 ± {statistics.stdev(errors['cb']):.2f}"
    assert (plain["Digits IF 50"], cb["Digits IF 50"]) == ("77.00 (1 of 3 seeds)", "–")

    paper = table(page, "Beside the paper")  # 29.64 and 25.43 there
    row = paper["Softmax", "CIFAR10 IF 100"]
    assert (row["paper"], row["difference"], row["inside"]) == ("29.64", "+0.36", "yes")
    row = paper["CB-Focal, γ 1, β 0.9999", "CIFAR10 IF 100"]
    assert (row["paper"], row["difference"], row["inside"]) == ("25.43", "-0.33", "yes")
    low, high = scipy.stats.t.interval(0.95, 2, 25.1, 0.1 * math.sqrt(1 + 1 / 3))
    assert row["prediction interval"] == f"{low:.2f} to {high:.2f}"

    difference = table(page, "Error, differences")["CB-Focal, γ 1, β 0.9999", "CIFAR10 IF 100"]
    assert difference["difference"] == "-4.90"
    low, high = map(float, difference["95 % CI"].split(" to "))
    changes = [b - a for a, b in zip(errors["plain"], errors["cb"], strict=True)]
    expected = scipy.stats.t.interval(0.95, 2, -4.9, statistics.stdev(changes) / math.sqrt(3))
    assert (low, high) == pytest.approx(expected, abs=0.006)
    p = scipy.stats.ttest_rel(errors["cb"], errors["plain"]).pvalue
    assert difference["p (Holm)"] == f"**{p:.2g}**"  # the only comparison of these data
    assert table(page, "Missing runs")[str(tmp_path / "d"),]["state"] == "failed"
    assert table(page, "Error, differences")["Softmax", "CIFAR10 IF 100"]["few"] == "32.00 ± 1.00"
    with (tmp_path / "report.csv").open() as stream:
        rows = {row["folder"]: float(row["error"]) for row in csv.DictReader(stream)}
    assert rows[str(tmp_path / "a/1")] == 30.0
    web = (tmp_path / "report.html").read_text()
    assert "<td>25.10 ± 0.10</td>" in web
    sentence = (
        f"CB-Focal, γ 1, β 0.9999 vs Softmax: 4.9 points lower error, significant with 3 seeds (95 % CI {low:+.1f}"
    )
    assert sentence in page.partition("## ")[0]
    assert sentence in web.partition("<h2>")[0]
    means = {(r["dataset"], r["method"]): r["value"] for r in pictures(web)["means"]["data"]["values"] if "mean" in r}
    assert means["CIFAR10 IF 100", "CB-Focal, γ 1, β 0.9999"] == pytest.approx(25.1)


def pictures(web: str) -> dict[str, dict]:
    """Return the Vega-Lite specifications in a page."""
    return json.loads(web.split('id="pictures">')[1].split("</script>")[0])["specs"]


class Page(HTMLParser):
    """Parsed page: tags, attributes, and texts by tag."""

    def __init__(self, web: str) -> None:
        super().__init__()
        self.tags = [""]
        self.attributes: dict[str, list[str | None]] = {}
        self.texts: dict[str, list[str]] = {}
        self.feed(web)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(f"{tag} {name}", []).append(value)

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.tags[-1], []).append(data)


EVIL = [
    '</script><script src="//x.y"></script><img onerror=alert(1)>\u2028',
    "\"say\" & 'said' {{7*7}} ${7*7} `a` **b** | c; d % %3B",
    "ünïcödé 漢字 " + "long " * 50,
]


@pytest.mark.parametrize("kept", [False, True])
def test_names_are_plain_text_and_a_page_loads_nothing(kept: bool, tmp_path: Path) -> None:
    loss, data = EVIL[1], "<b>'\"&{{1}}"
    for seed in range(2):
        for folder, rate in (("a", 30.0), ("b", 20.0)):
            run = tmp_path / "runs" / f"{folder}<b>" / str(seed)
            of = {"loss": "SoftmaxLoss" if folder == "a" else loss, "source": "image_folder", "factor": None}
            write(
                run, rate + seed * (rate - 15), seed=seed, data={"root": f"/x/{data}"}, **of
            )  # nothing is significant
            result = json.loads((run / "result.json").read_text())
            confusion = [[1, 2, 3], [0, 5, 1], [0, 0, 9]]
            result |= {"class_names": EVIL, "confusion": confusion, "test_counts": [6, 6, 9]}
            (run / "result.json").write_text(json.dumps(result))
    folder = tmp_path / "runs"
    if kept:
        with pytest.raises(SystemExit, match="0"):
            main(["report", str(folder), "--save", str(tmp_path / "kept")])
        folder = tmp_path / "kept"
    with pytest.raises(SystemExit, match="0"):
        main(["report", str(folder)])
    web = (folder / "report.html").read_text()
    page = Page(web)
    assert page.tags.count("script") == 3
    assert not {"img", "link", "iframe", "object", "a", "base", "b"} & set(page.tags)
    assert "script src" not in page.attributes
    assert any("default-src 'none'" in (content or "") for content in page.attributes["meta content"])
    assert set(EVIL) <= set(page.texts["td"])
    assert page.attributes["option value"] == [data, loss, "Softmax"]
    specs = pictures(web)
    counts = [row for row in specs["confusion"]["data"]["values"] if row["method"] == "Softmax"]
    assert [row["count"] for row in counts] == [2, 4, 6, 0, 10, 2, 0, 0, 18]  # over both seeds
    assert list(dict.fromkeys(row["true"] for row in counts)) == EVIL
    assert {row["dataset"] for row in counts} == {data}
    assert any(param.get("bind") == "legend" for param in specs["error_by_class"]["params"])
    for spec in specs.values():  # names are data and domains, never expressions
        tests = [t["filter"] for part in (spec, *spec["layer"]) for t in part.get("transform", [])]
        assert not any(name in json.dumps(tests, ensure_ascii=False) for name in (*EVIL, data))
    error = (folder / "report.md").read_text().split("## Error")[1].split("##")[0].splitlines()
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in error if line.startswith("|")}) == 1


@pytest.mark.parametrize(("kind", "inch"), [("svg", 1.0), ("pdf", 72.0)])
def test_figures_for_a_paper_have_its_width_and_font(kind: str, inch: float, tmp_path: Path) -> None:
    for seed in range(2):
        write(tmp_path / f"a/{seed}", 30.0 + seed, seed=seed)
        write(tmp_path / f"b/{seed}", 25.0, beta=0.99, seed=seed)
    with pytest.raises(SystemExit, match="0"):
        main(["report", str(tmp_path), "--figures", kind])
    pattern = (
        rb'<svg[^>]* width="([\d.]+)in" height="[\d.]+in" viewBox="0 0 351 '
        if kind == "svg"
        else rb"MediaBox *\[ *0 0 ([\d.]+)"
    )
    files = {file.stem: file.read_bytes() for file in (tmp_path / "figures").iterdir()}
    widths = {name: float(re.search(pattern, content)[1]) / inch for name, content in files.items()}
    drawn = {"means": 2 + 4, "error_by_class": 2 * 2 * 3, "differences_by_group": 2 * 3}  # points
    assert widths.items() >= dict.fromkeys(drawn, 3.25).items()
    for name, content in files.items():
        if kind == "pdf":
            assert b"/FontFile" in content  # publishers want embedded fonts
        else:
            if name in drawn:
                assert content.count(b'aria-roledescription="point"') == drawn[name]
            assert set(re.findall(rb'font-size="([^"]+)"', content)) == {b"12px"}  # of 108 an inch: 8 points


def test_of_many_methods_a_chosen_one_is_drawn_with_its_baseline(tmp_path: Path) -> None:
    for i, epochs in enumerate((20, 40)):
        for k, beta in enumerate((None, *(1 - 0.5**n for n in range(1, 7)))):
            for seed in range(2):
                write(
                    tmp_path / f"{i}_{k}_{seed}", 30.0 + k * seed, beta=beta, seed=seed, epochs=epochs, lr_rule=epochs
                )
    runs = collect(tmp_path)
    drawn = {picture.name: picture for picture in figures(runs, cells_of(runs), "error", "Error")}
    choices = drawn["error_by_class"].methods
    assert [name.count("CB-") for name in choices] == [1] * 12 + [0] * 2
    for name in ("error_by_class", "differences_by_group"):
        spec = drawn[name].spec
        params = {param["name"]: param.get("value") for param in spec["params"]}
        assert params["method"] == choices[0]
        baselines = {f"CB-Softmax, β 0.5, lr_rule {epochs}": f"Softmax, lr_rule {epochs}" for epochs in (20, 40)}
        assert params["baselines"].items() >= baselines.items()
        assert {"filter": "datum.method === method || datum.method === baselines[method]"} in spec["transform"]
    means = [row for row in drawn["means"].spec["data"]["values"] if row.get("mean")]
    assert len(means) == 14


@given(st.lists(st.floats(0, 100), min_size=1, max_size=5))
def test_bars_of_rates_end_at_0_and_100(scores: list[float]) -> None:
    mean, *seeds = rows_of({}, scores)
    assert len(seeds) == (len(scores) if len(scores) > 1 else 0)
    if seeds:
        assert 0 <= mean["low"] <= mean["value"] + 0.001 <= mean["high"] + 0.002 <= 100.003
    else:
        assert "low" not in mean


def test_styles_of_methods_differ() -> None:
    styles = list(styles_of(map(str, range(72))).values())
    assert len(set(styles)) == 72
    assert len({colour for colour, _ in styles[:12]}) == 12
    assert all(a[0] != b[0] and a[1] != b[1] for a, b in itertools.pairwise(styles[:12]))


def test_settings_that_go_with_the_data_make_no_method(tmp_path: Path) -> None:
    write(tmp_path / "a", 30.0, data={"crop_padding": 4})
    write(tmp_path / "b", 12.0, factor=1, data={"crop_padding": 2})  # as the schedule of Table 2 at imbalance 1
    assert collect(tmp_path).methods() == ["Softmax"]
    write(tmp_path / "c", 31.0, data={"crop_padding": 2})
    assert set(collect(tmp_path).methods()) == {"Softmax, crop_padding 4", "Softmax, crop_padding 2"}


def test_a_setting_names_a_method_rather_than_the_counts_that_it_changes(tmp_path: Path) -> None:
    write(tmp_path / "a", 30.0)
    write(tmp_path / "b", 31.0, data={"val_fraction": 0.1})
    result = json.loads((tmp_path / "b/result.json").read_text())
    (tmp_path / "b/result.json").write_text(json.dumps(result | {"class_counts": [4500, 450, 45]}))
    assert collect(tmp_path).methods() == ["Softmax", "Softmax, val_fraction 0.1"]


LIGHTNING = "lightning.pytorch.callbacks."
EMA = f"{LIGHTNING}EMAWeightAveraging"


def test_callbacks_that_change_training_make_a_method(tmp_path: Path) -> None:
    """Observers make none, and a test of a checkpoint has the callbacks of its training."""
    observers = [f"{LIGHTNING}{name}" for name in ("ModelCheckpoint", "LearningRateMonitor", "RichProgressBar")]
    for seed, paths in enumerate(([], [*observers, "lt_cb.callbacks.SaveLogits"], [f"{LIGHTNING}EarlyStopping"])):
        callbacks = [{"class_path": path} for path in paths]
        write(tmp_path / f"{seed}", 30.0 + seed, seed=seed, trainer={"callbacks": callbacks})
    write(tmp_path / "custom", 33.0, trainer={"callbacks": [{"class_path": "mine.ModelCheckpoint"}]})
    write(tmp_path / "tested", 34.0)
    result = json.loads((tmp_path / "tested/result.json").read_text())
    (tmp_path / "tested/result.json").write_text(json.dumps(result | {"callbacks": [{"class_path": EMA}]}))
    assert errors(tmp_path) == {
        "Softmax": "30.50 ± 0.71",
        "Softmax, callbacks EarlyStopping": "32.00",
        "Softmax, callbacks mine.ModelCheckpoint": "33.00",
        "Softmax, callbacks EMAWeightAveraging": "34.00",
    }


def test_options_of_callbacks_tell_methods_apart(tmp_path: Path) -> None:
    for decay in (0.9, 0.99):
        trainer = {"callbacks": {"class_path": EMA, "init_args": {"decay": decay, "use_buffers": True}}}
        write(tmp_path / f"{decay}", 50 * decay, trainer=trainer)
    assert errors(tmp_path) == {
        "Softmax, EMAWeightAveraging.decay 0.9": "45.00",
        "Softmax, EMAWeightAveraging.decay 0.99": "49.50",
    }


def test_what_differs_is_not_pooled(tmp_path: Path) -> None:
    """Classes of one name from two modules, options that are no numbers, close numbers, and other images."""
    loss = {"class_path": "ma.My", "init_args": {"mode": "a", "sizes": [1, 2], "t": 0.9999991}}
    counts = {"class_counts": [5000, 50, 500]}
    changes: list[tuple[dict, dict]] = [
        ({}, {}),
        ({"class_path": "mb.My"}, {}),
        ({"mode": "b"}, {}),
        ({"sizes": [2, 1]}, {}),
        ({"t": 0.9999994}, {}),
        ({}, counts),
        ({}, {"class_names": ["a", "b", "c"]}),
    ]
    for seed, (change, of_result) in enumerate(changes):
        write(tmp_path / f"{seed}", 30.0 + seed, seed=seed)
        config = yaml.safe_load((tmp_path / f"{seed}/config.yaml").read_text())
        options = loss["init_args"] | {key: value for key, value in change.items() if key != "class_path"}
        config["model"]["loss"] = {"class_path": change.get("class_path", "ma.My"), "init_args": options}
        (tmp_path / f"{seed}/config.yaml").write_text(yaml.safe_dump(config))
        result = json.loads((tmp_path / f"{seed}/result.json").read_text())
        (tmp_path / f"{seed}/result.json").write_text(json.dumps(result | of_result))
    page = report(tmp_path)
    assert "1 seed each" in page
    assert all(f"{30 + seed}.00" in page.partition("## Error")[2] for seed in range(len(changes)))
    assert all(name in page for name in ("loss mb.My", "mode b", r"sizes \[2, 1\]", "t 0.9999994"))


def test_spellings_of_a_data_set_are_one_column_beside_the_paper(tmp_path: Path) -> None:
    for seed, source in enumerate(("cifar10", "CIFAR10", "lt_cb.data.sources.arrays.CIFAR10")):
        write(tmp_path / f"{seed}", 30.0 + seed, source=source, seed=seed)
    row = table(report(tmp_path), "Beside the paper")["Softmax", "CIFAR10 IF 100"]
    assert (row["ours"], row["paper"]) == ("31.00 ± 1.00", "29.64")


ODD = [None, True, -1, 10**9, 10**400, 1.5, float("nan"), math.inf, "", "x", [], [None], ["x", 5], {}, {"x": None}]


@hypothesis.settings(
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], max_examples=30, deadline=None
)
@given(where=st.integers(0, 80), value=st.sampled_from(ODD), file=st.sampled_from(["result.json", "config.yaml"]))
def test_a_damaged_run_is_named_and_the_others_are_reported(
    where: int, value: object, file: str, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    write(tmp_path / "runs/a", 30.0)
    write(tmp_path / "runs/b", 31.0, seed=1)
    broken = tmp_path / "runs/b" / file
    content = json.loads(broken.read_text()) if file == "result.json" else yaml.safe_load(broken.read_text())

    found = list(places(content))
    node, key = found[where % len(found)]
    node[key] = value
    broken.write_text(json.dumps(content) if file == "result.json" else yaml.safe_dump(content))
    with contextlib.suppress(InputError):  # of a configuration
        runs = collect(tmp_path / "runs")
        assert runs.results[0].folder == tmp_path / "runs/a"
        cells = cells_of(runs, "error")
        assert sections(runs, cells, "error")
        assert finding(runs, "error")
        assert figures(runs, cells, "error", "Error")


def test_one_of_several_settings_that_change_together_is_named(tmp_path: Path) -> None:
    short: dict = {"trainer": {"max_epochs": 40}, "data": {"crop_padding": 2, "horizontal_flip": False}}
    for seed in (0, 1):
        write(tmp_path / f"a/{seed}", 30.0 + seed, trainer={"max_epochs": 200}, seed=seed)
        write(tmp_path / f"b/{seed}", 33.0 + seed, seed=seed, **short)
        write(tmp_path / f"c/{seed}", 34.0, loss="FocalLoss", gamma=1.0, beta=0.999, seed=seed, **short)
    page = report(tmp_path)
    focal = "CB-Focal, γ 1, β 0.999, 40 epochs"
    names = ["Softmax, 40 epochs", "Softmax, 200 epochs", focal]
    assert [key[0] for key in table(page, "Error")] == names  # by number, not by letter
    assert table(page, "Error")[focal,]["difference"] == "+0.50"


def test_the_baseline_is_the_plain_loss(tmp_path: Path) -> None:
    for seed in (0, 1):
        write(tmp_path / f"plain/{seed}", 30.0, seed=seed)
        write(tmp_path / f"sampled/{seed}", 28.0, seed=seed, data={"sampler": "ClassBalancedSampler"})
        write(tmp_path / f"weighted/{seed}", 35.0, seed=seed, weighting="InverseFrequency")
    page = report(tmp_path)
    assert "over shared seeds, in points, from Softmax." in page
    changes = {key[0]: row["difference"] for key, row in table(page, "Error").items()}
    weighted = {"Softmax, sampler ClassBalancedSampler": "-2.00", "Softmax, inverse frequency": "+5.00"}
    assert changes == {"Softmax": "–", **weighted}


def test_the_baseline_of_second_stages_is_the_network_without(tmp_path: Path) -> None:
    stage = {"class_path": "lt_cb.models.ClassifierRetraining"}
    for seed in (0, 1):
        write(tmp_path / f"plain/{seed}", 30.0, seed=seed)
        write(tmp_path / f"retrained/{seed}", 28.0, seed=seed, second_stage=stage)
        write(tmp_path / f"smoothed/{seed}", 29.0, seed=seed, second_stage=stage, loss="LabelSmoothingLoss")
    changes = {key[0]: row["difference"] for key, row in table(report(tmp_path), "Error").items()}
    assert changes == {"Softmax": "–", "Softmax, cRT": "-2.00", "Label smoothing, cRT": "-1.00"}


def test_both_tables_of_the_paper(tmp_path: Path) -> None:
    small: dict = {"backbone": "resnet50", "data": {"image_size": 224, "mean": [0.5]}, "factor": None, "epochs": 90}
    large: dict = {**small, "backbone": "resnet101", "data": {"image_size": 320, "mean": [0.5]}}
    focal: dict = {"loss": "FocalLoss", "gamma": 0.5, "beta": 0.999}
    write(tmp_path / "a/0", 43.0, top5=21.0, source="inat2018", **small)
    write(tmp_path / "a/1", 44.0, top5=22.0, source="inat2018", seed=1, **small)
    write(tmp_path / "b", 30.0, source="inat2018", **large, **focal)
    small["data"]["mean"] = [0.4]  # each source has its own: it tells no methods apart
    write(tmp_path / "c", 23.0, top5=7.5, source="ilsvrc2012", **small)
    write(tmp_path / "d", 30.0, epochs=200)
    page = report(tmp_path)
    softmax = "Softmax, image_size 224, backbone resnet50"
    cb = "CB-Focal, γ 0.5, β 0.999, image_size 320, backbone resnet101"
    inat, ilsvrc, cifar = "INaturalist2018", "ILSVRC2012", "CIFAR10 IF 100"
    paper = table(page, "Beside the paper")
    assert {key: (row["ours"], row["paper"], row["difference"]) for key, row in paper.items()} == {
        (softmax, inat): ("43.50 ± 0.71", "42.86", "+0.64"),
        (cb, inat): ("30.00", "32.02", "-2.02"),
        (softmax, ilsvrc): ("23.00", "23.92", "-0.92"),
        ("Softmax", cifar): ("30.00", "29.64", "+0.36"),  # as in a report of Table 2 alone
    }
    assert paper[softmax, inat]["inside"] == "yes"
    assert {row["unlike the paper"] for row in paper.values()} == {"–"}
    top5 = table(page, "Beside the paper, top-5")
    assert {key: (row["ours"], row["paper"], row["difference"]) for key, row in top5.items()} == {
        (softmax, inat): ("21.50 ± 0.71", "21.31", "+0.19"),
        (softmax, ilsvrc): ("7.50", "7.03", "+0.47"),
    }
    error = table(page, "Error")
    assert error[softmax,] == {"method": softmax, cifar: "–", ilsvrc: "23.00 (1 of 2 seeds)", inat: "43.50 ± 0.71"}


def test_other_experiments_are_not_compared_with_the_paper(tmp_path: Path) -> None:
    inat: dict = {"source": "inat2018", "backbone": "resnet50"}
    others: list[dict] = [
        {"data": {"n_max": 100}},
        {"data": {"imbalance_type": "step"}},
        {"data": {"subset_counts": [5000, 500, 50]}, "factor": None},
        {"factor": 99},
        {"backbone": "resnet56"},
        {"data": {"image_size": 64}},
        {"loss": "LDAMLoss"},
        {**inat, "data": {"image_size": 224}, "factor": 100},  # not the whole
        {**inat, "data": {"image_size": 256}, "factor": None},
    ]
    write(tmp_path / "a", 30.0)
    for i, changes in enumerate(others):
        write(tmp_path / f"{i}", 40.0, **changes)
    page = report(tmp_path)
    assert [row["ours"] for row in table(page, "Beside the paper").values()] == ["30.00"]
    assert "repeated later" not in page


def test_differences_from_the_paper_are_listed(tmp_path: Path) -> None:
    write(tmp_path / "a", 30.0, epochs=20)
    network = {"backbone": "resnet50", "backbone_args": {"pretrained": True}, "source": "inat2018", "factor": None}
    write(tmp_path / "b", 30.0, epochs=0, data={"image_size": 224, "val_fraction": 0.1}, **network)
    config = yaml.safe_load((tmp_path / "b/config.yaml").read_text()) | {"trainer": {"max_epochs": 100}}
    (tmp_path / "b/config.yaml").write_text(yaml.safe_dump(config))
    report(tmp_path)
    paper = table((tmp_path / "report.md").read_text(), "Beside the paper")
    assert [row["unlike the paper"] for row in paper.values()] == [
        "20 epochs instead of 200",
        "100 epochs instead of 90, val_fraction 0.1, backbone_args.pretrained True",
    ]


def test_a_custom_recipe_makes_a_method_and_a_metric_does_not(tmp_path: Path) -> None:
    write(tmp_path / "a", 30.0)
    write(tmp_path / "b", 31.0, seed=1, metrics=[{"class_path": "torchmetrics.classification.MulticlassF1Score"}])
    write(tmp_path / "c", 32.0)
    config = yaml.safe_load((tmp_path / "c/config.yaml").read_text()) | {"model_class": "own.Recipe"}
    (tmp_path / "c/config.yaml").write_text(yaml.safe_dump(config))
    assert errors(tmp_path) == {"Softmax": "30.50 ± 0.71", "Softmax, model_class own.Recipe": "32.00"}


def test_accuracy_instead_of_error(tmp_path: Path) -> None:
    for seed, (plain, cb) in enumerate([(40.0, 30.0), (42.0, 35.0)]):
        write(tmp_path / f"a/{seed}", plain, seed=seed)
        write(tmp_path / f"b/{seed}", cb, beta=0.999, seed=seed)
    with pytest.raises(SystemExit, match="0"):
        main(["report", str(tmp_path), "--metric", "balanced_acc"])
    page = (tmp_path / "report.md").read_text()
    accuracy = table(page, "Balanced accuracy")
    assert accuracy["Softmax",]["balanced accuracy"] == "59.00 ± 1.41"
    assert accuracy["CB-Softmax, β 0.999",]["balanced accuracy"] == "67.50 ± 3.54"
    assert accuracy["CB-Softmax, β 0.999",]["difference"] == "+8.50"
    assert table(page, "Beside the paper")["Softmax", "CIFAR10 IF 100"]["ours"] == "41.00 ± 1.41"  # errors


def test_losses_are_compared_at_the_same_length(tmp_path: Path) -> None:
    for seed, epochs, beta in itertools.product((0, 1), (20, 80), (None, 0.999)):
        error = {(20, None): 40.0, (20, 0.999): 37.0, (80, None): 30.0, (80, 0.999): 29.0}[epochs, beta]
        options = {"beta": beta, "seed": seed, "epochs": epochs, "decay_1d": epochs == 20}
        write(tmp_path / f"{epochs}_{beta}_{seed}", error + seed, **options)
    rows = table(report(tmp_path), "Error")
    assert {(method, row["minus"]): row["difference"] for (method,), row in rows.items() if row["minus"] != "–"} == {
        ("CB-Softmax, β 0.999, decay_1d True", "Softmax, decay_1d True"): "-3.00",
        ("CB-Softmax, β 0.999, decay_1d False", "Softmax, decay_1d False"): "-1.00",
    }


def test_last_and_best_checkpoint_are_two_rows_and_a_repeated_run_counts_once(tmp_path: Path) -> None:
    write(tmp_path / "a", 30.0)
    write(tmp_path / "b", 29.0, checkpoint="epoch=3-step=40")
    write(tmp_path / "c", 28.0, checkpoint="epoch=7-step=80", seed=1)
    write(tmp_path / "d", 33.0)  # a again, later
    page = report(tmp_path)
    assert {key[0]: row["error"] for key, row in table(page, "Error").items()} == {
        "Softmax, best checkpoint": "28.50 ± 0.71",
        "Softmax, last checkpoint": "33.00",
    }
    assert table(page, "Missing runs")[str(tmp_path / "a"),]["state"] == "repeated later"


def test_tables_from_saved_logits(tmp_path: Path) -> None:
    """Against scikit-learn, torchmetrics, and accuracies as weighted sums over images."""
    rng = np.random.default_rng(0)
    write(tmp_path / "a", 30.0)
    targets = rng.integers(0, 3, 400)
    logits = (rng.normal(size=(400, 3)) + 1.5 * np.eye(3)[targets] + [2.0, 0.0, -2.0]).astype(np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confidence = probabilities.max(1)
    np.savez(tmp_path / "a/logits.npz", logits=logits, confidence=confidence, targets=targets)
    page = report(tmp_path)
    log_prior = np.log(np.array([5000, 500, 50]) / 5550)

    row = table(page, "Post-hoc logit adjustment")["Softmax", "CIFAR10 IF 100"]
    for tau in (0, 0.5, 1, 2):
        predicted = (logits - tau * log_prior).argmax(1)
        assert float(row[f"τ {tau:g}"].strip("*")) == pytest.approx(
            100 * balanced_accuracy_score(targets, predicted), abs=0.006
        )
    assert sum(cell.startswith("**") for cell in row.values()) == 1

    lines = [line for line in page.split("## Shifted test priors")[1].split("##")[0].splitlines() if "Softmax" in line]
    plain, known = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert (plain[2], known[2]) == ("as it is", "prior known")
    for column, factor in ((3, 50), (4, 10), (6, 1), (9, 1 / 50)):
        prior = np.array([1, factor**-0.5, factor**-1])
        prior /= prior.sum()
        weights = (prior / np.bincount(targets))[targets]  # of an image
        assert float(plain[column]) == pytest.approx(100 * weights @ (logits.argmax(1) == targets), abs=0.006)
        moved = (logits - log_prior + np.log(prior)).argmax(1)
        assert float(known[column]) == pytest.approx(100 * weights @ (moved == targets), abs=0.006)

    row = table(page, "Calibration")["Softmax", "CIFAR10 IF 100"]
    for name, part in (("all", targets >= 0), ("many", targets < 2), ("medium", targets == 2)):
        expected = multiclass_calibration_error(
            torch.tensor(probabilities[part]), torch.tensor(targets[part]), num_classes=3, n_bins=15
        )
        assert float(row[name]) == pytest.approx(100 * float(expected), abs=0.006)
    assert row["few"] == "–"
    over = 100 * (confidence.mean() - (logits.argmax(1) == targets).mean())
    assert float(row["overconfident by"]) == pytest.approx(over, abs=0.006)


def save_logits(file: Path, classes: int = 3, **changed: np.ndarray) -> None:
    """Write logits of four images of class 0."""
    arrays = {"logits": np.eye(4, classes), "confidence": np.full(4, 0.5), "targets": np.zeros(4, int), **changed}
    np.savez_compressed(file, **arrays)


DAMAGES: list[Callable[[Path], object]] = [
    lambda file: file.write_text("nothing"),
    lambda file: file.write_bytes(b"PK"),
    lambda file: save_logits(file, classes=10),
    lambda file: save_logits(file, targets=np.array([0, 1, 2, 77])),
    lambda file: save_logits(file, targets=np.zeros(3, int)),
    lambda file: save_logits(file, logits=np.full((4, 3), np.nan)),
]


def test_damaged_logits_are_named_and_the_run_is_reported(tmp_path: Path) -> None:
    for i, damage in enumerate(DAMAGES):
        write(tmp_path / f"{i}", 30.0, seed=i)
        damage(tmp_path / f"{i}/logits.npz")
    write(tmp_path / "whole", 37.0, seed=len(DAMAGES))
    save_logits(tmp_path / "whole/logits.npz")
    page = report(tmp_path)
    assert table(page, "Error")["Softmax",]["error"] == "31.00 ± 2.65"
    states = [row["state"].replace("\\", "") for row in table(page, "Missing runs").values()]
    assert all(f"{i}/logits.npz' is damaged (" in state for i, state in enumerate(states))
    assert len(states) == len(DAMAGES)
    assert table(page, "Calibration")["Softmax", "CIFAR10 IF 100"]["seeds"] == "1"


def test_names_from_data_are_only_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Class names and folders may hold markup, formulas, terminal escapes, line ends and bytes that are not UTF-8."""
    names = ["<img src=x onerror=alert(1)>", "\x1b]0;title\x07a\nb", "=cmd|'calc'!A1 [x](y) \udcff"]
    folder = tmp_path / "-1+cmd`$(touch hacked)`"
    write(folder / "a", 30.0, source="ImageFolder", factor=None, data={"root": "/some/=cmd|'calc'!A1\x1b[31m<b>"})
    result = json.loads((folder / "a/result.json").read_text())
    (folder / "a/result.json").write_text(json.dumps(result | {"class_names": names, "test_counts": [5, 5, 0]}))
    page = report(folder)
    shown = capsys.readouterr().out + page
    assert not re.search(r"[\x00-\x09\x0b-\x1f\udc80-\udcff]", shown)
    assert not re.search("<img|<b>", page)
    assert r"&lt;img src=x onerror=alert(1)&gt;" in page
    assert r"| \\x1b\]0;title\\x07a\\nb |" in page
    assert r"=cmd\|'calc'!A1 \[x\](y) \\udcff" in page
    with (folder / "report.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row["data"].startswith("'=cmd|'calc'!A1")
    assert not re.search(r"<img|<b>", re.sub("(?s)<script.*?</script>", "", (folder / "report.html").read_text()))
    report(folder, "--save", str(tmp_path / "kept $(touch hacked)"))
    kept = report(tmp_path / "kept $(touch hacked)")
    assert f"--config '{tmp_path}/kept $(touch hacked)/configs/" in kept


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=20))
def test_means_over_classes(values: list[float]) -> None:
    means = class_means([*values, None])
    assert means["worst"] == min(values)
    assert means["geometric"] == pytest.approx(statistics.geometric_mean(values))
    assert means["harmonic"] == pytest.approx(statistics.harmonic_mean(values))
    assert class_means([*values, 0.0]) == {"worst": 0, "geometric": 0, "harmonic": 0}


def test_wrong_folders_and_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(*options: str) -> str:
        with pytest.raises(SystemExit, match="2"):
            main(["report", str(tmp_path), *options])
        return capsys.readouterr().err.removeprefix("lt-cb: error: ")

    assert refusal().startswith(f"there is no run with a result.json in '{tmp_path}'")
    assert refusal("--metric", "f1").startswith("argument --metric: invalid choice")
    for file, content, sentence in (
        ("result.json", "{", "a/result.json' is damaged"),
        ("result.json", "{}", "a/result.json' is damaged: it is not the result of a run"),
        ("config.yaml", ": :", "a/config.yaml"),
    ):
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        write(tmp_path / "a", 30.0)
        (tmp_path / "a" / file).write_text(content)
        assert sentence in refusal("--out", str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()
    shutil.rmtree(tmp_path / "a")
    write(tmp_path / "a", 30.0)
    (tmp_path / "out").touch()
    assert "out', which is a file: give a folder." in refusal("--out", str(tmp_path / "out"))


def test_validate_runs_are_not_missing(tmp_path: Path) -> None:
    write(tmp_path / "a", 30.0)
    (tmp_path / "validate").mkdir()
    (tmp_path / "validate/config.yaml").write_text(yaml.safe_dump({"verbose": True}))
    write(tmp_path / "b", 31.0, seed=1)
    (tmp_path / "b/config.yaml").unlink()
    write(tmp_path / "c", 32.0, seed=2)
    config = yaml.safe_load((tmp_path / "c/config.yaml").read_text())
    config["trainer"] = {**config.get("trainer", {}), "limit_test_batches": 4}
    (tmp_path / "c/config.yaml").write_text(yaml.safe_dump(config))
    report(tmp_path)
    missing = table((tmp_path / "report.md").read_text(), "Missing runs")
    assert {key[0]: row["state"] for key, row in missing.items()} == {
        str(tmp_path / "b"): "without its config.yaml",
        str(tmp_path / "c"): "tested on a part of the images (--trainer.limit_test_batches)",
    }


def test_a_run_tested_again_is_the_same_method_and_lends_its_logits(tmp_path: Path) -> None:
    for name, options in (("version_0", {}), ("version_1", {"verbose": True})):  # an option of `lt-cb test`
        write(tmp_path / name, 30.0)
        result = json.loads((tmp_path / name / "result.json").read_text())
        result["checkpoint"] = str(tmp_path / "version_0/checkpoints/last.ckpt")
        (tmp_path / name / "result.json").write_text(json.dumps(result))
        config = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config | options))
    save_logits(tmp_path / "version_1/logits.npz")
    page = report(tmp_path)
    assert list(table(page, "Error")) == [("Softmax",)]
    assert table(page, "Missing runs")[str(tmp_path / "version_1"),]["state"] == "tests a checkpoint again"
    assert table(page, "Calibration")["Softmax", "CIFAR10 IF 100"]["seeds"] == "1"


def test_weights_without_beta_are_not_beside_the_paper(tmp_path: Path) -> None:
    write(tmp_path / "a", 30.0)
    write(tmp_path / "b", 20.0, beta=0.99)
    write(tmp_path / "c", 10.0)
    config = yaml.safe_load((tmp_path / "c/config.yaml").read_text())
    config["model"]["loss"]["init_args"]["weighting"] = {"class_path": "lt_cb.losses.InverseFrequency"}
    (tmp_path / "c/config.yaml").write_text(yaml.safe_dump(config))
    report(tmp_path)
    paper = table((tmp_path / "report.md").read_text(), "Beside the paper")
    assert list(paper) == [("Softmax", "CIFAR10 IF 100")]  # nor beside the paper's figure without weights
    weightings = {result.method: result.weighting for result in collect(tmp_path).results}
    effective = {"Softmax": None, "CB-Softmax, β 0.99": "EffectiveNumber"}
    assert weightings == effective | {"Softmax, inverse frequency": "InverseFrequency"}


@pytest.mark.slow
def test_a_report_imports_no_torch(tmp_path: Path) -> None:
    for seed in range(3):
        write(tmp_path / f"{seed}", 20.0, seed=seed)
    code = (
        "import sys; from lt_cb.__main__ import main\n"
        f"try: main(['report', '{tmp_path}'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("\nFalse\n")


@pytest.mark.slow
def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    code = f"import sys; sys.modules['altair'] = None; from lt_cb.__main__ import main; main(['report', '{tmp_path}'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expected = "a report needs the package altair, which is not installed: run pip install 'lt_cb[report]'."
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, f"lt-cb: error: {expected}")
