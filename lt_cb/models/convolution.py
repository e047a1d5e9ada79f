"""A way around a fault of torch's bfloat16 convolutions on CPUs."""

import torch
from torch import Tensor, nn


class SmallImageConv2d(nn.Conv2d):
    """A convolution that is done in float32, autocast or not, where an image is smaller than the kernel or the stride.

    There, on CPUs with AVX-512 BF16, torch's (2.15) gradient of bfloat16 weights is what happens to lie in memory: seen
    with kernels of 2 to 7 and strides of 1 to 4, never where image, kernel and stride are not so.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to images."""
        if min(x.shape[-2:]) >= max(*self.kernel_size, *self.stride):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


def spare_small_images(network: nn.Module) -> None:
    """Make each ``torch.nn.Conv2d`` of a network, subclasses left as they are, a ``SmallImageConv2d``."""
    for layer in network.modules():
        if type(layer) is nn.Conv2d:
            layer.__class__ = SmallImageConv2d
