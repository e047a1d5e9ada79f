"""Kill runs and grids again and again and compare their results; measure whether a long process grows.

    uv run python benchmarks/soak.py runs [--cycles 100]
    uv run python benchmarks/soak.py grid [--kills 60]
    uv run python benchmarks/soak.py heads [--kills 60]
    uv run python benchmarks/soak.py growth

Each prints a table. The exit code is 1 if anything is lost, unequal, left behind or grown. It needs Linux.

``runs`` kills and resumes trainings until they end, and compares them with an undisturbed training. Four in five
kills come after the first checkpoint of the process, within half of the remaining time, and the others at any moment.
One in five is a SIGTERM or SIGINT. Nine of ten processes are forked from one that has imported everything, because
importing takes longer than these trainings; the others are commands.

``grid`` kills two commands that share a grid, and their training processes, mostly one that has just written a
checkpoint.

``heads`` kills ``recommend``, which keeps features in a cache, and runs it again until it ends.
"""

import argparse
import atexit
import csv
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # OpenMP reads them when torch is imported

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
EPOCHS = 16
TINY = {
    "trainer.accelerator": "cpu",
    "trainer.max_epochs": EPOCHS,
    "trainer.check_val_every_n_epoch": 3,
    "model.fast": "off",
    "model.backbone": "resnet20",
    "data.image_size": 8,
    "data.n_max": 40,
    "data.imbalance_factor": 20,
}
FOLDER = {"source": "image_folder", "crop": "resized", "imbalance_factor": "null", "n_max": "null", "num_workers": 2}
KINDS = {
    "plain": [],
    "streamed": [f"--data.{key}={value}" for key, value in FOLDER.items()],
    "ema": [f"--config={CONFIGS / 'recipe/ema.yaml'}"],
    "deferred": ["--model.drw_start=0.5"],
    "sampler": ["--data.sampler=lt_cb.data.ProgressivelyBalancedSampler"],
    "mixup": ["--model.mix=torchvision.transforms.v2.MixUp"],
    "cutmix": ["--model.mix=torchvision.transforms.v2.CutMix"],
}
AT_ONCE, HANG_S, GROWN_MB = 2, 300, 5
STATES = ("epoch", "global_step", "state_dict", "current_model_state", "averaging_state", "optimizer_states")


@dataclass
class Count:
    """Counts of runs, kills and resumes of one kind, and the faults found."""

    runs: int = 0
    kills: int = 0
    resumes: int = 0
    unequal: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    sessions: list[int] = field(default_factory=list)


def fit(kind: str, folder: Path) -> list[str]:
    """Return the command that starts a training."""
    tiny = [f"--{key}={value}" for key, value in TINY.items()]
    root = ["--data.root=images"] if kind == "streamed" else []
    config = [f"--config={CONFIGS / 'quickstart.yaml'}", "--trainer.enable_progress_bar=false"]
    return ["fit", *config, *tiny, *KINDS[kind], *root, f"--folder={folder}"]


def start(words: list[str], log: Path, imported: bool) -> int:
    """Start a command in a new session, and return its process id."""
    if pid := os.fork():
        return pid
    code = 70
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        if not imported:
            os.execv(sys.executable, [sys.executable, "-m", "lt_cb", *words])
        from lt_cb.__main__ import main

        main(words)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        print("uncaught", repr(error), flush=True)
    except KeyboardInterrupt:  # before Lightning takes it
        code = 130
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)


