"""Properties of every loss in lt_cb.losses: a new loss is tested here automatically."""

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
SOFT = [cls for cls in LOSSES if cls.soft_targets]
# the regulariser of LADE and the weights of the distribution-balanced loss are not linear in the targets
LINEAR = [cls for cls in SOFT if cls not in (LADELoss, DistributionBalancedLoss)]
REDUCTIONS = ["mean", "weighted_mean", "sum", "none"]


def for_each(classes: list[type[Loss]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("cls", classes, ids=lambda cls: cls.__name__)


def make(cls: type[Loss], counts: list[int] = COUNTS, **options: Any) -> Loss:
    """Return a loss with class weights, in evaluation mode, where no loss adds noise."""
    if cls is DistributionBalancedLoss:
        options = {"num_images": sum(counts), **options}
    return cls(counts, **{"weighting": EffectiveNumber(0.999), **options}).eval()


def batch(size: int = 11, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return logits of shape (B, C) and class indices of shape (B,) that cover the classes."""
    return torch.randn(size, C, generator=torch.Generator().manual_seed(0), dtype=dtype), torch.arange(size) % C


def value_and_gradient(loss: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, targets)
    value.sum().backward()
    assert logits.grad is not None
    return value.detach(), logits.grad


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def mixed(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Return soft targets, (B, C): the first labels with a share, and the second labels with the rest."""
    eye = torch.eye(C)
    return share * eye[first] + (1 - share) * eye[second]


@for_each(LOSSES)
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

    def test_reductions_agree(self, cls) -> None:
        logits, targets = batch()
        mean, weighted, total, none = (make(cls, reduction=reduction)(logits, targets) for reduction in REDUCTIONS)
        weights = EffectiveNumber(0.999)(COUNTS)[targets].float()
        torch.testing.assert_close(none, make(cls, weighting=None, reduction="none")(logits, targets) * weights)
        torch.testing.assert_close((total, mean, weighted), (none.sum(), none.mean(), none.sum() / weights.sum()))

    def test_equal_weights_equal_no_weighting(self, cls) -> None:
        logits, indices = batch()
        for targets in [indices, mixed(indices, indices.flip(0), 0.3)][: 1 + cls.soft_targets]:
            for counts, beta in ((COUNTS, 0.0), ([7] * C, 0.99)):
                weighted, plain = (make(cls, counts, weighting=w) for w in (EffectiveNumber(beta), None))
                torch.testing.assert_close(weighted(logits, targets), plain(logits, targets))

    def test_deferred_weights_are_not_applied(self, cls) -> None:
        loss = make(cls)
        loss.weighted = False
        torch.testing.assert_close(loss(*batch()), make(cls, weighting=None)(*batch()))
        loss.weighted = True
        torch.testing.assert_close(loss(*batch()), make(cls)(*batch()))

    def test_an_empty_batch_has_the_value_of_torch(self, cls) -> None:
        nan = torch.tensor(torch.nan)
        for reduction, expected in zip(REDUCTIONS, (nan, nan, torch.tensor(0.0), torch.empty(0)), strict=True):
            actual = value_and_gradient(make(cls, reduction=reduction), *batch(0))
            torch.testing.assert_close(actual, (expected, torch.empty(0, C)), equal_nan=True)

    def test_wrong_targets_raise_an_error(self, cls) -> None:
        for reduction in REDUCTIONS:
            for options in ({}, {"weighting": None}):
                loss = make(cls, reduction=reduction, **options)
                for wrong in (-100, -1, C, 255):
                    sentence = f"targets go from {min(wrong, 0)} to {max(wrong, 0)}, but 5 classes"
                    with pytest.raises(ValueError, match=sentence):
                        loss(torch.zeros(2, C), torch.tensor([0, wrong]))
        for shape, targets in (((2, 4), (2,)), ((2, C), (1,)), ((2, C, 3), (2, 3)), ((C,), ()), ((2, C), (2, 4))):
            with pytest.raises(ValueError, match="do not match"):
                loss(torch.zeros(shape), torch.zeros(targets).long())

    def test_autocast_evaluates_in_float32(self, cls) -> None:
        loss, (logits, targets) = make(cls), batch()
        with torch.autocast("cpu", torch.bfloat16):
            value, gradient = value_and_gradient(loss, logits.bfloat16(), targets)
        assert value.dtype == torch.float32
        expected = value_and_gradient(loss, logits.bfloat16().float(), targets)
        torch.testing.assert_close((value, gradient), (expected[0], expected[1].bfloat16()))

    @pytest.mark.parametrize("empty", [1, 98])
    def test_classes_without_images_do_not_change_the_constants_of_the_others(self, cls, empty: int) -> None:
        counts = [1000, 100, 5]
        for weighting in (EffectiveNumber(0.999), InverseFrequency("samples")):
            expected, actual = (make(cls, n, weighting=weighting) for n in (counts, counts + [0] * empty))
            for name, buffer in expected.named_buffers():
                torch.testing.assert_close(getattr(actual, name)[:3], buffer, rtol=1e-6, atol=1e-6)
                assert getattr(actual, name).isfinite().all()


@pytest.mark.parametrize("cls", [SoftmaxLoss, FocalLoss], ids=lambda cls: cls.__name__)
def test_each_family_compiles_to_one_graph(cls: type[Loss]) -> None:
    loss, (logits, indices) = make(cls), batch()
    targets = [indices, mixed(indices, indices.flip(0), 0.3)]
    if loss.multi_label:
        targets.append(torch.randint(-1, 2, (11, C), dtype=torch.int8))
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")  # inductor would need a C++ compiler
    for target in targets:
        expected = value_and_gradient(loss, logits, target)
        torch.testing.assert_close(value_and_gradient(compiled, logits, target), expected)


@for_each(LOSSES)
class TestTransforms:
    def test_functional_gradients_equal_autograd(self, cls) -> None:
        loss, (logits, indices) = make(cls), batch(5, torch.float64)

        def one(z: Tensor, y: Tensor) -> Tensor:
            return loss(z[None], y[None])

        for targets in [indices, mixed(indices, indices.flip(0), 0.3).double()][: 1 + loss.soft_targets]:
            loss.eval()
            _, expected = value_and_gradient(loss, logits, targets)
            torch.testing.assert_close(torch.func.grad(loss)(logits, targets), expected)
            per_sample = torch.func.vmap(torch.func.grad(one), in_dims=(0, 0), randomness="different")
            loop = [value_and_gradient(one, z, y)[1] for z, y in zip(logits, targets, strict=True)]
            torch.testing.assert_close(per_sample(logits, targets), torch.stack(loop))
            loss.train()
            assert per_sample(logits, targets).isfinite().all()

    def test_functional_hessian_equals_autograd(self, cls) -> None:
        loss, (logits, targets) = make(cls), batch(3, torch.float64)
        expected = torch.autograd.functional.hessian(lambda z: loss(z, targets), logits)
        torch.testing.assert_close(torch.func.hessian(loss)(logits, targets), expected)  # NaN is not close to NaN


@pytest.mark.parametrize("loss", [FocalLoss(COUNTS, g, EffectiveNumber(0.9)) for g in (0.5, 2)], ids=str)
def test_second_derivatives_of_focal_loss(loss: Loss) -> None:
    logits, targets = batch(3, torch.float64)
    assert torch.autograd.gradgradcheck(loss, (logits.requires_grad_(), targets))


@for_each(LOSSES)
class TestState:
    def test_copies_and_devices(self, cls) -> None:
        loss, (logits, targets) = make(cls), batch()
        expected = loss(logits, targets)
        assert not loss.state_dict()
        assert not any(isinstance(value, Tensor) for value in vars(loss).values())  # only buffers
        assert {buffer.device.type for buffer in copy.deepcopy(loss).to("meta").buffers()} == {"meta"}
        again = cls(**loss.arguments()).eval()
        for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), again):
            torch.testing.assert_close(other(logits, targets), expected)
        assert again.arguments() == loss.arguments()
        assert f"classes={C}" in repr(loss)
        assert "EffectiveNumber({'normalization': 'classes', 'beta': 0.999})" in repr(loss)

    def test_a_loss_cast_to_another_dtype_accepts_float32_logits(self, cls) -> None:
        for dtype, rtol in ((torch.float64, 1e-6), (torch.bfloat16, 3e-2)):
            for reduction in REDUCTIONS:
                loss = make(cls, reduction=reduction)
                expected = value_and_gradient(loss, *batch())
                loss.to(dtype)
                assert {buffer.dtype for buffer in loss.buffers()} <= {dtype, torch.bool}
                torch.testing.assert_close(value_and_gradient(loss, *batch()), expected, rtol=rtol, atol=rtol)

    def test_constants_have_the_precision_of_the_default_dtype(self, cls, float64) -> None:
        loss = make(cls)
        assert torch.float32 not in {buffer.dtype for buffer in loss.buffers()}
        torch.testing.assert_close(loss.class_weights, class_weights(COUNTS, 0.999), rtol=1e-12, atol=0)

    def test_the_command_line_checks_the_options(self, cls) -> None:
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


@for_each(SOFT)
class TestSoftTargets:
    def test_mixup_and_cutmix_give_finite_values(self, cls) -> None:
        logits, targets = batch(8)
        for mix in (v2.MixUp(num_classes=C), v2.CutMix(num_classes=C)):
            _, soft = mix(torch.rand(8, 3, 4, 4), targets)
            assert soft.shape == (8, C)
            for loss in (make(cls), make(cls).train()):
                assert all(tensor.isfinite().all() for tensor in value_and_gradient(loss, logits, soft))

    @pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
    def test_the_weight_of_a_mixture_is_the_mean_weight_of_its_labels(self, cls, share: float) -> None:
        targets = batch()[1]
        loss = make(cls)
        weights = loss.weigh(mixed(targets, targets.flip(0), share), loss.class_weights)[0]
        expected = share * loss.class_weights[targets] + (1 - share) * loss.class_weights[targets.flip(0)]
        torch.testing.assert_close(weights, expected)

    def test_targets_outside_the_unit_interval_raise_an_error(self, cls) -> None:
        targets = torch.eye(C)[batch()[1]]
        allowed = r"\[0, 1\], -1 or NaN" if cls.multi_label else r"\[0, 1\]"
        for wrong in (255.0, 1.01, -0.5) if cls.multi_label else (255.0, -1.0, torch.nan, 1.01):
            targets[3, 2] = wrong
            with pytest.raises(ValueError, match=f"must be in {allowed}, but go from .*: give "):
                make(cls)(batch()[0], targets)


@for_each(LINEAR)
@given(st.floats(0, 1), st.integers(0, 99), st.sampled_from([None, 0.9, 0.9999]), st.sampled_from(REDUCTIONS))
@settings(max_examples=4, deadline=None)
def test_the_loss_of_a_mixture_is_the_mixture_of_the_losses(cls, share, seed, beta, reduction) -> None:
    """As in mixup, each part has the weight of its label."""
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
def test_weighted_soft_targets_of_softmax_equal_torch(seed: int, scale: float, several: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(9, C, generator=generator, dtype=torch.float64)
    soft = torch.rand(9, C, generator=generator, dtype=torch.float64)
    soft = soft if several else soft / soft.sum(1, keepdim=True)
    weighting = EffectiveNumber(0.999)
    for reduction in ("sum", "mean", "none"):  # the mean of torch also divides by the batch size here
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
