"""``lt-cb export``: a file that maps images to the probabilities of a checkpoint, without this package."""

import csv
import importlib.util
import itertools
import json
import re
from pathlib import Path
from typing import Any

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

ROOT = Path(__file__).parents[1]
NAMES = ["=cat", "dog", "eel"]
PREPROCESSING = [
    "import numpy as np",
    "from PIL import Image, ImageOps",
    "image = ImageOps.exif_transpose(Image.open(file)).convert('L')",
    "image = ImageOps.fit(image, (8, 8), Image.Resampling.BILINEAR)",
    "images = np.asarray(image).reshape(1, *(8, 8), 1).transpose(0, 3, 1, 2).copy()  # uint8",
]


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
        "prior": None if prior is None else pytest.approx([1 / 3] * 3), "preprocessing": PREPROCESSING,
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


@pytest.mark.slow
@pytest.mark.parametrize("crop", ["padded", "resized"])
def test_the_lines_of_python_make_the_images_of_predict(crop: str, model: LongTailedClassifier) -> None:
    """The lines of the JSON and of the page, on images of other sizes, modes and orientations."""
    rng = np.random.default_rng(0)

    def photo(file: Path, mode: str = "RGB", **options: Any) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (*rng.integers(5, 9, 2), 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((90, 70), Image.Resampling.BICUBIC).convert(mode).save(file, **options)

    for split, name in itertools.product(("train", "test"), ("cat", "dog")):
        for i in range(3):
            photo(Path("photos", split, name, f"{i}.png"))
    turned = Image.Exif()
    turned[0x0112] = 6
    photo(Path("new_photos/1.jpg"), exif=turned)
    for mode, name in (("L", "2.png"), ("P", "3.png"), ("CMYK", "4.jpg"), ("RGBA", "5.png")):
        photo(Path("new_photos", name), mode)
    options = [f"--data.crop={crop}", "--data.interpolation=bicubic"] if crop == "resized" else []
    config = ["--config", str(ROOT / "configs/image_folder.yaml"), "--data.root=photos", "--data.image_size=64"]
    config += ["--model.backbone=resnet20", "--trainer.max_epochs=1", "--trainer.accelerator=cpu", *options]
    main(["fit", *config, "--folder=runs/a/b", "--model.optimizer.lr=0.01"])
    checkpoint = "--ckpt_path=runs/a/b/checkpoints/last.ckpt"
    exact = [checkpoint, "--probabilities=true", "--trainer.precision=32-true"]
    main(["predict", *exact, "--images=new_photos", "--folder=runs/a/p"])
    main(["export", checkpoint, "--to=model.pt2", "--logits=true"])
    exported = torch.export.load("model.pt2").module()
    lines = json.loads(Path("model.pt2.json").read_text())["preprocessing"]
    with Path("runs/a/p/predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        scope: dict[str, Any] = {"file": row["file"]}
        exec("\n".join(lines), scope)
        probabilities, logits = exported(torch.from_numpy(scope["images"]))
        given = [float(row["cat"]), float(row["dog"])]
        assert probabilities[0].tolist() == pytest.approx(given, abs=1e-5)
        torch.testing.assert_close(logits.softmax(1), probabilities)
    if crop == "padded":
        main(["export", checkpoint, "--to=model.pt2"])
        page = (ROOT / "docs/own_images.md").read_text()
        (block,) = (part for part in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "ImageOps.fit" in part)
        exec(block, scope := {})
        (row,) = (row for row in rows if row["file"].endswith("1.jpg"))
        assert scope["probabilities"][0].tolist() == pytest.approx([float(row["cat"]), float(row["dog"])], abs=1e-5)


def test_a_checkpoint_whose_mean_has_other_channels_is_damaged(
    model: LongTailedClassifier, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load("model.ckpt", weights_only=True)
    content["hyper_parameters"]["mean"] = [0.1, 0.2]
    torch.save(content, "model.ckpt")
    Path("photos").mkdir()
    sentence = refused(capsys, "predict", "--ckpt_path=model.ckpt", "--images=photos")
    assert sentence == "the checkpoint's mean does not fit its images: the checkpoint is damaged."


def test_small_probabilities_keep_their_digits(model: LongTailedClassifier) -> None:
    Path("photos").mkdir()
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save("photos/a.png")
    content = torch.load("model.ckpt", weights_only=True)
    content["state_dict"]["backbone.fc.bias"] = torch.tensor([300.0, 0.0, -150.0])
    torch.save(content, "model.ckpt")
    main(["predict", "--ckpt_path=model.ckpt", "--images=photos", "--probabilities=true", "--folder=runs/a/p"])
    with Path("runs/a/p/predictions.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    values = [float(row[name]) for name in ("'=cat", "dog", "eel")]
    assert values[0] > values[1] > values[2] > 0
    assert all(len(row[name].strip("0").replace(".", "").partition("e")[0]) >= 5 for name in ("dog", "eel"))


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
