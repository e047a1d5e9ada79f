"""The command line: LightningCLI's fit, validate, test and predict for long-tailed classification, and inspect."""

import csv
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from rich.console import Console

from lt_cb.callbacks import ResultFile
from lt_cb.commands.inspect_data import weight_tables
from lt_cb.data import LongTailedDataModule, Sampler
from lt_cb.errors import InputError, did_you_mean
from lt_cb.hardware import mixed_precision
from lt_cb.loggers import TensorBoard, WandB, check_loggers, finish, wandb_logger
from lt_cb.losses import Loss, Weighting, suggest_beta
from lt_cb.models import SecondStage
from lt_cb.module import LongTailedClassifier
from lt_cb.run import read_yaml

CONFIG_KEY = "lt_cb_config"  # in a checkpoint: the resolved config of its run, as YAML
WANDB_KEY = "lt_cb_wandb_id"
EXAMPLES = {
    "optimizer": "torch.optim.SGD",
    "lr_scheduler": "torch.optim.lr_scheduler.CosineAnnealingLR",
    "mix": "torchvision.transforms.v2.MixUp",
    "augment": "torchvision.transforms.v2.RandAugment",
}


class ParseError(ValueError):
    """What jsonargparse says is wrong, over several lines, and the parser that says it."""

    def __init__(self, message: str, parser: LightningArgumentParser) -> None:
        super().__init__(message)
        self.parser = parser


class Parser(LightningArgumentParser):
    """A parser whose errors are exceptions, for `main` to show: parsers are nested, and the outermost knows all."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong with the arguments."""
        raise ParseError(message, self) from ex


class SaveConfig(SaveConfigCallback):
    """Saves the resolved config in the run folder and in every checkpoint."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the config to a checkpoint, so that ``test --ckpt_path`` needs nothing else, and the run at W&B."""
        checkpoint[CONFIG_KEY] = self.parser.dump(self.config, skip_none=False)
        if (logger := wandb_logger(trainer)) is not None:
            checkpoint[WANDB_KEY] = logger.version

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Show the config in the loggers beside the CSV files."""
        for logger in trainer.loggers[1:]:
            logger.log_hyperparams(yaml.safe_load(self.parser.dump(self.config, skip_none=False)))


class LastCheckpoint(ModelCheckpoint):
    """``checkpoints/last.ckpt``, after every epoch; ``--trainer.callbacks+=ModelCheckpoint`` adds one for the best."""

    def __init__(self) -> None:
        super().__init__(filename="last", enable_version_counter=False, save_on_train_epoch_end=True)


class InspectingTrainer(Trainer):
    """A Trainer with the subcommands that are not of Lightning: LightningCLI takes them from its class."""

    def inspect(
        self,
        model: LongTailedClassifier,
        datamodule: LongTailedDataModule,
        betas: tuple[float, ...] = (0.9, 0.99, 0.999, 0.9999),
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Show class counts, effective numbers and class weights for several beta, without training.

        Args:
            model: is not looked at.
            datamodule: has the class counts.
            betas: each in [0, 1); the suggested one is added.
            ckpt_path: a run, to look at its data.
            weights_only: is not looked at, but is in the config of a run.
        """
        suggested = suggest_beta(datamodule.class_counts)
        console = Console()
        for table in weight_tables(datamodule.class_names, datamodule.class_counts, sorted({*betas, suggested})):
            console.print(table)
        counts = datamodule.class_counts
        least = min(count for count in counts if count)
        console.print(
            f"{len(counts)} classes, {sum(counts)} training images, imbalance factor {max(counts) / least:.2f} "
            f"({max(counts)} to {least} images).",
            soft_wrap=True,
            highlight=False,
        )
        console.print(
            f"A start for the search: --model.loss.weighting.beta {suggested:.6g} (1 - 1 / largest class count).",
            soft_wrap=True,
            highlight=False,
        )


