"""``lt-cb export``: a file that maps images to the probabilities of a checkpoint, without this package."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from refusals import refused
from torch import Tensor

from lt_cb.__main__ import main
from lt_cb.commands import export
from lt_cb.losses import BalancedSoftmaxLoss
from lt_cb.module import LongTailedClassifier

NAMES = ["=cat", "dog", "eel"]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LongTailedClassifier:
    """A network whose checkpoint is model.ckpt in the working folder."""
    monkeypatch.chdir(tmp_path)
    made = LongTailedClassifier(
        BalancedSoftmaxLoss([50, 20, 5]),
        "resnet20",
        in_channels=1,
        mean=[0.3],
        std=[0.2],
        class_names=NAMES,
        image_size=8,
    )
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.strategy.connect(made)
    trainer.save_checkpoint("model.ckpt")
    return made.eval()


@torch.no_grad()
def probabilities(model: LongTailedClassifier, images: Tensor) -> Tensor:
    return model.probabilities(model(images))


@pytest.mark.parametrize("prior", [None, "uniform"])
def test_the_file_gives_the_probabilities_of_the_checkpoint(
    model: LongTailedClassifier, prior: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos").mkdir()
    photo = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(photo).save("photos/a.png")
    main(
        ["export", "--ckpt_path=model.ckpt", "--to=out/model.pt2", "--images=photos"]
        + ([] if prior is None else [f"--prior={prior}"])
    )
    assert "On 9 images its probabilities differ from the checkpoint's by at most" in capsys.readouterr().out
    if prior is not None:
        model.set_prior(torch.ones(3))
    exported = torch.export.load("out/model.pt2").module()
    for count in (1, 2, 5):
        images = torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8)
        torch.testing.assert_close(exported(images), probabilities(model, images))
    assert json.loads(Path("out/model.pt2.json").read_text()) == {
        "class_names": NAMES, "image_size": 8, "in_channels": 1, "crop": "padded", "interpolation": "bilinear",
        "prior": None if prior is None else pytest.approx([1 / 3] * 3),
    }  # fmt: skip
    assert not Path("runs").exists()


def test_onnx_has_the_same(model: LongTailedClassifier) -> None:
    for package in export.ONNX:
        pytest.importorskip(package)
    import onnxruntime

    main(["export", "--ckpt_path=model.ckpt", "--to=model.onnx"])
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images = torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8)
        (given,) = session.run(["probabilities"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(given), probabilities(model, images), atol=1e-5, rtol=1e-4)


def test_what_is_refused_writes_nothing(
    model: LongTailedClassifier, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("export", "--ckpt_path=model.ckpt")
    assert refused(capsys, *args).startswith("export needs a file to write: set --to to one")
    assert refused(capsys, *args, "--to=x.pt2", "--images=/nowhere").startswith("there is no file or folder '/nowhere'")
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else found(name))
    for given in (["--to=x.onnx"], ["--to=x", "--format=onnx"]):
        sentence = "--format onnx needs further packages: uv pip install onnx onnxscript onnxruntime."
        assert refused(capsys, *args, *given) == sentence

    def wrong(network: torch.nn.Module, example: Tensor) -> tuple[bytes, torch.nn.Module]:
        return b"", torch.nn.Sequential(network, torch.nn.Threshold(2, 0))

    monkeypatch.setattr(export, "to_torch", wrong)
    sentence = refused(capsys, *args, "--to=x.pt2")
    assert sentence.startswith("the exported probabilities differ from the checkpoint's by ")

    def impossible(network: torch.nn.Module, example: Tensor) -> tuple[bytes, torch.nn.Module]:
        raise RuntimeError("no\nway")

    monkeypatch.setattr(export, "to_torch", impossible)
    assert refused(capsys, *args, "--to=x.pt2") == "this network cannot be exported as torch (no way)."
    assert [file.name for file in Path().iterdir() if file.name != "cache"] == ["model.ckpt"]
