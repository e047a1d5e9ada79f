import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lt_cb.losses import SoftmaxLoss
from lt_cb.models import build_backbone, last_linear, resnet20, resnet32, resnet110, spare_depthwise, spare_small_images
from lt_cb.module import LongTailedClassifier


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_numbers_of_parameters_match_the_papers() -> None:
    assert parameters(resnet32(10)) == 464_154
    assert parameters(resnet32(100)) == 470_004
    # He et al. 2016, table 6: 0.27 M and 1.7 M
    assert round(parameters(resnet20(10)) / 1e6, 2) == 0.27
    assert round(parameters(resnet110(10)) / 1e6, 1) == 1.7


@pytest.mark.parametrize("shortcut", ["pool", "stride"])
def test_forward_equals_plain_functions(shortcut: str) -> None:
    torch.manual_seed(0)
    model = resnet20(10, shortcut=shortcut).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    state = model.state_dict()

    def bn(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    x = bn(F.conv2d(images, state["conv1.weight"], padding=1), "bn1").clamp(min=0)
    for i in range(9):
        stride = 2 if i in (3, 6) else 1
        out = bn(F.conv2d(x, state[f"blocks.{i}.conv1.weight"], padding=1, stride=stride), f"blocks.{i}.bn1").clamp(
            min=0
        )
        out = bn(F.conv2d(out, state[f"blocks.{i}.conv2.weight"], padding=1), f"blocks.{i}.bn2")
        if stride == 2:
            if shortcut == "pool":
                x = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
            else:
                x = x[:, :, ::2, ::2]
            zeros = torch.zeros_like(x)[:, : x.shape[1] // 2]
            x = torch.cat([zeros, x, zeros], 1)
        x = (out + x).clamp(min=0)
    expected = x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("size", [8, 15, 28, 32])
def test_resnets_take_any_image_size(size: int) -> None:
    assert resnet20(4, in_channels=1)(torch.zeros(2, 1, size, size)).shape == (2, 4)


def test_initial_weights_follow_glorot_or_kaiming() -> None:
    torch.manual_seed(0)
    glorot, kaiming = resnet32(10).blocks[14].conv2.weight, resnet32(10, init="kaiming").blocks[14].conv2.weight
    fan = 64 * 9
    assert glorot.abs().max().item() == pytest.approx((6 / (2 * fan)) ** 0.5, rel=1e-3)
    assert kaiming.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.02)


def test_timm_and_custom_models_are_found_by_name() -> None:
    timm_model = build_backbone("resnet18", 7, in_channels=1)
    assert timm_model(torch.zeros(1, 1, 64, 64)).shape == (1, 7)
    assert last_linear(timm_model, 7) is timm_model.fc
    own = build_backbone(f"{__name__}.tiny", 7, in_channels=1, options={"size": 4})
    assert own(torch.zeros(1, 1, 4, 4)).shape == (1, 7)


def test_a_module_of_the_user_may_start_as_the_names_of_lt_cb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from torch import nn\ndef net(num_classes, in_channels):\n    return nn.Conv2d(in_channels, num_classes, 1)\n"
    )
    (tmp_path / "offline_own.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    assert build_backbone("offline_own.net", 7, in_channels=1, image_size=8)(torch.zeros(1, 1, 8, 8)).shape[1] == 7


def tiny(num_classes: int, in_channels: int, size: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * size * size, num_classes))


def test_unknown_models_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"there is no model 'resnet23'.*Did you mean 'resnet"):
        build_backbone("resnet23", 10)
    with pytest.raises(
        ValueError, match=r"there is no model 'vit_tiny_patch16_225'.*Did you mean 'vit_tiny_patch16_224'"
    ):
        build_backbone("vit_tiny_patch16_225", 10)
    for name, nearest in (("resnet18x", "resnet18"), ("resnet23", "resnet20"), ("resnet-110", "resnet110")):
        with pytest.raises(ValueError, match=rf"there is no model '{name}'.*Did you mean '{nearest}'"):
            build_backbone(name, 10)
    with pytest.raises(ValueError, match=r"'no.such', but 'no' cannot be imported"):
        build_backbone("no.such", 10)
    with pytest.raises(ValueError, match=r"'resnet32' does not take these options .*'width'"):
        build_backbone("resnet32", 10, options={"width": 2})
    with pytest.raises(ValueError, match="shortcut is 'none'"):
        build_backbone("resnet32", 10, options={"shortcut": "none"})


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 2, 1), (3, 4, 3), (7, 1, 2), (3, 1, 8)])
def test_bfloat16_gradients_of_small_images_are_right(kernel: int, stride: int, size: int) -> None:
    """Without the workaround, some CPUs return freed memory as the gradient."""
    network = nn.Sequential(nn.Conv2d(256, 512, kernel, stride, kernel // 2, bias=False))
    images = torch.randn(4, 256, size, size)
    exact = nn.Conv2d(256, 512, kernel, stride, kernel // 2, bias=False, dtype=torch.float64)
    exact.load_state_dict(network[0].state_dict())
    exact(images.double()).square().sum().backward()
    spare_small_images(network)
    freed = [torch.full((2**20,), torch.nan) for _ in range(8)]
    del freed
    with torch.autocast("cpu", torch.bfloat16):
        network(images).float().square().sum().backward()
    torch.testing.assert_close(network[0].weight.grad.double(), exact.weight.grad, rtol=0.02, atol=0.5)


def test_depthwise_convolutions_use_float32_under_autocast() -> None:
    network = nn.Conv2d(8, 16, 3, groups=8)
    images = torch.randn(2, 8, 5, 5)
    exact = network(images)
    spare_depthwise(network)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(copy.deepcopy(network)(images.bfloat16().float()), network(images.bfloat16()))
        assert torch.equal(network(images), exact)


def test_a_vit_is_built_for_the_image_size() -> None:
    images = torch.zeros(2, 3, 32, 32)
    assert build_backbone("vit_tiny_patch16_224", 4, image_size=32)(images).shape == (2, 4)
    model = LongTailedClassifier(SoftmaxLoss([3, 2, 1, 1]), "vit_tiny_patch16_224", image_size=32)
    assert model(images).shape == (2, 4)
    assert build_backbone("resnet10t", 4, image_size=32)(images).shape == (2, 4)
    with pytest.raises(ValueError, match="images of 8 pixels, which are smaller than its patches"):
        build_backbone("vit_tiny_patch16_224", 4, image_size=8)
