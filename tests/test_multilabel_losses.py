"""Losses for several labels an image: unknown labels, class weights of labels, re-balancing.

The references evaluate the formulas one sample and one class at a time, in decimals that neither overflow nor vanish.
"""

import itertools
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import COUNTS, batches
from torch import Tensor, nn

from lt_cb.losses import (
    AsymmetricLoss,
    DistributionBalancedLoss,
    EffectiveNumber,
    FocalLoss,
    InverseFrequency,
    Loss,
    SigmoidLoss,
    SoftmaxLoss,
    SquareRootInverse,
)

C = len(COUNTS)
WEIGHTINGS = [None, EffectiveNumber(0.999), InverseFrequency("samples"), SquareRootInverse()]
WEIGHT_OF = ["sample", "label", "positive"]
Case = tuple[list[int], np.ndarray, np.ndarray]
Term = tuple[Decimal, Decimal]  # value and derivative


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def power(base: Decimal, exponent: float) -> Decimal:
    return base ** Decimal(exponent) if exponent else Decimal(1)  # Decimal has no 0^0


def focal(x: Decimal, gamma: float) -> Term:
    p, q = 1 / (1 + (-x).exp()), 1 / (1 + x.exp())
    cost = (1 + (-x).exp()).ln()
    return power(q, gamma) * cost, -power(q, gamma) * (q + Decimal(gamma) * p * cost)


def minus(term: Term) -> Term:
    return term[0], -term[1]


def asymmetric(z: Decimal, label: bool, gammas: tuple[float, float], margin: float) -> Term:
    if label:
        return focal(z, gammas[0])
    p, rest = 1 / (1 + (-z).exp()), 1 / (1 + z.exp())
    q = p - Decimal(margin)
    if q <= 0:
        return Decimal(0), Decimal(0)
    cost = -(1 - q if q < Decimal("0.999") else rest + Decimal(margin)).ln()
    slope = power(q, gammas[1]) / (1 - q if q < Decimal("0.999") else rest + Decimal(margin))
    slope += Decimal(gammas[1]) * power(q, gammas[1] - 1) * cost
    return power(q, gammas[1]) * cost, slope * p * rest


def balanced(z: Decimal, label: bool, n: int, total: int, kappa: float, scale: float, gamma: float) -> Term:
    n, others = max(n, 1), max(total - max(n, 1), 1)
    shifted = z + Decimal(kappa) / Decimal(scale) * (Decimal(n) / others).ln()
    if label:
        return focal(shifted, gamma)
    value, slope = focal(-Decimal(scale) * shifted, gamma)
    return value / Decimal(scale), -slope


def rebalancing(row: np.ndarray, counts: list[int], c: int, alpha: float, beta: float, mu: float) -> Decimal:
    """Return the weight r of class c in an image with targets ``row``."""
    inverse_sum = sum(Decimal(1) / max(n, 1) for n, t in zip(counts, row, strict=True) if t == 1)
    if not inverse_sum:
        return Decimal(alpha) + (1 if beta else Decimal("0.5"))
    x = Decimal(beta) * (Decimal(1) / max(counts[c], 1) / inverse_sum - Decimal(mu))
    return Decimal(alpha) + 1 / (1 + (-x).exp())


def class_weights(weighting: Any, counts: list[int], unlabelled: int) -> list[float]:
    """Return the weights of the classes, and that of images without labels, which are one more class if counted."""
    if weighting is None:
        return [1.0] * (len(counts) + 1)
    weights, plain = weighting(counts).tolist(), type(weighting)(**{**vars(weighting), "normalization": "none"})
    one, more = plain([max(counts[0], 1)]).item(), plain([max(unlabelled, 1)]).item()
    return [*weights, weights[0] / one * more if unlabelled else min(weights)]


