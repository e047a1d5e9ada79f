"""``--prior``: predictions for another class prior than in training."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from refusals import refused
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from lt_cb import losses
from lt_cb.__main__ import main
from lt_cb.commands.prior import read_prior
from lt_cb.errors import InputError
from lt_cb.longtail.prior import class_prior
from lt_cb.losses import Loss
from lt_cb.losses.prior import RULES, assumed_prior, weighted_prior
from lt_cb.module import LongTailedClassifier

ROOT = Path(__file__).parents[1]
COUNTS = [900, 300, 60, 12]
WEIGHTING = losses.EffectiveNumber(0.99)
CALIBRATED = [
    losses.SoftmaxLoss(COUNTS, WEIGHTING),
    losses.LogitAdjustedLoss(COUNTS, tau=1.5, weighting=losses.SquareRootInverse()),
    losses.PostHocLogitAdjustment(COUNTS, tau=0.7),
    losses.LDAMLoss(COUNTS, max_margin=0, scale=2.0),
    losses.SigmoidLoss(COUNTS, WEIGHTING, "label"),
    losses.FocalLoss(COUNTS, 3),
    losses.FocalLoss(COUNTS, 1, WEIGHTING),
    losses.FocalLoss(COUNTS, 1, WEIGHTING, weight_of="positive"),
]
each_calibrated_loss = pytest.mark.parametrize("loss", CALIBRATED, ids=lambda loss: type(loss).__name__)


def predictions(loss: Loss, prior: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores and probabilities of a model that predicts for a prior."""
    model = LongTailedClassifier(loss, backbone="resnet20")
    model.set_prior(prior)
    return model.scores(logits), model.probabilities(logits)


def gaussian_densities(points: Tensor) -> Tensor:
    """Return the density of each of four classes with unit variance at points of the plane, (B, 4)."""
    means = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [1.5, 1.5]], dtype=torch.float64)
    return (-(points[:, None] - means).square().sum(2) / 2).exp() / (2 * math.pi)


