"""Grids: the plan of a grid file, and runs that are each trained once, whatever happens to the processes."""

import contextlib
import io
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import hypothesis
import pytest
import torch
import yaml
from hypothesis import strategies as st
from strategies import places

from lt_cb.__main__ import main
from lt_cb.data.sources.names import canonical_source
from lt_cb.errors import InputError
from lt_cb.lab.plan import Run, read_plan
from lt_cb.lab.work import prepare
from lt_cb.runs.folder import RunDir, flatten

ROOT = Path(__file__).parents[1]
GRIDS = ROOT / "configs/grids"
QUICKSTART = str(ROOT / "configs/quickstart.yaml")
ODD = [None, True, -1, 0, 1.5, math.nan, "", "x", "\0", "../../x", "[", [], [None], ["x", 5], {}, {"x": None}, {5: 6}]
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


def write_grid(content: str | dict) -> Path:
    file = Path("grid.yaml")
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return file


def plan(axes: dict, **keys) -> list[Run]:
    return read_plan(write_grid({**keys, "axes": axes})).runs


def settings(run: Run) -> dict:
    """Return the config keys that the arguments of a run set, with the last value of each."""
    flat: dict = {}
    words = iter(run.args)
    for word in words:
        key, _, value = word.removeprefix("--").partition("=")
        text = Path(next(words)).read_text() if key == "config" else value
        flat |= flatten(yaml.safe_load(text) if key == "config" else {key: yaml.safe_load(text)})
    return flat


def grid(*args: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["grid", *args])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def dry_run(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert grid(*args, "--dry-run") == 0
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert grid(*args) == 2
    return capsys.readouterr().err.removeprefix("lt-cb: error: ")


def config_of_fit(*args: str) -> dict:
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit, match="0"):
        main(["fit", *args, "--print_config"])
    return yaml.safe_load(printed.getvalue())


