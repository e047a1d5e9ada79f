"""Smoothed and polynomial losses against their formulas, one sample and one class at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from strategies import batches

from lt_cb.losses import LabelAwareSmoothingLoss, LabelSmoothingLoss, Loss, PolyLoss

COUNTS = [500, 60, 7, 1]
LOSSES = [LabelSmoothingLoss, LabelAwareSmoothingLoss, PolyLoss]


def smoothed_target(cls: type[Loss], counts: list[int], y: int) -> list[float]:
    """Return the target distribution of a sample of class y at the default arguments."""
    size = len(counts)
    if cls is LabelSmoothingLoss:
        return [0.9 * (c == y) + 0.1 / size for c in range(size)]
    if cls is LabelAwareSmoothingLoss:
        rarest = min([count for count in counts if count], default=1)
        counts = [count or rarest for count in counts]  # a class without images gets the value of the rarest class
        span = max(counts) - rarest
        angle = math.pi * (counts[y] - rarest) / (2 * span) if span else math.pi / 2
        eps = 0.1 + (0.4 - 0.1) * math.sin(angle)
        return [1 - eps if c == y else eps / (size - 1) for c in range(size)]
    return [float(c == y) for c in range(size)]


def reference(cls: type[Loss], counts: list[int], z: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Return value and gradient of the mean over the batch."""
    value, gradient = 0.0, np.zeros_like(z)
    for i, true in enumerate(y):
        top = max(z[i])
        log_sum = top + math.log(math.fsum(math.exp(v - top) for v in z[i]))
        q = smoothed_target(cls, counts, true)
        value += math.fsum(q[c] * (log_sum - z[i, c]) for c in range(len(counts))) / len(y)
        p = [math.exp(v - log_sum) for v in z[i]]
        poly = 1.0 if cls is PolyLoss else 0.0
        value += poly * math.fsum(p[c] for c in range(len(counts)) if c != true) / len(y)
        for c in range(len(counts)):
            gradient[i, c] = (p[c] - q[c] - poly * p[true] * ((c == true) - p[c])) / len(y)
    return value, gradient


@pytest.mark.parametrize("cls", LOSSES)
@given(case=batches())
@settings(max_examples=20, deadline=None)
def test_value_and_gradient_equal_the_formula(cls: type[Loss], case: tuple[list[int], np.ndarray, np.ndarray]) -> None:
    counts, z, y = case
    value, gradient = reference(cls, counts, z, y)
    logits = torch.tensor(z, requires_grad=True)
    actual = cls(counts)(logits, torch.tensor(y))
    actual.backward()
    np.testing.assert_allclose(actual.item(), value, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(logits.grad, gradient, rtol=1e-6, atol=1e-7)  # the smoothing is float32


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LabelSmoothingLoss(COUNTS, 1.0), r"smoothing is 1.0, but must be in \[0, 1\)"),
        (lambda: LabelAwareSmoothingLoss(COUNTS, tail=-0.1), "tail is -0.1"),
        (lambda: LabelAwareSmoothingLoss(COUNTS, head=1), "head is 1, .*; 0 smooths nothing"),
        (lambda: PolyLoss(COUNTS, -2), "epsilon is -2, but must be at least -1"),
    ],
)
def test_wrong_values_raise_an_error(make, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()
