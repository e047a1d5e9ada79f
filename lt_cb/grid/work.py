"""A process that trains the runs of a grid, one after the other, beside others that do the same."""

import csv
import fcntl
import hashlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from pathlib import Path

import yaml

from lt_cb.errors import InputError
from lt_cb.grid.plan import Run
from lt_cb.hardware import available_cores
from lt_cb.run import write_json

CHECKPOINT = "checkpoints/last.ckpt"
WAIT_S = 2.0  # between looks at runs that other processes hold


def is_done(run: Run) -> bool:
    """Return whether a run has its result."""
    return (run.folder / "result.json").is_file()


def failed_since(run: Run, start: float) -> bool:
    """Return whether a run has failed since ``start``, a time in seconds; an older failure is tried again."""
    file = run.folder / "error.txt"
    return file.is_file() and file.stat().st_mtime >= start


@contextmanager
def claim(run: Run) -> Iterator[bool]:
    """Hold a run, if no other process does. The system releases what a killed process held."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def check_folder(run: Run) -> None:
    """Remember which configuration a folder is of.

    Raises:
        InputError: (a ValueError) if it has a result or a checkpoint of another.
    """
    digest = hashlib.sha256(json.dumps(run.config, sort_keys=True, default=str).encode()).hexdigest()
    file = run.folder / "grid.json"
    begun = is_done(run) or (run.folder / CHECKPOINT).is_file()
    if begun and file.is_file() and json.loads(file.read_text())["config_sha256"] != digest:
        raise InputError(
            f"'{run.folder}' holds a run of another configuration: give the grid another folder, or delete that one."
        )
    write_json(file, {"name": run.name, "aliases": run.aliases, "config_sha256": digest})


def work(
    runs: list[Run], start: float, device: str | None, processes: int, events: "Queue[tuple[str, str, int]]"
) -> None:
    """Train what is neither done nor held by another process, until all is done or has failed.

    Args:
        runs: all of the grid, or of a shard.
        start: seconds since the epoch; a failure before is tried again.
        device: GPU to train on, by number.
        processes: how many share the cores of this machine.
        events: takes what happens: start, done or failed, the run, and this process.
    """
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    elif processes > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    readers = max(1, available_cores() // processes)
    while True:
        held = False
        for run in runs:
            if is_done(run) or failed_since(run, start):
                continue
            with claim(run) as ours:
                if not ours:
                    held = True
                elif not is_done(run) and not failed_since(run, start):
                    events.put(("start", run.title, os.getpid()))
                    events.put(("failed" if _train(run, readers) else "done", run.title, os.getpid()))
        if not held:
            return
        time.sleep(WAIT_S)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _train(run: Run, readers: int) -> str | None:
    """Train, or go on, and return what went wrong; all that is printed goes to ``log.txt``."""
    error_file = run.folder / "error.txt"
    error_file.unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with (run.folder / "log.txt").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            _fit(run, readers)
        except SystemExit as stop:  # main has written a sentence
            if not stop.code:
                return None
            sys.stderr.flush()
            error = (run.folder / "log.txt").read_text().strip().splitlines()[-1]
        except Exception:  # whatever it was, the other runs go on
            error = traceback.format_exc()
        else:
            return None
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
    error_file.write_text(error + "\n")
    return error


def _fit(run: Run, readers: int) -> None:
    from lt_cb.commands.train import load_checkpoint, main  # takes seconds, and only a worker needs it

    checkpoint = run.folder / CHECKPOINT
    trainer = dict(run.config.get("trainer", {}))
    csv_files = {
        "class_path": "lt_cb.loggers.RunFolder",
        "init_args": {"save_dir": str(run.folder.parent.parent), "name": run.name, "version": run.folder.name},
    }
    trainer["logger"] = [csv_files, *trainer.pop("logger+", [])]
    config = {**run.config, "trainer": {**trainer, "enable_progress_bar": False}}
    args = ["fit", "--config", yaml.safe_dump(config)]
    if run.config.get("data", {}).get("num_workers") is None:
        args.append(f"--data.num_workers={readers}")
    earlier: list[dict[str, str]] = []
    try:
        load_checkpoint(str(checkpoint))
    except InputError:  # there is none, or a kill came while it was written
        pass
    else:
        args += ["--ckpt_path", str(checkpoint)]
        earlier = _rows(run.folder / "metrics.csv")
    (run.folder / "config.yaml").unlink(missing_ok=True)  # of an interrupted try; Lightning overwrites none
    main(args)
    if earlier:
        _put_before(run.folder / "metrics.csv", earlier)


def _rows(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with file.open() as stream:
        return list(csv.DictReader(stream))


def _put_before(file: Path, earlier: list[dict[str, str]]) -> None:
    """Write the epochs from before a resume back to the metrics, which the logger begins anew."""
    later = _rows(file)
    first = min((int(row["epoch"]) for row in later), default=0)
    rows = [row for row in earlier if int(row["epoch"]) < first] + later
    fields = list(dict.fromkeys(name for row in rows for name in row))
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fields)
        writer.writeheader()
        writer.writerows(rows)
