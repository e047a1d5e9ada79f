"""Adapters, their checkpoints without the backbone, batch norm in evaluation mode, and layer-wise rates."""

import copy
import csv
import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from lightning.pytorch import Trainer, seed_everything
from PIL import Image
from refusals import refused
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lt_cb.__main__ import main
from lt_cb.commands.export import ONNX
from lt_cb.data import LongTailedDataModule
from lt_cb.features import network_digest
from lt_cb.losses import LDAMLoss, SoftmaxLoss
from lt_cb.models import attach_adapter, last_linear, merge_adapter
from lt_cb.module import LongTailedClassifier
from lt_cb.rates import scale_rates
from lt_cb.runs.checkpoint import read
from lt_cb.runs.folder import RunDir

SIZES = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "num_heads": 2}
COUNTS = [12, 8, 6, 5, 4, 4, 3, 3, 2, 2]
QUIET: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
QUIET |= {"accelerator": "cpu", "enable_checkpointing": False, "limit_val_batches": 0}
images = partial(torch.randint, 256, dtype=torch.uint8)


def vit(num_classes: int, in_channels: int = 1, seed: int = 0, norm: bool = False) -> nn.Module:
    """Return a tiny vision transformer with the same weights for each seed, as a pretrained one has."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = VisionTransformer(**SIZES, depth=2, in_chans=in_channels, num_classes=num_classes)
        network.norm_pre = nn.BatchNorm1d(5) if norm else network.norm_pre
        return network


def classifier(**options: Any) -> LongTailedClassifier:
    options = {"adapter": "lora", "adapter_rank": 2, "in_channels": 1, "image_size": 8, **options}
    return LongTailedClassifier(options.pop("loss", SoftmaxLoss(COUNTS)), f"{__name__}.vit", **options)


def change_adapters(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if ".lora_" in name or "head" in name:
            nn.init.normal_(parameter, std=0.5)


def saved(model: LongTailedClassifier, file: Path) -> Path:
    trainer = Trainer(**QUIET)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(file)
    return file


class Attention(nn.Module):
    """Attention whose layers are named as in transformers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))


