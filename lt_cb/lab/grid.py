"""``lt-cb grid``: print the plan of a grid file, train its runs, and show a live table."""

import glob
import math
import os
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lt_cb.errors import ArgumentParser, InputError
from lt_cb.hardware import available_cores, available_memory
from lt_cb.lab.plan import Plan, Run, read_plan
from lt_cb.lab.work import prepare, train
from lt_cb.runs.folder import TERMINATED, is_option, shipped

RUN_BYTES = 2 * 10**9  # upper bound of the main memory of a training on small images
WAIT_S = 0.5  # between looks at a run that another command trains
RESUMES = "the same command resumes from the last checkpoints."


def main(args: Sequence[str]) -> int:
    """Run ``lt-cb grid`` and return 0 if all runs are done, 1 if some failed or were interrupted, 143 after SIGTERM."""
    parser = ArgumentParser("lt-cb grid", description="Train the runs of a grid file, each distinct one once.")
    parser.add_argument("file", help="grid file, as configs/grids/digits.yaml or lt_cb:grids/digits")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and train nothing")
    parser.add_argument("--devices", help="GPUs that each train one run at a time: 0,1,2,3; 0,0 trains two on one")
    parser.add_argument("--shard", default="1/1", help="train only the i-th of n parts of the runs: i/n")
    options = parser.parse_args(args)
    if given := [name for name in sorted(os.environ) if is_option(name)]:
        raise InputError(f"{given[0]} is set, but a grid takes options from its file alone: unset it.")
    plan = read_plan(Path(shipped(options.file)))
    runs = _shard(plan.runs, options.shard)
    environments = _environments(options.devices, sum(run.state != "done" for run in runs))
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    _print_plan(console, plan, runs, len(environments), list_runs=options.dry_run)
    if options.dry_run:
        return 0
    for run in runs:
        prepare(run)
    return _Training(console, runs, environments).run()


def _shard(runs: list[Run], shard: str) -> list[Run]:
    index, _, count = shard.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise InputError(f"--shard is '{shard}', but must be i/n with i from 1 to n.")
    return runs[int(index) - 1 :: int(count)]


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


def _print_plan(console: Console, plan: Plan, runs: list[Run], num_at_once: int, list_runs: bool) -> None:
    states = [run.state for run in runs]
    done, to_do, changed = (states.count(state) for state in ("done", "to do", "changed"))
    console.print(f"{plan.num_named} named, {len(plan.runs)} distinct runs in {plan.folder}")
    if len(runs) < len(plan.runs):
        console.print(f"{len(runs)} of them in this shard")
    console.print(f"{done} done, {to_do} to do, {num_at_once} at a time")
    if changed:
        console.print(f"{changed} changed: their folders hold runs of another configuration")
    finished = [run.dir.read_result() for run in plan.runs if run.state == "done"]
    if finished and to_do:
        seconds = statistics.mean(record.seconds for record in finished)
        left = _time(seconds * to_do / num_at_once)
        console.print(f"{_time(seconds)} of training a run so far: about {left} left")
    if list_runs:
        for run, state in zip(runs, states, strict=True):
            console.print(f"{state:7} {run.title}" + f" (also {', '.join(run.aliases)})" * bool(run.aliases))


class _Training:
    """Training of runs, at most one at a time with each of the environments."""

    def __init__(self, console: Console, runs: list[Run], environments: list[dict[str, str]]) -> None:
        self.runs, self.environments, self.console = runs, environments, console
        self.outcomes = {run.title: "done" for run in runs if run.dir.is_done}
        self.waiting = deque(run for run in runs if run.title not in self.outcomes)
        self.stop = threading.Event()
        columns = TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn(), TimeRemainingColumn()
        hidden = not console.is_terminal
        self.table = Progress(*columns, console=console, transient=True, disable=hidden, speed_estimate_period=math.inf)
        self.bar = self.table.add_task("", total=len(runs), completed=len(self.outcomes))

    def run(self) -> int:
        """Train until all runs have ended or a signal comes; return the exit code."""
        with (
            _stopped_by_signals(self.stop) as signals,
            self.table,
            ThreadPoolExecutor(len(self.environments)) as pool,
        ):
            self._count()
            futures = [pool.submit(self._work, environment) for environment in self.environments]
            wait(futures, return_when=FIRST_EXCEPTION)
            self.stop.set()
            for future in futures:
                future.result()
        if signals:
            self.console.print(f"Interrupted: {RESUMES}")
            return TERMINATED if signals[0] == signal.SIGTERM else 1
        return self._summarize()

    def _work(self, environment: dict[str, str]) -> None:
        """Train one waiting run after the other. A run that another command trains waits behind the others."""
        while not self.stop.is_set():
            try:
                run = self.waiting.popleft()
            except IndexError:
                return
            try:
                with FileLock(run.dir.lock, timeout=0):
                    self.outcomes[run.title] = self._train(run, environment)
                self._count()
            except Timeout:
                self.waiting.append(run)
                self.stop.wait(WAIT_S)

    def _train(self, run: Run, environment: dict[str, str]) -> str:
        """Train a locked run, unless another command has trained it since the start; return its outcome."""
        if run.dir.is_done:
            return "done"
        if run.dir.error.exists():
            return "failed"
        if not self.console.is_terminal:
            self.console.print(f"started {run.title}")
        begin, row = time.monotonic(), self.table.add_task(run.title, total=None)
        readers = max(1, available_cores() // len(self.environments))
        outcome = train(run, environment, readers, self.stop)
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
        return 1 if failed or interrupted else 0


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
