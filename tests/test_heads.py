import csv
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import Namespace
from PIL import Image
from scipy import stats
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lt_cb.__main__ import main
from lt_cb.commands.recommend import _take_preprocessing
from lt_cb.data import LongTailedDataModule
from lt_cb.errors import InputError
from lt_cb.heads.features import classifier_of, features_of, kept_features
from lt_cb.heads.folds import SOFTMAX, Candidate, choose, cross_validate, recipes, stratified_folds
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
from lt_cb.run import RunDir

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


@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=6).filter(lambda c: sum(n >= 5 for n in c) >= 2),
    folds=st.integers(2, 5),
    seed=st.integers(0, 9),
)
def test_folds_are_stratified(counts: list[int], folds: int, seed: int) -> None:
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    targets = targets[torch.randperm(len(targets))]
    assigned = stratified_folds(targets, len(counts), folds, seed)
    for label, count in enumerate(counts):
        own = assigned[targets == label]
        if count < folds:
            assert (own == -1).all()
        else:
            sizes = own.bincount(minlength=folds)
            assert len(sizes) == folds
            assert sizes.sum() == count
            assert sizes.max() - sizes.min() <= 1
    assert torch.equal(assigned, stratified_folds(targets, len(counts), folds, seed))


def test_folds_of_too_few_classes_are_refused() -> None:
    with pytest.raises(InputError, match="1 of 3 classes have 5 training images"):
        stratified_folds(torch.tensor([0] * 9 + [1, 2, 2]), 3, 5, 0)
    with pytest.raises(InputError, match="folds is 1"):
        stratified_folds(torch.tensor([0, 0, 1, 1]), 2, 1, 0)


def test_simpler_recipe_is_taken_within_a_standard_error() -> None:
    plain, prior, focal = (Candidate(recipe, 0.1) for recipe in (SOFTMAX, *recipes([0.9], [1.0], [1.0])[1:5:3]))
    assert [c.recipe.complexity for c in (plain, prior, focal)] == [0, 1, 2]
    base = [0.5, 0.6, 0.7, 0.55, 0.65]
    scores = {plain: base, prior: [0.78, 0.9, 0.97, 0.86, 0.93], focal: [0.8, 0.9, 0.96, 0.87, 0.93]}
    choice = choose(scores)
    assert choice.chosen == prior
    assert choice.helps
    assert 0 < choice.low < choice.gain < choice.high
    differences = np.array(scores[prior]) - np.array(base)
    interval = stats.t.interval(0.95, 4, differences.mean(), stats.sem(differences))
    np.testing.assert_allclose([choice.low, choice.high], interval, rtol=1e-6)
    alike = choose({plain: base, focal: [0.51, 0.59, 0.71, 0.54, 0.66]})
    assert not alike.helps
    assert alike.gain == 0.0


