"""Tasks: one label or several labels an image. Importing this module does not import torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lt_cb.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from lt_cb.losses import Loss
    from lt_cb.metrics import Evaluator

LABEL_SEPARATOR = ";"  # between the labels of one image in a table of predictions


class Task(ABC):
    """Names, rules and metrics that depend on how many labels an image has."""

    multi_label: bool  #: whether an image has any number of labels; name of this option in configurations and results
    main_metric: str  #: metric that selects checkpoints and recipes, logged as ``val/NAME`` and ``test/NAME``
    measures: tuple[str, ...]  #: scores of each class, the main one first; ``per_class_NAME`` in ``result.json``
    means: Mapping[str, str]  #: name of the metric that averages a measure over the classes, by measure
    group_metric: str  #: metric that is also logged by shot group, as ``NAME/many``, ``NAME/medium`` and ``NAME/few``
    unit: str  #: unit of a class count
    plain_loss: str  #: class path of the default loss of ``fit``, which has no class weights

    @staticmethod
    def of(multi_label: bool) -> Task:
        """Return the task for data with one label (False) or several labels (True) an image."""
        return SEVERAL_LABELS if multi_label else ONE_LABEL

    def check_targets(self, targets: Tensor) -> None:
        """Raise InputError for targets of another shape than (B,), or (B, C) with several labels an image."""
        if (targets.ndim == 2) != self.multi_label:
            raise InputError(
                f"the targets have shape {tuple(targets.shape)}, but multi_label is {self.multi_label}: pass class "
                "indices of shape (B,), or set multi_label=True and pass targets of shape (B, C)."
            )

    def check_loss(self, loss: Loss) -> None:
        """Raise InputError for a loss that cannot train this task."""
        if self.multi_label and not loss.multi_label:
            raise InputError(
                f"{type(loss).__name__} is for one label an image, but these data have several: set --model.loss "
                "SigmoidLoss, FocalLoss, AsymmetricLoss or DistributionBalancedLoss."
            )

    def check_prior(self) -> None:
        """Raise InputError if the classes share no prior, since an image may have several labels."""
        if self.multi_label:
            raise InputError(
                "a prior is for classes that exclude each other, but these data have several labels an image: leave "
                "it out; the thresholds say how often a label is predicted."
            )

    @abstractmethod
    def one_hot(self, targets: Tensor, num_classes: int) -> Tensor:
        """Return targets as float32 of shape (B, C), for mixing images; unknown labels become NaN."""

    def evaluator(self, num_classes: int, groups: dict[str, list[int]]) -> Evaluator:
        """Return new metrics for C classes and the class indices of shot groups (`lt_cb.metrics.shot_groups`)."""
        from lt_cb.metrics import OneLabelEvaluator, SeveralLabelsEvaluator

        if self.multi_label:
            return SeveralLabelsEvaluator(num_classes, groups, self.means)
        return OneLabelEvaluator(num_classes, groups)

    @abstractmethod
    def predict(
        self, scores: Tensor, probabilities: Tensor, thresholds: Sequence[float] | None = None, top: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return predictions for a batch.

        Args:
            scores: shape (B, C); with one label an image, their arg-max is the predicted class.
            probabilities: shape (B, C).
            thresholds: C scores, with several labels an image: a label is predicted from its threshold on. None is 0.
            top: number of classes to return, with one label an image.

        Returns:
            With one label an image, class indices and probabilities, both of shape (B,); with ``top``, both of shape
            (B, top), by descending score. With several labels, predicted labels, bool, and probabilities, both (B, C).
        """

    @abstractmethod
    def prediction_table(
        self, batches: Iterable[tuple[Tensor, Tensor]], class_names: Sequence[str], top: int, all_probabilities: bool
    ) -> tuple[list[str], Iterator[list[str]]]:
        """Return header and rows of a table of predictions, one row for each image, without its file name.

        Args:
            batches: pairs of tensors from `predict`.
            class_names: C names.
            top: number of classes in a row, with one label an image.
            all_probabilities: add a probability for each class. OneLabel then needs batches from `predict` with
                ``top=C``.
        """


