"""``lt-cb fit``, ``validate`` and ``test``."""

import copy
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lt_cb.average import Average
from lt_cb.callbacks import BestEpoch, ClassesToWandB, ResultFile, SaveLogits
from lt_cb.callbacks.result import is_within_epoch, print_ending, trained_epochs
from lt_cb.commands.average import check_data, trained_networks
from lt_cb.commands.cli import CommandLine, Options, command
from lt_cb.commands.lightning import check_features, check_switches
from lt_cb.commands.messages import causes, input_error
from lt_cb.commands.next import next_line
from lt_cb.commands.pretrained import of_pretrained
from lt_cb.commands.prior import PRIOR, set_prior
from lt_cb.commands.save import LastCheckpoint, as_list, best_checkpoint, make_trainer, run_trainer, written_checkpoint
from lt_cb.commands.started import resumed_callbacks, start_callbacks
from lt_cb.data import LongTailedDataModule
from lt_cb.errors import InputError
from lt_cb.features import feature_trainer, frozen_features
from lt_cb.hardware import mixed_precision, reused_memory
from lt_cb.loggers import WandB, check_loggers
from lt_cb.module import LongTailedClassifier
from lt_cb.runs import checkpoint as checkpoints
from lt_cb.runs import compare
from lt_cb.runs.folder import RunDir
from lt_cb.say import warn
from lt_cb.schedule import BY_STEP, StepwiseSchedule, training_progress

FIT: Options = {
    "change_loss": (bool, False, "Resume with another loss than before."),
    "test_best": (bool, False, "Test the best checkpoint, of a ModelCheckpoint with a monitor, instead of the last."),
}


