"""The command line: the only reader of words, configuration files, environment variables and checkpoints."""

import argparse
import importlib
import operator
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]
from jsonargparse.typing import Path_fr
from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lt_cb.commands.help import HelpAll, Parser
from lt_cb.commands.restored import check_kinds, check_named, plain_settings
from lt_cb.commands.save import SaveConfig
from lt_cb.data import LongTailedDataModule, sources
from lt_cb.data.sources.names import canonical_source
from lt_cb.errors import InputError
from lt_cb.module import LongTailedClassifier
from lt_cb.runs import checkpoint as checkpoints
from lt_cb.runs.folder import RunDir, parse_yaml, read_yaml, shipped
from lt_cb.task import ONE_LABEL, SEVERAL_LABELS

ENVIRONMENT = "LT_CB_"  # LT_CB_MODEL__LOSS=FocalLoss is --model.loss=FocalLoss
NO_OPTION = "LT_CB_CACHE"
FIRST = ("ckpt_path", "model_class", "data_class", "trust_checkpoint")  # they decide how the rest is read
LOSS = "model.loss"
CLASS_OPTIONS = (
    *("model.loss", "model.optimizer", "model.lr_scheduler", "model.second_stage", "model.mix"),
    *("data.source", "data.sampler"),
)
AddArguments = Callable[[LightningArgumentParser], None]


