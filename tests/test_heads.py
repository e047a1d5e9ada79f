"""Linear heads, compared with scipy and scikit-learn."""

import numpy as np
import pytest
import torch
from overlapping import COUNTS, Raw, overlapping, standardised
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lt_cb.errors import InputError
from lt_cb.heads.solve import Basis, FeatureSet, solve_heads, solve_path
from lt_cb.losses import (
    BalancedSoftmaxLoss,
    EffectiveNumber,
    FocalLoss,
    InverseFrequency,
    LDAMLoss,
    LogitAdjustedLoss,
    Loss,
    PostHocLogitAdjustment,
    SigmoidLoss,
    SoftmaxLoss,
)


@pytest.fixture
def raw() -> Raw:
    """Features and targets of three overlapping classes."""
    return overlapping()


@pytest.fixture
def data(raw: Raw) -> FeatureSet:
    """The same features in their basis."""
    return Basis.fit(raw[0]).project(*raw, 3)


def optimum(x: np.ndarray, targets: Tensor, loss: Loss, l2_strength: float) -> float:
    """The smallest objective by scipy: one head, float64, zero start, no basis."""
    tensor, size = torch.from_numpy(x), (3, x.shape[1] + 1)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(flat).view(size).requires_grad_()
        value = loss(tensor @ point[:, :-1].T + point[:, -1], targets) + 0.5 * l2_strength * (point[:, :-1] ** 2).sum()
        value.backward()
        return value.item(), point.grad.flatten().numpy()

    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-14, "gtol": 1e-9}
    return float(minimize(objective, np.zeros(size[0] * size[1]), jac=True, method="L-BFGS-B", options=options).fun)


LOSSES = [
    SoftmaxLoss(COUNTS),
    SoftmaxLoss(COUNTS, EffectiveNumber(0.99)),
    SoftmaxLoss(COUNTS, InverseFrequency()),
    BalancedSoftmaxLoss(COUNTS),
    LogitAdjustedLoss(COUNTS, 1.5),
    SigmoidLoss(COUNTS, EffectiveNumber(0.999)),
    FocalLoss(COUNTS, 1.0, EffectiveNumber(0.999)),
]


def test_heads_are_within_a_thousandth_of_the_optimum(raw: Raw, data: FeatureSet) -> None:
    path = solve_path(data, LOSSES, [1e-3, 0.3, 1e-2])
    assert list(path) == [0.3, 1e-2, 1e-3]
    for l2_strength, heads in path.items():
        for i, loss in enumerate(LOSSES):
            best = optimum(standardised(raw[0]), raw[1], loss, l2_strength)
            assert best * (1 - 1e-5) <= heads.objective[i].item() <= best * 1.001, (loss, l2_strength)


def test_balanced_head_equals_logistic_regression_of_scikit_learn(raw: Raw, data: FeatureSet) -> None:
    weighted = SoftmaxLoss(COUNTS, InverseFrequency("samples"))  # the weights of class_weight="balanced"
    heads = solve_heads(data, [weighted], 0.02, tolerance=1e-9)
    x = standardised(raw[0])
    theirs = LogisticRegression(C=1 / (0.02 * len(x)), class_weight="balanced", tol=1e-10, max_iter=10_000)
    expected = theirs.fit(x, raw[1].numpy()).predict_proba(x)
    np.testing.assert_allclose(heads.logits(data.features)[0].softmax(1).numpy(), expected, atol=2e-3)


def test_unprojected_head_gives_the_same_logits_on_raw_features(raw: Raw, data: FeatureSet) -> None:
    heads = solve_heads(data, LOSSES[:1], 1e-2)
    weight, bias = Basis.fit(raw[0]).unproject(heads.weight[0], heads.bias[0])
    logits = raw[0] @ weight.T + bias
    torch.testing.assert_close(logits, heads.logits(data.features)[0], atol=1e-2, rtol=1e-3)


