"""Parser whose errors are sentences, and whose ``--help`` shows on two screens the options that are changed often."""

import argparse
import re
import shutil
import sys
import textwrap
import warnings
from collections.abc import Mapping
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lt_cb.commands.restored import names_of, options_of
from lt_cb.errors import InputError, did_you_mean

LISTED = ("model.loss", "model.loss.weighting", "model.second_stage", "data.sampler")  # options with their classes
SHORT_HELP = {  # options of the short help, if a command has them
    "run": "config ckpt_path images top probabilities on_unreadable to format trust_checkpoint name folder "
    "seed_everything test_best change_loss prior batch_size num_workers folds lambdas betas gammas taus seeds",
    "data": "source root task split imbalance_factor imbalance_type n_max subset_seed val_fraction sampler drs_start "
    "batch_size image_size crop horizontal_flip augment num_workers",
    "model": "loss backbone backbone_args optimizer lr_scheduler drw_start second_stage mix metrics fast",
    "trainer": "max_epochs check_val_every_n_epoch accelerator devices precision accumulate_grad_batches "
    "gradient_clip_val logger callbacks enable_progress_bar default_root_dir",
}
MORE_HELP = {
    "--help_all": "all options, with types and in full",
    "--model.loss.help FocalLoss": "options of a class; also --model.optimizer.help, --data.sampler.help",
    "--print_config=skip_default": "print the configuration of these options, and stop",
}
OF_CHECKPOINT = ("finetune", "validate", "test", "predict", "export")  # commands of a trained network
INDENT = 39  # columns before the texts of the short help
NUMBERS = {"float": "a number", "int": "a whole number"}
UNWRITTEN = "Unable to serialize instance "  # jsonargparse writes it before a text that it takes for a function
NOISE = (
    r"(- )?Type .*lt_cb\.schedule\.ReduceLROnPlateau\]|Subtypes:|Given value|(- )?Does not validate|Errors:|"
    r"- Expected a (path|<class 'NoneType'>)|$"
)