class OneLabel(Task):
    """Each image has exactly one label: metrics are accuracies, and the arg-max is predicted."""

    multi_label = False
    main_metric = "balanced_acc"
    measures = ("accuracy",)
    means = {"accuracy": "balanced_acc"}
    group_metric = "acc"
    unit = "image"
    plain_loss = "lt_cb.losses.SoftmaxLoss"

    def one_hot(self, targets: Tensor, num_classes: int) -> Tensor:
        """Return one-hot targets, float32 of shape (B, C), for class indices of shape (B,)."""
        from torch.nn import functional as F

        return F.one_hot(targets, num_classes).float()

    def predict(
        self, scores: Tensor, probabilities: Tensor, thresholds: Sequence[float] | None = None, top: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the classes of the highest scores and their probabilities; equal scores by class index."""
        if top is None:
            predicted = scores.argmax(1, keepdim=True)
            return predicted.squeeze(1), probabilities.gather(1, predicted).squeeze(1)
        ranked = scores.sort(dim=1, descending=True, stable=True).indices[:, :top]
        return ranked, probabilities.gather(1, ranked)

    def prediction_table(
        self, batches: Iterable[tuple[Tensor, Tensor]], class_names: Sequence[str], top: int, all_probabilities: bool
    ) -> tuple[list[str], Iterator[list[str]]]:
        """Return columns ``class``, ``probability``, ``class_2``, ..., and a column a class for all probabilities."""
        header = ["class", "probability"]
        header += [f"{column}_{place}" for place in range(2, top + 1) for column in ("class", "probability")]
        header += class_names if all_probabilities else ()

        def row(labels: list[int], values: list[float]) -> list[str]:
            pairs = list(zip(labels, values, strict=True))
            cells = [cell for label, value in pairs[:top] for cell in (class_names[label], f"{value:.6g}")]
            return cells + [f"{value:.6g}" for _, value in sorted(pairs) if all_probabilities]

        images = (zip(*(v.view(len(v), -1).tolist() for v in batch), strict=True) for batch in batches)
        return header, (row(labels, values) for batch in images for labels, values in batch)


class SeveralLabels(Task):
    """Each image has any number of labels, also none: each label is scored and predicted on its own."""

    multi_label = True
    main_metric = "mAP"
    measures = ("average_precision", "auroc", "f1")
    means = {"average_precision": "mAP", "auroc": "auroc", "f1": "f1_macro"}
    group_metric = "mAP"
    unit = "label"
    plain_loss = "lt_cb.losses.SigmoidLoss"

    def one_hot(self, targets: Tensor, num_classes: int) -> Tensor:
        """Return targets as float32, shape (B, C). Unknown labels (-1) become NaN, so that mixtures stay unknown."""
        return targets.float().masked_fill(targets < 0, float("nan"))

    def predict(
        self, scores: Tensor, probabilities: Tensor, thresholds: Sequence[float] | None = None, top: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the labels whose scores reach their thresholds, bool, and all probabilities, both (B, C)."""
        return scores >= scores.new_tensor(thresholds or [0.0] * scores.shape[1]), probabilities

    def prediction_table(
        self, batches: Iterable[tuple[Tensor, Tensor]], class_names: Sequence[str], top: int, all_probabilities: bool
    ) -> tuple[list[str], Iterator[list[str]]]:
        """Return columns ``classes`` and ``probabilities``, highest first, and a column a class for all of them."""
        header = ["classes", "probabilities", *(class_names if all_probabilities else ())]

        def row(predicted: list[bool], values: list[float]) -> list[str]:
            labels = sorted((label for label, on in enumerate(predicted) if on), key=lambda label: -values[label])
            cells = [class_names[label] for label in labels], [f"{values[label]:.6g}" for label in labels]
            return [*map(LABEL_SEPARATOR.join, cells), *(f"{value:.6g}" for value in values if all_probabilities)]

        return header, (row(p, v) for on, values in batches for p, v in zip(on.tolist(), values.tolist(), strict=True))


ONE_LABEL = OneLabel()
SEVERAL_LABELS = SeveralLabels()
