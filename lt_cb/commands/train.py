"""``lt-cb fit``, ``validate`` and ``test``: LightningCLI, wired for long-tailed classification."""

import importlib
import math
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, ReduceLROnPlateau, SaveConfigCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lt_cb.runs import checkpoint as checkpoints
from lt_cb.callbacks import ResultFile
from lt_cb.callbacks.result import main_metric, print_ending
from lt_cb.commands.messages import HelpAll, Parser, causes, input_error, lost_process, quiet, values
from lt_cb.commands.prior import read_prior
from lt_cb.data import LongTailedDataModule
from lt_cb.errors import InputError
from lt_cb.hardware import mixed_precision
from lt_cb.loggers import RunFolder, TensorBoard, WandB, check_loggers, finish, wandb_logger
from lt_cb.module import LongTailedClassifier
from lt_cb.runs.folder import TERMINATED, RunDir, shipped, write_text
from lt_cb.schedule import StepwiseSchedule, training_progress
from lt_cb.trust import check_kinds, config_files, is_trusted, read_checkpoint

OF_SEVERAL = "--model.loss=lt_cb.losses.SigmoidLoss"  # plain loss of several labels an image


class SaveConfig(SaveConfigCallback):
    """Saves the resolved config in the run folder and in every checkpoint."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the config to a checkpoint, so that ``test --ckpt_path`` needs nothing else, and the run at W&B."""
        checkpoint[checkpoints.CONFIG] = self.parser.dump(self.config, skip_none=False)
        if (logger := wandb_logger(trainer)) is not None:
            checkpoint[checkpoints.WANDB] = logger.version
        trained = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("train/")}
        checkpoint[checkpoints.METRICS] = {"epoch": trainer.current_epoch, "step": trainer.global_step - 1, **trained}

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the config to the run's folder, and show it in the loggers beside the CSV files."""
        folder = trainer.loggers[0].log_dir
        write_text(RunDir(folder or ".").config, self.parser.dump(self.config, skip_none=False))
        for logger in trainer.loggers[1:]:
            logger.log_hyperparams(yaml.safe_load(self.parser.dump(self.config, skip_none=False)))


class LastCheckpoint(ModelCheckpoint):
    """``checkpoints/last.ckpt``, after every epoch; ``--trainer.callbacks+=ModelCheckpoint`` adds one for the best."""

    def __init__(self) -> None:
        super().__init__(filename="last", enable_version_counter=False, save_on_train_epoch_end=True)


