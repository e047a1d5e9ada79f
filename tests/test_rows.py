"""Kept results: tables from rows instead of run folders, and intervals."""

import csv
import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lt_cb.__main__ import main
from lt_cb.lab.report.rows import command
from lt_cb.lab.report.tables import half_width, holm, p_value, prediction_width, wilson

COUNTS = [500, 50, 5]


def write(folder: Path, seed: int, beta: float | None = None, *, validated_on: str = "test", val: float = 0.5) -> dict:
    """Write the files of a run of three classes with 40, 20 and 10 test images."""
    rng = np.random.default_rng([seed, beta is None])
    counted, correct = [40, 20, 10], rng.integers(0, [41, 21, 11]).tolist()
    wrong = [n - right for n, right in zip(counted, correct, strict=True)]  # all predicted as the next class
    confusion = [[correct[0], wrong[0], 0], [0, correct[1], wrong[1]], [wrong[2], 0, correct[2]]]
    rates = [right / n for right, n in zip(correct, counted, strict=True)]
    weighting = {"class_path": "lt_cb.losses.EffectiveNumber", "init_args": {"beta": beta, "normalization": "classes"}}
    loss = {"class_path": "lt_cb.losses.SoftmaxLoss", "init_args": {"weighting": weighting if beta else None}}
    config = {
        "seed_everything": seed,
        "name": "x",
        "folder": str(folder),
        "trainer": {"max_epochs": 9, "default_root_dir": str(folder), "logger": None},
        "data": {"source": "cifar10", "root": f"/here/{seed}", "imbalance_factor": 100, "subset_seed": seed},
        "model": {"loss": loss, "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}},
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    metrics = {"acc": sum(correct) / 70, "balanced_acc": float(np.mean(rates)), "loss": 1.0}
    metrics |= {"acc/many": rates[0], "acc/medium": rates[1], "acc/few": rates[2]}
    result = {
        "metrics": {f"test/{name}": value for name, value in metrics.items()},
        "class_names": ["a cat", "dog", "eel"],
        "class_counts": COUNTS,
        "per_class_accuracy": rates,
        "correct": correct,
        "test_counts": counted,
        "confusion": confusion,
        "seeds": {"seed_everything": seed, "subset_seed": seed},
        "subset_sha256": "ab",
        "validated_on": validated_on,
        "shot_groups": {"many": [0], "medium": [1], "few": [2]},
        "epochs": 9,
        "precision": "32-true",
        "device": "cpu",
        "processor": "a CPU",
        "commit": "abc",
        "checkpoint": "somewhere/checkpoints/last.ckpt",
        "wall_time_s": {"fit": 10.2, "test": 1.0},
        "versions": {"lt_cb": "0", "python": "3", "torch": "2", "lightning": "2"},
    }
    (folder / "result.json").write_text(json.dumps(result))
    rows = [f"{epoch},{epoch},{acc},{acc / 2}" for epoch, acc in ((0, 0.3), (4, 0.9), (8, val))]
    (folder / "metrics.csv").write_text("\n".join(["epoch,step,val/acc,val/balanced_acc", *rows]) + "\n")
    return result


def report(*args: str | Path) -> str:
    with pytest.raises(SystemExit, match="0"):
        main(["report", *map(str, args)])
    return (Path(args[0]) / "report.md").read_text() if "--save" not in args else ""


def test_rows_give_the_same_tables_as_their_runs(tmp_path: Path) -> None:
    results = {}
    for seed in range(3):
        for beta in (None, 0.999):
            results[seed, beta] = write(tmp_path / f"runs/{beta}/seed_{seed}", seed, beta)
    page = report(tmp_path / "runs")
    kept = tmp_path / "results/three"
    report(tmp_path / "runs", "--save", kept)
    assert report(kept).startswith(page)  # the commands that repeat them follow
    with (kept / "runs.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6
    assert len(list((kept / "configs").iterdir())) == 2  # each once, whatever the seeds and folders
    for row in rows:
        result = results[int(row["seed"]), None if row["experiment"] == "None" else float(row["experiment"])]
        correct = [int(n) for n in row["correct"].split()]
        assert correct == result["correct"]
        assert [[int(n) for n in line.split()] for line in row["confusion"].split(";")] == result["confusion"]
        assert float(row["error"]) == pytest.approx(100 - 100 * sum(correct) / 70, abs=1e-4)
        balanced = np.mean([right / n for right, n in zip(correct, (40, 20, 10), strict=True)])
        assert float(row["balanced_acc"]) == pytest.approx(100 * balanced, abs=1e-4)
        assert (row["best_epoch"], row["best_error"], row["validated_on"]) == ("4", "10.0000", "test")
        assert (row["seconds"], row["processor"], row["commit"]) == ("11", "a CPU", "abc")
        assert row["class_names"] == "a cat;dog;eel"
        config = yaml.safe_load((kept / f"configs/{row['config']}.yaml").read_text())
        assert "root" not in config["data"]
        assert config["model"]["optimizer"]["init_args"]["lr"] == 0.1
        words = f"--config {kept}/configs/{row['config']}.yaml --seed_everything {row['seed']}"
        assert command(row, kept) == f"lt-cb fit {words} --data.subset_seed {row['seed']}"
    line = next(line for line in page.splitlines() if line.startswith("| dog | 50 | 20 |"))
    rates = [100 - 100 * results[seed, None]["correct"][1] / 20 for seed in range(3)]
    assert line.split("|")[4].strip() == f"{np.mean(rates):.1f} ± {np.std(rates, ddof=1):.1f}"
    assert {row["method"] for row in rows} == {"Softmax", "CB-Softmax, β 0.999"}
    (line,) = [line for line in report(kept).splitlines() if "seed_everything" in line and "CB-" in line]
    assert line.startswith("| CB-Softmax, β 0.999 | CIFAR10 IF 100 | 0 1 2 | 0.2 | a CPU")
    before = (kept / "runs.csv").read_bytes()
    report(tmp_path / "runs", "--save", kept)
    assert (kept / "runs.csv").read_bytes() == before
    again = tmp_path / "runs/None/version_0"  # a test of the same checkpoint is not another seed
    write(again, 0)
    (again / "config.yaml").write_text((again / "config.yaml").read_text() + "verbose: true\n")
    report(tmp_path / "runs", "--save", kept)
    assert (kept / "runs.csv").read_bytes() == before
    for row in rows:  # as in older rows
        del row["confusion"]
    with (kept / "runs.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert report(kept).startswith(page)
    write(tmp_path / "more/seed_7", 7)
    report(tmp_path / "more", "--save", kept)
    assert len((kept / "runs.csv").read_text().splitlines()) == 8


def test_only_held_out_images_choose_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a", 0, 0.9, validated_on="held_out", val=0.6)
    chosen = write(tmp_path / "b", 0, 0.99, validated_on="held_out", val=0.7)
    page = report(tmp_path, "--metric", "val/balanced_acc")
    sentence = "by validation is CB-Softmax, β 0.99: balanced validation accuracy 35.00 %, and balanced accuracy"
    assert f"{sentence} {100 * chosen['metrics']['test/balanced_acc']:.2f} %" in page
    assert "**35.00**" in page
    (tmp_path / "a/metrics.csv").unlink()  # runs without validation are left out
    assert "| CB-Softmax, β 0.9 | – |" in report(tmp_path, "--metric", "val/balanced_acc")
    assert "**" not in report(tmp_path)  # nothing is best on the test images
    write(tmp_path / "c", 0, 0.999)
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(tmp_path), "--metric", "val/balanced_acc"])
    assert "c' was validated on the test images, and nothing may be chosen by them" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["", "a,b\n1,2\n", "\xff", None])
def test_damaged_rows_are_refused(damage: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "runs/a", 0)
    report(tmp_path / "runs", "--save", tmp_path / "kept")
    file = tmp_path / "kept/runs.csv"
    if damage is None:
        file.write_text(file.read_text().replace("40 20 10", "40 20"))
    else:
        file.write_bytes(damage.encode("latin-1"))
    for args in ([str(tmp_path / "kept")], [str(tmp_path / "runs"), "--save", str(tmp_path / "kept")]):
        if damage != "":
            with pytest.raises(SystemExit, match="2"):
                main(["report", *args])
            assert "runs.csv' is not a table of kept runs" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(tmp_path / "nothing"), "--save", str(tmp_path / "kept")])
    assert "there is no finished training in" in capsys.readouterr().err


