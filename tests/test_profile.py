import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt_cb.data import class_counts_exponential, class_counts_step
from lt_cb.longtail import Subset

# Class counts of the long-tailed CIFARs from the code of Cui et al. 2019, and of its large data sets
PUBLISHED = json.loads(Path(__file__).with_name("class_counts.json").read_text())


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("cifar")])
def test_exponential_counts_equal_the_published_counts(name: str) -> None:
    num_classes, imbalance_factor = (int(part) for part in name.removeprefix("cifar").split("_lt_if"))
    counts = class_counts_exponential(50_000 // num_classes, num_classes, imbalance_factor)
    assert counts == PUBLISHED[name]
    assert all(type(count) is int for count in counts)


def test_totals_equal_the_papers() -> None:
    totals = {f: sum(class_counts_exponential(5000, 10, f)) for f in (200, 100, 50, 20, 10, 1)}
    assert totals == {200: 11203, 100: 12406, 50: 13996, 20: 17023, 10: 20431, 1: 50000}
    totals = {f: sum(class_counts_exponential(500, 100, f)) for f in (200, 100, 50, 20, 10, 1)}
    assert totals == {200: 9502, 100: 10847, 50: 12608, 20: 15907, 10: 19573, 1: 50000}


@given(st.integers(1, 10**6), st.integers(2, 300), st.integers(1, 1000))
def test_exponential_counts_decay_to_n_max_divided_by_the_factor(n_max: int, classes: int, factor: int) -> None:
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
def test_wrong_profile_arguments_raise(profile) -> None:
    with pytest.raises(ValueError, match=r"imbalance_factor is 0\.01, but must be at least 1"):
        profile(5000, 10, 0.01)
    with pytest.raises(ValueError, match="imbalance_factor is nan"):
        profile(5000, 10, float("nan"))
    with pytest.raises(ValueError, match="n_max is 0"):
        profile(0, 10, 10)
    with pytest.raises(ValueError, match="num_classes is 1"):
        profile(10, 1, 10)


def test_class_counts_of_a_subset() -> None:
    available, names = [50, 30, 40], ["a", "b", "c"]
    assert Subset().class_counts(available, names) == available
    assert Subset(10).class_counts(available, names) == class_counts_exponential(30, 3, 10)  # each class has 30
    assert Subset(2, "step", n_max=40).class_counts([50, 30, 40], names) == [40, 20, 20]
    assert Subset(counts=(1, 0, 40)).class_counts(available, names) == [1, 0, 40]


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "import lt_cb.longtail.profile",
        "from lt_cb.data import class_counts_exponential",
        "from lt_cb.data.sources.names import canonical_source",
    ],
)
def test_profiles_and_source_names_import_without_torch(statement: str) -> None:
    check = f"import sys; {statement}; assert not {{'torch', 'lightning'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)
