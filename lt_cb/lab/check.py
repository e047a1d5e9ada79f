"""Check of a grid before it trains: ``fit`` parses its options, names and files, each once, in one process."""

import contextlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence

from lt_cb.errors import InputError
from lt_cb.lab.plan import Run
from lt_cb.lab.work import reason

NUMBER = re.compile(r"=[-+]?[\d.]+(e[-+]?\d+)?$")  # of the numbers that an option takes, only the first is parsed


def check(runs: Sequence[Run]) -> None:
    """Raise InputError for the first choice that ``fit`` refuses. A single choice fails as soon without this check."""
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.name, run)
    if len(first) == 1:
        return
    seen, chosen = set[str](), list[tuple[str, list[str]]]()
    for run in first.values():
        words = [word for word in run.args if not word.startswith("--ckpt_path")]  # may not be trained yet
        kinds = [NUMBER.sub("=", word) for word in words]
        if not seen.issuperset(kinds):
            chosen.append((run.name, words))
            seen.update(kinds)
    command = [sys.executable, "-m", "lt_cb.lab.check"]
    done = subprocess.run(command, input=json.dumps(chosen), capture_output=True, text=True, check=False)
    if done.returncode:
        name = done.stdout.split("\n")[-2]
        raise InputError(f"the run '{name}' cannot be trained: {reason(done.returncode, done.stderr)}")


def _parse(chosen: Sequence[tuple[str, list[str]]]) -> None:
    """Parse the arguments of runs, after printing the name of each. Exit at the first error, as ``fit`` does."""
    from lt_cb.__main__ import main

    for name, words in chosen:
        sys.stdout.write(f"{name}\n")
        sys.stdout.flush()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                main(["fit", *words, "--print_config"])
        except SystemExit as ended:
            if ended.code:
                raise


if __name__ == "__main__":
    _parse(json.load(sys.stdin))
