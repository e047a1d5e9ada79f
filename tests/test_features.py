"""Features of frozen networks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lt_cb.__main__ import main
from lt_cb.commands.train import CLI
from lt_cb.data import LongTailedDataModule
from lt_cb.errors import InputError
from lt_cb.heads import features as kept
from lt_cb.losses import SoftmaxLoss
from lt_cb.models import last_linear
from lt_cb.models.resnet import ResNetCifar
from lt_cb.module import LongTailedClassifier

ROOT = Path(__file__).parents[1]
FACTS = ("mean", "std", "class_names", "image_size", "in_channels")


def trainer() -> Trainer:
    return Trainer(
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        accelerator="cpu",
        enable_model_summary=False,
    )


def digits(**options) -> LongTailedDataModule:
    return LongTailedDataModule("digits", **{"imbalance_factor": 20, "batch_size": 64, "image_size": 32, **options})


def network(data: LongTailedDataModule, name: str = "resnet10t", **options) -> LongTailedClassifier:
    torch.manual_seed(1)
    facts = {fact: getattr(data, fact) for fact in FACTS}
    return LongTailedClassifier(SoftmaxLoss(data.class_counts), name, **facts, **options).eval()


class BrokenError(RuntimeError):
    pass


def extract(model, data, split="train"):
    return kept.frozen_features(model, data, split, trainer())


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "test_convnext"])
def test_features_are_those_before_the_classifier_of_timm(name):
    data = digits(image_size=160 if name == "test_convnext" else 32, subset_counts=[2] * 10, imbalance_factor=None)
    options = {"img_size": 32} if name.startswith("vit") else {}
    model = network(data, name, backbone_args=options)
    features, targets = extract(model, data)
    images = torch.cat([images for images, _ in data.ordered_dataloader("train", torch.arange(20))])
    with torch.no_grad():
        pixels = (images - model.mean) / model.std
        expected = model.backbone.forward_head(model.backbone.forward_features(pixels), pre_logits=True)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4)
    assert targets.tolist() == data.targets("train").tolist()
    with torch.no_grad():
        logits = last_linear(model.backbone, 10)(torch.from_numpy(features))
        torch.testing.assert_close(logits, model(images), rtol=1e-3, atol=1e-4)


def test_no_feature_is_computed_twice_and_a_nested_subset_has_its_own(monkeypatch):
    computed = []
    step = kept.FeatureExtractor.predict_step
    monkeypatch.setattr(
        kept.FeatureExtractor, "predict_step", lambda self, b, i: (computed.append(len(b[0])), step(self, b, i))[1]
    )
    data = digits()
    features, _ = extract(network(data), data)
    assert sum(computed) == len(features) == sum(data.class_counts)
    again, _ = extract(network(data), data)
    smaller = digits(imbalance_factor=40)
    part, _ = extract(network(smaller), smaller)
    assert sum(computed) == len(features)
    np.testing.assert_array_equal(features, again)
    np.testing.assert_array_equal(part, features[np.isin(data.rows["train"], smaller.rows["train"])])


def test_an_interrupted_computation_goes_on(monkeypatch):
    data, step = digits(), kept.FeatureExtractor.predict_step
    whole, _ = extract(network(data), data)
    other = network(data)
    with torch.no_grad():
        other.backbone.conv1[0].weight.mul_(1.5)

    def failing(self, batch, index):
        if index == 2:
            raise BrokenError
        return step(self, batch, index)

    monkeypatch.setattr(kept.FeatureExtractor, "predict_step", failing)
    with pytest.raises(BrokenError):
        extract(other, data)
    monkeypatch.setattr(kept.FeatureExtractor, "predict_step", step)
    assert kept.FeatureExtractor(other, data, "train").missing() == len(whole) - 2 * kept.CPU_BATCH
    features, _ = extract(other, data)
    assert np.isfinite(features).all()
    assert (features != 0).any(1).all()
    assert not np.allclose(features, whole)


def test_the_digest_is_of_weights_without_classifier_pixels_and_images(folder: Path):
    data = LongTailedDataModule("image_folder", str(folder), image_size=12)
    data.targets("train")
    model = network(data)
    digest, images = kept.network_digest(model), kept.images_digest(data, "train")
    with torch.no_grad():
        last_linear(model.backbone, 3).weight.add_(1.0)
        assert kept.network_digest(model) == digest
        model.mean.add_(1.0)
        assert kept.network_digest(model) != digest
        model.mean.sub_(1.0)
        model.backbone.bn1.running_mean.add_(1e-3)
    assert kept.network_digest(model) != digest
    assert kept.images_digest(data, "test") != images
    file = next((folder / "train" / "eel").iterdir())
    file.write_bytes(file.read_bytes() + b" ")
    assert kept.images_digest(data, "train") != images


def headless(num_classes, in_channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 1024, 7), nn.Linear(7, num_classes), nn.ReLU())


def test_what_yields_no_features_is_refused():
    data = digits()
    with pytest.raises(InputError, match="no linear layer of 10 outputs"):
        kept.classifier_of(network(data, f"{__name__}.convolutional"))
    with pytest.raises(InputError, match="not the output of its last linear layer"):
        extract(network(data, f"{__name__}.headless"), data)


def convolutional(num_classes, in_channels):
    return nn.Sequential(nn.Conv2d(in_channels, num_classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_full_disk_is_told_before_anything_is_computed(monkeypatch, own_cache: Path):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept.os, "posix_fallocate", full, raising=False)
    data = digits()
    with pytest.raises(InputError, match=r"GiB, cannot be kept .* \(No space left on device\)"):
        extract(network(data), data)
    assert not list(own_cache.glob("*.npy"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["crt", "lws"])
def test_a_second_stage_on_features_is_that_on_images(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run, plain = tmp_path / "runs/quickstart", ["--data.crop_padding=0", "--data.horizontal_flip=false"]
    tiny = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.precision=32-true"]
    main(["fit", f"--config={ROOT}/configs/quickstart.yaml", "--trainer.max_epochs=1", *plain, *tiny])
    passes: list[int] = []
    forward = ResNetCifar.forward
    monkeypatch.setattr(
        ResNetCifar, "forward", lambda self, images: (passes.append(len(images)), forward(self, images))[1]
    )
    second = [
        "fit",
        f"--ckpt_path={run}/version_0/checkpoints/last.ckpt",
        f"--config={ROOT}/configs/second_stage/{stage}.yaml",
    ]
    for on_features in (True, False):
        if not on_features:
            monkeypatch.setattr(CLI, "_feed_features", lambda self: None)
        passes.clear()
        main([*second, "--trainer.max_epochs=4", *tiny])
        assert (sum(passes) < 2_000) == on_features  # 459 training images and 450 to test, once
    of_features, of_images = (
        torch.load(run / f"version_{i}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for i in (1, 2)
    )
    for name, value in of_images.items():
        torch.testing.assert_close(of_features[name], value, atol=1e-4, rtol=1e-3)
    main(["test", f"--ckpt_path={run}/version_1/checkpoints/last.ckpt"])
    results = [json.loads((run / f"version_{i}/result.json").read_text())["correct"] for i in (1, 3)]
    assert results[0] == results[1]
