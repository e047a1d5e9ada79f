"""What the command line says: all that turns the prose of a parser, or an error, into one sentence."""

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import jsonargparse._typehints as jsonargparse_types
import torch
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
    key = ".".join(re.findall(r'Parser key "([^"]+)":', message))
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
            known = sorted(cls.__name__ for cls in _subclasses(base) if cls.__module__.startswith("lt_cb."))
            choice = f"choose {', '.join(known)}, or give the class path of your own." + did_you_mean(name, known)
            return f"there is no {kind} '{name}': {choice}"
        return f"there is no {kind} '{name}': give its class path, as {EXAMPLES.get(kind, 'package.module.Class')}."
    if match := re.search(r"nrecognized arguments: --([\w.+]+)|does not accept option '([\w.]+)'", message):
        option = f"--{match[1] or match[2]}"
        known = [name for action in parser._actions for name in action.option_strings]
        return f"there is no option {option}: see {parser.prog} --help." + did_you_mean(option, known)
    if match := re.search(r"Option '([\w.]+)' is not accepted", message):
        return f"there is no option --{f'{key}.' if key else ''}{match[1]}: see lt-cb fit --help."
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
        if isinstance(cause, torch.distributed.DistError) or "Connection closed by peer" in str(cause):
            why = str(cause).partition("\n")[0].rpartition("] ")[2].rstrip(".")
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
    noise = ("Tip: For seamless", "`weights_only` was not set")  # which is looked at before Lightning loads anything
    log.addFilter(lambda record: not any(words in record.getMessage() for words in noise))


def values(args: Sequence[str], option: str) -> Iterator[str]:
    """Yield what ``option`` is set to, as ``--option value`` or ``--option=value``."""
    for flag, following in zip(args, [*args[1:], ""], strict=False):
        name, equals, value = flag.partition("=")
        if name == option:
            yield value if equals else following