class CLI(LightningCLI):
    """LightningCLI for one command of `LongTailedClassifier` and `LongTailedDataModule`.

    Given ``--ckpt_path``, a command starts from the config of the run that wrote it; files and flags on the command
    line go over that. ``fit`` ends with a test of its last checkpoint.

    Args:
        command: fit, validate or test; another one overrides `instantiate_classes`.
        args: the words behind it.
        model_class: `LongTailedClassifier`, or a class of one's own that derives from it.
        data_class: `LongTailedDataModule`, likewise.
        checkpoint: what ``--ckpt_path`` among the words names, read.
    """

    def __init__(
        self,
        command: str,
        args: list[str],
        model_class: type[LongTailedClassifier] = LongTailedClassifier,
        data_class: type[LongTailedDataModule] | None = LongTailedDataModule,
        checkpoint: dict[str, Any] | None = None,
    ) -> None:
        self.command = command
        self.checkpoint = checkpoint
        self.trained_stage: str | None = None  # class path of the checkpoint's second stage
        self.new_stage = False  # whether the second stage asked for is another
        self.change_loss = False
        self.test_best = False
        super().__init__(
            model_class,
            data_class,
            args=args,
            parser_class=Parser,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},  # it does so itself
            seed_everything_default=0,
            parser_kwargs={"allow_abbrev": False, "prog": f"lt-cb {command}"},
            auto_configure_optimizers=False,
            trainer_defaults={"callbacks": [ResultFile(), LastCheckpoint()], "default_root_dir": "runs"},
            run=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what is ours, link what the model has to know of the data, and set defaults."""
        parser.add_argument("--help_all", action=HelpAll, help="Show the help of all options and exit.")
        parser.add_argument(
            "--name", type=str | None, default="run", help="Runs go to trainer.default_root_dir/NAME/version_N."
        )
        parser.add_argument("--folder", type=str | None, help="Where this run goes instead; it must have no run yet.")
        for which in ("model", "data"):
            parser.add_argument(f"--{which}_class", type=str | None, help=f"Class path of your own, as --{which} PATH.")
        trust = "Let the checkpoint name classes of any package: of one who could run any code here. Not in a file."
        parser.add_argument("--trust_checkpoint", type=bool, default=False, help=trust)
        if self.command in ("fit", "validate", "test"):
            skip = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}
            parser.add_method_arguments(Trainer, self.command, skip=skip)
        if self.command in ("test", "predict", "export"):
            prior = "How often each class will come: uniform, train (as in training), or a CSV file of class and share."
            parser.add_argument("--prior", type=str | None, help=prior)
        if self.command == "fit":
            parser.add_argument("--change_loss", type=bool, default=False, help="Go on with another loss than before.")
            best = "Test the best checkpoint, of a ModelCheckpoint with a monitor, in place of the last."
            parser.add_argument("--test_best", type=bool, default=False, help=best)
        if self.datamodule_class is not None:
            parser.link_arguments("seed_everything", "data.seed", compute_fn=int, apply_on="parse")
            for name in ("class_counts", "num_images"):  # the second is of few losses
                parser.link_arguments(f"data.{name}", f"model.loss.init_args.{name}", apply_on="instantiate")
            for name in checkpoints.DATA_FACTS:
                parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")
        parser.set_defaults({"model.loss": {"class_path": "lt_cb.losses.SoftmaxLoss"}})

    def before_checkpoint(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the part of a checkpoint's config that the command starts from."""
        for key in ("ckpt_path", "prior"):
            config.pop(key, None)
        if isinstance(config.get("folder"), str):  # of that run; this one goes beside it
            place = Path(config.pop("folder")).parent
            config["trainer"]["default_root_dir"], config["name"] = str(place.parent), place.name
        self.trained_stage = (config["model"].get("second_stage") or {}).get("class_path")
        return config

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the arguments, on top of the config in the checkpoint."""
        assert isinstance(args, list)
        before = None if self.checkpoint is None else checkpoints.config(self.checkpoint)
        if before is not None:
            args = ["--config", yaml.safe_dump(self.before_checkpoint(before)), *args]
        for content in config_files(args):
            for key in ("trainer", "model", "data"):  # in place of which jsonargparse takes what it has not been told
                if not isinstance(content.get(key, {}), dict):
                    given = "null" if content[key] is None else str(content[key])[:80]
                    raise InputError(
                        f"{key} is {given} in a configuration file, but must be a mapping of its "
                        "options: write them below it, or leave it out."
                    )
        if self.command == "fit" and before is None and not _names_loss(args):
            of_several = [OF_SEVERAL, *args]
            looked_at = parser.parse_args([word for word in of_several if not word.startswith("--print_config")])
            check_kinds(looked_at.as_dict())
            args = of_several if have_several_labels(self._datamodule_class, looked_at.data) else args
        self.config = parser.parse_args(args)
        if not 0 <= self.config.seed_everything < 2**32:  # as numpy has it
            raise InputError(
                f"--seed_everything is {self.config.seed_everything}, but must be at least 0 and below 2**32."
            )
        self.change_loss = bool(self.config.pop("change_loss", False))
        self.test_best = bool(self.config.pop("test_best", False))
        self.config.pop("trust_checkpoint")
        check_kinds(self.config.as_dict())
        if self.config.get("weights_only") is False and not is_trusted(args):
            raise InputError(
                "weights_only is false, which lets a checkpoint run any code: set --trust_checkpoint true."
            )

    def before_instantiate_classes(self) -> None:
        """Choose the precision, and refuse what cannot be, before anything is made."""
        config = self.config
        check_loggers(config.trainer.logger)
        for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
            if config.trainer[name] is not None and config.trainer[name] < 1:
                raise InputError(f"--trainer.{name} is {config.trainer[name]}, but must be at least 1.")
        clipped = config.trainer.gradient_clip_val
        if clipped is not None and not 0 <= clipped < math.inf:
            raise InputError(f"--trainer.gradient_clip_val is {clipped}, but must be at least 0 and finite.")
        if config.trainer.precision is None and config.model.fast == "auto":
            config.trainer.precision = mixed_precision(config.trainer.accelerator)
        for key in ("logger", "callbacks"):  # an overlay added to a checkpoint's config that has it already
            if isinstance(config.trainer[key], list):
                config.trainer[key] = [v for i, v in enumerate(config.trainer[key]) if v not in config.trainer[key][:i]]
        if self.command != "fit" and config.get("ckpt_path") is None:
            raise InputError(f"{self.command} needs a trained model: set --ckpt_path to the checkpoint of a run.")
        if config.get("ckpt_path") is None and self._stage() is not None:
            raise InputError(
                "a second stage starts from a trained network: set --ckpt_path to the checkpoint of a run."
            )
        if self.checkpoint is not None:
            checkpoints.without_pretrained(config.model)
        self.new_stage = self.checkpoint is not None and self._stage() not in (None, self.trained_stage)
        before = None if self.checkpoint is None else checkpoints.config(self.checkpoint)
        if self.command == "fit" and before is not None and not self.new_stage and not self.change_loss:
            now = yaml.safe_load(self.parser.dump(config, skip_none=False))
            checkpoints.check_loss(before["model"]["loss"], now["model"]["loss"])
        if self.command == "fit" and before is not None and not self.new_stage:
            checkpoints.check_steps(before["model"], config.model.as_dict())

    def instantiate_classes(self) -> None:
        """Make data, model and Trainer.

        Raises:
            InputError: if a class takes none of the values that it is given.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            if input_error(error) is not None:
                raise
            *_, first = causes(error)
            raise InputError(f"what is configured cannot be made ({' '.join(str(first).split())}).") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: ANN401 - of the Trainer
        """Make the Trainer, whose first logger is the run's folder."""
        config = self.config_init["trainer"]
        asked = config["logger"]
        further: list[Logger] = asked if isinstance(asked, list) else [] if asked in (None, True, False) else [asked]
        folder = self.run_folder()
        for logger in further:
            if isinstance(logger, WandB | TensorBoard):
                logger.beside = folder
            if isinstance(logger, WandB) and self.checkpoint and self.command == "fit" and not self.new_stage:
                logger.go_on(self.checkpoint.get(checkpoints.WANDB))
        kwargs["logger"] = [folder, *further]
        if config["enable_model_summary"] is None:  # `run` says what there is to say
            kwargs["enable_model_summary"] = False
        if config["plugins"] is None:
            kwargs["plugins"] = [checkpoints.WholeFiles()]
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
            raise InputError(f"the Trainer cannot be made ({' '.join(str(error).split())}): see --trainer.") from error

    def after_instantiate_classes(self) -> None:
        """Refuse, before anything is written, what does not fit; begin a second stage from the checkpoint's weights."""
        training = self.command == "fit"
        if self.config.get("prior") is not None:
            self._set_prior(self.config.prior)
        if training:
            _set_accumulation(self)
            _check_training(self.model, self.datamodule, self.trainer)
            _check_validation(self.trainer, self.model, self.test_best)
        if self.checkpoint is None:
            return
        stage = self.model.second_stage
        if self.new_stage and stage.trains != training:
            command = "fit" if stage.trains else "test"
            raise InputError(f"{type(stage).__name__} goes with this checkpoint by lt-cb {command} alone.")
        if self.new_stage and training:
            self.model.start_from(self.checkpoint)
            return
        self.model.on_load_checkpoint(dict(self.checkpoint))
        if training:
            checkpoints.check_optimizer(self.checkpoint, self.model.make_optimizer(self.model.parameter_groups()))
        done, asked = self.checkpoint.get("epoch", -1) + 1, self.trainer.max_epochs
        if training and asked is not None and 0 <= asked < done:
            raise InputError(
                f"the checkpoint has {done} epochs behind it, but --trainer.max_epochs is {asked}: to go on, give more."
            )

    def run(self) -> None:
        """Run the command."""
        options = {"datamodule": self.datamodule, "ckpt_path": self.config.ckpt_path}
        options["weights_only"] = self.config.weights_only is not False  # torch's own default depends on its version
        if self.command == "validate":
            self.trainer.validate(self.model, verbose=self.config.verbose, **options)
        elif self.command == "test":  # without Lightning's table; `ResultFile` prints a fuller one
            self.trainer.test(self.model, verbose=False, **options)
        else:
            self._feed_features()
            if self.new_stage:  # it has its weights already, and starts at epoch 0
                options["ckpt_path"] = None
            if self.config_init["trainer"]["enable_model_summary"] is None:
                rank_zero_info(_summary(self.model, self.datamodule, str(self.config.model.backbone)))
            begins_at = 0 if self.checkpoint is None or self.new_stage else self.checkpoint.get("global_step", 0)
            self.trainer.fit(self.model, **options)
            if self.trainer.global_step > begins_at:  # else there was nothing left to train
                options["ckpt_path"] = self._written()
            folder = self.trainer.log_dir  # a broadcast, which all processes have to join
            if self.trainer.is_global_zero:
                print_ending(self.trainer, folder, options["ckpt_path"])
            self.trainer.test(self.model, verbose=False, **options)

    def _written(self) -> str | None:
        """Return the checkpoint to test after a training, None if there is none, as after a fast_dev_run."""
        best = _best_checkpoint(self.trainer)
        if self.test_best and best is not None and best.best_model_path:
            return best.best_model_path
        if self.test_best:
            rank_zero_warn("There is no best checkpoint, as nothing was validated: the last is tested.", stacklevel=1)
        written = [c.best_model_path for c in self.trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)]
        return written[0] or None

    def run_folder(self) -> RunFolder:
        """Return the logger of the run's folder.

        Raises:
            InputError: if it is one that is given, and has another run.
        """
        config = self.config
        folder = RunFolder.of(config.folder, config.trainer.default_root_dir, config.name)
        if config.folder is not None:
            goes_on = self.command == "fit" and _same_run(config)
            folder.claim(self.checkpoint if goes_on else None)
        return folder

    def _feed_features(self) -> None:
        """Run a frozen backbone once over images that are the same in every epoch, in place of once an epoch."""
        model, data, config = self.model, self.datamodule, self.config_init["trainer"]
        if not model.is_frozen or data.augments or model.mix is not None or not isinstance(config["strategy"], str):
            return
        from lt_cb.features import feature_trainer, frozen_features

        if self.checkpoint is not None and not self.new_stage:  # the fit loads it again, with its optimiser
            model.backbone.load_state_dict(checkpoints.backbone_state(self.checkpoint))
        trainer = feature_trainer(config)
        for split in dict.fromkeys(("train", data.validation_split, "test")):
            data.replace_images(split, torch.from_numpy(frozen_features(model, data, split, trainer)[0]))

    def _set_prior(self, given: str) -> None:
        """Predict under another prior, if loss and class counts tell that of the network."""
        before = (None if self.checkpoint is None else checkpoints.config(self.checkpoint)) or {}
        stage, why = self.model.second_stage, None
        if self.model.multi_label:
            why = "an image may have several labels, which do not share a prior"
        elif (before.get("data") or {}).get("sampler") is not None:
            why = "the checkpoint was trained with a sampler, by which the classes came otherwise"
        elif stage is not None and not stage.trains:
            why = f"{type(stage).__name__} changes the logits"
        elif before:
            try:
                now = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
                checkpoints.check_loss(before["model"]["loss"], now["model"]["loss"])
            except InputError:
                why = "the checkpoint was trained with another loss than this --model.loss"
        if why is not None:
            raise InputError(f"--prior goes by the loss and the class counts of the training, but {why}: leave it out.")
        self.model.set_prior(read_prior(given, self.model.class_names, self.model.loss))

    def _stage(self) -> str | None:
        stage = self.config.model.second_stage
        return None if stage is None else str(stage.class_path)


