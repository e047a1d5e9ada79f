"""What a report says of runs, against the numbers in their files."""

import csv
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lt_cb.__main__ import main


def write(
    folder: Path,
    error: float,
    *,
    loss: str = "SoftmaxLoss",
    beta: float | None = None,
    gamma: float | None = None,
    source: str = "cifar10",
    factor: float = 100,
    seed: int = 0,
    **config: object,
) -> None:
    """Write what a run leaves, with this error in percent."""
    arguments: dict = {"reduction": "mean", "weighting": None} | ({} if gamma is None else {"gamma": gamma})
    if beta is not None:
        arguments["weighting"] = {"class_path": "lt_cb.losses.EffectiveNumber", "init_args": {"beta": beta}}
    folder.mkdir(parents=True)
    resolved = {
        "seed_everything": seed,
        "model": {"loss": {"class_path": f"lt_cb.losses.{loss}", "init_args": arguments}, **config},
        "data": {"source": source, "imbalance_factor": factor, "root": f"/somewhere/{seed}"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(resolved))
    accuracy = 1 - error / 100
    metrics = {"acc": accuracy, "balanced_acc": accuracy, "acc/many": accuracy + 0.01, "acc/few": accuracy - 0.02}
    result = {
        "metrics": {f"test/{name}": value for name, value in metrics.items()},
        "class_counts": [5000, 500, 50],
        "per_class_accuracy": [accuracy, accuracy, None],
        "seeds": {"seed_everything": seed, "subset_seed": 0},
        "checkpoint": "somewhere/checkpoints/last.ckpt",
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


def test_means_and_the_paper_beside_them(tmp_path: Path) -> None:
    errors = {"plain": [29.0, 30.0, 31.0], "cb": [25.0, 25.1, 25.2]}
    for seed in range(3):
        write(tmp_path / f"a/{seed}", errors["plain"][seed], seed=seed)
        write(tmp_path / f"b/{seed}", errors["cb"][seed], loss="FocalLoss", gamma=1.0, beta=0.9999, seed=seed)
    write(tmp_path / "c", 77.0, source="lt_cb.data.sources.Digits", factor=50)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/config.yaml").write_text("{}")
    (tmp_path / "d/error.txt").write_text("it broke")
    with pytest.raises(SystemExit, match="0"):
        main(["report", str(tmp_path)])
    page = (tmp_path / "report.md").read_text()
    error = table(page, "Error")
    plain, cb = error["Softmax",], error["Focal gamma 1, CB β 0.9999",]
    assert plain["cifar10 IF 100"] == f"30.00 ± {statistics.stdev(errors['plain']):.2f}"
    assert cb["cifar10 IF 100"] == f"**25.10 ± {statistics.stdev(errors['cb']):.2f}**"
    assert (plain["Digits IF 50"], cb["Digits IF 50"]) == ("**77.00**", "–")

    paper = table(page, "Beside the paper")  # 29.64 and 25.43 there
    row = paper["Softmax", "cifar10 IF 100"]
    assert (row["paper"], row["difference"]) == ("29.64", "+0.36")
    assert row["within two standard errors"] == "yes"
    row = paper["Focal gamma 1, CB β 0.9999", "cifar10 IF 100"]
    assert (row["paper"], row["difference"]) == ("25.43", "-0.33")
    assert 2 * 0.1 / math.sqrt(3) < 0.33
    assert row["within two standard errors"] == "no"

    difference = table(page, "Differences")["Focal gamma 1, CB β 0.9999", "cifar10 IF 100"]
    assert difference["lower by"] == "+4.90"
    low, high = map(float, difference["interval"].split(" to "))
    assert 4.0 <= low <= 4.9 <= high <= 5.8
    assert table(page, "Missing runs")[str(tmp_path / "d"),]["state"] == "failed"
    assert table(page, "Accuracy by shot group")["Softmax", "cifar10 IF 100"]["acc/few"] == "68.00"
    with (tmp_path / "report.csv").open() as stream:
        rows = {row["folder"]: float(row["error"]) for row in csv.DictReader(stream)}
    assert rows[str(tmp_path / "a/1")] == 30.0
    web = (tmp_path / "report.html").read_text()
    assert "<b>25.10 ± 0.10</b>" in web
    assert web.count("<svg") == 4
    assert "http" not in web.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")


def test_what_tells_two_methods_apart_is_in_their_names(tmp_path: Path) -> None:
    write(tmp_path / "a", 30.0, backbone="resnet32")
    write(tmp_path / "b", 31.0, backbone="resnet56")
    write(tmp_path / "c", 32.0, backbone="resnet32", seed=1)
    with pytest.raises(SystemExit, match="0"):
        main(["report", str(tmp_path), "--out", str(tmp_path / "out")])
    error = table((tmp_path / "out/report.md").read_text(), "Error")
    assert {key[0]: row["cifar10 IF 100"] for key, row in error.items()} == {
        "Softmax, backbone resnet32": "**31.00 ± 1.41**",
        "Softmax, backbone resnet56": "**31.00**",
    }


def test_nothing_to_report_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(tmp_path)])
    assert capsys.readouterr().err.startswith(f"lt-cb: error: there is no run with a result.json in '{tmp_path}'")


def test_no_torch_for_a_report_of_many_runs(tmp_path: Path) -> None:
    for i in range(300):
        write(tmp_path / f"{i}", 20 + i / 10, beta=1 - 10.0 ** -(i % 5), factor=(i // 5) % 6 + 2, seed=i // 30)
    code = (
        "import sys; from lt_cb.__main__ import main\n"
        f"try: main(['report', '{tmp_path}'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    start = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    print(f"{time.perf_counter() - start:.1f} s for 300 runs")
    assert out.endswith("\nFalse\n")
