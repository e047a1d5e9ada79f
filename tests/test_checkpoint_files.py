"""A checkpoint is the one before or the new one, never a part of it."""

import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

import pytest
import torch

from lt_cb.commands.cli import CommandLine
from lt_cb.commands.train import Session
from lt_cb.errors import InputError
from lt_cb.runs import checkpoint

LARGE = {"state_dict": {"w": torch.ones(4_000_000)}, "pytorch-lightning_version": "2"}
fork = multiprocessing.get_context("fork")


def save() -> None:
    checkpoint.WholeFiles().save_checkpoint(LARGE, "a/last.ckpt")


def save_again_and_again() -> None:
    while True:
        save()


def save_on_a_full_disk(said: "multiprocessing.SimpleQueue[str]") -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        save()
    except InputError as error:
        said.put(str(error))


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": {"w": torch.ones(4)}, "pytorch-lightning_version": "2"}
    checkpoint.WholeFiles().save_checkpoint(content, "a/last.ckpt")


def test_fit_writes_whole_files_without_a_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    cli = Session(CommandLine("fit", ["--trainer.accelerator=cpu", "--trainer.max_epochs=1"]))
    assert isinstance(cli.trainer.strategy.checkpoint_io, checkpoint.WholeFiles)
    cli.trainer.strategy.checkpoint_io.save_checkpoint({"w": 1}, "b/last.ckpt")
    assert [file.name for file in Path("b").iterdir()] == ["last.ckpt"]
    cli.trainer.strategy.checkpoint_io.save_checkpoint({"w": 2}, "b/last.ckpt")
    assert {file.name: torch.load(file) for file in Path("b").iterdir()} == {
        "last.ckpt": {"w": 2},
        "last.before.ckpt": {"w": 1},
    }


def test_a_full_disk_keeps_the_checkpoint_before() -> None:
    said = fork.SimpleQueue()
    process = fork.Process(target=save_on_a_full_disk, args=(said,))
    process.start()
    process.join()
    assert said.get().startswith("the checkpoint 'a/last.ckpt' cannot be written (File too large); the one before")
    assert checkpoint.read("a/last.ckpt")["state_dict"]["w"].tolist() == [1.0] * 4
    assert [file.name for file in Path("a").iterdir()] == ["last.ckpt"]


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="another file system is needed")
def test_a_kill_while_it_is_written_keeps_the_checkpoint_before(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        monkeypatch.setattr(tempfile, "tempdir", elsewhere)
        before = Path("a/last.ckpt").stat().st_size
        process = fork.Process(target=save_again_and_again)
        process.start()
        while Path("a/last.ckpt").stat().st_size == before:
            time.sleep(0.01)
        while not Path("a/.last.ckpt.tmp").exists():
            pass
        process.kill()
        process.join()
        assert not os.listdir(elsewhere)
    assert checkpoint.read("a/last.ckpt")["state_dict"]["w"].shape == (4_000_000,)
    assert {file.name for file in Path("a").iterdir()} <= {"last.ckpt", "last.before.ckpt", ".last.ckpt.tmp"}


def test_a_flipped_bit_in_a_weight_is_damage() -> None:
    file = Path("a/last.ckpt")
    whole = file.read_bytes()
    place = whole.index(torch.ones(4).numpy().tobytes())
    for i in range(16):
        changed = bytearray(whole)
        changed[place + i] ^= 1 << i % 8
        file.write_bytes(changed)
        with pytest.raises(InputError, match=r"is damaged \(the checksum of \S+/data/0 differs\)"):
            checkpoint.read(file)


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("epoch", (None, "x", [])),
        ("pytorch-lightning_version", (None, 5, "x")),
        ("state_dict", (None, [], {"w": 5})),
        ("loops", (None, 5, {}, {"fit_loop": [], "validate_loop": {}, "test_loop": {}})),
        ("callbacks", (None, 5, [])),
        ("optimizer_states", (None, "x", {})),
        ("lr_schedulers", (None, 5, {})),
    ],
)
def test_a_part_of_another_kind_is_no_checkpoint(key: str, wrong: tuple[object, ...]) -> None:
    whole = {
        **{"state_dict": {"w": torch.ones(4)}, "pytorch-lightning_version": "2.6.0", "epoch": 1, "global_step": 9},
        **{"loops": {"fit_loop": {}, "validate_loop": {}, "test_loop": {}}, "callbacks": {}, "hyper_parameters": {}},
        **{"optimizer_states": [], "lr_schedulers": []},
    }
    torch.save(whole, "whole.ckpt")
    assert checkpoint.read("whole.ckpt").keys() == whole.keys()
    for value in wrong:
        torch.save({**whole, key: value}, "part.ckpt")
        with pytest.raises(InputError, match="is not a checkpoint of a run"):
            checkpoint.read("part.ckpt")
