"""The command line: the only reader of words, configuration files, environment variables and checkpoints."""

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from jsonargparse.typing import register_type
from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lt_cb.commands.elsewhere import digests_in, is_elsewhere, kind_of, named_source
from lt_cb.commands.help import HelpAll, Parser
from lt_cb.commands.messages import run_command
from lt_cb.commands.restored import check_named, custom_class, place_of, plain_settings
from lt_cb.commands.words import (
    ADAPTER,
    FIRST,
    LOSS,
    ConfigFile,
    checkpoint_paths,
    class_options,
    environment,
    first_look,
    joined,
    resetting,
)
from lt_cb.data import LongTailedDataModule, sources
from lt_cb.data.elsewhere import make_elsewhere, warn_of_training_images
from lt_cb.data.sources.base import FileSource
from lt_cb.data.sources.listing import Split
from lt_cb.errors import InputError
from lt_cb.models import merge_adapter
from lt_cb.module import LongTailedClassifier
from lt_cb.runs import checkpoint as checkpoints
from lt_cb.runs.record import LOSS_FACTS
from lt_cb.schedule import WarmupMultiStep
from lt_cb.task import ONE_LABEL, SEVERAL_LABELS

register_type(torch.device, str, torch.device, fail_already_registered=False)  # an option of callbacks
CLASS_OPTIONS = (
    *("model.loss", "model.optimizer", "model.lr_scheduler", "model.second_stage", "model.mix"),
    *("data.source", "data.sampler"),
)
Options = Mapping[str, tuple[Any, Any, str]]  # type, default and help, by name
Defaults = Callable[[Namespace], Mapping[str, Any]]
Adapts = Callable[[dict[str, Any], dict[str, Any], str | None], None]
AVERAGES = ("predict", "test")  # commands of several checkpoints
COMMON: Options = {
    "name": (str | None, "run", "Trainings go to trainer.default_root_dir/NAME/version_N, tests into the run."),
    "folder": (str | None, None, "Folder to write to instead; it must have no run yet."),
    "ckpt_path": (list[str] | str | None, None, "Checkpoint to start from; test and predict average several."),
    "model_class": (str | None, None, "Class path of a custom class, as --model."),
    "data_class": (str | None, None, "Class path of a custom class, as --data."),
    "trust_checkpoint": (
        bool,
        False,
        "Load a checkpoint with custom classes. It can then run any code: trust who made it.",
    ),
}