class TestGridOfOneGpu:
    """The runs of benchmarks/gpu.yaml are too long for a test: checks their order, configurations and kept rows."""

    @pytest.fixture
    def runs(self, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
        monkeypatch.chdir(ROOT)
        return read_plan(Path("benchmarks/gpu.yaml")).runs

    def test_the_most_important_runs_come_first(self, runs: list[Run]) -> None:
        more_seeds, cifar100 = runs[:14], runs[14:32]
        names = [f"paper_200_{loss}/seed_{seed}" for loss in ("softmax", "cb_focal") for seed in range(3, 10)]
        assert [run.title for run in more_seeds] == names
        assert {(run.name, run.seed) for run in cifar100} == {
            (f"cifar100_200_{loss}", f"seed_{seed}")
            for loss in ("softmax", "balanced_softmax", "cb_focal", "cb_focal_paper", "cb_softmax", "ldam_drw")
            for seed in range(3)
        }
        assert not any("_200_" in run.name for run in runs[32:])
        trained = [run.dir.checkpoint for run in runs]
        for run in runs:  # a second stage comes after its network
            for word in run.args:
                if word.startswith("--ckpt_path="):
                    assert trained.index(Path(word.partition("=")[2])) < runs.index(run)

    def test_new_seeds_have_the_settings_of_the_kept_rows(self, runs: list[Run]) -> None:
        kept = ROOT / "results/cifar10_curve/configs"
        for run, digest in ((runs[0], "14d3f12f3e78"), (runs[7], "cf44d62b2b9f")):
            old, new = yaml.safe_load((kept / f"{digest}.yaml").read_text()), config_of_fit(*run.args)
            assert new["seed_everything"] == new["data"]["subset_seed"] == 3
            assert canonical_source(old["data"].pop("source")) == new["data"]["source"] == "CIFAR10"
            loss = old["model"]["loss"]
            loss["init_args"] = {**new["model"]["loss"]["init_args"], **loss["init_args"]}  # it has more options now
            for part in ("model", "data"):
                assert {**new[part], **old[part]} == new[part]
            for name in ("max_epochs", "precision", "gradient_clip_val", "check_val_every_n_epoch"):
                assert new["trainer"][name] == old["trainer"][name]

    def test_fit_accepts_each_recipe(self, runs: list[Run]) -> None:
        found = {}
        for run in runs:
            if run.name.endswith(("_ldam_drw", "cifar100_200_cb_focal", "crt")) and run.seed == "seed_0":
                words = [word for word in run.args if not word.startswith("--ckpt_path")]
                found[run.name] = config_of_fit(*words)
        decay = {name: config["model"]["optimizer"]["init_args"]["weight_decay"] for name, config in found.items()}
        assert [decay[f"short_40_wd{value}_ldam_drw"] for value in ("2e-4", "5e-4", "1e-3")] == [2e-4, 5e-4, 1e-3]
        assert found["short_40_sam_ldam_drw"]["model_class"] == "lt_cb.sam.SAM"
        assert "RandAugment" in str(found["randaugment_40_ldam_drw"]["data"]["augment"])
        focal = found["cifar100_200_cb_focal"]
        assert (focal["trainer"]["max_epochs"], focal["data"]["source"]) == (200, "CIFAR100")
        options = focal["model"]["loss"]["init_args"]
        assert (options["gamma"], options["weighting"]["init_args"]["beta"]) == (0.5, 0.999)
        assert len(found) == 8


class TestShippedGrids:
    def test_table_2_has_300_names_of_260_runs(self, capsys: pytest.CaptureFixture[str]) -> None:
        out = dry_run(capsys, str(GRIDS / "table2.yaml"))
        assert out.startswith("300 named, 260 distinct runs in runs/table2\n0 done, 260 to do")
        assert out.count("\nto do ") == 260
        assert not Path("runs").exists()
        by_name = {run.name: run for run in read_plan(GRIDS / "table2.yaml").runs}
        assert by_name["cifar100_if20_focal_gamma0.5_cb_beta0.99"].args == [
            *("--config", str(ROOT / "configs/cifar100_lt.yaml"), "--data.imbalance_factor=20"),
            *("--config", str(ROOT / "configs/loss/focal.yaml"), "--model.loss.gamma=0.5"),
            *("--model.loss.weighting=lt_cb.losses.EffectiveNumber", "--model.loss.weighting.beta=0.99"),
            "--seed_everything=0",
        ]
        balanced = by_name["cifar10_if1_softmax_plain"]
        assert settings(balanced)["model.lr_scheduler.factors"] == [0.1, 0.01]
        assert len(balanced.aliases) == 4

    def test_table_3_has_27_runs(self) -> None:
        table = read_plan(GRIDS / "table3.yaml")
        assert table.num_named == len(table.runs) == 27
        methods, rates = set(), set()
        for run in map(settings, table.runs):
            source, loss = run["data.source"], run["model.loss"]
            gamma, beta = run.get("model.loss.gamma"), run.get("model.loss.weighting.beta")
            methods.add((source, run["model.backbone"], (loss, gamma, beta, run["data.image_size"])))
            rates.add((source, loss, run["model.optimizer.lr"]))
        sources, depths = sorted({source for source, *_ in rates}), ("resnet50", "resnet101", "resnet152")
        recipes = (("SoftmaxLoss", None, None, 224), ("FocalLoss", 0.5, 0.999, 224), ("FocalLoss", 0.5, 0.999, 320))
        assert methods == set(itertools.product(sources, depths, recipes))
        per_256 = {"SoftmaxLoss": (0.1, 0.1, 0.1), "FocalLoss": (0.2, 0.4, 0.4)}  # ILSVRC comes first
        assert rates == {
            (s, loss, 4 * rate) for loss in per_256 for s, rate in zip(sources, per_256[loss], strict=True)
        }

    @pytest.mark.slow
    def test_a_plan_needs_no_torch(self) -> None:
        code = (
            "import sys; from lt_cb.__main__ import main\n"
            f"try: main(['grid', '{GRIDS / 'table2.yaml'}', '--dry-run'])\n"
            "except SystemExit: print('torch' in sys.modules)"
        )
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert out.endswith("\nFalse\n")


class TestPlan:
    def test_axes_combine_zip_and_nest(self) -> None:
        names = [
            run.name
            for run in plan(
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

    def test_the_order_of_files_and_keys(self) -> None:
        for name in "ab":
            Path(f"{name}.yaml").write_text("{}")
        (run,) = plan(
            {"a": {"x": {"config": "b.yaml", "data.root": "x"}}, "lr": {"model.optimizer.lr": [0.5]}},
            config=[QUICKSTART, "../work/a.yaml"],
            set={"data.batch_size": 8},
            seeds=[3],
        )
        assert run.args == [
            *("--config", QUICKSTART, "--config", "a.yaml", "--data.batch_size=8"),
            *("--config", "b.yaml", "--data.root=x", "--model.optimizer.lr=0.5", "--seed_everything=3"),
        ]
        assert run.dir.path == Path("runs/grid/x_lr0.5/seed_3")

    @hypothesis.settings(
        suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
    )
    @hypothesis.given(
        axes=st.dictionaries(
            st.sampled_from(["data.root", "data.n_max", "model.loss"]),
            st.lists(
                st.one_of(st.integers(), st.sampled_from(["a", "../b", "c d", "..", "é"]), st.just({"x": [1, 2]})),
                min_size=1,
                max_size=4,
                unique_by=str,
            ),
        ),
        seeds=st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True),
    )
    def test_every_combination_is_one_run_in_its_own_folder_of_the_grid(self, axes: dict, seeds: list[int]) -> None:
        grids = plan({key.rpartition(".")[2]: {key: values} for key, values in axes.items()}, seeds=seeds, folder="g")
        assert len(grids) == math.prod(map(len, axes.values())) * len(seeds)
        assert len({run.digest for run in grids}) == len({run.dir.path for run in grids}) == len(grids)
        for run in grids:
            assert re.fullmatch(r"g/[\w.+-]+/seed_\d+", str(run.dir.path))
            assert ".." not in run.dir.path.parts

    def test_runs_with_equal_settings_are_one(self) -> None:
        Path("deep").mkdir()
        for file, text in {
            "a": "{data: {root: x, n_max: 3}}",
            "deep/b": "# why\ndata:\n  n_max: 3\n  root: x\n",
        }.items():
            Path(f"{file}.yaml").write_text(text)
        axes = {"x": {"a": {"config": "a.yaml"}, "b": {"config": "deep/b.yaml"}, "c": {"data.root": "x"}, "d": {}}}
        assert [(run.name, run.aliases) for run in plan(axes)] == [("a", ["b"]), ("c", []), ("d", [])]
        before = plan(axes)[0].digest
        Path("a.yaml").write_text("{data: {root: x, n_max: 4}}")
        assert [run.name for run in plan(axes)] == ["a", "b", "c", "d"]
        assert plan(axes)[0].digest != before

    @pytest.mark.parametrize(
        ("group", "option", "names"),
        [
            ("data", "source", ["cifar10", "CIFAR10", "lt_cb.data.sources.CIFAR10"]),
            ("model", "loss", ["FocalLoss", "lt_cb.losses.FocalLoss", "lt_cb.losses.focal.FocalLoss"]),
            ("model", "loss", [{"class_path": f"{package}FocalLoss"} for package in ("", "lt_cb.losses.")]),
        ],
    )
    def test_all_names_of_a_class_make_one_run(self, group: str, option: str, names: list) -> None:
        files = [Path(f"{i}.yaml") for i in range(len(names))]
        for file, name in zip(files, names, strict=True):
            file.write_text(yaml.safe_dump({group: {option: name}}))
        for choices in ([{f"{group}.{option}": name} for name in names], [{"config": str(file)} for file in files]):
            (run,) = plan({"name": {f"n{i}": choice for i, choice in enumerate(choices)}})
            assert len(run.aliases) == len(names) - 1

    def test_other_classes_are_other_runs(self) -> None:
        assert len(plan({"source": {"data.source": ["cifar10", "cifar100", "mine.CIFAR10"]}})) == 3
        others = ["FocalLoss", "mine.FocalLoss", "SoftmaxLoss", None, "null"]
        assert len(plan({"loss": {f"n{i}": {"model.loss": name} for i, name in enumerate(others)}})) == 4

    def test_an_axis_of_classes_has_readable_names(self) -> None:
        weighting = {"class_path": "lt_cb.losses.EffectiveNumber", "init_args": {"beta": 0.9}}
        losses = [
            *({"class_path": "my_loss.Tempered", "init_args": {"t": t}} for t in (0.5, 2)),
            {"class_path": "FocalLoss", "init_args": {"weighting": weighting}},
        ]
        names = [run.name for run in plan({"loss": {"model.loss": losses}, "factors": {"x.factors": [[0.1, 0.01]]}})]
        assert names == [
            "loss_Tempered_t0.5_factors0.1-0.01",
            "loss_Tempered_t2_factors0.1-0.01",
            "loss_FocalLoss_weightingEffectiveNumber_weighting.beta0.9_factors0.1-0.01",
        ]

    def test_seeds_of_several_keys_are_zipped(self) -> None:
        three = plan({}, seeds={"seed_everything": [0, 1, 2], "data.subset_seed": [5, 6, 7]})
        assert [run.seed for run in three] == ["seed_0", "seed_1", "seed_2"]
        assert three[1].args == ["--seed_everything=1", "--data.subset_seed=6"]
        assert three[1].title == "grid/seed_1"

    def test_seeds_of_a_choice_override_those_of_the_grid(self) -> None:
        inner = {"few": {"seeds": [7]}, "all": {}}
        runs = plan({"loss": {"a": {"axes": {"x": inner}}, "b": {"k": 1, "seeds": [8, 9]}}, "y": {"y": [5]}}, seeds=[1])
        assert [run.title for run in runs] == ["a_few_y5/seed_7", "a_all_y5/seed_1", "b_y5/seed_8", "b_y5/seed_9"]
        assert runs[3].args == ["--k=1", "--y=5", "--seed_everything=9"]

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("axes: {a: {b: {seeds: 3}}}", "seeds is 3, but must be a mapping"),
            ("a: [", "'grid.yaml' is not YAML"),
            ("[1]", "'grid.yaml' is [1], but must be a mapping"),
            (
                "axis: {}",
                "'grid.yaml' has 'axis', but a grid has folder, config, set, seeds, axes. Did you mean 'axes'?",
            ),
            ("axes: {a: {b.c: [1, 2], d.e: [1]}}", "axis 'a' zips lists of [1, 2] values"),
            ("axes: {a: {x: 1}}", "choice 'x' of axis 'a' is 1, but must be a mapping"),
            ("axes: {a: {b.c: [1, 1]}}", "'grid.yaml': two runs are named 'a1/seed_0'"),
            ("axes: {a: {../../../outside: {}}}", "'grid.yaml': the run '../../../outside' cannot name a folder"),
            ("axes: {a: {..: {}}}", "'grid.yaml': the run '..' cannot name a folder"),
            ("axes: {a: {/tmp: {}}}", "'grid.yaml': the run '/tmp' cannot name a folder"),
            ("axes: {a: {b.c: []}}", "axis 'a' is {'b.c': []}, but must be a list, or map config keys to lists"),
            ("config: none.yaml", "cannot read 'none.yaml'"),
            ("config: 3", "'grid.yaml': config is 3, but must be a file or a list of files"),
            ("seeds: 3", "seeds is 3, but must be a mapping"),
            ("seeds: [1, 1]", "'grid.yaml': two runs are named 'grid/seed_1'"),
            ("seeds: {}", "seeds is {}, but must be a list"),
            ("seeds: {a: [1, 2], b: [1]}", "seeds zips lists of [1, 2] values"),
            (
                yaml.safe_dump({"axes": {name: {f"data.{name}": list(range(10))} for name in "abcdef"}}),
                "'grid.yaml' names more than 20,000 runs",
            ),
        ],
    )
    def test_a_wrong_grid_is_refused(self, text: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert refusal(capsys, str(write_grid(text))).startswith(sentence)

    @hypothesis.settings(
        suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], max_examples=150, deadline=None
    )
    @hypothesis.given(where=st.integers(0, 30), value=st.sampled_from(ODD))
    def test_an_odd_value_gives_a_plan_or_a_sentence(self, where: int, value: object) -> None:
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
        else:  # an odd key instead of an odd value
            node[value if isinstance(value, str | int | float | None) else str(value)] = node.pop(key)
        with contextlib.suppress(InputError):
            assert read_plan(write_grid(whole)).runs