class CommandLine(LightningCLI):
    """The options of one command, parsed once; data, model and Trainer are made when a command asks for them.

    Later settings override earlier ones: defaults, the checkpoint's settings, environment variables, then configuration
    files and flags from left to right.

    Args:
        command: name of the command.
        words: the command line behind it.
        add_arguments: adds the command's own options to the parser.
        model_class: class of ``--model``, unless the words name another.
        data_class: class of ``--data``, unless the words name another.
        groups: groups of options that the command has.
        uses: groups whose classes the command makes; a checkpoint may name custom classes for the others.

    Attributes:
        config: the parsed options.
        checkpoint: content of ``--ckpt_path``, None without.

    Raises:
        InputError: if an option, a configuration file or the checkpoint is wrong.
    """

    def __init__(
        self,
        command: str,
        words: Sequence[str],
        add_arguments: AddArguments | None = None,
        model_class: type[LongTailedClassifier] = LongTailedClassifier,
        data_class: type[LongTailedDataModule] = LongTailedDataModule,
        groups: Sequence[str] = ("trainer", "model", "data"),
        uses: Sequence[str] = ("model", "data"),
    ) -> None:
        self.command, self._groups = command, groups
        self._data: LongTailedDataModule | None = None
        self._add_arguments_of_command = add_arguments
        words = _class_options([*_environment(), *words])
        self._first = _first_look(words)
        trusted = self._first["trust_checkpoint"] in (True, "true", "True")
        path = self._first["ckpt_path"]
        self.checkpoint = None if path is None else checkpoints.read(path)
        self.trained: dict[str, Any] = {}  # configuration of the checkpoint's run
        self._unknown: dict[str, Any] = {}  # classes that the checkpoint names, left out because they are not known
        if self.checkpoint is not None and (trained := checkpoints.config(self.checkpoint)) is not None:
            self.trained = trained
            settings, self._unknown = plain_settings(trained, trusted)
            for name in ("model_class", "data_class"):
                self._first[name] = self._first[name] or settings.get(name)
            self._unknown = {key: path for key, path in self._unknown.items() if key.startswith(tuple(uses))}
            check_named({key: self._unknown[key] for key in FIRST if key in self._unknown}, self._first)
            settings = {key: value for key, value in settings.items() if key in ("seed_everything", *groups, *FIRST)}
            place = _place_of(path, trained.get("name"))
            settings["trainer"] |= place.pop("trainer", {})
            words = ["--config", yaml.safe_dump(settings | place), *words]
        super().__init__(
            _own_class(
                "model", self._first["model_class"] or (trusted and self.trained.get("model_class")), model_class
            ),
            _own_class("data", self._first["data_class"] or (trusted and self.trained.get("data_class")), data_class),
            args=words,
            parser_class=Parser,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            parser_kwargs={"allow_abbrev": False, "prog": f"lt-cb {command}"},
            auto_configure_optimizers=False,
            run=False,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:  # noqa: ANN401 - of the parser
        """Make the parser, whose ``--config`` is ours."""
        parser = self.parser_class(**kwargs)
        parser.add_argument("-c", "--config", action=ConfigFile, help="A configuration file, or YAML.")
        return parser

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the groups of options."""
        classes = {"trainer": Trainer, "model": self._model_class, "data": self._datamodule_class}
        for group in self._groups:
            parser.add_lightning_class_args(classes[group], group)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that all commands share, and link to the model the facts of its data."""
        parser.add_argument("--help_all", action=HelpAll, help="Show the help of all options and exit.")
        runs = "Runs go to trainer.default_root_dir/NAME/version_N."
        parser.add_argument("--name", type=str | None, default="run", help=runs)
        parser.add_argument("--folder", type=str | None, help="Folder of this run instead; it must have no run yet.")
        parser.add_argument("--ckpt_path", type=str | None, help="Checkpoint to start from.")
        for which in ("model", "data"):
            parser.add_argument(
                f"--{which}_class", type=str | None, help=f"Class path of a custom class, as --{which}."
            )
        trust = "Load a checkpoint with custom classes. It can then run any code: trust who made it."
        parser.add_argument("--trust_checkpoint", type=bool, default=False, help=trust)
        if self._add_arguments_of_command is not None:
            self._add_arguments_of_command(parser)
        if "data" in self._groups:
            parser.link_arguments("seed_everything", "data.seed", compute_fn=int, apply_on="parse")
            for name in ("class_counts", "num_images"):  # a loss without the argument does not get it
                parser.link_arguments(f"data.{name}", f"model.loss.init_args.{name}", apply_on="instantiate")
            for name in checkpoints.DATA_FACTS:
                parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")
        elif "model" in self._groups:
            self._link_facts(parser)
        parser.set_defaults({"trainer.default_root_dir": "runs"})
        for action in parser._actions:
            if action.dest in CLASS_OPTIONS:
                action.__class__ = _resetting(type(action))  # type: ignore[arg-type]

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and check what a parser does not."""
        assert isinstance(args, list)
        if self.command == "fit" and self.checkpoint is None and self._first[LOSS] is None:
            self._set_default_loss(parser, args)
        config = parser.parse_args(args)
        for name in FIRST[:3]:
            if (config[name] or None) != (self._first[name] or None):
                raise InputError(f"--{name} is '{self._first[name]}' and '{config[name]}': give it once.")
        if not 0 <= config.seed_everything < 2**32:  # NumPy's limits
            raise InputError(f"--seed_everything is {config.seed_everything}, but must be at least 0 and below 2**32.")
        check_named(self._unknown, config.as_dict())
        check_kinds(config.as_dict())
        if "data" in config and hasattr(sources, name := canonical_source(str(config.data.source))):
            config = parser.parse_object({"data": {"source": {"class_path": f"lt_cb.data.sources.{name}"}}}, config)
        config.pop("trust_checkpoint")
        self.config = config

    def _set_default_loss(self, parser: LightningArgumentParser, args: list[str]) -> None:
        """Make the data, and let the loss default to the plain loss of their task.

        Help and ``--print_config`` need no data; the latter prints ``null``.
        """
        loss = ONE_LABEL.plain_loss
        options = [word.partition("=")[0] for word in args]
        if any(option.startswith("--print_config") for option in options):
            return
        if not any("help" in option or option == "-h" for option in options):
            parser.set_defaults({LOSS: {"class_path": SEVERAL_LABELS.plain_loss}})  # it has the options of both
            config = parser.parse_args(args)
            self._data = self._make_data(config)
            loss = self._data.task.plain_loss
        parser.set_defaults({LOSS: {"class_path": loss}})

    def instantiate_classes(self) -> None:
        """Make nothing: commands call `make_data` and `make_model`."""

    def make_data(self) -> LongTailedDataModule:
        """Return the data module. A configuration without a loss gets the plain loss of the data's task."""
        data = self._data or self._make_data(self.config)
        if self.config.model.loss is None:
            self.set_loss({"class_path": data.task.plain_loss})
        return data

    def _make_data(self, config: Namespace) -> LongTailedDataModule:
        parser = Parser()
        parser.add_lightning_class_args(self._datamodule_class, "data")
        data: LongTailedDataModule = parser.instantiate_classes(Namespace(data=config.data)).data  # type: ignore[no-untyped-call]
        if config.data.root == (self.trained.get("data") or {}).get("root") != "data":
            data.source.may_download = False  # into a folder that a checkpoint names
        return data

    def set_loss(self, loss: dict[str, Any]) -> None:
        """Replace the loss of the configuration, a class path with init_args."""
        self.config.model.loss = None
        self.config.model.loss = self.parser.parse_object({"model": {"loss": loss}}, self.config).model.loss

    def _link_facts(self, parser: LightningArgumentParser) -> None:
        """Link to the model the facts of its training data in the checkpoint, for a command without data."""
        facts: dict[str, Any] = {"class_counts": [1, 1], "num_images": 1, **dict.fromkeys(checkpoints.DATA_FACTS)}
        facts["multi_label"] = False  # for --help
        if self.checkpoint is not None:
            facts = checkpoints.class_facts(self.checkpoint)
        parser.add_argument("--trained_on", type=dict, default=facts, help="Taken from the checkpoint.")
        targets = {name: f"model.{name}" for name in checkpoints.DATA_FACTS}
        targets |= {name: f"model.loss.init_args.{name}" for name in ("class_counts", "num_images")}
        for name, target in targets.items():
            parser.link_arguments("trained_on", target, compute_fn=operator.itemgetter(name))

    def make_model(self) -> LongTailedClassifier:
        """Return the model of the checkpoint with its weights, for a command without data.

        Raises:
            InputError: if the checkpoint does not fit the network.
        """
        content = dict(self.checkpoint or {})
        checkpoints.without_pretrained(self.config.model)
        model: LongTailedClassifier = self.parser.instantiate_classes(self.config).model
        model.on_load_checkpoint(content)
        model.load_state_dict(content["state_dict"])
        return model

    def make_all(self, data: LongTailedDataModule) -> Namespace:
        """Return new objects for all classes of the configuration, with ``model`` made for these data."""
        self.parser.add_instantiator(lambda *_, **__: data, type(data), subclasses=False, prepend=True)
        objects: Namespace = self.parser.instantiate_classes(self.config)
        return objects

    def config_yaml(self) -> str:
        """Return the configuration, resolved."""
        return str(self.parser.dump(self.config, skip_none=False))


class ConfigFile(ActionConfigFile):
    """``--config``: a path, ``~``, ``file://``, the name of a shipped file, or YAML."""

    def __call__(  # type: ignore[override]
        self,
        parser: Any,  # noqa: ANN401 - as argparse calls it
        config: Namespace,
        value: Any,  # noqa: ANN401
        option_string: str | None = None,
    ) -> None:
        """Apply a configuration over the options before it."""
        source = _config_source(value)
        probe = config.clone()
        super().__call__(parser, probe, source, option_string)  # type: ignore[no-untyped-call]
        if changed := list(_new_classes(config, probe)):
            for key in changed:
                config[key] = None
            super().__call__(parser, config, source, option_string)  # type: ignore[no-untyped-call]
        else:
            config.__dict__.update(probe.__dict__)


@cache
def _resetting(action_class: type[argparse.Action]) -> type[argparse.Action]:
    """Return an action that forgets the options of a class when another class replaces it.

    jsonargparse keeps the options that both classes have: "softmax" over a configuration of class-balanced focal loss
    would be class-balanced softmax.
    """

    class Resetting(action_class):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as jsonargparse calls it
            if len(args) == 4:
                parser, config, value, option = args
                probe, before = Namespace(), Namespace()  # type: ignore[no-untyped-call]
                before[self.dest] = config.get(self.dest)
                probe[self.dest] = before.clone()[self.dest]
                super().__call__(parser, probe, value, option, **kwargs)
                for key in _new_classes(before, probe):
                    config[key] = None
            return super().__call__(*args, **kwargs)

    return Resetting


def _new_classes(before: Namespace, after: Namespace, prefix: str = "") -> Iterator[str]:
    """Yield the keys at which one class has replaced another."""
    for name, old in vars(before).items():
        new = after.get(name)
        if isinstance(old, Namespace) and isinstance(new, Namespace):
            if old.get("class_path") != new.get("class_path"):
                yield f"{prefix}{name}"
            else:
                yield from _new_classes(old, new, f"{prefix}{name}.")


def _config_source(value: str) -> str:
    """Return a ``--config`` value as jsonargparse reads it, after a look whether it is sound YAML.

    Raises:
        InputError: if the file is not there, is not YAML, or has a group of options that is not a mapping.
    """
    value = shipped(value)
    settings = read_config(value)
    for key in ("trainer", "model", "data"):
        if not isinstance(settings.get(key, {}), dict):
            given = "null" if settings[key] is None else str(settings[key])[:80]
            raise InputError(
                f"{key} is {given} in a configuration file, but must be a mapping of its options: write them below it, "
                "or leave it out."
            )
    return value


def read_config(value: str) -> dict[str, Any]:
    """Return the settings of a ``--config`` value: a path, ``~``, ``file://``, a shipped name, or YAML.

    Raises:
        InputError: if it is none of these.
    """
    value = shipped(value)
    try:
        file = Path_fr(value)
    except TypeError:  # no file
        settings = parse_yaml(value, "--config") if "\n" in value or ":" in value else None
        if not isinstance(settings, dict):
            raise InputError(f"there is no configuration file '{value}': give the path of a YAML file.") from None
        return settings
    settings = read_yaml(Path(file.absolute), value)
    if not isinstance(settings, dict):
        raise InputError(f"'{value}' is not a configuration: write options as 'key: value'.")
    return settings


def _environment() -> Iterator[str]:
    """Yield the options that environment variables set, a class before its options."""
    for name in sorted(os.environ):
        if name.startswith(ENVIRONMENT) and name != NO_OPTION:
            yield f"--{name.removeprefix(ENVIRONMENT).lower().replace('__', '.')}={os.environ[name]}"


def _class_options(words: Sequence[str]) -> list[str]:
    """Return the words with ``--model PATH`` and ``--data PATH`` written as ``--model_class`` and ``--data_class``."""
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for which in ("model", "data"):
        reader.add_argument(f"--{which}", dest=f"{which}_class", default=argparse.SUPPRESS)
    found, rest = reader.parse_known_args(words)
    return [*rest, *(f"--{name}={path}" for name, path in vars(found).items())]


class _Note(argparse.Action):
    """Notes an option, or the options of a configuration."""

    def __call__(self, parser: Any, found: Any, value: Any, option: str | None = None) -> None:  # noqa: ANN401
        settings = read_config(value) if self.dest == "config" else {self.dest: None if value == "null" else value}
        model = settings.get("model")
        loss = model.get("loss") if isinstance(model, dict) else None
        if isinstance(loss, str) or (isinstance(loss, dict) and "class_path" in loss):
            settings[LOSS] = loss
        vars(found).update({name: value for name, value in settings.items() if name in (*FIRST, LOSS)})


def _first_look(words: Sequence[str]) -> dict[str, Any]:
    """Return the options that must be known before the others can be parsed; `CommandLine` compares them afterwards."""
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    reader.add_argument("-c", "--config", action=_Note)
    for name in (*FIRST, LOSS):
        reader.add_argument(f"--{name}", action=_Note)
    found, _ = reader.parse_known_args(words)
    return {name: vars(found).get(name) for name in (*FIRST, LOSS)}


def _place_of(path: str, name: Any) -> dict[str, Any]:  # noqa: ANN401 - of a checkpoint
    """Return the options that put new runs beside the run of a checkpoint.

    The place is known by the path of the checkpoint. A checkpoint that was moved out of its run tells a name at most.
    """
    run = RunDir(Path(path).absolute().parent.parent)
    if Path(path).parent.name != run.checkpoint.parent.name or not run.config.is_file():
        return {"name": name} if re.fullmatch(r"[\w-]+", str(name)) else {}
    root = run.path.parent.parent
    root = root.relative_to(Path.cwd()) if root.is_relative_to(Path.cwd()) else root
    return {"name": run.path.parent.name, "trainer": {"default_root_dir": str(root)}}


def _own_class(which: str, path: Any, default: type[Any]) -> type[Any]:  # noqa: ANN401 - of a configuration
    """Return the class of a path, or the default."""
    if not path:
        return default
    module, _, name = str(path).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InputError(f"--{which} is '{path}', which cannot be imported ({error}): give a class path.") from error
    if not isinstance(found, type) or not issubclass(found, default):
        raise InputError(f"--{which} is '{path}', but must be a class that derives from {default.__name__}.")
    return found
