"""CUDA graphs of a training pass, for small networks whose kernels take longer to launch than to compute."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class TrainingGraph:
    """Two CUDA graphs of a network in training mode: its forward and its backward pass.

    The first call runs the network, the second call records the graphs, and later calls replay them. Batches of another
    shape, such as the last batch of an epoch, run the network. The gradients are exact.

    All passes share their memory: run the backward pass before the next call, and do not accumulate gradients.

    Args:
        network: on an NVIDIA GPU, without dropout and without control flow that depends on values.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.shape: torch.Size | None = None
        self.recorded = False
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits, shape (B, C), for images, floating of shape (B, in_channels, H, W)."""
        logits: Tensor
        if images.shape != self.shape:
            self.shape = self.shape or images.shape
            logits = self.network(images)
            return logits
        if not self.recorded:
            self._record(images)
        logits = _Replay.apply(self, images, *self.parameters)
        return logits

    def _record(self, images: Tensor) -> None:
        self.images = images.clone()
        kept = [buffer.clone() for buffer in self.network.buffers()]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # the default stream cannot record
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # a first pass, since some libraries initialise lazily
            logits = self.network(self.images)
            torch.autograd.grad(logits, self.parameters, torch.zeros_like(logits))
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(self.forward, stream=stream):
            logits = self.network(self.images)
        self.grad_logits = torch.zeros_like(logits)
        with torch.cuda.graph(self.backward, pool=self.forward.pool(), stream=stream):
            self.gradients = torch.autograd.grad(logits, self.parameters, self.grad_logits)
        self.logits = logits.detach()
        for buffer, value in zip(self.network.buffers(), kept, strict=True):  # the first pass has changed them
            buffer.copy_(value)
        self.recorded = True


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: TrainingGraph, images: Tensor, *_: Tensor) -> Tensor:  # noqa: ANN401
        ctx.graph = graph
        graph.images.copy_(images)
        graph.forward.replay()
        logits: Tensor = graph.logits.detach()
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        graph: TrainingGraph = ctx.graph
        graph.grad_logits.copy_(gradients[0])
        graph.backward.replay()
        return None, None, *(gradient.detach() for gradient in graph.gradients)
