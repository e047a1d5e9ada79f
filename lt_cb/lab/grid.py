"""``lt-cb grid``: the plan, the processes that train it, and a live table."""

import glob
import multiprocessing
import os
import queue
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Column, Table

from lt_cb.errors import ArgumentParser, InputError
from lt_cb.lab.estimate import time_left
from lt_cb.lab.plan import Plan, Run, read_plan
from lt_cb.lab.work import check_folder, failed_since, work
from lt_cb.hardware import available_cores, available_memory
from lt_cb.runs.folder import TERMINATED, shipped

RUN_BYTES = 2 * 10**9  # of main memory that a training on small images takes at most, with what it imports


def main(args: Sequence[str]) -> int:
    """Run ``lt-cb grid``.

    Args:
        args: the words behind ``grid``.

    Returns:
        0 if all runs are done, 1 if some have failed or were interrupted, 143 after a SIGTERM.

    Raises:
        InputError: if the grid file or an option is wrong.
    """
    parser = ArgumentParser("lt-cb grid", description="Train the runs of a grid file, each distinct one once.")
    parser.add_argument("file", help="the grid, as configs/grids/digits.yaml, or lt_cb:grids/digits")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, and train nothing")
    parser.add_argument("--devices", help="GPUs to share the runs out to, one run each: 0,1,2,3; 0,0 is two on one")
    parser.add_argument("--shard", default="1/1", help="of n parts of the runs take the i-th: i/n")
    options = parser.parse_args(args)
    plan = read_plan(Path(shipped(options.file)))
    runs = _shard(plan.runs, options.shard)
    devices = _devices(options.devices, sum(not run.dir.is_done for run in runs))
    console = Console(highlight=False, soft_wrap=True)
    _print_plan(console, plan, runs, len(devices), every=options.dry_run)
    if options.dry_run:
        return 0
    for run in runs:
        for line in check_folder(run):
            console.print(line)
    return _train(console, runs, devices, plan.folder)


def _shard(runs: list[Run], shard: str) -> list[Run]:
    index, _, count = shard.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise InputError(f"--shard is '{shard}', but must be i/n with i from 1 to n.")
    return runs[int(index) - 1 :: int(count)]


def _devices(asked: str | None, to_do: int) -> list[str | None]:
    """Return the GPU of each process, None for a process without one.

    On a CPU there is one process for each core, with a thread of its own: networks this small share threads badly.
    """
    if asked is not None:
        return [name.strip() for name in asked.split(",")]
    if sys.platform == "darwin" or glob.glob("/dev/nvidia[0-9]*"):
        return [None]
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    cores = available_cores() // (int(threads) if threads.isdigit() and threads != "0" else 1)
    return [None] * max(1, min(cores, available_memory() // RUN_BYTES, to_do))


def _print_plan(console: Console, plan: Plan, runs: list[Run], workers: int, every: bool) -> None:
    done = [run for run in runs if run.dir.is_done]
    console.print(f"{plan.named} named, {len(plan.runs)} distinct runs in {plan.folder}")
    if len(runs) < len(plan.runs):
        console.print(f"{len(runs)} of them in this shard")
    console.print(f"{len(done)} done, {len(runs) - len(done)} to do")
    if len(done) < len(runs):
        seconds, left, unknown = time_left(plan, runs)
        place = plan.folder.parent
        text = f"no estimate of the time: no run on these data, and of this network, is done in {place} yet"
        if known := len(runs) - len(done) - unknown:
            text = f"about {_time(left / workers)} left on {workers} at a time"
            text = text if seconds is None else f"{_time(seconds)} a run so far: {text}"
            text += f" for {known} runs; nothing comparable to the others is done" if unknown else ""
        console.print(text)
    if every:
        for run in runs:
            also = f" (also {', '.join(run.aliases)})" if run.aliases else ""
            console.print(
                f"{'done ' if run.dir.is_done else 'to do'} {run.title}{also}", highlight=False, soft_wrap=True
            )


def _train(console: Console, runs: list[Run], devices: list[str | None], folder: Path) -> int:
    start = time.monotonic()
    with tempfile.TemporaryFile(dir=folder) as file:  # whose clock may be another than this machine's
        begun = os.fstat(file.fileno()).st_mtime
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    events = context.Queue()

    def employ(device: str | None) -> multiprocessing.process.BaseProcess:
        # no daemon, which may have no processes of its own to read images; it ends with this one all the same
        worker = context.Process(target=work, args=(runs, begun, device, len(devices), events, os.getpid()))
        worker.start()
        return worker

    code = 1

    def terminate(*_: object) -> None:  # as ctrl-C does: to be killed by it would leave semaphores behind
        nonlocal code
        code = TERMINATED
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    workers = [employ(device) for device in devices]
    under_way: dict[int | None, tuple[str, float]] = {}  # by process
    by_title = {run.title: run for run in runs}
    finished: list[float] = []
    with Live(console=console, auto_refresh=False, transient=True) as live:
        try:
            while any(worker.is_alive() for worker in workers) or not events.empty():
                try:
                    event, title, pid = events.get(timeout=0.5)
                except queue.Empty:
                    for i, worker in enumerate(workers):
                        if worker.exitcode not in (None, 0):  # killed, as for lack of memory
                            title, _ = under_way.pop(worker.pid, ("", 0.0))
                            if title in by_title and not by_title[title].dir.is_done:
                                why = f"its process ended with exit code {worker.exitcode}\n"
                                by_title[title].dir.error.write_text(why)
                            workers[i] = employ(devices[i])
                else:
                    if event == "start":
                        under_way[pid] = title, time.monotonic()
                    else:
                        finished.append(time.monotonic() - under_way.pop(pid, (title, start))[1])
                        live.console.print(f"{event} {title} ({_time(finished[-1])})")
                live.update(_table(runs, under_way, finished, start, len(devices)), refresh=True)
        except KeyboardInterrupt:
            console.print("Interrupted: the same command goes on from the last checkpoints.")
            return code
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            for worker in workers:
                worker.kill()
                worker.join()
    failed = [run for run in runs if failed_since(run, begun)]
    console.print(f"{sum(run.dir.is_done for run in runs)} of {len(runs)} runs done, {len(failed)} failed.")
    interrupted = [run for run in runs if not run.dir.is_done and run not in failed]
    if interrupted:
        console.print(f"{len(interrupted)} interrupted: the same command goes on from the last checkpoints.")
    for run in failed:
        if run.dir.error.exists():  # else another grid has taken it up
            console.print(f"{run.title}: {run.dir.error.read_text().strip().splitlines()[-1]} (see {run.dir.log})")
    return 1 if failed or interrupted else 0


def _table(
    runs: list[Run], under_way: dict[int | None, tuple[str, float]], finished: list[float], start: float, workers: int
) -> Table:
    done = sum(run.dir.is_done for run in runs)
    table = Table("under way", Column("for", justify="right"), title=f"{done} of {len(runs)} runs done")
    for title, since in under_way.values():
        table.add_row(title, _time(time.monotonic() - since))
    if finished:
        table.add_section()
        hour = 3600 * len(finished) / (time.monotonic() - start)
        left = statistics.mean(finished) * (len(runs) - done) / workers
        table.add_row(f"{hour:.0f} runs an hour", f"{_time(left)} left")
    return table


def _time(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, whole = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole} s" if minutes else f"{whole} s"
