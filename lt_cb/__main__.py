"""``lt-cb``, also as ``python -m lt_cb``: the table of commands. Help and version do not wait for torch."""

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pkgutil import resolve_name

from lt_cb import __version__
from lt_cb.errors import ERROR_PREFIX, InputError, did_you_mean, file_error
from lt_cb.text import printable

INTERRUPTED, PIPE_CLOSED = 128 + 2, 128 + 13  # exit codes after Ctrl-C and SIGPIPE, as of shells
COMMANDS = {  # a function of the words behind the command, which may return an exit code, and the purpose
    "fit": ("lt_cb.commands.train:fit", "train, or resume training, and test the last checkpoint"),
    "validate": ("lt_cb.commands.train:validate", "evaluate a checkpoint on the validation images"),
    "test": ("lt_cb.commands.train:test", "evaluate a checkpoint on the test images"),
    "predict": ("lt_cb.commands.predict:predict", "write the classes of images to predictions.csv"),
    "export": ("lt_cb.commands.export:export", "write a torch.export or ONNX file that maps images to probabilities"),
    "inspect": (
        "lt_cb.commands.inspect_data:inspect",
        "look at the images of a data set: class counts and weights, duplicates, a page",
    ),
    "recommend": (
        "lt_cb.heads.recommend:recommend",
        "choose loss and weighting of a head on a frozen backbone",
    ),
    "finetune": (
        "lt_cb.heads.finetune:finetune",
        "train the whole network of a checkpoint, and say whether it pays",
    ),
    "heads": ("lt_cb.heads.compare:heads", "test every loss, weighting and L2 strength on frozen features"),
    "grid": ("lt_cb.lab.grid:main", "train the runs of a grid file, each distinct one once"),
    "report": ("lt_cb.lab.report:main", "tables and pictures of a folder of runs"),
}


def main(args: Sequence[str] | None = None) -> None:
    """Run ``lt-cb``.

    Args:
        args: the command line as a list of words; None takes the command line of the process.

    Raises:
        SystemExit: with code 2, after one sentence on stderr, if the input is wrong.
    """
    try:
        code = _run(*(list(sys.argv[1:] if args is None else args) or ["--help"]))
        sys.stdout.flush()
        if code is not None:
            raise SystemExit(code)
    except KeyboardInterrupt:
        sys.stderr.write("lt-cb: interrupted.\n")
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:  # the reader of a pipe, as in `lt-cb report | head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(PIPE_CLOSED) from None
    except (InputError, OSError) as error:
        wrong = str(error) if isinstance(error, InputError) else file_error(error)
        if wrong is None:
            raise
        sys.stderr.write(f"{ERROR_PREFIX}{printable(wrong)}\n")
        raise SystemExit(2) from None


def _run(command: str, *rest: str) -> int | None:
    """Run a command, and return its exit code, if it has one."""
    if command in ("-h", "--help"):
        sys.stdout.write("usage: lt-cb COMMAND [OPTION ...]\n\n")
        sys.stdout.writelines(f"  {name:12}{purpose}\n" for name, (_, purpose) in COMMANDS.items())
        sys.stdout.write("\nlt-cb COMMAND --help has the options of a command, lt-cb --version the version.\n")
        return None
    if command in ("-V", "--version"):
        sys.stdout.write(f"lt_cb {__version__}\n")
        return None
    if command not in COMMANDS:
        near = did_you_mean(command, COMMANDS)
        raise InputError(f"there is no command '{command}': choose {', '.join(COMMANDS)}.{near}")
    with _status():
        run = resolve_name(COMMANDS[command][0])
    code: int | None = run(list(rest))
    return code


def _status() -> AbstractContextManager[object]:
    """Show in a terminal that the command starts: the import of torch and Lightning takes seconds."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status("Starting lt-cb")


if __name__ == "__main__":
    main()