def reference(
    z: np.ndarray, targets: np.ndarray, weights: list[float], weight_of: str, term: Callable[[int, int], Term]
) -> tuple[float, np.ndarray]:
    """Return value and gradient of the mean over the batch, for targets 1, 0 and -1; see `class_weights`."""
    total, gradient = Decimal(0), np.zeros_like(z)
    for i, row in enumerate(targets):
        present = [Decimal(w) for w, t in zip(weights[:-1], row, strict=True) if t == 1]
        sample_weight = sum(present) / len(present) if present else Decimal(weights[-1])
        for c, t in enumerate(row):
            if t == -1:
                continue
            weight = {
                "sample": sample_weight,
                "label": Decimal(weights[c]),
                "positive": Decimal(weights[c]) if t == 1 else Decimal(1),
            }[weight_of]
            value, slope = term(i, c)
            total += weight * value
            gradient[i, c] = float(weight * slope) / len(z)
    return float(total) / len(z), gradient


def value_and_gradient(loss: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, targets)
    value.sum().backward()
    assert logits.grad is not None
    return value.detach(), logits.grad


def check(loss: Loss, z: np.ndarray, targets: np.ndarray, expected: tuple[float, np.ndarray]) -> None:
    value, gradient = value_and_gradient(loss, torch.tensor(z), torch.tensor(targets, dtype=torch.int8))
    most = 1.0 if loss.class_weights is None else max(loss.class_weights.max().item(), 1.0)
    assert value.item() == pytest.approx(expected[0], rel=1e-9, abs=1e-11 * most)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-7, atol=1e-11 * most)


def random_labels(z: np.ndarray, seed: int) -> np.ndarray:
    """Return targets of the shape of the logits: 1, 0, or -1 for an unknown label."""
    return np.random.default_rng(seed).choice([1, 0, 0, -1], z.shape)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("weight_of", WEIGHT_OF)
class TestAgainstTheFormula:
    @given(
        case=batches(),
        weighting=st.sampled_from(WEIGHTINGS),
        gamma=st.sampled_from([0.0, 0.5, 2.0]),
        seed=st.integers(0, 99),
        unlabelled=st.sampled_from([0, 1, 30, 10_000]),
    )
    @settings(max_examples=15, deadline=None)
    def test_sigmoid_and_focal(
        self, weight_of: Any, case: Case, weighting, gamma: float, seed: int, unlabelled: int
    ) -> None:
        counts, z, _ = case
        assume(any(counts))  # some weightings need an image
        targets, loss = (
            random_labels(z, seed),
            FocalLoss(counts, gamma, weighting, weight_of, num_unlabelled=unlabelled),
        )
        weights = class_weights(weighting, counts, unlabelled)

        def term(i: int, c: int) -> Term:
            x = Decimal(z[i, c])
            return focal(x, gamma) if targets[i, c] == 1 else minus(focal(-x, gamma))

        expected = reference(z, targets, weights, weight_of, term)
        check(loss, z, targets, expected)
        if not gamma:
            check(SigmoidLoss(counts, weighting, weight_of, num_unlabelled=unlabelled), z, targets, expected)

    @given(
        case=batches(),
        weighting=st.sampled_from(WEIGHTINGS),
        gammas=st.sampled_from([(0.0, 4.0), (1.0, 2.0)]),
        margin=st.sampled_from([0.05, 0.5]),
        seed=st.integers(0, 99),
        unlabelled=st.sampled_from([0, 1, 30, 10_000]),
    )
    @settings(max_examples=15, deadline=None)
    def test_asymmetric(
        self, weight_of: Any, case: Case, weighting, gammas, margin: float, seed: int, unlabelled: int
    ) -> None:
        counts, z, _ = case
        assume(any(counts))  # some weightings need an image
        targets, loss = (
            random_labels(z, seed),
            AsymmetricLoss(
                counts, *gammas, margin, weighting=weighting, weight_of=weight_of, num_unlabelled=unlabelled
            ),
        )
        weights = class_weights(weighting, counts, unlabelled)
        expected = reference(
            z,
            targets,
            weights,
            weight_of,
            lambda i, c: asymmetric(Decimal(z[i, c]), targets[i, c] == 1, gammas, margin),
        )
        check(loss, z, targets, expected)

    @given(
        case=batches(),
        weighting=st.sampled_from(WEIGHTINGS),
        balance=st.sampled_from([(0.1, 10.0, 0.3), (0.0, 2.0, 0.0), (0.5, 0.0, 0.3)]),
        tolerance=st.sampled_from([(0.05, 5.0), (1.0, 0.5), (0.0, 1.0)]),
        gamma=st.sampled_from([0.0, 0.5, 2.0]),
        more=st.integers(0, 999),
        seed=st.integers(0, 99),
        unlabelled=st.sampled_from([0, 1, 30, 10_000]),
    )
    @settings(max_examples=20, deadline=None)
    def test_distribution_balanced(
        self,
        weight_of: Any,
        case: Case,
        weighting,
        balance,
        tolerance,
        gamma: float,
        more: int,
        seed: int,
        unlabelled: int,
    ) -> None:
        counts, z, _ = case
        assume(any(counts))  # some weightings need an image
        targets, total = random_labels(z, seed), max(counts) + more
        loss = DistributionBalancedLoss(
            counts,
            total,
            *balance,
            *tolerance,
            gamma,
            weighting=weighting,
            weight_of=weight_of,
            num_unlabelled=unlabelled,
        )
        weights = class_weights(weighting, counts, unlabelled)

        def term(i: int, c: int) -> Term:
            r = rebalancing(targets[i], counts, c, *balance)
            value, slope = balanced(Decimal(z[i, c]), targets[i, c] == 1, counts[c], total, *tolerance, gamma)
            return r * value, r * slope

        check(loss, z, targets, reference(z, targets, weights, weight_of, term))