class Session:
    """Data, model and Trainer of fit, finetune, validate or test, checked before anything is written."""

    def __init__(self, cli: CommandLine) -> None:
        self.cli, self.starts = cli, cli.command == "finetune"  # a new training from the checkpoint's weights
        self.fits = self.starts or cli.command == "fit"
        self.change_loss = bool(cli.config.pop("change_loss", False))  # no part of the run's configuration
        self.test_best = bool(cli.config.pop("test_best", False))
        stage, trained = cli.config.model.second_stage, (cli.trained.get("model") or {}).get("second_stage")
        new = stage is not None and stage.class_path != (trained or {}).get("class_path")
        self.new_stage = cli.checkpoint is not None and new
        self.resumes = self.fits and cli.checkpoint is not None and not (self.new_stage or self.starts)
        self._check_options()
        self.data = cli.make_data()
        objects = self.make_objects()
        self.model: LongTailedClassifier = objects.model
        for logger in as_list(objects.trainer.logger):
            if self.resumes and isinstance(logger, WandB):
                logger.resume((cli.checkpoint or {}).get(checkpoints.WANDB))
        # absolute, as Lightning takes the names last, best and hpc for other files
        self.ckpt_path = None if cli.checkpoint is None else str(Path(cli.ckpt_paths[0]).absolute())
        loaded = {} if self.ckpt_path is None or cli.checkpoint is None else {self.ckpt_path: cli.checkpoint}
        further = start_callbacks(cli, self.data) if self.starts else []
        if self.resumes and cli.checkpoint is not None:
            further = resumed_callbacks(cli.checkpoint)
        self.test_best = self.test_best or bool(further)
        self.trainer = run_trainer(cli, objects.trainer, loaded, further)
        self._check_objects()

    def make_objects(self) -> Namespace:
        """Return new objects for all classes of the configuration."""
        try:
            objects = self.cli.make_all(self.data)
        except ValueError as error:
            if input_error(error) is not None:
                raise
            *_, first = causes(error)
            raise InputError(f"what is configured cannot be made ({' '.join(str(first).split())}).") from error
        set_prior(self.cli, objects.model)
        return objects

    def _check_options(self) -> None:
        """Check options, and compare them with the checkpoint's, before anything is made."""
        cli, config, trainer = self.cli, self.cli.config, self.cli.config.trainer
        check_loggers(trainer.logger)
        check_switches(trainer, self.fits)
        for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
            if trainer[name] is not None and trainer[name] < 1:
                raise InputError(f"--trainer.{name} is {trainer[name]}, but must be at least 1.")
        clipped = trainer.gradient_clip_val
        if clipped is not None and not 0 <= clipped < math.inf:
            raise InputError(f"--trainer.gradient_clip_val is {clipped}, but must be at least 0 and finite.")
        if trainer.precision is None and config.model.fast == "auto":
            trainer.precision = mixed_precision(trainer.accelerator)
        for key in ("logger", "callbacks"):  # an overlay given twice
            if isinstance(trainer[key], list):
                trainer[key] = [value for i, value in enumerate(trainer[key]) if value not in trainer[key][:i]]
        if not self.fits or self.starts:
            cli.check_trained()
        if cli.checkpoint is None and config.model.second_stage is not None:
            raise InputError("a second stage starts from a trained network: set --ckpt_path to its checkpoint.")
        if cli.checkpoint is not None:
            checkpoints.without_pretrained(config.model)
        if not self.fits or cli.checkpoint is None or not cli.trained:
            return
        now, kept = yaml.safe_load(cli.config_yaml()), checkpoints.history(cli.checkpoint)
        if checkpoints.head(cli.checkpoint) is not None:  # its settings of a training were not used
            cli.history = kept | {"started from": "recommend"}
            return
        cli.history = kept | compare.history(cli.trained, now, "resumed from" if self.resumes else "first stage")
        if self.resumes:
            if not self.change_loss:
                compare.check_loss(cli.trained["model"]["loss"], now["model"]["loss"])
            compare.check_steps(cli.trained["model"], now["model"])
            compare.check_callbacks(cli.trained, now)

    def _check_objects(self) -> None:
        """Check data, model and Trainer together; begin a second stage from the checkpoint's weights."""
        content, stage, model = self.cli.checkpoint, self.model.second_stage, self.model
        if self.fits:
            if (batches := self.data.accumulation(self.trainer.world_size)) is not None:
                self.trainer.accumulate_grad_batches = self.cli.config.trainer.accumulate_grad_batches = batches
            scheduler = check_training(model, self.data, self.trainer)
            check_last_batch(model, self.data, self.trainer.world_size)
            if self.test_best and best_checkpoint(self.trainer) is None:
                raise InputError(
                    "--test_best needs a callback that keeps the best checkpoint: add --trainer.callbacks+="
                    f"ModelCheckpoint --trainer.callbacks.monitor=val/{model.task.main_metric} "
                    "--trainer.callbacks.mode=max."
                )
            check_features(self.trainer, model, self.data, scheduler, content if self.resumes else None)
        if content is None:
            return
        if self.new_stage and stage is not None and stage.trains != self.fits:
            command = "fit" if stage.trains else "test"
            raise InputError(f"{type(stage).__name__} can only start from this checkpoint by lt-cb {command}.")
        if (self.new_stage or self.starts) and self.fits:
            model.start_from(content)
            return
        model.on_load_checkpoint(dict(content))
        if not self.fits:
            return
        compare.check_optimizer(content, model.make_optimizer(model.parameter_groups()))
        done, asked = trained_epochs(content), self.trainer.max_epochs
        if asked is not None and 0 <= asked < done:
            raise InputError(
                f"the checkpoint has been trained for {done} epochs, but --trainer.max_epochs is {asked}: to resume, "
                "set more."
            )
        averages = any(str(key).startswith("StochasticWeightAveraging") for key in content["callbacks"])
        if averages and done == self.cli.trained.get("trainer", {}).get("max_epochs") != asked:
            raise InputError(
                "the checkpoint has the average of StochasticWeightAveraging, with which its training ended: to train "
                "for longer, train anew."
            )
        if is_within_epoch(content) and done != asked:
            warn(
                "The checkpoint was saved in the middle of an epoch: Lightning cannot resume there, so that some "
                "images are left out of this epoch."
            )


@command(FIT, defaults=of_pretrained)
def fit(cli: CommandLine) -> None:
    """Train, and test the last checkpoint, or with ``--test_best`` the best."""
    train(Session(cli))


