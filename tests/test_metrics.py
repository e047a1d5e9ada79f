import warnings

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
    top_k_accuracy_score,
)

from lt_cb.metrics import Evaluator, auroc, average_precision, best_thresholds, shot_groups
from lt_cb.task import ONE_LABEL, SEVERAL_LABELS


def evaluated(evaluator: Evaluator, scores: np.ndarray, targets: np.ndarray) -> Evaluator:
    """Return an evaluator after batches of 7 images."""
    for start in range(0, len(scores), 7):
        evaluator.update(torch.tensor(scores[start : start + 7]), torch.tensor(targets[start : start + 7]))
    return evaluator


@given(st.integers(2, 120), st.integers(1, 200), st.integers(0, 2**32))
@settings(deadline=None, max_examples=30)
def test_one_label_agrees_with_scikit_learn(classes: int, samples: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets, scores = rng.integers(0, classes, samples), rng.normal(size=(samples, classes))
    predictions, counts = scores.argmax(1), rng.integers(0, 200, classes).tolist()
    results = evaluated(ONE_LABEL.evaluator(classes, shot_groups(counts)), scores, targets).compute()
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (targets, predictions), 1)
    assert results.confusion == (confusion.tolist() if classes <= 100 else None)
    assert results.per_class["total"] == confusion.sum(1).tolist()
    assert results.per_class["correct"] == confusion.diagonal().tolist()
    assert results.per_class["images"] == samples
    present = np.unique(targets)
    recalls = dict(zip(present, recall_score(targets, predictions, labels=present, average=None), strict=True))
    expected = [recalls.get(c, np.nan) for c in range(classes)]
    np.testing.assert_allclose(results.per_class["accuracy"], expected)
    metrics = {name: value.item() for name, value in results.metrics.items()}
    assert metrics["acc"] == pytest.approx(accuracy_score(targets, predictions))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert metrics["balanced_acc"] == pytest.approx(balanced_accuracy_score(targets, predictions))
    for name, belongs in (("many", lambda n: n > 100), ("medium", lambda n: 20 <= n <= 100), ("few", lambda n: n < 20)):
        members = [recalls[c] for c in present if belongs(counts[c])]
        if members:
            assert metrics[f"acc/{name}"] == pytest.approx(np.mean(members))
    if classes > 10:
        top5 = top_k_accuracy_score(targets, scores, k=5, labels=range(classes))
        assert metrics["acc_top5"] == pytest.approx(top5, abs=1e-6)


def test_shot_groups_have_thresholds_and_are_never_empty() -> None:
    assert shot_groups([101, 100, 20, 19]) == {"many": [0], "medium": [1, 2], "few": [3]}
    assert shot_groups([500, 400]) == {"many": [0, 1]}
    assert shot_groups([10, 4, 1], few=2, many=5) == {"many": [0], "medium": [1], "few": [2]}


