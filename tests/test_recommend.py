"""The commands recommend and heads."""

import csv
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import Namespace
from PIL import Image

from lt_cb.__main__ import main
from lt_cb.errors import InputError
from lt_cb.heads import page
from lt_cb.heads.setup import for_channels, preprocessing
from lt_cb.models import build_backbone
from lt_cb.module import LongTailedClassifier
from lt_cb.runs.folder import RunDir
from lt_cb.runs.record import Record

FEW = ["--lambdas=[0.1]", "--betas=[]", "--gammas=[]", "--folds=2"]

NAMES = ("config.yaml", "predictions.csv", "heads.csv")  # by which the folder of a command is known


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Noisy images in four classes of distinct colours: 30, 12, 8 and 1 for training."""
    rng = np.random.default_rng(0)
    for split, counts in (("train", (30, 12, 8, 1)), ("test", (5, 5, 5, 5))):
        for label, count in enumerate(counts):
            folder = tmp_path / "my photos" / split / "abcd"[label]
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.full((10, 10, 3), 40, np.uint8) + rng.integers(0, 60, (10, 10, 3), dtype=np.uint8)
                pixels[..., : label if label < 3 else 1] += 100
                pixels[:4] += 50 * (label == 3)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "my photos"


@pytest.fixture
def run_command(photos: Path, tmp_path: Path) -> Callable[..., RunDir]:
    """Run a command on the photos, and return the folder of its run."""

    def folders() -> set[Path]:
        return {file.parent for name in NAMES for file in tmp_path.glob(f"runs/**/{name}")}

    def run(command: str, *words: str) -> RunDir:
        before = folders()
        data = [] if any("ckpt_path" in word for word in words) else ["--data.source=image_folder"]
        data += [f"--data.root={photos}", "--model.backbone=resnet20"] if data else []
        main([command, *data, "--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path / 'runs'}", *words])
        (made,) = folders() - before
        return RunDir(made)

    return run


def test_recommendation_is_a_checkpoint_to_test_and_predict_with(
    photos: Path, run_command: Callable[..., RunDir], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = run_command("recommend", "--lambdas=[0.1, 0.001]")
    out = capsys.readouterr().out
    printed = " ".join(out.split())
    assert "The choice ignores 'd': a class of one training image is never held out." in printed
    result = run.read_result()
    chosen = run.read_config()["model"]["loss"]["class_path"]
    assert chosen.rpartition(".")[2] == type(LongTailedClassifier.load_from_checkpoint(run.checkpoint).loss).__name__
    assert result.class_counts == [30, 12, 8, 1]
    assert result.scores[:3] == [1.0, 1.0, 1.0]
    page = run.recommendation_page.read_text()
    *_, result_line, next_line = out.splitlines()
    assert f'<p class="finding">{result_line}</p>' in page
    assert result_line.startswith("Chosen: ")
    assert re.findall(r"<td>([abcd])</td><td>(\d+)</td>", page)[:4] == [
        ("d", "1"),
        ("c", "8"),
        ("b", "12"),
        ("a", "30"),
    ]
    assert f"<h1>Recommendation: {photos}, resnet20</h1>" in page
    titles = ["Accuracy of the classes", "Prediction sets", "Unknown images", "Balanced accuracy by"]
    order = [page.find(f"<h2>{title}") for title in titles]
    assert sorted(order) == order
    assert out.count("✓") == 2  # in the table, and in the words below it
    command = shlex.split(next_line.removeprefix("Next: "))
    main(command[command.index("predict") :])
    (made,) = tmp_path.glob("runs/run/version_*/predictions/predictions.csv")
    assert len(made.read_text().splitlines()) == 1 + 20
    made.unlink()
    assert len(json.loads(run.recommendation.read_text())["balanced_accuracy_by_fold"]) == 2 * 6

    checkpoint = f"--ckpt_path={run.checkpoint}"
    tested = run_command("test", checkpoint).read_result()
    assert (tested.scores, tested.metrics) == (result.scores, result.metrics)  # both start from the images
    predictions = run_command(
        "predict", checkpoint, f"--images={photos / 'test'}", "--sets=0.9", "--unknown=true"
    ).predictions
    table = list(csv.DictReader(predictions.open()))
    assert all(0 <= float(row["unknown"]) <= 1 for row in table)
    rows = [(Path(row["file"]).parent.name, row["class"], row["set"]) for row in table]
    assert all(name == predicted for name, predicted, _ in rows if name != "d")
    sets = {name: [held.split(";") for true, _, held in rows if true == name] for name in "abcd"}
    covered = [np.mean([name in held for held in sets[name]]) for name in "abcd"]
    assert result.set_level == 0.9
    assert result.set_coverage == pytest.approx(covered)
    assert result.set_size == pytest.approx([np.mean([len(held) for held in sets[name]]) for name in "abcd"])
    assert result.metrics["test/coverage"] == pytest.approx(np.mean(covered), abs=1e-6)
    assert run_command("recommend", checkpoint, "--lambdas=[0.1]").recommendation.is_file()


def test_recommend_makes_one_data_module_and_tests_a_new_network(
    tmp_path: Path, run_command: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "counted.py").write_text(
        """