def stamp(file: Path) -> int:
    """Return the time when a file was written, 0 if it does not exist."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def wait(pid: int, seconds: float, until: Callable[[], bool] = lambda: False) -> int | None:
    """Return the exit code of a process; None if it still runs after so many seconds, or once ``until`` is true."""
    end = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end or until():
            return None
        time.sleep(0.005)


def disturbed(pid: int, checkpoint: Path, times: tuple[float, float], rng: random.Random) -> tuple[int | None, int]:
    """Kill a process at a random moment. Return its exit code and the signal sent, 0 if it had ended before."""
    first, whole = times
    before, delay = stamp(checkpoint), rng.uniform(0, whole)
    if rng.random() < 0.8:
        delay = rng.uniform(0, (whole - first) / 2)
        if (code := wait(pid, HANG_S, lambda: stamp(checkpoint) != before)) is not None:
            return code, 0
    if (code := wait(pid, delay)) is not None:
        return code, 0
    sent = rng.choices([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], [8, 1, 1])[0]
    (os.killpg if sent == signal.SIGINT else os.kill)(pid, sent)  # a terminal interrupts all of a session
    return wait(pid, HANG_S), sent


def compare(reference: Path, run: Path) -> tuple[list[str], list[str]]:
    """Return the differences of weights and results, and of the rows of metrics."""
    import torch

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor):
            return isinstance(b, torch.Tensor) and torch.equal(a, b)
        if isinstance(a, dict):
            return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(map(equal, a, b))
        return bool(a == b)

    def rows(folder: Path) -> list[list[tuple[str, float]]]:
        with (folder / "metrics.csv").open() as stream:
            return sorted(sorted((k, float(v)) for k, v in row.items() if v) for row in csv.DictReader(stream))

    files = [torch.load(p / "checkpoints/last.ckpt", weights_only=True) for p in (reference, run)]
    unequal = [key for key in STATES if not equal(files[0].get(key), files[1].get(key))]
    results = [json.loads((path / "result.json").read_text()) for path in (reference, run)]
    kept = ("metrics", "per_class_accuracy", "correct", "confusion", "epochs", "class_counts")
    unequal += [key for key in kept if results[0][key] != results[1][key]]
    ours, theirs = rows(run), rows(reference)
    different = [f"{sum(r not in ours for r in theirs)} lost, {sum(r not in theirs for r in ours)} other"]
    parts = [file.name for file in run.rglob("*") if ".tmp" in file.name or "damaged" in file.name]
    return [f"{run}: {key}" for key in unequal + parts], [f"{run}: {d}" for d in different if ours != theirs]


def tracebacks(log: Path) -> list[str]:
    """Return the log if it has a traceback of lt_cb. Readers whose parent is killed leave tracebacks of torch."""
    ours = re.search(r'File "[^"]*/lt_cb/|uncaught', log.read_text(errors="replace"))
    return [f"{log}: a traceback"] if ours else []


def unbroken(kind: str) -> tuple[str, tuple[float, float]]:
    """Train undisturbed. Return the seconds until the first checkpoint and until the end."""
    run, begun = Path("runs/reference", kind), time.monotonic()
    pid = start(fit(kind, run), Path(f"{kind}.log"), imported=True)
    wait(pid, HANG_S, (run / "checkpoints/last.ckpt").exists)
    first = time.monotonic() - begun
    if (code := wait(pid, HANG_S)) != 0:
        raise SystemExit(f"the reference {kind} ended with {code}: {Path(f'{kind}.log').read_text()[-600:]}")
    return kind, (first, time.monotonic() - begun)


def cycles(kind: str, times: tuple[float, float], seed: int, kills: int) -> tuple[str, Count]:
    """Train runs of a kind, each to its end, until there were so many kills."""
    rng, count = random.Random(f"{kind} {seed}"), Count()
    while count.kills < kills:
        run, log = Path("runs", kind, f"{seed}_{count.runs}"), Path(f"{kind}_{seed}_{count.runs}.log")
        checkpoint, code = run / "checkpoints/last.ckpt", None
        count.runs += 1
        while code != 0:
            words = fit(kind, run)
            if checkpoint.exists():  # which has the options, but no callbacks
                alone = ["fit", words[-1], "--trainer.enable_progress_bar=false"]
                words = [*rng.choice([words, words if kind == "ema" else alone])]
                words.append(f"--ckpt_path={checkpoint}")
                count.resumes += 1
            pid = start(words, log, imported=rng.random() < 0.9)
            count.sessions.append(pid)
            code, sent = disturbed(pid, checkpoint, times, rng) if count.kills < kills else (wait(pid, HANG_S), 0)
            count.kills += sent > 0
            if code is None or (sent == 0 and code != 0):
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                count.wrong.append(f"{run}: {'hangs' if code is None else f'exit code {code}'} after signal {sent}")
                return kind, count
        count.wrong += tracebacks(log)
        unequal, rows = compare(Path("runs/reference", kind), run)
        count.unequal += unequal
        count.rows += rows
    return kind, count


def children(pid: int) -> list[int]:
    """Return the process ids of the trainings of a grid, one from each of its threads."""
    pids: list[int] = []
    with suppress(OSError):  # it has just ended
        for thread in Path(f"/proc/{pid}/task").iterdir():
            pids += map(int, (thread / "children").read_text().split())
    return pids


def sessions() -> Iterator[tuple[int, int]]:
    """Yield all living processes with their sessions."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = file.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if state != "Z":
            yield int(file.parent.name), int(session)


