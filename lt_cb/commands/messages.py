"""Errors as one sentence: the value, the values allowed, and the next step."""

import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator

import torch
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lt_cb.commands.help import ParseError
from lt_cb.commands.restored import names_of
from lt_cb.errors import InputError, did_you_mean, file_error
from lt_cb.loggers import finish
from lt_cb.runs.folder import TERMINATED

NUMBERS = {"float": "a number", "int": "a whole number"}
NOISE = r"Subtypes:|Given value|Does not validate|- Does not validate|Errors:|- Expected a (path|<class 'NoneType'>)|$"
WARNINGS = (
    r"isinstance\(treespec, LeafSpec\)",
    "smaller than the logging interval",  # metrics are logged by epoch
    "The dirpath has changed from",  # a test has its own run folder
    "is not supported by the model summary",
)
LOGGED = (
    *("Tip: For seamless", "TPU available", "HPU available"),
    "`weights_only` was not set",  # `checkpoint.read` loads weights only
    "`Trainer.fit` stopped: `max_",  # `print_ending` repeats it
)


def run_command(command: Callable[[], None]) -> None:
    """Run a command, and show an error of its input as one sentence.

    Raises:
        SystemExit: with code 2 after an error of the input, 1 if a process of the training is lost, 143 after SIGTERM.
    """
    quiet()
    try:
        command()
        finish(succeeded=True)
    except SIGTERMException:  # Lightning's own exit code would be 0
        finish(succeeded=False)
        sys.stderr.write("lt-cb: terminated: to resume, set --ckpt_path to the run's checkpoints/last.ckpt.\n")
        raise SystemExit(TERMINATED) from None
    except Exception as error:
        finish(succeeded=False)
        wrong, lost = input_error(error) or _restoring(error), _lost_process(error)
        if wrong is None and lost is None:
            raise
        sys.stderr.write(f"lt-cb: error: {wrong or lost}\n")
        raise SystemExit(1 if wrong is None else 2) from None


def sentence(message: str, parser: LightningArgumentParser) -> str:
    """Return one sentence for jsonargparse's tree of attempts."""
    key = ".".join(re.findall(r'Parser key "([^"]+)":', message)).removeprefix("config.")
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
        return f"there is no option --{key}.{match[1]}: see {parser.prog} --help."
    other = r"nrecognized arguments: --([\w.+]+)|Group '(\w+)' does not accept option '([\w.]+)'"
    if match := re.search(other, message):
        option = f"--{match[1] or f'{match[2]}.{match[3]}'}"
        options = [name for action in parser._actions for name in action.option_strings]
        return f"there is no option {option}: see {parser.prog} --help.{did_you_mean(option, options)}"
    lines = [re.sub(r'(- )?Parser key "[^"]+":', "", line).strip() for line in message.splitlines()]
    text = " ".join(line.removeprefix("- ") for line in lines if not re.match(NOISE, line))
    return f"--{key}: {text}" if key else text


def input_error(error: BaseException) -> str | None:
    """Return the sentence for an error that the input has caused, None for any other error."""
    if isinstance(error, ParseError):
        return sentence(str(error), error.parser)
    return file_error(error) or next((str(cause) for cause in causes(error) if isinstance(cause, InputError)), None)


def _lost_process(error: BaseException) -> str | None:
    """Return the sentence for an error that comes from other processes of the training, None for any other error."""
    for cause in causes(error):
        gone = re.search(r"Connection (closed|reset) by peer|Broken pipe", str(cause))  # gloo raises RuntimeError
        if isinstance(cause, torch.distributed.DistError) or gone is not None:
            why = gone[0] if gone is not None else str(cause).partition("\n")[0].rpartition("] ")[2].rstrip(".")
            return f"another process of this training has not started, or has ended ({why}): see its own messages."
    return None


def _restoring(error: Exception) -> str | None:
    """Return the sentence for an error raised while Lightning restores a checkpoint, None for others."""
    if not any(frame.name.startswith("restore") for frame in traceback.extract_tb(error.__traceback__)):
        return None
    why = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f"the checkpoint cannot be restored ({why}): it may be damaged, or of another training. Choose another."


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes: jsonargparse wraps the errors of constructors."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def quiet() -> None:
    """Silence messages that a user cannot act upon."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", f".*{message}")
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    log.addFilter(lambda record: not any(words in record.getMessage() for words in LOGGED))
