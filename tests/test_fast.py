"""``fast`` gives the same training in less time."""

import platform
import resource
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer, seed_everything

from lt_cb import hardware
from lt_cb.__main__ import main
from lt_cb.data import LongTailedDataModule
from lt_cb.losses import EffectiveNumber, FocalLoss
from lt_cb.models import TrainingGraph, resnet20
from lt_cb.module import LongTailedClassifier

QUICKSTART = str(Path(__file__).parents[1] / "configs/quickstart.yaml")


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.values.append(float(outputs["loss"]))


def train(
    tmp_path: Path, precision: str = "32-true", compiled: bool = False, seed: int = 0
) -> tuple[LongTailedClassifier, list[float]]:
    """Train for 20 steps and return the module and the losses."""
    seed_everything(seed)
    data = LongTailedDataModule("digits", imbalance_factor=10, image_size=16, batch_size=32)
    loss = FocalLoss(data.class_counts, weighting=EffectiveNumber(0.99))
    module = LongTailedClassifier(
        loss, "resnet20", optimizer=lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), in_channels=1
    )
    if compiled:
        module.backbone.compile(backend="aot_eager")  # without code generation, which needs a C++ compiler
    losses = Losses()
    trainer = Trainer(
        max_steps=20, precision=precision, accelerator="cpu", callbacks=[losses], default_root_dir=tmp_path,
        limit_val_batches=0, enable_progress_bar=False, enable_model_summary=False, logger=False,
    )  # fmt: skip
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / f"{compiled}.ckpt")
    return module, losses.values


@pytest.fixture(scope="module")
def plainly_trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[LongTailedClassifier, list[float]]:
    return train(tmp_path_factory.mktemp("plain"))


@pytest.mark.slow
def test_a_compiled_network_trains_alike(
    tmp_path: Path, plainly_trained: tuple[LongTailedClassifier, list[float]]
) -> None:
    plain, (compiled, _) = plainly_trained[0], train(tmp_path, compiled=True)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-5, atol=1e-5)
    again = LongTailedClassifier.load_from_checkpoint(tmp_path / "True.ckpt")
    assert again.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.slow
def test_mixed_precision_differs_less_than_seeds(
    tmp_path: Path, plainly_trained: tuple[LongTailedClassifier, list[float]]
) -> None:
    exact, (mixed, rounded) = plainly_trained[1], train(tmp_path, "bf16-mixed")
    other = train(tmp_path, seed=1)[1]
    assert all(value.dtype == torch.float32 for value in mixed.backbone.parameters())
    apart, seeds = (np.abs(np.subtract(values, exact)).mean() for values in (rounded, other))
    assert 0 < apart < seeds / 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators do without")
def test_freed_memory_is_reused() -> None:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(8):
            torch.ones(9 * 2**20)  # 36 MiB, 9216 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with hardware.reused_memory():
        faults()
        assert faults() < 9216


def test_the_precision_depends_on_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for instructions, precision in (
        ({"amx_bf16": True}, "bf16-mixed"),
        ({"avx512_bf16": True}, "bf16-mixed"),
        ({"avx512_f": True}, None),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=instructions: found, raising=False)
        assert hardware.mixed_precision("auto") == hardware.mixed_precision("cpu") == precision
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for supported, precision in ((True, "bf16-mixed"), (False, None)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, found=supported: found)
        assert hardware.mixed_precision("auto") == hardware.mixed_precision("gpu") == precision


@pytest.mark.parametrize(
    ("args", "precision"),
    [
        ([], "bf16-mixed"),
        (["--model.fast=off"], None),
        (["--trainer.precision=32-true"], "32-true"),
    ],
)
def test_precision_and_fast_options_are_obeyed(
    args: list[str], precision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    short = ["--trainer.max_epochs=1", *(f"--trainer.limit_{part}_batches=1" for part in ("train", "test"))]
    main(["fit", "--config", QUICKSTART, *short, "--trainer.accelerator=cpu", *args])
    config = yaml.safe_load(Path("runs/quickstart/version_0/config.yaml").read_text())
    assert config["trainer"]["precision"] == precision


class Recorder:
    """Stand-in for a CUDA graph without a GPU; tests set its ``replay``."""

    def __init__(self) -> None:
        self.replay = self.pool = lambda: None


def trained(network: torch.nn.Module, run: Callable[[torch.Tensor], torch.Tensor]) -> torch.nn.Module:
    """Train for five steps; the third batch is smaller."""
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for size in (8, 8, 5, 8, 8):
        images, targets = torch.randn(size, 3, 8, 8, generator=draw), torch.arange(size) % 4
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(run(images), targets).backward()
        optimizer.step()
    return network


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorder)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **options: nullcontext())


@pytest.mark.usefixtures("recorder")
def test_a_replayed_pass_gives_exact_gradients() -> None:
    plain, network = resnet20(4), resnet20(4)
    network.load_state_dict(plain.state_dict())
    graph, shapes = TrainingGraph(network), []

    def forward() -> None:
        graph.logits.copy_(network(graph.images))

    def backward() -> None:
        shapes.append(tuple(graph.images.shape))
        with torch.enable_grad():
            again = torch.autograd.grad(network(graph.images), graph.parameters, graph.grad_logits)
        for kept, gradient in zip(graph.gradients, again, strict=True):
            kept.copy_(gradient)

    graph.forward.replay, graph.backward.replay = forward, backward
    expected = trained(plain, plain).parameters()
    for p, q in zip(trained(network, graph).parameters(), expected, strict=True):
        torch.testing.assert_close(p, q)
    assert shapes == [(8, 3, 8, 8)] * 3


@pytest.mark.usefixtures("recorder")
def test_recording_keeps_the_running_statistics() -> None:
    network = resnet20(4)
    graph = TrainingGraph(network)
    graph(torch.randn(8, 3, 8, 8))
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    graph(torch.randn(8, 3, 8, 8))  # records
    for name, buffer in network.named_buffers():
        torch.testing.assert_close(buffer, before[name], rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_replayed_steps_have_the_losses_of_plain_steps(tmp_path: Path) -> None:
    runs = []
    for fast in ("auto", "off"):
        seed_everything(0)
        data = LongTailedDataModule("digits", imbalance_factor=10, image_size=16, batch_size=32)
        module = LongTailedClassifier(FocalLoss(data.class_counts), "resnet20", in_channels=1, fast=fast)
        losses = Losses()
        Trainer(max_steps=60, callbacks=[losses], default_root_dir=tmp_path, logger=False).fit(module, data)
        runs.append(losses.values)
    assert runs[0][:5] == pytest.approx(runs[1][:5], rel=1e-4)
    assert np.mean(runs[0][-10:]) == pytest.approx(np.mean(runs[1][-10:]), rel=0.1)
