"""Losses that treat negatives differently, add noise or a regulariser, against the equations of the papers.

The references evaluate the equations one sample and one class at a time, in decimals that neither overflow nor vanish.
"""

import itertools
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import batches

from lt_cb.losses import (
    AsymmetricLoss,
    BalancedSoftmaxLoss,
    EffectiveNumber,
    EqualizationLoss,
    GCLLoss,
    LADELoss,
    Loss,
    SeesawLoss,
    SoftmaxLoss,
)

COUNTS = [500, 60, 7, 1]
Case = tuple[list[int], np.ndarray, np.ndarray]
ValueAndGradient = tuple[float, np.ndarray]


@pytest.fixture(autouse=True, scope="module")
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def decimals(values: Sequence[float]) -> list[Decimal]:
    return [Decimal(float(v)) for v in values]


def weighted_softmax(factors: Sequence[Decimal], z: Sequence[Decimal], y: int) -> tuple[Decimal, list[Decimal]]:
    """Return value and gradient of -log(e^z_y / sum_c f_c e^z_c), with f_y = 1 and f constant."""
    terms = [f * v.exp() for f, v in zip(factors, z, strict=True)]
    value = -(z[y].exp() / sum(terms)).ln()
    return value, [t / sum(terms) - (c == y) for c, t in enumerate(terms)]


def power(base: Decimal, exponent: float) -> Decimal:
    return base ** Decimal(exponent) if exponent else Decimal(1)  # Decimal has no 0^0


def mean(samples: list[tuple[Decimal, list[Decimal]]]) -> ValueAndGradient:
    gradient = np.array([[float(g) for g in row] for _, row in samples]) / len(samples)
    return float(sum(value for value, _ in samples)) / len(samples), gradient


def equalization(n: list[int], z: np.ndarray, y: np.ndarray, gamma: float, threshold: float, u: np.ndarray):
    samples = []
    for i, true in enumerate(y.tolist()):
        left_out = [c != true and n[c] < threshold * sum(n) and u[i, c] < gamma for c in range(len(n))]
        samples.append(weighted_softmax([Decimal(not out) for out in left_out], decimals(z[i]), true))
    return mean(samples)


def seesaw(n: list[int], z: np.ndarray, y: np.ndarray, p: float, q: float) -> ValueAndGradient:
    n = [max(count, 1) for count in n]
    samples = []
    for i, true in enumerate(y.tolist()):
        scores = [v.exp() for v in decimals(z[i])]  # sigma without its denominator, which cancels
        mitigation = [power(min(Decimal(1), Decimal(n[c]) / n[true]), p) for c in range(len(n))]
        compensation = [power(max(Decimal(1), scores[c] / scores[true]), q) for c in range(len(n))]
        factors = [m * c for m, c in zip(mitigation, compensation, strict=True)]
        samples.append(weighted_softmax(factors, decimals(z[i]), true))
    return mean(samples)


def asymmetric(z: np.ndarray, t: np.ndarray, positive: float, negative: float, m: float) -> ValueAndGradient:
    samples = []
    for i in range(len(z)):
        value, gradient = Decimal(0), []
        for c, v in enumerate(decimals(z[i])):
            p, q = 1 / (1 + (-v).exp()), 1 / (1 + v.exp())
            if t[i, c]:
                value -= power(q, positive) * p.ln()
                gradient.append(power(q, positive) * (Decimal(positive) * p * p.ln() - q))
                continue
            shifted, rest = (p - Decimal(m), q + Decimal(m)) if p > Decimal(m) else (Decimal(0), Decimal(1))
            value -= power(shifted, negative) * rest.ln()
            slope = Decimal(0)
            if shifted:
                slope = power(shifted, negative) * (1 / rest - Decimal(negative) * rest.ln() / shifted)
            gradient.append(slope * p * q)
        samples.append((value, gradient))
    return mean(samples)