def test_heads_solved_together_equal_heads_solved_alone(data: FeatureSet) -> None:
    together = solve_heads(data, LOSSES, 1e-2)
    for i, loss in enumerate(LOSSES):
        alone = solve_heads(data, [loss], 1e-2)
        torch.testing.assert_close(alone.objective[0], together.objective[i], rtol=1e-4, atol=0.0)


def test_heads_of_thousands_of_classes_are_solved_in_groups(raw: Raw) -> None:
    data = Basis.fit(raw[0]).project(*raw, 2100)
    losses = [SoftmaxLoss(data.class_counts), SoftmaxLoss(data.class_counts, EffectiveNumber(0.9))]
    heads = solve_path(data, losses, [0.3])[0.3]
    for i, loss in enumerate(losses):
        assert torch.equal(heads.weight[i], solve_heads(data, [loss], 0.3).weight[0])


def test_repeating_all_images_does_not_change_the_objective(raw: Raw, data: FeatureSet) -> None:
    features, targets = (torch.cat([values] * 50) for values in raw)  # more than one block of images
    repeated = Basis.fit(features).project(features, targets, 3)
    expected = solve_heads(data, LOSSES[:2], 1e-2).objective
    torch.testing.assert_close(solve_heads(repeated, LOSSES[:2], 1e-2).objective, expected, rtol=1e-3, atol=0.0)


def test_warm_start_from_the_solution_converges_sooner(data: FeatureSet) -> None:
    cold = solve_heads(data, LOSSES, 1e-3)
    warm = solve_heads(data, LOSSES, 1e-3, start=cold)
    assert warm.rounds < cold.rounds / 2
    assert (warm.objective <= cold.objective * (1 + 1e-6)).all()


def test_bias_is_not_penalised(data: FeatureSet) -> None:
    heads = solve_heads(data, LOSSES[:1], 1e6, tolerance=1e-9)
    prior = torch.tensor(COUNTS) / sum(COUNTS)
    torch.testing.assert_close(heads.bias[0].softmax(0), prior, atol=1e-3, rtol=0.0)


@pytest.mark.parametrize("loss", [LDAMLoss(COUNTS), SoftmaxLoss(COUNTS, reduction="sum")])
def test_loss_of_cosines_or_of_another_reduction_raises(data: FeatureSet, loss: Loss) -> None:
    with pytest.raises(InputError, match=f"{type(loss).__name__} with reduction '{loss.reduction}' cannot be solved"):
        solve_heads(data, [loss], 0.1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.inf, "the features of 2 of 93 images are infinite"),
        (torch.nan, "the features of 2 of 93 images are NaN"),
        (1e30, "features are too large"),
    ],
)
def test_features_that_are_not_finite_raise(raw: Raw, value: float, message: str) -> None:
    raw[0][3, 2] = raw[0][3, 5] = value
    raw[0][90, 1] = -value
    with pytest.raises(InputError, match=message):
        Basis.fit(raw[0])


def test_balanced_softmax_equals_softmax_adjusted_afterwards(data: FeatureSet) -> None:
    for trained, tau in ((BalancedSoftmaxLoss(COUNTS), 1.0), (LogitAdjustedLoss(COUNTS, 1.5), 1.5)):
        logits = solve_heads(data, [trained, SoftmaxLoss(COUNTS)], 0.02, tolerance=1e-9).logits(data.features)
        adjusted = PostHocLogitAdjustment(COUNTS, tau=tau).probabilities(logits[1])
        torch.testing.assert_close(trained.probabilities(logits[0]), adjusted, atol=2e-3, rtol=0.0)


def test_constant_features_are_refused(raw: Raw) -> None:
    constant = raw[0][:1].repeat(50, 1)
    for features in (constant, torch.zeros(50, 9), constant * (1 + 1e-8 * torch.randn(50, 1))):
        with pytest.raises(InputError, match="same features for all images"):
            Basis.fit(features)
