"""Residual networks for CIFAR (He et al. 2016), in the two variants of the reference codes."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from lt_cb.errors import InputError

Shortcut = Literal["pool", "stride"]
Init = Literal["glorot", "kaiming"]


class _Block(nn.Module):
    def __init__(self, in_width: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.extra = width - in_width
        self.shortcut = shortcut

    def _skip(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            # ceil_mode rounds odd sizes up, like the strided convolution beside it
            x = (
                F.avg_pool2d(x, self.stride, ceil_mode=True)
                if self.shortcut == "pool"
                else x[:, :, :: self.stride, :: self.stride]
            )
        if self.extra:
            x = F.pad(x, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        return x

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self._skip(x))


class ResNetCifar(nn.Module):
    """Residual network of depth 6 n + 2 with basic blocks and parameter-free shortcuts (He et al. 2016, section 4.2).

    It has three stages of n blocks with widths 16, 32, 64 and strides 1, 2, 2, then a global average pool and a linear
    layer. The bias of the linear layer starts at 0.

    Args:
        depth: 6 n + 2: 20, 32, 44, 56, 110, ...
        num_classes: C, at least 1.
        in_channels: channels of the images.
        shortcut: shortcut where the size halves: ``pool`` averages pixels (code of Cui et al. 2019), ``stride`` takes
            every second pixel (code of LDAM-DRW). Both pad the new channels with zeros, half on each side.
        init: initial weights: ``glorot`` uniform (code of Cui et al. 2019, default of TensorFlow) or ``kaiming`` normal
            (code of LDAM-DRW).

    Raises:
        InputError: if the depth is not 6 n + 2, or the shortcut or init is unknown.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int,
        in_channels: int = 3,
        shortcut: Shortcut = "pool",
        init: Init = "glorot",
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise InputError(f"depth is {depth}, but must be 6 n + 2: 20, 32, 44, 56 or 110.")
        if shortcut not in ("pool", "stride") or init not in ("glorot", "kaiming"):
            raise InputError(
                f"shortcut is '{shortcut}' and init is '{init}', but shortcut must be 'pool' or 'stride', and init "
                "'glorot' or 'kaiming'."
            )
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks: list[nn.Module] = []
        in_width = 16
        for width in (16, 32, 64):
            for i in range((depth - 2) // 6):
                blocks.append(_Block(in_width, width, 2 if i == 0 and width > 16 else 1, shortcut))
                in_width = width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                if init == "glorot":
                    nn.init.xavier_uniform_(module.weight)
                else:
                    nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (B, C), for images, floating of shape (B, in_channels, H, W)."""
        features = self.blocks(F.relu(self.bn1(self.conv1(images))))
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


def resnet20(num_classes: int, in_channels: int = 3, shortcut: Shortcut = "pool", init: Init = "glorot") -> ResNetCifar:
    """Return a `ResNetCifar` of depth 20."""
    return ResNetCifar(20, num_classes, in_channels, shortcut, init)


def resnet32(num_classes: int, in_channels: int = 3, shortcut: Shortcut = "pool", init: Init = "glorot") -> ResNetCifar:
    """Return the `ResNetCifar` of Cui et al. 2019, of depth 32: 464,154 parameters for 10 classes, 470,004 for 100."""
    return ResNetCifar(32, num_classes, in_channels, shortcut, init)


def resnet44(num_classes: int, in_channels: int = 3, shortcut: Shortcut = "pool", init: Init = "glorot") -> ResNetCifar:
    """Return a `ResNetCifar` of depth 44."""
    return ResNetCifar(44, num_classes, in_channels, shortcut, init)


def resnet56(num_classes: int, in_channels: int = 3, shortcut: Shortcut = "pool", init: Init = "glorot") -> ResNetCifar:
    """Return a `ResNetCifar` of depth 56."""
    return ResNetCifar(56, num_classes, in_channels, shortcut, init)


def resnet110(
    num_classes: int, in_channels: int = 3, shortcut: Shortcut = "pool", init: Init = "glorot"
) -> ResNetCifar:
    """Return a `ResNetCifar` of depth 110."""
    return ResNetCifar(110, num_classes, in_channels, shortcut, init)
