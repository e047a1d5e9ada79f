"""Large images and many classes, streamed from files."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from forks import processes
from PIL import Image

from lt_cb.__main__ import main
from lt_cb.losses import SigmoidLoss
from lt_cb.module import LongTailedClassifier

ROOT = Path(__file__).parents[1]
CLASSES = 12
NAMES = {"inat2017": "INaturalist2017", "inat2018": "INaturalist2018", "ilsvrc2012": "ILSVRC2012"}
COUNTS = [15, 12, 10, 8, 6, 4, 3, 2, 1, 1, 1, 1]


@pytest.fixture
def inat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small data set in the layout of iNaturalist 2018: 64 training and 24 test images."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    rng = np.random.default_rng(0)
    for split, counts in (("train", COUNTS), ("val", [2] * CLASSES)):
        entries = [
            (label, f"train_val2018/Plantae/{label}/{split}{i}.jpg") for label, n in enumerate(counts) for i in range(n)
        ]
        for label, name in entries:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            coarse = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
            coarse[..., 0] = 255 * label // CLASSES
            Image.fromarray(coarse).resize((80, 60), Image.Resampling.BICUBIC).save(tmp_path / name)
        content = {
            "images": [{"id": i, "file_name": name} for i, (_, name) in enumerate(entries)],
            "annotations": [{"id": i, "image_id": i, "category_id": label} for i, (label, _) in enumerate(entries)],
            "categories": [{"id": label, "name": str(label)} for label in range(CLASSES)],
        }
        (tmp_path / f"{split}2018.json").write_text(json.dumps(content))
    return tmp_path


def arguments(root: Path, *more: str) -> list[str]:
    configs = ("configs/recipe/cui2019_large.yaml", "configs/inat2018.yaml", "configs/loss/cb_focal.yaml")
    small = [
        "--model.backbone=resnet18",
        "--model.backbone_args={norm_layer: groupnorm, layers: [1, 1, 1, 1]}",
        "--data.image_size=32",
    ]
    run = ["--trainer.max_epochs=3", "--trainer.accelerator=cpu", "--trainer.check_val_every_n_epoch=1"]
    exact = ["--model.fast=off", "--trainer.enable_progress_bar=false", "--data.global_batch_size=16"]
    named = [word for config in configs for word in ("--config", str(ROOT / config))]
    return ["fit", *named, f"--data.root={root}", *small, *run, *exact, *more]


def curves(run: Path) -> dict[str, list[float]]:
    with (run / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0] if name not in ("epoch", "step")}


@pytest.mark.slow
def test_two_processes_and_accumulated_batches_equal_one_process(inat: Path) -> None:
    main(arguments(inat, "--data.batch_size=16"))
    main(arguments(inat, "--data.batch_size=4"))
    two = [*arguments(inat, "--data.batch_size=8", "--trainer.devices=2"), "--trainer.strategy=ddp"]
    assert [code for code, _ in processes(2, *two)] == [0, 0]
    runs = [Path(f"runs/inat2018/version_{i}") for i in range(3)]
    one, *others = [curves(run) for run in runs]
    assert len(one["train/loss"]) == len(one["val/acc_top5"]) == 3
    assert one["train/loss"][2] < one["train/loss"][0]
    for other in others:
        for name, values in one.items():
            assert other[name] == pytest.approx(values, rel=1e-5, nan_ok=True), name
    result, *same = [json.loads((run / "result.json").read_text()) for run in runs]
    assert result["class_counts"] == COUNTS
    assert result["test_counts"] == [2] * CLASSES
    for other in same:
        assert other["class_counts"] == COUNTS
        assert other["per_class_accuracy"] == result["per_class_accuracy"]
    weights, *rest = [torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in runs]
    for other in rest:
        for name, values in weights.items():
            torch.testing.assert_close(other[name], values, rtol=1e-3, atol=1e-4)


def test_a_batch_size_that_does_not_divide_the_global_batch_raises(
    inat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments(inat, "--data.batch_size=6"))
    said = capsys.readouterr().err
    assert (
        "global_batch_size is 16, but must be a multiple of the 6 images that 1 x 6 (devices x batch_size) are" in said
    )
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["inat2017", "inat2018", "ilsvrc2012"])
def test_data_set_and_recipe_merge_in_either_order(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = [f"--config={ROOT / 'configs' / file}" for file in ("recipe/cui2019_large.yaml", f"{name}.yaml")]
    resolved = []
    for order in (files, files[::-1]):
        with pytest.raises(SystemExit, match="0"):
            main(["fit", *order, "--print_config"])
        resolved.append(yaml.safe_load(capsys.readouterr().out))
    assert resolved[0] == resolved[1]
    data, model = resolved[0]["data"], resolved[0]["model"]
    assert (data["source"], data["global_batch_size"], data["crop"], data["image_size"]) == (
        NAMES[name],
        1024,
        "resized",
        224,
    )
    assert (model["backbone"], resolved[0]["trainer"]["max_epochs"]) == ("resnet50", 90)


def test_recipe_equals_the_papers() -> None:
    """No weight decay on norms and the last bias; the last layer starts with N(0, 0.01) weights and the prior."""
    model = LongTailedClassifier(SigmoidLoss([5] * 8142), "resnet50", decay_1d=False, head_init_std=0.01)
    optimizer = model.make_optimizer(model.parameter_groups())
    decayed, spared = optimizer.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (2e-4, 0.0)
    modules = list(model.backbone.modules())
    norms = [m for m in modules if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(spared["params"]) == 2 * len(norms) + 1
    assert len(decayed["params"]) == sum(isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for m in modules)
    last = modules[-1]
    assert isinstance(last, torch.nn.Linear)
    assert last.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert last.bias.unique().tolist() == pytest.approx([-9.0047], abs=1e-4)  # -log(8141)
    assert sum(norm.weight.eq(0).all().item() for norm in norms) == 16  # one a residual branch
    assert sum(p.numel() for p in model.backbone.parameters()) == 25557032 - 1000 * 2049 + 8142 * 2049  # torchvision's
