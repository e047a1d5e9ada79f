import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt_cb.data import class_counts_exponential, class_counts_step
from lt_cb.longtail.profile import counts_of_subset

# The class counts of the long-tailed CIFARs, as the code of Cui et al. 2019 makes them, and of its large data sets
PUBLISHED = json.loads(Path(__file__).with_name("class_counts.json").read_text())


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("cifar")])
def test_exponential_counts_are_the_published_ones(name: str) -> None:
    num_classes, imbalance_factor = (int(part) for part in name.removeprefix("cifar").split("_lt_if"))
    counts = class_counts_exponential(50_000 // num_classes, num_classes, imbalance_factor)
    assert counts == PUBLISHED[name]
    assert all(type(count) is int for count in counts)


def test_totals_of_the_paper() -> None:
    totals = {f: sum(class_counts_exponential(5000, 10, f)) for f in (200, 100, 50, 20, 10, 1)}
    assert totals == {200: 11203, 100: 12406, 50: 13996, 20: 17023, 10: 20431, 1: 50000}
    totals = {f: sum(class_counts_exponential(500, 100, f)) for f in (200, 100, 50, 20, 10, 1)}
    assert totals == {200: 9502, 100: 10847, 50: 12608, 20: 15907, 10: 19573, 1: 50000}


@given(st.integers(1, 10**6), st.integers(2, 300), st.integers(1, 1000))
def test_exponential_counts_decay_from_n_max_to_n_max_over_the_factor(n_max: int, classes: int, factor: int) -> None:
    counts = class_counts_exponential(n_max, classes, factor)
    assert len(counts) == classes
    assert counts[0] == n_max
    assert counts[-1] == n_max // factor
    assert counts == sorted(counts, reverse=True)
    assert class_counts_exponential(n_max, classes, factor + 1)[-1] <= counts[-1]


def test_step_counts() -> None:
    assert class_counts_step(5000, 10, 100) == [5000] * 5 + [50] * 5
    assert class_counts_step(90, 5, 10) == [90, 90, 9, 9, 9]


@pytest.mark.parametrize("profile", [class_counts_exponential, class_counts_step])
def test_impossible_profiles_are_refused(profile) -> None:
    with pytest.raises(ValueError, match=r"imbalance_factor is 0\.01, but must be at least 1"):
        profile(5000, 10, 0.01)
    with pytest.raises(ValueError, match="imbalance_factor is nan"):
        profile(5000, 10, float("nan"))
    with pytest.raises(ValueError, match="n_max is 0"):
        profile(0, 10, 10)
    with pytest.raises(ValueError, match="num_classes is 1"):
        profile(10, 1, 10)


def test_counts_of_a_subset() -> None:
    available, names = [50, 30, 40], ["a", "b", "c"]
    assert counts_of_subset(available, names) == available
    assert counts_of_subset(available, names, 10) == class_counts_exponential(30, 3, 10)  # all have 30
    assert counts_of_subset(available, names, 2, "step", n_max=40) == [40, 20, 20]
    assert counts_of_subset(available, names, explicit=[1, 0, 40]) == [1, 0, 40]
