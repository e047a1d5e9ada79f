"""``lt-cb grid``: the plan, the processes that train it, and a live table."""

import glob
import json
import multiprocessing
import os
import queue
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lt_cb.errors import ArgumentParser, InputError
from lt_cb.grid.plan import Plan, Run, read_plan
from lt_cb.grid.work import check_folder, failed_since, is_done, work

RUN_KB = 2_000_000  # of main memory that a training on small images takes at most, with what it imports


def main(args: Sequence[str]) -> int:
    """Run ``lt-cb grid``.

    Args:
        args: the words behind ``grid``.

    Returns:
        0 if all runs are done, 1 if some have failed.

    Raises:
        InputError: (a ValueError) if the grid file or an option is wrong.
    """
    parser = ArgumentParser("lt-cb grid", description="Train the runs of a grid file, each distinct one once.")
    parser.add_argument("file", type=Path, help="the grid, as configs/grids/digits.yaml")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, and train nothing")
    parser.add_argument("--devices", help="GPUs to share the runs out to, one run each: 0,1,2,3; 0,0 is two on one")
    parser.add_argument("--shard", default="1/1", help="of n parts of the runs take the i-th: i/n")
    options = parser.parse_args(args)
    plan = read_plan(options.file)
    runs = _shard(plan.runs, options.shard)
    devices = _devices(options.devices, sum(not is_done(run) for run in runs))
    console = Console()
    _print_plan(console, plan, runs, len(devices), every=options.dry_run)
    if options.dry_run:
        return 0
    for run in runs:
        run.folder.mkdir(parents=True, exist_ok=True)
        check_folder(run)
    return _train(console, runs, devices)


def _shard(runs: list[Run], shard: str) -> list[Run]:
    part, _, parts = shard.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise InputError(f"--shard is '{shard}', but must be i/n with i from 1 to n.")
    return runs[int(part) - 1 :: int(parts)]


def _devices(asked: str | None, to_do: int) -> list[str | None]:
    """Return the GPU of each process, None for a process without one.

    On a CPU there is one process for each core, with a thread of its own: networks this small share threads badly.
    """
    if asked is not None:
        return [name.strip() for name in asked.split(",")]
    if sys.platform == "darwin" or glob.glob("/dev/nvidia[0-9]*"):
        return [None]
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    cores = len(os.sched_getaffinity(0)) // (int(threads) if threads.isdigit() and threads != "0" else 1)
    memory = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", memory.read_text() if memory.exists() else "")
    room = int(found[1]) // RUN_KB if found else 1
    return [None] * max(1, min(cores, room, to_do))


def _seconds(run: Run) -> float:
    return float(sum(json.loads((run.folder / "result.json").read_text())["wall_time_s"].values()))


def _seconds_left(all_runs: list[Run], runs: list[Run]) -> float:
    """Estimate the time of what is to do: a run takes as long as those on its data, by epoch, or else as all do."""
    by_data: dict[str, list[float]] = defaultdict(list)
    for run in filter(is_done, all_runs):
        by_data[_data(run)].append(_seconds(run) / _epochs(run))
    overall = statistics.mean([seconds for group in by_data.values() for seconds in group])
    means = {data: statistics.mean(group) for data, group in by_data.items()}
    return sum(means.get(_data(run), overall) * _epochs(run) for run in runs if not is_done(run))


def _data(run: Run) -> str:
    return json.dumps(run.config.get("data"), sort_keys=True, default=str)


def _epochs(run: Run) -> float:
    return max(float(run.config.get("trainer", {}).get("max_epochs") or 1), 1.0)


def _print_plan(console: Console, plan: Plan, runs: list[Run], workers: int, every: bool) -> None:
    done = [run for run in runs if is_done(run)]
    console.print(f"{plan.named} named, {len(plan.runs)} distinct runs in {plan.folder}", highlight=False)
    if len(runs) < len(plan.runs):
        console.print(f"{len(runs)} of them in this shard", highlight=False)
    console.print(f"{len(done)} done, {len(runs) - len(done)} to do", highlight=False)
    if done:
        mean = statistics.mean(map(_seconds, done))
        left = _seconds_left(plan.runs, runs) / workers
        console.print(f"{_time(mean)} a run so far: about {_time(left)} left on {workers} at a time", highlight=False)
    else:
        console.print("No run is done yet, so there is no estimate of the time: train one first.", highlight=False)
    if every:
        for run in runs:
            also = f" (also {', '.join(run.aliases)})" if run.aliases else ""
            console.print(f"{'done ' if is_done(run) else 'to do'} {run.title}{also}", highlight=False, soft_wrap=True)


def _train(console: Console, runs: list[Run], devices: list[str | None]) -> int:
    start = time.time()
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    events = context.Queue()

    def employ(device: str | None) -> multiprocessing.process.BaseProcess:
        worker = context.Process(target=work, args=(runs, start, device, len(devices) > 1, events), daemon=True)
        worker.start()
        return worker

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
                            if title in by_title:
                                error = f"its process ended with exit code {worker.exitcode}"
                                (by_title[title].folder / "error.txt").write_text(error + "\n")
                            workers[i] = employ(devices[i])
                else:
                    if event == "start":
                        under_way[pid] = title, time.time()
                    else:
                        seconds = time.time() - under_way.pop(pid)[1]
                        finished.append(seconds)
                        live.console.print(f"{event} {title} ({_time(seconds)})", highlight=False)
                live.update(_table(runs, under_way, finished, start, len(devices)), refresh=True)
        except KeyboardInterrupt:
            for worker in workers:
                worker.kill()
            console.print("Interrupted: the same command goes on from the last checkpoints.", highlight=False)
            return 1
    failed = [run for run in runs if failed_since(run, start)]
    done = sum(map(is_done, runs))
    console.print(f"{done} of {len(runs)} runs done, {len(failed)} failed.", highlight=False)
    for run in failed:
        last = (run.folder / "error.txt").read_text().strip().splitlines()[-1]
        console.print(f"{run.title}: {last} (see {run.folder / 'log.txt'})", highlight=False, soft_wrap=True)
    return 1 if failed else 0


def _table(
    runs: list[Run], under_way: dict[int | None, tuple[str, float]], finished: list[float], start: float, workers: int
) -> Table:
    done = sum(map(is_done, runs))
    table = Table(title=f"{done} of {len(runs)} runs done")
    table.add_column("under way")
    table.add_column("for", justify="right")
    for title, since in under_way.values():
        table.add_row(title, _time(time.time() - since))
    if finished:
        table.add_section()
        hour = 3600 * len(finished) / (time.time() - start)
        left = statistics.mean(finished) * (len(runs) - done) / workers
        table.add_row(f"{hour:.0f} runs an hour", f"{_time(left)} left")
    return table


def _time(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, whole = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole} s" if minutes else f"{whole} s"
