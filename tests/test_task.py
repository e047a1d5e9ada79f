"""One label and several labels an image."""

import subprocess
import sys

import pytest
import torch

from lt_cb.losses import FocalLoss, SoftmaxLoss
from lt_cb.module import LongTailedClassifier
from lt_cb.task import ONE_LABEL, SEVERAL_LABELS, Task

NAMES = ["cat", "dog", "eel"]


def test_importing_tasks_does_not_import_torch() -> None:
    program = "import sys, lt_cb.task; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def test_a_task_is_found_by_multi_label() -> None:
    assert (Task.of(False), Task.of(True)) == (ONE_LABEL, SEVERAL_LABELS)
    for task in (ONE_LABEL, SEVERAL_LABELS):
        assert task.means[task.measures[0]] == task.main_metric


def test_one_label_predicts_the_highest_scores() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0], [0.0, 5.0, 5.0]])
    probabilities = scores.softmax(1)
    predicted, confidence = ONE_LABEL.predict(scores, probabilities)
    assert predicted.tolist() == [1, 1]
    torch.testing.assert_close(confidence, probabilities[:, 1])
    ranked, values = ONE_LABEL.predict(scores, probabilities, top=2)
    assert ranked.tolist() == [[1, 2], [1, 2]]
    torch.testing.assert_close(values, probabilities[:, 1:])


def test_several_labels_are_predicted_from_their_thresholds_on() -> None:
    scores = torch.tensor([[0.0, -1.0, 2.0]])
    assert SEVERAL_LABELS.predict(scores, scores.sigmoid())[0].tolist() == [[True, False, True]]
    assert SEVERAL_LABELS.predict(scores, scores.sigmoid(), [0.5, -1.0, 2.5])[0].tolist() == [[False, True, False]]


def test_a_table_of_one_label_has_the_top_classes_and_all_probabilities() -> None:
    scores = torch.tensor([[0.2, 0.7, 0.1]])
    header, rows = ONE_LABEL.prediction_table([ONE_LABEL.predict(scores, scores)], NAMES, 1, False)
    assert (header, list(rows)) == (["class", "probability"], [["dog", "0.7"]])
    header, rows = ONE_LABEL.prediction_table([ONE_LABEL.predict(scores, scores, top=3)], NAMES, 2, True)
    assert header == ["class", "probability", "class_2", "probability_2", *NAMES]
    assert list(rows) == [["dog", "0.7", "cat", "0.2", "0.2", "0.7", "0.1"]]


def test_a_table_of_several_labels_has_the_predicted_labels() -> None:
    batch = torch.tensor([[True, False, True], [False] * 3]), torch.tensor([[0.6, 0.1, 0.9], [0.2, 0.3, 0.4]])
    header, rows = SEVERAL_LABELS.prediction_table([batch], NAMES, 1, False)
    assert (header, list(rows)) == (["classes", "probabilities"], [["eel;cat", "0.9;0.6"], ["", ""]])
    header, rows = SEVERAL_LABELS.prediction_table([batch], NAMES, 1, True)
    assert header == ["classes", "probabilities", *NAMES]
    assert next(rows) == ["eel;cat", "0.9;0.6", "0.6", "0.1", "0.9"]


def test_targets_losses_and_priors_must_fit_the_task() -> None:
    images = torch.zeros(2, 3, 8, 8)
    several = LongTailedClassifier(FocalLoss([5, 3]), "resnet20", multi_label=True)
    with pytest.raises(ValueError, match=r"shape \(2,\), but multi_label is True"):
        several.validation_step((images, torch.tensor([0, 1])), 0)
    single = LongTailedClassifier(SoftmaxLoss([5, 3]), "resnet20")
    with pytest.raises(ValueError, match=r"shape \(2, 2\), but multi_label is False"):
        single.validation_step((images, torch.tensor([[0, 1], [1, 1]])), 0)
    with pytest.raises(ValueError, match="SoftmaxLoss is for one label an image"):
        LongTailedClassifier(SoftmaxLoss([5, 3]), "resnet20", multi_label=True)
    with pytest.raises(ValueError, match="a prior is for classes that exclude each other"):
        several.set_prior(torch.ones(2))


def test_mixtures_of_unknown_labels_are_unknown() -> None:
    class Halves(torch.nn.Module):
        def forward(self, images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return (images + images.flip(0)) / 2, (targets + targets.flip(0)) / 2

    model = LongTailedClassifier(FocalLoss([5, 3, 2]), "resnet20", multi_label=True, mix=Halves())
    seen = []
    model.loss.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    targets = torch.tensor([[1, 0, -1], [1, 1, 0]], dtype=torch.int8)
    assert model.training_step((torch.zeros(2, 3, 8, 8, dtype=torch.uint8), targets), 0).isfinite()
    assert seen[0][:, :2].tolist() == [[1.0, 0.5], [1.0, 0.5]]
    assert seen[0][:, 2].isnan().all()
