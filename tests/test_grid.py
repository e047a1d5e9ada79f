"""Grids: what they expand to, and that each distinct run is done once, whatever happens to the processes."""

import contextlib
import csv
import gc
import io
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import time
import weakref
from contextlib import redirect_stdout
from pathlib import Path

import hypothesis
import pytest
import torch
import yaml
from hypothesis import strategies as st
from strategies import places

from lt_cb.__main__ import main
from lt_cb.errors import InputError
from lt_cb.lab.plan import read_plan
from lt_cb.lab.grid import _devices
from lt_cb.lab.plan import Run
from lt_cb.lab.work import check_folder, failed_since, work

ROOT = Path(__file__).parents[1]
GRIDS = ROOT / "configs/grids"
QUICKSTART = str(ROOT / "configs/quickstart.yaml")
OVERLAYS = sorted(
    str(file.relative_to(ROOT))
    for folder in ("loss", "sampler", "recipe", "augment", "logger", "second_stage")
    for file in (ROOT / "configs" / folder).glob("*.yaml")
)
ODD = [
    None,
    True,
    -1,
    0,
    1.5,
    float("nan"),
    "",
    "x",
    "\0",
    "../../x",
    "[",
    [],
    [None],
    ["x", 5],
    {},
    {"x": None},
    {5: 6},
]
RESULT: dict = {
    "metrics": {"test/acc": 0.5},
    "class_counts": [9, 1],
    "per_class_accuracy": [1.0, 0.0],
    "seeds": {"seed_everything": 0, "subset_seed": 0},
    "wall_time_s": {},
}


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