def test_a_row_kept_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "runs/a/seed_0", 0)
    report(tmp_path / "runs", "--save", tmp_path / "kept")
    file = tmp_path / "kept/runs.csv"
    header, row = file.read_text().splitlines()
    file.write_text("\n".join([header, row, row]) + "\n")
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(tmp_path / "kept")])
    assert "runs.csv' has two rows of a (configuration " in capsys.readouterr().err


def test_rows_of_one_method_and_seed_count_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}/x/seed_0", 0)
    config = yaml.safe_load((tmp_path / "b/x/seed_0/config.yaml").read_text())
    config["trainer"]["callbacks"] = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}]
    (tmp_path / "b/x/seed_0/config.yaml").write_text(yaml.safe_dump(config))
    for name in ("a", "b"):
        report(tmp_path / name, "--save", tmp_path / "kept")
    page = report(tmp_path / "kept")
    assert "1 method on CIFAR10 IF 100 (3 classes), 1 seed." in page
    assert "repeated later" in page


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(values: list[float]) -> None:
    """A hypothesis is rejected if Bonferroni rejects all sets that contain it (Marcus et al. 1976)."""
    tests = range(len(values))
    sets = [each for size in tests for each in combinations(tests, size + 1)]
    expected = [
        max(min(len(each) * min(values[k] for k in each), 1.0) for each in sets if test in each) for test in tests
    ]
    assert holm(values) == pytest.approx(expected)


