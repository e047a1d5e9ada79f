"""Features of frozen networks."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lt_cb.__main__ import main
from lt_cb.data import LongTailedDataModule
from lt_cb.errors import InputError
from lt_cb.extract import classifier_of
from lt_cb.features import (
    CPU_BATCH_SIZE,
    NUM_COMPARED,
    check_features,
    frozen_features,
    images_digest,
    network_digest,
)
from lt_cb.losses import SoftmaxLoss
from lt_cb.models import ClassifierRetraining, LearnableWeightScaling, SecondStage, last_linear
from lt_cb.module import LongTailedClassifier

ROOT = Path(__file__).parents[1]
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
FACTS = ("mean", "std", "class_names", "image_size", "in_channels")


def trainer() -> Trainer:
    return Trainer(accelerator="cpu", enable_model_summary=False, **QUIET)


def digits(**options) -> LongTailedDataModule:
    return LongTailedDataModule("digits", **{"imbalance_factor": 20, "batch_size": 64, "image_size": 32, **options})


def network(data: LongTailedDataModule, name: str = "resnet10t", **options) -> LongTailedClassifier:
    torch.manual_seed(1)
    facts = {fact: getattr(data, fact) for fact in FACTS}
    return LongTailedClassifier(SoftmaxLoss(data.class_counts), name, **facts, **options).eval()


def extract(model, data, split="train"):
    return frozen_features(model, data, split, trainer())


def count_images(model) -> list[int]:
    """Return a list that grows by the batch size with each pass of the backbone."""
    passes: list[int] = []
    model.backbone.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    return passes


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "test_convnext"])
def test_features_equal_the_inputs_of_a_timm_classifier(name):
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


def test_no_feature_is_computed_twice_not_even_for_a_subset():
    data, smaller = digits(), digits(imbalance_factor=40)
    models = network(data), network(data), network(smaller)
    passes = [count_images(model) for model in models]
    features, again, part = (extract(*pair)[0] for pair in zip(models, (data, data, smaller), strict=True))
    assert [sum(counted) for counted in passes] == [len(features), NUM_COMPARED, NUM_COMPARED]
    assert len(features) == sum(data.class_counts)
    np.testing.assert_array_equal(features, again)
    np.testing.assert_array_equal(part, features[np.isin(data.rows["train"], smaller.rows["train"])])


def test_an_interrupted_computation_resumes():
    data = digits()
    whole, _ = extract(network(data), data)
    other, resumed = network(data), network(data)
    with torch.no_grad():
        for model in (other, resumed):
            model.backbone.conv1[0].weight.mul_(1.5)
    passes = count_images(other)

    def fail(module, inputs, output):
        if len(passes) > 2:
            raise InterruptedError

    other.backbone.register_forward_hook(fail)
    with pytest.raises(InterruptedError):
        extract(other, data)
    passes = count_images(resumed)
    features, _ = extract(resumed, data)
    assert sum(passes) == len(whole) - 2 * CPU_BATCH_SIZE + NUM_COMPARED
    assert np.isfinite(features).all()
    assert (features != 0).any(1).all()
    assert not np.allclose(features, whole)


def test_the_digest_depends_on_backbone_normalisation_and_images(folder: Path):
    data = LongTailedDataModule("image_folder", str(folder), image_size=12)
    data.targets("train")
    model = network(data)
    digest, images = network_digest(model), images_digest(data, "train")
    with torch.no_grad():
        last_linear(model.backbone, 3).weight.add_(1.0)
        assert network_digest(model) == digest
        model.mean.add_(1.0)
        assert network_digest(model) != digest
        model.mean.sub_(1.0)
        model.backbone.bn1.running_mean.add_(1e-3)
    assert network_digest(model) != digest
    assert images_digest(data, "test") != images
    file = next((folder / "train" / "eel").iterdir())
    file.write_bytes(file.read_bytes() + b" ")
    assert images_digest(data, "train") != images


class Changing(nn.Module):
    """Network of 16 features whose code changes: a factor, 0 for constant features, or nan."""

    factor = 1.0

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.layer, self.classifier = nn.Linear(in_channels * 64, 16), nn.Linear(16, num_classes)

    def forward(self, images):
        features = self.layer(nn.functional.adaptive_avg_pool2d(images, 8).flatten(1)).relu()
        return self.classifier(features * type(self).factor)


def test_features_of_a_changed_network_are_computed_again(monkeypatch: pytest.MonkeyPatch, recwarn, own_cache: Path):
    data = digits(val_fraction=0.5, imbalance_factor=40)  # the images of train and val are rows of one file
    other = digits(subset_counts=[30] * 10, imbalance_factor=None, subset_seed=7)

    def start(data, *splits):
        model = network(data, f"{__name__}.Changing")
        passes = count_images(model)
        return [extract(model, data, split)[0] for split in splits], sum(passes)

    (train, val), computed = start(data, "train", "val")
    assert computed == len(train) + len(val)
    assert start(data, "train", "val")[1] == 2 * NUM_COMPARED
    (unlike,), computed = start(other, "train")  # a few of its images are kept already
    assert computed < len(unlike)
    assert start(other, "train")[1] == NUM_COMPARED
    assert not [warning for warning in recwarn if "other features" in str(warning.message)]
    monkeypatch.setattr(Changing, "factor", 1.001)
    with pytest.warns(UserWarning, match="other features than those kept .* all are computed again"):
        (changed_val, changed_train), computed = start(data, "val", "train")
    assert computed >= len(train) + len(val)
    np.testing.assert_allclose(changed_train, train * 1.001, rtol=1e-5)
    np.testing.assert_allclose(changed_val, val * 1.001, rtol=1e-5)
    np.testing.assert_allclose(start(other, "train")[0][0], unlike * 1.001, rtol=1e-5)
    assert start(other, "train")[1] == NUM_COMPARED
    monkeypatch.setattr(Changing, "factor", 1.0)
    with pytest.raises(InputError, match="computes other features than its head was trained on"):
        check_features(network(other, f"{__name__}.Changing"), other, "train", trainer())
    monkeypatch.setattr(Changing, "factor", float("nan"))
    with pytest.raises(InputError, match="features are not finite"):
        start(other, "train")


def test_damaged_features_are_computed_again(own_cache: Path):
    data = digits(image_size=8)

    def start() -> tuple[np.ndarray, int]:
        model = network(data, f"{__name__}.Changing")
        passes = count_images(model)
        return extract(model, data)[0], sum(passes)

    whole, _ = start()
    (file,) = own_cache.glob("*.npy")
    (sums,) = own_cache.glob("*.sums")
    kept, kept_sums, rows = file.read_bytes(), sums.read_bytes(), data.rows["train"]

    def damage(change) -> int:
        """Return how many images are computed after a change of the kept array."""
        file.write_bytes(kept)
        sums.write_bytes(kept_sums)
        array = np.load(file, mmap_mode="r+")
        change(array)
        array.flush()
        features, computed = start()
        np.testing.assert_allclose(features, whole, rtol=1e-5, atol=1e-6)
        return computed

    def flip(array):
        array[rows[5]].view(np.uint32)[3] ^= 1 << 31

    def swap(array):
        array[rows[:2]] = array[rows[1::-1]]

    assert damage(lambda array: None) == NUM_COMPARED
    assert damage(flip) == 1 + NUM_COMPARED
    assert damage(swap) == 2 + NUM_COMPARED
    assert damage(lambda array: array.__setitem__(rows[:20], 0.0)) == 20 + NUM_COMPARED
    assert damage(lambda array: array.__setitem__(rows[3:5], np.nan)) == 2 + NUM_COMPARED
    assert damage(lambda array: array.fill(0.0)) == len(rows)
    assert damage(lambda array: sums.unlink()) == len(rows)
    assert damage(lambda array: sums.write_bytes(bytes(len(kept_sums)))) == len(rows)
    for content in (
        kept[:-4],
        kept[:50],
        b"",
        kept.replace(b"<f4", b">f4"),
        kept.replace(b"False", b"True "),
        b"PK" + kept,
    ):
        file.write_bytes(content)
        assert start()[1] == len(rows)
        np.testing.assert_allclose(start()[0], whole, rtol=1e-5, atol=1e-6)


def test_simultaneous_starts_share_the_features(own_cache: Path):
    data = [digits() for _ in range(3)]
    together = threading.Barrier(3)

    def start(data: LongTailedDataModule) -> np.ndarray:
        with model_lock:
            model = network(data)
        together.wait()
        return extract(model, data)[0]

    model_lock = threading.Lock()
    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(start, data)
    assert np.isfinite(first).all()
    for features in others:
        np.testing.assert_allclose(features, first, rtol=1e-4, atol=1e-5)
    model = network(data[0])
    passes = count_images(model)
    np.testing.assert_allclose(extract(model, data[0])[0], first, rtol=1e-4, atol=1e-5)
    assert 0 < sum(passes) <= 3 * NUM_COMPARED
    assert sorted(file.suffix for file in own_cache.iterdir()) == [".lock", ".npy", ".sums"]


def headless(num_classes, in_channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 1024, 7), nn.Linear(7, num_classes), nn.ReLU())


def test_backbones_without_a_linear_classifier_are_refused():
    data = digits()
    with pytest.raises(InputError, match="no linear layer of 10 outputs"):
        classifier_of(network(data, f"{__name__}.convolutional"))
    with pytest.raises(InputError, match="not the output of its last linear layer"):
        extract(network(data, f"{__name__}.headless"), data)


def convolutional(num_classes, in_channels):
    return nn.Sequential(nn.Conv2d(in_channels, num_classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_full_disk_is_noticed_before_anything_is_computed(monkeypatch, own_cache: Path):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    data = digits()
    with pytest.raises(InputError, match=r"GiB, cannot be kept .* \(No space left on device\)"):
        extract(network(data), data)
    assert not [file for file in own_cache.iterdir() if file.suffix != ".lock"]


@pytest.mark.parametrize("stage", [ClassifierRetraining, LearnableWeightScaling])
def test_training_on_features_equals_training_on_images(stage: type[SecondStage], tmp_path: Path):
    states = []
    for on_features in (True, False):
        data = digits(crop_padding=0, horizontal_flip=False, image_size=8)
        model = network(data, "resnet20", second_stage=stage())
        if on_features:
            data.replace_images("train", torch.from_numpy(extract(model, data)[0]))
        passes = count_images(model)
        options = {"max_epochs": 3, "limit_val_batches": 0, "default_root_dir": tmp_path, "accelerator": "cpu"}
        Trainer(**options, **QUIET).fit(model, data)
        assert bool(passes) != on_features
        states.append(model.state_dict())
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name], value, atol=1e-4, rtol=1e-3)


def test_fit_trains_a_second_stage_on_kept_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path):
    monkeypatch.chdir(tmp_path)
    run, plain = tmp_path / "runs/quickstart", ["--data.crop_padding=0", "--data.horizontal_flip=false"]
    tiny = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--model.backbone=resnet20"]
    main(["fit", f"--config={ROOT}/configs/quickstart.yaml", "--trainer.max_epochs=1", *plain, *tiny])
    checkpoint, stage = run / "version_0/checkpoints/last.ckpt", ROOT / "configs/second_stage/crt.yaml"
    main(["fit", f"--ckpt_path={checkpoint}", f"--config={stage}", "--trainer.max_epochs=2", *tiny])
    computed = [~np.isnan(np.load(file)).any(1) for file in own_cache.glob("*.npy")]
    assert sorted(map(len, computed)) == [400, 1397]
    assert min(done.sum() for done in computed) == 371
    main(["test", f"--ckpt_path={run}/version_1/checkpoints/last.ckpt"])
    results = [json.loads((run / "version_1" / part / "result.json").read_text())["correct"] for part in (".", "test")]
    assert results[0] == results[1]