def every_loss(**options: Any) -> list[Loss]:
    return [
        SigmoidLoss(COUNTS, **options),
        FocalLoss(COUNTS, 1.5, **options),
        AsymmetricLoss(COUNTS, **options),
        DistributionBalancedLoss(COUNTS, 600, **options),
    ]


EVERY = [loss for weight_of in WEIGHT_OF for loss in every_loss(weighting=EffectiveNumber(0.99), weight_of=weight_of)]


@pytest.mark.parametrize("loss", EVERY, ids=lambda loss: f"{type(loss).__name__}-{loss.weight_of}")
class TestEveryLoss:
    def test_an_unknown_label_is_left_out(self, loss: Loss) -> None:
        logits = torch.randn(9, C)
        targets = torch.tensor(random_labels(logits.numpy(), 3), dtype=torch.int8)
        targets[4] = -1
        unknown = targets == -1
        expected = value_and_gradient(loss, logits, targets)
        assert not expected[1][unknown].any()
        assert expected[1][~unknown].all()
        as_nan = targets.float().where(~unknown, torch.nan)
        for odd in (0.0, 1e4, torch.nan, -torch.inf):  # the logit of an unknown label does not matter
            for same in (targets, targets.long(), targets.double(), as_nan, as_nan.half()):
                actual = value_and_gradient(loss, logits.where(~unknown, odd), same)
                torch.testing.assert_close(actual, expected, rtol=0, atol=0)
        known = [i for i in range(9) if i != 4]  # a sample without a known label costs 0 and counts in the mean
        torch.testing.assert_close(loss(logits[known], targets[known]) * 8 / 9, expected[0])
        assert loss(logits[4:5], targets[4:5]) == 0

    def test_a_class_index_is_the_only_label(self, loss: Loss) -> None:
        logits, indices = torch.randn(9, C), torch.arange(9) % C
        expected = value_and_gradient(loss, logits, torch.eye(C, dtype=torch.int8)[indices])
        torch.testing.assert_close(value_and_gradient(loss, logits, indices), expected)
        with pytest.raises(ValueError, match="targets go from 0 to 5, but 5 classes"):
            loss(logits, torch.arange(9) % (C + 1))

    def test_deferred_weights_are_not_applied(self, loss: Loss) -> None:
        logits, targets = torch.randn(9, C), torch.randint(-1, 2, (9, C))
        plain = type(loss)(**{**loss.arguments(), "weighting": None})
        deferred = type(loss)(**loss.arguments())
        deferred.weighted = False
        torch.testing.assert_close(deferred(logits, targets), plain(logits, targets))
        deferred.weighted = True
        torch.testing.assert_close(deferred(logits, targets), loss(logits, targets))

    def test_extreme_logits_of_any_labels_give_finite_values(self, loss: Loss) -> None:
        signs = torch.tensor(list(itertools.product((-1, 1), repeat=C)))
        targets = torch.cat([torch.eye(C), torch.ones(1, C), torch.zeros(1, C), -torch.ones(1, C)]).to(torch.int8)
        logits, targets = signs.repeat_interleave(len(targets), 0), targets.repeat(len(signs), 1)
        for dtype, size in itertools.product((torch.float64, torch.float32, torch.float16), (0.0, 1e4)):
            value, gradient = value_and_gradient(loss, (size * logits).to(dtype), targets)
            assert value.isfinite()
            assert gradient.isfinite().all()