def optimal_logits(loss: Loss, densities: Tensor) -> Tensor:
    """Return the logits, (B, C), that minimise the expected training loss at each point."""
    size, classes = densities.shape
    mass = densities * torch.tensor(loss.class_counts, dtype=torch.float64)
    mass = mass / mass.sum(1, keepdim=True)
    targets = torch.arange(classes).repeat(size)
    logits = torch.zeros(size, classes, dtype=torch.float64, requires_grad=True)
    per_sample = type(loss)(**{**loss.arguments(), "reduction": "none"}).double()
    optimizer = torch.optim.LBFGS(
        [logits], lr=1, max_iter=3000, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def risk() -> Tensor:
        optimizer.zero_grad()
        total = (per_sample(logits.repeat_interleave(classes, 0), targets) * mass.flatten()).sum()
        total.backward()
        return total

    optimizer.step(risk)
    return logits.detach()


@each_calibrated_loss
def test_gaussian_classes_get_their_bayes_posterior(loss: Loss) -> None:
    points = torch.tensor([[0.1, 0], [1, 0.8], [2, 0.3], [0.2, 1.9], [-1, 0.5], [2, 2.2]], dtype=torch.float64)
    densities = gaussian_densities(points)
    logits = optimal_logits(loss, densities)
    for shares in ([0.05, 0.2, 0.35, 0.4], [0.25] * 4, [0.0, 0.5, 0.5, 0.0]):
        prior = torch.tensor(shares, dtype=torch.float64)
        expected = densities * prior / (densities * prior).sum(1, keepdim=True)
        scores, probabilities = predictions(loss, 7 * prior, logits)
        torch.testing.assert_close(probabilities, expected, rtol=2e-4, atol=1e-5)
        assert scores.argmax(1).tolist() == expected.argmax(1).tolist()


@each_calibrated_loss
def test_a_class_of_share_0_is_never_predicted(loss: Loss) -> None:
    for size in (30.0, 1e4):
        logits = size * torch.tensor([[1.0, -1, -1, -1], [1, 1, -1, 0], [-1, -1, -1, -0.9], [0, 0, 0, 0]])
        scores, probabilities = predictions(loss, torch.tensor([0.0, 1, 2, 3]), logits)
        assert not probabilities[:, 0].any()
        torch.testing.assert_close(probabilities.sum(1), torch.ones(4))
        assert 0 not in scores.argmax(1)
        assert scores[2].argmax() == 3


def test_assumed_priors() -> None:
    for loss, expected in (
        (losses.SoftmaxLoss([6, 2]), [0.75, 0.25]),
        (losses.SoftmaxLoss([6, 2, 0, 0]), [0.75, 0.25, 0.125, 0.125]),  # a class without images is left out of the sum
        (losses.SoftmaxLoss([6, 2], losses.InverseFrequency()), [0.5, 0.5]),
        (losses.SigmoidLoss([6, 2], losses.InverseFrequency(), "label"), [0.75, 0.25]),
        (losses.BalancedSoftmaxLoss([6, 2]), [0.5, 0.5]),
        (losses.PostHocLogitAdjustment([6, 2], tau=2), [0.25, 0.75]),
    ):
        torch.testing.assert_close(assumed_prior(loss), torch.tensor(expected, dtype=torch.float64))
        loss.weighted = False  # a deferred weighting is applied at the end of the training
        torch.testing.assert_close(assumed_prior(loss), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("counts", [COUNTS, [900, 0, 60, 0]], ids=str)
def test_the_training_prior_undoes_balanced_softmax(counts: list[int]) -> None:
    logits = torch.randn(8, 4)
    balanced, plain = losses.BalancedSoftmaxLoss(counts), losses.SoftmaxLoss(counts)
    for loss, expected in ((balanced, balanced.training_logits(logits, torch.zeros(8).long())), (plain, logits)):
        _, probabilities = predictions(loss, read_prior("train", list("abcd"), loss), logits)
        torch.testing.assert_close(probabilities, expected.softmax(1))


@pytest.mark.parametrize(
    ("distorted", "neutral"),
    [
        (losses.LDAMLoss(COUNTS), losses.LDAMLoss(COUNTS, max_margin=0)),
        (losses.GCLLoss(COUNTS), losses.GCLLoss(COUNTS, noise=0)),
        (losses.VectorScalingLoss(COUNTS), losses.VectorScalingLoss(COUNTS, gamma=0)),
        (losses.ClassDependentTemperatureLoss(COUNTS), losses.ClassDependentTemperatureLoss(COUNTS, gamma=0)),
        (losses.EqualizationLoss(COUNTS, threshold=0.1), losses.EqualizationLoss(COUNTS, gamma=0)),
        (losses.SeesawLoss(COUNTS), losses.SeesawLoss(COUNTS, p=0, q=0)),
        (losses.LabelSmoothingLoss(COUNTS), losses.LabelSmoothingLoss(COUNTS, smoothing=0)),
        (losses.LabelAwareSmoothingLoss(COUNTS), losses.LabelAwareSmoothingLoss(COUNTS, head=0, tail=0)),
        (losses.PolyLoss(COUNTS), losses.PolyLoss(COUNTS, epsilon=0)),
        (losses.AsymmetricLoss(COUNTS), losses.AsymmetricLoss(COUNTS, 0, 0, margin=0)),
        (losses.DistributionBalancedLoss(COUNTS, 999), losses.DistributionBalancedLoss(COUNTS, 999, 0.5, 0, 0, 0, 1)),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_only_neutral_settings_of_a_distorting_loss_assume_a_prior(distorted: Loss, neutral: Loss) -> None:
    with pytest.raises(InputError, match=type(distorted).__name__):
        assumed_prior(distorted)
    assert assumed_prior(neutral).sum().item() == pytest.approx(1)


class LossWithoutRule(losses.SoftmaxLoss):
    pass


class LossWithRule(losses.SoftmaxLoss):
    pass


RULES[LossWithRule] = weighted_prior


def test_a_custom_loss_needs_a_rule() -> None:
    with pytest.raises(InputError, match=r"--prior needs .* add RULES\[LossWithoutRule\] = weighted_prior"):
        assumed_prior(LossWithoutRule([6, 2]))
    torch.testing.assert_close(assumed_prior(LossWithRule([6, 2])), torch.tensor([0.75, 0.25], dtype=torch.float64))


def test_losses_and_report_share_one_class_prior() -> None:
    expected = [2 / 3, 1 / 3, 1 / 15]  # a class without images is left out of the sum
    assert class_prior([10, 5, 0]) == pytest.approx(expected)
    assert losses.LogitAdjustedLoss([10, 5, 0]).shift.exp().tolist() == pytest.approx(expected)
    assert class_prior([0, 0]) == [0.5, 0.5]


def test_top_5_and_custom_metrics_use_the_prior() -> None:
    model = LongTailedClassifier(losses.SoftmaxLoss([9] * 11), backbone="resnet20", metrics=[MulticlassAccuracy]).eval()
    model.set_prior(torch.tensor([0.0] * 6 + [1.0] * 5))
    model.test_step((torch.randn(20, 3, 16, 16), torch.arange(20) % 5 + 6), 0)
    results = model.evaluator.compute()
    assert results.metrics["acc_top5"] == 1
    balanced = torch.tensor(results.per_class["accuracy"][6:]).mean()
    torch.testing.assert_close(model.eval_metrics.compute()["MulticlassAccuracy"], balanced)


NAMES = [str(digit) for digit in range(10)]
ALL = "".join(f"\n{name},1" for name in NAMES)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has columns none, but must have class and share"),
        ("class,weight" + ALL, "has columns 'class', 'weight', but must have class and share"),
        ("class,share\n0,1\n1,2", "has no share of 8 of the 10 classes, '2', '3', '4'"),
        ("class,share" + ALL + "\nten,1", "has class 'ten', which is none of the model's"),
        ("class,share" + ALL + "\n7,1", "has class '7' more than once"),
        ("class,share\n0,-1" + ALL[4:], "is -1, but must be a number of at least 0"),
        ("class,share\n0,half" + ALL[4:], "is half, but must be a number of at least 0"),
        ("class,share" + ALL.replace(",1", ",0"), "all shares in"),
        ("class,share\n0", "has 1 fields, but the header has 2"),
    ],
)
def test_a_wrong_file_raises_an_error(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "shares.csv").write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_prior(str(tmp_path / "shares.csv"), NAMES, losses.SoftmaxLoss([1] * 10))


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of class-balanced softmax, and three images to predict."""
    folder = tmp_path_factory.mktemp("prior")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LT_CB_CACHE", str(folder / "cache"))
        configs = [f"--config={ROOT}/configs/{name}.yaml" for name in ("quickstart", "loss/cb_softmax")]
        options = ["--model.loss.weighting.beta=0.99", "--model.backbone=resnet20", "--trainer.max_epochs=1"]
        main(["fit", *configs, *options, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"])
    (folder / "photos").mkdir()
    for i in range(3):
        Image.effect_noise((20 + i, 30), 50).save(folder / "photos" / f"{i}.png")
    Path(folder / "seven.csv").write_text("class,share" + ALL.replace(",1", ",0").replace("7,0", "7,3"))
    return folder


@pytest.fixture
def checkpoint(trained_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(trained_folder)
    return "runs/quickstart/version_0/checkpoints/last.ckpt"


def newest() -> Path:
    """Return the folder that was written last."""
    files = [file for name in ("result.json", "predictions.csv") for file in Path("runs").rglob(name)]
    return max(files, key=lambda file: file.stat().st_mtime_ns).parent


def test_test_and_predict_for_another_prior(checkpoint: str) -> None:
    def predicted(*args: str) -> list[dict[str, str]]:
        main(["predict", f"--ckpt_path={checkpoint}", "--images=photos", "--probabilities=true", *args])
        with (newest() / "predictions.csv").open() as stream:
            return list(csv.DictReader(stream))

    plain = json.loads(Path("runs/quickstart/version_0/result.json").read_text())
    main(["test", f"--ckpt_path={checkpoint}", "--prior=seven.csv"])
    seven = json.loads((newest() / "result.json").read_text())
    assert (plain["prior"], seven["prior"]) == (None, [float(name == "7") for name in NAMES])
    assert seven["metrics"]["test/loss"] == pytest.approx(plain["metrics"]["test/loss"])
    assert [sum(row[c] for row in seven["confusion"]) for c in range(10)] == [400 * (c == 7) for c in range(10)]
    assert yaml.safe_load((newest() / "config.yaml").read_text())["prior"] == "seven.csv"

    weights = losses.EffectiveNumber(0.99)(plain["class_counts"])
    prior = weights * torch.tensor(plain["class_counts"])
    for before, after in zip(predicted(), predicted("--prior=uniform", "--top=3"), strict=True):
        odds = torch.tensor([float(before[name]) for name in NAMES], dtype=torch.float64) / prior
        p = (odds / odds.sum()).tolist()
        assert [float(after[name]) for name in NAMES] == pytest.approx(p, abs=2e-5)
        ranked = sorted(NAMES, key=lambda name: -float(after[name]))[:3]
        assert [after[key] for key in ("class", "class_2", "class_3")] == ranked
        assert [after[key] for key in ("probability", "probability_2", "probability_3")] == [after[n] for n in ranked]


def test_options_that_do_not_fit_a_prior_raise_an_error(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    test, predict = ("test", f"--ckpt_path={checkpoint}"), ("predict", f"--ckpt_path={checkpoint}", "--images=photos")
    for command in (test, predict):
        assert "'missing.csv' cannot be read as CSV" in refused(capsys, *command, "--prior=missing.csv")
    assert refused(capsys, *test, "--prior=unifrom").endswith("Did you mean 'uniform'?")
    assert "--top is 11, but must be from 1 to 10" in refused(capsys, *predict, "--top=11")
    assert "no option --prior" in refused(capsys, "fit", "--prior=uniform")
    for args, reason in (
        (["--model.loss.weighting=null"], "trained with another loss"),
        ([f"--config={ROOT}/configs/second_stage/tau_norm.yaml"], "TauNormalization changes the logits"),
    ):
        assert reason in refused(capsys, *test, "--prior=uniform", *args)

    content = torch.load(checkpoint, weights_only=True)
    config = yaml.safe_load(content["lt_cb_config"])
    config["data"]["sampler"] = "lt_cb.data.ClassBalancedSampler"
    torch.save({**content, "lt_cb_config": yaml.safe_dump(config)}, "sampled.ckpt")
    assert "trained with a sampler" in refused(capsys, "test", "--ckpt_path=sampled.ckpt", "--prior=uniform")
