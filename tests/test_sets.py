"""Prediction sets: thresholds against NumPy and loops, and coverage of images drawn from known distributions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lt_cb.errors import InputError
from lt_cb.losses import (
    EffectiveNumber,
    FocalLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    PostHocLogitAdjustment,
    SigmoidLoss,
    SoftmaxLoss,
)
from lt_cb.losses.prior import balanced_posterior
from lt_cb.runs import checkpoint as checkpoints
from lt_cb.sets import MAX_KEPT, HeldOutScores, SetCoverage, held_out_scores, prediction_sets, quantile, thresholds

SCORES = st.lists(st.lists(st.floats(0, 1, width=32), max_size=30), min_size=1, max_size=6).filter(any)
LEVELS = st.integers(1, 99).map(lambda percent: percent / 100)


def sorted_tensors(scores: list[list[float]]) -> list[Tensor]:
    return [torch.tensor(sorted(values)) for values in scores]


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60), LEVELS)
def test_quantile_of_a_class_is_that_of_conformal_prediction(scores: list[float], share: float) -> None:
    found, lowest = quantile(sorted_tensors([scores]), share), min(scores)
    if share * (len(scores) + 1) < 1:
        assert found == pytest.approx(share * (len(scores) + 1) * lowest)
    else:
        assert found == pytest.approx(np.quantile(scores, share, method="weibull"), abs=1e-12)


@given(SCORES, LEVELS)
def test_quantile_of_all_classes_weighs_them_equally(scores: list[list[float]], share: float) -> None:
    used = [np.array(values) for values in scores if values]
    found = quantile(sorted_tensors(scores), share)

    def share_at(score: float, compare: Callable[[Any, float], Any]) -> float:
        return float(np.mean([(1 + compare(values, score).sum()) / (len(values) + 1) for values in used]))

    below = [score for values in used for score in values if share_at(score, np.less_equal) < share - 1e-9]
    above = [score for values in used for score in values if share_at(score, np.less) > share + 1e-9]
    assert max(below, default=0.0) - 1e-9 <= found <= min(above, default=1.0) + 1e-9


@given(SCORES, LEVELS)
def test_rare_classes_share_the_common_threshold(scores: list[list[float]], level: float) -> None:
    kept = sorted_tensors(scores)
    common, limits = quantile(kept, 1 - level), thresholds(kept, level)
    for values, limit in zip(kept, limits.tolist(), strict=True):
        own = quantile([values], 1 - level)
        assert limit == pytest.approx((len(values) * own + 20 * common) / (len(values) + 20))
    assert (thresholds(kept, (1 + level) / 2) <= limits + 1e-9).all()  # sets for a higher level are larger


def test_repeated_folds_count_each_image_once() -> None:
    """Repeats make the scores denser, but not the images more numerous."""
    rng = torch.Generator().manual_seed(0)
    true, targets = torch.rand(40, generator=rng), torch.arange(40) % 2
    once = held_out_scores(true, targets, 2)
    thrice = held_out_scores(true.repeat(3), targets.repeat(3), 2, repeats=3)
    assert [len(scores) for scores in thrice] == [20, 20]
    assert all(torch.equal(a, b) for a, b in zip(once, thrice, strict=True))


def test_many_scores_are_kept_as_quantiles() -> None:
    true = torch.rand(50_000, generator=torch.Generator().manual_seed(0)) ** 3
    (kept,) = held_out_scores(true, torch.zeros(50_000, dtype=torch.int64), 1)
    assert len(kept) == MAX_KEPT
    limits = thresholds([kept], 0.95), thresholds([true.sort().values], 0.95)
    below = [float((true < limit).double().mean()) for limit in limits]
    assert below == pytest.approx([0.05, 0.05], abs=1.1e-3)


def test_the_most_probable_class_is_always_in_the_set() -> None:
    posterior = torch.tensor([[0.6, 0.4, 0.0], [0.4, 0.35, 0.25]])
    sets = prediction_sets(posterior, torch.tensor([0.9, 0.3, 0.3]))
    assert sets.tolist() == [[True, True, False], [True, True, False]]


def gaussians(counts: list[int], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return points in two dimensions around C corners, and their classes."""
    targets = np.repeat(np.arange(len(counts)), counts)
    angle = 2 * np.pi * targets / len(counts)
    points = 2 * np.stack([np.cos(angle), np.sin(angle)], 1) + rng.normal(size=(len(targets), 2))
    return torch.from_numpy(points).float(), torch.from_numpy(targets)


