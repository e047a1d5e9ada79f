"""``--prior``: predictions for classes that are distributed otherwise than in training."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from refusals import refused
from torch import Tensor

from lt_cb.__main__ import main
from lt_cb.commands.prior import read_prior
from lt_cb.errors import InputError
from lt_cb.lab.report.collect import collect
from lt_cb.losses import (
    AsymmetricLoss,
    BalancedSoftmaxLoss,
    ClassDependentTemperatureLoss,
    EffectiveNumber,
    EqualizationLoss,
    FocalLoss,
    GCLLoss,
    InverseFrequency,
    LabelAwareSmoothingLoss,
    LabelSmoothingLoss,
    LADELoss,
    LDAMLoss,
    LogitAdjustedLoss,
    Loss,
    PolyLoss,
    PostHocLogitAdjustment,
    SeesawLoss,
    SigmoidLoss,
    SoftmaxLoss,
    SquareRootInverse,
    VectorScalingLoss,
)
from lt_cb.module import LongTailedClassifier

ROOT = Path(__file__).parents[1]
QUICKSTART = ["--config", str(ROOT / "configs/quickstart.yaml")]
TINY = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
COUNTS = [900, 300, 60, 12]
SHARES = [0.05, 0.2, 0.35, 0.4]
CALIBRATED = [
    SoftmaxLoss(COUNTS),
    SoftmaxLoss(COUNTS, weighting=EffectiveNumber(0.99)),
    SoftmaxLoss(COUNTS, weighting=InverseFrequency("samples"), reduction="sum"),
    LogitAdjustedLoss(COUNTS, tau=0.5),
    LogitAdjustedLoss(COUNTS, tau=1.5, weighting=SquareRootInverse()),
    BalancedSoftmaxLoss(COUNTS),
    PostHocLogitAdjustment(COUNTS, tau=0.7),
    PostHocLogitAdjustment(COUNTS, weighting=EffectiveNumber(0.99)),
    LADELoss(COUNTS, alpha=0),
    VectorScalingLoss(COUNTS, gamma=0, tau=1.25),
    LDAMLoss(COUNTS, max_margin=0, scale=2.0),
    SigmoidLoss(COUNTS),
    SigmoidLoss(COUNTS, weighting=EffectiveNumber(0.99)),
    FocalLoss(COUNTS, gamma=0.5),
    FocalLoss(COUNTS, gamma=1, weighting=EffectiveNumber(0.99)),
    FocalLoss(COUNTS, gamma=3),
    SigmoidLoss(COUNTS, EffectiveNumber(0.99), "label"),
    SigmoidLoss(COUNTS, EffectiveNumber(0.99), "positive"),
    FocalLoss(COUNTS, 1, EffectiveNumber(0.99), weight_of="label"),
    FocalLoss(COUNTS, 1, EffectiveNumber(0.99), weight_of="positive"),
]


def predictions(model: LongTailedClassifier, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores and probabilities."""
    return model.scores(logits), model.probabilities(logits)


def model_of(loss: Loss, prior: Tensor | None = None) -> LongTailedClassifier:
    model = LongTailedClassifier(loss, backbone="resnet20")
    if prior is not None:
        model.set_prior(prior)
    return model


def densities(points: Tensor) -> Tensor:
    """Return the density of each of four classes, Gaussian with unit variance, at points of the plane, (B, 4)."""
    means = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [1.5, 1.5]], dtype=torch.float64)
    return (-(points[:, None] - means).square().sum(2) / 2).exp() / (2 * math.pi)


