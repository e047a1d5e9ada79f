"""The rule by which ``recommend`` chooses a head, and the words for it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lt_cb.heads.folds import Choice, choose
from lt_cb.heads.recipes import Candidate, make_recipes
from lt_cb.heads.recommend import _notes, _result

PLAIN, BALANCED_SOFTMAX, WEIGHTED = make_recipes([0.9], [], [1.0])


def corrected(a: list[float], b: list[float], folds: int) -> tuple[float, float]:
    """Mean of paired differences, and standard error by Nadeau and Bengio's variance, from the raw sums."""
    d = np.subtract(a, b)
    variance = ((d**2).sum() - d.sum() ** 2 / len(d)) / (len(d) - 1)
    return d.mean(), np.sqrt(variance * (1 / len(d) + (1 / folds) / (1 - 1 / folds)))


def test_choice_is_the_default_unless_another_is_better_by_a_standard_error() -> None:
    plain, weighted = (Candidate(recipe, 0.1) for recipe in (PLAIN, WEIGHTED))
    default, stronger = Candidate(BALANCED_SOFTMAX, 0.3), Candidate(BALANCED_SOFTMAX, 0.03)
    base = [0.5, 0.6, 0.7, 0.55, 0.65]
    prior = [0.78, 0.9, 0.97, 0.86, 0.93]
    noisy = {plain: base, stronger: base, default: prior, weighted: [0.9, 0.8, 0.99, 0.97, 0.83]}
    choice = choose(noisy, repeats=1)
    assert np.mean(noisy[weighted]) > np.mean(prior)
    assert choice.chosen == choice.default == default
    mean, error = corrected(prior, base, 5)
    np.testing.assert_allclose(choice.gain, mean)
    np.testing.assert_allclose([choice.low, choice.high], stats.t.interval(0.95, 4, mean, error))
    steady = {**noisy, weighted: [value + 0.01 for value in prior]}
    assert choose(steady, repeats=1).chosen == weighted
    assert choose({**steady, stronger: [value + 0.02 for value in prior]}, repeats=1).chosen == stronger


def test_choice_is_never_below_plain() -> None:
    """The scores of an audit, in which a rule of one standard error between all candidates chose the second."""
    scores = {
        Candidate(PLAIN, 0.1): [0.79, 0.80, 0.81, 0.80, 0.80],
        Candidate(PLAIN, 0.01): [0.90, 0.62, 0.93, 0.60, 0.91],
        Candidate(BALANCED_SOFTMAX, 0.3): [0.90, 0.62, 0.93, 0.60, 0.91],
    }
    choice = choose(scores, repeats=1)
    assert choice.chosen == choice.plain == Candidate(PLAIN, 0.1)
    assert choice.is_plain
    assert (choice.gain, choice.low, choice.high) == (0, 0, 0)
    best = Candidate(BALANCED_SOFTMAX, 0.1)  # the default is below plain, so that the best is chosen
    assert choose({**scores, best: [0.82, 0.80, 0.81, 0.80, 0.80]}, repeats=1).chosen == best


@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(2, 5))
@settings(deadline=None, max_examples=60)
def test_choice_follows_its_rule(seed: int, repeats: int, folds: int) -> None:
    rng = np.random.default_rng(seed)
    candidates = [Candidate(r, v) for r in make_recipes([0.9], [], [0.5, 1.0]) for v in (0.3, 0.01)]
    levels, noise = rng.random((len(candidates), 1)) / 9, rng.random((len(candidates), repeats * folds))
    drawn = levels + rng.choice([0.02, 0.2]) * noise
    scores = dict(zip(candidates, drawn.round(2).tolist(), strict=True))
    choice = choose(scores, repeats)
    means = {candidate: np.mean(values) for candidate, values in scores.items()}
    assert means[choice.chosen] >= max(means[c] for c in candidates if c.recipe == PLAIN) - 1e-9
    assert means[choice.chosen] >= means[choice.default] - 1e-9
    for candidate in candidates:
        if means[candidate] > means[choice.chosen] + 1e-9:
            gain, error = corrected(scores[candidate], scores[choice.default], folds)
            assert gain <= error + 1e-8
    assert len(choice.by_repeat) == (repeats if repeats > 1 else 0)


def test_words_of_the_choice_are_honest() -> None:
    grid = [Candidate(recipe, v) for recipe in make_recipes([0.9, 0.99], [], [0.5, 1.0, 1.5]) for v in (1.0, 0.3, 0.1)]
    plain, default = grid[1], Candidate(BALANCED_SOFTMAX, 0.3)
    ends = Candidate(grid[9].recipe, 1.0)

    def words(
        chosen: Candidate, low: float, by_repeat: list[Candidate], best: Candidate, ignored: str = ""
    ) -> list[str]:
        choice = Choice(chosen, plain, 0.0 if chosen == plain else 0.05, low, 0.1, default, by_repeat)
        scores = {candidate: [0.6, 0.64] if candidate in (chosen, best) else [0.5, 0.5] for candidate in grid}
        if best != chosen:
            scores[best] = [0.63, 0.64]
        notes = _notes(choice, scores, [ignored] * bool(ignored), "one training image")
        return [_result(choice, 0.62, "balanced accuracy"), *notes]

    too_good = "The interval is a little too good, because the choice was made on the same images."
    assert words(default, 0.012, [default] * 3, default) == [
        "Chosen: logit adjustment τ 1, λ 0.3, with 62.0 % balanced accuracy on held-out images, 5.0 points better than "
        "plain softmax at its best λ, 0.3 (95 % interval 1.2 to 10.0).",
        "It is the default, and nothing else has a higher score.",
        too_good,
        "3 of 3 repeats of the folds choose it.",
    ]
    assert words(default, 0.012, [default] * 3, ends)[1] == (
        "logit adjustment τ 1.5, λ 1 has 63.5 %, but is not better than the default by one standard error. So the "
        "default is kept."
    )
    assert words(ends, -0.02, [default, ends, ends], plain, "owl") == [
        "Chosen: logit adjustment τ 1.5, λ 1, with 62.0 % balanced accuracy on held-out images; not shown to help: it "
        "is 5.0 points better than plain softmax at its best λ, 0.3, but this may be chance (95 % interval -2.0 to "
        "10.0).",
        "softmax, λ 0.3 has 63.5 %, but is not better than the default, logit adjustment τ 1, λ 0.3, by one standard "
        "error.",
        too_good,
        "2 of 3 repeats of the folds choose it; with other folds the choice is logit adjustment τ 1, λ 0.3.",
        "λ 1 is the largest of the grid: try larger ones too (--lambdas).",
        "tau 1.5 is the largest of the grid: try larger ones too (--taus).",
        "The choice ignores 'owl': a class of one training image is never held out.",
    ]
    assert words(plain, 0.0, [plain, default, ends], plain) == [
        "Chosen: softmax, λ 0.3, with 62.0 % balanced accuracy on held-out images; weighting is not shown to help.",
        "1 of 3 repeats of the folds choose it; with other folds the choice is logit adjustment τ 1, λ 0.3 or "
        "logit adjustment τ 1.5, λ 1.",
    ]