def data_module(cls: Any, data: Namespace) -> LongTailedDataModule:  # noqa: ANN401 - a class
    """Return the data module of a configuration."""
    parser = Parser()
    parser.add_lightning_class_args(cls, "data")
    made: LongTailedDataModule = parser.instantiate_classes(Namespace(data=data)).data  # type: ignore[no-untyped-call]
    return made


def have_several_labels(cls: Any, data: Namespace) -> bool:  # noqa: ANN401 - a class
    """Return whether the data of a configuration have several labels an image, as far as they can be made."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which come again, as errors do
            return data_module(cls, data).multi_label
    except Exception:
        return False


def _names_loss(args: Sequence[str]) -> bool:
    """Return whether the loss is given, on the command line or in a configuration file."""
    files = ((content.get("model") or {}).get("loss") for content in config_files(args))
    return any(values(args, "--model.loss")) or any(loss is not None for loss in files)


def _same_run(config: Any) -> bool:  # noqa: ANN401 - as parsed
    """Return whether the checkpoint to start from is one of the folder to write to."""
    path, own = config.get("ckpt_path"), RunDir(config.folder).checkpoint
    kept = [file.resolve() for file in (own, checkpoints.before(own)) if file.is_file()]
    return path is not None and Path(path).resolve() in kept


def _set_accumulation(cli: CLI) -> None:
    """Accumulate as many batches as the data's global batch size takes on these devices."""
    batches = cli.datamodule.accumulation(cli.trainer.world_size)
    if batches is not None:
        cli.trainer.accumulate_grad_batches = cli.config.trainer.accumulate_grad_batches = batches


