"""Grids: what they expand to, and that each distinct run is done once, whatever happens to the processes."""

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from lt_cb.__main__ import main
from lt_cb.grid import read_plan
from lt_cb.grid.command import _devices
from lt_cb.grid.plan import Run

ROOT = Path(__file__).parents[1]
GRIDS = ROOT / "configs/grids"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def grid(text: str | dict) -> Path:
    file = Path("grid.yaml")
    file.write_text(text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False))
    return file


def runs(axes: dict, **keys) -> list[Run]:
    return read_plan(grid({**keys, "axes": axes})).runs


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["grid", *args])
    assert stopped.value.code == 2
    return capsys.readouterr().err.removeprefix("lt-cb: error: ")


class TestPlan:
    def test_the_papers_table_is_300_names_of_260_runs(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="0"):
            main(["grid", str(GRIDS / "table2.yaml"), "--dry-run"])
        out = capsys.readouterr().out
        assert out.startswith("300 named, 260 distinct runs in runs/table2\n")
        assert out.count("\nto do ") == 260
        assert not Path("runs").exists()
        plan = read_plan(GRIDS / "table2.yaml")
        by_name = {run.name: run.config for run in plan.runs}
        one = by_name["cifar100_if20_focal_gamma0.5_cb_beta0.99"]
        assert (one["data"]["source"], one["data"]["imbalance_factor"]) == ("cifar100", 20)
        assert one["model"]["loss"]["init_args"]["gamma"] == 0.5
        assert one["model"]["loss"]["init_args"]["weighting"]["init_args"]["beta"] == 0.99
        balanced = by_name["cifar10_if1_softmax_plain"]["model"]
        assert balanced["lr_scheduler"]["init_args"]["factors"] == [0.1, 0.01]
        assert len(next(run for run in plan.runs if run.name == "cifar10_if1_softmax_plain").aliases) == 4

    def test_the_papers_large_data_sets_are_27_runs(self) -> None:
        plan = read_plan(GRIDS / "table3.yaml")
        assert plan.named == len(plan.runs) == 27
        found, rates = set(), set()
        for config in (run.config for run in plan.runs):
            data, model = config["data"], config["model"]
            loss = model["loss"]["class_path"].rpartition(".")[2]
            options = model["loss"]["init_args"]
            beta = None if options["weighting"] is None else options["weighting"]["init_args"]["beta"]
            how = (loss, options.get("gamma"), beta, data["image_size"])
            found.add((data["source"], model["backbone"], how))
            rates.add((data["source"], loss, model["optimizer"]["init_args"]["lr"]))
        sources, depths = ("inat2017", "inat2018", "ilsvrc2012"), ("resnet50", "resnet101", "resnet152")
        hows = (("SoftmaxLoss", None, None, 224), ("FocalLoss", 0.5, 0.999, 224), ("FocalLoss", 0.5, 0.999, 320))
        assert found == set(itertools.product(sources, depths, hows))
        per_256 = {"SoftmaxLoss": (0.1, 0.1, 0.1), "FocalLoss": (0.4, 0.4, 0.2)}
        assert rates == {
            (s, loss, 4 * rate) for loss in per_256 for s, rate in zip(sources, per_256[loss], strict=True)
        }

    def test_axes_combine_zip_and_nest(self) -> None:
        names = [
            run.name
            for run in runs(
                {
                    "lr": {"model.optimizer.lr": [0.1, 0.2], "trainer.max_epochs": [5, 9]},
                    "loss": {
                        "softmax": {},
                        "focal": {"model.loss.gamma": 1, "axes": {"g": {"model.loss.gamma": [1, 2]}}},
                        "": {"data.root": "x"},
                    },
                }
            )
        ]
        assert names == [f"lr{lr}{end}" for lr in (0.1, 0.2) for end in ("_softmax", "_focal_g1", "_focal_g2", "")]

    def test_values_reach_their_place(self) -> None:
        (run,) = runs(
            {"a": {"model.loss.weighting.beta": [0.5]}},
            config=str(ROOT / "configs/quickstart.yaml"),
            set={"model.loss": "lt_cb.losses.SoftmaxLoss", "model.loss.weighting": "lt_cb.losses.EffectiveNumber"},
            seeds=[3],
        )
        assert run.config["model"]["loss"] == {  # nothing of the quickstart's focal loss is left
            "class_path": "lt_cb.losses.SoftmaxLoss",
            "init_args": {"weighting": {"class_path": "lt_cb.losses.EffectiveNumber", "init_args": {"beta": 0.5}}},
        }
        assert run.config["model"]["optimizer"]["init_args"]["lr"] == 0.05
        assert run.config["seed_everything"] == 3
        assert run.folder == Path("runs/grid/a0.5/seed_3")

    def test_weights_without_normalisation_count_at_imbalance_1(self) -> None:
        weighting = {"class_path": "EffectiveNumber", "init_args": {"normalization": "none"}}
        axes = {"w": {"plain": {}, "raw": {"model.loss.weighting": weighting}}}
        base = {"model.loss.class_path": "SoftmaxLoss", "data.imbalance_factor": 1}
        assert len(runs(axes, set=base)) == 2
        del weighting["init_args"]
        assert [run.aliases for run in runs(axes, set=base)] == [["raw"]]

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("a: [", "'grid.yaml' is not YAML"),
            ("[1]", "'grid.yaml' is [1], but must be a mapping"),
            (
                "axis: {}",
                "'grid.yaml' has 'axis', but a grid has folder, config, set, seeds, axes. Did you mean 'axes'?",
            ),
            ("seeds: 3", "'grid.yaml': seeds is 3, but must be a list of integers"),
            ("axes: {a: {b.c: [1, 2], d.e: [1]}}", "axis 'a' zips lists of [1, 2] values"),
            ("axes: {a: {x: 1}}", "choice 'x' of axis 'a' is 1, but must be a mapping"),
            ("axes: {a: {b.c: [1, 1]}}", "'grid.yaml': two combinations are both named 'a1'"),
            ("config: none.yaml", "cannot read 'none.yaml'"),
            ("set: {a: 1, a.b: 2}", "a is 1, but must be a mapping"),
        ],
    )
    def test_what_is_no_grid_is_refused(self, text: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert refused(capsys, str(grid(text))).startswith(sentence)

    def test_wrong_options_are_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert refused(capsys, "/none.yaml").startswith("cannot read '/none.yaml'")
        file = str(GRIDS / "digits.yaml")
        for shard in ("0/2", "3/2", "2", "a/b"):
            assert refused(capsys, file, "--shard", shard).startswith(f"--shard is '{shard}', but must be i/n")

    def test_shards_are_a_partition(self, capsys: pytest.CaptureFixture[str]) -> None:
        listed = []
        for shard in ("1/3", "2/3", "3/3"):
            with pytest.raises(SystemExit, match="0"):
                main(["grid", str(GRIDS / "digits.yaml"), "--dry-run", "--shard", shard])
            listed += [line for line in capsys.readouterr().out.splitlines() if line.startswith("to do")]
        assert len(listed) == len(set(listed)) == len(read_plan(GRIDS / "digits.yaml").runs) == 18

    def test_a_cpu_trains_a_run_on_each_core(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lt_cb.grid.command.glob.glob", lambda pattern: [])
        monkeypatch.setattr("lt_cb.hardware.os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
        monkeypatch.setattr("lt_cb.grid.command.sys.platform", "linux")
        monkeypatch.setattr("lt_cb.grid.command.RUN_BYTES", 1)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert _devices(None, to_do=100) == [None] * 8
        assert _devices(None, to_do=3) == [None] * 3
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        assert _devices(None, to_do=100) == [None] * 2
        monkeypatch.setattr("lt_cb.grid.command.RUN_BYTES", 10**15)  # there is room for one
        assert _devices(None, to_do=100) == [None]
        assert _devices("0, 0,1", to_do=100) == ["0", "0", "1"]
        monkeypatch.setattr("lt_cb.grid.command.glob.glob", lambda pattern: ["/dev/nvidia0"])
        assert _devices(None, to_do=100) == [None]

    def test_time_left_is_that_of_runs_on_the_same_data(self, capsys: pytest.CaptureFixture[str]) -> None:
        axes = {"if": {"data.imbalance_factor": [2, 50]}, "gamma": {"model.loss.gamma": [0.5, 1, 2]}}
        file = grid({"folder": "runs/g", "set": {"trainer.max_epochs": 4}, "axes": axes})
        for run in read_plan(file).runs:
            if run.name in ("if2_gamma0.5", "if50_gamma0.5"):
                run.folder.mkdir(parents=True)
                seconds = {"fit": 90, "test": 10} if run.name.startswith("if2_") else {"fit": 20, "test": 0}
                (run.folder / "result.json").write_text(json.dumps({"wall_time_s": seconds, "class_counts": [9, 1]}))
        with pytest.raises(SystemExit, match="0"):
            main(["grid", str(file), "--dry-run", "--devices", "0,1"])
        out = capsys.readouterr().out
        assert "2 done, 4 to do" in out
        assert "1 min 0 s a run so far: about 2 min 0 s left on 2 at a time" in out  # (2 x 100 + 2 x 20) / 2

    def test_time_left_of_a_new_grid_is_that_of_runs_beside_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        def plan(set_: dict) -> str:
            file = grid({"folder": "runs/g", "set": set_, "axes": {"if": {"data.imbalance_factor": [1, 100]}}})
            with pytest.raises(SystemExit, match="0"):
                main(["grid", str(file), "--dry-run", "--devices", "0"])
            return capsys.readouterr().out

        settings = {"data.source": "cifar10", "trainer.max_epochs": 200}
        assert "no estimate of the time: no run on these data, and of this network, is done in runs yet" in plan(
            settings
        )
        beside = Path("runs/cifar10_lt/version_0")
        beside.mkdir(parents=True)
        (beside / "result.json").write_text(
            json.dumps({"wall_time_s": {"fit": 10.0}, "class_counts": [5000, 1581, 500]})
        )
        config = {"data": {"source": "cifar10", "imbalance_factor": 10}, "trainer": {"max_epochs": 10}, "model": {}}
        (beside / "config.yaml").write_text(yaml.safe_dump(config))
        # 10 s for 7,081 images: in 200 epochs 15,000 and 5,000 + 500 + 50 images take 424 and 157 s
        assert "\nabout 9 min 40 s left on 1 at a time\n" in plan(settings)
        assert "no estimate" in plan({**settings, "model.backbone": "resnet56"})
        (beside / "config.yaml").write_text("[")
        assert "no estimate" in plan(settings)

    def test_no_torch_for_a_plan(self) -> None:
        code = (
            "import sys; from lt_cb.__main__ import main\n"
            f"try: main(['grid', '{GRIDS / 'table2.yaml'}', '--dry-run'])\n"
            "except SystemExit: print('torch' in sys.modules)"
        )
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert out.endswith("\nFalse\n")


def tiny(**axes) -> Path:
    settings = {"trainer.max_epochs": 4, "trainer.accelerator": "cpu", "model.backbone": "resnet20"}
    return grid({"folder": "runs/g", "config": str(ROOT / "configs/quickstart.yaml"), "set": settings, "axes": axes})


def start(file: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "lt_cb", "grid", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=Path.cwd())


def results() -> dict[str, list[float]]:
    files = sorted(Path("runs/g").glob("*/seed_*/result.json"))
    return {file.parts[-3]: json.loads(file.read_text())["per_class_accuracy"] for file in files}


def test_killed_and_shared_grids_end_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beta = {"model.loss.weighting.beta": [0.0, 0.9, 0.99]}
    assert start(tiny(beta=beta)).wait(timeout=600) == 0
    whole = results()
    assert len(whole) == 3
    alone = next(run for run in read_plan(Path("grid.yaml")).runs if run.name == "beta0.9")
    Path("alone.yaml").write_text(yaml.safe_dump(alone.config))
    command = [sys.executable, "-m", "lt_cb", "fit", "--config", "alone.yaml", "--trainer.logger.save_dir=alone"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    (checkpoint,) = Path("alone").rglob("last.ckpt")
    in_grid = torch.load("runs/g/beta0.9/seed_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(torch.load(checkpoint, weights_only=True)["state_dict"], in_grid, rtol=0, atol=0)

    (tmp_path / "killed").mkdir()
    monkeypatch.chdir(tmp_path / "killed")
    file = tiny(beta=beta)
    first = start(file)
    while not list(Path("runs/g").glob("beta0.9/seed_0/checkpoints/last.ckpt")):
        time.sleep(0.05)
        assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = {f: f.stat().st_mtime_ns for f in Path("runs/g").glob("*/seed_*/result.json")}
    pair = [start(file), start(file)]  # together, they share what is left
    out = [process.communicate(timeout=600)[0].decode() for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert results() == whole
    assert all(f.stat().st_mtime_ns == then for f, then in before.items())  # what was done is not done again
    done = [line.split()[1] for text in out for line in text.splitlines() if line.startswith("done ")]
    assert len(done) == len(set(done)) == 3 - len(before)
    assert not list(Path("runs/g").glob("*/seed_*/error.txt"))
    with Path("runs/g/beta0.9/seed_0/metrics.csv").open() as stream:
        assert [row["epoch"] for row in csv.DictReader(stream) if row["train/loss"]] == ["0", "1", "2", "3"]


def test_loggers_go_with_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    loggers = {"config": [str(ROOT / f"configs/logger/{name}.yaml") for name in ("wandb", "tensorboard")]}
    logits = [{"class_path": "lt_cb.callbacks.SaveLogits"}]
    more = {**loggers, "trainer.max_epochs": 1, "trainer.callbacks+": logits}  # beside that of the overlay
    two = {"gamma": {f"g{gamma}": {**more, "model.loss.gamma": gamma} for gamma in (1, 2)}}
    with pytest.raises(SystemExit, match="0"):
        main(["grid", str(tiny(**two))])
    assert results().keys() == {"g1", "g2"}
    assert len(list(Path("wandb").glob("offline-run-*"))) == 2  # of one process
    for name in ("g1", "g2"):
        assert list(Path(f"runs/g/{name}/seed_0").glob("events.out.tfevents.*"))
        assert Path(f"runs/g/{name}/seed_0/metrics.csv").is_file()
        assert Path(f"runs/g/{name}/seed_0/logits.npz").is_file()
    tables = [file.name for file in Path("wandb").rglob("*.table.json")]
    assert sum(name.startswith("confusion_table") for name in tables) == 2
    assert not Path("runs/lightning_logs").exists()

    before = {file: file.read_bytes() for file in Path("runs/g/g1/seed_0").glob("*.*")}
    checkpoint = "runs/g/g1/seed_0/checkpoints/last.ckpt"
    main(["test", "--ckpt_path", checkpoint])
    again = json.loads(Path("runs/g/g1/version_0/result.json").read_text())
    assert again["per_class_accuracy"] == results()["g1"]
    assert {file: file.read_bytes() for file in before} == before  # it has a folder of its own
    with pytest.raises(SystemExit, match="0"):
        main(["report", "runs"])
    assert "1 of" not in Path("runs/report.md").read_text()
    assert "| repeated later |" in Path("runs/report.md").read_text()


def test_images_that_are_streamed(folder: Path) -> None:
    network = {"model.backbone": "resnet20", "trainer.max_epochs": 1, "trainer.accelerator": "cpu"}
    data = {"data.source": "image_folder", "data.root": str(folder), "data.crop": "resized", "data.image_size": 32}
    axes = {"gamma": {"model.loss.gamma": [1, 2]}}
    base = {"config": str(ROOT / "configs/loss/cb_focal.yaml"), "set": {**network, **data}}
    with pytest.raises(SystemExit, match="0"):
        main(["grid", str(grid({"folder": "runs/g", **base, "axes": axes}))])
    assert results().keys() == {"gamma1", "gamma2"}
    assert yaml.safe_load(Path("runs/g/gamma1/seed_0/config.yaml").read_text())["data"]["num_workers"] >= 1


def test_a_failed_run_is_recorded_and_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    axes = {"loss": {"bad": {"model.loss.gamma": -1}, "good": {"trainer.max_epochs": 1}}}
    with pytest.raises(SystemExit, match="1"):
        main(["grid", str(tiny(**axes))])
    out = capsys.readouterr().out
    assert "1 of 2 runs done, 1 failed." in out
    assert "gamma is -1.0, but must be at least 0" in Path("runs/g/bad/seed_0/error.txt").read_text()
    assert results().keys() == {"good"}

    axes["loss"]["bad"]["model.loss.gamma"] = 1  # mended, and nothing of it was trained
    axes["loss"]["bad"]["trainer.max_epochs"] = 1
    with pytest.raises(SystemExit, match="0"):
        main(["grid", str(tiny(**axes))])
    assert results().keys() == {"bad", "good"}
    assert not Path("runs/g/bad/seed_0/error.txt").exists()
    axes["loss"]["good"]["trainer.max_epochs"] = 2
    sentence = refused(capsys, str(tiny(**axes)))
    assert sentence.startswith("'runs/g/good/seed_0' holds a run of another configuration")
