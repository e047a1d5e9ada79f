"""W&B and TensorBoard: real sweeps, agents and runs, against a server on the loopback interface or none."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from PIL import Image
from wandb_server import serve

from lt_cb.__main__ import main
from lt_cb.lab.report import read_run
from lt_cb.loggers import RunFolder
from lt_cb.runs.folder import flatten

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "configs/quickstart.yaml")
WANDB = str(ROOT / "configs/logger/wandb.yaml")
TINY = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder and home, without a key."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    os.environ.pop("WANDB_SERVICE", None)  # of a process that may have ended: not to be put back
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    yield
    wandb.teardown()


def sweep(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "configs/sweeps" / name).read_text())


def test_an_agent_trains_the_runs_of_a_sweep(tmp_path: Path) -> None:
    file = sweep("beta_gamma.yaml")
    file["parameters"]["model.loss.weighting.beta"]["values"] = [0.9, 0.99]
    file["parameters"]["model.loss.gamma"]["values"] = [0.5]
    file["parameters"]["seed_everything"]["values"] = [3]
    env, program, *args = file["command"]
    assert (env, program, args[-1]) == ("${env}", "lt-cb", "${args}")
    args = [arg.replace("cifar100_lt", "quickstart").replace("configs/", f"{ROOT}/configs/") for arg in args]
    file["command"] = [env, "WANDB_MODE=offline", program, *args[:-1], *TINY, args[-1]]
    Path("sweep.yaml").write_text(yaml.safe_dump(file))
    programs = Path(sys.executable).parent
    with serve() as server:
        environment = {**os.environ, **server.environment, "PATH": f"{programs}:{os.environ['PATH']}"}

        def run(*command: str) -> str:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout + done.stderr

        command = re.search(r"(wandb agent) (\S+)", run("wandb", "sweep", "sweep.yaml"))
        assert command is not None
        run("wandb", "agent", command[2])
    assert server.asked.count("CreateAgent") == 1
    assert server.asked.count("UpsertBucket") == 0  # the runs were offline
    runs = sorted(Path("runs").glob("*/version_*"))
    assert len(runs) == 2
    values = []
    for folder in runs:
        assert (folder / "result.json").is_file()
        config = yaml.safe_load((folder / "config.yaml").read_text())
        loss = config["model"]["loss"]["init_args"]
        assert config["seed_everything"] == 3
        assert loss["gamma"] == 0.5
        values.append(loss["weighting"]["init_args"]["beta"])
    assert sorted(values) == [0.9, 0.99]
    assert {folder.name.rpartition("-")[2] for folder in Path("wandb").glob("offline-run-*")} == {"run0", "run1"}


@pytest.mark.parametrize("file", sorted((ROOT / "configs/sweeps").glob("*.yaml")), ids=lambda file: file.stem)
def test_what_a_sweep_varies_arrives(file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(ROOT)
    asked = sweep(file.name)
    assert asked["metric"]["name"].startswith("val/")
    assert "--data.val_fraction=0.1" in asked["command"]  # else val/... looks at the test images
    chosen = {
        name: spec["values"][-1] if "values" in spec else spec["max"] for name, spec in asked["parameters"].items()
    }
    args = [arg for arg in asked["command"] if arg.startswith("--")]
    with pytest.raises(SystemExit, match="0"):
        main(["fit", *args, *[f"--{name}={value}" for name, value in chosen.items()], "--print_config"])
    resolved = flatten(yaml.safe_load(capsys.readouterr().out))
    for name, value in chosen.items():
        if name == "config":
            assert (value, resolved["model.loss"]) == ("configs/loss/ldam_drw.yaml", "LDAMLoss")
        else:
            assert resolved[name] == value


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of the last table of a name that a W&B run has."""
    file = max(folder.glob(f"files/media/table/{name}_*.json"), key=lambda file: file.stat().st_mtime_ns)
    content = json.loads(file.read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def test_without_a_key_a_run_is_offline_and_whole(capfd: pytest.CaptureFixture[str]) -> None:
    for epochs in (1, 2):
        before = ["--ckpt_path=runs/quickstart/version_0/checkpoints/last.ckpt"] if epochs == 2 else []
        args = ["--config", QUICKSTART, "--config", WANDB, *TINY, "--trainer.check_val_every_n_epoch=1"]
        main(["fit", *args, f"--trainer.max_epochs={epochs}", *before])
    said = capfd.readouterr()
    assert "there is no API key, so the run stays on disk." in said.err
    first, second = sorted(Path("wandb").glob("offline-run-*"), key=lambda folder: folder.stat().st_mtime_ns)
    assert first.name.rpartition("-")[2] == second.name.rpartition("-")[2]  # the same run, gone on with

    result = json.loads(Path("runs/quickstart/version_1/result.json").read_text())
    classes = table(second, "test/classes")
    assert [row["class"] for row in classes] == result["class_names"]
    assert [row["training images"] for row in classes] == result["class_counts"]
    assert [row["accuracy"] for row in classes] == result["per_class_accuracy"]
    assert [row["shot group"] for row in classes] == ["many"] + ["medium"] * 4 + ["few"] * 5
    pairs = {(row["Actual"], row["Predicted"]): row["nPredictions"] for row in table(second, "test/confusion_table")}
    for name, total, accuracy in zip(
        result["class_names"], result["test_counts"], result["per_class_accuracy"], strict=True
    ):
        assert sum(count for (actual, _), count in pairs.items() if actual == name) == total
        assert pairs[name, name] / total == accuracy
    lines = table(second, "val/classes_by_epoch_table")
    assert sorted({row["step"] for row in lines}) == [0, 1]  # the epoch before the interruption too
    assert {row["lineKey"] for row in lines} == set(result["class_names"])
    saved = second / "files/run"
    assert json.loads((saved / "result.json").read_text()) == result
    assert (saved / "config.yaml").read_text() == Path("runs/quickstart/version_1/config.yaml").read_text()


def test_classes_of_several_labels_have_their_own_measures() -> None:
    several = ["--data.source=lt_cb.data.sources.SideBySide", "--data.source.cell=8", "--data.source.train_images=300"]
    several += ["--data.source.test_images=100", "--data.image_size=24", "--trainer.check_val_every_n_epoch=1"]
    main(["fit", "--config", QUICKSTART, "--config", WANDB, *TINY, *several])
    (run,) = Path("wandb").glob("offline-run-*")
    result = json.loads(Path("runs/quickstart/version_0/result.json").read_text())
    classes = table(run, "test/classes")
    for column, key in (("average precision", "average_precision"), ("auroc", "auroc"), ("f1", "f1")):
        assert [row[column] for row in classes] == result[f"per_class_{key}"]
    assert [row["evaluated images"] for row in classes] == result["test_counts"]
    bars = table(run, "test/average_precision_by_class_table")
    assert [row["average precision"] for row in bars] == result["per_class_average_precision"]
    assert not list(run.glob("files/media/table/test/confusion*"))


def test_an_online_run_has_its_configuration_and_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    args = ["--config", QUICKSTART, "--config", WANDB, *TINY]
    with serve() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        main(["fit", *args])
        resumed = ["fit", "--ckpt_path=runs/quickstart/version_0/checkpoints/last.ckpt", "--config", WANDB]
        main([*resumed, "--trainer.max_epochs=2"])
        main([*resumed, "--config", str(ROOT / "configs/second_stage/crt.yaml"), *TINY])
        there = read_run(f"someone/lt_cb/{server.runs[0]['name']}")
    names = list(dict.fromkeys(run["name"] for run in server.runs if run["name"]))
    assert len(names) == 2  # the first and its continuation; the second stage is another run
    here = read_run("runs/quickstart/version_1")
    assert (there.method, there.record.scores) == (here.method, here.record.scores)
    begun = next(run for run in server.runs if run["name"] == names[0])
    assert begun["project"] == "lt_cb"
    assert begun["displayName"] == "quickstart/version_0"
    configs = [json.loads(run["config"]) for run in server.runs if run.get("config")]
    config = {name: entry["value"] for name, entry in configs[1].items() if name != "_wandb"}
    assert config["model"]["loss"]["init_args"]["weighting"]["init_args"]["beta"] == 0.9999
    assert config["class_counts"][0] == 134
    assert any(path.endswith(f"{names[0]}/file_stream") for path in server.asked)


def test_a_server_that_does_not_answer_stops_no_training(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    main(["fit", "--config", QUICKSTART, "--config", WANDB, *TINY])
    assert "so the run stays on disk" in capfd.readouterr().err
    assert Path("runs/quickstart/version_0/result.json").is_file()


def test_wandb_switched_off_is_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    main(["fit", "--config", QUICKSTART, "--config", WANDB, *TINY])
    assert Path("runs/quickstart/version_0/result.json").is_file()
    assert not list(Path().glob("wandb/*run*"))

    monkeypatch.setenv("WANDB_MODE", "nonsense")
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", QUICKSTART, "--config", WANDB, *TINY])
    assert "WANDB_MODE is 'nonsense', but must be online, offline or disabled" in capsys.readouterr().err
    assert not Path("runs/quickstart/version_1").exists()


def test_only_a_training_resumes_its_wandb_run() -> None:
    main(["fit", "--config", QUICKSTART, "--config", WANDB, *TINY])
    checkpoint = "--ckpt_path=runs/quickstart/version_0/checkpoints/last.ckpt"
    main(["test", checkpoint, "--config", WANDB])
    Path("new").mkdir()
    Image.new("L", (8, 8)).save("new/a.png")
    main(["predict", checkpoint, "--images=new"])
    runs = [folder.name.rpartition("-")[2] for folder in Path("wandb").glob("offline-run-*")]
    assert len(runs) == len(set(runs)) == 2  # the test has one of its own, the prediction none
    results = [json.loads(Path("runs/quickstart/version_0", part, "result.json").read_text()) for part in (".", "test")]
    assert {result["wandb_run"] for result in results} == set(runs)


def test_two_processes_never_take_the_same_folder() -> None:
    loggers = [RunFolder("runs", "run") for _ in range(3)]  # before any of them has begun
    assert len({logger.log_dir for logger in loggers}) == 1
    for logger in loggers:
        logger.experiment.log_metrics({"a": 1.0})
    folders = [logger.log_dir for logger in loggers]
    assert folders == [f"runs/run/version_{i}" for i in range(3)]
    assert [logger.log_dir for logger in loggers] == folders
    assert {path.name for path in Path("runs/run").iterdir()} == {"latest", *(f"version_{i}" for i in range(3))}
    assert Path("runs/run/latest").resolve() == Path(folders[2]).resolve()


def test_tensorboard_writes_into_the_run_folder() -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overlay = str(ROOT / "configs/logger/tensorboard.yaml")
    main(["fit", "--config", QUICKSTART, "--config", overlay, *TINY])
    run = Path("runs/quickstart/version_0")
    result = json.loads((run / "result.json").read_text())
    accumulator = EventAccumulator(str(run))
    accumulator.Reload()
    (event,) = accumulator.Scalars("test/balanced_acc")
    assert event.value == pytest.approx(result["metrics"]["test/balanced_acc"])
    assert not list(Path("runs").glob("*/version_1"))


def test_absent_tensorboard_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("lt_cb.loggers.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", QUICKSTART, "--config", str(ROOT / "configs/logger/tensorboard.yaml"), *TINY])
    assert "TensorBoard is not installed" in capsys.readouterr().err
    assert not Path("runs").exists()
