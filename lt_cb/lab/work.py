"""A process that trains the runs of a grid, one after the other, beside others that do the same."""

import gc
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.queues import Queue

from filelock import FileLock, Timeout

from lt_cb.errors import InputError
from lt_cb.lab.plan import Run, digest
from lt_cb.hardware import available_cores
from lt_cb.runs.folder import TERMINATED, write_json

WAIT_S = 2.0  # between looks at runs that other processes hold


def failed_since(run: Run, start: float) -> bool:
    """Return whether a run has failed since ``start``, a time in seconds; an older failure is tried again.

    A process may be killed behind the result, or another one train the run before the kill is seen.
    """
    file = run.dir.error
    return file.is_file() and file.stat().st_mtime >= start and not run.dir.is_done


def check_folder(run: Run) -> list[str]:
    """Remember which configuration a folder is of, and say what in it is damaged, and is made anew.

    Raises:
        InputError: if it has a result or a checkpoint of another, or cannot be locked.
    """
    damaged = []
    begun = run.dir.is_done or run.dir.checkpoint.is_file()
    try:
        other = begun and run.dir.grid.is_file() and run.dir.read_grid()["digest"] != run.digest
    except InputError:
        damaged.append(f"'{run.dir.grid}' is damaged: it is written anew.")
    else:
        if other:
            raise InputError(
                f"'{run.folder}' holds a run of another configuration: give the grid another folder, or delete that "
                "one."
            )
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(run.dir.lock, timeout=0):
            pass
    except Timeout:  # another process trains it
        pass
    except OSError as error:
        raise InputError(
            f"'{run.dir.lock}' cannot be locked ({error.strerror}), by which processes share the runs: remove it, or "
            "give the grid another folder."
        ) from error
    write_json(run.dir.grid, {"name": run.name, "aliases": run.aliases, "digest": run.digest, "args": run.args})
    if run.dir.result.exists() and not run.dir.is_done:
        damaged.append(f"'{run.dir.result}' is damaged, or of another run: this one is not done.")
    return damaged


def work(
    runs: list[Run],
    start: float,
    device: str | None,
    processes: int,
    events: "Queue[tuple[str, str, int]]",
    parent: int,
) -> None:
    """Train what is neither done nor held by another process, until all is done or has failed.

    Args:
        runs: all of the grid, or of a shard.
        start: when the grid was started, by the clock of the file system; a failure before is tried again.
        device: GPU to train on, by number.
        processes: how many share the cores of this machine.
        events: takes what happens: start, done, failed or interrupted, the run, and this process.
        parent: process that this one ends with.
    """
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    elif processes > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    readers = max(1, available_cores() // processes)
    while True:
        held = False
        for run in runs:
            if run.dir.is_done or failed_since(run, start):
                continue
            try:
                with FileLock(run.dir.lock, timeout=0):  # the system releases what a killed process held
                    if not run.dir.is_done and not failed_since(run, start):
                        events.put(("start", run.title, os.getpid()))
                        how = _train(run, readers)
                        gc.collect()  # network and images are parts of cycles, which Python lets lie for dozens of runs
                        events.put((how, run.title, os.getpid()))
                        if how == "interrupted":
                            return
            except Timeout:
                held = True
            except OSError as error:  # of the lock, which could be taken when the grid was started, or of the log
                run.dir.error.write_text(f"'{error.filename}' cannot be written ({error.strerror}).\n")
        if not held:
            return
        time.sleep(WAIT_S)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _train(run: Run, readers: int) -> str:
    """Train, or go on, and return how it ended: done, failed or interrupted; all that is printed goes to the log."""
    run.dir.error.unlink(missing_ok=True)
    error = None
    with run.dir.log.open("a") as log:
        _flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            _fit(run, readers)
        except SystemExit as stop:
            if stop.code == TERMINATED:
                return "interrupted"
            if stop.code:  # main has written a sentence
                _flush()
                error = run.dir.log.read_text().strip().splitlines()[-1] + "\n"
        except Exception:  # whatever it was, the other runs go on
            error = traceback.format_exc()
        _flush()
    if error is not None:
        run.dir.error.write_text(error)
    return "done" if error is None else "failed"


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _fit(run: Run, readers: int) -> None:
    from lt_cb.runs import checkpoint
    from lt_cb.commands.train import main  # takes seconds, and only a worker needs it

    if digest(run.args) != run.digest:
        raise InputError("a config file has changed since the grid was started: start it again.")
    args, resume = run.args, list[str]()
    for file in (run.dir.checkpoint, checkpoint.before(run.dir.checkpoint)):
        if file.is_file() and not resume:
            try:
                checkpoint.read(file)
            except InputError as error:
                sys.stderr.write(f"lt-cb: {error}\n")
            else:
                args = [arg for arg in args if not arg.startswith("--ckpt_path=")]  # what a second stage started from
                resume = ["--ckpt_path", str(file)]
    if "data.num_workers" not in run.settings():
        args = [*args, f"--data.num_workers={readers}"]
    main(["fit", *args, "--folder", str(run.folder), *resume, "--trainer.enable_progress_bar=false"])
