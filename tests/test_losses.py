"""Class weights, softmax, sigmoid and focal loss against independent evaluations of the formulas; custom losses."""

import itertools
import math
import subprocess
import sys
from decimal import Decimal, localcontext
from typing import Any, Unpack

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import batches
from torch import Tensor
from torch.nn import functional as F

from lt_cb.losses import (
    AsymmetricLoss,
    EffectiveNumber,
    FocalLoss,
    InverseFrequency,
    Loss,
    LossOptions,
    SigmoidLoss,
    SoftmaxLoss,
    SquareRootInverse,
    class_weights,
    effective_number,
    suggest_beta,
)

BETAS = st.one_of(st.floats(0, 0.999999), st.integers(1, 12).map(lambda k: 1 - 10.0**-k))
COUNTS = st.lists(st.integers(1, 10**9), min_size=2, max_size=40)
WEIGHTINGS = [None, EffectiveNumber(0.999), InverseFrequency(), SquareRootInverse()]


def exact_effective_number(n: int, beta: float) -> float:
    with localcontext() as context:
        context.prec = 60
        b = Decimal(beta)
        return float((1 - b**n) / (1 - b))


class TestClassWeights:
    @given(COUNTS, BETAS)
    def test_effective_number_has_float64_precision(self, counts: list[int], beta: float) -> None:
        expected = [exact_effective_number(n, beta) for n in counts]
        actual = effective_number(counts, beta)
        assert actual.dtype == torch.float64
        np.testing.assert_allclose(actual, expected, rtol=1e-12)

    @given(COUNTS, BETAS)
    def test_class_weights_are_inverse_effective_numbers_with_mean_1(self, counts: list[int], beta: float) -> None:
        weights = class_weights(counts, beta)
        assert weights.sum().item() == pytest.approx(len(counts))
        inverse = np.array([1 / exact_effective_number(n, beta) for n in counts])
        np.testing.assert_allclose(weights, inverse / inverse.mean(), rtol=1e-11)

    def test_weights_equal_the_values_of_the_paper(self) -> None:
        counts = [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100]  # CIFAR-10, imbalance factor 50
        weights = class_weights(counts, 0.9999)
        assert weights[0].item() == pytest.approx(0.0890, abs=5e-5)
        assert weights[9].item() == pytest.approx(3.5206, abs=5e-5)

    @pytest.mark.parametrize(("beta", "ratio"), [(0.9, 1.005), (0.99, 2.5), (0.999, 20), (0.9999, 79), (0.99999, 98)])
    def test_ratio_of_the_largest_to_the_smallest_weight(self, beta: float, ratio: float) -> None:
        weights = class_weights([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50], beta)
        assert (weights.max() / weights.min()).item() == pytest.approx(ratio, rel=0.02)

    def test_beta_0_is_uniform_and_beta_1_is_inverse_frequency(self) -> None:
        counts = [1000, 100, 1]
        assert class_weights(counts, 0.0).tolist() == [1.0, 1.0, 1.0]
        torch.testing.assert_close(class_weights(counts, 1 - 1e-12), InverseFrequency()(counts), rtol=1e-8, atol=0)
        expected = np.array([1000, 100, 1]) ** -0.5
        np.testing.assert_allclose(SquareRootInverse()(counts), expected / expected.mean())

    @pytest.mark.parametrize("weighting", [*WEIGHTINGS[1:], EffectiveNumber(0.9, "samples"), InverseFrequency("none")])
    @given(counts=COUNTS, empty=st.integers(1, 99))
    @settings(max_examples=20, deadline=None)
    def test_a_class_without_images_has_the_weight_of_one_image_and_changes_no_other_weight(
        self, weighting, counts: list[int], empty: int
    ) -> None:
        counts = [1, *counts]
        without, with_empty = weighting(counts), weighting(counts + [0] * empty)
        np.testing.assert_allclose(with_empty, torch.cat([without, without[:1].expand(empty)]), rtol=1e-12)

    def test_weights_without_any_images_are_uniform(self) -> None:
        assert class_weights([0, 0, 0], 0.999).tolist() == [1.0, 1.0, 1.0]

    @pytest.mark.parametrize("beta", [-0.1, 1.0, 1.5, float("nan")])
    def test_beta_out_of_range_raises_an_error(self, beta: float) -> None:
        for make in (
            lambda: EffectiveNumber(beta),
            lambda: class_weights([1, 2], beta),
            lambda: effective_number([1], beta),
        ):
            with pytest.raises(ValueError, match=r"beta is .*must be in \[0, 1\)"):
                make()

    @pytest.mark.parametrize(
        ("most", "chosen", "within"),
        [(5000, 0.9999, 2), (500, 0.99, 5), (3919, 0.999, 4), (1000, 0.999, 1), (1300, 0.999, 2)],
    )
    def test_the_suggested_beta_is_near_the_choice_of_the_paper(self, most: int, chosen: float, within: float) -> None:
        """CIFAR-10, CIFAR-100 (the paper chose 0.9 to 0.999), iNaturalist 2017 and 2018, ILSVRC 2012."""
        ratio = (1 - suggest_beta([7, most, 1])) / (1 - chosen)
        assert 1 / within - 1e-6 <= ratio <= within + 1e-6
        EffectiveNumber(suggest_beta([most]))

    @given(COUNTS)
    def test_the_suggested_beta_gives_nearly_inverse_frequency(self, counts: list[int]) -> None:
        products = effective_number(counts, suggest_beta(counts)) / torch.tensor(counts)
        assert 0.632 <= products.min() <= products.max() <= 1 + 1e-6  # 1 - 1 / e; 1 - 1 / n is rounded

    def test_a_suggested_beta_needs_images(self) -> None:
        with pytest.raises(ValueError, match="all class_counts are 0"):
            suggest_beta([0, 0])

    def test_weights_of_impossible_counts_raise_an_error(self) -> None:
        with pytest.raises(ValueError, match="the smallest is -1"):
            class_weights([5, -1], 0.9)
        with pytest.raises(ValueError, match="shape"):
            class_weights([[5, 1]], 0.9)  # type: ignore[list-item]


