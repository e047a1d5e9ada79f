"""Features of three overlapping classes, for tests of linear heads."""

import numpy as np
import torch
from torch import Tensor

COUNTS = [60, 25, 8]
Raw = tuple[Tensor, Tensor]


def overlapping() -> Raw:
    """Return features and targets; means and scales differ, and one feature is constant."""
    rng = torch.Generator().manual_seed(1)
    targets = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
    centres = torch.randn(3, 9, generator=rng)
    features = centres[targets] + 1.5 * torch.randn(len(targets), 9, generator=rng)
    features = features * torch.logspace(-2, 2, 9) + torch.linspace(-50, 50, 9)
    features[:, 4] = 3.0
    return features, targets


def standardised(features: Tensor) -> np.ndarray:
    x = features.double().numpy()
    scale = x.std(0)
    return (x - x.mean(0)) / np.where(scale > 0, scale, 1.0)