def test_weights_of_labels_equal_torch() -> None:
    logits, targets = torch.randn(9, C), torch.rand(9, C)
    weighting = EffectiveNumber(0.999)
    weights = weighting(COUNTS).float()
    for weight_of, name in (("label", "weight"), ("positive", "pos_weight")):
        torchs = nn.BCEWithLogitsLoss(**{name: weights, "reduction": "none"})
        actual = value_and_gradient(SigmoidLoss(COUNTS, weighting, weight_of, reduction="none"), logits, targets)
        expected = value_and_gradient(lambda z, t, f=torchs: f(z, t).sum(1), logits, targets)
        torch.testing.assert_close(actual, expected)


def test_an_unknown_label_does_not_change_the_weight_of_a_mixed_image() -> None:
    logits, loss = torch.randn(1, C), SigmoidLoss(COUNTS, EffectiveNumber(0.999), reduction="none")
    logits[0, 4] = -1e4  # an absent label costs nothing here
    mixed = torch.tensor([[0.3, 0.7, 0.0, 0.0, 0.0]])
    unknown = torch.tensor([[0.3, 0.7, 0.0, 0.0, -1.0]])
    torch.testing.assert_close(loss(logits, unknown), loss(logits, mixed))


def test_images_without_labels_weigh_as_a_class_of_their_number() -> None:
    """Findings in ChestX-ray14 and "no finding", 54 % of the images, which weighed 5.5 times the commonest finding."""
    counts, logits = [19_894, 13_317, 11_559, 227], torch.zeros(2, 4)
    targets = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0]])
    for weighting in (EffectiveNumber(0.9999), InverseFrequency("samples"), SquareRootInverse("none")):
        ratios = {}
        for unlabelled in (60_361, 19_894, 227, 0):
            loss = SigmoidLoss(counts, weighting, reduction="none", num_unlabelled=unlabelled)
            without, common = loss(logits, targets).tolist()
            ratios[unlabelled] = without / common
        assert 0 < ratios[60_361] < ratios[19_894] == pytest.approx(1.0)
        assert ratios[227] == pytest.approx((weighting(counts)[3] / weighting(counts)[0]).item())
        assert ratios[0] == ratios[19_894]  # unknown: the smallest class weight
        both = SigmoidLoss(counts, weighting, num_unlabelled=13_317, reduction="none")(
            logits, torch.tensor([[0, -1, 0, 0], [0, 1, 0, 0]])
        )
        assert both[0] * 4 / 3 == pytest.approx(both[1])  # one label is unknown, and the others absent


