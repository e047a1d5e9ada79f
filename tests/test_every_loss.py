"""What holds for every loss that lt_cb.losses exports: a new one is tested without being named."""

import copy
import inspect
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.transforms import v2

import lt_cb.losses
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
    VectorScalingLoss,
    class_weights,
)

COUNTS = [500, 60, 7, 1, 0]
C = len(COUNTS)
LOSSES = [
    loss
    for loss in map(lt_cb.losses.__dict__.get, lt_cb.losses.__all__)
    if isinstance(loss, type) and issubclass(loss, Loss) and not inspect.isabstract(loss)
]
IGNORING = [cls for cls in LOSSES if "ignore_index" in inspect.signature(cls).parameters]
SOFT = [cls for cls in LOSSES if cls.soft_targets]
NOT_LINEAR = [LDAMLoss, LADELoss]  # in the target: margins and regulariser depend on it
REDUCTIONS = ["mean", "weighted_mean", "sum", "none"]


def of(classes: list[type[Loss]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("cls", classes, ids=lambda cls: cls.__name__)


def make(cls: type[Loss], counts: list[int] = COUNTS, **options: Any) -> Loss:
    """Return a loss with weights, without noise, and without ignore_index where it takes none."""
    if cls not in IGNORING:
        options.pop("ignore_index", None)
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


@of(LOSSES)
class TestValues:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("counts", [[1, 0], [*range(8142, 2, -1), 1, 0]], ids=len)
    def test_finite_at_extreme_logits(self, cls, dtype: torch.dtype, counts: list[int]) -> None:
        loss, size = make(cls, counts).train(), len(counts)
        sign = (-1.0) ** torch.arange(size)
        rows = [torch.ones(size), -torch.ones(size), sign, -sign, torch.linspace(-1, 1, size), torch.zeros(size)]
        logits = (1e4 * torch.stack(rows)).to(dtype).repeat_interleave(3, 0)
        targets = torch.tensor([0, size - 2, size - 1]).repeat(6)
        soft = torch.full((18, size), 0.3 / size).index_put((torch.arange(18), targets), torch.tensor(0.7))
        for target in [targets, soft][: 1 + loss.soft_targets]:
            value, gradient = value_and_gradient(loss, logits, target)
            assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert torch.cat([value[None], gradient.flatten()]).isfinite().all()

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_places_of_a_map_are_samples(self, cls, reduction: str) -> None:
        loss = make(cls, reduction=reduction)
        for logits, targets in (batch(2, 3, 4), batch(3, 7)):
            value, gradient = value_and_gradient(loss, logits, targets)
            flat_value, flat_gradient = value_and_gradient(loss, flat(logits), targets.flatten())
            assert value.shape == (targets.shape if reduction == "none" else ())
            torch.testing.assert_close((value.flatten(), flat(gradient)), (flat_value.flatten(), flat_gradient))
            if loss.soft_targets:
                torch.testing.assert_close(value_and_gradient(loss, logits, one_hot(targets)), (value, gradient))

    def test_reductions_agree(self, cls) -> None:
        logits, targets = batch()
        mean, weighted, total, none = (make(cls, reduction=reduction)(logits, targets) for reduction in REDUCTIONS)
        weights = class_weights(COUNTS, 0.999)[targets].float()
        torch.testing.assert_close(none, make(cls, weighting=None, reduction="none")(logits, targets) * weights)
        torch.testing.assert_close((total, mean, weighted), (none.sum(), none.mean(), none.sum() / weights.sum()))

    def test_equal_weights_are_no_weighting(self, cls) -> None:
        for counts, beta in ((COUNTS, 0.0), ([7] * C, 0.99)):
            actual, expected = (make(cls, counts, weighting=w)(*batch()) for w in (EffectiveNumber(beta), None))
            torch.testing.assert_close(actual, expected)

    @pytest.mark.parametrize("shape", [(0,), (0, 2, 3), (2, 0)])
    def test_an_empty_batch_is_torchs(self, cls, shape: tuple[int, ...]) -> None:
        nan = torch.tensor(torch.nan)
        for reduction, expected in zip(REDUCTIONS, (nan, nan, torch.tensor(0.0), torch.empty(shape)), strict=True):
            for ignored in (None, 255):
                actual = value_and_gradient(make(cls, reduction=reduction, ignore_index=ignored), *batch(*shape))
                torch.testing.assert_close(actual, (expected, batch(*shape)[0]), equal_nan=True)

    @pytest.mark.parametrize("options", [{}, {"weighting": None}, {"ignore_index": 7}], ids=str)
    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_wrong_targets_are_refused_in_a_sentence(self, cls, reduction: str, options: dict[str, Any]) -> None:
        loss = make(cls, reduction=reduction, **options)
        for wrong in (-100, -1, C, 255):
            with pytest.raises(ValueError, match=f"targets go from {min(wrong, 0)} to {max(wrong, 0)}, but 5 classes"):
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


@of(IGNORING)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignored", [255, -100, 1])
def test_all_but_the_ignored_is_the_batch(cls: type[Loss], reduction: str, ignored: int) -> None:
    loss = make(cls, reduction=reduction, ignore_index=ignored)
    for logits, targets in (batch(), batch(2, 3, 4)):
        targets = targets.where(targets % 2 == 0, ignored)
        value, gradient = value_and_gradient(loss, logits, targets)
        kept = (targets != ignored).flatten()
        expected = value_and_gradient(make(cls, reduction=reduction), flat(logits)[kept], targets.flatten()[kept])
        actual = value.flatten()[kept] if reduction == "none" else value
        torch.testing.assert_close((actual, flat(gradient)[kept]), expected)
        assert not flat(gradient)[~kept].any()
        assert reduction != "none" or not value.flatten()[~kept].any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("all_of_them", [False, True])
@pytest.mark.parametrize("shape", [(9,), (2, 3, 4)])
def test_ignore_index_of_softmax_is_torchs(reduction: str, all_of_them: bool, shape: tuple[int, ...]) -> None:
    logits, targets = batch(*shape)
    targets = torch.full_like(targets, 255) if all_of_them else targets.where(targets > 1, 255)
    actual = value_and_gradient(SoftmaxLoss(COUNTS, None, reduction, 255), logits, targets)
    expected = value_and_gradient(nn.CrossEntropyLoss(ignore_index=255, reduction=reduction), logits, targets)
    torch.testing.assert_close(actual, expected, equal_nan=True)


@of(LOSSES)
class TestTransforms:
    @pytest.mark.parametrize("shape", [(11,), (2, 3, 4)])
    def test_compiles_to_one_graph(self, cls, shape: tuple[int, ...]) -> None:
        torch._dynamo.reset()
        loss = make(cls, ignore_index=0 if len(shape) > 1 else None).train()
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")  # inductor would need a C++ compiler
        torch.manual_seed(0)
        expected = value_and_gradient(loss, *batch(*shape))
        torch.manual_seed(0)
        torch.testing.assert_close(value_and_gradient(compiled, *batch(*shape)), expected)

    def test_functional_gradients_are_autograds(self, cls) -> None:
        loss, (logits, targets) = make(cls), batch(dtype=torch.float64)
        _, expected = value_and_gradient(loss, logits, targets)
        torch.testing.assert_close(torch.func.grad(loss)(logits, targets), expected)

        def one(z: Tensor, y: Tensor) -> Tensor:
            return loss(z[None], y[None])

        per_sample = torch.func.vmap(torch.func.grad(one), in_dims=(0, 0), randomness="different")
        loop = [value_and_gradient(one, z, y)[1] for z, y in zip(logits, targets, strict=True)]
        torch.testing.assert_close(per_sample(logits, targets), torch.stack(loop))
        loss.train()
        assert per_sample(logits, targets).isfinite().all()

    def test_hessian(self, cls) -> None:
        loss, (logits, targets) = make(cls), batch(3, dtype=torch.float64)
        expected = torch.autograd.functional.hessian(lambda z: loss(z, targets), logits)
        torch.testing.assert_close(torch.func.hessian(loss)(logits, targets), expected)  # NaN is not close to NaN


BINARY = [SigmoidLoss(COUNTS, EffectiveNumber(0.9))] + [FocalLoss(COUNTS, g, EffectiveNumber(0.9)) for g in (0.5, 1, 2)]


@pytest.mark.parametrize("loss", [SoftmaxLoss(COUNTS, EffectiveNumber(0.9)), *BINARY])
def test_gradients_of_gradients(loss: Loss) -> None:
    logits, targets = batch(4, dtype=torch.float64)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(loss, (logits, targets))
    assert torch.autograd.gradgradcheck(loss, (logits, targets))
    value = 3 * loss(logits, targets)
    once, twice, graph = (torch.autograd.grad(value, logits, retain_graph=True, create_graph=c)[0] for c in (0, 0, 1))
    torch.testing.assert_close((once, graph.detach()), (twice, once))


@pytest.mark.parametrize("path", ["fused", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "weighted_mean", "sum"])
@pytest.mark.parametrize("loss", BINARY)
def test_the_fused_sum_is_the_plain_formula(loss: Loss, reduction: str, dtype: torch.dtype, path: str) -> None:
    fused = copy.deepcopy(loss)
    fused.reduction = reduction

    def plain(z: Tensor, y: Tensor) -> Tensor:
        weights = loss.class_weights.to(z.dtype)[y]
        divisor = {"mean": len(y), "weighted_mean": weights.sum(), "sum": 1}[reduction]
        return (loss.per_sample(z, y) * weights).sum() / divisor

    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for scale in (1, 30, 1e4):
        logits, targets = scale * batch(dtype=dtype)[0], batch()[1]
        expected = value_and_gradient(plain, logits.double(), targets)
        actual = value_and_gradient(fused if path == "fused" else plain, logits, targets)
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, check_dtype=False)


@of(LOSSES)
class TestState:
    def test_moves_and_copies(self, cls) -> None:
        loss, (logits, targets) = make(cls, ignore_index=-7), batch()
        expected = loss(logits, targets)
        assert loss.state_dict().keys() == {"class_weights"}
        assert not make(cls, weighting=None).state_dict()
        assert not any(isinstance(value, Tensor) for value in vars(loss).values())  # but buffers
        assert {buffer.device.type for buffer in copy.deepcopy(loss).to("meta").buffers()} == {"meta"}
        for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), make(cls, weighting=InverseFrequency())):
            other.load_state_dict(loss.state_dict())
            torch.testing.assert_close(other(logits, targets), expected)
        assert f"classes={C}" in repr(loss)
        assert "EffectiveNumber({'normalization': 'classes', 'beta': 0.999})" in repr(loss)

    @pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-6), (torch.bfloat16, 3e-2)])
    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_a_loss_of_another_dtype_takes_float32_logits(self, cls, dtype, rtol: float, reduction: str) -> None:
        loss = make(cls, reduction=reduction)
        expected = value_and_gradient(loss, *batch())
        loss.to(dtype)
        assert {buffer.dtype for buffer in loss.buffers()} <= {dtype, torch.bool}
        torch.testing.assert_close(value_and_gradient(loss, *batch()), expected, rtol=rtol, atol=rtol)

    def test_made_in_float64_it_has_float64_precision(self, cls, float64) -> None:
        loss = make(cls)
        assert torch.float32 not in {buffer.dtype for buffer in loss.buffers()}
        torch.testing.assert_close(loss.class_weights, class_weights(COUNTS, 0.999), rtol=1e-12, atol=0)


