"""Residual networks for CIFAR (He et al. 2016), in the two variants of the reference codes."""

from functools import partial
from itertools import pairwise
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from lt_cb.errors import InputError

Shortcut = Literal["pool", "stride"]
Init = Literal["glorot", "kaiming"]


class _Block(nn.Module):
    """Basic block; a block with more channels out than in halves the size."""

    def __init__(self, in_width: int, width: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.extra, self.shortcut = width - in_width, shortcut
        self.conv1 = nn.Conv2d(in_width, width, 3, 2 if self.extra else 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def _skip(self, x: Tensor) -> Tensor:
        if not self.extra:
            return x
        # ceil_mode rounds odd sizes up, like the strided convolution beside it
        x = F.avg_pool2d(x, 2, ceil_mode=True) if self.shortcut == "pool" else x[:, :, ::2, ::2]
        return F.pad(x, (0, 0, 0, 0, self.extra // 2, self.extra // 2))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self._skip(x))


class ResNetCifar(nn.Module):
    """Residual network of depth 6 n + 2 with basic blocks and parameter-free shortcuts (He et al. 2016, section 4.2).

    It has three stages of n blocks with widths 16, 32, 64 and strides 1, 2, 2, then a global average pool and a linear
    layer, whose bias starts at 0. ``resnet32``, the network of Cui et al. 2019, has 464,154 parameters for 10 classes
    and 470,004 for 100.

    Args:
        depth: 6 n + 2: 20, 32, 44, 56, 110, ...
        num_classes: C, at least 1.
        in_channels: channels of the images.
        shortcut: shortcut where the size halves: ``pool`` averages pixels (code of Cui et al. 2019), ``stride`` takes
            every second pixel (code of LDAM-DRW). Both pad the new channels with zeros, half on each side.
        init: initial weights: ``glorot`` uniform (code of Cui et al. 2019, default of TensorFlow) or ``kaiming`` normal
            (code of LDAM-DRW).
    """

    def __init__(
        self, depth: int, num_classes: int, in_channels: int = 3, shortcut: Shortcut = "pool", init: Init = "glorot"
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise InputError(f"depth is {depth}, but must be 6 n + 2: 20, 32, 44, 56 or 110.")
        if shortcut not in get_args(Shortcut) or init not in get_args(Init):
            raise InputError(
                f"shortcut is '{shortcut}' and init is '{init}', but shortcut must be 'pool' or 'stride', and init "
                "'glorot' or 'kaiming'."
            )
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16] + [width for width in (16, 32, 64) for _ in range((depth - 2) // 6)]
        self.blocks = nn.Sequential(*(_Block(*pair, shortcut) for pair in pairwise(widths)))
        self.fc = nn.Linear(64, num_classes)
        initialize = nn.init.xavier_uniform_ if init == "glorot" else nn.init.kaiming_normal_
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                initialize(module.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (B, C), for images, floating of shape (B, in_channels, H, W)."""
        features = self.blocks(F.relu(self.bn1(self.conv1(images))))
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


resnet20, resnet32, resnet44, resnet56, resnet110 = (partial(ResNetCifar, depth) for depth in (20, 32, 44, 56, 110))
