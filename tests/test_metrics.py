import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    recall_score,
    roc_auc_score,
)

from lt_cb.metrics import PerClassAccuracy, PerLabelScores, accuracies, label_means, label_scores, shot_groups


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


@st.composite
def several(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Logits, with ties where rounded, and targets of 1, 0 and -1, both of shape (N, C)."""
    images, classes = draw(st.integers(1, 60)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = np.round(rng.normal(0, 3, (images, classes)), draw(st.integers(0, 6))).astype(np.float32)
    targets = (rng.random((images, classes)) < draw(st.floats(0.0, 1.0))).astype(np.int8)
    targets[rng.random((images, classes)) < draw(st.floats(0.0, 0.7))] = -1
    return logits, targets


@given(several())
@settings(deadline=None, max_examples=50)
def test_several_labels_against_scikit_learn(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    logits, targets = drawn
    classes = logits.shape[1]
    scores = label_scores(torch.tensor(logits), torch.tensor(targets), [0.0] * classes)
    f1, known = {}, targets >= 0
    for c in range(classes):
        z, t = logits[known[:, c], c], targets[known[:, c], c]
        assert (scores.positives[c], scores.known[c]) == (t.sum(), len(t))
        if not t.sum():
            assert np.isnan([scores.average_precision[c], scores.auroc[c], scores.f1[c]]).all()
            continue
        assert scores.average_precision[c] == pytest.approx(average_precision_score(t, z), abs=1e-12)
        f1[c] = f1_score(t, z >= 0, zero_division=0)
        assert scores.f1[c] == pytest.approx(f1[c], abs=1e-12)
        if t.all():
            assert np.isnan(scores.auroc[c])
        else:
            assert scores.auroc[c] == pytest.approx(roc_auc_score(t, z), abs=1e-12)
        best = max(f1_score(t, z >= level) for level in z)
        assert f1_score(t, z >= scores.best_thresholds[c]) == pytest.approx(best, abs=1e-12)
    if (targets[known] == 1).any() or (logits[known] >= 0).any():
        micro = f1_score(targets[known], logits[known] >= 0, zero_division=0)
        assert scores.f1_micro == pytest.approx(micro, abs=1e-12)
    means = label_means(scores, {"many": [0], "few": [1]})
    assert means["f1_macro"].item() == pytest.approx(np.mean(list(f1.values())) if f1 else np.nan, nan_ok=True)
    assert means["mAP/few"].item() == pytest.approx(scores.average_precision[1], nan_ok=True)


@given(several(), st.data())
@settings(deadline=None, max_examples=50)
def test_an_unknown_label_changes_its_own_class_alone(
    drawn: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    logits, targets = drawn
    row, column = (data.draw(st.integers(0, size - 1)) for size in targets.shape)
    changed, hidden = logits.copy(), targets.copy()
    hidden[row, column] = -1
    changed[row, column] = data.draw(st.floats(-100, 100, width=32))
    drawn_thrice = (logits, targets), (logits, hidden), (changed, hidden)
    before, after, again = (label_scores(torch.tensor(z), torch.tensor(t)) for z, t in drawn_thrice)
    for name in ("average_precision", "auroc", "f1", "best_thresholds", "positives", "known"):
        others = np.arange(targets.shape[1]) != column
        np.testing.assert_array_equal(getattr(before, name)[others], getattr(after, name)[others])
        np.testing.assert_array_equal(getattr(after, name), getattr(again, name))


def test_a_class_of_no_numbers_has_no_scores() -> None:
    logits = torch.tensor([[torch.nan, 1.0], [2.0, -1.0], [0.0, 3.0]])
    scores = label_scores(logits, torch.tensor([[1, 1], [0, 0], [1, -1]]))
    for values in (scores.average_precision, scores.auroc, scores.f1):
        assert np.isnan(values).tolist() == [True, False]
    assert np.isfinite(scores.best_thresholds).all()


def test_scores_of_several_labels_are_gathered_in_batches() -> None:
    logits, targets = torch.randn(50, 3), torch.randint(-1, 2, (50, 3), dtype=torch.int8)
    metric = PerLabelScores()
    for start in range(0, 50, 8):
        metric.update(logits[start : start + 8].bfloat16(), targets[start : start + 8])
    kept, labels = metric.compute()
    assert kept.dtype == torch.float32
    assert torch.equal(kept, logits.bfloat16().float())
    assert torch.equal(labels, targets)
