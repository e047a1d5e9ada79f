"""Time of each loss, forward and backward, relative to torch's own function on the same logits and class indices.

The two alternate, with a ratio for each round, so that a noisy machine disturbs both alike. The binary
losses are compared with ``binary_cross_entropy_with_logits`` of one-hot targets, which it has to be given; the rest
with ``cross_entropy``. Compiled losses are compared with the compiled function.

    uv run python benchmarks/losses.py [SigmoidLoss FocalLoss ...] [--compile] [--device cuda]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_cb import losses

SHAPES = ((128, 100, 300), (1024, 8142, 3))  # batch, classes, repeats a round


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return torch's softmax cross-entropy."""
    return F.cross_entropy(logits, targets)


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return torch's sigmoid cross-entropy of class indices."""
    return F.binary_cross_entropy_with_logits(logits, F.one_hot(targets, logits.shape[1]).to(logits.dtype))


def seconds(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor, repeats: int) -> float:
    """Return the seconds of ``repeats`` forward and backward passes."""
    start = time.perf_counter()
    for _ in range(repeats):
        logits.grad = None
        loss(logits, targets).backward()
    if logits.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("losses", nargs="*", help="names; all of them if none is given")
    parser.add_argument("--compile", action="store_true", help="torch.compile both")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch._dynamo.config.recompile_limit = 100  # each loss is one more compilation of the same forward
    wrap = (lambda f: torch.compile(f, fullgraph=True)) if options.compile else (lambda f: f)
    kinds = [getattr(losses, name) for name in options.losses or losses.__all__]
    kinds = [k for k in kinds if isinstance(k, type) and issubclass(k, losses.Loss) and k is not losses.Loss]
    names = {binary_cross_entropy: "binary cross-entropy", cross_entropy: "cross-entropy"}
    print(
        f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads, compiled: {options.compile}"
    )
    print("\n| loss | relative to | " + " | ".join(f"({b}, {c})" for b, c, _ in SHAPES) + " |\n|---|---|---|---|")
    for kind in kinds:
        reference = binary_cross_entropy if issubclass(kind, losses.SigmoidLoss) else cross_entropy
        cells = []
        for batch, classes, repeats in SHAPES:
            torch.manual_seed(0)
            logits = torch.rand(batch, classes, device=options.device).mul_(2).sub_(1).requires_grad_()  # as cosines
            targets = torch.randint(classes, (batch,), device=options.device)
            counts = [1 + int(5000 * 0.01 ** (c / (classes - 1))) for c in range(classes)]
            more = {"num_images": sum(counts)} if kind is losses.DistributionBalancedLoss else {}
            ours = wrap(kind(counts, weighting=losses.EffectiveNumber(0.999), **more).to(options.device))
            theirs = wrap(reference)
            for loss in (ours, theirs):
                seconds(loss, logits, targets, 3)
            ratios = [
                seconds(ours, logits, targets, repeats) / seconds(theirs, logits, targets, repeats)
                for _ in range(options.rounds)
            ]
            low, middle, high = statistics.quantiles(ratios, n=4)
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        print(f"| `{kind.__name__}` | {names[reference]} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
