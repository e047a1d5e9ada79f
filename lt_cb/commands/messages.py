"""What the command line says: all that turns the prose of a parser, or an error, into one sentence."""

import argparse
import logging
import re
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jsonargparse._typehints as jsonargparse_types
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lt_cb.data import Sampler
from lt_cb.errors import InputError, did_you_mean, file_error
from lt_cb.losses import Loss, Weighting
from lt_cb.models import SecondStage

EXAMPLES = {
    "optimizer": "torch.optim.SGD",
    "lr_scheduler": "torch.optim.lr_scheduler.CosineAnnealingLR",
    "mix": "torchvision.transforms.v2.MixUp",
    "augment": "torchvision.transforms.v2.RandAugment",
}

BASES: dict[str, type[Any]] = {"loss": Loss, "weighting": Weighting, "sampler": Sampler, "second_stage": SecondStage}

CLASSES = {  # options that take a class of ours by its name alone
    "model.loss": "loss",
    "model.loss.weighting": "weighting",
    "model.second_stage": "second_stage",
    "data.sampler": "sampler",
}
HELP = {  # what --help shows, of the options that a command has
    "run": "config ckpt_path images top probabilities on_unreadable to format trust_checkpoint name folder "
    "seed_everything test_best change_loss prior batch_size num_workers folds lambdas betas gammas taus seeds",
    "data": "source root imbalance_factor imbalance_type n_max subset_seed val_fraction sampler drs_start batch_size "
    "image_size crop horizontal_flip augment num_workers",
    "model": "loss backbone backbone_args optimizer lr_scheduler drw_start second_stage mix metrics fast",
    "trainer": "max_epochs check_val_every_n_epoch accelerator devices precision accumulate_grad_batches "
    "gradient_clip_val logger callbacks enable_progress_bar default_root_dir",
}
MORE = {
    "--help_all": "all options, with types and in full",
    "--model.loss.help FocalLoss": "the options of a class, as of --model.optimizer, --data.sampler",
    "--print_config=skip_default": "the configuration that these words make, and nothing else",
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

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """Return the help of a class, which is short, or of a command: of what is changed often, a line an option."""
        if not any(isinstance(action, HelpAll) for action in self._actions):
            return self.format_all()
        actions = {action.dest: action for action in self._actions}
        lines = [f"usage: {self.prog} [--config FILE ...] [--OPTION VALUE ...]"]
        for group, names in HELP.items():
            if group == "model" and "data.root" not in actions:  # a checkpoint says what the network is
                continue
            keys = [name if group == "run" else f"{group}.{name}" for name in names.split()]
            shown = [_option_line(actions[key]) for key in keys if key in actions]
            lines += ["", f"{group}, with defaults:", *shown] if shown else []
        width = shutil.get_terminal_size().columns
        lines += ["", "classes of ours:"]
        for option, kind in CLASSES.items():
            if option.removesuffix(".weighting") in actions:
                text = f"  --{option:21} {', '.join(cls.__name__ for cls in known(kind))}"
                lines += textwrap.wrap(text, width, subsequent_indent=" " * 26, break_on_hyphens=False)
        lines += ["", "more:"]
        for words, purpose in MORE.items():
            lines.append(f"  {words:32} {purpose}")
        return "\n".join(_cut(line, width) for line in lines) + "\n"

    def format_all(self) -> str:
        """Return the help of all options."""
        return str(super().format_help())


class HelpAll(argparse._HelpAction):
    """``--help_all``: the help of all options."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Show it, and exit."""
        assert isinstance(parser, Parser)
        sys.stdout.write(parser.format_all())
        parser.exit()


def _option_line(action: argparse.Action) -> str:
    """Return an option with its default, as it would be typed, and the first clause of its help."""
    value = action.default
    if isinstance(value, Mapping | Namespace) and "class_path" in value:
        value = str(value["class_path"]).rpartition(".")[2]
    elif isinstance(value, list):
        value = f"[{','.join(map(str, value))}]" if all(isinstance(v, float | int) for v in value) else ""
    elif isinstance(value, bool) or value is None:
        value = {None: "null", True: "true", False: "false"}[value]
    value = "FILE" if action.dest == "config" else value
    option = f"--{action.dest} {value}"
    clause = re.split(r"[;.:](?:\s|$)", " ".join((action.help or "").replace("`", "").split()))[0]
    return f"  {option:36} {clause}"


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 1].rstrip()}…"


def _start_from_defaults(parser: Any, before: Any, now: Any) -> None:  # noqa: ANN401 - as jsonargparse has them
    """Forget all options of the class before: jsonargparse would keep those that the new one also has.

    "softmax" over a configuration of class-balanced focal loss would then be class-balanced softmax.
    """
    if before and before.get("init_args") and before["class_path"] != now["class_path"]:
        for option in list(vars(before["init_args"])):
            del before["init_args"][option]


# there is no switch for it; a version without the function would train other models, so that it must not start
assert callable(jsonargparse_types.discard_init_args_on_class_path_change)
jsonargparse_types.discard_init_args_on_class_path_change = _start_from_defaults