def reference(kind: str, gamma: float, z: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[float, np.ndarray]:
    """Return value and gradient of equations 5 to 7 of Cui et al. 2019, one sample and one class at a time."""
    batch, classes = z.shape
    value, gradient = 0.0, np.zeros_like(z)
    for i in range(batch):
        weight = w[y[i]]
        if kind == "softmax":
            top = max(z[i])
            log_sum = top + math.log(math.fsum(math.exp(v - top) for v in z[i]))
            value += weight * (log_sum - z[i, y[i]])
            for c in range(classes):
                gradient[i, c] = weight * (math.exp(z[i, c] - log_sum) - (c == y[i])) / batch
            continue
        for c in range(classes):
            sign = 1.0 if c == y[i] else -1.0
            x = sign * z[i, c]
            small = math.exp(-abs(x))
            p = 1 / (1 + small) if x >= 0 else small / (1 + small)  # p_t
            q = small / (1 + small) if x >= 0 else 1 / (1 + small)  # 1 - p_t
            ce = max(-x, 0.0) + math.log1p(small)  # -log p_t
            value += weight * q**gamma * ce
            gradient[i, c] = -weight * sign * q**gamma * (q + gamma * p * ce) / batch
    return value / batch, gradient


def make_loss(kind: str, gamma: float, counts: list[int], weighting) -> Loss:
    if kind == "softmax":
        return SoftmaxLoss(counts, weighting=weighting)
    return SigmoidLoss(counts, weighting=weighting) if kind == "sigmoid" else FocalLoss(counts, gamma, weighting)


KINDS = [("softmax", 0.0), ("sigmoid", 0.0), ("focal", 0.0), ("focal", 0.5), ("focal", 1.0), ("focal", 2.0)]


class TestAgainstTheEquations:
    @pytest.mark.parametrize(("kind", "gamma"), KINDS)
    @given(case=batches(), weighting=st.sampled_from(WEIGHTINGS))
    @settings(max_examples=25, deadline=None)
    def test_value_and_gradient(self, kind: str, gamma: float, weighting, case) -> None:
        counts, z, y = case
        w = np.ones(len(counts)) if weighting is None else weighting(counts).numpy()
        value, gradient = reference(kind, gamma, z, y, w)
        loss = make_loss(kind, gamma, counts, weighting)
        for dtype, rtol in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
            logits = torch.tensor(z, dtype=dtype, requires_grad=True)
            if dtype == torch.float32:  # the logits are rounded
                value, gradient = reference(kind, gamma, logits.detach().double().numpy(), y, w)
            actual = loss(logits, torch.tensor(y))
            actual.backward()
            rounding = 16 * torch.finfo(dtype).eps * w.max()  # of 1 + small, and of p - 1 for p near 1
            assert actual.item() == pytest.approx(value, rel=rtol, abs=rtol * w.max() * 1e-2 + rounding)
            np.testing.assert_allclose(logits.grad, gradient, rtol=rtol, atol=rtol * np.abs(gradient).max() + rounding)

    @pytest.mark.parametrize(("kind", "gamma"), KINDS)
    def test_extreme_logits_give_finite_values(self, kind: str, gamma: float) -> None:
        loss = make_loss(kind, gamma, [10**9, 1000, 1, 0], EffectiveNumber(1 - 1e-12))
        signs = torch.tensor(list(itertools.product((-1, 1), repeat=4))).repeat(4, 1)
        for dtype, size in itertools.product((torch.float32, torch.bfloat16, torch.float16), (0.0, 100.0, 1e4)):
            logits = (size * signs).to(dtype).requires_grad_()
            value = loss(logits, torch.arange(4).repeat_interleave(16))
            value.backward()
            assert value.dtype == torch.float32
            assert torch.isfinite(value), (dtype, size)
            assert logits.grad is not None
            assert torch.isfinite(logits.grad).all()

    def test_a_very_negative_logit_of_the_target_costs_its_size(self) -> None:
        # the balanced losses of vandit15 and fcakyon give 0.69 and a NaN gradient here
        logits = torch.tensor([[-100.0, 0.0]], requires_grad=True)
        value = FocalLoss([10, 10], gamma=0.5)(logits, torch.tensor([0]))
        value.backward()
        assert value.item() == pytest.approx(100 + math.log(2) * 0.5**0.5, rel=1e-6)
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()


class TestReductionAndTargets:
    logits = torch.randn(32, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    targets = torch.arange(32) % 5
    counts = (500, 100, 20, 5, 1)

    def test_the_mean_divides_by_the_batch_size(self) -> None:
        weights = class_weights(self.counts, 0.99)
        mean = F.cross_entropy(self.logits, self.targets, weight=weights)
        by_batch_size = mean * weights[self.targets].sum() / len(self.targets)
        actual = SoftmaxLoss(self.counts, weighting=EffectiveNumber(0.99))(self.logits, self.targets)
        torch.testing.assert_close(actual, by_batch_size, rtol=1e-6, atol=0)

    @pytest.mark.parametrize("make", [SigmoidLoss, FocalLoss])
    def test_the_weight_of_several_labels_is_their_mean_weight(self, make) -> None:
        weights = class_weights(self.counts, 0.99)
        targets = torch.tensor([[1.0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.float64)
        plain = make(self.counts).per_sample(self.logits[:2], targets)
        # every term gets the mean weight, unlike the terms of a label mixed from two images
        expected = (plain[0] * (weights[0] + weights[4]) / 2 + plain[1] * weights.min()) / 2
        actual = make(self.counts, weighting=EffectiveNumber(0.99))(self.logits[:2], targets)
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)

    def test_soft_targets_of_softmax_equal_torch(self) -> None:
        soft = torch.rand(32, 5, dtype=torch.float64).softmax(1)
        torch.testing.assert_close(SoftmaxLoss(self.counts)(self.logits, soft), F.cross_entropy(self.logits, soft))


class TestInterface:
    def test_impossible_gamma_raises_an_error(self) -> None:
        for gamma in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=r"gamma is .*must be at least 0"):
                FocalLoss([1, 2], gamma=gamma)

    def test_probabilities_are_softmax_or_sigmoid(self) -> None:
        logits = torch.tensor([[0.0, math.log(3)]])
        torch.testing.assert_close(SoftmaxLoss([2, 1]).probabilities(logits), torch.tensor([[0.25, 0.75]]))
        torch.testing.assert_close(FocalLoss([2, 1]).probabilities(logits), torch.tensor([[0.5, 0.75]]))

    def test_losses_import_only_torch_and_no_compiler(self) -> None:
        code = (
            "import sys; sys.modules['numpy'] = None; import torch\n"
            "from lt_cb import losses\n"
            "z, y = torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 2])\n"
            "kinds = [k for k in map(vars(losses).get, losses.__all__) if hasattr(k, 'per_sample')]\n"
            "more = {losses.DistributionBalancedLoss: {'num_images': 9}}\n"
            "for kind in kinds:\n"
            "    if kind is not losses.Loss: kind([5, 3, 1], **more.get(kind, {}))(z, y).backward()\n"
            "foreign = 'lightning torchvision torchmetrics timm wandb torch._inductor torch._dynamo triton'.split()\n"
            "print(len(kinds) > 15, [m for m in foreign if m in sys.modules])"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout == "True []\n"


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({0: 5, 1: 3}, r"class_counts is {0: 5, 1: 3}, but must be a list of whole numbers"),
        ([5.5, 3], "whole numbers of at least 0"),
        ([float("nan"), 3], "whole numbers of at least 0"),
        ([float("inf"), 3], "whole numbers of at least 0"),
        ([5, -1], r"class_counts is \[5, -1\], but must be a list of whole numbers of at least 0"),
        ([5], "class_counts has 1 classes, but a classifier needs at least 2"),
    ],
)
def test_impossible_counts_raise_an_error(counts, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SoftmaxLoss(counts)


def test_floating_class_indices_raise_an_error() -> None:
    with pytest.raises(ValueError, match=r"have dtype torch\.float32, but class indices must be whole"):
        SoftmaxLoss([5, 3])(torch.zeros(2, 2), torch.tensor([0.0, 1.7]))


class HingeLoss(SigmoidLoss):
    def present(self, logits: Tensor) -> Tensor:
        return (1 - logits).clamp(min=0)


class TypedOptions(SoftmaxLoss):
    def __init__(self, class_counts: list[int], tau: float = 2.0, **options: Unpack[LossOptions]) -> None:
        super().__init__(class_counts, **options)
        self.tau = tau


class UntypedSoftmaxOptions(SoftmaxLoss):
    def __init__(self, class_counts: list[int], **options: Any) -> None:
        super().__init__(class_counts, **options)


class UntypedSigmoidOptions(SigmoidLoss):
    def __init__(self, class_counts: list[int], **options: Any) -> None:
        super().__init__(class_counts, **options)


def test_a_custom_loss_defines_the_term_of_a_present_label() -> None:
    logits, indices = torch.tensor([[0.5, 2.0, -3.0]]), torch.tensor([1])
    for targets, expected in ((indices, 1.5), (torch.tensor([[0, 1, 0]]), 1.5), (torch.tensor([[-1, 1, 0]]), 0.0)):
        torch.testing.assert_close(HingeLoss([3, 2, 1])(logits, targets), torch.tensor(expected))
    assert HingeLoss([3, 2, 1], weight_of="label").arguments()["weight_of"] == "label"


def test_arguments_include_the_options_of_the_base_classes() -> None:
    common = ["weighting", "reduction"]
    assert list(TypedOptions([3, 2]).arguments()) == ["class_counts", "tau", *common]
    assert set(UntypedSoftmaxOptions([3, 2]).arguments()) == {"class_counts", *common}
    assert set(AsymmetricLoss([3, 2]).arguments()) > {"weight_of", *common}
    assert UntypedSigmoidOptions([3, 2], weight_of="label").arguments() == {
        "class_counts": [3, 2],
        "weighting": None,
        "weight_of": "label",
        "reduction": "mean",
        "num_unlabelled": 0,
    }
    assert "weight_of" not in SoftmaxLoss([3, 2]).arguments()
