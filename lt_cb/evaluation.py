"""Evaluation: checks of images, scores, metrics, thresholds and predictions."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lt_cb.errors import InputError
from lt_cb.losses import Loss
from lt_cb.losses.prior import assumed_prior, balanced_posterior, divide_by_prior, log_posterior, log_prior_of
from lt_cb.metrics import Mean
from lt_cb.models import last_linear
from lt_cb.runs import checkpoint as checkpoints
from lt_cb.say import warn
from lt_cb.sets import TEST_LEVEL, HeldOutScores, SetCoverage, prediction_sets, thresholds
from lt_cb.task import Task
from lt_cb.unknown import Familiarity

Batch = tuple[Tensor, Tensor]
MetricFactory = Callable[[int], Metric]


class EvaluatedModule(LightningModule):
    """Base class of `lt_cb.module.LongTailedClassifier`: validation, test and prediction."""

    loss: Loss  #: training loss
    backbone: nn.Module  #: network, images -> logits
    num_classes: int  #: C, the number of classes
    groups: dict[str, list[int]]  #: class indices by shot group
    class_names: list[str]  #: name of each class
    averaged: Sequence[str] = ()  #: checkpoints of `lt_cb.average.Average`
    task: Task  #: one label or several labels an image
    multi_label: bool  #: whether an image may have several labels, or none
    mean: Tensor  #: mean pixel of each channel, from 0 to 255
    std: Tensor  #: standard deviation of the pixels of each channel
    prior: list[float] | None = None  #: share of each class to predict for; None is the share that the loss assumes
    prior_shift: Tensor | None
    #: C scores from which on a label is predicted, with several labels an image; None is 0
    thresholds: list[float] | None = None
    #: sorted scores of the held-out images of each class (`lt_cb.sets.held_out_scores`), with one label an image
    set_scores: list[Tensor] | None = None
    _limits: tuple[list[Tensor], float, Tensor] | None = None  # scores, level, and their thresholds, for all batches
    _log_prior: Tensor | None = None  # logarithm of the loss's prior, during a validation
    _chooses = False  # whether this is a validation, on held-out images, that sets thresholds or prediction sets
    familiarity: Familiarity | None = None  #: how familiar images of the known classes look, by ``recommend``
    #: how ``recommend`` solved the head: its L2 strength, its temperature, and the digests of the images that trained
    #: the backbone before; None for any other head
    head: dict[str, Any] | None = None
    says_unknown = False  #: whether ``predict_step`` returns how unfamiliar an image looks
    set_level: float | None = None  #: promised coverage of the sets that ``predict_step`` returns; None returns none
    #: whether the validation images are the test images, so that they must not choose thresholds, nor calibrate sets;
    #: `lt_cb.data.LongTailedDataModule` sets it, set it yourself if you pass loaders to a Trainer
    validates_on_test = False
    top: int | None = None  #: number of classes that ``predict_step`` returns, with one label an image
    per_class: dict[str, Any]  #: values of each class in the last validation or test, see `lt_cb.metrics.Evaluation`
    #: images by true, then predicted class, for at most 100 classes and one label an image
    confusion: list[list[int]] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("prior_shift", None, persistent=False)
        self.per_class, self._checked_images = {}, False

    def setup(self, stage: str) -> None:
        """Check the images of each stage anew."""
        self._checked_images = False

    def check_images(self, images: Tensor) -> None:
        """Check the first floating images of a stage; warn if they are not normalised, raise if they are not finite."""
        if self._checked_images or images.ndim == 2 or not images.is_floating_point():
            return
        self._checked_images = True
        low, high = images.min().item(), images.max().item()
        if not math.isfinite(high - low):
            raise InputError("the images are not finite: look for NaN and infinity where they are read or normalised.")
        black, white = (-self.mean / self.std).min().item(), ((255 - self.mean) / self.std).max().item()
        slack = (white - black) / 4
        if low < black - slack or high > white + slack or (low >= 0 and high <= 1 and black < -slack):
            warn(
                f"The images are floating, from {low:.3g} to {high:.3g}, and count as normalised; but this network's "
                f"mean and std map black and white to {black:.3g} and {white:.3g}. Pass uint8 pixels, or set mean and "
                "std to the values of your normalisation."
            )

    def configure_metrics(self, metrics: list[MetricFactory]) -> None:
        """Create the metrics of the task, and add further ``metrics``, as factories of the number of classes."""
        self.train_loss = Mean()
        self.eval_loss = Mean()
        self.evaluator = self.task.evaluator(self.num_classes, self.groups)
        self.eval_metrics = MetricCollection([make(self.num_classes) for make in metrics])
        self.held_out_scores, self.set_coverage = HeldOutScores(self.num_classes), SetCoverage(self.num_classes)

    def metric_names(self) -> list[str]:
        """Return the names of the metrics that a training logs."""
        evaluator = self.task.evaluator(self.num_classes, self.groups)
        shape = (1, self.num_classes)
        evaluator.update(torch.zeros(shape), torch.zeros(shape if self.multi_label else 1, dtype=torch.int64))
        names = ["loss", *evaluator.compute().metrics, *self.eval_metrics]
        return ["train/loss", *(f"val/{name}" for name in names)]

    def set_prior(self, prior: Tensor) -> None:
        """Evaluate and predict for another class prior than the loss assumes, see `lt_cb.losses.prior`.

        ``prior`` has the share of each class, floating of shape (C,), at least 0, not all 0; a class of 0 is never
        predicted. Saved logits do not change. Raise InputError with several labels an image.
        """
        self.task.check_prior()
        prior = prior.double() / prior.double().sum()
        self.prior_shift = (prior.log() - assumed_prior(self.loss).log()).float()
        self.prior = prior.tolist()

    def scores(self, logits: Tensor) -> Tensor:
        """Return class scores for raw logits, both of shape (B, C); their arg-max is the prediction."""
        shift = self.prior_shift
        return self.loss.adjust(logits) if shift is None else log_posterior(self.loss, logits) + shift

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return class probabilities for raw logits, both of shape (B, C)."""
        return self.loss.probabilities(logits) if self.prior_shift is None else self.scores(logits).softmax(1)

    @property
    def threshold_probabilities(self) -> list[float] | None:
        """``thresholds`` as probabilities; None is 0.5."""
        if self.thresholds is None:
            return None
        probabilities: list[float] = torch.tensor(self.thresholds, dtype=torch.float64).sigmoid().tolist()
        return probabilities

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Evaluate a batch; return ``logits``, shape (B, C), and ``targets`` for callbacks."""
        images, targets = batch
        self.check_images(images)
        self.task.check_targets(targets)
        logits: Tensor = self(images).float()
        self.eval_loss.update(self.loss(logits, targets), len(images))
        self.evaluator.update(self.scores(logits), targets)
        if self.eval_metrics:
            self.eval_metrics.update(self.probabilities(logits), targets)
        if self._chooses and not self.multi_label:
            self.held_out_scores.update(divide_by_prior(self.loss, logits, self._log_prior), targets)
        return {"logits": logits, "targets": targets}

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Evaluate a batch like ``validation_step``, and its prediction sets if these are calibrated."""
        outputs = self.validation_step(batch, batch_idx)
        if self.set_scores is not None:
            self.set_coverage.update(self.prediction_sets(outputs["logits"], TEST_LEVEL), outputs["targets"])
        return outputs

    def prediction_sets(self, logits: Tensor, level: float) -> Tensor:
        """Return the classes in the prediction set of each image, bool, for raw logits, both of shape (B, C).

        A share of about ``level`` of the sets has the true class, for each class, whatever the class frequencies are.
        """
        self.check_sets()
        assert self.set_scores is not None
        if self._limits is None or self._limits[0] is not self.set_scores or self._limits[1] != level:
            self._limits = self.set_scores, level, thresholds(self.set_scores, level)
        return prediction_sets(balanced_posterior(self.loss, logits), self._limits[2])

    def check_sets(self) -> None:
        """Raise InputError if no held-out images have calibrated prediction sets."""
        if self.set_scores is None:
            raise InputError(
                "no held-out images have calibrated prediction sets for this checkpoint: take one of recommend, or of "
                "fit with --data.val_fraction."
            )

    def on_validation_epoch_start(self) -> None:
        """Find out whether the images choose anything; compute the prior that the loss assumes once for all batches."""
        whole = not self.trainer.sanity_checking or self.trainer.num_sanity_val_steps == math.inf
        self._chooses = self.trainer.state.fn == "fit" and whole and not self.validates_on_test
        prior = log_prior_of(self.loss) if self._chooses and not self.multi_label else None
        self._log_prior = None if prior is None else prior.to(self.device)

    def _log_results(self, stage: str) -> None:
        chooses = stage == "val" and self._chooses
        self.evaluator.thresholds = None if chooses else self.thresholds or [0.0] * self.num_classes
        results = self.evaluator.compute()
        self.per_class, self.confusion = results.per_class, results.confusion
        if chooses:
            self.thresholds = results.thresholds
            scores = [] if self.multi_label else self.held_out_scores.compute()
            self.set_scores = [one.reshape(-1) for one in scores] or None  # torchmetrics squeezes a single one
        custom = self.eval_metrics.compute() if self.eval_metrics else {}
        for name, value in custom.items():
            if value.numel() != 1:
                raise InputError(f"metric {name} has {value.numel()} values, but must have one: set its average.")
        values = {**results.metrics, **self._set_results(stage), "loss": self.eval_loss.compute(), **custom}
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()}, sync_dist=True)
        for metric in (self.evaluator, self.eval_loss, self.eval_metrics, self.held_out_scores, self.set_coverage):
            metric.reset()

    def _set_results(self, stage: str) -> dict[str, Tensor]:
        """Return coverage and size of the prediction sets of a test, means over classes and over shot groups."""
        if stage != "test" or self.set_scores is None:
            return {}
        coverage, size = self.set_coverage.compute()
        self.per_class |= {"coverage": coverage.tolist(), "set_size": size.tolist()}
        values = {"coverage": coverage.nanmean(), "set_size": size.nanmean()}
        values |= {f"coverage/{name}": coverage[members].nanmean() for name, members in self.groups.items()}
        return {name: value.float() for name, value in values.items()}

    def on_validation_epoch_end(self) -> None:
        """Log ``val/...``; choose the thresholds of several labels, if the images are held out from training."""
        self._log_results("val")
        self._chooses = False

    def on_test_epoch_end(self) -> None:
        """Log ``test/...``; raise InputError if the loss is NaN."""
        if self.eval_loss.compute().isnan():
            raise InputError(
                "test/loss is nan: the weights are damaged, or their training diverged. Test another checkpoint."
            )
        self._log_results("test")

    def save_choices(self, checkpoint: dict[str, Any]) -> None:
        """Add what held-out images chose to a checkpoint: thresholds, or scores for prediction sets."""
        kept: dict[str, Any] = {checkpoints.THRESHOLDS: self.thresholds, checkpoints.SET_SCORES: self.set_scores}
        kept[checkpoints.HEAD] = self.head
        kept[checkpoints.FAMILIARITY] = None if self.familiarity is None else self.familiarity.state()
        checkpoint.update({name: value for name, value in kept.items() if value is not None})

    def load_choices(self, checkpoint: dict[str, Any]) -> None:
        """Load what `save_choices` saved."""
        self.thresholds = checkpoints.thresholds(checkpoint, self.num_classes)
        self.set_scores = checkpoints.set_scores(checkpoint, self.num_classes)
        self.familiarity = checkpoints.familiarity(checkpoint)

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, ...]:
        """Return predictions and probabilities, see `lt_cb.task.Task.predict`.

        With ``set_level`` also prediction sets, bool of shape (B, C), then with ``says_unknown`` the share of held-out
        images that look more familiar, shape (B,).
        """
        self.check_images(batch[0])
        features, logits = self._features_and_logits(batch[0])
        precise = logits if logits.device.type == "mps" else logits.double()  # float32 ends at 1e-45
        predicted = self.task.predict(self.scores(logits), self.probabilities(precise), self.thresholds, self.top)
        more: list[Tensor] = []
        if self.set_level is not None:
            more.append(self.prediction_sets(precise, self.set_level))
        if features is not None and self.familiarity is not None:
            more.append(self.familiarity.unknown(features, balanced_posterior(self.loss, logits)))
        return (*predicted, *more)

    def _features_and_logits(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the inputs of the last layer, None without ``says_unknown``, and logits, shape (B, C)."""
        classifier = last_linear(self.backbone, self.num_classes) if self.says_unknown else None
        if classifier is None:
            return None, self(images).float()
        seen: list[Tensor] = []
        with classifier.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0])):
            logits = self(images).float()
        return seen[-1], logits