def trained(*args: str) -> dict:
    """Return the configuration that ``fit`` makes of its arguments."""
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit, match="0"):
        main(["fit", *args, "--print_config"])
    return yaml.safe_load(printed.getvalue())


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
        by_name = {run.name: run for run in plan.runs}
        assert by_name["cifar100_if20_focal_gamma0.5_cb_beta0.99"].args == [
            *("--config", str(ROOT / "configs/cifar100_lt.yaml"), "--data.imbalance_factor=20"),
            *("--config", str(ROOT / "configs/loss/focal.yaml"), "--model.loss.gamma=0.5"),
            *("--model.loss.weighting=lt_cb.losses.EffectiveNumber", "--model.loss.weighting.beta=0.99"),
            "--seed_everything=0",
        ]
        balanced = by_name["cifar10_if1_softmax_plain"]
        assert balanced.settings()["model.lr_scheduler.factors"] == [0.1, 0.01]
        assert len(balanced.aliases) == 4

    def test_the_papers_large_data_sets_are_27_runs(self) -> None:
        plan = read_plan(GRIDS / "table3.yaml")
        assert plan.named == len(plan.runs) == 27
        methods, rates = set(), set()
        for settings in (run.settings() for run in plan.runs):
            source, loss = settings["data.source"], settings["model.loss"]
            gamma, beta = settings.get("model.loss.gamma"), settings.get("model.loss.weighting.beta")
            methods.add((source, settings["model.backbone"], (loss, gamma, beta, settings["data.image_size"])))
            rates.add((source, loss, settings["model.optimizer.lr"]))
        sources, depths = ("inat2017", "inat2018", "ilsvrc2012"), ("resnet50", "resnet101", "resnet152")
        hows = (("SoftmaxLoss", None, None, 224), ("FocalLoss", 0.5, 0.999, 224), ("FocalLoss", 0.5, 0.999, 320))
        assert methods == set(itertools.product(sources, depths, hows))
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

    @pytest.mark.parametrize("overlay", OVERLAYS)
    @pytest.mark.parametrize("base", [[], [QUICKSTART]], ids=["alone", "over quickstart"])
    def test_a_run_is_what_fit_makes_of_the_same_command(self, base: list[str], overlay: str) -> None:
        choice = {"config": str(ROOT / overlay), "trainer.max_epochs": 2, "data.val_fraction": 0.1}
        (run,) = runs({"overlay": {"o": choice}}, config=base, seeds=[3])
        config = [word for file in [*base, str(ROOT / overlay)] for word in ("--config", file)]
        command = [*config, "--trainer.max_epochs", "2", "--data.val_fraction", "0.1", "--seed_everything", "3"]
        assert trained(*run.args) == trained(*command)

    def test_a_loss_replaces_another_as_in_fit(self) -> None:
        (run,) = runs({}, config=QUICKSTART, set={"model.loss": "SoftmaxLoss"}, seeds=[0])
        assert trained(*run.args) == trained(
            "--config", QUICKSTART, "--model.loss", "SoftmaxLoss", "--seed_everything=0"
        )

    @pytest.mark.parametrize("root", ["1e-3", "", "null", "a: [b] 'c' # d", "two\nlines", "[x]", "=σ"])
    def test_values_reach_fit_as_from_a_config_file(self, root: str) -> None:
        values: dict = {
            "data": {"root": root, "val_fraction": "1e-3", "image_size": None, "mean": [0.5, "1e-3"]},
            "trainer": {
                "devices": "2",
                "logger": False,
                "callbacks+": [
                    {"class_path": "lt_cb.callbacks.SaveLogits"},
                    {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.99}},
                ],
            },
            "model": {"backbone_args": {"shortcut": "pool", "init": "a: b"}},
        }
        keys = {f"{group}.{key}": value for group, inner in values.items() for key, value in inner.items()}
        (run,) = runs({}, config=QUICKSTART, set=keys)
        Path("nested.yaml").write_text(json.dumps(values))
        config = trained(*run.args)
        assert config == trained("--config", QUICKSTART, "--config", "nested.yaml", "--seed_everything=0")
        assert (config["data"]["root"], config["data"]["val_fraction"], config["data"]["image_size"]) == (
            root,
            1e-3,
            None,
        )
        assert (config["trainer"]["devices"], config["trainer"]["logger"]) == ("2", False)
        assert len(config["trainer"]["callbacks"]) == 2

    def test_order_of_files_and_keys(self) -> None:
        for name in "ab":
            Path(f"{name}.yaml").write_text("{}")
        (run,) = runs(
            {"a": {"x": {"config": "b.yaml", "data.root": "x"}}, "lr": {"model.optimizer.lr": [0.5]}},
            config=[QUICKSTART, "../work/a.yaml"],
            set={"data.batch_size": 8},
            seeds=[3],
        )
        assert run.args == [
            *("--config", QUICKSTART, "--config", "a.yaml", "--data.batch_size=8"),
            *("--config", "b.yaml", "--data.root=x", "--model.optimizer.lr=0.5", "--seed_everything=3"),
        ]
        assert run.folder == Path("runs/grid/x_lr0.5/seed_3")

    def test_runs_are_the_same_if_their_arguments_and_files_say_the_same(self) -> None:
        Path("deep").mkdir()
        for file, text in {
            "a": "{data: {root: x, n_max: 3}}",
            "deep/b": "# why\ndata:\n  n_max: 3\n  root: x\n",
        }.items():
            Path(f"{file}.yaml").write_text(text)
        axes = {"x": {"a": {"config": "a.yaml"}, "b": {"config": "deep/b.yaml"}, "c": {"data.root": "x"}, "d": {}}}
        assert [(run.name, run.aliases) for run in runs(axes)] == [("a", ["b"]), ("c", []), ("d", [])]
        before = runs(axes)[0].digest
        Path("a.yaml").write_text("{data: {root: x, n_max: 4}}")
        assert [run.name for run in runs(axes)] == ["a", "b", "c", "d"]
        assert runs(axes)[0].digest != before

    def test_a_second_stage_has_a_checkpoint_for_each_seed(self) -> None:
        two = runs({}, seeds={"seed_everything": [0, 2], "ckpt_path": ["a.ckpt", "b.ckpt"]})
        assert [(run.seed, run.settings()["ckpt_path"]) for run in two] == [(0, "a.ckpt"), (2, "b.ckpt")]

    def test_seeds_of_several_keys_are_zipped(self) -> None:
        three = runs({}, seeds={"seed_everything": [0, 1, 2], "data.subset_seed": [5, 6, 7]})
        assert [run.folder.name for run in three] == ["seed_0", "seed_1", "seed_2"]
        assert three[1].args == ["--seed_everything=1", "--data.subset_seed=6"]

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
            ("config: 3", "'grid.yaml': config is 3, but must be a file or a list of files"),
            ("seeds: [1, 1]", "'grid.yaml': seeds has one of [1, 1] twice"),
            ("seeds: {}", "'grid.yaml': seeds is {}, but must be a list of integers"),
            ("seeds: {a: [x]}", "'grid.yaml': seeds is {'a': ['x']}, but must be a list of integers"),
            ("seeds: {a: [1, 2], b: [1]}", "seeds zips lists of [1, 2] values"),
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
        monkeypatch.setattr("lt_cb.lab.grid.glob.glob", lambda pattern: [])
        monkeypatch.setattr("lt_cb.hardware.os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
        monkeypatch.setattr("lt_cb.lab.grid.sys.platform", "linux")
        monkeypatch.setattr("lt_cb.lab.grid.RUN_BYTES", 1)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert _devices(None, to_do=100) == [None] * 8
        assert _devices(None, to_do=3) == [None] * 3
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        assert _devices(None, to_do=100) == [None] * 2
        monkeypatch.setattr("lt_cb.lab.grid.RUN_BYTES", 10**15)  # there is room for one
        assert _devices(None, to_do=100) == [None]
        assert _devices("0, 0,1", to_do=100) == ["0", "0", "1"]
        monkeypatch.setattr("lt_cb.lab.grid.glob.glob", lambda pattern: ["/dev/nvidia0"])
        assert _devices(None, to_do=100) == [None]

    def test_time_left_is_that_of_runs_on_the_same_data(self, capsys: pytest.CaptureFixture[str]) -> None:
        axes = {"if": {"data.imbalance_factor": [2, 50]}, "gamma": {"model.loss.gamma": [0.5, 1, 2]}}
        file = grid({"folder": "runs/g", "set": {"trainer.max_epochs": 4}, "axes": axes})
        for run in read_plan(file).runs:
            if run.name in ("if2_gamma0.5", "if50_gamma0.5"):
                run.folder.mkdir(parents=True)
                seconds = {"fit": 90, "test": 10} if run.name.startswith("if2_") else {"fit": 20, "test": 0}
                run.dir.result.write_text(json.dumps({**RESULT, "wall_time_s": seconds}))
        with pytest.raises(SystemExit, match="0"):
            main(["grid", str(file), "--dry-run", "--devices", "0,1"])
        out = capsys.readouterr().out
        assert "2 done, 4 to do" in out
        assert "1 min 0 s a run so far: about 2 min 0 s left on 2 at a time" in out  # (2 x 100 + 2 x 20) / 2
        begun = next(run.dir for run in read_plan(file).runs if run.name == "if2_gamma1")
        begun.checkpoint.parent.mkdir(parents=True)
        begun.checkpoint.touch()
        begun.metrics.write_text("epoch,train/loss\n0,1.0\n1,0.9\n2,0.8\n")
        with pytest.raises(SystemExit, match="0"):
            main(["grid", str(file), "--dry-run", "--devices", "0,1"])
        assert "about 1 min 22 s left on 2 at a time" in capsys.readouterr().out  # (100 / 4 + 100 + 2 x 20) / 2
        grid({"folder": "runs/g", "set": {"trainer.max_epochs": "many"}, "axes": axes})
        with pytest.raises(SystemExit, match="0"):
            main(["grid", str(file), "--dry-run"])

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
            json.dumps(
                {
                    **RESULT,
                    "wall_time_s": {"fit": 10.0},
                    "class_counts": [5000, 1581, 500],
                    "per_class_accuracy": [1.0, 0.0, 0.0],
                }
            )
        )
        config = {"data": {"source": "cifar10", "imbalance_factor": 10}, "trainer": {"max_epochs": 10}, "model": {}}
        (beside / "config.yaml").write_text(yaml.safe_dump(config))
        # 10 s for 7,081 images: in 200 epochs 15,000 and 5,000 + 500 + 50 images take 424 and 157 s
        assert "\nabout 9 min 40 s left on 1 at a time\n" in plan(settings)
        assert "no estimate" in plan({**settings, "model.backbone": "resnet56"})
        (beside / "config.yaml").write_text("[")
        assert "no estimate" in plan(settings)

    def test_damaged_files_of_a_run_are_named_and_it_is_not_done(self, capsys: pytest.CaptureFixture[str]) -> None:
        run = read_plan(grid({"folder": "g", "axes": {"gamma": {"model.loss.gamma": [1, 2]}}})).runs[0]
        run.folder.mkdir(parents=True)
        run.dir.result.write_text(json.dumps(RESULT))  # of a version that did not say whose it is
        assert (check_folder(run), run.dir.is_done) == ([], True)
        foreign = json.dumps({**RESULT, "grid": "another"})
        for text in ("", "{", "[]", "{}", json.dumps({**RESULT, "class_counts": "12"}), foreign):
            run.dir.result.write_text(text)
            assert check_folder(run) == [f"'{run.dir.result}' is damaged, or of another run: this one is not done."]
            assert not run.dir.is_done
        run.dir.result.write_bytes(b"\xff")
        assert not run.dir.is_done
        run.dir.result.write_text(json.dumps({**RESULT, "grid": run.digest}))
        for text in ("", "{", "[]"):
            run.dir.grid.write_text(text)
            assert check_folder(run) == [f"'{run.dir.grid}' is damaged: it is written anew."]
            assert (run.dir.read_grid()["digest"], run.dir.is_done) == (run.digest, True)
        run.dir.grid.write_text('{"digest": "another"}')
        run.dir.result.write_text(json.dumps(RESULT))
        assert refused(capsys, "grid.yaml").startswith(f"'{run.folder}' holds a run of another configuration")

    def test_a_run_that_is_done_has_not_failed(self) -> None:
        (run,) = runs({}, folder="g")
        run.folder.mkdir(parents=True)
        run.dir.error.write_text("its process ended with exit code -9\n")
        assert failed_since(run, 0.0)
        run.dir.result.write_text(json.dumps(RESULT))
        assert not failed_since(run, 0.0)

    def test_what_a_run_held_is_freed_before_the_next(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Trained:
            def __init__(self) -> None:
                self.itself = self
                held.append(weakref.ref(self))

        def train(*_: object) -> str:
            alive.append(sum(ref() is not None for ref in held))
            Trained()
            return "done"

        held: list[weakref.ref[Trained]] = []
        alive: list[int] = []
        monkeypatch.setattr("lt_cb.lab.work._train", train)
        monkeypatch.setattr("lt_cb.lab.work._end_with", lambda _: None)
        monkeypatch.setattr("signal.signal", lambda *_: None)
        planned = runs({"gamma": {"model.loss.gamma": [1, 2, 3]}}, folder="g")
        for run in planned:
            check_folder(run)
        gc.disable()
        work(planned, 0.0, None, 1, queue.Queue(), 0)
        gc.enable()
        assert alive == [0, 0, 0]

    def test_a_lock_that_cannot_be_taken_is_a_sentence(self, capsys: pytest.CaptureFixture[str]) -> None:
        file = grid({"folder": "g"})
        run = read_plan(file).runs[0]
        run.dir.lock.mkdir(parents=True)
        assert refused(capsys, str(file)).startswith(f"'{run.dir.lock}' cannot be locked")

    @pytest.mark.slow
    def test_a_failure_is_seen_whatever_the_clock_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ahead = time.time() + 60
        monkeypatch.setattr("time.time", lambda: ahead)  # of this machine, not of the file system
        file = grid({"folder": "g", "axes": {"data": {"a": {"data.source": "nowhere"}}}})
        with pytest.raises(SystemExit, match="1"):
            main(["grid", str(file)])

    @hypothesis.settings(
        suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], max_examples=150, deadline=None
    )
    @hypothesis.given(where=st.integers(0, 30), value=st.sampled_from(ODD))
    def test_a_wrong_grid_is_a_sentence_or_a_plan(self, where: int, value: object) -> None:
        whole: dict = {
            "folder": "g",
            "config": ["a.yaml"],
            "set": {"data.n_max": 5},
            "seeds": {"seed_everything": [0, 1], "data.subset_seed": [0, 1]},
            "axes": {"loss": {"a": {"config": "a.yaml", "axes": {"gamma": {"model.loss.gamma": [1, 2]}}}, "b": {}}},
        }
        Path("a.yaml").write_text("{model: {loss: SoftmaxLoss}}")

        found = list(places(whole))
        node, key = found[where % len(found)]
        if where % 2 or isinstance(node, list):
            node[key] = value
        else:  # the key, where it may be one
            node[value if isinstance(value, str | int | float | None) else str(value)] = node.pop(key)
        with contextlib.suppress(InputError):
            assert read_plan(grid(whole)).runs

    def test_a_grid_of_a_million_runs_is_refused(self) -> None:
        axes = {name: {f"data.{name}": list(range(10))} for name in "abcdef"}
        with pytest.raises(InputError, match="names more than 20,000 runs"):
            read_plan(grid({"axes": axes}))

    @pytest.mark.slow
    def test_no_torch_for_a_plan(self) -> None:
        code = (
            "import sys; from lt_cb.__main__ import main\n"
            f"try: main(['grid', '{GRIDS / 'table2.yaml'}', '--dry-run'])\n"
            "except SystemExit: print('torch' in sys.modules)"
        )
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert out.endswith("\nFalse\n")


