"""Workarounds for wrong or slow gradients of bfloat16 convolutions on CPUs."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


class SmallImageConv2d(nn.Conv2d):
    """Convolution that uses float32 for images smaller than its kernel or stride, also under autocast.

    For such images, on CPUs with AVX-512 BF16, torch (up to 2.15) returns uninitialised memory as the gradient of
    bfloat16 weights.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map images to images, both of shape (N, C, H, W)."""
        if min(x.shape[-2:]) >= max(*self.kernel_size, *self.stride):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


def spare_small_images(network: nn.Module) -> None:
    """Turn each ``torch.nn.Conv2d`` of a network into a ``SmallImageConv2d``, in place; subclasses stay as they are."""
    for layer in network.modules():
        if type(layer) is nn.Conv2d:
            layer.__class__ = SmallImageConv2d  # keeps weights, hooks and references


def spare_depthwise(network: nn.Module) -> None:
    """Let the depthwise convolutions of a network use float32, also under autocast, in place.

    Their bfloat16 gradients are slow on CPUs: an EfficientNet-Lite0 trains in 60 % of the time without them.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1:
            layer.forward = partial(_in_float32, layer.forward)  # type: ignore[method-assign]


def _in_float32(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.float())
