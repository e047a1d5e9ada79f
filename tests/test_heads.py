import csv
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import Namespace
from PIL import Image
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lt_cb.__main__ import main
from lt_cb.errors import InputError
from lt_cb.heads import page
from lt_cb.heads.folds import (
    cross_validate,
    fit_temperature,
    held_out_logits,
    repeated_folds,
    stratified_folds,
    temperature_scaled,
)
from lt_cb.heads.recipes import SOFTMAX, Candidate, make_recipes
from lt_cb.heads.setup import for_channels, preprocessing
from lt_cb.heads.solve import Basis, FeatureSet, one_thread_if_small, solve_heads, solve_path
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
from lt_cb.losses.prior import log_posterior
from lt_cb.models import build_backbone
from lt_cb.runs.folder import RunDir
from lt_cb.runs.record import Record

COUNTS = [60, 25, 8]
Raw = tuple[Tensor, Tensor]


@pytest.fixture
def raw() -> Raw:
    """Features and targets of three overlapping classes; means and scales differ, and one feature is constant."""
    rng = torch.Generator().manual_seed(1)
    targets = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
    centres = torch.randn(3, 9, generator=rng)
    features = centres[targets] + 1.5 * torch.randn(len(targets), 9, generator=rng)
    features = features * torch.logspace(-2, 2, 9) + torch.linspace(-50, 50, 9)
    features[:, 4] = 3.0
    return features, targets


@pytest.fixture
def data(raw: Raw) -> FeatureSet:
    """The same features in their basis."""
    return Basis.fit(raw[0]).project(*raw, 3)


def standardised(features: Tensor) -> np.ndarray:
    x = features.double().numpy()
    scale = x.std(0)
    return (x - x.mean(0)) / np.where(scale > 0, scale, 1.0)


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


def test_failed_download_of_weights_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(**_: Any) -> None:
        raise FileNotFoundError("check your connection\nand more")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(InputError, match=r"cannot be downloaded or read \(check your connection\): offline"):
        build_backbone("resnet18", 3, options={"pretrained": True})


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


def test_folds_of_fewer_than_two_classes_raise() -> None:
    everywhere = torch.tensor([[1, 1, 1 - i % 2] for i in range(4)] * 10, dtype=torch.int8)
    everywhere[1:, 1:] = 0  # one image has all labels; it is always trained on
    with pytest.raises(InputError, match="1 of 3 classes have 5 training images"):
        stratified_folds(everywhere, 3, 5, 0)
    with pytest.raises(InputError, match="1 of 3 classes have 2 training images"):
        stratified_folds(torch.tensor([0] * 9 + [1, 2]), 3, 5, 0)
    with pytest.raises(InputError, match="no class has 5 training images, one for each fold: set --folds 4 or fewer"):
        stratified_folds(torch.arange(3).repeat(4), 3, 5, 0)


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


