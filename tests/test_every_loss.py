"""What holds for every loss that lt_cb.losses exports: a new one is tested without being named."""

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from strategies import COUNTS
from torch import Tensor, nn
from torchvision.transforms import v2

import lt_cb.losses
from lt_cb.losses import (
    AsymmetricLoss,
    BalancedSoftmaxLoss,
    ClassDependentTemperatureLoss,
    DistributionBalancedLoss,
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
    VectorScalingLoss,
    class_weights,
)

C = len(COUNTS)
LOSSES = [
    loss
    for loss in map(lt_cb.losses.__dict__.get, lt_cb.losses.__all__)
    if isinstance(loss, type) and issubclass(loss, Loss) and not inspect.isabstract(loss)
]
IGNORING = [cls for cls in LOSSES if "ignore_index" in inspect.signature(cls).parameters]
SOFT = [cls for cls in LOSSES if cls.soft_targets]
# in the target, which LADE's regulariser and the weights of the distribution-balanced loss are not
LINEAR = [cls for cls in SOFT if cls not in (LADELoss, DistributionBalancedLoss)]
REDUCTIONS = ["mean", "weighted_mean", "sum", "none"]


def of(classes: list[type[Loss]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("cls", classes, ids=lambda cls: cls.__name__)


def make(cls: type[Loss], counts: list[int] = COUNTS, **options: Any) -> Loss:
    """Return a loss with weights, without noise, and without ignore_index where it takes none."""
    if cls not in IGNORING:
        options.pop("ignore_index", None)
    if cls is DistributionBalancedLoss:
        options = {"num_images": sum(counts), **options}
    return cls(counts, **{"weighting": EffectiveNumber(0.999), **options}).eval()


def batch(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return logits of shape (B, C, d1, ...) and targets (B, d1, ...), each class among them."""
    shape = shape or (11,)
    logits = torch.randn(shape[0], C, *shape[1:], generator=torch.Generator().manual_seed(0), dtype=dtype)
    return logits, (torch.arange(logits.numel() // C) % C).view(shape)


def value_and_gradient(loss: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, targets)
    value.sum().backward()
    assert logits.grad is not None
    return value.detach(), logits.grad


def flat(logits: Tensor) -> Tensor:
    return logits.movedim(1, -1).reshape(-1, C)


def one_hot(targets: Tensor) -> Tensor:
    return torch.eye(C)[targets].movedim(-1, 1)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def plus(target: Tensor, other: Tensor, share: float) -> Tensor:
    return share * one_hot(target) + (1 - share) * one_hot(other)


@of(LOSSES)
class TestValues:
    @pytest.mark.parametrize("counts", [[1, 0], [*range(1000, 2, -1), 1, 0]], ids=len)
    def test_finite_at_extreme_logits(self, cls, counts: list[int]) -> None:
        loss, size = make(cls, counts).train(), len(counts)
        sign = (-1.0) ** torch.arange(size)
        rows = [torch.ones(size), -torch.ones(size), sign, -sign, torch.linspace(-1, 1, size), torch.zeros(size)]
        targets = torch.tensor([0, size - 2, size - 1]).repeat(6)
        soft = torch.full((18, size), 0.3 / size).index_put((torch.arange(18), targets), torch.tensor(0.7))
        for dtype in [torch.bfloat16, torch.float64, torch.float16, torch.float32][: 4 if size == 2 else 2]:
            logits = (1e4 * torch.stack(rows)).to(dtype).repeat_interleave(3, 0)
            for target in [targets, soft][: 1 + loss.soft_targets]:
                value, gradient = value_and_gradient(loss, logits, target)
                assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
                assert torch.cat([value[None], gradient.flatten()]).isfinite().all()

    def test_places_of_a_map_are_samples(self, cls) -> None:
        for reduction in REDUCTIONS:
            loss = make(cls, reduction=reduction)
            for logits, targets in (batch(2, 3, 4), batch(3, 7)):
                value, gradient = value_and_gradient(loss, logits, targets)
                flat_value, flat_gradient = value_and_gradient(loss, flat(logits), targets.flatten())
                assert value.shape == (targets.shape if reduction == "none" else ())
                torch.testing.assert_close((value.flatten(), flat(gradient)), (flat_value.flatten(), flat_gradient))
                if loss.soft_targets:
                    soft = value_and_gradient(loss, logits, one_hot(targets))
                    torch.testing.assert_close(soft, (value, gradient), rtol=1e-5, atol=1e-5)

    def test_reductions_agree(self, cls) -> None:
        logits, targets = batch()
        mean, weighted, total, none = (make(cls, reduction=reduction)(logits, targets) for reduction in REDUCTIONS)
        weights = EffectiveNumber(0.999)(COUNTS)[targets].float()
        torch.testing.assert_close(none, make(cls, weighting=None, reduction="none")(logits, targets) * weights)
        torch.testing.assert_close((total, mean, weighted), (none.sum(), none.mean(), none.sum() / weights.sum()))

    def test_equal_weights_are_no_weighting(self, cls) -> None:
        for counts, beta in ((COUNTS, 0.0), ([7] * C, 0.99)):
            targets = batch()[1]
            for target in [targets, one_hot(targets) / 2 + one_hot(targets.flip(0))][: 1 + cls.soft_targets]:
                kinds = (make(cls, counts, weighting=w) for w in (EffectiveNumber(beta), None))
                actual, expected = (
                    loss(batch()[0], target.clamp(max=1) if loss.soft_targets else target) for loss in kinds
                )
                torch.testing.assert_close(actual, expected)

    def test_an_empty_batch_is_torchs(self, cls) -> None:
        nan = torch.tensor(torch.nan)
        for shape in ((0,), (0, 2, 3), (2, 0)):
            for reduction, expected in zip(REDUCTIONS, (nan, nan, torch.tensor(0.0), torch.empty(shape)), strict=True):
                for ignored in (None, 255):
                    actual = value_and_gradient(make(cls, reduction=reduction, ignore_index=ignored), *batch(*shape))
                    torch.testing.assert_close(actual, (expected, batch(*shape)[0]), equal_nan=True)

    def test_wrong_targets_are_refused_in_a_sentence(self, cls) -> None:
        for reduction in REDUCTIONS:
            for options in ({}, {"weighting": None}, {"ignore_index": 7}):
                loss = make(cls, reduction=reduction, **options)
                for wrong in (-100, -1, C, 255):
                    sentence = f"targets go from {min(wrong, 0)} to {max(wrong, 0)}, but 5 classes"
                    with pytest.raises(ValueError, match=sentence):
                        loss(torch.zeros(2, C), torch.tensor([0, wrong]))
        for shape, targets in (((2, 4), (2,)), ((2, C), (1,)), ((2, C, 3), (2, 4)), ((C,), ()), ((2, C), (2, 4))):
            with pytest.raises(ValueError, match="do not fit"):
                loss(torch.zeros(shape), torch.zeros(targets).long())

    def test_autocast_evaluates_in_float32(self, cls) -> None:
        loss, (logits, targets) = make(cls), batch()
        with torch.autocast("cpu", torch.bfloat16):
            value, gradient = value_and_gradient(loss, logits.bfloat16(), targets)
        assert value.dtype == torch.float32
        expected = value_and_gradient(loss, logits.bfloat16().float(), targets)
        torch.testing.assert_close((value, gradient), (expected[0], expected[1].bfloat16()))

    @pytest.mark.parametrize("empty", [1, 98])
    def test_classes_without_images_change_nothing_for_the_others(self, cls, empty: int) -> None:
        counts = [1000, 100, 5]
        for weighting in (EffectiveNumber(0.999), InverseFrequency("samples")):
            expected, actual = (make(cls, n, weighting=weighting) for n in (counts, counts + [0] * empty))
            for name, buffer in expected.named_buffers():
                torch.testing.assert_close(getattr(actual, name)[:3], buffer, rtol=1e-6, atol=1e-6)
                assert getattr(actual, name).isfinite().all()


@of(IGNORING)
def test_all_but_the_ignored_is_the_batch(cls: type[Loss]) -> None:
    for reduction in REDUCTIONS:
        for ignored, unknown in ((255, torch.nan), (-100, torch.inf), (1, 0.0)):  # whatever the network says there
            loss = make(cls, reduction=reduction, ignore_index=ignored)
            for logits, targets in (batch(), batch(2, 3, 4)):
                targets = targets.where(targets % 2 == 0, ignored)
                logits = logits + torch.where(targets == ignored, unknown, 0.0).unsqueeze(1)
                value, gradient = value_and_gradient(loss, logits, targets)
                kept = (targets != ignored).flatten()
                plain = make(cls, reduction=reduction)
                expected = value_and_gradient(plain, flat(logits)[kept], targets.flatten()[kept])
                actual = value.flatten()[kept] if reduction == "none" else value
                torch.testing.assert_close((actual, flat(gradient)[kept]), expected)
                assert not flat(gradient)[~kept].any()
                assert reduction != "none" or not value.flatten()[~kept].any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("all_of_them", [False, True])
def test_ignore_index_of_softmax_is_torchs(reduction: str, all_of_them: bool) -> None:
    for shape in ((9,), (2, 3, 4)):
        logits, targets = batch(*shape)
        targets = torch.full_like(targets, 255) if all_of_them else targets.where(targets > 1, 255)
        actual = value_and_gradient(SoftmaxLoss(COUNTS, None, reduction, 255), logits, targets)
        expected = value_and_gradient(nn.CrossEntropyLoss(ignore_index=255, reduction=reduction), logits, targets)
        torch.testing.assert_close(actual, expected, equal_nan=True)


def compiles(loss: Loss, logits: Tensor, targets: Tensor) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")  # inductor would need a C++ compiler
    torch.manual_seed(0)
    expected = value_and_gradient(loss, logits, targets)
    torch.manual_seed(0)
    torch.testing.assert_close(value_and_gradient(compiled, logits, targets), expected)


@pytest.mark.parametrize("cls", [SoftmaxLoss, FocalLoss], ids=lambda cls: cls.__name__)
def test_maps_and_soft_targets_compile(cls: type[Loss]) -> None:
    compiles(make(cls, ignore_index=0), *batch(2, 3, 4))
    compiles(make(cls), batch()[0], plus(batch()[1], batch()[1].flip(0), 0.3))


@of(LOSSES)
class TestTransforms:
    def test_compiles_to_one_graph(self, cls) -> None:
        compiles(make(cls).train(), *batch())

    def test_functional_gradients_are_autograds(self, cls) -> None:
        loss, (logits, indices) = make(cls), batch(dtype=torch.float64)

        def one(z: Tensor, y: Tensor) -> Tensor:
            return loss(z[None], y[None])

        for targets in [indices, plus(indices, indices.flip(0), 0.3).double()][: 1 + loss.soft_targets]:
            loss.eval()
            _, expected = value_and_gradient(loss, logits, targets)
            torch.testing.assert_close(torch.func.grad(loss)(logits, targets), expected)
            per_sample = torch.func.vmap(torch.func.grad(one), in_dims=(0, 0), randomness="different")
            loop = [value_and_gradient(one, z, y)[1] for z, y in zip(logits, targets, strict=True)]
            torch.testing.assert_close(per_sample(logits, targets), torch.stack(loop))
            loss.train()
            assert per_sample(logits, targets).isfinite().all()

    def test_hessian(self, cls) -> None:
        loss, (logits, targets) = make(cls), batch(3, dtype=torch.float64)
        expected = torch.autograd.functional.hessian(lambda z: loss(z, targets), logits)
        torch.testing.assert_close(torch.func.hessian(loss)(logits, targets), expected)  # NaN is not close to NaN


@pytest.mark.parametrize("loss", [FocalLoss(COUNTS, g, EffectiveNumber(0.9)) for g in (0.5, 2)], ids=str)
def test_gradients_of_gradients(loss: Loss) -> None:
    logits, targets = batch(3, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(loss, (logits.requires_grad_(), targets))


@of(LOSSES)
class TestState:
    def test_moves_and_copies(self, cls) -> None:
        loss, (logits, targets) = make(cls, ignore_index=-7), batch()
        expected = loss(logits, targets)
        assert not loss.state_dict()
        assert not any(isinstance(value, Tensor) for value in vars(loss).values())  # but buffers
        assert {buffer.device.type for buffer in copy.deepcopy(loss).to("meta").buffers()} == {"meta"}
        again = cls(**loss.arguments()).eval()
        for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), again):
            torch.testing.assert_close(other(logits, targets), expected)
        assert again.arguments() == loss.arguments()
        assert f"classes={C}" in repr(loss)
        assert "EffectiveNumber({'normalization': 'classes', 'beta': 0.999})" in repr(loss)

    def test_weights_are_those_of_the_arguments_and_not_of_the_state(self, cls) -> None:
        """States of before held the class weights, which then stood for another beta than the loss's own."""
        old = {"class_weights": class_weights(COUNTS, 0.9999).float()}
        for weighting in (EffectiveNumber(0.9), None):
            loss, inner = make(cls, weighting=weighting), make(cls, weighting=weighting)
            expected = copy.deepcopy(loss.class_weights)
            loss.load_state_dict(old)
            nn.ModuleDict({"loss": inner}).load_state_dict({f"loss.{name}": value for name, value in old.items()})
            assert old.keys() == {"class_weights"}
            for changed in (loss, inner):
                torch.testing.assert_close(changed.class_weights, expected, rtol=0, atol=0)

    def test_a_loss_of_another_dtype_takes_float32_logits(self, cls) -> None:
        for dtype, rtol in ((torch.float64, 1e-6), (torch.bfloat16, 3e-2)):
            for reduction in REDUCTIONS:
                loss = make(cls, reduction=reduction)
                expected = value_and_gradient(loss, *batch())
                loss.to(dtype)
                assert {buffer.dtype for buffer in loss.buffers()} <= {dtype, torch.bool}
                torch.testing.assert_close(value_and_gradient(loss, *batch()), expected, rtol=rtol, atol=rtol)

    def test_made_in_float64_it_has_float64_precision(self, cls, float64) -> None:
        loss = make(cls)
        assert torch.float32 not in {buffer.dtype for buffer in loss.buffers()}
        torch.testing.assert_close(loss.class_weights, class_weights(COUNTS, 0.999), rtol=1e-12, atol=0)

    def test_the_command_line_offers_and_checks_the_options(self, cls) -> None:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--loss", type=Loss)
        counts = ["--loss", f"lt_cb.losses.{cls.__name__}", "--loss.class_counts", str(COUNTS)]
        counts += ["--loss.num_images", "999"] if cls is DistributionBalancedLoss else []
        weighting = ["--loss.weighting", "lt_cb.losses.EffectiveNumber", "--loss.weighting.beta", "0.5"]
        loss = parser.instantiate(parser.parse_args([*counts, *weighting, "--loss.reduction", "sum"])).loss
        assert (type(loss), loss.reduction, loss.weighting.beta) == (cls, "sum", 0.5)
        assert parser.instantiate(parser.parse_args(counts)).loss.weighting is None
        for wrong in (["--loss.reduction", "average"], ["--loss.theta", "1"], ["--loss.weighting.gamma", "1"]):
            with pytest.raises(Exception, match=wrong[0].rpartition(".")[2]):
                parser.parse_args([*counts, *weighting, *wrong])


@of(SOFT)
class TestSoftTargets:
    def test_mixed_images(self, cls) -> None:
        logits, targets = batch(8)
        for mix in (v2.MixUp(num_classes=C), v2.CutMix(num_classes=C)):
            _, soft = mix(torch.rand(8, 3, 4, 4), targets)
            assert soft.shape == (8, C)
            for loss in (make(cls), make(cls).train()):
                assert all(tensor.isfinite().all() for tensor in value_and_gradient(loss, logits, soft))

    @given(share=st.floats(0, 1))
    @settings(max_examples=5, deadline=None)
    def test_the_weight_of_a_mixture_is_the_mean_of_its_labels(self, cls, share: float) -> None:
        targets = batch()[1]
        loss = make(cls)
        weights = loss.weigh(plus(targets, targets.flip(0), share), loss.class_weights)[0]
        expected = share * loss.class_weights[targets] + (1 - share) * loss.class_weights[targets.flip(0)]
        torch.testing.assert_close(weights, expected)

    def test_what_is_no_probability_is_refused(self, cls) -> None:
        targets = one_hot(batch()[1])
        allowed = r"\[0, 1\], -1 or NaN" if cls.multi_label else r"\[0, 1\]"
        for wrong in (255.0, 1.01, -0.5) if cls.multi_label else (255.0, -1.0, torch.nan, 1.01):
            targets[3, 2] = wrong
            with pytest.raises(ValueError, match=f"must be in {allowed}, but go from .*: give "):
                make(cls)(batch()[0], targets)
        if cls in IGNORING:
            with pytest.raises(ValueError, match="ignore_index is 255, but targets of the shape of the logits are no"):
                make(cls, ignore_index=255)(batch()[0], one_hot(batch()[1]))


@of(LINEAR)
@given(st.floats(0, 1), st.integers(0, 99), st.sampled_from([None, 0.9, 0.9999]), st.sampled_from(REDUCTIONS))
@settings(max_examples=8, deadline=None)
def test_a_mixture_costs_the_mixture_of_its_parts(cls, share, seed, beta, reduction) -> None:
    """As mixup has it, the weight of each label with its own part."""
    reduction = "none" if reduction == "weighted_mean" else reduction
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(9, C, generator=generator, dtype=torch.float64) * 3
    first, second = torch.randint(C, (2, 9), generator=generator)
    loss = make(cls, weighting=None if beta is None else EffectiveNumber(beta), reduction=reduction).double()
    (a, grad_a), (b, grad_b) = value_and_gradient(loss, logits, first), value_and_gradient(loss, logits, second)
    mixture = share * torch.eye(C).double()[first] + (1 - share) * torch.eye(C).double()[second]
    expected = share * a + (1 - share) * b, share * grad_a + (1 - share) * grad_b
    torch.testing.assert_close(value_and_gradient(loss, logits, mixture), expected, rtol=1e-9, atol=1e-10)


@given(seed=st.integers(0, 99), scale=st.sampled_from([1.0, 30.0]), several=st.booleans())
@settings(max_examples=10, deadline=None)
def test_weighted_soft_targets_of_softmax_are_torchs(seed: int, scale: float, several: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(9, C, generator=generator, dtype=torch.float64)
    soft = torch.rand(9, C, generator=generator, dtype=torch.float64)
    soft = soft if several else soft / soft.sum(1, keepdim=True)
    weighting = EffectiveNumber(0.999)
    for reduction in ("sum", "mean", "none"):  # whose mean of soft targets divides by the batch size
        actual = value_and_gradient(SoftmaxLoss(COUNTS, weighting, reduction).double(), logits, soft)
        torchs = nn.CrossEntropyLoss(SoftmaxLoss(COUNTS, weighting).class_weights.double(), reduction=reduction)
        torch.testing.assert_close(actual, value_and_gradient(torchs, logits, soft), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("loss", "known"),
    [
        (SoftmaxLoss(COUNTS), nn.CrossEntropyLoss()),
        (SigmoidLoss([1, 1]), lambda z, y: 2 * nn.BCEWithLogitsLoss()(z, torch.eye(2)[y])),
        (FocalLoss(COUNTS, gamma=0), SigmoidLoss(COUNTS)),
        (AsymmetricLoss(COUNTS, 0, 0, margin=0), SigmoidLoss(COUNTS)),
        (AsymmetricLoss(COUNTS, 1.5, 1.5, margin=0), FocalLoss(COUNTS, 1.5)),
        (DistributionBalancedLoss(COUNTS, 600, 0.5, 0, 0.3, 0, 1, gamma=0), SigmoidLoss(COUNTS)),
        (DistributionBalancedLoss(COUNTS, 600, 0.5, 0, 0.9, 0, 1, gamma=1.5), FocalLoss(COUNTS, 1.5)),
        (PolyLoss(COUNTS, epsilon=0), SoftmaxLoss(COUNTS)),
        (LabelSmoothingLoss(COUNTS, 0), SoftmaxLoss(COUNTS)),
        (LabelSmoothingLoss(COUNTS, 0.3), nn.CrossEntropyLoss(label_smoothing=0.3)),
        (LabelAwareSmoothingLoss(COUNTS, 0, 0), SoftmaxLoss(COUNTS)),
        (LabelAwareSmoothingLoss([9] * C, 0.4, 0.1), LabelSmoothingLoss(COUNTS, 0.5)),  # 0.4 for C - 1 is 0.5 for C
        (LogitAdjustedLoss(COUNTS, tau=0), SoftmaxLoss(COUNTS)),
        (LogitAdjustedLoss([9] * C), SoftmaxLoss(COUNTS)),
        (BalancedSoftmaxLoss([9] * C), SoftmaxLoss(COUNTS)),
        (BalancedSoftmaxLoss(COUNTS), LogitAdjustedLoss(COUNTS, tau=1)),
        (PostHocLogitAdjustment(COUNTS), SoftmaxLoss(COUNTS)),
        (VectorScalingLoss(COUNTS, gamma=0, tau=1), LogitAdjustedLoss(COUNTS)),
        (VectorScalingLoss(COUNTS, gamma=0.2, tau=0), ClassDependentTemperatureLoss(COUNTS, gamma=0.2)),
        (ClassDependentTemperatureLoss(COUNTS, gamma=0), SoftmaxLoss(COUNTS)),
        (LDAMLoss(COUNTS, max_margin=0, scale=1), SoftmaxLoss(COUNTS)),
        (GCLLoss(COUNTS, noise=0, scale=1), SoftmaxLoss(COUNTS)),
        (GCLLoss([9] * C, scale=20), LDAMLoss(COUNTS, max_margin=0, scale=20)),
        (LADELoss(COUNTS, alpha=0), BalancedSoftmaxLoss(COUNTS)),
        (EqualizationLoss(COUNTS, gamma=0, threshold=1), SoftmaxLoss(COUNTS)),
        (EqualizationLoss(COUNTS, gamma=1, threshold=0), SoftmaxLoss(COUNTS)),
        (EqualizationLoss(COUNTS, gamma=1, threshold=1).eval(), SoftmaxLoss(COUNTS)),
        (SeesawLoss(COUNTS, p=0, q=0), SoftmaxLoss(COUNTS)),
        (SeesawLoss([9] * C, p=3, q=0), SoftmaxLoss(COUNTS)),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_neutral_settings_give_a_known_loss(loss: Loss, known: Any) -> None:
    size = len(loss.class_counts)
    logits, targets = batch()[0][:, :size], torch.arange(11) % size
    expected = value_and_gradient(known, logits, targets)
    torch.testing.assert_close(value_and_gradient(loss, logits, targets), expected)
    if loss.soft_targets:
        torch.testing.assert_close(value_and_gradient(loss, logits, torch.eye(size)[targets]), expected)


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({0: 5, 1: 3}, "class_counts is a mapping, but must be a list"),
        ([5.5, 3], "must be whole numbers"),
        ([float("nan"), 3], "must be whole numbers"),
        ([5, -1], "the smallest is -1"),
    ],
)
def test_impossible_counts_are_refused(counts, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SoftmaxLoss(counts)


def test_floating_class_indices_are_refused() -> None:
    with pytest.raises(ValueError, match="are class indices, but of dtype"):
        SoftmaxLoss([5, 3])(torch.zeros(2, 2), torch.tensor([0.0, 1.7]))


def test_equalization_without_a_tail_warns() -> None:
    with pytest.warns(
        UserWarning, match=r"no class is a tail class at threshold 0.005, the rarest has a share of 0.38"
    ):
        EqualizationLoss([5, 3])
