"""Margins, priors and temperatures against the equations of the papers, one sample and one class at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import batches
from torch.nn import functional as F

from lt_cb.losses import (
    BalancedSoftmaxLoss,
    ClassDependentTemperatureLoss,
    EffectiveNumber,
    FocalLoss,
    InverseFrequency,
    LDAMLoss,
    LogitAdjustedLoss,
    Loss,
    PostHocLogitAdjustment,
    SigmoidLoss,
    SoftmaxLoss,
    SquareRootInverse,
    VectorScalingLoss,
)

COUNTS = [500, 60, 7, 1]
Case = tuple[list[int], np.ndarray, np.ndarray]
LOSSES = [
    LogitAdjustedLoss,
    BalancedSoftmaxLoss,
    PostHocLogitAdjustment,
    VectorScalingLoss,
    ClassDependentTemperatureLoss,
    LDAMLoss,
]


def affine(cls: type[Loss], n: list[int]) -> tuple[list[float], list[float], list[float]]:
    """Return factors and shifts of the logits, and shifts of the true class only, at the defaults of the papers."""
    rarest = min([count for count in n if count], default=1)
    bounded = [count or rarest for count in n]
    n = [max(count, 1) for count in n]
    one, zero = [1.0] * len(n), [0.0] * len(n)
    prior = [math.log(count) for count in n]  # the softmax cancels the common -log sum n
    if cls in (LogitAdjustedLoss, BalancedSoftmaxLoss):
        return one, prior, zero
    if cls is VectorScalingLoss:
        return [(count / max(n)) ** 0.15 for count in n], [1.25 * p for p in prior], zero
    if cls is ClassDependentTemperatureLoss:
        return [1 / (max(n) / count) ** 0.2 for count in n], zero, zero
    if cls is LDAMLoss:
        inverse = [1 / math.sqrt(math.sqrt(count)) for count in bounded]
        return [30.0] * len(n), zero, [-30 * 0.5 * v / max(inverse) for v in inverse]
    return one, zero, zero


def reference(cls: type[Loss], n: list[int], z: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Return value and gradient of the mean over the batch."""
    factor, shift, margin = affine(cls, n)
    value, gradient = 0.0, np.zeros_like(z)
    for i in range(len(y)):
        v = [factor[c] * z[i, c] + shift[c] + (margin[c] if c == y[i] else 0.0) for c in range(len(n))]
        top = max(v)
        log_sum = top + math.log(math.fsum(math.exp(x - top) for x in v))
        value += (log_sum - v[y[i]]) / len(y)
        for c in range(len(n)):
            gradient[i, c] = factor[c] * (math.exp(v[c] - log_sum) - (c == y[i])) / len(y)
    return value, gradient


