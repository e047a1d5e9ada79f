"""The LightningModule: backbone, loss, metrics and optimiser."""

import math
import warnings
from collections.abc import Iterator
from typing import Any, Literal, Self

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lt_cb.data.loaders.epoch import seed_of
from lt_cb.errors import InputError
from lt_cb.evaluation import Batch, EvaluatedModule, MetricFactory
from lt_cb.losses import Loss
from lt_cb.metrics import shot_groups
from lt_cb.models import (
    ResNetCifar,
    SecondStage,
    TrainingGraph,
    build_backbone,
    draw_classifier,
    last_linear,
    normalize_classifier,
    spare_small_images,
)
from lt_cb.runs import checkpoint as checkpoints
from lt_cb.runs import compare
from lt_cb.task import Task
from lt_cb.schedule import StepwiseSchedule, WarmupMultiStep, check_fraction, training_progress

MANY_STEPS = 5_000  # that pay for a minute of compilation


class LongTailedClassifier(EvaluatedModule):
    """An image classifier trained with any `lt_cb.losses.Loss`, which also brings the class counts.

    Logs ``train/loss`` and, for ``val`` and ``test``, ``loss``, ``acc``, ``balanced_acc`` and ``acc/many``,
    ``acc/medium``, ``acc/few``, and of more than ten classes ``acc_top5``, as means over all processes. Where an image
    may have several labels, these are ``loss``, and `lt_cb.metrics.label_means`; a validation with images that are not
    the test's then chooses a threshold for each class, which the checkpoint keeps.
    ``load_from_checkpoint`` needs neither data nor config.

    A recipe of your own derives from it and overrides what it does otherwise: ``configure_loss``,
    ``configure_backbone``, ``configure_metrics``, or any hook of Lightning.

    Args:
        loss: what is minimised, of (logits, targets); its ``class_counts`` say how many classes there are and what a
            tail class is.
        backbone: ``resnet32`` (or 20, 44, 56, 110), any timm model, or the class path of your own.
        backbone_args: further keyword arguments of the backbone.
        optimizer: made from parameter groups. The recipe's is SGD of rate 0.1, momentum 0.9, weight decay 2e-4.
        lr_scheduler: made from the optimiser; those of `lt_cb.schedule` step every batch, others every epoch.
        metrics: further metrics, each made from the number of classes C, as ``MulticlassF1Score`` of torchmetrics; they
            see class probabilities, (B, C), and targets as of the loss, and are logged for ``val`` and ``test`` by the
            names of their classes.
        drw_start: fraction of the training, in [0, 1], before the class weights of the loss count: deferred
            re-weighting (DRW, Cao et al. 2019, who take 0.8). It sets in with an epoch.
        decay_1d: whether weight decay counts for parameters of one dimension too: scales and shifts of norms, and
            biases. The paper decays them on CIFAR, and not on larger images.
        head_init_std: the last layer's weights are drawn from a normal distribution of this standard deviation; None
            leaves them as the backbone has them.
        second_stage: what is done to the classifier of a trained network, whose checkpoint ``fit`` then starts from.
        mix: mixes a batch of images and one-hot targets, as torchvision's ``MixUp`` and ``CutMix`` do.
        fast: ``auto`` launches the kernels of a `ResNetCifar` as one on a single NVIDIA GPU, compiles others for a long
            training there, and has the command line train in bfloat16 mixed precision where the hardware has that and
            no ``--trainer.precision`` is given.
        few_shot: classes of fewer training images are few-shot.
        many_shot: classes of more training images are many-shot.
        in_channels: channels of the images.
        mean: pixel mean in [0, 1], a value a channel, for uint8 images; None is that of x / 128 - 1.
        std: likewise.
        class_names: C names, for tables and predictions.
        image_size: height and width the images were trained at, for ``predict``.
        multi_label: whether an image may have several labels, or none.

    Raises:
        InputError: if there is no such backbone, drw_start is outside [0, 1], or the loss cannot be trained with.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        loss: Loss | None = None,
        backbone: str = "resnet32",
        backbone_args: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=2e-4),
        lr_scheduler: LRSchedulerCallable = lambda optimizer: WarmupMultiStep(optimizer),
        metrics: list[MetricFactory] | None = None,
        drw_start: float = 0.0,
        decay_1d: bool = True,
        head_init_std: float | None = None,
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
        multi_label: bool = False,
    ) -> None:
        super().__init__()
        if loss is None:
            raise InputError("loss is None, but a model needs one: choose a class of lt_cb.losses.")
        self.task = Task.of(multi_label)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Attribute '(loss|mix)' is an instance of `nn.Module`")
            self.save_hyperparameters(logger=False)
        if isinstance(self.hparams["loss"], nn.Module):  # made in Python; the command line has put its config there
            checkpoints.describe(self.hparams)
        elif not hasattr(loss, "num_images"):  # which a link gives to all losses
            self.hparams["loss"]["init_args"].pop("num_images", None)
        check_fraction("drw_start", drw_start)
        self.drw_start, self.decay_1d, self.fast = drw_start, decay_1d, fast
        self.second_stage, self.mix, self.multi_label = second_stage, mix, multi_label
        self.make_optimizer, self.make_scheduler = optimizer, lr_scheduler
        self.num_classes = len(loss.class_counts)
        self.class_names = class_names or [str(label) for label in range(self.num_classes)]
        self.groups = shot_groups(loss.class_counts, few_shot, many_shot)
        self.loss = self.configure_loss(loss)
        self.backbone = self.configure_backbone(backbone, in_channels, backbone_args or {}, head_init_std)
        self.train(self.training)  # Lightning leaves the modes as they are
        for name, values in (("mean", mean), ("std", std)):
            pixel = torch.tensor([128 / 255] * in_channels if values is None else values) * 255
            self.register_buffer(name, pixel.view(-1, 1, 1), persistent=False)
        self.configure_metrics(metrics or [])
        self.graph: TrainingGraph | None = None
        self._losses: list[tuple[int, float, Tensor]] = []  # step, rate and loss, of the epoch so far

    def configure_loss(self, loss: Loss) -> Loss:
        """Return the loss to train with, or refuse it."""
        if loss.reduction == "none":
            raise InputError("the loss's reduction is 'none', but training needs a scalar: choose another.")
        if self.multi_label and not loss.multi_label:
            raise InputError(
                f"{type(loss).__name__} is for one label an image, but these data have several: set --model.loss "
                "SigmoidLoss, FocalLoss, AsymmetricLoss or DistributionBalancedLoss."
            )
        if self.mix is not None and not loss.soft_targets:
            raise InputError(
                f"{type(loss).__name__} takes no mixed targets: unset --model.mix, or choose another loss."
            )
        if self.mix is not None:
            _check_mix(self.mix, self.num_classes)
        return loss

    def configure_backbone(
        self,
        name: str,
        in_channels: int,
        options: dict[str, Any],
        head_init_std: float | None,
    ) -> nn.Module:
        """Return the network, images -> logits, whose last layer is as loss and second stage ask for it."""
        backbone = build_backbone(name, self.num_classes, in_channels, options, self.hparams.get("image_size"))
        if head_init_std is not None:
            draw_classifier(backbone, self.num_classes, head_init_std)
        if self.loss.normalized_classifier:
            normalize_classifier(backbone, self.num_classes)
        if self.second_stage is not None:
            self.second_stage.attach(backbone, self.num_classes)
        classifier = last_linear(backbone, self.num_classes)
        if self.loss.prior_bias is not None and classifier is not None and classifier.bias is not None:
            nn.init.constant_(classifier.bias, self.loss.prior_bias)
        return backbone.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (B, C).

        Args:
            images: shape (B, in_channels, H, W); uint8 pixels are normalised here, floating ones are taken as
                normalised already. Or features, shape (B, D), of which the classifier alone makes logits.
        """
        if images.ndim == 2:
            classifier = last_linear(self.backbone, self.num_classes)
            assert classifier is not None
            from_features: Tensor = classifier(images)
            return from_features
        logits: Tensor = self.backbone(self._input(images))
        return logits

    def _input(self, images: Tensor) -> Tensor:
        return self._normalized(images).contiguous(memory_format=torch.channels_last)

    def _normalized(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std if images.dtype == torch.uint8 else images

    def train(self, mode: bool = True) -> Self:
        """Set the training mode, in which a frozen backbone stays as in evaluation: its features are fixed."""
        super().train(mode)
        if self.is_frozen:
            self.backbone.eval()
        return self

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """Yield the buffers that a checkpoint has.

        A moving average would round the others, which are constant, at each step, and anew once a training goes on.
        """
        kept = self.state_dict()
        return (buffer for name, buffer in self.named_buffers(recurse=recurse) if name in kept)

    @property
    def is_frozen(self) -> bool:
        """Whether a second stage trains the classifier alone."""
        return self.second_stage is not None and not all(p.requires_grad for p in self.backbone.parameters())

    def on_fit_start(self) -> None:
        """Spare a small network on an NVIDIA GPU its launches, compile a long training; spare a CPU some bfloat16."""
        device = self.trainer.strategy.root_device.type
        if device == "cpu" and self.trainer.precision == "bf16-mixed":
            spare_small_images(self.backbone)
        self.graph = None
        if self.fast == "off" or device != "cuda":
            return
        if isinstance(self.backbone, ResNetCifar):
            own_forward = type(self).forward is not LongTailedClassifier.forward
            if not (own_forward or self.is_frozen or self.trainer.world_size > 1):
                self.graph = TrainingGraph(self.backbone)
        elif self.trainer.estimated_stepping_batches >= MANY_STEPS:
            torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is
            self.backbone.compile()

    def on_fit_end(self) -> None:
        """Give the graph's memory back."""
        self.graph = None

    def on_train_epoch_start(self) -> None:
        """Let the class weights count once their time has come."""
        self._losses.clear()
        if self.drw_start > 0.0:
            self.loss.weighted = training_progress(self.trainer, self.current_epoch) >= self.drw_start

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Look at the first images."""
        self._check_images(batch, batch_idx)

    def on_validation_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Look at the first images."""
        self._check_images(batch, batch_idx)

    def on_test_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Look at the first images."""
        self._check_images(batch, batch_idx)

    def on_predict_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Look at the first images."""
        self._check_images(batch, batch_idx)

    def _check_images(self, batch: Batch, batch_idx: int) -> None:
        """Look whether floating images of a loader of one's own can be what uint8 ones are normalised to."""
        images = batch[0]
        if batch_idx > 0 or images.ndim == 2 or not images.is_floating_point():
            return
        least, most = images.min().item(), images.max().item()
        if not math.isfinite(most - least):
            raise InputError("the images are not finite: look for NaN and infinity where they are read or normalised.")
        black, white = (-self.mean / self.std).min().item(), ((255 - self.mean) / self.std).max().item()
        slack = (white - black) / 4
        if least < black - slack or most > white + slack or (least >= 0 and most <= 1 and black < -slack):
            rank_zero_warn(
                f"The images are floating, from {least:.3g} to {most:.3g}, and count as normalised; mean and std of "
                f"this network make {black:.3g} to {white:.3g} of black and white. Give it uint8 pixels, or the mean "
                "and std that these were normalised by.",
                stacklevel=1,
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch, which in the last one of several processes counts by its images."""
        images, targets = batch
        if self.mix is not None:
            if self.multi_label:  # of what is not known a mixture is not known either
                one_hot = targets.float().masked_fill(targets < 0, torch.nan)
            else:
                one_hot = nn.functional.one_hot(targets, self.num_classes).float()
            seed = getattr(getattr(self._trainer, "datamodule", None), "seed", 0)
            with torch.random.fork_rng(devices=[]):  # so that a resumed training draws as one that was not
                torch.default_generator.manual_seed(seed_of(seed, self.current_epoch, batch_idx, self.global_rank))
                images, targets = self.mix(self._normalized(images), one_hot)
        loss: Tensor = self.loss(self._training_logits(images), targets)
        self.train_loss.update(loss.detach(), len(images))
        if self._trainer is not None:
            rate = next((group["lr"] for opt in self._trainer.optimizers for group in opt.param_groups), math.nan)
            self._losses.append((self.global_step, rate, loss.detach()))
        return loss * self._share(len(images))

    def _share(self, images: int) -> float:
        """Return what this process's mean counts in that over processes, of which some have a smaller last batch."""
        if self._trainer is None or self._trainer.world_size == 1 or not self._trainer.is_last_batch:
            return 1.0
        mean = self._trainer.strategy.reduce(torch.tensor(float(images), device=self.device), reduce_op="mean")
        return images / float(mean)

    def _training_logits(self, images: Tensor) -> Tensor:
        if self.graph is None or images.ndim == 2 or self.trainer.accumulate_grad_batches > 1:
            logits: Tensor = self(images)
            return logits
        return self.graph(self._input(images))

    def on_train_epoch_end(self) -> None:
        """Log the mean loss of the epoch.

        Raises:
            InputError: if it is not finite: nothing more would be learnt.
        """
        loss = self.train_loss.compute()
        if not loss.isfinite():
            first = next(((step, rate) for step, rate, value in self._losses if not value.isfinite()), None)
            when = "" if first is None else f", first at step {first[0]}, at a rate of {first[1]:.3g}"
            raise InputError(
                f"the training has diverged: train/loss is {loss.item()} in epoch {self.current_epoch}{when}. Lower "
                "--model.optimizer.lr, or set --trainer.gradient_clip_val 1."
            )
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        self.train_loss.reset()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser parameter groups with and without weight decay; a prior-initialised last bias is never decayed."""
        classifier = last_linear(self.backbone, self.num_classes)
        prior = None if self.loss.prior_bias is None or classifier is None else classifier.bias
        decay: list[nn.Parameter] = []
        no_decay: list[nn.Parameter] = []
        for p in self.parameters():
            if p.requires_grad:
                (no_decay if p is prior or (p.ndim < 2 and not self.decay_1d) else decay).append(p)
        return [{"params": decay}, *([{"params": no_decay, "weight_decay": 0.0}] if no_decay else [])]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make optimiser and scheduler."""
        optimizer = self.make_optimizer(self.parameter_groups())
        scheduler = self.make_scheduler(optimizer)
        if isinstance(scheduler, StepwiseSchedule):
            training_progress(self.trainer, 0)  # refuses a training without an end
            scheduler.total_steps = scheduler.total_steps or int(self.trainer.estimated_stepping_batches)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
        if isinstance(scheduler, ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": scheduler.monitor}}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def start_from(self, content: checkpoints.Content) -> None:
        """Take the weights of a trained network, of which the second stage may need all but the classifier.

        Args:
            content: a checkpoint, as ``torch.load`` returns it.

        Raises:
            InputError: if it is of other classes or another backbone.
        """
        compare.check_classes(content, self.class_names, self.multi_label)
        state = checkpoints.backbone_state(content)
        if self.second_stage is not None:
            last = last_linear(self.backbone, self.num_classes)
            prefix = next(f"{name}." for name, module in self.backbone.named_modules() if module is last)
            kept = {prefix + "weight", prefix + "bias"} if self.second_stage.keeps_classifier else set()
            own = {name: v for name, v in self.backbone.state_dict().items() if name.startswith(prefix)}
            state = {name: v for name, v in state.items() if not name.startswith(prefix) or name in kept}
            state |= {name: v for name, v in own.items() if name not in kept}
        compare.check_backbone(state, self.backbone)
        self.backbone.load_state_dict(state)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Have the checkpoint be loaded without the pretrained weights that the training began with."""
        checkpoint["hyper_parameters"] = checkpoints.without_pretrained(dict(checkpoint["hyper_parameters"]))
        if self.thresholds is not None:
            checkpoint[checkpoints.THRESHOLDS] = self.thresholds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other classes or another network; keep the loss as it is configured."""
        compare.check_classes(checkpoint, self.class_names, self.multi_label)
        compare.check_backbone(checkpoints.backbone_state(checkpoint), self.backbone)
        kept = self.second_stage is None or self.second_stage.trains  # else the logits are others than those chosen by
        self.thresholds = checkpoints.thresholds(checkpoint, self.num_classes) if kept else None
        state = {name: v for name, v in checkpoint["state_dict"].items() if not name.startswith(checkpoints.LOSS)}
        own = {checkpoints.LOSS + name: value for name, value in self.loss.state_dict().items()}
        checkpoint["state_dict"] = state | own


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
