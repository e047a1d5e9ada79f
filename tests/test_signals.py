"""What SIGTERM leaves: a run that can go on, and exit codes that say it has not ended."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lt_cb.runs import checkpoint
from lt_cb.runs.folder import RunDir

QUICKSTART = str(Path(__file__).parents[1] / "configs/quickstart.yaml")
OPTIONS = {"trainer.max_epochs": 3000, "trainer.accelerator": "cpu", "model.backbone": "resnet20"}


def _start(*words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "lt_cb", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which tests in the background ignore
    )


def _wait_for(file: Path, process: "subprocess.Popen[str]", later_than: float = 0.0) -> None:
    while not file.exists() or file.stat().st_mtime < later_than:
        assert process.poll() is None
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code", "said"), [(signal.SIGTERM, 143, "lt-cb: terminated"), (signal.SIGINT, 1, "")])
def test_a_training_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals, code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"--{key}={value}" for key, value in OPTIONS.items()]
    fit = _start("fit", "--config", QUICKSTART, *words, "--folder=runs/a/b", "--trainer.enable_progress_bar=false")
    _wait_for(Path("runs/a/b/checkpoints/last.ckpt"), fit)
    fit.send_signal(sent)
    out, _ = fit.communicate(timeout=300)
    assert fit.returncode == code
    assert said in out
    assert "Traceback" not in out
    assert not Path("runs/a/b/result.json").exists()
    checkpoint.read("runs/a/b/checkpoints/last.ckpt")


@pytest.mark.slow
def test_a_grid_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("grid.yaml").write_text(yaml.safe_dump({"folder": "runs/g", "config": QUICKSTART, "set": OPTIONS}))
    grid = _start("grid", "grid.yaml")
    run = Path("runs/g/grid/seed_0")
    _wait_for(run / "checkpoints/last.ckpt", grid)
    (training,) = [
        pid for file in Path(f"/proc/{grid.pid}/task").glob("*/children") for pid in file.read_text().split()
    ]
    os.kill(int(training), signal.SIGTERM)
    out, _ = grid.communicate(timeout=300)
    assert grid.returncode == 1
    assert "0 of 1 runs done, 0 failed." in out
    assert "1 interrupted: the same command resumes from the last checkpoints." in out
    assert not (run / "result.json").exists()
    assert not (run / "error.txt").exists()

    for sent, code in ((signal.SIGTERM, 143), (signal.SIGINT, 1)):
        grid = _start("grid", "grid.yaml")
        _wait_for(run / "config.yaml", grid, later_than=time.time())
        grid.send_signal(sent)
        out, _ = grid.communicate(timeout=300)
        assert grid.returncode == code
        assert "Interrupted: the same command resumes from the last checkpoints." in out
        assert "leaked" not in out
        assert "Traceback" not in out
    assert _start("grid", "grid.yaml", "--dry-run").communicate(timeout=300)[0].count("0 done, 1 to do") == 1


@pytest.mark.slow
def test_a_node_that_does_not_come_or_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    words = [f"--{key}={value}" for key, value in OPTIONS.items()]
    words += [
        "--trainer.num_nodes=2",
        "--trainer.devices=1",
        "--trainer.enable_progress_bar=false",
        "--folder=runs/a/b",
    ]
    words += ["--trainer.strategy=lightning.pytorch.strategies.DDPStrategy"]

    def node(rank: int, patience: str) -> "subprocess.Popen[str]":
        monkeypatch.setenv("NODE_RANK", str(rank))
        return _start("fit", "--config", QUICKSTART, *words, f"--trainer.strategy.timeout={patience}")

    sentence = r"lt-cb: error: another process of this training has not started, or has ended \((.*)\): see"
    alone = node(0, "0:00:02")
    out, _ = alone.communicate(timeout=300)
    assert alone.returncode == 1
    assert "Traceback" not in out
    assert re.search(sentence, out)[1].endswith("1/2 clients joined")

    first, second = node(0, "0:10:00"), node(1, "0:10:00")
    _wait_for(Path("runs/a/b/checkpoints/last.ckpt"), first)
    second.kill()
    out, _ = first.communicate(timeout=300)
    second.communicate()
    assert first.returncode == 1
    assert "Traceback" not in out
    assert re.search(sentence, out)[1] in ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    checkpoint.read("runs/a/b/checkpoints/last.ckpt")


@pytest.mark.slow
def test_two_trainings_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "--config",
        QUICKSTART,
        "--folder=runs/a/b",
        "--trainer.max_epochs=3",
        "--trainer.enable_progress_bar=false",
    ]
    both = [_start("fit", *words, f"--seed_everything={seed}") for seed in (0, 1)]
    printed = {process.communicate(timeout=300)[0]: process.returncode for process in both}
    assert sorted(printed.values()) == [0, 2]
    (refused,) = [out for out, code in printed.items() if code == 2]
    assert re.search(r"another process writes a run to 'runs/a/b'|'runs/a/b' has a run already", refused)
    assert "Traceback" not in refused
    run = RunDir("runs/a/b")
    assert (
        run.read_result().seed_everything
        == run.read_config()["seed_everything"]
        == both.index(next(process for process in both if process.returncode == 0))
    )
    assert [row["epoch"] for row in run.read_metrics() if row["train/loss"]] == ["0", "1", "2"]


@pytest.mark.slow
def test_an_early_signal_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM in the first epoch, before there is a checkpoint; Ctrl-C while ``recommend`` loads images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    Path("slow.py").write_text(
        "import time, pathlib\n"
        "from lightning.pytorch import Callback\n"
        "from lt_cb.data.sources import Digits\n"
        "class SlowTraining(Callback):\n"
        "    def on_train_batch_start(self, *_):\n"
        "        pathlib.Path('training').touch()\n"
        "        time.sleep(0.2)\n"
        "class SlowImages(Digits):\n"
        "    def load(self, split):\n"
        "        pathlib.Path('loading').touch()\n"
        "        time.sleep(30)\n"
    )
    fit = ("fit", "--config", QUICKSTART, "--folder=runs/a/b", "--trainer.callbacks+=slow.SlowTraining")
    for words, begun, sent, code, said in (
        (fit, "training", signal.SIGTERM, 143, "lt-cb: terminated: no epoch is complete, start again."),
        (("recommend", "--data.source=slow.SlowImages"), "loading", signal.SIGINT, 130, "lt-cb: interrupted."),
    ):
        process = _start(*words)
        _wait_for(Path(begun), process)
        process.send_signal(sent)
        out, _ = process.communicate(timeout=300)
        assert "Traceback" not in out
        assert said in out
        assert process.returncode == code