def left_behind(count: Count, shared: set[str]) -> list[str]:
    """Return the processes, temporary files and shared memory that remain after some time to end."""
    end = time.monotonic() + 15
    while orphans := [pid for pid, session in sessions() if session in count.sessions]:
        if time.monotonic() > end:
            break
        time.sleep(0.5)
    lines = [f"process {pid}: {Path(f'/proc/{pid}/cmdline').read_text()[:80]}" for pid in orphans]
    files = [file.name for file in Path(os.environ["TMPDIR"]).iterdir()]
    # torch makes its own at import; Python's multiprocessing one for a process that reads images, which a kill leaves
    known = [name for name in files if name.startswith(("torchinductor_", "pymp-"))]
    print(f"{len(known)} folders of torch and multiprocessing are left in the temporary folder")
    lines += [f"temporary file {name}" for name in files if name not in known]
    maps = ""
    for file in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            maps += file.read_text()
    new = sorted({file.name for file in shared_memory()} - shared)
    return lines + [f"shared memory {name}" for name in new if name not in maps]  # else it is in use, by others


def shared_memory() -> list[Path]:
    """Return the shared-memory files of torch and Python, of all processes."""
    return [file for file in Path("/dev/shm").glob("*") if file.name.startswith(("torch_", "sem.", "psm_"))]


