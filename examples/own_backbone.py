r"""Custom backbone: a function or class with the arguments num_classes and in_channels, and any options.

PYTHONPATH=examples uv run lt-cb fit --config configs/quickstart.yaml --model.backbone own_backbone.small_cnn \
    --model.backbone_args '{width: 16}'
"""

from torch import nn


def small_cnn(num_classes: int, in_channels: int = 3, width: int = 32) -> nn.Module:
    """Return three convolutions and a linear classifier: images (B, in_channels, H, W) -> logits (B, C)."""
    layers: list[nn.Module] = []
    for channels in (width, 2 * width, 4 * width):
        layers += [nn.Conv2d(in_channels, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        in_channels = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, num_classes))
