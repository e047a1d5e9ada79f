"""A training pass whose kernels are launched as one, for networks that take longer to launch than to compute."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class TrainingGraph:
    """A network in training mode as two CUDA graphs, of its forward and of its backward pass.

    The first call runs as it is, the next records; from then on batches of that shape replay what was recorded, others,
    as the last of an epoch, run as they are. Gradients are those of the network itself. A pass must be followed by its
    backward pass before the next begins, and gradients cannot be accumulated: all passes share their memory.

    Args:
        network: on an NVIDIA GPU; without dropout, and what it computes must not depend on values.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.shape: torch.Size | None = None
        self.recorded = False
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits, shape (B, C), of images, floating of shape (B, in_channels, H, W)."""
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
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # the default one cannot be recorded
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # once before, for what is set up lazily on a stream
            logits = self.network(self.images)
            torch.autograd.grad(logits, self.parameters, torch.zeros_like(logits))
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(self.forward, stream=stream):
            logits = self.network(self.images)
        self.grad_logits = torch.zeros_like(logits)
        with torch.cuda.graph(self.backward, pool=self.forward.pool(), stream=stream):
            self.gradients = torch.autograd.grad(logits, self.parameters, self.grad_logits)
        self.logits = logits.detach()
        for buffer, value in zip(self.network.buffers(), kept, strict=True):  # the pass before counted in them
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