def gcl(n: list[int], z: np.ndarray, y: np.ndarray, a: float, s: float, normal: np.ndarray) -> ValueAndGradient:
    rarest = min([count for count in n if count], default=1)
    log_n = [Decimal(count or rarest).ln() for count in n]
    most, least = max(log_n), min(log_n)
    samples = []
    for i, true in enumerate(y.tolist()):
        cosines = decimals(z[i])
        if most > least:
            for c in range(len(n)):
                noise = min(abs(Decimal(normal[i, c])) / 3, Decimal(1))
                cosines[c] -= Decimal(a) * noise * (most - log_n[c]) / (most - least)
        value, gradient = weighted_softmax([Decimal(1)] * len(n), [Decimal(s) * v for v in cosines], true)
        samples.append((value, [Decimal(s) * g for g in gradient]))
    return mean(samples)


def lade(n: list[int], z: np.ndarray, y: np.ndarray, alpha: float, penalty: float) -> ValueAndGradient:
    existing = sum(count > 0 for count in n) or len(n)
    prior = [Decimal(max(count, 1)) / (sum(n) or len(n)) for count in n]
    value, gradient = mean(
        [weighted_softmax([p / prior[t] for p in prior], decimals(z[i]), t) for i, t in enumerate(y.tolist())]
    )
    for c in range(len(n)):
        terms = [v.exp() / existing / prior[t] for v, t in zip(decimals(z[:, c]), y, strict=True)]
        spread = (sum(terms) / len(y)).ln()
        own = decimals(z[y == c, c])
        average = sum(own) / len(own) if own else Decimal(0)
        value += alpha * float(prior[c] * (spread - average + Decimal(penalty) * spread**2))
        for i, true in enumerate(y.tolist()):
            slope = (1 + 2 * Decimal(penalty) * spread) * terms[i] / sum(terms) - (Decimal(c == true) / (len(own) or 1))
            gradient[i, c] += alpha * float(prior[c] * slope)
    return value, gradient


def check(loss: Loss, z: np.ndarray, targets: np.ndarray, expected: ValueAndGradient) -> None:
    logits = torch.tensor(z, requires_grad=True)
    actual = loss(logits, torch.tensor(targets))
    actual.backward()
    assert actual.item() == pytest.approx(expected[0], rel=1e-9, abs=1e-12)
    np.testing.assert_allclose(logits.grad, expected[1], rtol=1e-8, atol=1e-12 * (1 + np.abs(expected[1]).max()))


