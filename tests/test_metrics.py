import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

from lt_cb.metrics import PerClassAccuracy, accuracies, shot_groups


@given(st.integers(2, 30), st.integers(1, 200), st.integers(0, 2**32))
@settings(deadline=None, max_examples=50)
def test_against_scikit_learn(classes: int, samples: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets, predictions = rng.integers(0, classes, (2, samples))
    counts = rng.integers(0, 200, classes).tolist()
    metric = PerClassAccuracy(classes)
    for start in range(0, samples, 7):
        metric.update(torch.tensor(predictions[start : start + 7]), torch.tensor(targets[start : start + 7]))
    correct, total, confusion = metric.compute()
    expected = np.zeros((classes, classes), int)
    np.add.at(expected, (targets, predictions), 1)
    assert (None if confusion is None else confusion.tolist()) == (expected.tolist() if classes <= 20 else None)
    assert total.tolist() == np.bincount(targets, minlength=classes).tolist()
    results = accuracies(correct, total, shot_groups(counts))
    present = np.unique(targets)
    recalls = dict(zip(present, recall_score(targets, predictions, labels=present, average=None), strict=True))
    assert results["acc"].item() == pytest.approx(accuracy_score(targets, predictions))
    assert results["balanced_acc"].item() == pytest.approx(np.mean(list(recalls.values())))
    with np.errstate(all="ignore"):
        balanced = balanced_accuracy_score(targets, predictions)
    assert results["balanced_acc"].item() == pytest.approx(balanced)
    for name, test in (("many", lambda n: n > 100), ("medium", lambda n: 20 <= n <= 100), ("few", lambda n: n < 20)):
        members = [recalls[c] for c in present if test(counts[c])]
        if members:
            assert results[f"acc/{name}"].item() == pytest.approx(np.mean(members))


def test_shot_groups_have_settable_thresholds_and_no_empty_group() -> None:
    assert shot_groups([101, 100, 20, 19]) == {"many": [0], "medium": [1, 2], "few": [3]}
    assert shot_groups([500, 400]) == {"many": [0, 1]}
    assert shot_groups([10, 4, 1], few=2, many=5) == {"many": [0], "medium": [1], "few": [2]}
