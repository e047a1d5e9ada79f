"""Check of a grid before it trains: ``fit`` parses each of its options, names and files once, in a process."""

import contextlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence

from lt_cb.errors import ERROR_PREFIX, InputError
from lt_cb.lab.plan import Run

NUMBER = re.compile(r"=[-+.\de]+$")  # as a value: one of an option is parsed


def check(runs: Sequence[Run]) -> None:
    """Raise InputError for the first run whose options or config files ``fit`` refuses, of several choices."""
    seen, chosen, first = set[str](), list[tuple[str, list[str]]](), dict[str, Run]()
    for run in runs:
        first.setdefault(run.name, run)
    for run in first.values():
        words = [word for word in run.args if not word.startswith("--ckpt_path")]  # may not be trained yet
        kinds = [NUMBER.sub("=", word) for word in words]
        if not seen.issuperset(kinds):
            chosen.append((run.name, words))
            seen.update(kinds)
    if len(first) == 1:
        return
    command = [sys.executable, "-m", "lt_cb.lab.check"]
    done = subprocess.run(command, input=json.dumps(chosen), capture_output=True, text=True, check=False)
    errors = [line for line in done.stderr.splitlines() if line.startswith(ERROR_PREFIX)]
    if done.returncode and errors:
        raise InputError(errors[-1].removeprefix(ERROR_PREFIX))


def _parse(chosen: Sequence[tuple[str, list[str]]]) -> None:
    """Parse the arguments of runs; at the first error, write it with the name of the run and exit."""
    from lt_cb.__main__ import main

    for name, words in chosen:
        errors, code = io.StringIO(), 0
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            try:
                main(["fit", *words, "--print_config"])
            except SystemExit as ended:
                code = int(ended.code or 0)
        if code:
            sentence = errors.getvalue().strip().rpartition(ERROR_PREFIX)[2]
            sys.stderr.write(f"{ERROR_PREFIX}the run '{name}' cannot be trained: {sentence}\n")
            sys.exit(code)


if __name__ == "__main__":
    _parse(json.load(sys.stdin))