from lt_cb.data import LongTailedDataModule
from lt_cb.models import resnet20
made = []
class Data(LongTailedDataModule):
    def __init__(self, **options):
        made.append("data")
        super().__init__(**options)
def network(num_classes: int, in_channels: int = 3):
    made.append("network")
    return resnet20(num_classes, in_channels)
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    run_command("recommend", "--data=counted.Data", "--model.backbone=counted.network", "--lambdas=[0.1]")
    assert sys.modules["counted"].made == ["data", "network", "network"]


def test_recommend_follows_a_changed_network_and_refuses_a_random_one(
    tmp_path: Path, run_command: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "changing.py").write_text(
        """
import torch
from torch import nn
activation, entropy = nn.ReLU, None
class Random(nn.Module):
    def __init__(self, num_classes: int, in_channels: int = 3):
        super().__init__()
        self.weight = torch.randn(in_channels * 100, 8)  # no buffer
        self.classifier = nn.Linear(8, num_classes)
    def forward(self, images):
        return self.classifier(images.flatten(1) @ self.weight)
def network(num_classes: int, in_channels: int = 3):
    torch.manual_seed(0)
    layers = [nn.Conv2d(in_channels, 8, 3, 2), activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, num_classes))
"""
    )
    monkeypatch.syspath_prepend(tmp_path)

    def recommended() -> Record:
        run = run_command("recommend", "--model.backbone=changing.network", *FEW, "--taus=[1]")
        capsys.readouterr()
        return run.read_result()

    first = recommended().metrics
    assert recommended().metrics == first
    monkeypatch.setattr(sys.modules["changing"], "activation", torch.nn.Tanh)
    with pytest.warns(UserWarning, match="all are computed again"):
        changed = recommended().metrics
    monkeypatch.setenv("LT_CB_CACHE", str(tmp_path / "empty"))
    assert recommended().metrics == changed != first
    runs = set(tmp_path.glob("runs/run/version_*"))
    with pytest.raises(SystemExit, match="2"):
        run_command("recommend", "--model.backbone=changing.Random", *FEW, "--taus=[1]")
    error = capsys.readouterr().err
    assert "computes other features than its head was trained on" in error
    assert "Traceback" not in error
    assert set(tmp_path.glob("runs/run/version_*")) == runs


