"""Run a command: its messages, its errors as one sentence, and its exit code."""

import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lt_cb.errors import ERROR_PREFIX, WARNING_PREFIX, InputError, file_error
from lt_cb.loggers import finish
from lt_cb.runs.folder import TERMINATED
from lt_cb.text import printable

WARNINGS = (
    *(r"isinstance\(treespec, LeafSpec\)", "smaller than the logging interval"),  # metrics are logged by epoch
    r"Found \d+ module\(s\) in eval mode",  # a frozen backbone, or batch norm
    "The dirpath has changed from",  # a test has its own run folder
    *("callbacks used to create the checkpoint", "is not supported by the model summary"),
    "You're resuming from a checkpoint that ended before",  # `fit` says what happens
    *(r"`.fit\(ckpt_path=None\)` was called", "there is no last checkpoint available"),  # from OnExceptionCheckpoint
)
LOGGED = (  # messages of Lightning
    *("Tip: For seamless", "TPU available", "HPU available", "Seed set to", "Loading `train_dataloader`"),
    *("Restoring states from", "Restored all states from", "Loaded model weights from"),
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
    except SIGTERMException as error:  # Lightning's own exit code would be 0
        finish(succeeded=False)
        sys.stderr.write(f"lt-cb: terminated: {printable(str(error)) or 'start again'}.\n")
        raise SystemExit(TERMINATED) from None
    except KeyboardInterrupt:
        finish(succeeded=False)
        raise
    except Exception as error:
        finish(succeeded=False)
        wrong, lost = input_error(error) or _restoring(error), _lost_process(error)
        if wrong is None and lost is None:
            raise
        sys.stderr.write(f"{ERROR_PREFIX}{printable(str(wrong or lost))}\n")
        raise SystemExit(1 if wrong is None else 2) from None


def input_error(error: BaseException) -> str | None:
    """Return the sentence for an error that the input has caused, None for any other error."""
    wrong = next((str(cause) for cause in causes(error) if isinstance(cause, InputError)), None)
    return file_error(error) or wrong or next(filter(None, map(_refused_by_lightning, causes(error))), None)


def _refused_by_lightning(error: BaseException) -> str | None:
    """Return the sentence for a combination of options that Lightning refuses, None for other errors."""
    text = " ".join(str(error).split())
    refused = isinstance(error, MisconfigurationException) or text.startswith("Early stopping conditioned on metric")
    return f"Lightning refuses this training ({text}): change --trainer." if refused else None


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
    """Set up this process: silence messages that a user cannot act upon, and write enums as their values."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", f".*{message}")
    show = warnings.formatwarning

    def formatted(message: Any, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:  # noqa: ANN401
        if filename.endswith("rank_zero.py"):  # `rank_zero_warn`: the place in the code tells a user nothing
            return f"{WARNING_PREFIX}{printable(str(message))}\n"
        return show(message, category, filename, lineno, line)

    warnings.formatwarning = formatted
    # options of callbacks, in configurations
    yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))
    checkpoints = "lightning.pytorch.trainer.connectors.checkpoint_connector"
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed", checkpoints):
        logging.getLogger(name).addFilter(lambda record: not any(words in record.getMessage() for words in LOGGED))