class Parser(LightningArgumentParser):
    """A parser that raises an `InputError` instead of ending the process."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise an InputError of one sentence; parsers of a class within a command raise the whole message."""
        raise (InputError(_sentence(message, self)) if self._is_of_command else ValueError(message)) from ex

    def dump(self, *args: Any, **options: Any) -> str:  # noqa: ANN401 - as in jsonargparse
        """Return a configuration as YAML, with texts that jsonargparse takes for functions as they were given.

        It is not validated again: it was when it was parsed.
        """
        options.setdefault("skip_validation", True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", rf"\s*{UNWRITTEN}")
            text: str = super().dump(*args, **options)
        return text if UNWRITTEN not in text else yaml.safe_dump(_written(yaml.safe_load(text)), sort_keys=False)

    @property
    def _is_of_command(self) -> bool:
        return any(isinstance(action, HelpAll) for action in self._actions)

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """Return the short help of a command, or the whole help of a class."""
        if not self._is_of_command:
            return super().format_help()
        actions = {action.dest: action for action in self._actions}
        width = shutil.get_terminal_size().columns
        lines = [f"usage: {self.prog} [--config FILE ...] [--OPTION VALUE ...]"]
        trained = self.prog.split()[-1] in OF_CHECKPOINT
        for group, names in SHORT_HELP.items():
            if group == "model" and "data.root" not in actions:  # a checkpoint describes the network
                continue
            keys = [name if group == "run" else f"{group}.{name}" for name in names.split()]
            options = [_option_line(actions[key]) for key in keys if key in actions]
            origin = "as in the training, or" if trained and group != "run" else "with"
            lines += ["", f"{group}, {origin} defaults:", *options] if options else []
        lines += ["", "classes of lt_cb:"]
        listed = [key for key in LISTED if key.removesuffix(".weighting") in actions]
        lines += [f"  --{key:34} {', '.join(names_of(key))}" for key in listed]
        lines += ["", "more:", *(f"  {words:36} {purpose}" for words, purpose in MORE_HELP.items())]
        wrapper = textwrap.TextWrapper(width, subsequent_indent=" " * INDENT)
        wrapper.break_on_hyphens = wrapper.break_long_words = False
        return "".join(f"{part}\n" for line in lines for part in wrapper.wrap(line) or [""])


class HelpAll(argparse._HelpAction):
    """``--help_all``: prints the help of all options."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print it, and exit."""
        sys.stdout.write(LightningArgumentParser.format_help(parser))  # type: ignore[arg-type]
        parser.exit()


def _written(value: Any) -> Any:  # noqa: ANN401 - YAML
    """Return a value of a dumped configuration with the texts that the user gave."""
    if isinstance(value, dict):
        return {key: _written(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_written(item) for item in value]
    return value.removeprefix(UNWRITTEN) if isinstance(value, str) else value


def _option_line(action: argparse.Action) -> str:
    """Return an option with its default, as you would type it, and the first clause of its help."""
    value: Any = "FILE" if action.dest == "config" else action.default
    if isinstance(value, Mapping | Namespace) and "class_path" in value:
        value = str(value["class_path"]).rpartition(".")[2]
    elif isinstance(value, list):
        value = f"[{','.join(map(str, value))}]" if all(isinstance(v, float | int) for v in value) else ""
    elif isinstance(value, bool) or value is None:
        value = "null" if value is None else str(value).lower()
    clause = re.split(r"(?<!et al)[;.:](?:\s|$)", " ".join((action.help or "").replace("`", "").split()))[0]
    return f"  {f'--{action.dest} {value}':{INDENT - 3}} {clause}"


def _sentence(message: str, parser: LightningArgumentParser) -> str:
    """Return one sentence for jsonargparse's tree of attempts."""
    key = ".".join(re.findall(r'Parser key "([^"]+)":', message)).removeprefix("config").removeprefix(".")  # of a file
    kinds = r"<class '(float|int)'>|typing\.Literal\[([^\]]*)\]"
    if wrong := re.search(rf"(?s)Expected a (?:{kinds})(?:\. Got|.*?Given) value: ([^\n]*)", message):
        kind, choices, given = wrong.groups()
        allowed = " or ".join(re.findall(r"[\w.-]+", choices)) if choices else NUMBERS[kind]
        return f"--{key} is {given}, but must be {allowed}."
    names = names_of(key)
    if "Expected an instantiatable class" in message:
        choice = f", to {', '.join(names)}" if names else ""
        return f"--{key} has options, but names no class: set --{key} first{choice}."
    if match := re.search(r"dot import path string: (\S+)", message):
        choice = f"choose {', '.join(names)}, or give" if names else "give"
        near = did_you_mean(match[1], names)
        return f"there is no {key.rpartition('.')[2]} '{match[1]}': {choice} the class path of a custom one.{near}"
    if match := re.search(r"class_path '([\w.]+)':\s+No module named '(\w+)'", message):
        return f"--{key} is {match[1]}, but there is no module '{match[2]}': set PYTHONPATH to the folder that has it."
    if match := re.search(r"Option '([\w.]+)' is not accepted", message):
        near = did_you_mean(f"--{key}.{match[1]}", [f"--{key}.{name}" for name in options_of(key)])
        return f"there is no option --{key}.{match[1]}: see {parser.prog} --help.{near}"
    other = r"nrecognized arguments: --([\w.+]+)|Group '(\w+)' does not accept option '([\w.]+)'"
    if match := re.search(other, message):
        option = f"--{match[1] or f'{match[2]}.{match[3]}'}"
        options = [name for action in parser._actions for name in action.option_strings]
        return f"there is no option {option}: see {parser.prog} --help.{did_you_mean(option, options)}"
    lines = [re.sub(r'(- )?Parser key "[^"]+":', "", line).strip() for line in message.splitlines()]
    text = " ".join(line.removeprefix("- ") for line in lines if not re.match(NOISE, line))
    return f"--{key}: {text}" if key else text