def test_heads_writes_a_score_for_each_recipe_and_subset_seed(
    run_command: Callable[..., RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    words = ["--data.subset_counts=[20,8,6,1]", "--lambdas=[0.1]"]
    run = run_command("heads", *words, "--trainer.logger=lt_cb.loggers.WandB", "--seeds=[3,0]")
    rows = list(csv.DictReader(run.heads.open()))
    assert len(rows) == 2 * 6
    assert {row["subset_seed"] for row in rows} == {"0", "3"}
    alone = csv.DictReader(run_command("heads", *words, "--seeds=[0]").heads.open())
    assert list(alone) == [row for row in rows if row["subset_seed"] == "0"]
    assert "6 heads on frozen features of resnet20" in run.heads_page.read_text()
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1


@pytest.mark.parametrize(
    ("command", "option", "message"),
    [
        ("recommend", "--lambdas=[-1]", "lambda is -1"),
        ("recommend", "--lambdas=[]", "--lambdas is empty"),
        ("recommend", "--betas=[1.0]", "beta is 1.0"),
        ("recommend", "--taus=[-0.5]", "tau is -0.5"),
        ("recommend", "--folds=1", "folds is 1"),
        ("recommend", "--folds=46", "no class has 46 .* set --folds 45 or fewer"),
        ("recommend", "--trainer.devices=0", "the Trainer cannot be made"),
        ("heads", "--trainer.fast_dev_run=true", "leave it out"),
        ("heads", "--seeds=[1,1]", r"seeds is \[1, 1\], but must be"),
    ],
)
def test_wrong_option_is_one_sentence(
    command: str, option: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, own_cache: Path
) -> None:
    common = ["--data.subset_counts=[45,9,9,9,9,9,9,9,9,9]", "--model.backbone=resnet20", "--trainer.accelerator=cpu"]
    with pytest.raises(SystemExit, match="2"):
        main([command, *common, f"--trainer.default_root_dir={tmp_path / 'runs'}", option])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("lt-cb: error: ")
    assert re.search(message, error)
    assert not (tmp_path / "runs").exists()
    assert not own_cache.exists()  # nothing was computed


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["[/x]", "[red]", ":cat:", "\x1b[31mred", "two\nlines", "**"]
    table = page.accuracy_table(names, [2] * 6, [2] * 6, dict.fromkeys(["", "[/b]"], torch.ones(6).long()), "[/i] note")
    page.show([table], [f"Chosen: {names}, {names[3]}, {names[4]}."])
    printed = capsys.readouterr().out
    for text in ("[/x]", "[red]", ":cat:", r"\x1b[31mred", r"two\nlines", " ** ", "[/b]", "[/i] note"):
        assert text in printed
    assert "\x1b" not in printed


def test_preprocessing_belongs_to_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    common = {"data.image_size": 224, "data.interpolation": "bicubic"}

    def model(backbone: str, **backbone_args: Any) -> Namespace:
        return Namespace(model=Namespace(backbone=backbone, backbone_args=backbone_args or None))

    resnet = {**common, "data.mean": [0.485, 0.456, 0.406], "data.std": [0.229, 0.224, 0.225]}
    assert preprocessing(model("resnet18")) == resnet
    lite = preprocessing(model("offline_lite0"))
    assert lite == {**common, "data.mean": [0.498] * 3, "data.std": [0.502] * 3}
    assert preprocessing(model("resnet18", pretrained=False)) == preprocessing(model("resnet32")) == {}
    assert for_channels(resnet["data.mean"], 3) == resnet["data.mean"]
    assert for_channels(resnet["data.mean"], 1) == pytest.approx([(0.485 + 0.456 + 0.406) / 3])


@pytest.mark.parametrize("given_by", ["flag", "environment"])
def test_settings_override_the_preprocessing_of_the_weights(
    given_by: str, run_command: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Files do not: they describe the training of another network."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    (tmp_path / "training.yaml").write_text("data: {image_size: 16, mean: [0.25]}\n")
    words = [*FEW]
    if given_by == "flag":
        words.append("--data.image_size=32")
    else:
        monkeypatch.setenv("LT_CB_DATA__IMAGE_SIZE", "32")
    words += [f"--config={tmp_path / 'training.yaml'}", "--model.backbone=offline_lite0"]
    data = run_command("recommend", *words).read_config()["data"]
    assert (data["image_size"], data["interpolation"], data["mean"]) == (32, "bicubic", [0.498] * 3)


def test_grey_images_get_the_mean_of_the_weights_over_colours(
    run_command: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    words = [*FEW, "--data.source=Digits", "--data.image_size=32", f"--data.subset_counts={[4] * 10}"]
    words += ["--trainer.limit_test_batches=1", "--model.backbone=offline_lite0"]
    data = run_command("recommend", *words).read_config()["data"]
    assert (data["mean"], data["std"]) == (pytest.approx([0.498]), pytest.approx([0.502]))


def test_an_unreadable_test_image_is_refused_before_features_are_computed(
    photos: Path, run_command: Callable[..., RunDir], own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "test" / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises(SystemExit, match="2"):
        run_command("recommend")
    assert "cannot be read as an image" in capsys.readouterr().err
    assert not list(own_cache.glob("*.npy"))


def test_random_weights_are_warned_of(run_command: Callable[..., RunDir]) -> None:
    with pytest.warns(UserWarning, match="resnet20 has random weights"):
        run = run_command("recommend", *FEW, "--taus=[]")
    assert list(json.loads(run.recommendation.read_text())["balanced_accuracy_by_fold"]) == ["softmax, λ 0.1"]


@pytest.mark.slow
def test_two_processes_recommend_the_same_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = ["--lambdas=[0.1,0.01]", "--betas=[0.9]", "--gammas=[]", "--taus=[1.0]", "--folds=2"]
    words = ["recommend", "--data.imbalance_factor=5", "--model.backbone=resnet20", "--trainer.accelerator=cpu", *grid]
    words += [f"--trainer.default_root_dir={tmp_path / 'runs'}"]
    main(words)
    monkeypatch.setenv("LT_CB_CACHE", str(tmp_path / "empty"))  # the two processes compute the features
    command = [sys.executable, "-m", "lt_cb", *words, "--trainer.devices=2", "--trainer.strategy=ddp"]
    subprocess.run(command, check=True, capture_output=True, timeout=500)
    one, two = (RunDir(tmp_path / "runs" / "run" / f"version_{i}") for i in range(2))
    assert two.read_result().correct == one.read_result().correct
    chosen = [json.loads(run.recommendation.read_text())["chosen"] for run in (one, two)]
    assert chosen[0] == chosen[1]


def test_failed_download_of_weights_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(**_: Any) -> None:
        raise FileNotFoundError("check your connection\nand more")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(InputError, match=r"cannot be downloaded or read \(check your connection\): offline"):
        build_backbone("resnet18", 3, options={"pretrained": True})