def _check_training(model: LongTailedClassifier, data: LongTailedDataModule, trainer: Trainer) -> None:
    """Refuse a training without an end where fractions of it are asked for; warn of what does nothing, or twice."""
    for name, made in (("optimizer", model.make_optimizer), ("lr_scheduler", model.make_scheduler)):
        if made is None:
            raise InputError(f"--model.{name} is null, but must be a class, as torch.optim has it: name one.")
    try:
        scheduler = model.make_scheduler(model.make_optimizer(model.parameter_groups()))
        if not isinstance(scheduler, StepwiseSchedule | ReduceLROnPlateau):  # which know more than the step
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # there was no step of the optimiser
                scheduler.step()
        trial = torch.nn.Parameter(torch.zeros(2, 2))
        trial.grad = torch.zeros(2, 2)  # dense, which not every optimiser takes
        model.make_optimizer([{"params": [trial]}]).step(lambda: 0.0)
    except (ValueError, ArithmeticError, RuntimeError) as error:
        raise InputError(f"the optimiser or its schedule cannot be made ({error}): see --model.optimizer.") from error
    in_fractions = isinstance(scheduler, StepwiseSchedule) and scheduler.total_steps is None
    if in_fractions or model.drw_start > 0.0 or data.sampler is not None:
        training_progress(trainer, 0)
    weighting = model.loss.weighting
    if model.drw_start > 0.0 and weighting is None:
        rank_zero_warn("drw_start is set, but the loss has no weighting: nothing is deferred.", stacklevel=1)
    if data.drs_start > 0.0 and data.sampler is None:
        rank_zero_warn("drs_start is set, but the data have no sampler: nothing is deferred.", stacklevel=1)
    if weighting is not None and data.sampler is not None:
        rank_zero_warn(
            "The class weights and the sampler both favour rare classes, and compound: unless that is meant, set "
            "--model.loss.weighting null or --data.sampler null.",
            stacklevel=1,
        )