class TestArguments:
    @pytest.mark.parametrize("root", ["1e-3", "null", "a: [b] 'c' # d\n=σ"])
    def test_values_have_the_same_types_as_in_a_config_file(self, root: str) -> None:
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
        (run,) = plan({}, config=QUICKSTART, set=keys)
        Path("nested.yaml").write_text(json.dumps(values))
        config = config_of_fit(*run.args)
        assert config == config_of_fit("--config", QUICKSTART, "--config", "nested.yaml", "--seed_everything=0")
        assert config["data"]["root"] == root
        assert config["data"]["val_fraction"] == 1e-3
        assert config["data"]["image_size"] is None
        assert config["trainer"]["devices"] == "2"
        assert len(config["trainer"]["callbacks"]) == 2


class TestCommand:
    def test_wrong_options_are_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert refusal(capsys, "/none.yaml").startswith("cannot read '/none.yaml'")
        sentence = refusal(capsys, str(GRIDS / "digits.yaml"), "--on", "local", "--devices", "0")
        assert sentence.startswith("--devices is for this machine, but --on names a cluster")

    def test_the_number_of_runs_at_a_time(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert "3 at a time" in dry_run(capsys, str(GRIDS / "digits.yaml"), "--devices", "0, 0,1")
        monkeypatch.setenv("OMP_NUM_THREADS", "100000")
        assert "1 at a time" in dry_run(capsys, str(GRIDS / "digits.yaml"))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert "1 at a time" in dry_run(capsys, str(write_grid("{}")))

    def test_the_estimate_is_the_mean_of_done_runs(self, capsys: pytest.CaptureFixture[str]) -> None:
        axes = {"if": {"data.imbalance_factor": [2, 50]}, "gamma": {"model.loss.gamma": [0.5, 1, 2]}}
        first, second, *_ = plan(axes)
        assert "left" not in dry_run(capsys, "grid.yaml")
        for run, seconds in ((first, {"fit": 90.0, "test": 10.0}), (second, {"fit": 20.0})):
            run.dir.path.mkdir(parents=True)
            run.dir.result.write_text(json.dumps({**RESULT, "wall_time_s": seconds}))
        out = dry_run(capsys, "grid.yaml", "--devices", "0,1")
        assert "2 done, 4 to do, 2 at a time" in out
        assert "0:01:00 of training a run so far: about 0:02:00 left" in out

    def test_a_run_with_a_damaged_or_foreign_result_is_to_do(self, capsys: pytest.CaptureFixture[str]) -> None:
        (run,) = plan({}, folder="g")
        run.dir.path.mkdir(parents=True)
        run.dir.result.write_text(json.dumps({**RESULT, "grid": run.digest}))
        run.dir.grid.write_text(json.dumps({"digest": run.digest}))
        assert "1 done, 0 to do" in dry_run(capsys, "grid.yaml")
        for text in ("", "{", json.dumps({**RESULT, "class_counts": "12"}), json.dumps({**RESULT, "grid": "another"})):
            run.dir.result.write_text(text)
            assert "0 done, 1 to do" in dry_run(capsys, "grid.yaml")

    def test_a_run_with_another_configuration_is_changed(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("a.yaml").write_text("{data: {n_max: 3}}")
        (run,) = plan({}, folder="g", config="a.yaml")
        run.dir.path.mkdir(parents=True)
        run.dir.result.write_text(json.dumps({**RESULT, "grid": run.digest}))
        run.dir.grid.write_text(json.dumps({"digest": run.digest}))
        assert "done    grid/seed_0" in dry_run(capsys, "grid.yaml")
        Path("a.yaml").write_text("{data: {n_max: 4}}")
        out = dry_run(capsys, "grid.yaml")
        assert "0 done, 0 to do" in out
        assert "1 changed: their folders hold runs of another configuration" in out
        assert "changed grid/seed_0" in out
        started = "'g/grid/seed_0' holds a run of another configuration"
        assert refusal(capsys, "grid.yaml").startswith(f"{started} (in a config file): ")
        run.dir.grid.write_text(json.dumps({"digest": run.digest, "args": [*run.args[:-1], "--seed_everything=5"]}))
        assert f"{started} (--seed_everything=5 instead of --seed_everything=0): " in refusal(capsys, "grid.yaml")

    def test_warnings_of_its_runs_are_shown_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        runs = plan({"n": {"data.n_max": [3, 4]}}, folder="g")
        for run in runs:
            run.dir.path.mkdir(parents=True)
            run.dir.result.write_text(json.dumps({**RESULT, "grid": run.digest}))
            run.dir.log.write_text("lt-cb: warning: A.\nother\nlt-cb: warning: A.\n")
        runs[1].dir.log.write_text("lt-cb: warning: A.\nlt-cb: warning: B.\n")
        assert grid("grid.yaml") == 0
        shown = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
        assert shown == [
            f"lt-cb: warning: A. (2 of 2 runs; see {runs[0].dir.log})",
            f"lt-cb: warning: B. (1 of 2 runs; see {runs[1].dir.log})",
        ]

    def test_a_wrong_name_is_found_before_the_first_training(self, capsys: pytest.CaptureFixture[str]) -> None:
        plan({"loss": {"right": {}, "wrong": {"model.loss": "FocalLos"}}}, config=QUICKSTART, seeds=[0, 1])
        sentence = "the run 'wrong' cannot be trained: there is no loss 'FocalLos': choose "
        assert refusal(capsys, "grid.yaml").startswith(sentence)
        assert not Path("runs").exists()

    def test_a_lock_that_cannot_be_taken_is_a_sentence(self, capsys: pytest.CaptureFixture[str]) -> None:
        (run,) = plan({}, folder="g")
        run.dir.lock.mkdir(parents=True)
        assert refusal(capsys, "grid.yaml").startswith("'g/grid/seed_0' cannot be written, or its lock cannot be taken")


TINY = {
    **{"trainer.max_epochs": 6, "trainer.accelerator": "cpu", "model.backbone": "resnet20", "model.fast": "off"},
    **{"data.image_size": 8, "data.n_max": 40, "data.imbalance_factor": 20},
}


def start(*args: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "lt_cb", "grid", "grid.yaml", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which tests in the background ignore
    )


def training_of(grid: "subprocess.Popen[str]", log: Path) -> int:
    """Wait for a training that writes to a log, and return its process."""
    while True:
        assert grid.poll() is None
        if children := [
            pid for file in Path(f"/proc/{grid.pid}/task").glob("*/children") for pid in file.read_text().split()
        ]:
            with contextlib.suppress(OSError):  # it is started just now
                if Path(f"/proc/{children[0]}/fd/1").resolve() == log.absolute():
                    return int(children[0])
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_interrupted_and_killed_grid_is_completed_by_two_commands(capsys: pytest.CaptureFixture[str]) -> None:
    common = {"folder": "runs", "config": QUICKSTART, "set": TINY}
    axes: dict = {"run": {"a": {}}}
    write_grid({**common, "axes": axes})
    (a,) = read_plan(Path("grid.yaml")).runs

    # SIGTERM to a training: the grid ends, and the training can go on
    grid = start()
    while not a.dir.checkpoint_before.exists():
        assert grid.poll() is None
        time.sleep(0.02)
    os.kill(training_of(grid, a.dir.log), signal.SIGTERM)
    out, _ = grid.communicate(timeout=300)
    assert grid.returncode == 1
    assert "0 of 1 runs done, 0 failed." in out
    assert "1 interrupted: the same command resumes from the last checkpoints." in out
    assert not a.dir.result.exists()
    assert not a.dir.error.exists()

    # a signal to the grid: its training ends too
    for sent, code in ((signal.SIGTERM, 143), (signal.SIGINT, 1), (signal.SIGKILL, -9)):
        grid = start()
        training = Path(f"/proc/{training_of(grid, a.dir.log)}/exe")
        grid.send_signal(sent)
        out, _ = grid.communicate(timeout=300)
        assert grid.returncode == code
        assert ("Interrupted: the same command resumes from the last checkpoints." in out) == (code > 0)
        assert "leaked" not in out
        assert "Traceback" not in out
        end = time.monotonic() + 5
        while training.exists():
            assert time.monotonic() < end
            time.sleep(0.02)
    assert "0 done, 1 to do" in dry_run(capsys, "grid.yaml")
    a.dir.checkpoint.write_bytes(b"PK")  # damaged: the checkpoint of the epoch before replaces it
    a.dir.error.write_text("failed in an earlier command: it is tried again")

    # each run is trained by one of two commands, and a failure does not stop them
    axes["run"] = {"wrong": {"model.loss.gamma": -1}, "a": {}}
    write_grid({**common, "axes": axes})
    wrong, a = read_plan(Path("grid.yaml")).runs
    pair = [start("--devices", "0") for _ in range(2)]  # each trains one run at a time
    outputs = [command.communicate(timeout=600)[0] for command in pair]
    lines = [line.split() for line in "".join(outputs).splitlines()]
    ended = [line[1] for line in lines if line and line[0] in ("done", "failed")]
    assert sorted(ended) == [a.title, wrong.title]
    sentence = "gamma is -1.0, but must be at least 0"
    assert wrong.dir.error.read_text().startswith(sentence)
    assert [command.returncode for command in pair] == [1, 1]
    for output in outputs:
        assert "1 of 2 runs done, 1 failed.\n" in output
        assert f"wrong/seed_0: {sentence}" in output
    assert not a.dir.error.exists()
    assert a.dir.read_config()["data"]["num_workers"] >= 1  # the trainings share the cores

    # the interrupted run, and a run on its own, end with the same numbers
    alone = RunDir("alone")
    main(["fit", *a.args, "--folder", str(alone.path)])
    assert alone.metrics.read_bytes() == a.dir.metrics.read_bytes()
    states = [torch.load(run.checkpoint, weights_only=True)["state_dict"] for run in (alone, a.dir)]
    torch.testing.assert_close(*states, rtol=0, atol=0)

    # only a corrected run is left to do
    axes["run"]["wrong"]["model.loss.gamma"] = 1
    write_grid({**common, "axes": axes})
    assert "1 done, 1 to do" in dry_run(capsys, "grid.yaml")
    corrected, _ = read_plan(Path("grid.yaml")).runs
    prepare(corrected)
    assert not corrected.dir.error.exists()