@st.composite
def several(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Draw scores, with ties and large values, and targets of 1, 0 and -1, both of shape (N, C)."""
    images, classes = draw(st.integers(1, 60)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scores = np.round(rng.normal(0, draw(st.sampled_from([3, 300])), (images, classes)), draw(st.integers(0, 6)))
    targets = (rng.random((images, classes)) < draw(st.floats(0.0, 1.0))).astype(np.int8)
    targets[rng.random((images, classes)) < draw(st.floats(0.0, 0.7))] = -1
    return scores.astype(np.float32), targets


@given(several())
@settings(deadline=None, max_examples=30)
def test_several_labels_agree_with_scikit_learn(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    scores, targets = drawn
    classes, known = scores.shape[1], targets >= 0
    evaluator = SEVERAL_LABELS.evaluator(classes, {"many": [0], "few": [classes - 1]})
    evaluator.thresholds = [0.0] * classes
    results = evaluated(evaluator, scores, targets).compute()
    metrics = {name: value.item() for name, value in results.metrics.items()}
    chosen = best_thresholds(*map(torch.tensor, drawn))
    assert results.per_class["total"] == (targets == 1).sum(0).tolist()
    assert results.per_class["known"] == known.sum(0).tolist()
    assert results.per_class["images"] == len(scores)
    expected: dict[str, list[float]] = {"average_precision": [], "auroc": [], "f1": []}
    for c in range(classes):
        z, t = scores[known[:, c], c], targets[known[:, c], c]
        expected["average_precision"].append(average_precision_score(t, z) if t.any() and not t.all() else np.nan)
        expected["auroc"].append(roc_auc_score(t, z) if t.any() and not t.all() else np.nan)
        expected["f1"].append(f1_score(t, z >= 0, zero_division=0) if t.any() else np.nan)
        if t.any():
            best = max(f1_score(t, z >= level) for level in z)
            assert f1_score(t, z >= chosen[c].item()) == pytest.approx(best, abs=1e-12)
    for measure, values in expected.items():
        np.testing.assert_allclose(results.per_class[measure], values, rtol=0, atol=5e-7)
        present = [value for value in values if not np.isnan(value)]
        mean = np.mean(present) if present else np.nan
        assert metrics[SEVERAL_LABELS.means[measure]] == pytest.approx(mean, abs=1e-6, nan_ok=True)
        assert metrics[f"{SEVERAL_LABELS.means[measure]}/few"] == pytest.approx(values[-1], abs=1e-6, nan_ok=True)
    if (targets[known] == 1).any() or (scores[known] >= 0).any():
        micro = f1_score(targets[known], scores[known] >= 0, zero_division=0)
        assert metrics["f1_micro"] == pytest.approx(micro, abs=1e-6)
    else:
        assert np.isnan(metrics["f1_micro"])


@given(several(), st.data())
@settings(deadline=None, max_examples=30)
def test_scores_of_unknown_labels_do_not_count(drawn: tuple[np.ndarray, np.ndarray], data: st.DataObject) -> None:
    scores, hidden = drawn
    row, column = (data.draw(st.integers(0, size - 1)) for size in hidden.shape)
    hidden[row, column] = -1
    changed = scores.copy()
    changed[row, column] = data.draw(st.sampled_from([-100.0, 0.0, 100.0, np.nan]))
    for measure in (average_precision, auroc, best_thresholds):
        before, after = (measure(torch.tensor(z), torch.tensor(hidden)) for z in (scores, changed))
        torch.testing.assert_close(before, after, rtol=0, atol=0, equal_nan=True)


def test_a_threshold_lies_halfway_between_the_scores() -> None:
    scores, targets = torch.tensor([[3.0], [2.0], [1.0], [-1.0]]), torch.tensor([[1], [1], [0], [0]])
    assert best_thresholds(scores, targets).tolist() == [1.5]
    neighbours = torch.tensor([[1.0], [np.nextafter(np.float32(1), np.float32(2))]])
    assert best_thresholds(neighbours, torch.tensor([[0], [1]])).tolist() == [neighbours[1].item()]


def test_nan_scores_give_nan_and_no_threshold() -> None:
    scores = torch.tensor([[torch.nan, 1.0], [2.0, -1.0], [0.0, 3.0]])
    targets = torch.tensor([[1, 1], [0, 0], [1, -1]])
    evaluator = SEVERAL_LABELS.evaluator(2, {})
    evaluator.update(scores, targets)
    results = evaluator.compute()
    for measure in SEVERAL_LABELS.measures:
        assert np.isnan(results.per_class[measure]).tolist() == [True, False]
    assert results.thresholds == best_thresholds(scores, targets).tolist()
    assert results.thresholds[0] == 0.0


def test_undefined_labels_give_no_warnings() -> None:
    scores, targets = torch.randn(4, 3), torch.tensor([[0, 1, -1]] * 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert average_precision(scores, targets).isnan().all()
        assert auroc(scores, targets).isnan().all()


def test_bfloat16_scores_of_all_batches_are_ranked_together() -> None:
    scores, targets = torch.randn(50, 3).bfloat16(), torch.randint(-1, 2, (50, 3), dtype=torch.int8)
    evaluator = SEVERAL_LABELS.evaluator(3, {})
    for start in range(0, 50, 8):
        evaluator.update(scores[start : start + 8], targets[start : start + 8])
    expected = average_precision(scores.float(), targets)
    assert evaluator.compute().per_class["average_precision"] == expected.tolist()


def test_average_precision_is_at_most_one() -> None:
    targets = torch.tensor([0] * 6 + [1] * 12)  # torchmetrics sums float32 to 1.0000001
    assert average_precision(torch.arange(18.0)[:, None], targets[:, None]).item() == 1.0