class CLI(LightningCLI):
    """LightningCLI for `LongTailedClassifier` and `LongTailedDataModule`.

    Given ``--ckpt_path``, a command starts from the config of the run that wrote it; files and flags on the command
    line go over that. ``fit`` ends with a test of its last checkpoint.
    """

    checkpoint: dict[str, Any] | None = None
    trained_stage: str | None = None  # class path of the checkpoint's second stage
    new_stage = False  # whether the second stage asked for is another

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return Lightning's subcommands and ours, with the arguments that are not options."""
        return {**LightningCLI.subcommands(), "inspect": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what the model has to know of the data, and set defaults."""
        parser.link_arguments("data.class_counts", "model.loss.init_args.class_counts", apply_on="instantiate")
        for name in ("class_names", "image_size", "in_channels", "mean", "std"):
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.set_defaults({"model.loss": {"class_path": "lt_cb.losses.SoftmaxLoss"}})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the arguments, on top of the config in the checkpoint."""
        if args is None:
            args = sys.argv[1:]
        if isinstance(args, list):
            self.checkpoint = _read_checkpoint(args)
            if self.checkpoint is not None and CONFIG_KEY in self.checkpoint:
                config = yaml.safe_load(self.checkpoint[CONFIG_KEY])
                config.pop("ckpt_path", None)
                _with_folder_of_its_own(config["trainer"])
                self.trained_stage = (config["model"].get("second_stage") or {}).get("class_path")
                args = [args[0], "--config", yaml.safe_dump(config), *args[1:]]
            try:
                self.config = parser.parse_args(args)
            except (ParseError, UnicodeDecodeError):
                _check_yaml(args)
                raise
        else:
            self.config = parser.parse_object(args)

    def _parse_ckpt_path(self) -> None:
        # Lightning lets the hyper-parameters in a checkpoint win over the command line, without a word
        if self.checkpoint is None or CONFIG_KEY not in self.checkpoint:
            super()._parse_ckpt_path()

    def before_instantiate_classes(self) -> None:
        """Refuse to evaluate an untrained model; let ``predict`` take the classes from the checkpoint."""
        if self.subcommand == "inspect":
            return
        config = self.config[self.subcommand]
        check_loggers(config.trainer.logger)
        if config.trainer.precision is None and config.model.fast == "auto":
            config.trainer.precision = mixed_precision(config.trainer.accelerator)
        for key in ("logger", "callbacks"):  # an overlay added to a checkpoint's config that has it already
            if isinstance(config.trainer[key], list):
                config.trainer[key] = [v for i, v in enumerate(config.trainer[key]) if v not in config.trainer[key][:i]]
        if self.subcommand != "fit" and config.ckpt_path is None:
            raise InputError(f"{self.subcommand} needs a trained model: set --ckpt_path to the checkpoint of a run.")
        if config.ckpt_path is None and self._stage() is not None:
            raise InputError(
                "a second stage starts from a trained network: set --ckpt_path to the checkpoint of a run."
            )
        if self.subcommand == "predict" and self.checkpoint is not None:
            config.data.source, config.data.root = "lt_cb.data.sources.Checkpoint", str(config.ckpt_path)
            config.data.imbalance_factor = config.data.n_max = config.data.subset_counts = config.data.image_size = None
            config.data.val_fraction, config.data.sampler = 0.0, None
            if isinstance(config.trainer.logger, list):  # others have nothing to log
                config.trainer.logger = config.trainer.logger[:1]
            hparams = self.checkpoint["hyper_parameters"]
            config.data.mean, config.data.std = hparams["mean"], hparams["std"]

    def after_instantiate_classes(self) -> None:
        """Refuse a checkpoint that does not fit before anything is written; begin a second stage from its weights."""
        if self.subcommand == "inspect":
            return
        self.trainer.accumulate_grad_batches = (
            self.datamodule.accumulation(self.trainer.world_size) or self.trainer.accumulate_grad_batches
        )
        self.new_stage = self.checkpoint is not None and self._stage() not in (None, self.trained_stage)
        for logger in self.trainer.loggers:
            if isinstance(logger, WandB | TensorBoard):
                logger.beside = self.trainer.loggers[0]
            if isinstance(logger, WandB) and self.checkpoint and self.subcommand == "fit" and not self.new_stage:
                logger.go_on(self.checkpoint.get(WANDB_KEY))
        if self.checkpoint is None:
            return
        stage, training = self.model.second_stage, self.subcommand == "fit"
        if self.new_stage and stage.trains != training:
            command = "fit" if stage.trains else "test"
            raise InputError(f"{type(stage).__name__} goes with this checkpoint by lt-cb {command} alone.")
        if self.new_stage and training:
            self.model.start_from(self.checkpoint)
            return
        self.model.check_checkpoint(self.checkpoint, training)
        done, asked = self.checkpoint.get("epoch", -1) + 1, self.trainer.max_epochs
        if training and asked is not None and 0 <= asked < done:
            raise InputError(
                f"the checkpoint has {done} epochs behind it, but --trainer.max_epochs is {asked}: to go on, give more."
            )

    def fit(self, model: LongTailedClassifier, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
        """Train, or go on; a new second stage has its weights already, and starts at epoch 0."""
        if self.new_stage:
            kwargs["ckpt_path"] = None
        self.trainer.fit(model, **kwargs)

    def _stage(self) -> str | None:
        stage = self.config[self.subcommand].model.second_stage
        return None if stage is None else str(stage.class_path)

    def after_fit(self) -> None:
        """Test the last checkpoint."""
        written = [c.best_model_path for c in self.trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)]
        path = written[0] or None  # fast_dev_run writes none
        self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=path, verbose=False)

    def test(self, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
        """Test without Lightning's table; `ResultFile` prints a fuller one."""
        self.trainer.test(**{**kwargs, "verbose": False})

    def predict(self, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
        """Predict, and write file, class and probability to ``predictions.csv`` in the run folder."""
        batches = self.trainer.predict(**{**kwargs, "return_predictions": True})
        folder = self.trainer.log_dir  # a broadcast, which all processes have to join
        if not self.trainer.is_global_zero or not batches:
            return
        file = Path(folder or ".", "predictions.csv")
        file.parent.mkdir(parents=True, exist_ok=True)
        pairs = [pair for classes, probabilities in batches for pair in zip(classes, probabilities, strict=True)]
        with file.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["file", "class", "probability"])
            for path, (label, probability) in zip(self.datamodule.predict_files, pairs, strict=False):
                writer.writerow([path, self.model.class_names[int(label)], f"{float(probability):.6f}"])
        sys.stdout.write(f"Predictions of {len(pairs)} images: {file}\n")


def _values(args: Sequence[str], option: str) -> Iterator[str]:
    """Yield what ``option`` is set to, as ``--option value`` or ``--option=value``."""
    for flag, following in zip(args, [*args[1:], ""], strict=True):
        name, equals, value = flag.partition("=")
        if name == option:
            yield value if equals else following


def _with_folder_of_its_own(trainer: dict[str, Any]) -> None:
    """Let a command that starts from a checkpoint write beside the checkpoint's run, whose folder may have a name."""
    loggers = trainer["logger"] if isinstance(trainer["logger"], list) else [trainer["logger"]]
    for logger in loggers:
        if isinstance(logger, dict) and "version" in logger.get("init_args", {}):
            logger["init_args"]["version"] = None


def _read_checkpoint(args: Sequence[str]) -> dict[str, Any] | None:
    """Return the checkpoint that ``--ckpt_path`` names, None without one."""
    path = next(_values(args, "--ckpt_path"), "null")
    return None if path in ("last", "best", "hpc", "registry", "null") else load_checkpoint(path)


def load_checkpoint(path: str) -> dict[str, Any]:
    """Return a run's checkpoint, on the CPU.

    Raises:
        InputError: (a ValueError) if there is none, or it is damaged.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no checkpoint '{path}': set --ckpt_path to a run's checkpoints/last.ckpt.")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what pickle, zip and its own reader do
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"'{path}' is not a checkpoint of a run, or it is damaged ({why}).") from error
    return checkpoint


def _check_yaml(args: Sequence[str]) -> None:
    """Name the config file that is no YAML, which jsonargparse does not."""
    for path in _values(args, "--config"):
        if os.path.isfile(path):  # else it may be the text of a config, which is too long a name for Path.is_file
            read_yaml(Path(path))


def _sentence(message: str, parser: LightningArgumentParser) -> str:
    """Boil jsonargparse's tree of attempts down to what was given and what is allowed."""
    key = ".".join(re.findall(r'Parser key "([^"]+)":', message))
    if number := re.search(r"Expected a <class '(float|int)'>(?:\. Got|[^$]*Given) value: (.*)", message):
        kind, given = number[1], number[2]
        return f"--{key} is {given}, but must be a {'whole number' if kind == 'int' else 'number'}."
    if match := re.search(r"dot import path string: (\S+)", message):
        name, kind = match[1], key.rpartition(".")[2]
        bases = {"loss": Loss, "weighting": Weighting, "sampler": Sampler, "second_stage": SecondStage}
        base: type[Any] | None = bases.get(kind)
        if base is not None:
            known = sorted(cls.__name__ for cls in _subclasses(base) if cls.__module__.startswith("lt_cb."))
            choice = f"choose {', '.join(known)}, or give the class path of your own." + did_you_mean(name, known)
            return f"there is no {kind} '{name}': {choice}"
        return f"there is no {kind} '{name}': give its class path, as {EXAMPLES.get(kind, 'package.module.Class')}."
    if match := re.search(r"nrecognized arguments: --([\w.+]+)|does not accept option '([\w.]+)'", message):
        option = f"--{match[1] or match[2]}"
        commands = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
        parsers = [parser, *(command for choices in commands for command in choices.values())]
        known = [name for p in parsers for action in p._actions for name in action.option_strings]
        return f"there is no option {option}: see lt-cb fit --help." + did_you_mean(option, known)
    if match := re.search(r"Option '([\w.]+)' is not accepted", message):
        return f"there is no option --{key}.{match[1]}: see lt-cb fit --help."
    noise = (
        r"Subtypes:|Given value type:|Given value:|Does not validate|Errors:|- Expected a (path|<class 'NoneType'>)|$"
    )
    lines = [re.sub(r'(- )?Parser key "[^"]+":', "", line).strip() for line in message.splitlines()]
    kept = [line.removeprefix("- ") for line in lines if not re.match(noise, line)]
    return f"--{key}: {' '.join(kept)}" if key else " ".join(kept)


def _subclasses(base: type[Any]) -> Iterator[type[Any]]:
    for cls in base.__subclasses__():
        yield cls
        yield from _subclasses(cls)


def _input_error(error: BaseException | None) -> str | None:
    """Return the sentence for an error that the input has caused, None for any other."""
    if isinstance(error, ParseError):
        return _sentence(str(error), error.parser)
    if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
        return f"cannot use '{error.filename}' ({error.strerror}): choose another folder, or change its permissions."
    while error is not None and not isinstance(error, InputError):  # jsonargparse wraps what a constructor raises
        error = error.__cause__ or error.__context__
    return None if error is None else str(error)


def _quiet() -> None:
    """Silence what a user cannot act upon."""
    warnings.filterwarnings("ignore", ".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")  # all is logged by epoch
    warnings.filterwarnings("ignore", ".*The dirpath has changed from.*")  # a test has a run folder of its own
    warnings.filterwarnings("ignore", ".*is not supported by the model summary.*")
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    log.addFilter(lambda record: "Tip: For seamless" not in record.getMessage())


def main(args: ArgsType = None) -> None:
    """Run ``lt-cb``.

    Args:
        args: the command line as a list of words; None takes that of the process.

    Raises:
        SystemExit: with code 2, after one sentence on stderr, if the input is wrong.
    """
    _quiet()
    logger = {"class_path": "lt_cb.loggers.RunFolder", "init_args": {"save_dir": "runs", "name": "run"}}
    try:
        CLI(
            LongTailedClassifier,
            LongTailedDataModule,
            trainer_class=InspectingTrainer,
            args=args,
            parser_class=Parser,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            parser_kwargs={
                "allow_abbrev": False,
                "description": "Train and test classifiers for long-tailed data.",
                "epilog": "And lt-cb grid FILE for many runs, and lt-cb report FOLDER for what they come to.",
            },
            auto_configure_optimizers=False,
            trainer_defaults={"callbacks": [ResultFile(), LastCheckpoint()], "logger": logger},
        )
        finish(succeeded=True)
    except Exception as error:
        finish(succeeded=False)
        wrong = _input_error(error)
        if wrong is None:
            raise
        sys.stderr.write(f"lt-cb: error: {wrong}\n")
        raise SystemExit(2) from None
