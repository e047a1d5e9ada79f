"""``lt-cb grid``: print the plan of a grid file, train its runs, and show a live table."""

import glob
import math
import os
import signal
import statistics
import sys
import threading
import time
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lt_cb.errors import WARNING_PREFIX, ArgumentParser, InputError
from lt_cb.hardware import available_cores, available_memory
from lt_cb.lab.check import check
from lt_cb.lab.plan import Plan, Run, read_plan
from lt_cb.lab.work import prepare, train
from lt_cb.runs.folder import TERMINATED, is_option, shipped

MAX_AT_ONCE = 256  # runs that a cluster is given at a time
RUN_BYTES = 2 * 10**9  # upper bound of the main memory of a training on small images
WAIT_S = 0.5  # between looks at a run that another command trains
RESUMES = "the same command resumes from the last checkpoints."
# trains a prepared run until an event is set, calls a function with the machine when it starts, returns the outcome
TrainRun = Callable[[Run, threading.Event, Callable[[str], None]], str]


def main(args: Sequence[str]) -> int:
    """Run ``lt-cb grid`` and return 0 if all runs are done, 1 if some failed or were interrupted, 143 after SIGTERM."""
    parser = ArgumentParser("lt-cb grid", description="Train the runs of a grid file, each distinct one once.")
    parser.add_argument("file", help="grid file, as configs/grids/digits.yaml or lt_cb:grids/digits")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and train nothing")
    parser.add_argument("--devices", help="GPUs that each train one run at a time: 0,1,2,3; 0,0 trains two on one")
    parser.add_argument("--on", help="Ray cluster to train on: local, auto, ray://HOST:10001 or HOST:6379")
    parser.add_argument("--cpus", type=float, default=1.0, help="with --on: cores of a run")
    parser.add_argument("--gpus", type=float, help="with --on: GPUs of a run, as 0.25; default 1 if there are any")
    options = parser.parse_args(args)
    if given := [name for name in sorted(os.environ) if is_option(name)]:
        raise InputError(f"{given[0]} is set, but a grid takes options from its file alone: unset it.")
    plan = read_plan(Path(shipped(options.file)))
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    to_do = sum(run.state != "done" for run in plan.runs)
    if options.on is not None:
        return _train_on_cluster(options, console, plan, to_do)
    environments = _environments(options.devices, to_do)
    _print_plan(console, plan, len(environments), list_runs=options.dry_run)
    if options.dry_run:
        return 0
    readers = max(1, available_cores() // len(environments))
    trainers = [partial(_train_here, environment, readers) for environment in environments]
    return _Training(console, plan.runs, trainers).run()


def _train_on_cluster(options: Namespace, console: Console, plan: Plan, to_do: int) -> int:
    if options.devices is not None:
        raise InputError("--devices is for this machine, but --on names a cluster: set --gpus instead.")
    from lt_cb.lab.cluster import Cluster, Trainings

    cluster = Cluster(options.on, options.cpus, options.gpus)
    try:
        _print_plan(console, plan, cluster.slots, list_runs=options.dry_run)
        if options.dry_run:
            return 0
        trainings = Trainings(cluster)
        try:  # more than fit now: Ray queues them, and machines may join
            return _Training(console, plan.runs, [trainings.train] * max(1, min(to_do, MAX_AT_ONCE))).run()
        finally:
            trainings.close()
    finally:
        cluster.close()


def _train_here(
    environment: Mapping[str, str], readers: int, run: Run, stop: threading.Event, started: Callable[[str], None]
) -> str:
    started("")
    return train(run, environment, readers, stop)


def _environments(devices: str | None, num_to_do: int) -> list[dict[str, str]]:
    """Return the environment variables of each run trained at a time.

    On a CPU one run trains on each core, with one thread: threads hardly speed up networks this small.
    """
    if devices is not None:
        return [{"CUDA_VISIBLE_DEVICES": name.strip()} for name in devices.split(",")]
    if sys.platform == "darwin" or glob.glob("/dev/nvidia[0-9]*"):
        return [{}]
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(given) if given.isdigit() and given != "0" else 1
    num_at_once = min(available_cores() // threads, available_memory() // RUN_BYTES, num_to_do)
    return [{"OMP_NUM_THREADS": str(threads)}] * num_at_once if num_at_once > 1 else [{}]


def _print_plan(console: Console, plan: Plan, num_at_once: int, list_runs: bool) -> None:
    states = [run.state for run in plan.runs]
    done, to_do, changed = (states.count(state) for state in ("done", "to do", "changed"))
    console.print(f"{plan.num_named} named, {len(plan.runs)} distinct runs in {plan.folder}")
    console.print(f"{done} done, {to_do} to do, {num_at_once} at a time")
    if changed:
        console.print(f"{changed} changed: their folders hold runs of another configuration")
    finished = [run.dir.read_result() for run in plan.runs if run.state == "done"]
    if finished and to_do:
        seconds = statistics.mean(record.seconds for record in finished)
        left = _time(seconds * to_do / num_at_once)
        console.print(f"{_time(seconds)} of training a run so far: about {left} left")
    if list_runs:
        for run, state in zip(plan.runs, states, strict=True):
            console.print(f"{state:7} {run.title}" + f" (also {', '.join(run.aliases)})" * bool(run.aliases))


class _Training:
    """Training of runs, at most one at a time by each of the functions."""

    def __init__(self, console: Console, runs: list[Run], trainers: Sequence[TrainRun]) -> None:
        self.runs, self.trainers, self.console = runs, trainers, console
        self.outcomes = {run.title: "done" for run in runs if run.dir.is_done}
        self.waiting = deque(run for run in runs if run.title not in self.outcomes)
        self.stop = threading.Event()
        columns = TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn(), TimeRemainingColumn()
        hidden = not console.is_terminal
        self.table = Progress(*columns, console=console, transient=True, disable=hidden, speed_estimate_period=math.inf)
        self.bar = self.table.add_task("", total=len(runs), completed=len(self.outcomes))

    def run(self) -> int:
        """Train until all runs have ended or a signal comes; return the exit code."""
        if self.waiting:
            with self.console.status("Checking the options of the runs") if self.console.is_terminal else nullcontext():
                check(list(self.waiting))
        for run in self.runs:
            prepare(run)
        with (
            _stopped_by_signals(self.stop) as signals,
            self.table,
            ThreadPoolExecutor(len(self.trainers)) as pool,
        ):
            self._count()
            futures = [pool.submit(self._work, train_run) for train_run in self.trainers]
            wait(futures, return_when=FIRST_EXCEPTION)
            self.stop.set()
            for future in futures:
                future.result()
        if signals:
            self.console.print(f"Interrupted: {RESUMES}")
            return TERMINATED if signals[0] == signal.SIGTERM else 1
        return self._summarize()

    def _work(self, train_run: TrainRun) -> None:
        """Train one waiting run after the other. A run that another command trains waits behind the others."""
        while not self.stop.is_set():
            try:
                run = self.waiting.popleft()
            except IndexError:
                return
            try:
                with FileLock(run.dir.lock, timeout=0):
                    self.outcomes[run.title] = self._train(run, train_run)
                self._count()
            except Timeout:
                self.waiting.append(run)
                self.stop.wait(WAIT_S)

    def _train(self, run: Run, train_run: TrainRun) -> str:
        """Train a locked run, unless another command has trained it since the start; return its outcome."""
        if run.dir.is_done:
            return "done"
        if run.dir.error.exists():
            return "failed"
        begin, rows = time.monotonic(), list[TaskID]()

        def started(machine: str) -> None:
            nonlocal begin
            begin = time.monotonic()
            title = f"{run.title} on {machine}" if machine else run.title
            if not self.console.is_terminal:
                self.console.print(f"started {title}")
            for row in rows:  # on a machine that was lost
                self.table.remove_task(row)
            rows[:] = [self.table.add_task(title, total=None)]

        outcome = train_run(run, self.stop, started)
        for row in rows:
            self.table.remove_task(row)
        self.console.print(f"{outcome} {run.title} ({_time(time.monotonic() - begin)})")
        return outcome

    def _count(self) -> None:
        done = len(self.outcomes)
        self.table.update(self.bar, completed=done, description=f"{done} of {len(self.runs)} runs")

    def _summarize(self) -> int:
        """Print the number of done and failed runs and the reasons of failures; return the exit code."""
        outcomes = ["done" if run.dir.is_done else self.outcomes[run.title] for run in self.runs]
        done, failed, interrupted = map(outcomes.count, ("done", "failed", "interrupted"))
        self.console.print(f"{done} of {len(self.runs)} runs done, {failed} failed.")
        if interrupted:
            self.console.print(f"{interrupted} interrupted: {RESUMES}")
        for run, outcome in zip(self.runs, outcomes, strict=True):
            if outcome == "failed" and run.dir.error.exists():
                self.console.print(f"{run.title}: {run.dir.error.read_text().strip()} (see {run.dir.log})")
        for warning, warned in _warnings(self.runs).items():
            self.console.print(f"{warning} ({len(warned)} of {len(self.runs)} runs; see {warned[0].dir.log})")
        return 1 if failed or interrupted else 0


def _warnings(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Return the warnings in the logs of runs, each with the runs that have it."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        printed = run.dir.log.read_text(errors="replace") if run.dir.log.exists() else ""
        for line in dict.fromkeys(line for line in printed.splitlines() if line.startswith(WARNING_PREFIX)):
            found.setdefault(line, []).append(run)
    return found


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[list[int]]:
    """Set ``stop`` at SIGINT and SIGTERM, and yield the list of received signals."""
    received = list[int]()

    def handle(number: int, _: object) -> None:
        if received:  # a second signal: the trainings end with this process
            os._exit(1)
        received.append(number)
        stop.set()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
