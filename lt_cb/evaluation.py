"""What a network says of images, how that is measured in validation and test, and what it predicts."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lt_cb.errors import InputError
from lt_cb.losses import Loss
from lt_cb.metrics import Mean, PerClassAccuracy, PerLabelScores, accuracies, label_means, label_scores

Batch = tuple[Tensor, Tensor]
MetricFactory = Callable[[int], Metric]
CONFUSION = 100  # most classes whose confusion matrix is counted, of which W&B shows it


class EvaluatedModule(LightningModule):
    """The part of `lt_cb.module.LongTailedClassifier` behind its logits: scores, metrics, thresholds, predictions.

    Attributes:
        loss: what is minimised.
        num_classes: C.
        groups: class indices by shot group.
        multi_label: whether an image may have several labels, or none.
        prior: share of each class that is predicted for; None is what the loss assumes.
        thresholds: of several labels, logits from which on each is predicted; None is 0 each.
        top: classes that ``predict_step`` returns.
        per_class: what was counted and measured of each class in the last validation or test.
        confusion: images by true, then predicted class, of few classes that exclude each other.
    """

    loss: Loss
    num_classes: int
    groups: dict[str, list[int]]
    multi_label: bool
    prior_shift: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.prior: list[float] | None = None
        self.thresholds: list[float] | None = None
        self.top: int | None = None
        self.per_class: dict[str, Any] = {}
        self.confusion: list[list[int]] | None = None
        self.register_buffer("prior_shift", None, persistent=False)

    def configure_metrics(self, metrics: list[MetricFactory]) -> None:
        """Make what is counted in training and evaluation."""
        self.train_loss = Mean()
        self.eval_loss = Mean()
        self.eval_top5 = Mean() if self.num_classes > 10 and not self.multi_label else None
        self.eval_classes = None if self.multi_label else PerClassAccuracy(self.num_classes, CONFUSION)
        self.eval_labels = PerLabelScores() if self.multi_label else None
        made = [make(self.num_classes) for make in metrics]
        self.eval_metrics = MetricCollection(made) if made else None

    def set_prior(self, prior: Tensor) -> None:
        """Evaluate and predict as for images of another class prior than the loss assumes (`Loss.log_posterior`).

        ``loss`` and saved logits stay as they are.

        Args:
            prior: share of each class, floating of shape (C,), at least 0, not all 0; a class of 0 is never predicted.

        Raises:
            InputError: if the loss assumes none, or an image may have several labels.
        """
        if self.multi_label:
            raise InputError(
                "a prior is for classes that exclude each other, but these data have several labels an image: leave "
                "it out; the thresholds say how often a label is predicted."
            )
        prior = prior.double() / prior.double().sum()
        self.prior_shift = (prior.log() - self.loss.assumed_prior().log()).float()
        self.prior = prior.tolist()

    def scores(self, logits: Tensor) -> Tensor:
        """Return that whose arg-max is the predicted class, (B, C), of raw logits."""
        shift = self.prior_shift
        return self.loss.adjust(logits) if shift is None else self.loss.log_posterior(logits) + shift

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return class probabilities, (B, C), of raw logits."""
        return self.loss.probabilities(logits) if self.prior_shift is None else self.scores(logits).softmax(1)

    def _evaluate(self, batch: Batch) -> dict[str, Tensor]:
        images, targets = batch
        if (targets.ndim == 2) != self.multi_label:
            raise InputError(
                f"the targets have shape {tuple(targets.shape)}, but multi_label is {self.multi_label}: give the model "
                "class indices of shape (B,), or multi_label=True and targets of shape (B, C)."
            )
        logits: Tensor = self(images).float()
        self.eval_loss.update(self.loss(logits, targets), len(images))
        scores = self.scores(logits)
        if self.eval_labels is not None:
            self.eval_labels.update(scores, targets)
        if self.eval_classes is not None:
            self.eval_classes.update(scores.argmax(1), targets)
        if self.eval_top5 is not None:
            self.eval_top5.update((scores.topk(5).indices == targets[:, None]).any(1).float().mean(), len(images))
        if self.eval_metrics is not None:
            self.eval_metrics.update(self.probabilities(logits), targets)
        return {"logits": logits, "targets": targets}

    def _log_results(self, stage: str) -> None:
        results = self._class_results(stage) | {"loss": self.eval_loss.compute()}
        if self.eval_top5 is not None:
            results["acc_top5"] = self.eval_top5.compute()
        if self.eval_metrics is not None:
            further = self.eval_metrics.compute()
            for name, value in further.items():
                if value.numel() != 1:
                    raise InputError(f"metric {name} has {value.numel()} values, but must have one: set its average.")
            results |= further
        self.log_dict({f"{stage}/{name}": value for name, value in results.items()}, sync_dist=True)
        for metric in (self.eval_classes, self.eval_labels, self.eval_loss, self.eval_top5, self.eval_metrics):
            if metric is not None:
                metric.reset()

    def _class_results(self, stage: str) -> dict[str, Tensor]:
        """Return the means over classes, and keep what each class has in ``per_class``."""
        if self.eval_classes is not None:
            correct, total, confusion = self.eval_classes.compute()
            self.per_class = {"correct": correct.tolist(), "total": total.tolist()}
            self.confusion = None if confusion is None else confusion.tolist()
            return accuracies(correct, total, self.groups)
        assert self.eval_labels is not None
        logits, targets = self.eval_labels.compute()
        chooses = stage == "val" and self._chooses_thresholds()
        scores = label_scores(logits, targets, None if chooses else self.thresholds or [0.0] * self.num_classes)
        if chooses:
            self.thresholds = scores.best_thresholds.tolist()
        named = {"total": scores.positives, "known": scores.known, "auroc": scores.auroc, "f1": scores.f1}
        named["average_precision"] = scores.average_precision
        self.per_class = {name: values.tolist() for name, values in named.items()} | {"images": len(targets)}
        self.confusion = None
        return {name: value.to(self.device) for name, value in label_means(scores, self.groups).items()}

    @property
    def threshold_probabilities(self) -> list[float] | None:
        """Probabilities from which on each of several labels is predicted, C numbers; None is 0.5 each."""
        return (
            None if self.thresholds is None else torch.tensor(self.thresholds, dtype=torch.float64).sigmoid().tolist()
        )

    def _chooses_thresholds(self) -> bool:
        """Whether a validation is one of a training, and its images are not the test's."""
        data = getattr(self.trainer, "datamodule", None)
        held_out = getattr(data, "validation_split", "val") != "test"
        return held_out and self.trainer.state.fn == "fit" and not self.trainer.sanity_checking

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Count a batch; return ``logits``, (B, C), and ``targets`` for callbacks."""
        return self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/...``."""
        self._log_results("val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Count a batch; return ``logits``, (B, C), and ``targets`` for callbacks."""
        return self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        """Log ``test/...`` and keep what was counted of each class in ``per_class``.

        Raises:
            InputError: if the network gives no numbers.
        """
        if self.eval_loss.compute().isnan():
            raise InputError(
                "test/loss is nan: the weights are damaged, or of a training that diverged. Test another checkpoint."
            )
        self._log_results("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Return predicted class index and its probability, both of shape (B,).

        With ``top`` set, the so many classes of the highest scores in descending order, and their probabilities, both
        of shape (B, top). Of several labels an image, which ones are predicted, bool, and the probabilities of all,
        both of shape (B, C).
        """
        logits = self(batch[0]).float()
        scores, probabilities = self.scores(logits), self.probabilities(logits)
        if self.multi_label:
            return scores >= scores.new_tensor(self.thresholds or [0.0] * self.num_classes), probabilities
        predicted = scores.argmax(1, keepdim=True)
        if self.top is None:
            return predicted.squeeze(1), probabilities.gather(1, predicted).squeeze(1)
        first = scores.scatter(1, predicted, torch.inf)  # of equal ones, that which is predicted
        ranked = first.sort(dim=1, descending=True, stable=True).indices[:, : self.top]
        return ranked, probabilities.gather(1, ranked)