def test_balanced_softmax_equals_softmax_adjusted_afterwards(data: FeatureSet) -> None:
    for trained, tau in ((BalancedSoftmaxLoss(COUNTS), 1.0), (LogitAdjustedLoss(COUNTS, 1.5), 1.5)):
        logits = solve_heads(data, [trained, SoftmaxLoss(COUNTS)], 0.02, tolerance=1e-9).logits(data.features)
        adjusted = PostHocLogitAdjustment(COUNTS, tau=tau).probabilities(logits[1])
        torch.testing.assert_close(trained.probabilities(logits[0]), adjusted, atol=2e-3, rtol=0.0)


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


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Noisy images in four classes of distinct colours: 30, 12, 8 and 1 for training."""
    rng = np.random.default_rng(0)
    for split, counts in (("train", (30, 12, 8, 1)), ("test", (5, 5, 5, 5))):
        for label, count in enumerate(counts):
            folder = tmp_path / "my photos" / split / "abcd"[label]
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.full((10, 10, 3), 40, np.uint8) + rng.integers(0, 60, (10, 10, 3), dtype=np.uint8)
                pixels[..., : label if label < 3 else 1] += 100
                pixels[:4] += 50 * (label == 3)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "my photos"


@pytest.fixture
def run_command(photos: Path, tmp_path: Path) -> Callable[..., RunDir]:
    """Run a command on the photos, and return the folder of its run."""

    def run(command: str, *words: str) -> RunDir:
        before = set(tmp_path.glob("runs/run/*"))
        data = [] if any("ckpt_path" in word for word in words) else ["--data.source=image_folder"]
        data += [f"--data.root={photos}", "--model.backbone=resnet20"] if data else []
        main([command, *data, "--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path / 'runs'}", *words])
        (made,) = set(tmp_path.glob("runs/run/*")) - before
        return RunDir(made)

    return run


def test_recommendation_is_a_checkpoint_to_test_and_predict_with(
    photos: Path, run_command: Callable[..., RunDir], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = run_command("recommend", "--lambdas=[0.1, 0.001]")
    out = capsys.readouterr().out
    printed = " ".join(out.split())
    assert "The choice ignores 'd': a class of one training image is never held out." in printed
    result = run.read_result()
    assert result.class_counts == [30, 12, 8, 1]
    assert result.scores[:3] == [1.0, 1.0, 1.0]
    page = run.recommendation_page.read_text()
    *_, result_line, next_line = out.splitlines()
    assert f'<p class="finding">{result_line}</p>' in page
    assert result_line.startswith("Chosen: ")
    assert re.findall(r"<td>([abcd])</td><td>(\d+)</td>", page)[:4] == [
        ("d", "1"),
        ("c", "8"),
        ("b", "12"),
        ("a", "30"),
    ]
    assert f"<h1>Recommendation: {photos}, resnet20</h1>" in page
    titles = ["Accuracy of the classes", "Prediction sets", "Unknown images", "Balanced accuracy by"]
    order = [page.find(f"<h2>{title}") for title in titles]
    assert sorted(order) == order
    assert out.count("✓") == 2  # in the table, and in the words below it
    command = shlex.split(next_line.removeprefix("Next: "))
    main(command[command.index("predict") :])
    (made,) = tmp_path.glob("runs/run/*/predictions.csv")
    assert len(made.read_text().splitlines()) == 1 + 20
    made.unlink()
    assert len(json.loads(run.recommendation.read_text())["balanced_accuracy_by_fold"]) == 2 * 6

    checkpoint = f"--ckpt_path={run.checkpoint}"
    tested = run_command("test", checkpoint).read_result()
    assert (tested.scores, tested.metrics) == (result.scores, result.metrics)  # both start from the images
    predictions = run_command(
        "predict", checkpoint, f"--images={photos / 'test'}", "--sets=0.9", "--unknown=true"
    ).predictions
    table = list(csv.DictReader(predictions.open()))
    assert all(0 <= float(row["unknown"]) <= 1 for row in table)
    rows = [(Path(row["file"]).parent.name, row["class"], row["set"]) for row in table]
    assert all(name == predicted for name, predicted, _ in rows if name != "d")
    sets = {name: [held.split(";") for true, _, held in rows if true == name] for name in "abcd"}
    covered = [np.mean([name in held for held in sets[name]]) for name in "abcd"]
    assert result.set_level == 0.9
    assert result.set_coverage == pytest.approx(covered)
    assert result.set_size == pytest.approx([np.mean([len(held) for held in sets[name]]) for name in "abcd"])
    assert result.metrics["test/coverage"] == pytest.approx(np.mean(covered), abs=1e-6)
    assert run_command("recommend", checkpoint, "--lambdas=[0.1]").recommendation.is_file()


def test_recommend_makes_one_data_module_and_tests_a_new_network(
    tmp_path: Path, run_command: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "counted.py").write_text(
        """
from lt_cb.data import LongTailedDataModule
from lt_cb.models import resnet20
made = []
class Data(LongTailedDataModule):
    def __init__(self, **options):
        made.append("data")
        super().__init__(**options)
def network(num_classes: int, in_channels: int = 3):
    made.append("network")
    return resnet20(num_classes, in_channels)
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    run_command("recommend", "--data=counted.Data", "--model.backbone=counted.network", "--lambdas=[0.1]")
    assert sys.modules["counted"].made == ["data", "network", "network"]