class TestDistributionBalanced:
    def test_rebalancing_of_three_images(self) -> None:
        loss = DistributionBalancedLoss([100, 50, 10], 120)
        targets = torch.tensor([[1.0, 0, 1], [0, 0, 0], [-1, torch.nan, 1]])
        ratios = torch.tensor([[1 / 11, 2 / 11, 10 / 11], [torch.inf] * 3, [0.1, 0.2, 1]])
        torch.testing.assert_close(loss.rebalancing(targets), 0.1 + (10 * (ratios - 0.3)).sigmoid())

    def test_shift_of_five_classes(self) -> None:
        loss = DistributionBalancedLoss([90, 50, 10, 0, 100], 100, kappa=0.2, negative_scale=2.0)
        odds = torch.tensor([10 / 90, 1.0, 90 / 10, 99.0, 1 / 100])  # no image counts as 1, all images as all but 1
        torch.testing.assert_close(loss.shift, 0.1 * odds.log())

    def test_the_weight_of_a_mixed_image_is_the_mean_weight_of_its_labels(self) -> None:
        loss = DistributionBalancedLoss(COUNTS, 600, weighting=EffectiveNumber(0.999), reduction="none")
        plain = DistributionBalancedLoss(COUNTS, 600, reduction="none")
        logits, mixed = torch.randn(1, C), torch.tensor([[0.3, 0.7, 0.0, 0.0, 0.0]])
        weight = (mixed @ EffectiveNumber(0.999)(COUNTS).float()[:, None])[:, 0]
        torch.testing.assert_close(loss(logits, mixed), weight * plain(logits, mixed))


class CustomPerSample(SigmoidLoss):
    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return torch.full_like(logits[:, 0], 7.0)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: SigmoidLoss([3, 2], weight_of="class"), "weight_of is 'class', but must be 'sample', 'label' or"),
        (
            lambda: FocalLoss([3, 2], num_unlabelled=-1),
            "num_unlabelled is -1, but must be a whole number of at least 0",
        ),
        (lambda: AsymmetricLoss([3, 2], num_unlabelled=2.0), "num_unlabelled is 2.0, but must be a whole number"),
        (lambda: CustomPerSample([3, 2], weight_of="label"), "but CustomPerSample defines per_sample"),
        (
            lambda: FocalLoss([3, 2], weight_of="label", reduction="weighted_mean"),
            "reduction is 'weighted_mean', but with weight_of 'label' a sample has no weight",
        ),
        (lambda: DistributionBalancedLoss([3, 2], 2), "num_images is 2, but must be a whole number of at least 3"),
        (lambda: DistributionBalancedLoss([3, 2], 4.0), "num_images is 4.0, but must be a whole number"),
        (lambda: DistributionBalancedLoss([3, 2], 4, alpha=-1), "alpha is -1, but must be at least 0"),
        (lambda: DistributionBalancedLoss([3, 2], 4, beta=float("inf")), "beta is inf"),
        (lambda: DistributionBalancedLoss([3, 2], 4, mu=float("nan")), "mu is nan"),
        (lambda: DistributionBalancedLoss([3, 2], 4, kappa=-0.1), "kappa is -0.1"),
        (lambda: DistributionBalancedLoss([3, 2], 4, negative_scale=0), "negative_scale is 0, but must be positive"),
        (lambda: DistributionBalancedLoss([3, 2], 4, gamma=-1), "gamma is -1"),
        (lambda: SigmoidLoss([3, 2])(torch.zeros(1, 2), torch.tensor([[-2, 1]])), "-1 or NaN, but go from -2 to 1"),
        (lambda: SigmoidLoss([3, 2])(torch.zeros(1, 2), torch.tensor([[torch.nan, 9]])), "but go from 0 to 9"),
        (lambda: SoftmaxLoss([3, 2])(torch.zeros(1, 2), torch.tensor([[-1, 1]])), r"must be in \[0, 1\], but go from"),
    ],
)
def test_wrong_values_raise_an_error(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()
