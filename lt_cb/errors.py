"""`InputError` for wrong input, which the command line shows as one sentence, and checks that raise it."""

import argparse
import difflib
import errno
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from lt_cb.text import printable

ERROR_PREFIX, WARNING_PREFIX = "lt-cb: error: ", "lt-cb: warning: "  # on the terminal, and in the logs of a grid


class InputError(ValueError):
    """Wrong value from the user. The message names the value, the allowed values and the remedy."""


class DataError(InputError):
    """The data cannot be trained on: a file, a label or a class is at fault, and no option."""


class ArgumentParser(argparse.ArgumentParser):
    """Parser that raises `InputError` instead of exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise `InputError`."""
        raise InputError(f"{message}: see {self.prog} --help.")


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def file_error(error: BaseException) -> str | None:
    """Return the sentence for a file or folder that cannot be used; None for any other error."""
    if isinstance(error, OSError) and error.errno in FULL:
        where = f" for '{error.filename}'" if error.filename else ""
        return f"there is no room{where} ({error.strerror}): free some space, or choose another folder."
    if isinstance(error, ValueError) and str(error) == "embedded null byte":
        return "a path has a null byte: write it without."
    unusable = PermissionError | NotADirectoryError | FileExistsError | FileNotFoundError
    if isinstance(error, unusable) and error.filename:
        return f"cannot use '{error.filename}' ({error.strerror}): choose another folder, or change its permissions."
    return None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the most similar known name, or an empty string if none is similar."""
    ratios = {option: difflib.SequenceMatcher(None, option.lower(), name.lower()).ratio() for option in known}
    nearest = max(ratios, key=ratios.__getitem__, default="")
    return f" Did you mean '{nearest}'?" if ratios.get(nearest, 0) >= 0.5 else ""


def near_file(path: str | Path) -> str:
    """Return ``" Did you mean 'x'?"`` for the most similar name in the folder of a missing file, or an empty string."""
    folder = Path(path).parent
    try:
        names = os.listdir(folder)
    except OSError:
        return ""
    nearest = difflib.get_close_matches(Path(path).name, names, n=1)
    return f" Did you mean '{folder / nearest[0]}'?" if nearest else ""


def enumerate_names(names: Sequence[str]) -> str:
    """Return the names in quotes, shortened to the first ten."""
    shown = ", ".join(f"'{printable(name)}'" for name in names[:10])
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"


def check_below_one(name: str, value: float, otherwise: str) -> None:
    """Raise `InputError` for a value outside [0, 1); ``otherwise`` ends the sentence."""
    if not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise InputError(f"{name} is {value}, but must be in [0, 1); {otherwise}")


def check_positive(name: str, value: float, otherwise: str) -> None:
    """Raise `InputError` for a value that is not above 0 or not finite; ``otherwise`` ends the sentence."""
    if not isinstance(value, int | float) or not 0.0 < value < math.inf:
        raise InputError(f"{name} is {value}, but must be positive and finite; {otherwise}")


def check_at_least(name: str, value: float, least: float, otherwise: str) -> None:
    """Raise `InputError` for a value below ``least`` or not finite; ``otherwise`` ends the sentence."""
    if not isinstance(value, int | float) or not least <= value < math.inf:
        raise InputError(f"{name} is {value}, but must be at least {least} and finite; {otherwise}")