def test_recommend_follows_a_changed_network_and_refuses_a_random_one(
    tmp_path: Path, run_command: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "changing.py").write_text(
        """
import torch
from torch import nn
activation, entropy = nn.ReLU, None
class Random(nn.Module):
    def __init__(self, num_classes: int, in_channels: int = 3):
        super().__init__()
        self.weight = torch.randn(in_channels * 100, 8)  # no buffer
        self.classifier = nn.Linear(8, num_classes)
    def forward(self, images):
        return self.classifier(images.flatten(1) @ self.weight)
def network(num_classes: int, in_channels: int = 3):
    torch.manual_seed(0)
    layers = [nn.Conv2d(in_channels, 8, 3, 2), activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, num_classes))
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    grid = ["--betas=[]", "--gammas=[]", "--taus=[1]", "--lambdas=[0.1]", "--folds=2"]

    def recommended() -> Record:
        run = run_command("recommend", "--model.backbone=changing.network", *grid)
        capsys.readouterr()
        return run.read_result()

    first = recommended().metrics
    assert recommended().metrics == first
    monkeypatch.setattr(sys.modules["changing"], "activation", torch.nn.Tanh)
    with pytest.warns(UserWarning, match="all are computed again"):
        changed = recommended().metrics
    monkeypatch.setenv("LT_CB_CACHE", str(tmp_path / "empty"))
    assert recommended().metrics == changed != first
    runs = set(tmp_path.glob("runs/run/*"))
    with pytest.raises(SystemExit, match="2"):
        run_command("recommend", "--model.backbone=changing.Random", *grid)
    error = capsys.readouterr().err
    assert "computes other features than its head was trained on" in error
    assert "Traceback" not in error
    assert set(tmp_path.glob("runs/run/*")) == runs


def test_heads_writes_a_score_for_each_recipe_and_subset_seed(
    run_command: Callable[..., RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    words = ["--data.subset_counts=[20,8,6,1]", "--lambdas=[0.1]"]
    run = run_command("heads", *words, "--trainer.logger=lt_cb.loggers.WandB", "--seeds=[3,0]")
    rows = list(csv.DictReader(run.heads.open()))
    assert len(rows) == 2 * 6
    assert {row["subset_seed"] for row in rows} == {"0", "3"}
    alone = csv.DictReader(run_command("heads", *words, "--seeds=[0]").heads.open())
    assert list(alone) == [row for row in rows if row["subset_seed"] == "0"]
    assert "6 heads on frozen features of resnet20" in run.heads_page.read_text()
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1


@pytest.mark.parametrize(
    ("command", "option", "message"),
    [
        ("recommend", "--lambdas=[-1]", "lambda is -1"),
        ("recommend", "--lambdas=[]", "--lambdas is empty"),
        ("recommend", "--betas=[1.0]", "beta is 1.0"),
        ("recommend", "--taus=[-0.5]", "tau is -0.5"),
        ("recommend", "--folds=1", "folds is 1"),
        ("recommend", "--folds=46", "no class has 46 .* set --folds 45 or fewer"),
        ("recommend", "--trainer.devices=0", "the Trainer cannot be made"),
        ("heads", "--trainer.fast_dev_run=true", "leave it out"),
        ("heads", "--seeds=[1,1]", r"seeds is \[1, 1\], but must be"),
    ],
)
def test_wrong_option_is_one_sentence(
    command: str, option: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, own_cache: Path
) -> None:
    common = ["--data.subset_counts=[45,9,9,9,9,9,9,9,9,9]", "--model.backbone=resnet20", "--trainer.accelerator=cpu"]
    with pytest.raises(SystemExit, match="2"):
        main([command, *common, f"--trainer.default_root_dir={tmp_path / 'runs'}", option])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("lt-cb: error: ")
    assert re.search(message, error)
    assert not (tmp_path / "runs").exists()
    assert not own_cache.exists()  # nothing was computed


@pytest.mark.parametrize(
    ("counts", "advice"), [([4, 2], "set --folds 4 or fewer"), ([9, 1, 1], "by: add images"), ([9], "by: add")]
)
def test_folds_that_cannot_be_made_are_refused_with_advice(counts: list[int], advice: str) -> None:
    targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    with pytest.raises(InputError, match=advice):
        stratified_folds(targets, len(counts), 5, 0)
    if "folds" in advice:
        assert (stratified_folds(targets, len(counts), 2, 0) >= 0).all()


def test_constant_features_are_refused(raw: Raw) -> None:
    constant = raw[0][:1].repeat(50, 1)
    for features in (constant, torch.zeros(50, 9), constant * (1 + 1e-8 * torch.randn(50, 1))):
        with pytest.raises(InputError, match="same features for all images"):
            Basis.fit(features)


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["[/x]", "[red]", ":cat:", "\x1b[31mred", "two\nlines", "**"]
    table = page.accuracy_table(names, [2] * 6, [2] * 6, dict.fromkeys(["", "[/b]"], torch.ones(6).long()), "[/i] note")
    page.show([table], [f"Chosen: {names}, {names[3]}, {names[4]}."])
    printed = capsys.readouterr().out
    for text in ("[/x]", "[red]", ":cat:", r"\x1b[31mred", r"two\nlines", " ** ", "[/b]", "[/i] note"):
        assert text in printed
    assert "\x1b" not in printed


def test_preprocessing_belongs_to_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    common = {"data.image_size": 224, "data.interpolation": "bicubic"}

    def model(backbone: str, **backbone_args: Any) -> Namespace:
        return Namespace(model=Namespace(backbone=backbone, backbone_args=backbone_args or None))

    resnet = {**common, "data.mean": [0.485, 0.456, 0.406], "data.std": [0.229, 0.224, 0.225]}
    assert preprocessing(model("resnet18")) == resnet
    lite = preprocessing(model("offline_backbone.efficientnet_lite0"))
    assert lite == {**common, "data.mean": [0.498] * 3, "data.std": [0.502] * 3}
    assert preprocessing(model("resnet18", pretrained=False)) == preprocessing(model("resnet32")) == {}
    assert for_channels(resnet["data.mean"], 3) == resnet["data.mean"]
    assert for_channels(resnet["data.mean"], 1) == pytest.approx([(0.485 + 0.456 + 0.406) / 3])


@pytest.mark.parametrize("given_by", ["flag", "environment"])
def test_settings_override_the_preprocessing_of_the_weights(
    given_by: str, run_command: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Files do not: they describe the training of another network."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    (tmp_path / "training.yaml").write_text("data: {image_size: 16, mean: [0.25]}\n")
    words = ["--lambdas=[0.1]", "--betas=[]", "--gammas=[]", "--folds=2"]
    if given_by == "flag":
        words.append("--data.image_size=32")
    else:
        monkeypatch.setenv("LT_CB_DATA__IMAGE_SIZE", "32")
    words += [f"--config={tmp_path / 'training.yaml'}", "--model.backbone=offline_backbone.efficientnet_lite0"]
    data = run_command("recommend", *words).read_config()["data"]
    assert (data["image_size"], data["interpolation"], data["mean"]) == (32, "bicubic", [0.498] * 3)


def test_grey_images_get_the_mean_of_the_weights_over_colours(
    run_command: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    words = ["--lambdas=[0.1]", "--betas=[]", "--gammas=[]", "--folds=2", "--data.source=Digits"]
    words += ["--data.image_size=32", f"--data.subset_counts={[4] * 10}", "--trainer.limit_test_batches=1"]
    data = run_command("recommend", "--model.backbone=offline_backbone.efficientnet_lite0", *words).read_config()[
        "data"
    ]
    assert (data["mean"], data["std"]) == (pytest.approx([0.498]), pytest.approx([0.502]))


def test_an_unreadable_test_image_is_refused_before_features_are_computed(
    photos: Path, run_command: Callable[..., RunDir], own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "test" / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises(SystemExit, match="2"):
        run_command("recommend")
    assert "cannot be read as an image" in capsys.readouterr().err
    assert not list(own_cache.glob("*.npy"))


def test_random_weights_are_warned_of(run_command: Callable[..., RunDir]) -> None:
    grid = ["--lambdas=[0.1]", "--betas=[]", "--gammas=[]", "--taus=[]", "--folds=2"]
    with pytest.warns(UserWarning, match="resnet20 has random weights"):
        run = run_command("recommend", *grid)
    assert list(json.loads(run.recommendation.read_text())["balanced_accuracy_by_fold"]) == ["softmax, λ 0.1"]


@pytest.mark.slow
def test_two_processes_recommend_the_same_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = ["--lambdas=[0.1,0.01]", "--betas=[0.9]", "--gammas=[]", "--taus=[1.0]", "--folds=2"]
    words = ["recommend", "--data.imbalance_factor=5", "--model.backbone=resnet20", "--trainer.accelerator=cpu", *grid]
    words += [f"--trainer.default_root_dir={tmp_path / 'runs'}"]
    main(words)
    monkeypatch.setenv("LT_CB_CACHE", str(tmp_path / "empty"))  # the two processes compute the features
    command = [sys.executable, "-m", "lt_cb", *words, "--trainer.devices=2", "--trainer.strategy=ddp"]
    subprocess.run(command, check=True, capture_output=True, timeout=500)
    one, two = (RunDir(tmp_path / "runs" / "run" / f"version_{i}") for i in range(2))
    assert two.read_result().correct == one.read_result().correct
    chosen = [json.loads(run.recommendation.read_text())["chosen"] for run in (one, two)]
    assert chosen[0] == chosen[1]