NETWORKS = {
    "qkv": lambda: vit(3, 3),
    "qkv with its own bias": lambda: Beit(**SIZES, depth=1, num_classes=3),
    "q_proj": lambda: Eva(**SIZES, depth=1, num_classes=3, qkv_fused=False),
    "query": lambda: nn.Sequential(nn.Flatten(2), Attention(64), nn.Flatten(), nn.Linear(192, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_adapters_start_as_nothing_are_trained_and_merge_to_the_formula(name: str) -> None:
    network = NETWORKS[name]().eval()
    batch, before = torch.randn(2, 3, 8, 8), copy.deepcopy(network)
    attach_adapter(network, 3, 3)
    torch.testing.assert_close(network(batch), before(batch))
    change_adapters(network)
    network(batch).square().sum().backward()
    trained = {key for key, parameter in network.named_parameters() if parameter.requires_grad}
    head = next(key for key, module in network.named_modules() if module is last_linear(network, 3))
    assert trained == {key for key, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {key for key, _ in network.named_parameters() if ".lora_" in key or key.startswith(head)}
    state = network.state_dict()
    for key in [key for key in state if ".lora_A" in key]:  # W + B A
        layer = before.get_submodule(key.partition(".lora_")[0])
        layer.weight.data += state[key.replace("lora_A", "lora_B")] @ state[key]
    before.get_submodule(head).load_state_dict(last_linear(network, 3).state_dict())
    merged = copy.deepcopy(network)
    merge_adapter(merged)
    assert merged.state_dict().keys() == before.state_dict().keys()
    for other in (network, before):
        torch.testing.assert_close(merged(batch), other(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_classes", [2, 16])
def test_the_classifier_is_no_layer_of_an_adapter(num_classes: int) -> None:
    """The rank, and the width of a layer, can equal the number of classes."""
    network = nn.Sequential()
    network.head, network.body = nn.Linear(16, num_classes), Attention(16)
    attach_adapter(network, num_classes, num_classes)
    assert last_linear(network, num_classes) is (network.head if num_classes == 2 else network.body.value)


def test_a_checkpoint_has_what_is_trained_and_brings_the_network_back(tmp_path: Path) -> None:
    model = classifier(loss=LDAMLoss(COUNTS), backbone_args={"norm": True}).train()
    change_adapters(model)
    model(torch.randn(8, 1, 8, 8))  # statistics of batch norm
    file = saved(model, tmp_path / "a.ckpt")
    content = torch.load(file, weights_only=True)
    names = {name.removeprefix("backbone.") for name in content["state_dict"] if name.startswith("backbone.")}
    kinds = {name.partition(".lora_")[0] if ".lora_" in name else name for name in names}
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    layers = {f"blocks.{i}.{part}" for i in range(2) for part in parts}
    statistics = {f"norm_pre.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert kinds == layers | statistics | {"head.weight", "pos_embed"}
    again = LongTailedClassifier.load_from_checkpoint(file)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    for options, words in (
        ({"backbone_args": {"norm": True, "seed": 1}}, "'test_adapters.vit' has other weights here: use the same"),
        ({"adapter": None}, "without the weights of that backbone: set --model.adapter lora"),
        ({"adapter_rank": 3}, r"lora_A.default.weight' is \[2, 16\] there and \[3, 16\] here"),
    ):
        with pytest.raises(ValueError, match=words):
            LongTailedClassifier.load_from_checkpoint(file, **options)
    content["lt_cb_left_out"] = {"name": 1}
    torch.save(content, file)
    with pytest.raises(ValueError, match="does not name the backbone of its adapters: the checkpoint is damaged"):
        LongTailedClassifier.load_from_checkpoint(file)


def test_a_network_starts_from_a_checkpoint_with_or_without_adapters(tmp_path: Path) -> None:
    plain = classifier(adapter=None)
    nn.init.normal_(plain.backbone.head.weight)
    batch = images((3, 1, 8, 8))
    model = classifier()
    model.start_from(torch.load(saved(plain, tmp_path / "plain.ckpt"), weights_only=True))
    assert torch.equal(model.eval()(batch), plain.eval()(batch))
    assert network_digest(model) == network_digest(plain)  # kept features are used again
    change_adapters(model)
    assert network_digest(model) != network_digest(plain)
    other = classifier()
    other.start_from(torch.load(saved(model, tmp_path / "adapter.ckpt"), weights_only=True))
    assert torch.equal(model(batch), other.eval()(batch))


def test_a_timm_backbone_gets_its_pretrained_weights(tmp_path: Path) -> None:
    """A checkpoint of recommend says pretrained: false, since it has all weights."""
    weights = timm.create_model("test_vit", img_size=32, in_chans=1).state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "input_size": (1, 32, 32)}
    options = {"pretrained": False, "pretrained_cfg_overlay": overlay}
    model = LongTailedClassifier(SoftmaxLoss(COUNTS), "test_vit", options, adapter="lora", in_channels=1, image_size=32)
    assert torch.equal(model.backbone.blocks[0].mlp.fc1.weight, weights["blocks.0.mlp.fc1.weight"])


def test_adapters_of_a_backbone_that_was_trained_are_saved_with_it(tmp_path: Path) -> None:
    plain = classifier(adapter=None)
    plain.backbone.blocks[0].mlp.fc1.weight.data += 1.0
    model = classifier()
    model.start_from(torch.load(saved(plain, tmp_path / "plain.ckpt"), weights_only=True))
    change_adapters(model)
    with pytest.warns(UserWarning, match="have the whole network, and not the adapters alone: 'test_adapters.vit'"):
        file = saved(model, tmp_path / "adapter.ckpt")
    again = LongTailedClassifier.load_from_checkpoint(file)
    batch = images((3, 1, 8, 8))
    assert torch.equal(again.eval()(batch), model.eval()(batch))


FIT = ["fit", "--data.image_size=8", "--data.imbalance_factor=20", "--data.num_workers=0", "--data.batch_size=64"]
FIT += [f"--model.backbone={__name__}.vit", "--model.adapter=lora", "--trainer.accelerator=cpu"]
FIT += ["--trainer.precision=32-true", "--trainer.enable_progress_bar=false", "--trainer.max_epochs=2"]
STEPS = ["--model.optimizer=torch.optim.AdamW", "--model.layer_decay=0.5"]


@pytest.mark.slow
def test_from_fit_to_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resuming is exact, and the exported network has the probabilities of predict."""
    monkeypatch.chdir(tmp_path)
    main([*FIT, *STEPS, "--folder=runs/a/0"])
    run = RunDir("runs/a/0")
    trust = "--trust_checkpoint=true"
    main(["fit", f"--ckpt_path={run.checkpoint_before}", trust, "--folder=runs/a/1"])
    first, resumed = (read(folder.checkpoint) for folder in (run, RunDir("runs/a/1")))
    assert not any(part in name for name in resumed["state_dict"] for part in ("base_layer", "patch_embed"))
    for before, after in (
        (first["state_dict"], resumed["state_dict"]),
        *(
            (first["optimizer_states"][0]["state"][i], resumed["optimizer_states"][0]["state"][i])
            for i in first["optimizer_states"][0]["state"]
        ),
    ):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    Path("photos").mkdir()
    Image.fromarray(images((8, 8)).numpy()).save("photos/a.png")
    given = [f"--ckpt_path={run.checkpoint}", trust]
    exact = ["--probabilities=true", "--trainer.precision=32-true", "--trainer.accelerator=cpu"]
    main(["predict", *given, *exact, "--images=photos", "--folder=runs/a/p"])
    with Path("runs/a/p/predictions.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    main(["export", *given, "--to=model.pt2"])
    exported = torch.export.load("model.pt2").module()
    pixels = np.asarray(Image.open("photos/a.png"))[None, None].copy()
    expected = pytest.approx([float(row[str(c)]) for c in range(10)], abs=1e-5)
    assert exported(torch.from_numpy(pixels))[0].tolist() == expected
    assert not any(".lora_" in name for name, _ in exported.named_parameters())
    if all(map(importlib.util.find_spec, ONNX)):
        import onnxruntime

        main(["export", *given, "--to=model.onnx"])
        session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
        assert session.run(None, {"images": pixels})[0][0].tolist() == expected


def weights(folder: Path, batch_size: int = 50, **options: Any) -> Tensor:
    """Return the trained weights after two epochs on Digits, as one vector."""
    data = LongTailedDataModule(
        "digits", subset_counts=[10] * 10, image_size=8, horizontal_flip=False, batch_size=batch_size
    )
    seed_everything(0)
    model = LongTailedClassifier(
        SoftmaxLoss(data.class_counts), f"{__name__}.vit", adapter="lora", in_channels=1, image_size=8,
        optimizer=partial(torch.optim.SGD, lr=0.1),
    )  # fmt: skip
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    Trainer(**QUIET, max_epochs=2, default_root_dir=folder, **options).fit(model, data)
    trained = {name for name, value in model.backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert trained == {name for name in before if ".lora_" in name or "head" in name}
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    one, two = weights(tmp_path), weights(tmp_path, 25, devices=2, strategy="ddp_fork")
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_trains_like_float32(tmp_path: Path) -> None:
    half = weights(tmp_path, precision="bf16-mixed")
    assert torch.nn.functional.cosine_similarity(half, weights(tmp_path), dim=0) > 0.99


def test_batch_norm_can_stay_in_evaluation_mode() -> None:
    model = classifier(adapter=None, backbone_args={"norm": True}, freeze_norm=True).train()
    before = copy.deepcopy(model.backbone.norm_pre)
    model(torch.randn(8, 1, 8, 8)).square().sum().backward()
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(model.backbone.norm_pre.buffers(), before.buffers(), strict=True)
    )
    assert model.backbone.norm_pre.weight.grad.any()
    assert model.backbone.blocks[0].training


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_rates_fall_by_layer(adapter: str | None) -> None:
    """A step of plain SGD changes each weight by its gradient times its rate. The last block has the norm."""
    model = classifier(adapter=adapter, layer_decay=0.5, decay_1d=False)
    change_adapters(model)
    optimizer = torch.optim.SGD(model.parameter_groups(), lr=0.1, weight_decay=1e-9)
    scale_rates(optimizer)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    rates = [group["lr"] for group in optimizer.param_groups]
    model(torch.randn(4, 1, 8, 8)).square().sum().backward()
    before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    optimizer.step()
    layers = {"blocks.0": 0.25, "blocks.1": 0.5, "norm": 0.5, "head": 1.0}
    for name, parameter in model.backbone.named_parameters():
        if parameter.grad is not None:
            factor = next((factor for layer, factor in layers.items() if name.startswith(layer)), 0.125)
            torch.testing.assert_close(parameter, before[name] - rates[0] * factor * parameter.grad)
    assert [group["lr"] for group in optimizer.param_groups] == rates
    schedule.step()
    assert len({group["lr"] for group in optimizer.param_groups}) == 1
    for group in optimizer.param_groups:
        assert {p.ndim < 2 for p in group["params"]} == {"weight_decay" in group and group["weight_decay"] == 0.0}


def test_wrong_options_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (0.0, 1.5):
        with pytest.raises(ValueError, match=rf"layer_decay is {value}, but must be in \(0, 1\]"):
            classifier(layer_decay=value)
    with pytest.raises(ValueError, match="adapter_rank is 0, but must be at least 1"):
        classifier(adapter_rank=0)
    sentence = refused(capsys, *FIT, "--model.backbone=resnet20")
    assert sentence.startswith(
        "--model.adapter is lora, but the backbone has no linear layers for queries, keys and values, which"
    )
    monkeypatch.setitem(sys.modules, "peft", None)
    sentence = refused(capsys, *FIT)
    assert sentence.endswith("run pip install 'lt_cb[adapters]'.")