def _summary(model: LongTailedClassifier, data: LongTailedDataModule, backbone: str) -> str:
    """Return what is trained on what."""
    parameters, loss, counts = list(model.parameters()), model.loss, model.loss.class_counts
    size, trained = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
    labels = f" with {sum(counts):,} labels" if model.multi_label else ""
    weighting = f" with {type(loss.weighting).__name__}" if loss.weighting is not None else ""
    return (
        f"{backbone}: {size / 1e6:.3g} M parameters{f', {trained:,} of them trained' if trained < size else ''}; "
        f"{type(loss).__name__}{weighting}; {len(counts)} classes, {data.num_images:,} training images{labels}, "
        f"imbalance factor {max(counts) / min(count for count in counts if count):.4g}."
    )


def _best_checkpoint(trainer: Trainer) -> ModelCheckpoint | None:
    """Return what keeps the best checkpoint, if anything does."""
    return next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor), None)


def _check_validation(trainer: Trainer, model: LightningModule, test_best: bool) -> None:
    """Refuse to test the best where nothing tells it; warn of a training that ends before its first validation."""
    best, every, epochs = _best_checkpoint(trainer), trainer.check_val_every_n_epoch, trainer.max_epochs
    if test_best and best is None:
        raise InputError(
            "--test_best needs what keeps the best checkpoint: add --trainer.callbacks+=ModelCheckpoint "
            f"--trainer.callbacks.monitor=val/{main_metric(model)} --trainer.callbacks.mode=max."
        )
    if every is None or epochs is None or not 0 < epochs < every or trainer.limit_val_batches == 0:
        return
    early = f"--trainer.check_val_every_n_epoch is {every}, but --trainer.max_epochs {epochs}: nothing is validated."
    if test_best and str(best and best.monitor).startswith("val/"):
        raise InputError(f"{early[:-1]}, and no checkpoint is the best.")
    rank_zero_warn(early, stacklevel=1)


