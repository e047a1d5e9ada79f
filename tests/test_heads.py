import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lt_cb.errors import InputError
from lt_cb.heads.solve import Basis, Heads, solve_heads, solve_path
from lt_cb.losses import (
    BalancedSoftmaxLoss,
    EffectiveNumber,
    FocalLoss,
    InverseFrequency,
    LDAMLoss,
    LogitAdjustedLoss,
    Loss,
    SigmoidLoss,
    SoftmaxLoss,
)

COUNTS = [60, 25, 8]


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    """Features of three classes that overlap, of unlike means and scales, one of them constant."""
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


def optimum(x: np.ndarray, targets: Tensor, loss: Loss, strength: float) -> float:
    """The least objective by scipy, of features as they are: float64, one head, from zero, and no basis."""
    tensor, size = torch.from_numpy(x), (3, x.shape[1] + 1)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(flat).view(size).requires_grad_()
        value = loss(tensor @ point[:, :-1].T + point[:, -1], targets) + 0.5 * strength * (point[:, :-1] ** 2).sum()
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


def test_every_head_is_within_a_thousandth_of_the_optimum(data: tuple[Tensor, Tensor]) -> None:
    features, targets = data
    basis = Basis.of(features)
    path = solve_path(basis.project(features), targets, LOSSES, [1e-3, 0.3, 1e-2], basis.variances)
    assert list(path) == [0.3, 1e-2, 1e-3]  # strong to weak
    for strength, heads in path.items():
        for i, loss in enumerate(LOSSES):
            best = optimum(standardised(features), targets, loss, strength)
            assert best * (1 - 1e-5) <= heads.objective[i].item() <= best * 1.001, (loss, strength)


def test_head_is_that_of_scikit_learn(data: tuple[Tensor, Tensor]) -> None:
    features, targets = data
    strength = 0.02
    basis = Basis.of(features)
    weighted = SoftmaxLoss(COUNTS, InverseFrequency("samples"))  # what class_weight="balanced" is
    heads = solve_heads(basis.project(features), targets, [weighted], [strength], basis.variances, tolerance=1e-9)
    x = standardised(features)
    theirs = LogisticRegression(C=1 / (strength * len(x)), class_weight="balanced", tol=1e-10, max_iter=10_000).fit(
        x, targets.numpy()
    )
    ours = heads.logits(basis.project(features))[0].softmax(1)
    np.testing.assert_allclose(ours.numpy(), theirs.predict_proba(x), atol=2e-3)


def test_heads_are_the_same_for_features_as_the_backbone_has_them(data: tuple[Tensor, Tensor]) -> None:
    features, targets = data
    basis = Basis.of(features)
    heads = solve_heads(basis.project(features), targets, LOSSES[:1], [1e-2], basis.variances)
    weight, bias = basis.unproject(heads.weight[0], heads.bias[0])
    logits = features @ weight.T + bias
    torch.testing.assert_close(logits, heads.logits(basis.project(features))[0], atol=1e-2, rtol=1e-3)


def test_heads_solved_together_are_those_solved_alone(data: tuple[Tensor, Tensor], monkeypatch) -> None:
    features, targets = data
    basis = Basis.of(features)
    projected = basis.project(features)
    strengths = [0.3, 1e-3, 1e-2, 0.1, 1e-3, 1e-2, 1e-1]
    together = solve_heads(projected, targets, LOSSES, strengths, basis.variances)
    monkeypatch.setattr("lt_cb.heads.solve.COLUMNS", 6)  # two heads at once
    monkeypatch.setattr("lt_cb.heads.solve.ROWS", 10)
    apart = solve_heads(projected, targets, LOSSES, strengths, basis.variances)
    torch.testing.assert_close(together.objective, apart.objective, rtol=1e-3, atol=0.0)


def test_solution_to_start_from_is_kept(data: tuple[Tensor, Tensor]) -> None:
    features, targets = data
    basis = Basis.of(features)
    projected = basis.project(features)
    cold = solve_heads(projected, targets, LOSSES, [1e-3] * 7, basis.variances)
    warm = solve_heads(projected, targets, LOSSES, [1e-3] * 7, basis.variances, start=cold)
    assert warm.rounds < cold.rounds / 2
    assert (warm.objective <= cold.objective * (1 + 1e-6)).all()


def test_more_is_not_penalised_than_the_weights(data: tuple[Tensor, Tensor]) -> None:
    features, targets = data
    basis = Basis.of(features)
    heads: Heads = solve_heads(basis.project(features), targets, LOSSES[:1], [1e6], basis.variances, tolerance=1e-9)
    prior = torch.tensor(COUNTS) / sum(COUNTS)
    torch.testing.assert_close(heads.bias[0].softmax(0), prior, atol=1e-3, rtol=0.0)


@pytest.mark.parametrize(
    ("loss", "strength", "message"),
    [
        (SoftmaxLoss(COUNTS), -0.1, "lambda is -0.1"),
        (SoftmaxLoss(COUNTS), float("nan"), "lambda is nan"),
        (LDAMLoss(COUNTS), 0.1, "LDAMLoss needs cosines"),
        (SoftmaxLoss(COUNTS, reduction="sum"), 0.1, "reduction 'sum'"),
    ],
)
def test_what_has_no_solution_is_refused(data: tuple[Tensor, Tensor], loss: Loss, strength: float, message: str):
    with pytest.raises(InputError, match=message):
        solve_heads(*data, [loss], [strength])


def test_features_that_are_not_finite_are_refused(data: tuple[Tensor, Tensor]) -> None:
    features, _ = data
    features[3, 2] = torch.inf
    with pytest.raises(InputError, match="not finite"):
        Basis.of(features)