@of(SOFT)
class TestSoftTargets:
    @pytest.mark.parametrize("mix", [v2.MixUp(num_classes=C), v2.CutMix(num_classes=C)], ids=["mixup", "cutmix"])
    def test_mixed_images(self, cls, mix: nn.Module) -> None:
        logits, targets = batch(8)
        _, soft = mix(torch.rand(8, 3, 4, 4), targets)
        assert soft.shape == (8, C)
        for loss in (make(cls), make(cls).train()):
            assert all(tensor.isfinite().all() for tensor in value_and_gradient(loss, logits, soft))

    @given(share=st.floats(0, 1))
    @settings(max_examples=5, deadline=None)
    def test_a_mixture_costs_the_mixture_of_its_parts(self, cls, share: float) -> None:
        loss, (logits, targets) = make(cls, weighting=None, reduction="none"), batch()
        first, second = one_hot(targets), one_hot(targets.flip(0))
        mixture = loss(logits, share * first + (1 - share) * second)
        if cls not in NOT_LINEAR:
            torch.testing.assert_close(mixture, share * loss(logits, first) + (1 - share) * loss(logits, second))
        weights = class_weights(COUNTS, 0.999).float()
        weight = share * weights[targets] + (1 - share) * weights[targets.flip(0)]
        weighted = make(cls, reduction="none")(logits, share * first + (1 - share) * second)
        torch.testing.assert_close(weighted, weight * mixture)


@pytest.mark.parametrize(
    ("loss", "known"),
    [
        (SoftmaxLoss(COUNTS), nn.CrossEntropyLoss()),
        (SigmoidLoss([1, 1]), lambda z, y: 2 * nn.BCEWithLogitsLoss()(z, torch.eye(2)[y])),
        (FocalLoss(COUNTS, gamma=0), SigmoidLoss(COUNTS)),
        (AsymmetricLoss(COUNTS, 0, 0, margin=0), SigmoidLoss(COUNTS)),
        (AsymmetricLoss(COUNTS, 1.5, 1.5, margin=0), FocalLoss(COUNTS, 1.5)),
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


def test_none_needs_a_compiler() -> None:
    names = ", ".join(cls.__name__ for cls in LOSSES)
    code = (
        f"import sys, torch; from lt_cb.losses import {names}\n"
        "z, y = torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 2])\n"
        f"for loss in ({names}): loss([5, 3, 1])(z, y).backward()\n"
        "print([m for m in ('torch._inductor', 'torch._dynamo', 'triton') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


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
