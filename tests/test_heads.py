import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lt_cb.data import LongTailedDataModule
from lt_cb.errors import InputError
from lt_cb.heads.features import classifier_of, features_of, kept_features
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
from lt_cb.models import build_backbone
from lt_cb.module import LongTailedClassifier

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


def made(backbone: str = "resnet20", **options: Any) -> tuple[LongTailedClassifier, LongTailedDataModule]:
    torch.manual_seed(0)
    data = LongTailedDataModule("digits", imbalance_factor=10, batch_size=50, **options)
    loss = SoftmaxLoss(data.class_counts)
    return LongTailedClassifier(loss, backbone, in_channels=1, mean=data.mean, std=data.std), data


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images that went through a backbone, batch by batch."""
    batches: list[int] = []

    def count(model: LongTailedClassifier, images: Tensor) -> Tensor:
        batches.append(len(images))
        return features_of(model, images)

    monkeypatch.setattr("lt_cb.heads.features.features_of", count)
    return batches


def test_features_are_those_of_timm() -> None:
    model = LongTailedClassifier(SoftmaxLoss([5, 3, 2]), "resnet18", in_channels=3)
    images = torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8)
    network = model.backbone.eval()
    with torch.no_grad():
        pixels = (images - model.mean) / model.std
        expected = network.forward_head(network.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(features_of(model, images), expected, atol=1e-4, rtol=1e-4)
    assert features_of(model, images).shape == (4, 512)


def test_features_are_kept_in_order_and_not_computed_twice(counted: list[int]) -> None:
    model, data = made()
    first = kept_features(model, data, "train")
    assert sum(counted) == len(first.targets) == sum(data.class_counts)
    images = torch.cat([images for images, _ in data.plain_dataloader("train")])
    expected = features_of(model, images).numpy()
    np.testing.assert_allclose(first.values, expected, atol=2e-3 * np.abs(expected).max())
    assert first.targets.bincount().tolist() == data.class_counts
    again = kept_features(*made(), "train")
    assert sum(counted) == len(first.targets)
    np.testing.assert_array_equal(again.values, first.values)


def test_features_of_other_weights_or_images_are_not_taken(counted: list[int]) -> None:
    model, data = made()
    kept_features(model, data, "test")
    total = sum(counted)
    with torch.no_grad():
        classifier_of(model).weight.add_(1.0)  # which features do not depend on
    kept_features(model, data, "test")
    assert sum(counted) == total
    with torch.no_grad():
        model.backbone.bn1.running_mean[0] += 1.0
    kept_features(model, data, "test")
    assert sum(counted) == 2 * total
    data._splits["test"][0][7, 0, 0] += 1
    kept_features(model, data, "test")
    assert sum(counted) == 3 * total
    kept_features(*made(mean=[0.4]), "test")
    assert sum(counted) == 4 * total


def test_interrupted_features_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = made()
    batches: list[int] = []

    def interrupted(model: LongTailedClassifier, images: Tensor) -> Tensor:
        if len(batches) == 3:
            raise KeyboardInterrupt
        batches.append(len(images))
        return features_of(model, images)

    with monkeypatch.context() as patch:
        patch.setattr("lt_cb.heads.features.features_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kept_features(model, data, "train")
    after: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr("lt_cb.heads.features.features_of", lambda m, x: after.append(len(x)) or features_of(m, x))
        resumed = kept_features(model, data, "train")
    assert sum(batches) + sum(after) == len(resumed.targets)
    monkeypatch.setenv("LT_CB_CACHE", f"{os.environ['LT_CB_CACHE']}_other")
    np.testing.assert_array_equal(resumed.values, kept_features(model, data, "train").values)


def test_half_precision_is_left_where_it_changes_a_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = made()
    assert kept_features(model, data, "test").values.dtype == np.float16
    monkeypatch.setenv("LT_CB_CACHE", f"{os.environ['LT_CB_CACHE']}_other")
    monkeypatch.setattr("lt_cb.heads.features.features_of", lambda m, x: features_of(m, x) * 1e-3 + 10.0)
    assert kept_features(model, data, "test").values.dtype == np.float32


def test_backbone_without_a_classifier_is_refused() -> None:
    model, data = made()
    model.backbone.fc = torch.nn.Conv2d(64, 10, 1)
    with pytest.raises(InputError, match="no linear layer of 10 outputs"):
        kept_features(model, data, "test")


def test_full_disk_is_a_sentence(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(InputError, match=r"cannot be kept .* not free"):
        kept_features(*made(), "test")
    assert not [file for file in own_cache.iterdir() if file.suffix in (".npy", ".partial", ".rows")]


def test_weights_that_cannot_be_downloaded_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(**_: Any) -> None:
        raise FileNotFoundError("check your connection\nand more")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(InputError, match=r"cannot be downloaded or read \(check your connection\): offline"):
        build_backbone("resnet18", 3, options={"pretrained": True})
