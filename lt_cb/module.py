"""The LightningModule: backbone, loss, metrics and optimiser."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, Self

import torch
from lightning.pytorch.callbacks import BaseFinetuning, ModelPruning, StochasticWeightAveraging
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lt_cb.checkpointing import SavedModule
from lt_cb.data.loaders.epoch import seed_of
from lt_cb.divergence import Watch
from lt_cb.errors import InputError
from lt_cb.evaluation import Batch, MetricFactory
from lt_cb.losses import Loss
from lt_cb.metrics import shot_groups
from lt_cb.models import (
    ResNetCifar,
    SecondStage,
    TrainingGraph,
    attach_adapter,
    build_backbone,
    draw_classifier,
    last_linear,
    normalize_classifier,
    spare_depthwise,
    spare_small_images,
)
from lt_cb.models.build import has_weights, with_weights
from lt_cb.rates import check_layer_decay, grouped, layer_scales, scale_rates
from lt_cb.runs import checkpoint as checkpoints
from lt_cb.runs.record import LOSS_FACTS
from lt_cb.schedule import (
    ReduceLROnPlateau,
    StepwiseSchedule,
    WarmupMultiStep,
    check_fraction,
    planned_steps,
    training_progress,
    when_to_step,
)
from lt_cb.task import Task

# of several classes named ReduceLROnPlateau, the command line takes the first
LRSchedulerCallable = Callable[[Optimizer], ReduceLROnPlateau] | Callable[[Optimizer], LRScheduler]
REPLACES_WEIGHTS = (ModelPruning, StochasticWeightAveraging, BaseFinetuning)  # after a CUDA graph has recorded them
COMPILED_STEPS = 5_000  # training steps that make up for a minute of compilation


class LongTailedClassifier(SavedModule):
    """Image classifier, trained with any `lt_cb.losses.Loss`.

    It logs ``train/loss``, and for ``val`` and ``test`` the ``loss`` and the metrics of `lt_cb.metrics`, averaged over
    all processes. ``load_from_checkpoint`` needs neither data nor config.

    To write a custom recipe, derive from this class and override ``configure_loss``, ``configure_backbone``,
    ``configure_metrics``, or any hook of Lightning.

    Args:
        loss: training loss of (logits, targets). Its ``class_counts`` set the number of classes and the shot groups.
        backbone: ``resnet32`` (or 20, 44, 56, 110), any timm model, or a class path.
        backbone_args: further keyword arguments of the backbone.
        optimizer: factory, called with parameter groups. The default is SGD with a rate of 0.1, momentum 0.9 and
            weight decay 2e-4, as in Cui et al. 2019.
        lr_scheduler: factory, called with the optimiser. Schedules of `lt_cb.schedule`, ``OneCycleLR`` and
            ``CyclicLR`` go on after each step, ``ReduceLROnPlateau`` after a validation, others after each epoch.
        metrics: further metrics for ``val`` and ``test``, named by their class, as factories of the number of classes,
            such as ``MulticlassF1Score`` of torchmetrics. They see probabilities, (B, C), and targets.
        drw_start: fraction of the training, in [0, 1], before the class weights of the loss count (deferred
            re-weighting, Cao et al. 2019, who use 0.8). It is rounded up to whole epochs.
        decay_1d: apply weight decay also to norms and biases, as Cui et al. do on CIFAR, but not for larger images.
        head_init_std: standard deviation of the last layer's initial normal weights; None keeps the backbone's own.
        second_stage: change to the classifier of a trained network; ``fit`` then starts from a checkpoint.
        adapter: ``lora`` trains `lt_cb.models.attach_adapter` and the classifier; timm networks get pretrained weights.
        adapter_rank: rank of the adapters, at least 1.
        freeze_norm: keep batch norm in evaluation mode while training.
        layer_decay: factor, in (0, 1], of the learning rate of each layer relative to the next; None is 1.
        mix: mixes a batch of images and one-hot targets, like torchvision's ``MixUp`` and ``CutMix``.
        fast: ``auto`` records `ResNetCifar` as CUDA graphs on a single NVIDIA GPU, and compiles other backbones there
            for long trainings. The command line then also uses bfloat16 mixed precision where the hardware supports it
            and ``--trainer.precision`` is not set.
        few_shot: classes with fewer training images are few-shot.
        many_shot: classes with more training images are many-shot.
        in_channels: channels of the images.
        mean: pixel mean of uint8 images, a value in [0, 1] for each channel; None normalises x to x / 128 - 1.
        std: pixel standard deviation, as for ``mean``.
        class_names: C names, for tables and predictions; None numbers the classes.
        image_size: height and width of the training images in pixels, for ``predict``.
        multi_label: whether an image may have several labels, or none.

    Raises:
        InputError: if the backbone does not exist, drw_start is outside [0, 1], or the loss does not fit the task.
    """

    mix_seed = 0  #: seed of ``mix``; `lt_cb.data.LongTailedDataModule` sets it to its own

    def __init__(
        self,
        loss: Loss | None = None,
        backbone: str = "resnet32",
        backbone_args: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=2e-4),
        lr_scheduler: LRSchedulerCallable = WarmupMultiStep,
        metrics: list[MetricFactory] | None = None,
        drw_start: float = 0.0,
        decay_1d: bool = True,
        head_init_std: float | None = None,
        second_stage: SecondStage | None = None,
        adapter: Literal["lora"] | None = None,
        adapter_rank: int = 8,
        freeze_norm: bool = False,
        layer_decay: float | None = None,
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
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Attribute '(loss|mix)' is an instance of `nn.Module`")
            self.save_hyperparameters(logger=False)
        if isinstance(self.hparams["loss"], nn.Module):  # from Python; the command line saves its configuration here
            checkpoints.describe(self.hparams)
        else:  # the command line links the facts of the data to every loss
            for name in set(LOSS_FACTS) - set(loss.argument_names()):
                self.hparams["loss"]["init_args"].pop(name, None)
        check_fraction("drw_start", drw_start)
        self.drw_start, self.decay_1d, self.fast = drw_start, decay_1d, fast
        self.second_stage, self.mix, self.adapter, self.adapter_rank = second_stage, mix, adapter, adapter_rank
        self.freeze_norm, self.layer_decay = freeze_norm, check_layer_decay(layer_decay)
        self.multi_label, self.task = multi_label, Task.of(multi_label)
        self.make_optimizer, self.make_scheduler = optimizer, lr_scheduler
        self.num_classes = len(loss.class_counts)
        self.class_names = class_names or [str(label) for label in range(self.num_classes)]
        self.groups = shot_groups(loss.class_counts, few_shot, many_shot)
        self.loss = self.configure_loss(loss)
        self.backbone_arguments = backbone, in_channels, backbone_args or {}, head_init_std
        self.backbone = self.configure_backbone(*self.backbone_arguments)
        self.train(self.training)  # a frozen backbone to evaluation mode
        for name, values in (("mean", mean), ("std", std)):
            pixel = torch.tensor([128 / 255] * in_channels if values is None else values) * 255
            self.register_buffer(name, pixel.view(-1, 1, 1), persistent=False)
        self.configure_metrics(metrics or [])
        self.graph: TrainingGraph | None = None
        self.is_trained = adapter is not None or has_weights(backbone, backbone_args or {})  # before this training
        self._watch = Watch()
        self._window: dict[int, float] = {}  # images by batch since the last optimiser step, averaged over processes

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a copy that shares the factories, through which jsonargparse reaches the data."""
        memo |= {id(factory): factory for factory in (self.make_optimizer, self.make_scheduler)}
        memo[id(self)] = copied = type(self).__new__(type(self))
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))  # type: ignore[no-untyped-call]
        return copied

    def configure_loss(self, loss: Loss) -> Loss:
        """Return the training loss; raise InputError if it does not fit the task, or the mixing of targets."""
        if loss.reduction == "none":
            raise InputError("the loss's reduction is 'none', but training needs a scalar: choose another.")
        self.task.check_loss(loss)
        if self.mix is not None and not loss.soft_targets:
            raise InputError(f"{type(loss).__name__} takes no mixed targets: unset --model.mix or change the loss.")
        return loss

    def configure_backbone(
        self, name: str, in_channels: int, options: dict[str, Any], head_init_std: float | None
    ) -> nn.Module:
        """Return the network, images -> logits, with the last layer that the loss and the second stage need."""
        options = options if self.adapter is None else with_weights(name, options)
        backbone = build_backbone(name, self.num_classes, in_channels, options, self.hparams.get("image_size"))
        if head_init_std is not None:
            draw_classifier(backbone, self.num_classes, head_init_std)
        if self.loss.normalized_classifier:
            normalize_classifier(backbone, self.num_classes)
        if self.adapter is not None:
            attach_adapter(backbone, self.num_classes, self.adapter_rank)
        if self.second_stage is not None:
            self.second_stage.attach(backbone, self.num_classes)
        classifier = last_linear(backbone, self.num_classes)
        if self.loss.prior_bias is not None and classifier is not None and classifier.bias is not None:
            nn.init.constant_(classifier.bias, self.loss.prior_bias)
        return backbone.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (B, C), of images, shape (B, in_channels, H, W), or of features, shape (B, D).

        Images are uint8 pixels, or floating and already normalised. Features are for the classifier alone.
        """
        classifier = last_linear(self.backbone, self.num_classes) if images.ndim == 2 else None
        logits: Tensor = self.backbone(self._normalized(images)) if classifier is None else classifier(images)
        return logits

    def _normalized(self, images: Tensor) -> Tensor:
        images = (images - self.mean) / self.std if images.dtype == torch.uint8 else images
        return images.contiguous(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; a frozen backbone, or with ``freeze_norm`` batch norm, stays in evaluation mode."""
        super().train(mode)
        for module in self.backbone.modules():
            if self.is_frozen or (self.freeze_norm and isinstance(module, _BatchNorm)):
                module.training = False
        return self

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """Yield the buffers that a checkpoint has: averaging the constant others would only add rounding errors."""
        kept = self.state_dict()
        return (buffer for name, buffer in self.named_buffers(recurse=recurse) if name in kept)

    @property
    def is_frozen(self) -> bool:
        """Whether a second stage trains only the classifier."""
        return self.second_stage is not None and not all(p.requires_grad for p in self.backbone.parameters())

    def on_fit_start(self) -> None:
        """Record or compile the backbone on an NVIDIA GPU; use float32 for small bfloat16 images on a CPU."""
        device, callbacks = self.trainer.strategy.root_device.type, self.trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(callback, ModelPruning) for callback in callbacks):  # its views are of contiguous weights
            self.backbone.to(memory_format=torch.contiguous_format)
        if device == "cpu" and self.trainer.precision == "bf16-mixed":
            spare_small_images(self.backbone)
            spare_depthwise(self.backbone)
        self.graph = None
        if self.fast == "off" or device != "cuda":
            return
        if isinstance(self.backbone, ResNetCifar):
            own_forward = type(self).forward is not LongTailedClassifier.forward
            changed = any(isinstance(callback, REPLACES_WEIGHTS) for callback in callbacks)
            if not (own_forward or changed or self.is_frozen or self.trainer.world_size > 1):
                self.graph = TrainingGraph(self.backbone)
        elif self.trainer.estimated_stepping_batches >= COMPILED_STEPS:
            torch._dynamo.config.suppress_errors = True  # a part that cannot be compiled runs uncompiled
            self.backbone.compile()

    def on_fit_end(self) -> None:
        """Free the memory of the CUDA graphs."""
        self.graph = None

    def on_train_start(self) -> None:
        """Give a schedule in fractions its length, which a BatchSizeFinder can have changed."""
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, StepwiseSchedule) and not config.scheduler.has_own_length:
                config.scheduler.total_steps = int(planned_steps(self.trainer, self.trainer.num_training_batches))

    @property
    def lr(self) -> float:
        """Learning rate at the start of the schedule, which Lightning's LearningRateFinder sets."""
        return float(self.trainer.optimizers[0].param_groups[0]["initial_lr"])

    @lr.setter
    def lr(self, rate: float) -> None:
        for group in self.trainer.optimizers[0].param_groups:
            group["initial_lr"] = group["lr"] = rate
        for config in self.trainer.lr_scheduler_configs:
            config.scheduler.base_lrs = [rate] * len(self.trainer.optimizers[0].param_groups)

    def on_train_epoch_start(self) -> None:
        """Switch on the class weights of the loss from ``drw_start`` on."""
        self._watch.start_epoch()
        self.train_loss.reset()
        if self.drw_start > 0.0:
            self.loss.weighted = training_progress(self.trainer, self.current_epoch) >= self.drw_start

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch, weighted by its images relative to the first batch of the optimiser step."""
        images, targets = batch
        self.check_images(images)
        if self.mix is not None:
            images, targets = self._mixed(self.mix, images, targets, batch_idx)
        replays = self.graph is not None and images.ndim > 2 and self.trainer.accumulate_grad_batches == 1
        logits = self.graph(self._normalized(images)) if self.graph and replays else self(images)
        loss: Tensor = self.loss(logits, targets)
        self.train_loss.update(loss.detach(), len(images))
        if self._trainer is None:
            return loss
        rates = (group["lr"] for opt in self._trainer.optimizers for group in opt.param_groups)
        self._watch.add(self.global_step, max(rates, default=math.nan), loss.detach(), targets)
        if batch_idx % self._trainer.accumulate_grad_batches == 0:
            self._window = {}
        size = float(len(images))
        if self._trainer.world_size > 1 and self._trainer.is_last_batch:  # the only batch whose size can differ
            size = float(self._trainer.strategy.reduce(torch.tensor(size, device=self.device), reduce_op="mean"))
        self._window[batch_idx] = size
        return loss * (len(images) / next(iter(self._window.values())))

    def _mixed(self, mix: nn.Module, images: Tensor, targets: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Return mixed images and targets; each batch has its own seed, so that a resumed training mixes alike."""
        one_hot = self.task.one_hot(targets, self.num_classes)
        try:
            with torch.random.fork_rng(devices=[]):
                seed = seed_of(self.mix_seed, self.current_epoch, batch_idx, self.global_rank)
                torch.default_generator.manual_seed(seed)
                images, targets = mix(self._normalized(images), one_hot)
        except TypeError as error:
            remedy = "choose MixUp or CutMix"
            raise InputError(f"--model.mix does not take images and one-hot targets ({error}): {remedy}.") from error
        return images, targets

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Rescale the gradient of a step with fewer images, so that it is the mean over these images."""
        sizes = list(self._window.values())
        # Lightning divides each loss by accumulate_grad_batches, even if the last step of an epoch has fewer batches
        expected = self.trainer.accumulate_grad_batches * sizes[0] if sizes else 0
        if expected != sum(sizes):
            for gradient in (p.grad for p in self.parameters() if p.grad is not None):
                gradient *= expected / sum(sizes)

    def on_train_epoch_end(self) -> None:
        """Log the mean loss of the epoch; raise InputError if it is not finite, or destroys trained weights."""
        if not self.train_loss.update_called:  # resumed after the last batch of an epoch
            return
        loss = self.train_loss.compute()
        if not any(type(c).__module__.endswith("lr_finder") for c in self.trainer.callbacks):  # type: ignore[attr-defined]
            self._watch.check_finite(loss.item(), self.current_epoch)
            if self.is_trained and not (self.drw_start and self.loss.weighted):  # the first loss is without weights
                watch: Watch = self.trainer.strategy.broadcast(self._watch)  # first losses differ between processes
                watch.check_learns(loss.item(), self.current_epoch, self.loss)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return parameter groups by weight decay and rate; a bias that starts from the prior has no weight decay."""
        bias = getattr(last_linear(self.backbone, self.num_classes), "bias", None)
        prior = None if self.loss.prior_bias is None else bias
        no_decay = {p for p in self.parameters() if p is prior or (p.ndim < 2 and not self.decay_1d)}
        return grouped(self.parameters(), no_decay, layer_scales(self.backbone, self.layer_decay))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return optimiser and scheduler; raise InputError if the schedule needs an end, but training has none."""
        optimizer = self.make_optimizer(self.parameter_groups())
        scale_rates(optimizer)
        scheduler = self.make_scheduler(optimizer)
        if isinstance(scheduler, StepwiseSchedule) and not scheduler.has_own_length:
            training_progress(self.trainer, 0)
            scheduler.total_steps = int(self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": when_to_step(scheduler, self.trainer)}  # type: ignore[return-value]