WORKER = """
import json, os, queue, sys, time
from pathlib import Path
import lt_cb.commands.train
from lt_cb.errors import InputError
from lt_cb.lab.plan import read_plan
from lt_cb.lab.work import work

calls = []
def fake(args):
    calls.append(args)
    Path(args[args.index("--folder") + 1], "result.json").write_text(json.dumps(RESULT))
lt_cb.commands.train.main = fake
events = queue.Queue()
runs = read_plan(Path("grid.yaml")).runs
Path("c.yaml").write_text("{data: {root: changed}}")
work(runs, time.time(), None, 1, events, os.getppid())
Path("calls.json").write_text(json.dumps([calls, [events.get() for _ in range(events.qsize())]]))
"""


@pytest.mark.slow
def test_a_worker_gives_fit_its_arguments_and_goes_on_from_a_checkpoint() -> None:
    for name in "abc":
        Path(f"{name}.yaml").write_text("{data: {root: x}}")
    Path("c.yaml").write_text("{data: {root: y}}")
    new = {"config": "a.yaml"}
    half = {"config": "b.yaml", "ckpt_path": "first_stage.ckpt", "data.num_workers": 3}
    axes = {
        "run": {"new": new, "half": half, "torn": {}, "damaged": {"data.root": "x"}, "changed": {"config": "c.yaml"}}
    }
    grid({"folder": "g", "axes": axes})
    for name in ("half", "torn", "damaged", "new", "changed"):
        Path(f"g/{name}/seed_0/checkpoints").mkdir(parents=True)
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6"}, "g/half/seed_0/checkpoints/last.ckpt")
    Path("g/torn/seed_0/checkpoints/last.ckpt").write_bytes(b"PK")
    Path("g/damaged/seed_0/checkpoints/last.ckpt").write_bytes(b"PK")
    shutil.copy("g/half/seed_0/checkpoints/last.ckpt", "g/damaged/seed_0/checkpoints/last.before.ckpt")
    subprocess.run([sys.executable, "-c", f"RESULT = {RESULT}\n{WORKER}"], check=True)
    calls, events = json.loads(Path("calls.json").read_text())
    readers = next(word for word in calls[0] if word.startswith("--data.num_workers="))
    bar = "--trainer.enable_progress_bar=false"
    checkpoint = ["--ckpt_path", "g/half/seed_0/checkpoints/last.ckpt"]
    assert calls == [
        ["fit", "--config", "a.yaml", "--seed_everything=0", readers, "--folder", "g/new/seed_0", bar],
        [
            *("fit", "--config", "b.yaml", "--data.num_workers=3", "--seed_everything=0"),
            *("--folder", "g/half/seed_0", *checkpoint, bar),
        ],
        ["fit", "--seed_everything=0", readers, "--folder", "g/torn/seed_0", bar],
        [
            *("fit", "--data.root=x", "--seed_everything=0", readers, "--folder", "g/damaged/seed_0"),
            *("--ckpt_path", "g/damaged/seed_0/checkpoints/last.before.ckpt", bar),
        ],
    ]
    assert (
        "'g/damaged/seed_0/checkpoints/last.ckpt' is not a checkpoint" in Path("g/damaged/seed_0/log.txt").read_text()
    )
    assert [event for event, _, _ in events] == ["start", "done"] * 4 + ["start", "failed"]
    assert "a config file has changed" in Path("g/changed/seed_0/error.txt").read_text()