class CommandLine(LightningCLI):
    """The options of one command, parsed once; data, model and Trainer are made when a command asks for them.

    Later settings override earlier ones: defaults, the checkpoint's settings, environment variables, then configuration
    files and flags from left to right.

    Args:
        command: name of the command.
        words: the command line behind it.
        options: options of the command alone.
        model_class: class of ``--model``, unless the words name another.
        data_class: class of ``--data``, unless the words name another.
        uses: groups whose classes the command makes; a checkpoint may name custom classes for the others. Without
            ``data``, the command has no options of data.
        defaults: returns defaults by key, given the parsed options; files override the defaults of model and trainer.
        adapts: changes the checkpoint's settings, given them, the checkpoint and ``--model.adapter``.

    Attributes:
        words: the words behind the command, after the words of environment variables.
        config: the parsed options.
        ckpt_paths: files of ``--ckpt_path``.
        checkpoint: content of the first of them, None without.
        trained: configuration of the checkpoint's run.
        data: the data module, once `make_data` has made it.
        history: settings of earlier parts of the training, which its checkpoints will have.
    """

    def __init__(
        self,
        command: str,
        words: Sequence[str],
        options: Options | None = None,
        model_class: type[LongTailedClassifier] = LongTailedClassifier,
        data_class: type[LongTailedDataModule] = LongTailedDataModule,
        uses: Sequence[str] = ("model", "data"),
        defaults: Defaults | None = None,
        adapts: Adapts | None = None,
    ) -> None:
        self._classes = {"model_class": model_class, "data_class": data_class}
        self.command, self._options, self._uses = command, options or {}, uses
        self._defaults, self._adapts = defaults, adapts
        self._groups = ("trainer", "model", "data") if "data" in uses else ("trainer", "model")
        self.data: LongTailedDataModule | None = None
        self.words = [*environment(), *joined(words)]
        words = class_options(self.words)
        self._first = first_look(words)
        self.checkpoint: dict[str, Any] | None = None
        self.trained: dict[str, Any] = {}
        self.history: dict[str, Any] = {}
        self._unknown: dict[str, Any] = {}  # values of the checkpoint that the user must name
        self.ckpt_paths: list[str] = self._first["ckpt_path"] or []
        if len(self.ckpt_paths) > 1 and command not in AVERAGES:
            raise InputError(
                f"{command} takes one checkpoint, but --ckpt_path has {len(self.ckpt_paths)}: give one. Only "
                f"{' and '.join(AVERAGES)} average several."
            )
        if self.ckpt_paths:
            words = [*self._settings_of(self.ckpt_paths[0], uses), *words]
        super().__init__(
            custom_class("model", self._first["model_class"], model_class),
            custom_class("data", self._first["data_class"], data_class),
            args=words,
            parser_class=Parser,
            save_config_callback=None,
            seed_everything_default=0,
            parser_kwargs={"allow_abbrev": False, "prog": f"lt-cb {command}"},
            auto_configure_optimizers=False,
            run=False,
        )

    def _settings_of(self, path: str, uses: Sequence[str]) -> list[str]:
        """Read a checkpoint, and return words with its settings."""
        self.checkpoint = checkpoints.read(path)
        self.trained = checkpoints.config(self.checkpoint) or {}
        if not self.trained:
            return []
        settings, unknown = plain_settings(self.trained, self._first["trust_checkpoint"] in (True, "true", "True"))
        self._unknown = {key: value for key, value in unknown.items() if key.startswith(tuple(uses))}
        check_named({key: self._unknown[key] for key in FIRST if key in self._unknown}, self._first)
        for name in ("model_class", "data_class"):
            self._first[name] = self._first[name] or settings.get(name)
        settings = {key: settings[key] for key in ("seed_everything", *self._groups, *FIRST) if key in settings}
        if self._adapts is not None:
            self._adapts(settings, self.checkpoint, self._first[ADAPTER])
        place = place_of(path, self.trained.get("name"))
        settings["trainer"] |= place.pop("trainer", {})
        return ["--config", yaml.safe_dump(settings | place)]

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:  # noqa: ANN401 - of the parser
        """Make the parser, whose ``--config`` is `ConfigFile`."""
        parser = Parser(**kwargs)
        parser.add_argument("-c", "--config", action=resetting(ConfigFile), help="A configuration file, or YAML.")
        return parser

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the groups of options."""
        classes = {"trainer": Trainer, "model": self._model_class, "data": self._datamodule_class}
        for group in self._groups:
            parser.add_lightning_class_args(classes[group], group)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that all commands share, and link to the model the facts of its training data."""
        parser.add_argument("--help_all", action=HelpAll, help="Show the help of all options and exit.")
        for name, (kind, default, text) in {**COMMON, **self._options}.items():
            parser.add_argument(f"--{name}", type=kind, default=default, help=text)
        targets = {name: f"model.{name}" for name in checkpoints.DATA_FACTS}
        targets |= {name: f"model.loss.init_args.{name}" for name in LOSS_FACTS}
        if "data" in self._groups:
            parser.link_arguments("seed_everything", "data.seed", compute_fn=int, apply_on="parse")
            for name, target in targets.items():  # a loss without the argument does not get it
                parser.link_arguments(f"data.{name}", target, apply_on="instantiate")
        else:
            facts = dict.fromkeys(targets) | {"class_counts": [1, 1], "num_images": 1, "num_unlabelled": 0}  # for help
            facts["multi_label"] = False
            if self.checkpoint is not None:
                facts = checkpoints.class_facts(self.checkpoint)
            parser.add_argument("--trained_on", type=dict, default=facts, help="Taken from the checkpoint.")
            for name, target in targets.items():
                parser.link_arguments("trained_on", target, compute_fn=operator.itemgetter(name))
        parser.set_defaults({"trainer.default_root_dir": "runs"})
        if self._adapts is not None:  # for help
            settings: dict[str, Any] = {group: {} for group in self._groups}
            self._adapts(settings, {}, None)
            parser.set_defaults({f"{group}.{k}": value for group in settings for k, value in settings[group].items()})
        for action in parser._actions:
            if action.default is WarmupMultiStep:  # written as a class, so that its options can be set without its name
                parser.set_defaults({action.dest: {"class_path": "lt_cb.schedule.WarmupMultiStep"}})
            if action.dest in CLASS_OPTIONS:
                action.__class__ = resetting(type(action))  # type: ignore[arg-type]

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and check seed, classes and the options that were read first."""
        assert isinstance(args, list)
        if self.command == "fit" and self.checkpoint is None and self._first[LOSS] is None:
            self._set_default_loss(parser, args)
        config = parser.parse_args(words := [word for word in args if not word.startswith("--print_config")])
        defaults = dict(self._defaults(config)) if self._defaults and self.checkpoint is None else {}
        if defaults or words != args:
            parser.set_defaults(defaults)
            ConfigFile.skipped = tuple(key for key in defaults if key.startswith("data."))
            try:
                config = parser.parse_args(args)
            finally:
                ConfigFile.skipped = ()
        if (paths := checkpoint_paths(config.ckpt_path)) != self.ckpt_paths:
            raise InputError(f"--ckpt_path is {self.ckpt_paths} and {paths}: give it once.")
        config.ckpt_path = paths if len(paths) > 1 else next(iter(paths), None)
        for name in FIRST[1:3]:
            if (config[name] or None) != (self._first[name] or None):
                raise InputError(f"--{name} is '{self._first[name]}' and '{config[name]}': give it once.")
        if not 0 <= config.seed_everything < 2**32:  # NumPy's limits
            raise InputError(f"--seed_everything is {config.seed_everything}, but must be at least 0 and below 2**32.")
        if "data" in config and self.command != "inspect":  # they write their options to files
            for word in (word for word in args if word != word.encode(errors="ignore").decode()):
                raise InputError(f"'{word}' is not UTF-8, so that no configuration can hold it: rename the folder.")
        check_named(self._unknown, config.as_dict())
        if "data" in config and hasattr(sources, name := named_source(config.data)):
            config = parser.parse_object(_source(name), config)
        config.pop("trust_checkpoint")
        self.config = config

    def _set_default_loss(self, parser: LightningArgumentParser, args: list[str]) -> None:
        """Make the data, and let the loss default to the plain loss of their task.

        Help and ``--print_config`` need no data; the latter prints ``null``.
        """
        options = [word.partition("=")[0] for word in args]
        if any(option.startswith("--print_config") for option in options):
            return
        loss = ONE_LABEL.plain_loss
        if not any("help" in option or option == "-h" for option in options):
            parser.set_defaults({LOSS: {"class_path": SEVERAL_LABELS.plain_loss}})  # it has the options of both
            self.data = self._make_data(parser.parse_args(args))
            loss = self.data.task.plain_loss
        parser.set_defaults({LOSS: {"class_path": loss}})

    def instantiate_classes(self) -> None:
        """Make nothing: commands call `make_data`, `make_model` and `make_all`."""

    def make_data(self) -> LongTailedDataModule:
        """Return the data module. A configuration without a loss gets the plain loss of the data's task.

        ``test`` and ``validate`` of other data take the classes of the checkpoint, see `lt_cb.data.elsewhere`.
        """
        self.data = data = self.data or self._make_data(self.config)
        options = self.config.data
        if options.image_size is None and isinstance(data.source, FileSource) and data.source.default_size is None:
            options.image_size = data.image_size  # of these images; a test of others keeps it
        if self.config.model.loss is None:
            self.set_loss({"class_path": data.task.plain_loss})
        return data

    def _make_data(self, config: Namespace) -> LongTailedDataModule:
        parser = Parser()
        parser.add_lightning_class_args(self._datamodule_class, "data")
        if self.command in ("test", "validate") and is_elsewhere(self.trained, config.data):
            self._adopt(config, parser)
        data: LongTailedDataModule = parser.instantiate_classes(Namespace(data=config.data)).data  # type: ignore[no-untyped-call]
        if config.data.root == (self.trained.get("data") or {}).get("root") != "data":
            data.source.may_download = False  # into a folder that a checkpoint names
        if self.command == "test" and self.trained and data.tested_on is None:
            warn_of_training_images(data.source, config.data.root, digests_in(self.checkpoint or {}))
        return data

    def _adopt(self, config: Namespace, parser: Parser) -> None:
        """Let a parser make data on which the checkpoint was not trained."""
        if (kind := kind_of(config.data)) is not None:
            config.data.source = self.parser.parse_object(_source(kind), config).data.source
            config.data.task = None
        facts, trained = checkpoints.class_facts(self.checkpoint or {}), digests_in(self.checkpoint or {})
        split: Split = "val" if self.command == "validate" else "test"
        parser.add_instantiator(
            lambda made, **options: make_elsewhere(made, options, facts, trained, split),
            self._datamodule_class,
            subclasses=False,
            prepend=True,
        )

    def set_loss(self, loss: dict[str, Any]) -> None:
        """Replace the loss of the configuration, a class path with init_args."""
        vars(self).pop("config_dump", None)  # else the hyper-parameters keep the loss of before
        self.config.model.loss = None
        self.config.model.loss = self.parser.parse_object({"model": {"loss": loss}}, self.config).model.loss

    @cached_property
    def others(self) -> list["CommandLine"]:
        """The command lines of the further checkpoints: the same words for each."""
        made: dict[str, Any] = {"options": self._options, "uses": self._uses, **self._classes}
        words = [[*self.words, "--ckpt_path", path] for path in self.ckpt_paths[1:]]
        return [CommandLine(self.command, each, **made) for each in words]

    def make_model(self) -> LongTailedClassifier:
        """Return the model of the checkpoint with its weights, made without data."""
        self.check_trained()
        content = dict(self.checkpoint or {})
        checkpoints.without_pretrained(self.config.model)
        facts = SimpleNamespace(**checkpoints.class_facts(content)) if "data" in self._groups else None
        model: LongTailedClassifier = self.make_all(facts).model
        model.on_load_checkpoint(content)
        model.load_state_dict(content["state_dict"])
        merge_adapter(model.backbone)
        return model

    def check_trained(self) -> None:
        """Check that there is a checkpoint."""
        if self.checkpoint is None:
            raise InputError(f"{self.command} needs a trained model: set --ckpt_path to the checkpoint of a run.")

    def make_all(self, data: Any) -> Namespace:  # noqa: ANN401 - a data module, or an object with the same facts
        """Return new objects for all classes of the configuration, with ``model`` made for these data."""
        self.parser.add_instantiator(lambda *_, **__: data, self._datamodule_class, subclasses=False, prepend=True)
        return self.parser.instantiate_classes(self.config)  # type: ignore[no-any-return]

    def config_yaml(self) -> str:
        """Return the configuration, resolved."""
        return str(self.parser.dump(self.config, skip_none=False))


def command(
    options: Options,
    uses: Sequence[str] = ("model", "data"),
    defaults: Defaults | None = None,
    adapts: Adapts | None = None,
) -> Callable[[Callable[[CommandLine], None]], Callable[..., None]]:
    """Make a function of a `CommandLine` the command of its name; see `CommandLine` for the arguments.

    The decorated function takes the words behind the command, and ``model_class`` and ``data_class`` of `CommandLine`.
    It shows wrong input as one sentence on stderr, and raises SystemExit with code 2.
    """

    def decorate(function: Callable[[CommandLine], None]) -> Callable[..., None]:
        def run(words: Sequence[str], **classes: Any) -> None:  # noqa: ANN401 - of `CommandLine`
            made = {"options": options, "uses": uses, "defaults": defaults, "adapts": adapts, **classes}
            run_command(lambda: function(CommandLine(function.__name__, words, **made)))

        return run

    return decorate


def _source(name: str) -> dict[str, Any]:
    """Return the options that choose a source of lt_cb."""
    return {"data": {"source": {"class_path": f"lt_cb.data.sources.{name}"}}}