def make_images() -> None:
    """Make a folder of images of random pixels: 40, 20 and 10 for training, 20 of each for testing."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, counts in (("train", (40, 20, 10)), ("test", (20, 20, 20))):
        for name, number in zip("abc", counts, strict=True):
            (folder := Path("images", split, name)).mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02}.jpg")


def runs(options: argparse.Namespace) -> dict[str, Count]:
    """Kill and resume runs of each kind."""
    import lt_cb.commands.train  # noqa: F401 - for the processes that are forked

    make_images()
    kinds = list(KINDS)
    share = -(-options.cycles // len(kinds))
    counts = {kind: Count() for kind in kinds}
    with ProcessPoolExecutor(AT_ONCE, multiprocessing.get_context("fork")) as pool:
        times = dict(pool.map(unbroken, kinds))
        print({kind: tuple(round(t, 1) for t in pair) for kind, pair in times.items()}, flush=True)
        jobs = [(kind, seed, min(4, share - done)) for seed, done in enumerate(range(0, share, 4)) for kind in kinds]
        futures = [pool.submit(cycles, kind, times[kind], options.seed + seed, kills) for kind, seed, kills in jobs]
        for future in futures:
            kind, part = future.result()
            for name, value in vars(part).items():
                setattr(counts[kind], name, getattr(counts[kind], name) + value)
            print(f"{kind}: {counts[kind].kills} kills", flush=True)
    return counts


class Grid:
    """Grid of tiny runs in its own folder, and the command that trains it."""

    def __init__(self, name: str, seeds: int, epochs: int) -> None:
        settings = {"folder": f"runs/{name}", "config": str(CONFIGS / "quickstart.yaml"), "seeds": list(range(seeds))}
        self.file = Path(f"{name}.yaml")
        self.file.write_text(json.dumps({**settings, "set": {**TINY, "trainer.max_epochs": epochs}}))  # which is YAML
        self.runs = [Path("runs", name, name, f"seed_{seed}") for seed in range(seeds)]

    def start(self) -> "subprocess.Popen[bytes]":
        """Start the command."""
        return command("grid", str(self.file))

    def done(self) -> int:
        """Return how many runs are done."""
        return sum((run / "result.json").exists() for run in self.runs)


def command(*words: str) -> "subprocess.Popen[bytes]":
    """Start a command in a session of its own."""
    with Path("commands.log").open("a") as log:
        return subprocess.Popen([sys.executable, "-m", "lt_cb", *words], stdout=log, stderr=log, start_new_session=True)


def grid(options: argparse.Namespace) -> dict[str, Count]:
    """Kill two commands that share a grid, and their processes, until all runs are done; then another grid."""
    count, rng, reference = Count(), random.Random(options.seed), Grid("reference", 16, EPOCHS)
    if reference.start().wait() != 0:
        raise SystemExit("the reference has failed")
    while count.kills < options.kills and not count.wrong:
        shared = Grid(f"shared{count.runs}", 16, EPOCHS)
        _kill(shared, count, options.kills, rng)
        for whole, run in zip(reference.runs, shared.runs, strict=True):
            count.runs += 1
            count.wrong += tracebacks(run / "log.txt")
            if not (run / "result.json").exists():
                count.wrong.append(f"{run} is not done")
                continue
            unequal, rows = compare(whole, run)
            count.unequal += unequal
            count.rows += rows
            if (run / "log.txt").read_text(errors="replace").count("Run folder:") > 1:  # printed after a result
                count.wrong.append(f"{run} was trained to its end more than once")
            try:
                with FileLock(run / "lock", timeout=0):
                    pass
            except Timeout:
                count.wrong.append(f"{run / 'lock'} is held")
    return {"grid": count}


def _kill(shared: Grid, count: Count, kills: int, rng: random.Random) -> None:
    """Kill and start again until all runs are done."""
    parents = [shared.start(), shared.start()]
    count.sessions += [parent.pid for parent in parents]
    seen: dict[int, int] = {}  # processes that train, and since when
    results: dict[Path, int] = {}
    pause, state, moved = 0.0, (0, 0), time.monotonic()
    while shared.done() < len(shared.runs) or any(parent.poll() != 0 for parent in parents):
        for i, code in enumerate([parent.poll() for parent in parents]):
            if code == -signal.SIGKILL or (code == 1 and shared.done() < len(shared.runs)):
                parents[i] = shared.start()
                count.resumes += 1
                count.sessions.append(parents[i].pid)
            elif code is not None and (code != 0 or shared.done() < len(shared.runs)):
                count.wrong.append(f"a command ended with {code} and {shared.done()} of {len(shared.runs)} runs done")
                return
        for run in shared.runs:
            written = stamp(run / "result.json")
            if written and results.setdefault(run, written) != written:
                count.wrong.append(f"{run} has another result than before")
                results[run] = written
        now = count.kills, max(stamp(run / "checkpoints/last.ckpt") for run in shared.runs)
        if now != state:
            state, moved = now, time.monotonic()
        elif time.monotonic() > moved + HANG_S:
            count.wrong.append(f"nothing has moved for {HANG_S} s with {shared.done()} runs done")
            for parent in parents:
                parent.kill()
            return
        alive = [parent.pid for parent in parents if parent.poll() is None]
        workers = [worker for parent in alive for worker in children(parent)]
        ready = [worker for worker in workers if _has_written(worker, seen.setdefault(worker, time.time_ns()))]
        if ready and count.kills < kills and time.monotonic() > pause:
            time.sleep(rng.uniform(0, 0.5))
            with suppress(ProcessLookupError):
                os.kill(rng.choice(rng.choices([ready, alive, workers], [6, 2, 2])[0]), signal.SIGKILL)
                count.kills += 1
                print(f"{count.kills} kills, {shared.done()} runs done", flush=True)
            pause = time.monotonic() + rng.uniform(0, 2)
        time.sleep(0.02)


def _has_written(worker: int, since: float) -> bool:
    """Return whether a process has written a checkpoint of the run whose log it writes to."""
    try:
        log = Path(os.readlink(f"/proc/{worker}/fd/1"))
    except OSError:
        return False
    return log.name == "log.txt" and stamp(log.parent / "checkpoints/last.ckpt") > since


def heads(options: argparse.Namespace) -> dict[str, Count]:
    """Kill ``recommend`` at random moments, start it again until it ends, and compare its recommendation."""
    rng, count = random.Random(options.seed), Count()
    import lt_cb.heads.recommend  # noqa: F401 - for the processes that are forked

    def begin(name: str) -> int:
        tiny = [f"--{key}={value}" for key, value in TINY.items() if not key.startswith(("model.fast", "trainer.m"))]
        words = ["recommend", f"--config={CONFIGS / 'quickstart.yaml'}", *tiny, "--folds=2", f"--name={name}"]
        count.sessions.append(pid := start(words, Path("heads.log"), imported=True))
        return pid

    def written(name: str) -> list[Any]:
        folder = max(Path("runs", name).iterdir(), key=lambda run: stamp(run / "recommendation.json"))
        result = json.loads((folder / "result.json").read_text())
        return [json.loads((folder / "recommendation.json").read_text()), result["metrics"], result["correct"]]

    begun, cache = time.monotonic(), os.environ["LT_CB_CACHE"]
    if wait(begin("reference"), HANG_S) != 0:
        count.wrong.append(tail if (tail := Path("heads.log").read_text()[-500:]) else "no recommendation")
        return {"heads": count}
    whole = time.monotonic() - begun
    while count.kills < options.kills:
        os.environ["LT_CB_CACHE"], name = f"{cache}_{count.runs}", f"killed_{count.runs}"
        count.runs += 1
        while True:
            pid = begin(name)
            if (code := wait(pid, rng.uniform(0, whole))) is not None:
                break
            os.kill(pid, rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
            code = wait(pid, HANG_S)
            count.kills, count.resumes = count.kills + 1, count.resumes + 1
            if code == 0:
                break
        if code != 0 or written(name) != written("reference"):
            count.unequal.append(f"{name}: exit code {code}")
    count.wrong += tracebacks(Path("heads.log"))
    return {"heads": count}


def growth(_: argparse.Namespace) -> dict[str, Count]:
    """Measure a training of 300 epochs, and the command of a grid of 100 runs."""
    counts = {"epochs": Count(runs=1), "runs": Count(runs=100)}
    fitted = command(*fit("plain", Path("runs/long/a")), "--trainer.max_epochs=300")
    _measure(counts["epochs"], 300, fitted, lambda: fitted.pid, lambda: _epochs(Path("runs/long/a/metrics.csv")))
    many = Grid("many", 100, 2)
    parent = many.start()
    _measure(counts["runs"], 100, parent, lambda: parent.pid, many.done)
    return counts


def _epochs(rows: Path) -> int:
    with suppress(OSError, IndexError, ValueError):
        return int(rows.read_text().rsplit("\n", 2)[-2].split(",")[0]) + 1
    return 0


def _measure(
    count: Count, end: int, process: "subprocess.Popen[bytes]", pid: Callable[[], int], progress: Callable[[], int]
) -> None:
    """Print memory and file descriptors of a process near a tenth, half and the end of its work."""
    count.sessions.append(process.pid)
    samples: list[tuple[float, float, int]] = []
    while process.poll() is None:
        with suppress(OSError, StopIteration):
            status = Path(f"/proc/{pid()}/status").read_text().splitlines()
            memory = next(int(line.split()[1]) for line in status if line.startswith("VmRSS:")) / 1024
            samples.append((progress() / end, memory, len(os.listdir(f"/proc/{pid()}/fd"))))
        time.sleep(0.1)
    parts = [[s for s in samples if low <= s[0] <= low + 0.099] for low in (0.05, 0.45, 0.9)]
    if process.returncode != 0 or not all(parts):
        count.wrong.append(f"exit code {process.returncode}")
        return
    _, middle, last = at = [tuple(statistics.median(s[i] for s in part) for i in (1, 2)) for part in parts]
    print(f"{end}: " + ", ".join(f"{memory:.1f} MiB and {files:g} descriptors" for memory, files in at), flush=True)
    if last[0] > middle[0] + GROWN_MB or last[1] > middle[1]:
        count.wrong.append("it has grown")


def main() -> int:
    """Run one of the four tests, and return 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("runs", "grid", "heads", "growth"))
    parser.add_argument("--cycles", type=int, default=100, help="kills of runs")
    parser.add_argument("--kills", type=int, default=60, help="kills of processes of a grid, or of recommend")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")
    options = parser.parse_args()
    shared = {file.name for file in shared_memory()}
    other = "/dev/shm" if Path("/dev/shm").is_dir() else None  # than the runs are on
    folder, temporary = tempfile.mkdtemp(prefix="soak_"), tempfile.mkdtemp(prefix="soak_", dir=other)
    os.environ |= {"TMPDIR": temporary, "LT_CB_CACHE": f"{folder}/cache"}
    tempfile.tempdir = None
    os.chdir(folder)
    print(f"in {folder}", flush=True)
    begun = time.monotonic()
    counts: dict[str, Count] = {"runs": runs, "grid": grid, "heads": heads, "growth": growth}[options.what](options)
    wrong = left_behind(Count(sessions=[pid for count in counts.values() for pid in count.sessions]), shared)
    if options.what != "growth":
        print(f"\n{'':10}{'runs':>6}{'kills':>7}{'resumes':>9}{'bit-equal':>11}{'rows once':>11}")
    for kind, c in counts.items():
        wrong += [f"{kind}: {line}" for line in c.unequal + c.rows + c.wrong]
        if options.what != "growth":
            equal, once = ("no" if lines else "yes" for lines in (c.unequal, c.rows))
            print(f"{kind:10}{c.runs:6}{c.kills:7}{c.resumes:9}{equal:>11}{once:>11}")
    print(f"{time.monotonic() - begun:.0f} s", *(wrong or ["nothing is lost, unequal or left behind"]), sep="\n")
    os.chdir("/")
    for path in (temporary, folder)[: 1 if wrong else 2]:
        shutil.rmtree(path)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