@pytest.mark.parametrize("cls", LOSSES)
@given(case=batches())
@settings(max_examples=20, deadline=None)
def test_value_and_gradient_equal_the_equation(cls: type[Loss], case: Case) -> None:
    counts, z, y = case
    value, gradient = reference(cls, counts, z, y)
    logits = torch.tensor(z, requires_grad=True)
    actual = cls(counts)(logits, torch.tensor(y))
    actual.backward()
    # the constants are float32
    np.testing.assert_allclose(actual.item(), value, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(logits.grad, gradient, rtol=1e-4, atol=1e-6)


@given(case=batches(), dtype=st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=20, deadline=None)
def test_ldam_of_a_mixed_label_mixes_the_losses_of_its_labels(case: Case, dtype: torch.dtype) -> None:
    """The probability of the other classes is a difference of close numbers if one class has nearly all of it."""
    counts, z, y = case
    loss = LDAMLoss(counts, reduction="sum")
    (value, gradient), (other, other_gradient) = (reference(LDAMLoss, counts, z, labels) for labels in (y, y * 0))
    logits = torch.tensor(z, dtype=dtype, requires_grad=True)
    if dtype == torch.float32:
        z = logits.detach().double().numpy()
        (value, gradient), (other, other_gradient) = (reference(LDAMLoss, counts, z, labels) for labels in (y, y * 0))
    eye = torch.eye(len(counts), dtype=dtype)
    actual = loss(logits, 0.3 * eye[y] + 0.7 * eye[y * 0])
    actual.backward()
    tolerance = 1e-5 * (1 + 30 * np.abs(z).max()) if dtype == torch.float32 else 1e-6
    np.testing.assert_allclose(actual.item() / len(y), 0.3 * value + 0.7 * other, rtol=1e-5, atol=tolerance)
    expected = 0.3 * gradient + 0.7 * other_gradient
    np.testing.assert_allclose(logits.grad / len(y), expected, rtol=1e-4, atol=30 * tolerance)


def test_post_hoc_adjustment_moves_the_prediction_to_the_tail() -> None:
    loss = PostHocLogitAdjustment([900, 100], tau=1.0)
    logits = torch.tensor([[math.log(0.8), math.log(0.2)]])
    # 0.8 / 900 < 0.2 / 100; normalised to 0.8/9 : 0.2 = 4 : 9
    torch.testing.assert_close(loss.probabilities(logits), torch.tensor([[4 / 13, 9 / 13]]))
    assert PostHocLogitAdjustment([900, 100], tau=0).adjust(logits).argmax() == 0


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LogitAdjustedLoss(COUNTS, tau=-1), "tau is -1, but must be at least 0"),
        (lambda: VectorScalingLoss(COUNTS, gamma=math.nan), "gamma is nan"),
        (lambda: LDAMLoss(COUNTS, max_margin=math.inf), "max_margin is inf"),
        (lambda: VectorScalingLoss(COUNTS, gamma=-1), "gamma is -1, .*; 0 scales nothing"),
        (lambda: VectorScalingLoss(COUNTS, tau=-1), "tau is -1, .*; 0 shifts nothing"),
        (lambda: LDAMLoss(COUNTS, max_margin=-1), ".*; 0 gives the softmax cross-entropy of the scaled cosines"),
        (lambda: LDAMLoss(COUNTS, scale=0), "scale is 0, but must be positive"),
        (lambda: SoftmaxLoss(COUNTS, reduction="average"), "reduction is 'average', but must be"),
        (lambda: EffectiveNumber(0.9, normalization="mean"), "normalization is 'mean', but must be"),
        (lambda: InverseFrequency("samples")([0, 0]), "all class_counts are 0"),
    ],
)
def test_wrong_values_raise_an_error(make, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


class TestNormalizationAndReduction:
    @pytest.mark.parametrize("make", [EffectiveNumber, InverseFrequency, SquareRootInverse])
    @given(counts=st.lists(st.integers(1, 10**6), min_size=2, max_size=20))
    @settings(max_examples=15, deadline=None)
    def test_normalizations_of_class_weights(self, make, counts: list[int]) -> None:
        classes = make(normalization="classes")(counts)
        samples = make(normalization="samples")(counts)
        raw = make(normalization="none")(counts)
        assert classes.sum().item() == pytest.approx(len(counts))
        mean = sum(w * n for w, n in zip(samples.tolist(), counts, strict=True)) / sum(counts)
        assert mean == pytest.approx(1.0)
        for weights in (classes, samples):  # they differ by a factor
            torch.testing.assert_close(weights / raw, (weights / raw)[0].expand(len(counts)))

    def test_beta_changes_the_mean_weight_of_a_sample(self) -> None:
        """CIFAR-10 at imbalance factor 100: 1.00 at beta 0.9, and 0.17 at 0.9999."""
        counts = [int(5000 * 0.01 ** (i / 9)) for i in range(10)]
        for beta, mean in ((0.9, 1.0), (0.99, 0.80), (0.999, 0.27), (0.9999, 0.17)):
            weights = EffectiveNumber(beta)(counts).tolist()
            actual = sum(w * n for w, n in zip(weights, counts, strict=True)) / sum(counts)
            assert actual == pytest.approx(mean, abs=0.005)

    def test_values_equal_the_code_of_the_authors(self) -> None:
        """Cui et al. divide by the batch size, LDAM-DRW by the sum of the weights."""
        z, y = torch.randn(16, 4, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 4
        weights = (1 - 0.999) / (1 - 0.999 ** np.array(COUNTS, dtype=float))
        w = torch.tensor(weights / weights.sum() * 4).float()
        weighting = EffectiveNumber(0.999)
        cui = (F.cross_entropy(z, y, reduction="none") * w[y]).sum() / 16
        torch.testing.assert_close(SoftmaxLoss(COUNTS, weighting)(z, y), cui)
        weighted = F.cross_entropy(z, y, weight=w)
        torch.testing.assert_close(SoftmaxLoss(COUNTS, weighting, "weighted_mean")(z, y), weighted)
        one_hot = torch.eye(4)[y]
        sigmoid = F.binary_cross_entropy_with_logits(z, one_hot, weight=w[y][:, None].expand(16, 4), reduction="sum")
        torch.testing.assert_close(SigmoidLoss(COUNTS, weighting)(z, y), sigmoid / 16)
        cosines = z / 10
        margin = 0.5 * np.array(COUNTS, dtype=float) ** -0.25
        shifted = 30 * (cosines - one_hot * torch.tensor(margin).float())
        ldam = F.cross_entropy(shifted, y, weight=w)  # m = 0.5 n^(-1/4), because the rarest class has one image
        torch.testing.assert_close(LDAMLoss(COUNTS, weighting=weighting, reduction="weighted_mean")(cosines, y), ldam)

    def test_values_relate_to_the_balanced_loss_packages(self) -> None:
        """vandit15 and fcakyon: sigmoid loss averaged over classes, the same focal loss, and a BCE of the softmax."""
        z, y = torch.randn(16, 4, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 4
        raw = (1 - 0.999) / (1 - 0.999 ** np.array(COUNTS, dtype=float))
        w = torch.tensor(raw / raw.sum() * 4).float()[y][:, None].expand(16, 4)
        one_hot, weighting = torch.eye(4)[y], EffectiveNumber(0.999)
        sigmoid = F.binary_cross_entropy_with_logits(z, one_hot, weight=w)
        torch.testing.assert_close(SigmoidLoss(COUNTS, weighting)(z, y) / 4, sigmoid)
        modulator = torch.exp(-0.5 * one_hot * z - 0.5 * torch.log1p(torch.exp(-z)))
        terms = modulator * F.binary_cross_entropy_with_logits(z, one_hot, reduction="none")
        torch.testing.assert_close(FocalLoss(COUNTS, 0.5, weighting)(z, y), (w * terms).sum() / one_hot.sum())
        softmax = F.binary_cross_entropy(z.softmax(1), one_hot, weight=w)
        ours = F.binary_cross_entropy(SoftmaxLoss(COUNTS).probabilities(z), one_hot, weight=w)
        torch.testing.assert_close(ours, softmax)
        assert softmax < 0.7 * SoftmaxLoss(COUNTS, weighting)(z, y)  # a BCE is not the softmax cross-entropy
