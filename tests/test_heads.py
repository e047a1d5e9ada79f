import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import Namespace
from PIL import Image
from scipy import stats
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lt_cb.__main__ import main
from lt_cb.heads.recommend import take_preprocessing
from lt_cb.errors import InputError
from lt_cb.heads.folds import (
    SOFTMAX,
    Candidate,
    choose,
    cooled,
    cross_validate,
    fit_temperature,
    held_out_logits,
    recipes,
    stratified_folds,
)
from lt_cb.heads.solve import Basis, Heads, solve_heads, solve_path
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
from lt_cb.models import build_backbone
from lt_cb.models.build import pretrained_cfg
from lt_cb.runs.folder import RunDir

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


def test_features_that_do_not_fit_in_memory_give_the_same_heads(
    data: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, targets = data
    folds = stratified_folds(targets, int(targets.max()) + 1, 3, 0)

    def tried() -> dict[Candidate, Tensor]:
        basis = Basis.of(features)
        return cross_validate(
            basis.project(features), targets, int(targets.max()) + 1, folds, [SOFTMAX], [0.1], basis.variances
        ).measured

    expected = tried()
    monkeypatch.setattr("lt_cb.heads.solve.available_memory", lambda: 0)
    monkeypatch.setenv("LT_CB_CACHE", str(tmp_path / "cache"))
    for candidate, hits in tried().items():
        assert torch.equal(hits, expected[candidate])
    assert list((tmp_path / "cache").iterdir()) == []  # the files are gone
    (tmp_path / "file").touch()
    monkeypatch.setenv("LT_CB_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="fit neither in the memory that is free nor in"):
        Basis.of(features).project(features)


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


@given(st.integers(2, 6), st.integers(2, 5), st.integers(0, 2**32))
@settings(deadline=None, max_examples=40)
def test_folds_of_several_labels(classes: int, folds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shares = rng.uniform(0.02, 0.6, classes)
    labels = (rng.random((120, classes)) < shares).astype(np.int8)
    targets = torch.from_numpy(labels)
    try:
        assigned = stratified_folds(targets, classes, folds, seed).numpy()
    except InputError:
        return
    rare = labels.sum(0) < folds
    np.testing.assert_array_equal(assigned == -1, labels[:, rare].any(1))  # a class is in all trainings, or held out
    held = assigned[assigned >= 0]
    sizes = np.bincount(held, minlength=folds)
    assert sizes.max() - sizes.min() <= max(8, len(held) // 4)
    everywhere = [c for c in range(classes) if all(labels[assigned == k, c].any() for k in range(folds))]
    assert len(everywhere) >= 2


def test_folds_of_too_few_classes_are_refused() -> None:
    everywhere = torch.tensor([[1, 1, 1 - i % 2] for i in range(4)] * 10, dtype=torch.int8)
    everywhere[1:, 1] = 0  # one image has the second label; with the first it is in all trainings
    everywhere[1:, 2] = 0
    with pytest.raises(InputError, match="1 of 3 classes have 5 training images"):
        stratified_folds(everywhere, 3, 5, 0)
    with pytest.raises(InputError, match="1 of 3 classes have 5 training images"):
        stratified_folds(torch.tensor([0] * 9 + [1, 2, 2]), 3, 5, 0)
    with pytest.raises(InputError, match="folds is 1"):
        stratified_folds(torch.tensor([0, 0, 1, 1]), 2, 1, 0)


def test_simpler_recipe_is_taken_within_a_standard_error() -> None:
    plain, prior, focal = (Candidate(recipe, 0.1) for recipe in (SOFTMAX, *recipes([0.9], [1.0], [1.0])[1:4:2]))
    assert [c.recipe.complexity for c in (plain, prior, focal)] == [0, 1, 2]
    base = [0.5, 0.6, 0.7, 0.55, 0.65]
    scores = {plain: base, prior: [0.78, 0.9, 0.97, 0.86, 0.93], focal: [0.8, 0.9, 0.96, 0.87, 0.93]}
    choice = choose(scores)
    assert choice.chosen == prior
    assert not choice.is_plain
    assert 0 < choice.low < choice.gain < choice.high
    differences = np.array(scores[prior]) - np.array(base)
    interval = stats.t.interval(0.95, 4, differences.mean(), stats.sem(differences))
    np.testing.assert_allclose([choice.low, choice.high], interval, rtol=1e-6)
    alike = choose({plain: base, focal: [0.51, 0.59, 0.71, 0.54, 0.66]})
    assert alike.is_plain
    assert alike.gain == 0.0


def test_post_hoc_heads_are_those_of_softmax(data: tuple[Tensor, Tensor]) -> None:
    features, targets = data
    basis = Basis.of(features)
    folds = stratified_folds(targets, 3, 4, 0)
    tried = recipes([0.99], [1.0], [1.0])
    trial = cross_validate(basis.project(features), targets, 3, folds, tried, [0.1, 0.01], basis.variances)
    assert len(trial.measured) == 2 * len(tried)
    assert trial.counted.sum(0).tolist() == COUNTS
    post_hoc = next(c for c in trial.measured if c.recipe.loss == "PostHocLogitAdjustment" and c.strength == 0.01)
    x = standardised(features)
    for k in range(4):
        held = (folds == k).numpy()
        y = targets.numpy()
        model = LogisticRegression(C=1 / (0.01 * (~held).sum()), tol=1e-10, max_iter=10_000).fit(x[~held], y[~held])
        adjusted = model.predict_log_proba(x[held]) - np.log(np.bincount(y[~held]) / (~held).sum())
        right = y[held][adjusted.argmax(1) == y[held]]
        theirs = np.bincount(right, minlength=3)
        assert np.abs(trial.measured[post_hoc][k].numpy() - theirs).sum() <= 1  # near ties may fall otherwise


def test_balanced_softmax_is_softmax_adjusted_afterwards(data: tuple[Tensor, Tensor]) -> None:
    features, targets = data
    basis = Basis.of(features)
    x = basis.project(features)
    for trained, tau in ((BalancedSoftmaxLoss(COUNTS), 1.0), (LogitAdjustedLoss(COUNTS, 1.5), 1.5)):
        losses = [trained, SoftmaxLoss(COUNTS)]
        logits = solve_heads(x, targets, losses, [0.02, 0.02], basis.variances, tolerance=1e-9).logits(x)
        adjusted = PostHocLogitAdjustment(COUNTS, tau=tau).probabilities(logits[1])
        torch.testing.assert_close(trained.probabilities(logits[0]), adjusted, atol=2e-3, rtol=0.0)


@pytest.mark.parametrize(
    "loss", [SoftmaxLoss([1, 1, 1]), PostHocLogitAdjustment([1, 1, 1], tau=1.0), SigmoidLoss([1] * 3)]
)
def test_temperature_is_that_of_logits_that_are_too_sure(loss: Loss) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = 2.0 * torch.randn(20_000, 3, generator=rng)
    targets = torch.multinomial(loss.log_posterior(logits).softmax(1), 1, generator=rng)[:, 0]
    assert fit_temperature(loss, 3.0 * logits, targets) == pytest.approx(3.0, rel=0.04)


def test_cooled_logits_have_the_same_arg_max_and_probabilities_nearer_to_each_other() -> None:
    loss, logits = PostHocLogitAdjustment([90, 9, 1], tau=1.5), torch.randn(50, 3)
    before, after = loss.adjust(logits), loss.adjust(cooled(loss, logits, 4.0))
    torch.testing.assert_close(after.log_softmax(1), (before / 4.0).log_softmax(1))


def test_held_out_logits_are_counted_as_in_the_trial(data: tuple[Tensor, Tensor]) -> None:
    features, targets = data
    basis = Basis.of(features)
    x, folds = basis.project(features), stratified_folds(targets, 3, 4, 0)
    candidate = Candidate(recipes([0.99], [], [])[-1], 0.01)
    trial = cross_validate(x, targets, 3, folds, [SOFTMAX, candidate.recipe], [0.1, 0.01], basis.variances)
    logits, labels = held_out_logits(x, targets, 3, folds, candidate, [0.1, 0.01], basis.variances)
    right = labels[logits.argmax(1) == labels].bincount(minlength=3)
    assert labels.bincount().tolist() == COUNTS
    assert (right - trial.measured[candidate].sum(0)).abs().sum() <= 1


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
    page = run.recommendation_page.read_text()
    assert "Chosen: " in page.partition("<table>")[0]
    assert all(f'"{name} ({images})"' in page for name, images in (("a", 30), ("b", 12), ("c", 8)))
    record = json.loads(run.recommendation.read_text())
    assert len(record["balanced_accuracy_by_fold"]) == 2 * 13
    options = [f"--ckpt_path={run.checkpoint}", f"--trainer.default_root_dir={tmp_path / 'runs'}"]
    main(["test", *options])
    again = RunDir(tmp_path / "runs" / "run" / "version_1").read_result()
    assert again["per_class_accuracy"] == result["per_class_accuracy"]
    main(["predict", *options, f"--images={photos / 'test'}"])
    rows = list(csv.DictReader(RunDir(tmp_path / "runs" / "run" / "version_2").predictions.open()))
    assert all(row["class"] == Path(row["file"]).parent.name for row in rows if Path(row["file"]).parent.name != "d")
    main(["recommend", *options, "--lambdas=[0.1]"])  # of a checkpoint of ours: the same backbone and data
    assert (tmp_path / "runs" / "run" / "version_3" / "recommendation.json").is_file()


def test_heads_are_tested_over_subset_seeds(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    words = [f"--data.root={photos}", "--data.source=image_folder", f"--trainer.default_root_dir={tmp_path / 'runs'}"]
    words += ["--data.subset_counts=[20,8,6,1]", "--trainer.logger=lt_cb.loggers.WandB"]
    options = ["--model.backbone=resnet20", "--lambdas=[0.1]", "--seeds=[3,0]", "--trainer.accelerator=cpu"]
    main(["heads", *words, *options])
    run = RunDir(tmp_path / "runs" / "run" / "version_0")
    rows = list(csv.DictReader(run.heads.open()))
    assert len(rows) == 2 * 13
    assert {row["subset_seed"] for row in rows} == {"0", "3"}
    alone = [float(row["balanced_acc"]) for row in rows if row["subset_seed"] == "0"]
    main(["heads", *words[:3], words[3], *options[:2], "--seeds=[0]", "--trainer.accelerator=cpu"])
    again = csv.DictReader(RunDir(tmp_path / "runs" / "run" / "version_1").heads.open())
    assert [float(row["balanced_acc"]) for row in again] == alone
    assert "26 heads" not in run.heads_page.read_text()
    assert "13 heads on frozen features of resnet20" in run.heads_page.read_text()
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1
    with pytest.raises(SystemExit, match="2"):
        main(["heads", *words, "--seeds=[1,1]"])
    assert "seeds is [1, 1], but must be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lambdas=[-1]"], "lambda is -1"),
        (["--lambdas=[]"], "--lambdas is empty"),
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


def test_preprocessing_is_that_of_the_weights_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = pretrained_cfg("resnet18")
    given = Namespace(image_size=64, mean=[0.1], std=[0.3])
    take_preprocessing(given, weights, 3, {"image_size", "std"})
    assert given == Namespace(image_size=64, mean=[0.485, 0.456, 0.406], std=[0.3], interpolation="bicubic")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    own = Namespace(image_size=64, mean=None, std=None)
    take_preprocessing(own, pretrained_cfg("offline_backbone.efficientnet_lite0"), 3, ())
    assert own == Namespace(image_size=224, mean=[0.498] * 3, std=[0.502] * 3, interpolation="bicubic")
    smooth = Namespace(image_size=64, mean=None, std=None, interpolation="bilinear")
    take_preprocessing(smooth, weights, 3, {"interpolation"})
    assert smooth.interpolation == "bilinear"
    assert pretrained_cfg("resnet32") is pretrained_cfg("lt_cb.models.resnet.resnet20") is None
    grey = Namespace(image_size=None, mean=None, std=None)
    take_preprocessing(grey, weights, 1, ())
    assert grey.image_size == 224
    np.testing.assert_allclose(grey.mean, [(0.485 + 0.456 + 0.406) / 3])


def test_random_weights_are_warned_of(tmp_path: Path) -> None:
    words = ["--data.imbalance_factor=2", "--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path / 'r'}"]
    grid = ["--lambdas=[0.1]", "--betas=[]", "--gammas=[]", "--taus=[]", "--folds=2"]
    with pytest.warns(UserWarning, match="resnet32 has random weights"):
        main(["recommend", *words, *grid])
    record = json.loads(RunDir(tmp_path / "r" / "run" / "version_0").recommendation.read_text())
    assert list(record["balanced_accuracy_by_fold"]) == ["softmax, λ 0.1"]


@pytest.mark.slow
def test_two_processes_recommend_what_one_does(tmp_path: Path) -> None:
    grid = ["--lambdas=[0.1,0.01]", "--betas=[0.9]", "--gammas=[]", "--taus=[1.0]", "--folds=2"]
    words = ["recommend", "--data.imbalance_factor=5", "--model.backbone=resnet20", "--trainer.accelerator=cpu", *grid]
    words += [f"--trainer.default_root_dir={tmp_path / 'runs'}"]
    main(words)
    command = [sys.executable, "-m", "lt_cb", *words, "--trainer.devices=2", "--trainer.strategy=ddp"]
    for _ in range(2):  # the first finds the features there; in a folder of its own, the second makes them
        subprocess.run(command, check=True, capture_output=True, timeout=500)
        os.environ["LT_CB_CACHE"] = str(tmp_path / "other")  # which the fixture sets back
    alone, *together = (RunDir(tmp_path / "runs" / "run" / f"version_{i}") for i in range(3))
    for run in together:
        assert run.read_result().correct == alone.read_result().correct
        assert (
            json.loads(run.recommendation.read_text())["chosen"]
            == json.loads(alone.recommendation.read_text())["chosen"]
        )
