import pytest
import torch
from own_metric import GeometricMean
from scipy.stats import gmean
from sklearn.metrics import recall_score


def test_it_is_scipys_mean_of_scikit_learns_recalls():
    probabilities, targets = torch.rand(200, 4), torch.arange(200) % 4
    metric = GeometricMean(num_classes=4)
    for start in (0, 150):  # in two batches of different sizes
        rows = slice(start, start + 150)
        metric.update(probabilities[rows], targets[rows])
    recalls = recall_score(targets, probabilities.argmax(1), average=None)
    assert metric.compute().item() == pytest.approx(gmean(recalls))


def test_a_class_without_a_correct_image_counts_as_the_floor():
    metric = GeometricMean(num_classes=2, floor=0.01)
    metric.update(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    assert metric.compute().item() == pytest.approx(0.1)
