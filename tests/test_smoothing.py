"""Smoothed and polynomial losses against their formulas, a sample and a class at a time, in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from strategies import batches
from torch.nn import functional as F

from lt_cb.losses import LabelAwareSmoothingLoss, LabelSmoothingLoss, Loss, PolyLoss, SoftmaxLoss

COUNTS = [500, 60, 7, 1]
LOSSES = [LabelSmoothingLoss, LabelAwareSmoothingLoss, PolyLoss]


def smoothed_target(cls: type[Loss], counts: list[int], y: int) -> list[float]:
    """Return the target distribution of a sample of class y at the default arguments."""
    size = len(counts)
    if cls is LabelSmoothingLoss:
        return [0.9 * (c == y) + 0.1 / size for c in range(size)]
    if cls is LabelAwareSmoothingLoss:
        span = max(counts) - min(counts)
        angle = math.pi * (counts[y] - min(counts)) / (2 * span) if span else math.pi / 2
        eps = 0.1 + (0.4 - 0.1) * math.sin(angle)
        return [1 - eps if c == y else eps / (size - 1) for c in range(size)]
    return [float(c == y) for c in range(size)]


def reference(cls: type[Loss], counts: list[int], z: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
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
@settings(max_examples=40, deadline=None)
def test_value_and_gradient(cls: type[Loss], case: tuple[list[int], np.ndarray, np.ndarray]) -> None:
    counts, z, y = case
    value, gradient = reference(cls, counts, z, y)
    logits = torch.tensor(z, requires_grad=True)
    actual = cls(counts)(logits, torch.tensor(y))
    actual.backward()
    np.testing.assert_allclose(actual.item(), value, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(logits.grad, gradient, rtol=1e-6, atol=1e-7)  # the smoothing is a float32 buffer


@pytest.mark.parametrize("cls", LOSSES)
def test_extreme_logits_stay_finite(cls: type[Loss]) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for counts in ([5, 1], [3, 0, 1], list(range(8142, 0, -1))):
            logits = torch.linspace(-1e4, 1e4, 4 * len(counts)).view(4, -1).to(dtype).requires_grad_()
            value = cls(counts)(logits, torch.tensor([0, 1, len(counts) - 1, 0]))
            value.backward()
            assert value.isfinite()
            assert logits.grad is not None
            assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    "loss",
    [LabelSmoothingLoss(COUNTS, 0), LabelAwareSmoothingLoss(COUNTS, 0, 0), PolyLoss(COUNTS, 0)],
    ids=lambda loss: type(loss).__name__,
)
def test_neutral_settings_give_softmax(loss: Loss) -> None:
    logits, targets = torch.randn(9, 4), torch.arange(9) % 4
    torch.testing.assert_close(loss(logits, targets), SoftmaxLoss(COUNTS)(logits, targets))


@pytest.mark.parametrize("cls", LOSSES)
def test_one_hot_targets_are_class_indices(cls: type[Loss]) -> None:
    logits, targets = torch.randn(9, 4), torch.arange(9) % 4
    torch.testing.assert_close(cls(COUNTS)(logits, torch.eye(4)[targets]), cls(COUNTS)(logits, targets))
    mixed = 0.3 * torch.eye(4)[targets] + 0.7 * torch.eye(4)[targets.flip(0)]
    parts = 0.3 * cls(COUNTS)(logits, targets) + 0.7 * cls(COUNTS)(logits, targets.flip(0))
    torch.testing.assert_close(cls(COUNTS)(logits, mixed), parts)


def test_label_smoothing_is_torchs() -> None:
    logits, targets = torch.randn(9, 4), torch.arange(9) % 4
    expected = F.cross_entropy(logits, targets, label_smoothing=0.3)
    torch.testing.assert_close(LabelSmoothingLoss(COUNTS, 0.3)(logits, targets), expected)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LabelSmoothingLoss(COUNTS, 1.0), r"smoothing is 1.0, but must be in \[0, 1\)"),
        (lambda: LabelAwareSmoothingLoss(COUNTS, tail=-0.1), "tail is -0.1"),
        (lambda: PolyLoss(COUNTS, -2), "epsilon is -2, but must be at least -1"),
    ],
)
def test_wrong_values_are_refused(make, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()