def tiny(**axes) -> Path:
    settings = {"trainer.max_epochs": 4, "trainer.accelerator": "cpu", "model.backbone": "resnet20"}
    return grid({"folder": "runs/g", "config": QUICKSTART, "set": settings, "axes": axes})


def start(file: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "lt_cb", "grid", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=Path.cwd())


def results() -> dict[str, list[float]]:
    files = sorted(Path("runs/g").glob("*/seed_*/result.json"))
    return {file.parts[-3]: json.loads(file.read_text())["per_class_accuracy"] for file in files}


@pytest.mark.slow
def test_killed_and_shared_grids_end_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beta = {"model.loss.weighting.beta": [0.0, 0.9, 0.99]}
    assert start(tiny(beta=beta)).wait(timeout=600) == 0
    whole = results()
    assert len(whole) == 3
    alone = next(run for run in read_plan(Path("grid.yaml")).runs if run.name == "beta0.9")
    main(["fit", *alone.args, "--folder", "alone"])  # with one thread, as the tests have it
    checkpoint = "alone/checkpoints/last.ckpt"
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


@pytest.mark.slow
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
    earlier = set(Path("runs").rglob("result.json"))
    main(["test", "--ckpt_path", checkpoint])
    (again,) = set(Path("runs").rglob("result.json")) - earlier
    assert json.loads(again.read_text())["per_class_accuracy"] == results()["g1"]
    assert {file: file.read_bytes() for file in before} == before  # it has a folder of its own
    with pytest.raises(SystemExit, match="0"):
        main(["report", "runs"])
    assert "1 of" not in Path("runs/report.md").read_text()
    assert "| repeated later |" in Path("runs/report.md").read_text()


@pytest.mark.slow
def test_images_that_are_streamed(folder: Path) -> None:
    network = {"model.backbone": "resnet20", "trainer.max_epochs": 1, "trainer.accelerator": "cpu"}
    data = {"data.source": "image_folder", "data.root": str(folder), "data.crop": "resized", "data.image_size": 32}
    axes = {"gamma": {"model.loss.gamma": [1, 2]}}
    base = {"config": str(ROOT / "configs/loss/cb_focal.yaml"), "set": {**network, **data}}
    with pytest.raises(SystemExit, match="0"):
        main(["grid", str(grid({"folder": "runs/g", **base, "axes": axes}))])
    assert results().keys() == {"gamma1", "gamma2"}
    assert yaml.safe_load(Path("runs/g/gamma1/seed_0/config.yaml").read_text())["data"]["num_workers"] >= 1


@pytest.mark.slow
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