def test_sets_cover_rare_classes_too() -> None:
    """With the true posterior and held-out images of a long tail, coverage is near the level in each class."""
    counts, rng = [1000, 400, 160, 64, 25, 10], np.random.default_rng(0)
    angle = 2 * np.pi * torch.arange(6) / 6
    centres = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    loss = SoftmaxLoss(counts)

    def posterior(points: Tensor) -> Tensor:
        density = -(torch.cdist(points, centres.float()) ** 2) / 2
        return balanced_posterior(loss, density + torch.tensor(counts).float().log())

    points, targets = gaussians(counts, rng)
    collected, metric = HeldOutScores(6), SetCoverage(6)
    for rows in torch.arange(len(points)).split(100):
        collected.update(posterior(points[rows]), targets[rows])
    limits = thresholds(collected.compute(), 0.9)
    points, targets = gaussians([2000] * 6, rng)
    sets = prediction_sets(posterior(points), limits)
    for rows in torch.arange(len(points)).split(1000):
        metric.update(sets[rows], targets[rows])
    coverage, size = metric.compute()
    for label in range(6):
        own = sets[targets == label].numpy()
        assert (coverage[label], size[label]) == (own[:, label].mean(), own.sum(1).mean())
    assert 0.88 < coverage.mean() < 0.95
    assert coverage.min() > 0.8
    assert size.mean() < 3


COUNTS = [90, 9, 1]


@pytest.mark.parametrize(
    "loss",
    [
        SoftmaxLoss(COUNTS),
        SoftmaxLoss(COUNTS, weighting=EffectiveNumber(0.99)),
        LogitAdjustedLoss(COUNTS, tau=0.5),
        PostHocLogitAdjustment(COUNTS, tau=1.5),
    ],
    ids=["softmax", "class-balanced", "logit-adjusted", "post-hoc"],
)
def test_balanced_posterior_is_the_posterior_over_the_prior(loss: SoftmaxLoss) -> None:
    logits = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    effective = (1 - 0.99 ** np.array(COUNTS)) / 0.01
    shares = np.array(COUNTS) / 100
    prior = {
        "SoftmaxLoss": shares if loss.weighting is None else shares / effective,
        "LogitAdjustedLoss": shares**0.5,
        "PostHocLogitAdjustment": shares,  # the network itself is trained with softmax
    }[type(loss).__name__]
    expected = logits.exp().numpy() / prior
    expected /= expected.sum(1, keepdims=True)
    assert balanced_posterior(loss, logits).numpy() == pytest.approx(expected)


def test_losses_without_a_prior_give_their_own_probabilities() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    loss = LDAMLoss(COUNTS)
    assert torch.allclose(balanced_posterior(loss, logits), loss.probabilities(logits))
    for sigmoid in (SigmoidLoss(COUNTS), FocalLoss(COUNTS)):
        assert balanced_posterior(sigmoid, logits).sum(1).tolist() == pytest.approx([1.0] * 5, abs=1e-6)


def test_damaged_scores_of_a_checkpoint_are_refused() -> None:
    scores = [torch.tensor([0.1, 0.5]), torch.tensor([])]
    assert checkpoints.set_scores({checkpoints.SET_SCORES: scores}, 2) == scores
    assert checkpoints.set_scores({}, 2) is None
    for damaged in (
        scores[:1],
        [scores[0].flip(0), scores[1]],
        [scores[0] + 1, scores[1]],
        [scores[1]] * 2,
        3,
        ["a"] * 2,
    ):
        with pytest.raises(InputError, match="held-out scores are not of 2 classes"):
            checkpoints.set_scores({checkpoints.SET_SCORES: damaged}, 2)