class TestAgainstTheEquations:
    @pytest.mark.filterwarnings("ignore:no class has a share below the threshold")
    @pytest.mark.parametrize("gamma", [0.0, 0.3, 0.9, 1.0])
    @given(case=batches(), threshold=st.sampled_from([0.0, 0.005, 0.2, 1.0]), seed=st.integers(0, 99))
    @settings(max_examples=12, deadline=None)
    def test_equalization(self, gamma: float, case: Case, threshold: float, seed: int) -> None:
        counts, z, y = case
        loss = EqualizationLoss(counts, gamma, threshold)
        torch.manual_seed(seed)
        uniform = torch.rand_like(torch.tensor(z)).numpy()
        torch.manual_seed(seed)
        check(loss, z, y, equalization(counts, z, y, gamma, threshold, uniform))
        check(loss.eval(), z, y, equalization(counts, z, y, 0.0, threshold, uniform))

    @pytest.mark.parametrize(("p", "q"), [(0.8, 2.0), (0.0, 0.5), (1.0, 0.0), (3.0, 1.0)])
    @given(case=batches())
    @settings(max_examples=12, deadline=None)
    def test_seesaw(self, p: float, q: float, case: Case) -> None:
        counts, z, y = case
        check(SeesawLoss(counts, p, q), z, y, seesaw(counts, z, y, p, q))

    @pytest.mark.parametrize("gammas", [(0.0, 4.0), (1.0, 0.5), (0.5, 0.0), (4.0, 1.0)])
    @given(case=batches(), margin=st.sampled_from([0.0, 0.05, 0.9]), seed=st.integers(0, 99))
    @settings(max_examples=15, deadline=None)
    def test_asymmetric(self, gammas: tuple[float, float], case: Case, margin: float, seed: int) -> None:
        counts, z, y = case
        loss = AsymmetricLoss(counts, *gammas, margin)
        check(loss, z, y, asymmetric(z, np.eye(len(counts))[y], *gammas, margin))
        several = np.random.default_rng(seed).integers(0, 2, z.shape)
        check(loss, z, several, asymmetric(z, several, *gammas, margin))

    @pytest.mark.parametrize(("noise", "scale"), [(0.5, 30.0), (1.0, 2.0), (0.0, 10.0)])
    @given(case=batches(), seed=st.integers(0, 99))
    @settings(max_examples=12, deadline=None)
    def test_gcl(self, noise: float, scale: float, case: Case, seed: int) -> None:
        counts, z, y = case
        loss = GCLLoss(counts, noise, scale)
        torch.manual_seed(seed)
        normal = torch.randn_like(torch.tensor(z)).numpy()
        torch.manual_seed(seed)
        check(loss, z, y, gcl(counts, z, y, noise, scale, normal))
        check(loss.eval(), z, y, gcl(counts, z, y, 0.0, scale, normal))

    @pytest.mark.parametrize(("alpha", "penalty"), [(0.1, 0.1), (0.0, 0.1), (2.0, 0.0), (1.0, 0.5)])
    @given(case=batches())
    @settings(max_examples=12, deadline=None)
    def test_lade(self, alpha: float, penalty: float, case: Case) -> None:
        counts, z, y = case
        check(LADELoss(counts, alpha, penalty), z, y, lade(counts, z, y, alpha, penalty))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_asymmetric_is_finite_near_its_edges_and_at_extreme_logits(dtype: torch.dtype) -> None:
    edges = [0.0, *(torch.tensor([1e-9, 0.05]).logit() + torch.tensor([[-1e-6], [0.0], [1e-6]])).flatten().tolist()]
    z = torch.tensor([v * s for v in (*edges, 1e-30, 17.0, 40.0, 90.0, 104.0, 750.0, 1e4, 1e30) for s in (-1, 1)])
    # a margin of 1e-9 leaves 1 in float32; p is 0.5 at logit 0
    for gamma, margin in itertools.product((0.0, 0.01, 0.5, 1.0, 4.0), (0.0, 1e-9, 0.05, 0.5)):
        logits = z.to(dtype)[:, None].repeat(1, 2).requires_grad_()
        value = AsymmetricLoss([9, 1], gamma, gamma, margin, reduction="none")(logits, torch.zeros(len(z)).long())
        value.sum().backward()
        assert value.isfinite().all(), (gamma, margin, z[~value.isfinite()])
        assert logits.grad is not None
        assert logits.grad.isfinite().all(), (gamma, margin)


def test_equalization_leaves_out_only_tail_negatives() -> None:
    logits = torch.zeros(4, 4, requires_grad=True)
    targets = torch.arange(4)
    EqualizationLoss(COUNTS, gamma=1.0, threshold=0.05, reduction="sum")(logits, targets).backward()
    assert logits.grad is not None
    assert logits.grad.ne(0).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]  # head, true
    both = torch.tensor([[0.5, 0.0, 0.0, 0.5]])  # neither label is left out
    value = EqualizationLoss(COUNTS, gamma=1.0, threshold=0.05)(torch.zeros(1, 4), both)
    torch.testing.assert_close(value, torch.tensor(3.0).log())


def test_equalization_without_a_tail_warns() -> None:
    with pytest.warns(UserWarning, match=r"no class has a share below the threshold 0.005 \(the rarest has 0.38\)"):
        EqualizationLoss([5, 3])


@pytest.mark.parametrize("make", [EqualizationLoss, GCLLoss])
def test_noise_is_only_added_in_training(make: type[Loss]) -> None:
    loss, logits, targets = make([10**6, 1, 1]), torch.randn(50, 3), torch.zeros(50).long()
    assert loss(logits, targets) != loss(logits, targets)
    loss.eval()
    assert loss(logits, targets) == loss(logits, targets)
    equal = torch.zeros(50, 3)
    torch.testing.assert_close(loss(equal, targets), SoftmaxLoss([1] * 3)(equal, targets))


