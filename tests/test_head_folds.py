"""Folds, cross-validation and temperature of linear heads."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from overlapping import COUNTS, Raw, overlapping, standardised
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lt_cb.errors import InputError
from lt_cb.heads.folds import (
    COMPARISON_TOLERANCE,
    cross_validate,
    fit_temperature,
    held_out_logits,
    measure_all,
    repeated_folds,
    stratified_folds,
    temperature_scaled,
)
from lt_cb.heads.recipes import SOFTMAX, Candidate, make_recipes
from lt_cb.heads.solve import BLOCK_ROWS, Basis, FeatureSet, one_thread_if_small, solve_path
from lt_cb.losses import (
    Loss,
    PostHocLogitAdjustment,
    SigmoidLoss,
    SoftmaxLoss,
)
from lt_cb.losses.prior import log_posterior


@pytest.fixture
def raw() -> Raw:
    """Features and targets of three overlapping classes."""
    return overlapping()


@pytest.fixture
def data(raw: Raw) -> FeatureSet:
    """The same features in their basis."""
    return Basis.fit(raw[0]).project(*raw, 3)


@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=6).filter(
        lambda c: sum(n > 1 for n in c) >= 2 and max(c) >= 5
    ),
    folds=st.integers(2, 5),
    seed=st.integers(0, 9),
)
def test_folds_are_stratified(counts: list[int], folds: int, seed: int) -> None:
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    targets = targets[torch.randperm(len(targets))]
    assigned = stratified_folds(targets, len(counts), folds, seed)
    for label, count in enumerate(counts):
        own = assigned[targets == label]
        if count == 1:
            assert (own == -1).all()
        else:
            sizes = own.bincount(minlength=folds)
            assert len(sizes) == folds
            assert sizes.sum() == count
            assert sizes.max() - sizes.min() <= 1
    assert torch.equal(assigned, stratified_folds(targets, len(counts), folds, seed))


@given(st.integers(2, 6), st.integers(2, 5), st.integers(0, 2**32))
@settings(deadline=None, max_examples=40)
def test_multilabel_folds_are_stratified(classes: int, folds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shares = rng.uniform(0.02, 0.6, classes)
    labels = (rng.random((120, classes)) < shares).astype(np.int8)
    targets = torch.from_numpy(labels)
    try:
        assigned = stratified_folds(targets, classes, folds, seed).numpy()
    except InputError:
        return
    rare = labels.sum(0) < folds
    np.testing.assert_array_equal(assigned == -1, labels[:, rare].any(1))  # rare classes are always trained on
    sizes = np.bincount(assigned[assigned >= 0], minlength=folds)
    assert sizes.max() - sizes.min() <= max(8, sizes.sum() // 4)
    everywhere = [c for c in range(classes) if all(labels[assigned == k, c].any() for k in range(folds))]
    assert len(everywhere) >= 2


MULTI_LABEL = torch.tensor([[1, 1, 1 - i % 2] for i in range(4)] * 10, dtype=torch.int8)
MULTI_LABEL[1:, 1:] = 0  # one image has all labels; it is always trained on


@pytest.mark.parametrize(
    ("targets", "classes", "message"),
    [
        (MULTI_LABEL, 3, "1 of 3 classes have 5 training images"),
        (torch.tensor([0] * 9 + [1, 2]), 3, "1 of 3 classes have 2 training images.* by: add images"),
        (torch.zeros(9).long(), 1, "by: add images"),
        (torch.arange(3).repeat(4), 3, "no class has 5 training images, one for each fold: set --folds 4 or fewer"),
        (torch.tensor([0] * 4 + [1] * 2), 2, "set --folds 4 or fewer"),
    ],
)
def test_folds_that_cannot_be_made_are_refused_with_advice(targets: Tensor, classes: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        stratified_folds(targets, classes, 5, 0)
    if "--folds" in message:
        assert (stratified_folds(targets, classes, 2, 0) >= 0).all()


PLAIN, BALANCED_SOFTMAX = make_recipes([], [], [1.0])


def test_cross_validated_post_hoc_head_equals_scikit_learn(raw: Raw, data: FeatureSet) -> None:
    folds = repeated_folds(raw[1], 3, 4, 0, repeats=2)
    recipes = make_recipes([0.99], [1.0], [1.0])
    trial = cross_validate(data, folds, recipes, [0.1, 0.01])
    assert len(trial.measured) == 2 * len(recipes)
    assert trial.counts.sum(0).tolist() == [2 * count for count in COUNTS]
    post_hoc = next(c for c in trial.measured if c.recipe.loss == "PostHocLogitAdjustment" and c.l2_strength == 0.01)
    x, y = standardised(raw[0]), raw[1].numpy()
    for k in range(8):
        held_out = (folds[k // 4] == k % 4).numpy()
        model = LogisticRegression(C=1 / (0.01 * (~held_out).sum()), tol=1e-10, max_iter=10_000)
        model.fit(x[~held_out], y[~held_out])
        prior = np.bincount(y[~held_out]) / (~held_out).sum()
        adjusted = model.predict_log_proba(x[held_out]) - np.log(prior)
        theirs = np.bincount(y[held_out][adjusted.argmax(1) == y[held_out]], minlength=3)
        assert np.abs(trial.measured[post_hoc][k].numpy() - theirs).sum() <= 1  # one near tie may differ


def test_mean_score_is_the_balanced_accuracy_of_held_out_images(data: FeatureSet) -> None:
    rows = torch.cat([torch.arange(60), torch.arange(60, 85), torch.tensor([85, 86, 87])])
    few = FeatureSet(data.features[rows], data.targets[rows], 3, data.variances)  # the last class has 3 images
    folds = repeated_folds(few.targets, 3, 5, 0)
    candidate = Candidate(BALANCED_SOFTMAX, 0.1)
    trial = cross_validate(few, folds, [PLAIN, BALANCED_SOFTMAX], [0.1])
    assert trial.counts.sum(0).tolist() == [180, 75, 9]
    logits, targets, _ = held_out_logits(few, folds, candidate, [0.1])
    priors = []  # of the training images of each fold, as the loss knows them
    for repeat in folds:
        priors += [few.targets[repeat != k].bincount() for k in range(5) for _ in range(int((repeat == k).sum()))]
    right = (logits - torch.stack(priors).log()).argmax(1) == targets
    by_class = [right[targets == label].double().mean().item() for label in range(3)]  # folds of 12, 5, and 1 or 0
    assert np.mean(trial.scores()[candidate]) == pytest.approx(np.mean(by_class), abs=1e-2)


def test_number_of_threads_does_not_change_the_scores_of_few_images(raw: Raw) -> None:
    recipes, scores, before = make_recipes([0.99], [], [1.0]), [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            with one_thread_if_small(raw[0]):
                assert torch.get_num_threads() == 1
                data = Basis.fit(raw[0]).project(*raw, 3)
                scores.append(cross_validate(data, repeated_folds(raw[1], 3, 5, 0), recipes, [0.1, 0.01]).scores())
            assert torch.get_num_threads() == threads
            with one_thread_if_small(torch.empty(2**21 + 1)):
                assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    "loss", [SoftmaxLoss([1, 1, 1]), PostHocLogitAdjustment([1, 1, 1], tau=1.0), SigmoidLoss([1] * 3)]
)
def test_temperature_of_overconfident_logits_is_recovered(loss: Loss) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = 2.0 * torch.randn(20_000, 3, generator=rng)
    targets = torch.multinomial(log_posterior(loss, logits).softmax(1), 1, generator=rng)[:, 0]
    assert fit_temperature(loss, 3.0 * logits, targets) == pytest.approx(3.0, rel=0.04)


def test_temperature_divides_the_adjusted_logits() -> None:
    loss, logits = PostHocLogitAdjustment([90, 9, 1], tau=1.5), torch.randn(50, 3)
    before, after = loss.adjust(logits), loss.adjust(temperature_scaled(loss, logits, 4.0))
    torch.testing.assert_close(after.log_softmax(1), (before / 4.0).log_softmax(1))


def test_held_out_logits_agree_with_the_cross_validation(data: FeatureSet) -> None:
    folds = repeated_folds(data.targets, 3, 4, 0, repeats=2)
    assert not torch.equal(*folds)
    candidate = Candidate(make_recipes([0.99], [], [])[-1], 0.01)
    trial = cross_validate(data, folds, [SOFTMAX, candidate.recipe], [0.1, 0.01])
    logits, labels, rows = held_out_logits(data, folds, candidate, [0.1, 0.01])
    right = labels[logits.argmax(1) == labels].bincount(minlength=3)
    assert (right - trial.measured[candidate].sum(0)).abs().sum() <= 2
    assert torch.equal(labels, data.targets[rows])
    for half in rows.chunk(2):  # each repeat holds out each image once
        assert half.sort().values.tolist() == list(range(len(data.targets)))
    first = held_out_logits(data, folds[:1], candidate, [0.1, 0.01])
    assert torch.equal(first.rows, rows[: len(first.rows)])
    assert torch.equal(first.logits, logits[: len(first.rows)])


def test_correct_images_are_counted_over_all_blocks() -> None:
    torch.manual_seed(0)
    targets = torch.arange(2 * BLOCK_ROWS + 3) % 3
    features = torch.randn(len(targets), 4) + torch.eye(3, 4)[targets]
    data = Basis.fit(features).project(features, targets, 3)
    train = data.select(torch.arange(len(targets)) < 300)
    (measured,) = measure_all(train, data, [SOFTMAX], [0.1]).values()
    heads = solve_path(train, [SoftmaxLoss(train.class_counts)], [0.1], COMPARISON_TOLERANCE)[0.1]
    predicted = (data.features @ heads.weight[0].T + heads.bias[0]).argmax(1)
    expected = [int((predicted[targets == label] == label).sum()) for label in range(3)]
    np.testing.assert_allclose(measured, expected, atol=1)  # an image on the border may change sides