def train(session: Session) -> None:
    """Train, test the last or the best checkpoint, and say what to do next."""
    cli, trainer, model, data = session.cli, session.trainer, session.model, session.data
    tested_as_features = feed_features(session)
    if cli.config.trainer.enable_model_summary is None:
        rank_zero_info(summary(model, data, str(cli.config.model.backbone)))
    resumed = session.ckpt_path if session.resumes else None
    begins_at = (cli.checkpoint or {}).get("global_step", 0) if session.resumes else 0
    try:
        trainer.fit(model, datamodule=data, ckpt_path=resumed, weights_only=True)
    except SIGTERMException:
        last = RunDir(str(trainer.loggers[0].log_dir)).checkpoint
        advice = f"to resume, set --ckpt_path {last}" if last.is_file() else "no epoch is complete, start again"
        raise SIGTERMException(advice) from None
    tested = None if resumed is None else Path(resumed)
    if trainer.global_step > begins_at or session.test_best:  # else nothing was left to train
        tested = written_checkpoint(trainer, session.test_best) or tested
    folder = trainer.log_dir  # a broadcast that all processes must join
    best = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, BestEpoch)]
    if trainer.is_global_zero:
        print_ending(trainer, model.task.main_metric, folder, tested)
        sys.stdout.writelines(f"{callback.verdict(model)}\n" for callback in best)
    if tested_as_features:
        data.restore_images("test")
    if tested is None or not tested.is_file():  # fast_dev_run, or a strategy that writes folders
        trainer.test(model, datamodule=data, ckpt_path=tested, verbose=False, weights_only=True)
        return
    # a new model and Trainer, as in a new process: callbacks of the training may have changed the weights in memory
    checkpoints.without_pretrained(cli.config.model)
    objects = session.make_objects()
    kept = [c for c in trainer.callbacks if isinstance(c, ResultFile | SaveLogits | ClassesToWandB)]  # type: ignore[attr-defined]
    tester = make_trainer(objects.trainer, trainer.loggers, [*kept, LastCheckpoint()])
    tester.fit_loop.load_state_dict(trainer.fit_loop.state_dict())  # epoch and step in metrics.csv
    tester.test(objects.model, datamodule=data, ckpt_path=tested, verbose=False, weights_only=True)
    if folder is not None and tester.is_global_zero:
        gains = [gain for callback in best if (gain := callback.gain(model)) is not None]
        start = cli.ckpt_paths if session.starts and any(gain.low <= 0 for gain in gains) else []
        sys.stdout.write(next_line(data, RunDir(folder), tested, *map(Path, start)))


@command({"verbose": (bool, True, "Print the metrics.")})
def validate(cli: CommandLine) -> None:
    """Evaluate a checkpoint on the validation images."""
    session, options = Session(cli), {"verbose": cli.config.verbose, "weights_only": True}
    session.trainer.validate(session.model, datamodule=session.data, ckpt_path=session.ckpt_path, **options)


@command(PRIOR)
def test(cli: CommandLine) -> None:
    """Evaluate a checkpoint, or the average of several; `ResultFile` prints a fuller table than Lightning."""
    check_data(cli)
    session, options = Session(cli), {"verbose": False, "weights_only": True}
    model = Average(trained_networks(cli), cli.ckpt_paths) if cli.others else session.model
    with reused_memory():
        session.trainer.test(model, datamodule=session.data, ckpt_path=session.ckpt_path, **options)


def main(
    args: Sequence[str] | None = None,
    model_class: type[LongTailedClassifier] = LongTailedClassifier,
    data_class: type[LongTailedDataModule] = LongTailedDataModule,
) -> None:
    """Run ``lt-cb fit``, ``validate`` or ``test`` from Python.

    Args:
        args: the command line as a list of words, the first of them the command; None takes the process's.
        model_class: class of ``--model``, unless the command line names another.
        data_class: class of ``--data``, unless the command line names another.

    Raises:
        SystemExit: with code 2, after one sentence on stderr, if the input is wrong.
    """
    name, *words = sys.argv[1:] if args is None else args
    {"fit": fit, "validate": validate, "test": test}[name](words, model_class=model_class, data_class=data_class)


def feed_features(session: Session) -> bool:
    """Replace images by the features of a frozen backbone, computed once; return whether test images were replaced."""
    model, data, config = session.model, session.data, session.cli.config.trainer
    if not model.is_frozen or data.augments or model.mix is not None or not isinstance(config.strategy, str):
        return False
    if session.resumes and session.cli.checkpoint is not None:  # `fit` loads it again, with its optimiser
        model.backbone.load_state_dict(model.backbone_state(session.cli.checkpoint))
    trainer = feature_trainer(config)
    for split in sorted({"train", data.validation_split}):
        data.replace_images(split, torch.from_numpy(frozen_features(model, data, split, trainer)[0]))
    return data.validation_split == "test"