@given(st.lists(st.integers(-400, 400), min_size=2, max_size=9).filter(lambda values: len(set(values)) > 1))
def test_intervals_and_p_equal_scipy(values: list[float]) -> None:
    mean, deviation, freedom = np.mean(values), np.std(values, ddof=1), len(values) - 1
    for half, scale in ((half_width, 1 / len(values)), (prediction_width, 1 + 1 / len(values))):
        low, high = scipy.stats.t.interval(0.95, freedom, mean, deviation * scale**0.5)
        assert 2 * half(values) == pytest.approx(high - low)
    assert p_value(values) == pytest.approx(scipy.stats.ttest_1samp(values, 0).pvalue)


def test_intervals_of_one_value_and_of_counts() -> None:
    assert (half_width([3.0]), p_value([3.0]), p_value([2.0, 2.0])) == (0.0, None, 0.0)
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)


def test_machines_and_kinds_of_seeds_are_named(tmp_path: Path) -> None:
    for seed in range(3):
        for beta, processor in ((None, "a CPU"), (0.9, "a GPU" if seed else "a CPU")):
            folder = tmp_path / f"{beta}/{seed}"
            result = write(folder, seed, beta)
            subset = {"subset_sha256": f"{seed if beta else 0}", "processor": processor}
            (folder / "result.json").write_text(json.dumps(result | subset))
    page = report(tmp_path)
    assert "over 3 seeds with drawn subsets or 3 training seeds on one fixed subset." in page
    assert "The runs of the two were made on different machines (a GPU / a CPU)." in page
    assert re.search(r"^\| CB-Softmax, β 0.9 \| .* \| 3 \| a GPU / a CPU \|$", page, re.MULTILINE)


def test_the_name_of_a_folder_of_images_is_kept(tmp_path: Path) -> None:
    write(tmp_path / "runs/a/seed_0", 0)
    file = tmp_path / "runs/a/seed_0/config.yaml"
    config = yaml.safe_load(file.read_text())
    config["data"] |= {"source": "image_folder", "root": "/home/me/birds"}
    file.write_text(yaml.safe_dump(config))
    report(tmp_path / "runs", "--save", tmp_path / "kept")
    assert "/home" not in next((tmp_path / "kept/configs").iterdir()).read_text()
    assert "birds IF 100" in report(tmp_path / "kept")