def sentence(message: str, parser: LightningArgumentParser) -> str:
    """Boil jsonargparse's tree of attempts down to what was given and what is allowed."""
    key = ".".join(re.findall(r'Parser key "([^"]+)":', message)).removeprefix("config.")  # of a checkpoint
    if number := re.search(r"Expected a <class '(float|int)'>(?:\. Got|[^$]*Given) value: (.*)", message):
        kind, given = number[1], number[2]
        return f"--{key} is {given}, but must be a {'whole number' if kind == 'int' else 'number'}."
    if match := re.search(r"instantiatable class, but \S*?(\w+) is abstract", message):
        bases = [base for base in BASES.values() if base.__name__ == match[1]]
        choice = ", ".join(sorted(cls.__name__ for base in bases for cls in _subclasses(base)))
        return f"--{key} has options, but names no class: set --{key} first{choice and f', to {choice}'}."
    if match := re.search(r"dot import path string: (\S+)", message):
        name, kind = match[1], key.rpartition(".")[2]
        base = BASES.get(kind)
        if base is not None:
            names = [cls.__name__ for cls in known(kind)]
            choice = f"choose {', '.join(names)}, or give the class path of your own." + did_you_mean(name, names)
            return f"there is no {kind} '{name}': {choice}"
        return f"there is no {kind} '{name}': give its class path, as {EXAMPLES.get(kind, 'package.module.Class')}."
    if match := re.search(r"nrecognized arguments: --([\w.+]+)|does not accept option '([\w.]+)'", message):
        option = f"--{match[1] or match[2]}"
        options = [name for action in parser._actions for name in action.option_strings]
        return f"there is no option {option}: see {parser.prog} --help." + did_you_mean(option, options)
    if match := re.search(r"Option '([\w.]+)' is not accepted", message):
        return f"there is no option --{f'{key}.' if key else ''}{match[1]}: see lt-cb fit --help."
    noise = (
        r"Subtypes:|Given value type:|Given value:|Does not validate|Errors:|- Expected a (path|<class 'NoneType'>)|$"
    )
    lines = [re.sub(r'(- )?Parser key "[^"]+":', "", line).strip() for line in message.splitlines()]
    kept = [line.removeprefix("- ") for line in lines if not re.match(noise, line)]
    said = " ".join(kept)
    if match := re.search(r"class_path '([\w.]+)': No module named '(\w+)'", said):
        return f"--{key} is {match[1]}, but there is no module '{match[2]}': set PYTHONPATH to the folder that has it."
    return f"--{key}: {said}" if key else said


def known(kind: str) -> list[type[Any]]:
    """Return the classes of ours of a kind, by name."""
    ours = (cls for cls in _subclasses(BASES[kind]) if cls.__module__.startswith("lt_cb."))
    return sorted(ours, key=lambda cls: cls.__name__)


def _subclasses(base: type[Any]) -> Iterator[type[Any]]:
    for cls in base.__subclasses__():
        yield cls
        yield from _subclasses(cls)


def input_error(error: BaseException | None) -> str | None:
    """Return the sentence for an error that the input has caused, None for any other."""
    if isinstance(error, ParseError):
        return sentence(str(error), error.parser)
    if error is not None and (sentence_of_files := file_error(error)) is not None:
        return sentence_of_files
    return next((str(e) for e in causes(error) if isinstance(e, InputError)), None)


def lost_process(error: BaseException) -> str | None:
    """Return the sentence for an error that comes of other processes of the training, None for any other."""
    for cause in causes(error):
        gone = re.search(r"Connection (closed|reset) by peer|Broken pipe", str(cause))  # of gloo, as RuntimeError
        if isinstance(cause, torch.distributed.DistError) or gone is not None:
            why = gone[0] if gone is not None else str(cause).partition("\n")[0].rpartition("] ")[2].rstrip(".")
            return f"another process of this training has not come, or is gone ({why}): look at what it says itself."
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it came from: jsonargparse wraps what a constructor raises."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def quiet() -> None:
    """Silence what a user cannot act upon."""
    warnings.filterwarnings("ignore", ".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")  # all is logged by epoch
    warnings.filterwarnings("ignore", ".*The dirpath has changed from.*")  # a test has a run folder of its own
    warnings.filterwarnings("ignore", ".*is not supported by the model summary.*")
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    noise = (
        "Tip: For seamless",
        "`weights_only` was not set",  # which is looked at before Lightning loads anything
        "`Trainer.fit` stopped: `max_",  # `print_ending` says so too
    )
    log.addFilter(lambda record: not any(words in record.getMessage() for words in noise))


def values(args: Sequence[str], option: str) -> Iterator[str]:
    """Yield what ``option`` is set to, as ``--option value`` or ``--option=value``."""
    for flag, following in zip(args, [*args[1:], ""], strict=False):
        name, equals, value = flag.partition("=")
        if name == option:
            yield value if equals else following