def test_gcl_clips_its_noise() -> None:
    torch.manual_seed(0)
    values = GCLLoss([9, 1], noise=1.0, scale=1.0, reduction="none")(torch.zeros(3000, 2), torch.zeros(3000).long())
    torch.testing.assert_close(
        values.aminmax(), (torch.tensor(-1.0).exp().log1p(), torch.tensor(2.0).log()), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("reduction", "upstream"), [("sum", 1.0), ("mean", 65536.0), ("sum", 65536.0)])
def test_lade_has_a_finite_gradient_if_a_class_is_missing_from_the_batch(reduction, upstream, dtype) -> None:
    """65536 is the initial scale of torch.amp.GradScaler."""
    logits = torch.randn(128, 3, dtype=dtype, requires_grad=True)
    targets = 1 + torch.arange(128) % 2
    value = LADELoss([500, 300, 5], reduction=reduction)(logits, targets)
    (value * upstream).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    if upstream > 1:
        (plain,) = torch.autograd.grad(LADELoss([500, 300, 5], reduction=reduction)(logits, targets), logits)
        torch.testing.assert_close(logits.grad, upstream * plain)


def test_lade_of_a_batch_without_labels_is_zero() -> None:
    logits = torch.randn(9, 4, requires_grad=True)
    value = LADELoss(COUNTS)(logits, torch.zeros(9, 4))
    value.backward()
    assert value == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_lade_weights_its_regulariser_by_the_mean_weight_of_the_batch() -> None:
    logits, targets = torch.randn(9, 4), torch.arange(9) % 3
    weighting = EffectiveNumber(0.9)
    regulariser = LADELoss(COUNTS)(logits, targets) - BalancedSoftmaxLoss(COUNTS)(logits, targets)
    expected = (
        BalancedSoftmaxLoss(COUNTS, weighting=weighting)(logits, targets)
        + regulariser * weighting(COUNTS)[targets].mean()
    )
    torch.testing.assert_close(LADELoss(COUNTS, weighting=weighting)(logits, targets), expected)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: EqualizationLoss(COUNTS, gamma=1.1), r"gamma is 1.1, but must be in \[0, 1\]"),
        (lambda: EqualizationLoss(COUNTS, threshold=-0.1), r"threshold is -0.1, but must be in \[0, 1\]"),
        (lambda: EqualizationLoss(COUNTS, gamma=float("nan")), "gamma is nan"),
        (lambda: SeesawLoss(COUNTS, p=-1), "p is -1, but must be at least 0"),
        (lambda: SeesawLoss(COUNTS, q=float("inf")), "q is inf, but must be at least 0 and finite"),
        (lambda: AsymmetricLoss(COUNTS, gamma_positive=-1), "gamma_positive is -1, but must be at least 0"),
        (lambda: AsymmetricLoss(COUNTS, gamma_negative=float("nan")), "gamma_negative is nan"),
        (lambda: AsymmetricLoss(COUNTS, margin=1.0), r"margin is 1.0, but must be in \[0, 1\)"),
        (lambda: GCLLoss(COUNTS, noise=-0.5), "noise is -0.5, but must be at least 0"),
        (lambda: GCLLoss(COUNTS, noise=-1), ".*; 0 gives the softmax cross-entropy of the scaled cosines"),
        (lambda: GCLLoss(COUNTS, scale=0), "scale is 0, but must be positive"),
        (lambda: LADELoss(COUNTS, alpha=-1), "alpha is -1, but must be at least 0"),
        (lambda: LADELoss(COUNTS, penalty=float("inf")), "penalty is inf"),
        (lambda: SeesawLoss(COUNTS)(torch.zeros(1, 4), torch.eye(4)[:1]), "SeesawLoss takes class indices, but not"),
    ],
)
def test_wrong_values_raise_an_error(make, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()
