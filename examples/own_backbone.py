r"""Custom backbone: three convolutions and a linear classifier.

PYTHONPATH=examples uv run lt-cb fit --config configs/quickstart.yaml \
    --model.backbone own_backbone.small_cnn --model.backbone_args.width 16
"""

from torch import nn


def small_cnn(num_classes: int, in_channels: int = 3, width: int = 32):
    """Return a network: images (B, in_channels, H, W) -> logits (B, C)."""
    layers = []
    for channels in (width, 2 * width, 4 * width):
        layers += [
            nn.Conv2d(in_channels, channels, 3, stride=2, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
        in_channels = channels
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(in_channels, num_classes))