def minimiser(loss: Loss, density: Tensor) -> Tensor:
    """Return the logits at which the loss of endless training images at each point is least, (B, C)."""
    size, classes = density.shape
    mass = density * torch.tensor(loss.class_counts, dtype=torch.float64)
    mass = mass / mass.sum(1, keepdim=True)
    targets = torch.arange(classes).repeat(size)
    logits = torch.zeros(size, classes, dtype=torch.float64, requires_grad=True)
    single = type(loss)(**{**loss.arguments(), "reduction": "none"}).double()
    optimizer = torch.optim.LBFGS(
        [logits], lr=1, max_iter=3000, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def risk() -> Tensor:
        optimizer.zero_grad()
        total = (single(logits.repeat_interleave(classes, 0), targets) * mass.flatten()).sum()
        total.backward()
        return total

    optimizer.step(risk)
    return logits.detach()


@pytest.mark.parametrize("loss", CALIBRATED, ids=lambda loss: f"{type(loss).__name__}-{loss.weighting is not None}")
def test_gaussian_classes_get_their_bayes_posterior(loss: Loss) -> None:
    density = densities(
        torch.tensor([[0.1, 0], [1, 0.8], [2, 0.3], [0.2, 1.9], [-1, 0.5], [2, 2.2]], dtype=torch.float64)
    )
    for shares in (SHARES, [0.25] * 4, [0.0, 0.5, 0.5, 0.0]):
        q = torch.tensor(shares, dtype=torch.float64)
        expected = density * q / (density * q).sum(1, keepdim=True)
        scores, probabilities = predictions(model_of(loss, 7 * q), minimiser(loss, density))
        torch.testing.assert_close(probabilities, expected, rtol=2e-4, atol=1e-5)
        assert scores.argmax(1).tolist() == expected.argmax(1).tolist()


@pytest.mark.parametrize("loss", CALIBRATED, ids=lambda loss: f"{type(loss).__name__}-{loss.weighting is not None}")
@given(
    logits=st.lists(st.floats(-20, 20), min_size=4, max_size=4),
    shares=st.lists(st.floats(1e-3, 1), min_size=4, max_size=4),
)
@settings(max_examples=20, deadline=None)
def test_there_and_back_is_where_one_was(loss: Loss, logits: list[float], shares: list[float]) -> None:
    z, q = torch.tensor([logits], dtype=torch.float64), torch.tensor(shares, dtype=torch.float64)
    model = model_of(loss, q)
    there = predictions(model, z)[1] * loss.assumed_prior() / q
    model.set_prior(loss.assumed_prior())
    scores, probabilities = predictions(model, z)
    torch.testing.assert_close(there / there.sum(), probabilities, rtol=1e-5, atol=1e-12)
    plain = loss.adjust(z)
    if loss.weight_of != "positive":  # whose own probabilities, of which each has another weight, are no posterior
        assert plain.max() - plain[0, scores.argmax()] < 1e-5  # the same class, or as good as tied
    if not isinstance(loss, SigmoidLoss):
        torch.testing.assert_close(probabilities, loss.probabilities(z), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("counts", [COUNTS, [900, 0, 60, 0]], ids=str)
def test_the_training_prior_after_balanced_softmax_is_what_it_trained_against(counts: list[int]) -> None:
    loss, z = BalancedSoftmaxLoss(counts), torch.randn(8, 4)
    model = model_of(loss, read_prior("train", list("abcd"), loss))
    expected = loss.training_logits(z, torch.zeros(8).long()).softmax(1)
    torch.testing.assert_close(predictions(model, z)[1], expected)
    plain = SoftmaxLoss(counts)
    model = model_of(plain, read_prior("train", list("abcd"), plain))
    torch.testing.assert_close(predictions(model, z)[1], z.softmax(1))


@pytest.mark.parametrize("loss", CALIBRATED, ids=lambda loss: f"{type(loss).__name__}-{loss.weighting is not None}")
def test_classes_without_images_leave_the_others_prior(loss: Loss) -> None:
    more = type(loss)(**{**loss.arguments(), "class_counts": [*COUNTS, 0, 0]})
    assert loss.assumed_prior().sum().item() == pytest.approx(1)
    torch.testing.assert_close(more.assumed_prior()[:4], loss.assumed_prior())
    assert more.assumed_prior().dtype == torch.float64
    assert (more.assumed_prior() > 0).all()


def test_values_of_the_assumed_prior() -> None:
    assert SoftmaxLoss([6, 2]).assumed_prior().tolist() == [0.75, 0.25]
    uniform = torch.full((2,), 0.5, dtype=torch.float64)
    for loss in (SoftmaxLoss([6, 2], weighting=InverseFrequency()), BalancedSoftmaxLoss([6, 2])):
        torch.testing.assert_close(loss.assumed_prior(), uniform)
    drw = SoftmaxLoss([6, 2], weighting=InverseFrequency())
    drw.weighted = False  # before the deferred weights count
    torch.testing.assert_close(drw.assumed_prior(), uniform)
    tau2 = torch.tensor([0.25, 0.75], dtype=torch.float64)
    torch.testing.assert_close(PostHocLogitAdjustment([6, 2], tau=2).assumed_prior(), tau2)


@pytest.mark.parametrize("size", [30.0, 1e4])
def test_extreme_logits_stay_finite(size: float) -> None:
    z = size * torch.tensor([[1.0, -1, -1, -1], [1, 1, -1, 0], [-1, -1, -1, -0.9], [0, 0, 0, 0]])
    for loss in CALIBRATED:
        scores, probabilities = predictions(model_of(loss, torch.tensor([1.0, 2, 3, 4])), z)
        assert scores.isfinite().all()
        torch.testing.assert_close(probabilities.sum(1), torch.ones(4))
        assert scores.argmax(1).tolist()[0] == 0
        assert scores.argmax(1).tolist()[2] == 3


def test_a_class_of_share_0_is_never_predicted() -> None:
    for loss in CALIBRATED:
        scores, probabilities = predictions(model_of(loss, torch.tensor([0.0, 1, 1, 1])), torch.eye(4)[:1] * 50)
        assert scores.argmax(1).item() != 0
        assert probabilities[0, 0] == 0


@pytest.mark.parametrize(
    ("distorted", "neutral"),
    [
        (LDAMLoss(COUNTS), LDAMLoss(COUNTS, max_margin=0)),
        (GCLLoss(COUNTS), GCLLoss(COUNTS, noise=0)),
        (VectorScalingLoss(COUNTS), VectorScalingLoss(COUNTS, gamma=0)),
        (ClassDependentTemperatureLoss(COUNTS), ClassDependentTemperatureLoss(COUNTS, gamma=0)),
        (EqualizationLoss(COUNTS, threshold=0.1), EqualizationLoss(COUNTS, gamma=0)),
        (SeesawLoss(COUNTS), SeesawLoss(COUNTS, p=0, q=0)),
        (LabelSmoothingLoss(COUNTS), LabelSmoothingLoss(COUNTS, smoothing=0)),
        (LabelAwareSmoothingLoss(COUNTS), LabelAwareSmoothingLoss(COUNTS, head=0, tail=0)),
        (PolyLoss(COUNTS), PolyLoss(COUNTS, epsilon=0)),
        (AsymmetricLoss(COUNTS), AsymmetricLoss(COUNTS, 0, 0, margin=0)),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_a_loss_without_posteriors_is_refused_and_its_neutral_setting_is_not(distorted: Loss, neutral: Loss) -> None:
    with pytest.raises(InputError, match=f"^the probabilities of {type(distorted).__name__} belong to no class prior"):
        model_of(distorted, torch.ones(4))
    model_of(neutral, torch.ones(4))


def test_a_loss_of_ones_own_says_that_it_has_posteriors() -> None:
    class Own(Loss):
        def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
            return torch.nn.functional.cross_entropy(logits, targets, reduction="none")

    class Posterior(Own):
        distorted_by = None

    with pytest.raises(InputError, match=r"of Own belong to no class prior .* for a per_sample of its own"):
        Own(COUNTS).assumed_prior()
    torch.testing.assert_close(Posterior(COUNTS).assumed_prior(), SoftmaxLoss(COUNTS).assumed_prior())


def test_top_5_and_further_metrics_go_by_the_prior_too() -> None:
    from torchmetrics.classification import MulticlassAccuracy

    model = LongTailedClassifier(SoftmaxLoss([9] * 11), backbone="resnet20", metrics=[MulticlassAccuracy]).eval()
    images, targets = torch.randn(20, 3, 16, 16), torch.arange(20) % 5 + 6
    model.set_prior(torch.tensor([0.0] * 6 + [1.0] * 5))
    model.test_step((images, targets), 0)
    results = model.evaluator.compute()
    assert results.metrics["acc_top5"] == 1
    torch.testing.assert_close(model.eval_metrics.compute()["MulticlassAccuracy"], results.metrics["balanced_acc"])


NAMES = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two epochs by class-balanced softmax."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("prior"))
        patch.setenv("LT_CB_CACHE", str(tmp_path_factory.mktemp("cache")))
        loss = ["--config", str(ROOT / "configs/loss/cb_softmax.yaml"), "--model.loss.weighting.beta=0.99"]
        main(["fit", *QUICKSTART, *loss, *TINY, "--trainer.max_epochs=2", "--model.backbone=resnet20"])
        return Path.cwd()


@pytest.fixture
def checkpoint(runs: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(runs)
    return "runs/quickstart/version_0/checkpoints/last.ckpt"


def newest() -> Path:
    return max(Path("runs/quickstart").glob("version_*"), key=lambda folder: int(folder.name.partition("_")[2]))


def shares_file(shares: dict[str, float], file: str = "shares.csv") -> str:
    Path(file).write_text("\n".join(["class,share", *(f"{name},{share}" for name, share in shares.items())]))
    return file


def test_a_test_under_another_prior(checkpoint: str) -> None:
    def tested(*args: str) -> dict:
        main(["test", f"--ckpt_path={checkpoint}", "--trainer.callbacks+=SaveLogits", *args])
        return json.loads((newest() / "result.json").read_text())

    fitted = json.loads(Path("runs/quickstart/version_0/result.json").read_text())
    plain = tested()
    assert plain["prior"] is None
    assert (plain["metrics"], plain["confusion"]) == (fitted["metrics"], fitted["confusion"])
    uniform = tested("--prior=uniform")
    assert uniform["prior"] == pytest.approx([0.1] * 10)
    assert uniform["metrics"]["test/loss"] == plain["metrics"]["test/loss"]
    assert uniform["confusion"] != plain["confusion"]
    assert yaml.safe_load((newest() / "config.yaml").read_text())["prior"] == "uniform"
    names = {(result.folder, result.method.rpartition(", ")[2]) for result in collect(Path("runs")).results}
    assert (newest(), "prior uniform") in names  # in a report, and not in the place of the plain test
    assert len(names) == 2
    model = LongTailedClassifier.load_from_checkpoint(checkpoint, map_location="cpu")
    loss, counts = model.loss, torch.tensor(fitted["class_counts"], dtype=torch.float64)
    weights = (1 - 0.99) / (1 - 0.99**counts)
    torch.testing.assert_close(loss.assumed_prior(), counts * weights / (counts * weights).sum())
    only = tested("--prior", shares_file({name: 3.0 * (name == "4") for name in reversed(NAMES)}))
    assert [sum(row[c] for row in only["confusion"]) for c in range(10)] == [400 * (c == 4) for c in range(10)]
    assert only["prior"] == [float(c == 4) for c in range(10)]


def test_predictions_under_another_prior(checkpoint: str, tmp_path: Path) -> None:
    for i in range(3):
        Image.effect_noise((20 + i, 30), 50).save(tmp_path / f"{i}.png")

    def predicted(*args: str) -> list[tuple[str, float]]:
        main(["predict", f"--ckpt_path={checkpoint}", f"--images={tmp_path}", *args])
        with (newest() / "predictions.csv").open() as stream:
            return [(row["class"], float(row["probability"])) for row in csv.DictReader(stream)]

    only = shares_file({name: float(name == "7") for name in NAMES})
    assert predicted(f"--prior={only}") == [("7", 1.0)] * 3
    assert predicted() != predicted("--prior=uniform")
    loss = LongTailedClassifier.load_from_checkpoint(checkpoint, map_location="cpu").loss
    own = shares_file(dict(zip(NAMES, loss.assumed_prior().tolist(), strict=True)))
    for (name, p), (plain, q) in zip(predicted("--prior", own), predicted(), strict=True):
        assert name == plain
        assert p == pytest.approx(q, abs=2e-6)


@pytest.mark.parametrize("prior", [[], ["--prior=uniform"]])
def test_predictions_of_further_classes(checkpoint: str, tmp_path: Path, prior: list[str]) -> None:
    for i in range(3):
        Image.effect_noise((20 + i, 30), 50).save(tmp_path / f"{i}.png")

    def predicted(*args: str) -> list[list[str]]:
        main(["predict", f"--ckpt_path={checkpoint}", f"--images={tmp_path}", "--batch_size=2", *prior, *args])
        with (newest() / "predictions.csv").open() as stream:
            return list(csv.reader(stream))

    plain = predicted()
    ranked = ["class_2", "probability_2", "class_3", "probability_3"]
    top, by_class, both = (
        predicted("--top=3"),
        predicted("--probabilities=true"),
        predicted("--top=3", "--probabilities=true"),
    )
    assert plain[0] == ["file", "class", "probability"]
    assert top[0] == plain[0] + ranked
    assert by_class[0] == plain[0] + NAMES
    assert both[0] == plain[0] + ranked + NAMES
    for rows in (top, by_class, both):
        assert [row[:3] for row in rows] == plain
    for most, each, all_of_it in zip(top[1:], by_class[1:], both[1:], strict=True):
        assert all_of_it == most + each[3:]
        assert sum(map(float, each[3:])) == pytest.approx(1, abs=1e-5)
        ordered = sorted(zip(map(float, each[3:]), NAMES, strict=True), reverse=True)[:3]
        assert [(float(p), name) for name, p in zip(most[1::2], most[2::2], strict=True)] == ordered


def test_more_classes_than_there_are(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for top in (0, 11):
        args = ("predict", f"--ckpt_path={checkpoint}", f"--images={tmp_path}", f"--top={top}")
        sentence = f"--top is {top}, but must be from 1 to 10, the number of classes."
        assert refused(capsys, *args) == sentence


ALL = "".join(f"\n{name},1" for name in NAMES)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "'shares.csv' cannot be read as CSV with a header ([Errno 2] No such file or directory"),
        ("", "'shares.csv' has columns none, but must have class and share"),
        ("class,weight" + ALL, "'shares.csv' has columns 'class', 'weight', but must have class and share"),
        ("class,share\n0,1\n1,2", "'shares.csv' has no share of 8 of the 10 classes, '2', '3', '4'"),
        ("class,share" + ALL + "\nten,1", "'shares.csv' has class 'ten', which is none of the model's"),
        ("class,share" + ALL + "\n7,1", "'shares.csv' has class '7' more than once"),
        ("class,share\n0,-1" + ALL[4:], "the share of class '0' in 'shares.csv' is -1, but must be a number"),
        ("class,share\n0,inf" + ALL[4:], "the share of class '0' in 'shares.csv' is inf, but must be a number"),
        ("class,share\n0,half" + ALL[4:], "the share of class '0' in 'shares.csv' is half, but must be a number"),
        ("class,share" + ALL.replace(",1", ",0"), "all shares in 'shares.csv' are 0"),
        ("class,share\n0", "line 2 of 'shares.csv' has 1 fields, but the header has 2"),
    ],
)
def test_a_wrong_file_gets_one_sentence(
    text: str | None, sentence: str, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path("shares.csv")
    file.unlink(missing_ok=True)
    if text is not None:
        file.write_text(text)
    assert refused(capsys, "test", f"--ckpt_path={checkpoint}", "--prior=shares.csv").startswith(sentence)
    Image.effect_noise((20, 30), 50).save(tmp_path / "new.png")
    predict = ("predict", f"--ckpt_path={checkpoint}", f"--images={tmp_path}")
    assert refused(capsys, *predict, "--prior", "shares.csv").startswith(sentence)


def test_what_a_prior_does_not_go_with_gets_one_sentence(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    test = ("test", f"--ckpt_path={checkpoint}", "--prior=uniform")
    assert refused(capsys, *test[:2], "--prior=unifrom").endswith("such a file. Did you mean 'uniform'?")
    for args, why in (
        (["--model.loss=PostHocLogitAdjustment"], "trained with another loss"),
        (["--model.loss.weighting=null"], "trained with another loss"),
        (["--config", str(ROOT / "configs/second_stage/tau_norm.yaml")], "TauNormalization changes the logits"),
    ):
        sentence = refused(capsys, *test, *args)
        assert sentence.startswith("--prior goes by the loss and the class counts of the training, but ")
        assert why in sentence
    for command in ("fit", "validate"):
        sentence = refused(capsys, command, *test[1:])
        assert sentence.startswith("there is no option --prior: see ")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda config: config["data"].update(sampler="lt_cb.data.ClassBalancedSampler"), "trained with a sampler"),
        (lambda config: config["model"].update(loss={"class_path": "lt_cb.losses.LDAMLoss"}), "for its margins"),
        (lambda config: config.update(prior="uniform"), None),
    ],
    ids=["sampler", "LDAM", "prior"],
)
def test_the_configuration_in_a_checkpoint(
    change: Callable[[dict], None], why: str | None, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prior there, as a test could have saved it, is not that of a later command."""
    content = torch.load(checkpoint, weights_only=True)
    config = yaml.safe_load(content["lt_cb_config"])
    change(config)
    content["lt_cb_config"] = yaml.safe_dump(config)
    torch.save(content, "changed.ckpt")
    if why is not None:
        assert why in refused(capsys, "test", "--ckpt_path=changed.ckpt", "--prior=uniform")
        return
    main(["test", "--ckpt_path=changed.ckpt"])
    assert json.loads((newest() / "result.json").read_text())["prior"] is None
