"""One run of a grid: its folder, and its training in a process."""

import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lt_cb.errors import ERROR_PREFIX, InputError
from lt_cb.lab.plan import Run, digest
from lt_cb.runs.folder import TERMINATED, write_json, write_text

POLL_S = 0.1  # between looks at a training


def prepare(run: Run) -> None:
    """Write ``grid.json`` to the folder of a run, and remove the error of an earlier attempt."""
    if run.state == "changed":
        raise InputError(
            f"'{run.dir.path}' holds a run of another configuration ({_change(run)}): give the grid another folder, or "
            "delete that one."
        )
    try:
        write_json(run.dir.grid, {"name": run.name, "aliases": run.aliases, "digest": run.digest, "args": run.args})
        with suppress(Timeout), FileLock(run.dir.lock, timeout=0):
            run.dir.error.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"'{run.dir.path}' cannot be written, or its lock cannot be taken ({error.strerror}): give the grid "
            "another folder, or remove that one."
        ) from error


def train(run: Run, environment: Mapping[str, str], readers: int, stop: threading.Event) -> str:
    """Train a prepared run in a process, from its last checkpoint if there is one; the caller holds its lock.

    The output goes to ``log.txt``, and the reason of a failure to ``error.txt``.

    Args:
        run: run.
        environment: variables of the process that override the variables of this process.
        readers: processes that decode images, unless the run sets ``data.num_workers``.
        stop: set it to interrupt the training by SIGTERM.

    Returns:
        ``done``, ``failed`` or ``interrupted``.
    """
    if digest(run.args) != run.digest:
        write_text(run.dir.error, "a config file has changed since the grid was started: start it again.\n")
        return "failed"
    command = [sys.executable, "-m", "lt_cb.lab.child", "fit", f"--data.num_workers={readers}", *run.args]
    command += ["--folder", str(run.dir.path), "--trainer.enable_progress_bar=false", *_resume(run)]
    environment = {**os.environ, **environment}
    with run.dir.log.open("ab") as log:
        begin = log.tell()
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment) as process:
            while (code := process.poll()) is None:
                if stop.wait(POLL_S):
                    process.terminate()
                    code = process.wait()
                    break
    if run.dir.is_done:
        return "done"
    if stop.is_set() or code in (TERMINATED, -signal.SIGTERM):
        return "interrupted"
    printed = run.dir.log.read_bytes()[begin:].decode(errors="replace")
    write_text(run.dir.error, reason(code, printed) + "\n")
    return "failed"


def _change(run: Run) -> str:
    """Return how the arguments of a run differ from those of the run in its folder."""
    before = json.loads(run.dir.grid.read_bytes()).get("args", run.args)
    old, new = [word for word in before if word not in run.args], [word for word in run.args if word not in before]
    return f"{' '.join(old) or 'nothing'} instead of {' '.join(new) or 'nothing'}" if old or new else "in a config file"


def _resume(run: Run) -> list[str]:
    """Return the arguments that resume a run from its newest undamaged checkpoint."""
    kept = [file for file in (run.dir.checkpoint, run.dir.checkpoint_before) if file.is_file()]
    newest = [*filter(_is_whole, kept), *kept][:1]  # `fit` refuses a damaged one
    return ["--ckpt_path", *map(str, newest)] if newest else []


def _is_whole(checkpoint: Path) -> bool:
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except Exception:  # zipfile raises many kinds for damaged bytes
        return False


def reason(code: int, printed: str) -> str:
    """Return why a process failed: its last error line, or another last line."""
    if code < 0:
        return f"its process was killed by signal {-code}" + ", often for lack of memory" * (code == -signal.SIGKILL)
    lines = [line for line in printed.splitlines() if line.strip()]
    errors = [line.removeprefix(ERROR_PREFIX) for line in lines if line.startswith(ERROR_PREFIX)]
    return (errors or lines or [f"its process ended without a result and with exit code {code}"])[-1]