def test_post_hoc_heads_are_those_of_softmax(data: tuple[Tensor, Tensor]) -> None:
    features, targets = data
    basis = Basis.of(features)
    folds = stratified_folds(targets, 3, 4, 0)
    tried = recipes([0.99], [1.0], [1.0])
    trial = cross_validate(basis.project(features), targets, 3, folds, tried, [0.1, 0.01], basis.variances)
    assert len(trial.correct) == 2 * len(tried)
    assert trial.counted.sum(0).tolist() == COUNTS
    post_hoc = next(c for c in trial.correct if c.recipe.loss == "PostHocLogitAdjustment" and c.strength == 0.01)
    x = standardised(features)
    for k in range(4):
        held = (folds == k).numpy()
        y = targets.numpy()
        model = LogisticRegression(C=1 / (0.01 * (~held).sum()), tol=1e-10, max_iter=10_000).fit(x[~held], y[~held])
        adjusted = model.predict_log_proba(x[held]) - np.log(np.bincount(y[~held]) / (~held).sum())
        right = y[held][adjusted.argmax(1) == y[held]]
        theirs = np.bincount(right, minlength=3)
        assert np.abs(trial.correct[post_hoc][k].numpy() - theirs).sum() <= 1  # near ties may fall otherwise


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images of four colours that tell the classes, in noise: 30, 12, 8 and 1 for training."""
    rng = np.random.default_rng(0)
    for split, counts in (("train", (30, 12, 8, 1)), ("test", (5, 5, 5, 5))):
        for label, count in enumerate(counts):
            folder = tmp_path / "photos" / split / "abcd"[label]
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.full((10, 10, 3), 40, np.uint8) + rng.integers(0, 60, (10, 10, 3), dtype=np.uint8)
                pixels[..., : label if label < 3 else 1] += 100
                pixels[:4] += 50 * (label == 3)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_recommendation_is_a_checkpoint_to_test_and_predict_with(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--data.root={photos}", "--data.source=image_folder", f"--trainer.default_root_dir={tmp_path / 'runs'}"]
    main(["recommend", *words, "--model.backbone=resnet20", "--lambdas=[0.1, 0.001]", "--trainer.accelerator=cpu"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Chosen: " in shown
    assert "Of 'd' there are fewer training images than 5 folds" in shown
    run = RunDir(tmp_path / "runs" / "run" / "version_0")
    result = run.read_result()
    assert result["class_counts"] == [30, 12, 8, 1]
    assert min(result["per_class_accuracy"][:3]) == 1.0
    record = json.loads(run.recommendation.read_text())
    assert len(record["balanced_accuracy_by_fold"]) == 2 * 14
    options = [f"--ckpt_path={run.checkpoint}", f"--trainer.default_root_dir={tmp_path / 'runs'}"]
    main(["test", *options])
    again = RunDir(tmp_path / "runs" / "run" / "version_1").read_result()
    assert again["per_class_accuracy"] == result["per_class_accuracy"]
    main(["predict", *options, f"--images={photos / 'test'}"])
    rows = list(csv.DictReader(RunDir(tmp_path / "runs" / "run" / "version_2").predictions.open()))
    assert all(row["class"] == Path(row["file"]).parent.name for row in rows if Path(row["file"]).parent.name != "d")
    main(["recommend", *options, "--lambdas=[0.1]"])  # of a checkpoint of ours: the same backbone and data
    assert (tmp_path / "runs" / "run" / "version_3" / "recommendation.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lambdas=[-1]"], "lambda is -1"),
        (["--lambdas=[]"], "lambda is"),
        (["--betas=[1.0]"], "beta is 1.0"),
        (["--taus=[-0.5]"], "tau is -0.5"),
        (["--folds=1"], "folds is 1"),
        (["--folds=40"], "0 of 10 classes have 40|1 of 10 classes have 40"),
    ],
)
def test_recommend_says_what_is_wrong(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    common = ["--data.subset_counts=[45,9,9,9,9,9,9,9,9,9]", "--model.backbone=resnet20", "--trainer.accelerator=cpu"]
    with pytest.raises(SystemExit):
        main(["recommend", *common, f"--trainer.default_root_dir={tmp_path / 'runs'}", *words])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("lt-cb: error: ")
    assert re.search(message, error)
    assert not (tmp_path / "runs").exists()


def test_preprocessing_is_that_of_the_weights_where_none_is_given() -> None:
    weights = timm.get_pretrained_cfg("resnet18")
    given = Namespace(image_size=64, mean=None, std=[0.3])
    _take_preprocessing(given, weights, 3)
    assert given == Namespace(image_size=64, mean=[0.485, 0.456, 0.406], std=[0.3])
    grey = Namespace(image_size=None, mean=None, std=None)
    _take_preprocessing(grey, weights, 1)
    assert grey.image_size == 224
    np.testing.assert_allclose(grey.mean, [(0.485 + 0.456 + 0.406) / 3])


def test_random_weights_are_warned_of(tmp_path: Path) -> None:
    words = ["--data.imbalance_factor=2", "--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path / 'r'}"]
    grid = ["--lambdas=[0.1]", "--betas=[]", "--gammas=[]", "--taus=[]", "--folds=2"]
    with pytest.warns(UserWarning, match="resnet32 has random weights"):
        main(["recommend", *words, *grid])
    record = json.loads(RunDir(tmp_path / "r" / "run" / "version_0").recommendation.read_text())
    assert list(record["balanced_accuracy_by_fold"]) == ["SoftmaxLoss, lambda 0.1", "BalancedSoftmaxLoss, lambda 0.1"]
