"""What SIGTERM leaves: a run that can go on, and exit codes that say it has not ended."""

import re
import signal
from pathlib import Path

import pytest
from forks import Command, free_port

from lt_cb.runs import checkpoint
from lt_cb.runs.folder import RunDir

QUICKSTART = str(Path(__file__).parents[1] / "configs/quickstart.yaml")
WORDS = ("--config", QUICKSTART, "--trainer.max_epochs=3000", "--trainer.accelerator=cpu", "--model.backbone=resnet20")
WORDS += ("--trainer.enable_progress_bar=false", "--folder=runs/a/b")


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code", "said"), [(signal.SIGTERM, 143, "lt-cb: terminated"), (signal.SIGINT, 1, "")])
def test_a_training_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals, code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fit = Command("fit", *WORDS)
    fit.wait_for(Path("runs/a/b/checkpoints/last.ckpt"))
    fit.send(sent)
    ended, out = fit.wait()
    assert ended == code
    assert said in out
    assert "Traceback" not in out
    assert not Path("runs/a/b/result.json").exists()
    checkpoint.read("runs/a/b/checkpoints/last.ckpt")


@pytest.mark.slow
def test_a_node_that_does_not_come_or_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    words = [*WORDS, "--trainer.num_nodes=2", "--trainer.devices=1"]
    words += ["--trainer.strategy=lightning.pytorch.strategies.DDPStrategy"]

    def node(rank: int, patience: str) -> Command:
        here = {**environment, "NODE_RANK": str(rank)}
        return Command("fit", *words, f"--trainer.strategy.timeout={patience}", environment=here)

    sentence = r"lt-cb: error: another process of this training has not started, or has ended \((.*)\): see"
    code, out = node(0, "0:00:02").wait()
    assert code == 1
    assert "Traceback" not in out
    assert re.search(sentence, out)[1].endswith("1/2 clients joined")

    first, second = node(0, "0:10:00"), node(1, "0:10:00")
    first.wait_for(Path("runs/a/b/checkpoints/last.ckpt"))
    second.send(signal.SIGKILL)
    code, out = first.wait()
    second.wait()
    assert code == 1
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
    both = [Command("fit", *words, f"--seed_everything={seed}") for seed in (0, 1)]
    codes, printed = zip(*(process.wait() for process in both), strict=True)
    assert sorted(codes) == [0, 2]
    refused = printed[codes.index(2)]
    assert re.search(r"another process writes a run to 'runs/a/b'|'runs/a/b' has a run already", refused)
    assert "Traceback" not in refused
    run = RunDir("runs/a/b")
    assert run.read_result().seed_everything == run.read_config()["seed_everything"] == codes.index(0)
    assert [row["epoch"] for row in run.read_metrics() if row["train/loss"]] == ["0", "1", "2"]


@pytest.mark.slow
def test_an_early_signal_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM in the first epoch, before there is a checkpoint; Ctrl-C while ``recommend`` loads images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
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
        process = Command(*words)
        process.wait_for(Path(begun))
        process.send(sent)
        ended, out = process.wait()
        assert "Traceback" not in out
        assert said in out
        assert ended == code