def check_training(model: LongTailedClassifier, data: LongTailedDataModule, trainer: Trainer) -> LRScheduler:
    """Check optimiser, schedule and end of a training; warn of options without effect. Return a schedule."""
    for name, made in (("optimizer", model.make_optimizer), ("lr_scheduler", model.make_scheduler)):
        if made is None:
            raise InputError(f"--model.{name} is null, but must be a class, as torch.optim has it: name one.")
    try:
        scheduler: LRScheduler = model.make_scheduler(model.make_optimizer(model.parameter_groups()))
        if not isinstance(scheduler, (*BY_STEP, ReduceLROnPlateau)):  # they need more than a step
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the optimiser has made no step
                scheduler.step()
        trial = torch.nn.Parameter(torch.zeros(2, 2))
        trial.grad = torch.zeros(2, 2)  # dense: SparseAdam refuses it
        model.make_optimizer([{"params": [trial]}]).step(lambda: 0.0)
    except (ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise InputError(f"the optimiser or its schedule cannot be made ({error}): see --model.optimizer.") from error
    in_fractions = isinstance(scheduler, StepwiseSchedule) and scheduler.total_steps is None
    if in_fractions or model.drw_start > 0.0 or data.sampler is not None:
        training_progress(trainer, 0)
    no_weighting, no_sampler = model.loss.weighting is None, data.sampler is None
    if model.drw_start > 0.0 and no_weighting:
        warn("drw_start is set, but the loss has no weighting: nothing is deferred.")
    if data.drs_start > 0.0 and no_sampler:
        warn("drs_start is set, but the data have no sampler: nothing is deferred.")
    if not no_weighting and not no_sampler:
        warn(
            "The class weights and the sampler both favour rare classes, and compound: unless you mean it, set "
            "--model.loss.weighting null or --data.sampler null."
        )
    return scheduler


def check_last_batch(model: LongTailedClassifier, data: LongTailedDataModule, devices: int) -> None:
    """Drop a last training batch of one image, with a warning, if the network's batch norm needs two.

    That is so where its last feature map is 1 x 1. Raises InputError if no batch would be left.
    """
    last = data.num_images % (devices * data.batch_size)
    if data.batch_size > 1 and not 0 < last < 2 * devices:
        return
    if (
        model.is_frozen
        or model.freeze_norm
        or not any(isinstance(module, _BatchNorm) for module in model.backbone.modules())
    ):
        return
    image = torch.zeros(1, data.in_channels, data.image_size, data.image_size)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copy.deepcopy(model.backbone).train()(image)
    except ValueError:  # expected more than 1 value per channel
        needs = f"the batch norm of this network needs at least 2 images of {data.image_size} pixels in training"
        if data.batch_size == 1 or data.num_images == last:
            raise InputError(
                f"--data.batch_size is {data.batch_size} for {data.num_images} images on {devices} devices, but "
                f"{needs}: set it to 2 or more, use fewer devices, or set a larger --data.image_size."
            ) from None
        data.drop_single = True
        warn(
            f"The last batch of an epoch has 1 image, but {needs}: it is left out, another image in each epoch. To use "
            "all images, set another --data.batch_size."
        )


def summary(model: LongTailedClassifier, data: LongTailedDataModule, backbone: str) -> str:
    """Return one line on network, loss and data."""
    parameters, loss, counts = list(model.parameters()), model.loss, model.loss.class_counts
    size, trained = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
    labels = f" with {sum(counts):,} labels" if model.multi_label else ""
    weighting = f" with {type(loss.weighting).__name__}" if loss.weighting is not None else ""
    return (
        f"{backbone}: {size / 1e6:.3g} M parameters{f', {trained:,} of them trained' if trained < size else ''}; "
        f"{type(loss).__name__}{weighting}; {len(counts)} classes, {data.num_images:,} training images{labels}, "
        f"imbalance factor {max(counts) / min(count for count in counts if count):.4g}."
    )
