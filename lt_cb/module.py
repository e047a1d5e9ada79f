"""The LightningModule: backbone, loss, metrics and optimiser."""

import inspect
import warnings
from collections.abc import MutableMapping
from typing import Any, Literal, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lt_cb.errors import InputError
from lt_cb.losses import Loss
from lt_cb.metrics import Mean, PerClassAccuracy, accuracies, shot_groups
from lt_cb.models import SecondStage, build_backbone, draw_classifier, last_linear, normalize_classifier
from lt_cb.schedule import StepwiseSchedule, WarmupMultiStep, check_part_of_training, training_progress

Batch = tuple[Tensor, Tensor]
MANY_STEPS = 5_000  # that pay for a minute of compilation


class LongTailedClassifier(LightningModule):
    """An image classifier trained with any `lt_cb.losses.Loss`, which also brings the class counts.

    Logs ``train/loss`` and, for ``val`` and ``test``, ``loss``, ``acc``, ``balanced_acc`` and ``acc/many``,
    ``acc/medium``, ``acc/few``, and of more than ten classes ``acc_top5``, as means over all processes.
    ``load_from_checkpoint`` needs neither data nor config.

    Args:
        loss: of (logits, targets); its ``class_counts`` say how many classes there are and what a tail class is.
        backbone: ``resnet32`` (or 20, 44, 56, 110), any timm model, or the class path of your own.
        backbone_args: further keyword arguments of the backbone.
        optimizer: made from parameter groups. The recipe's is SGD of rate 0.1, momentum 0.9, weight decay 2e-4.
        lr_scheduler: made from the optimiser; those of `lt_cb.schedule` step every batch, others every epoch.
        defer_weighting: part of the training, in [0, 1], before the class weights of the loss count: deferred
            re-weighting (DRW, Cao et al. 2019, who take 0.8). It sets in with an epoch.
        decay_vectors: whether weight decay counts for parameters of one dimension too: scales and shifts of norms, and
            biases. The paper decays them on CIFAR, and not on larger images.
        classifier_std: the last layer's weights are drawn from a normal distribution of this standard deviation; None
            leaves them as the backbone has them.
        second_stage: what is done to the classifier of a trained network, whose checkpoint ``fit`` then starts from.
        mix: mixes a batch of images and one-hot targets, as torchvision's ``MixUp`` and ``CutMix`` do.
        fast: ``auto`` compiles the network for a long training on an NVIDIA GPU, and has the command line train in
            bfloat16 mixed precision where the hardware has that and no ``--trainer.precision`` is given.
        few_shot: classes of fewer training images are few-shot.
        many_shot: classes of more training images are many-shot.
        in_channels: channels of the images.
        mean: pixel mean in [0, 1], a value a channel, for uint8 images; None is that of x / 128 - 1.
        std: likewise.
        class_names: C names, for tables and predictions.
        image_size: height and width the images were trained at, for ``predict``.

    Raises:
        InputError: (a ValueError) if there is no such backbone, defer_weighting is outside [0, 1], or the loss cannot
            be trained with.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        loss: Loss,
        backbone: str = "resnet32",
        backbone_args: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=2e-4),
        lr_scheduler: LRSchedulerCallable = lambda optimizer: WarmupMultiStep(optimizer),
        defer_weighting: float = 0.0,
        decay_vectors: bool = True,
        classifier_std: float | None = None,
        second_stage: SecondStage | None = None,
        mix: nn.Module | None = None,
        fast: Literal["auto", "off"] = "auto",
        few_shot: int = 20,
        many_shot: int = 100,
        in_channels: int = 3,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        class_names: list[str] | None = None,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Attribute '(loss|mix)' is an instance of `nn.Module`")
            self.save_hyperparameters(logger=False)
        if isinstance(self.hparams["loss"], nn.Module):  # made in Python; the command line has put its config there
            _describe_for_checkpoint(self.hparams)
        check_part_of_training("defer_weighting", defer_weighting)
        if loss.reduction == "none":
            raise InputError("the loss's reduction is 'none', but training needs a scalar: choose another.")
        if mix is not None and not loss.soft_targets:
            raise InputError(
                f"{type(loss).__name__} takes no mixed targets: unset --model.mix, or choose another loss."
            )
        if mix is not None:
            _check_mix(mix, len(loss.class_counts))
        self.defer_weighting = defer_weighting
        self.decay_vectors = decay_vectors
        self.second_stage = second_stage
        self.mix = mix
        self.fast = fast
        num_classes = len(loss.class_counts)
        self.loss = loss
        self.backbone = build_backbone(backbone, num_classes, in_channels, backbone_args)
        if classifier_std is not None:
            draw_classifier(self.backbone, num_classes, classifier_std)
        if loss.normalized_classifier:
            normalize_classifier(self.backbone, num_classes)
        if second_stage is not None:
            second_stage.attach(self.backbone, num_classes)
            self.train()  # Lightning leaves the modes as they are
        self.backbone.to(memory_format=torch.channels_last)
        if loss.prior_bias is not None and (bias := self._last_bias()) is not None:
            nn.init.constant_(bias, loss.prior_bias)
        self.make_optimizer, self.make_scheduler = optimizer, lr_scheduler
        for name, values in (("mean", mean), ("std", std)):
            pixel = torch.tensor([128 / 255] * in_channels if values is None else values) * 255
            self.register_buffer(name, pixel.view(-1, 1, 1), persistent=False)
        self.class_names = class_names or [str(label) for label in range(num_classes)]
        self.groups = shot_groups(loss.class_counts, few_shot, many_shot)
        self.train_loss = Mean()
        self.eval_loss = Mean()
        self.eval_top5 = Mean() if num_classes > 10 else None
        self.eval_classes = PerClassAccuracy(num_classes)

    def _last_bias(self) -> nn.Parameter | None:
        classifier = last_linear(self.backbone, len(self.loss.class_counts))
        return None if classifier is None else classifier.bias

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (B, C).

        Args:
            images: shape (B, in_channels, H, W); uint8 pixels are normalised here, floating ones are taken as
                normalised already.
        """
        logits: Tensor = self.backbone(self._normalized(images).contiguous(memory_format=torch.channels_last))
        return logits

    def _normalized(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std if images.dtype == torch.uint8 else images

    def train(self, mode: bool = True) -> Self:
        """Set the training mode, in which a frozen backbone stays as in evaluation: its features are fixed."""
        super().train(mode)
        if self.second_stage is not None and not all(p.requires_grad for p in self.backbone.parameters()):
            self.backbone.eval()
        return self

    def prepare_data(self) -> None:
        """Refuse a training without an end where parts of it are asked for, before anything is written."""
        if self.trainer.state.fn == "fit":
            scheduler = self.make_scheduler(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0))
            in_parts = isinstance(scheduler, StepwiseSchedule) and scheduler.total_steps is None
            if in_parts or self.defer_weighting > 0.0:
                training_progress(self.trainer, 0)

    def on_fit_start(self) -> None:
        """Compile where it helps; warn of a weighting and a sampler at once, and of what is deferred but not there."""
        on_gpu = self.trainer.strategy.root_device.type == "cuda"  # whose kernels are short
        if self.fast == "auto" and on_gpu and self.trainer.estimated_stepping_batches >= MANY_STEPS:
            torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is
            self.backbone.compile()
        data = getattr(self.trainer, "datamodule", None)
        sampler = getattr(data, "sampler", None)
        if self.defer_weighting > 0.0 and self.loss.weighting is None:
            rank_zero_warn("defer_weighting is set, but the loss has no weighting: nothing is deferred.", stacklevel=1)
        if getattr(data, "defer_sampling", 0.0) > 0.0 and sampler is None:
            rank_zero_warn("defer_sampling is set, but the data have no sampler: nothing is deferred.", stacklevel=1)
        if self.loss.weighting is not None and sampler is not None:
            rank_zero_warn(
                "The class weights and the sampler both favour rare classes, and compound: unless that is meant, set "
                "--model.loss.weighting null or --data.sampler null.",
                stacklevel=1,
            )

    def on_train_epoch_start(self) -> None:
        """Let the class weights count once their time has come."""
        if self.defer_weighting > 0.0:
            self.loss.weighted = training_progress(self.trainer, self.current_epoch) >= self.defer_weighting

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images, targets = batch
        if self.mix is not None:
            one_hot = nn.functional.one_hot(targets, len(self.class_names))
            images, targets = self.mix(self._normalized(images), one_hot.float())
        loss: Tensor = self.loss(self(images), targets)
        self.train_loss.update(loss.detach(), len(images))
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the mean loss of the epoch.

        Raises:
            InputError: (a ValueError) if it is not finite: nothing more would be learnt.
        """
        loss = self.train_loss.compute()
        if not loss.isfinite():
            raise InputError(
                f"the training has diverged: train/loss is {loss.item()} in epoch {self.current_epoch}. Lower "
                "--model.optimizer.lr, or set --trainer.gradient_clip_val 1."
            )
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        self.train_loss.reset()

    def _evaluate(self, batch: Batch) -> Tensor:
        images, targets = batch
        logits: Tensor = self(images).float()
        self.eval_loss.update(self.loss(logits, targets), len(images))
        adjusted = self.loss.adjust(logits)
        self.eval_classes.update(adjusted.argmax(1), targets)
        if self.eval_top5 is not None:
            self.eval_top5.update((adjusted.topk(5).indices == targets[:, None]).any(1).float().mean(), len(images))
        return logits

    def _log_results(self, stage: str) -> None:
        correct, total = self.eval_classes.compute()
        results = accuracies(correct, total, self.groups) | {"loss": self.eval_loss.compute()}
        if self.eval_top5 is not None:
            results["acc_top5"] = self.eval_top5.compute()
            self.eval_top5.reset()
        self.log_dict({f"{stage}/{name}": value for name, value in results.items()}, sync_dist=True)
        self.per_class = {"correct": correct.tolist(), "total": total.tolist()}
        self.eval_loss.reset()
        self.eval_classes.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/...``."""
        self._log_results("val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Count a batch; return ``logits``, (B, C), and ``targets``, (B,), for callbacks."""
        return {"logits": self._evaluate(batch), "targets": batch[1]}

    def on_test_epoch_end(self) -> None:
        """Log ``test/...`` and keep correct and counted images of each class in ``per_class``."""
        self._log_results("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Return predicted class index and its probability, both of shape (B,)."""
        logits = self(batch[0]).float()
        predicted = self.loss.adjust(logits).argmax(1)
        return predicted, self.loss.probabilities(logits).gather(1, predicted[:, None]).squeeze(1)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return what is trained: with weight decay, and without. A last bias that starts from the prior has none."""
        prior = None if self.loss.prior_bias is None else self._last_bias()
        decayed: list[nn.Parameter] = []
        spared: list[nn.Parameter] = []
        for p in self.parameters():
            if p.requires_grad:
                (spared if p is prior or (p.ndim < 2 and not self.decay_vectors) else decayed).append(p)
        return [{"params": decayed}, *([{"params": spared, "weight_decay": 0.0}] if spared else [])]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make optimiser and scheduler."""
        optimizer = self.make_optimizer(self.parameter_groups())
        scheduler = self.make_scheduler(optimizer)
        if isinstance(scheduler, StepwiseSchedule):
            scheduler.total_steps = scheduler.total_steps or int(self.trainer.estimated_stepping_batches)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
        if isinstance(scheduler, ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": scheduler.monitor}}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def start_from(self, checkpoint: MutableMapping[str, Any]) -> None:
        """Take the weights of a trained network, of which the second stage may need all but the classifier.

        Args:
            checkpoint: as ``torch.load`` returns it.

        Raises:
            InputError: (a ValueError) if it is of other classes or another backbone.
        """
        self.check_classes(checkpoint.get("hyper_parameters", {}))
        state = _backbone_state(checkpoint)
        if self.second_stage is not None:
            last = last_linear(self.backbone, len(self.loss.class_counts))
            prefix = next(f"{name}." for name, module in self.backbone.named_modules() if module is last)
            kept = {prefix + "weight", prefix + "bias"} if self.second_stage.keeps_classifier else set()
            own = {name: v for name, v in self.backbone.state_dict().items() if name.startswith(prefix)}
            state = {name: v for name, v in state.items() if not name.startswith(prefix) or name in kept}
            state |= {name: v for name, v in own.items() if name not in kept}
        self._check_backbone(state)
        self.backbone.load_state_dict(state)

    def check_checkpoint(self, checkpoint: MutableMapping[str, Any], training: bool = False) -> None:
        """Compare classes and backbone with those of a checkpoint, and to go on training also what is optimised.

        Raises:
            InputError: (a ValueError) if they differ.
        """
        self.check_classes(checkpoint.get("hyper_parameters", {}))
        self._check_backbone(_backbone_state(checkpoint))
        if training and (states := checkpoint.get("optimizer_states")):
            own = self.make_optimizer(self.parameter_groups()).param_groups
            if [len(group["params"]) for group in own] != [len(group["params"]) for group in states[0]["param_groups"]]:
                raise InputError(
                    "the checkpoint was trained with another loss, second stage or weight decay: go on with those, or "
                    "train anew."
                )

    def _check_backbone(self, state: MutableMapping[str, Tensor]) -> None:
        there = {name: list(value.shape) for name, value in state.items()}
        here = {name: list(value.shape) for name, value in self.backbone.state_dict().items()}
        for name in [*here, *there]:
            if here.get(name) != there.get(name):
                raise InputError(
                    f"the checkpoint is of another network: '{name}' is {there.get(name, 'missing')} there and "
                    f"{here.get(name, 'missing')} here. Use the backbone, loss and second stage it was trained with."
                )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other classes; test another loss than the one trained with, if that is asked for."""
        self.check_checkpoint(checkpoint)
        own = {f"loss.{name}": value for name, value in self.loss.state_dict().items()}
        state = checkpoint["state_dict"]
        if {name for name in state if name.startswith("loss.")} != own.keys():
            kept = {name: value for name, value in state.items() if not name.startswith("loss.")}
            checkpoint["state_dict"] = kept | own

    def check_classes(self, hparams: MutableMapping[str, Any]) -> None:
        """Compare the classes with those in a checkpoint's hyper-parameters.

        Raises:
            InputError: (a ValueError) if they differ.
        """
        loss = hparams.get("loss")
        counts = loss["init_args"]["class_counts"] if isinstance(loss, dict) else None
        names = hparams.get("class_names") or self.class_names
        if counts is not None and len(counts) != len(self.class_names):
            raise InputError(
                f"the checkpoint has {len(counts)} classes, but the data have {len(self.class_names)}: use the data it "
                "was trained on, or train anew."
            )
        if names != self.class_names:
            first = next(pair for pair in zip(names, self.class_names, strict=True) if pair[0] != pair[1])
            raise InputError(
                f"the checkpoint's classes are not those of the data: '{first[0]}' there is '{first[1]}' here."
            )


def _check_mix(mix: nn.Module, num_classes: int) -> None:
    one_hot = torch.eye(num_classes)[:2]
    with torch.random.fork_rng(devices=[]):
        try:
            _, mixed = mix(torch.zeros(2, 3, 8, 8), one_hot)
            works = mixed.shape == one_hot.shape
        except (TypeError, ValueError, RuntimeError):
            works = False
    if not works:
        raise InputError(
            f"--model.mix is {type(mix).__name__}, but must take a batch of images and one-hot targets, as "
            "torchvision.transforms.v2.MixUp and CutMix do."
        )


def _backbone_state(checkpoint: MutableMapping[str, Any]) -> dict[str, Tensor]:
    prefix = "backbone."
    state = checkpoint["state_dict"]
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _describe_for_checkpoint(hparams: MutableMapping[str, Any]) -> None:
    """Replace objects among the hyper-parameters by plain values, as LightningCLI has them.

    So that ``load_from_checkpoint`` rebuilds the loss with ``weights_only=True``. A loss that does not keep its
    arguments as attributes cannot be described, and is then an argument of ``load_from_checkpoint``.
    """
    loss = hparams.pop("loss")
    hparams.pop("optimizer", None)
    hparams.pop("lr_scheduler", None)
    hparams.pop("mix", None)
    try:
        hparams["second_stage"] = _describe(hparams.get("second_stage"))
        hparams["loss"] = _describe(loss)
    except AttributeError:
        return
    hparams["_instantiator"] = "lightning.pytorch.cli.instantiate_module"


def _describe(value: Any) -> Any:  # noqa: ANN401 - any argument of a loss
    if value is None or isinstance(value, bool | int | float | str | list | tuple | dict):
        return value
    if isinstance(value, Loss):
        arguments = value.arguments()
    else:
        arguments = {name: getattr(value, name) for name in inspect.signature(type(value)).parameters}
    return {
        "class_path": f"{type(value).__module__}.{type(value).__qualname__}",
        "init_args": {name: _describe(argument) for name, argument in arguments.items()},
    }