def _own_class(
    args: list[str], which: str, default: type[Any], checkpoint: dict[str, Any] | None
) -> tuple[type[Any], list[str]]:
    """Return the class that ``--model PATH`` or ``--data PATH`` names, and the arguments with it by its config key.

    A config file, or the config of a checkpoint, names it by the key ``model_class`` or ``data_class``.
    """
    key, words = f"{which}_class", list(args)
    for i, word in enumerate(words):
        if word == f"--{which}" and words[i + 1 : i + 2]:
            words[i : i + 2] = [f"--{key}={words[i + 1]}"]
        elif word.startswith(f"--{which}="):
            words[i] = word.replace(f"--{which}", f"--{key}", 1)
    before = None if checkpoint is None else checkpoints.config(checkpoint)
    configs = [before or {}, *config_files(words)]
    named = [config[key] for config in configs if config.get(key)] + list(values(words, f"--{key}"))
    if not named:
        return default, words
    module, _, name = str(named[-1]).rpartition(".")
    try:
        own = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InputError(
            f"--{which} is '{named[-1]}', which cannot be imported ({error}): give a class path."
        ) from error
    if not isinstance(own, type) or not issubclass(own, default):
        raise InputError(f"--{which} is '{named[-1]}', but must be a class that derives from {default.__name__}.")
    return own, words


def _located(args: Sequence[str]) -> list[str]:
    """Return the arguments with the paths of the configuration files that come with lt_cb."""
    words = list(args)
    for i, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in ("--config", "-c"):
            words[i] = f"--config={shipped(value)}" if equals else "--config"
            if not equals and i + 1 < len(words):
                words[i + 1] = shipped(words[i + 1])
    return words


def _restoring(error: Exception) -> str | None:
    """Return the sentence for an error that came up while Lightning took what is in a checkpoint, None for others."""
    if not any(frame.name.startswith("restore") for frame in traceback.extract_tb(error.__traceback__)):
        return None
    why = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f"what is in the checkpoint cannot be restored ({why}): take another."


def run(
    make: type[CLI],
    command: str,
    args: Sequence[str],
    model_class: type[LongTailedClassifier],
    data_class: type[LongTailedDataModule] | None,
) -> None:
    """Run a command whose parser is LightningCLI's, and show what is wrong with its input as one sentence."""
    quiet()
    try:
        words = _located(args)
        checkpoint = read_checkpoint(words)
        model_class, words = _own_class(words, "model", model_class, checkpoint)
        data_class, words = _own_class(words, "data", data_class or LongTailedDataModule, checkpoint)
        make(command, words, model_class, data_class, checkpoint).run()
        finish(succeeded=True)
    except SIGTERMException:  # its own code would be 0, as if the training had come to its end
        finish(succeeded=False)
        sys.stderr.write("lt-cb: terminated: --ckpt_path with the run's checkpoints/last.ckpt goes on.\n")
        raise SystemExit(TERMINATED) from None
    except Exception as error:
        finish(succeeded=False)
        wrong, lost = input_error(error) or _restoring(error), lost_process(error)
        if wrong is None and lost is None:
            raise
        sys.stderr.write(f"lt-cb: error: {wrong or lost}\n")
        raise SystemExit(1 if wrong is None else 2) from None


def main(
    args: Sequence[str] | None = None,
    model_class: type[LongTailedClassifier] = LongTailedClassifier,
    data_class: type[LongTailedDataModule] = LongTailedDataModule,
) -> None:
    """Run ``lt-cb fit``, ``validate`` or ``test``.

    Args:
        args: the command line as a list of words, of which the first is the command; None takes that of the process.
        model_class: that the options of ``--model`` are of, where the command line names none.
        data_class: that the options of ``--data`` are of, likewise.

    Raises:
        SystemExit: with code 2, after one sentence on stderr, if the input is wrong.
    """
    command, *words = sys.argv[1:] if args is None else args
    run(CLI, command, words, model_class, data_class)
