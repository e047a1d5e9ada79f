"""Tasks of a Ray cluster: runs of a grid, and parts of a recommendation. Only ``--on`` imports Ray.

The machines need no shared disk: the folder of a run goes along with its task, and comes back when its checkpoint has
changed and at the end. If a machine is lost, the run resumes from that checkpoint on another.
"""

import logging
import os
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lt_cb.errors import InputError
from lt_cb.lab.plan import Run
from lt_cb.lab.work import train
from lt_cb.runs.folder import RunDir, whole_file, write_text

SEND_S = 10.0  # least time between two returns of an unfinished run
POLL_S = 0.2  # between looks at a task, and at what has come back
MAX_LOSSES = 3  # lost machines of a run, without a new checkpoint in between, until it counts as failed
LOCAL_STARTS = 3  # attempts to start Ray here: its agents have 15 s, too little on a busy machine
STAYS = ("lock", ".lock")  # files of a run that mean something on one machine only
SETTINGS = {
    "RAY_worker_niceness": "0",  # else tasks have a low priority, 15
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else `uv run` sends the working folder, with its data, to each machine
}
QUEUED = 4  # tasks for each one that runs
Result = TypeVar("Result")
Files = dict[str, bytes]  # content by path relative to the folder of a run


class Parcel(NamedTuple):
    """Everything that a task needs to train a run on another machine."""

    run: Run
    files: Files  #: folder of the run
    configs: list[bytes]  #: content of the files behind ``--config``, in their order
    attempt: str  #: name of this attempt
    cwd: str  #: folder that relative paths start from, if the machine has it
    readers: int  #: processes that decode images


class Cluster:
    """A connection to Ray, whose tasks all need the same.

    Args:
        address: ``local`` starts Ray on this machine; ``auto`` is the cluster that this machine belongs to;
            ``ray://HOST:10001`` or ``HOST:6379`` is any other.
        cpus: cores of each task.
        gpus: GPUs of each task; a fraction shares a GPU; None is 1 if the cluster has GPUs, else 0.

    Raises:
        InputError: if Ray is missing, no cluster answers, or no machine of the cluster has what a task needs.
    """

    def __init__(self, address: str, cpus: float = 1.0, gpus: float | None = None) -> None:
        if min(cpus, gpus or 0.0) < 0 or cpus == gpus == 0:
            raise InputError(f"--cpus is {cpus:g} and --gpus {gpus}, but a task needs a part of one: set --cpus 1.")
        self.ray = _connect(address)
        machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        self.cpus = cpus
        self.gpus = float(any("GPU" in machine for machine in machines)) if gpus is None else gpus
        needs = {name: need for name, need in (("CPU", self.cpus), ("GPU", self.gpus)) if need}
        self.slots = sum(int(min(machine.get(name, 0.0) / needs[name] for name in needs)) for machine in machines)
        if not self.slots:
            wanted = " and ".join(f"{need:g} {name}s" for name, need in needs.items())
            self.close()
            raise InputError(
                f"a task needs {wanted}, which no machine of the cluster has now: set --cpus and --gpus lower, or let "
                "machines join by ray start --address."
            )
        self.options = {"num_cpus": self.cpus, "num_gpus": self.gpus}

    def map(self, function: Callable[..., Result], items: Iterable[Any], *shared: Any) -> Iterator[Result]:  # noqa: ANN401
        """Yield ``function(item, *shared)`` for each item, in their order, each computed by a task on any machine.

        A task whose machine is lost is repeated. An InputError of a task is raised here.
        """
        task = self.ray.remote(function).options(**self.options, max_retries=-1)
        references = [self.ray.put(value) for value in shared]
        waiting: deque[Any] = deque()
        try:
            for item in items:
                waiting.append(task.remote(item, *references))
                if len(waiting) > QUEUED * self.slots:
                    yield self.ray.get(waiting.popleft())
            while waiting:
                yield self.ray.get(waiting.popleft())
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise error.cause from None
            raise

    def close(self) -> None:
        """End the connection, and with it all tasks."""
        self.ray.shutdown()


class Trainings:
    """Trainings of a grid as tasks of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.ray, self.cpus = cluster.ray, cluster.cpus
        head = {"node:__internal_head__": 0.001}  # the one machine that a cluster cannot lose
        self._mailbox = self.ray.remote(_Mailbox).options(num_cpus=0, resources=head).remote()
        self._train = self.ray.remote(train_parcel).options(**cluster.options, max_retries=0)
        self._running: dict[str, tuple[Run, Callable[[str], None]]] = {}  # by attempt
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._receiver = threading.Thread(target=self._receive, daemon=True)
        self._receiver.start()

    def train(self, run: Run, stop: threading.Event, started: Callable[[str], None]) -> str:
        """Train a prepared run on any machine, and return its outcome, as `lt_cb.lab.work.train` does.

        ``started`` is called with the name of the machine, each time that the run starts.
        """
        losses, last = 0, _stamp(run.dir.checkpoint)
        while True:
            attempt = os.urandom(8).hex()
            with self._lock:
                self._running[attempt] = run, started
            task = self._train.remote(self._parcel(run, attempt), self._mailbox)
            try:
                if not self._wait(task, stop):
                    return "interrupted"
                outcome, files = self.ray.get(task)
                assert isinstance(outcome, str)
            except self.ray.exceptions.RayTaskError as error:
                write_text(run.dir.error, _first_line(error.cause or error) + "\n")
                return "failed"
            except self.ray.exceptions.RayError as error:  # its worker or machine was lost
                newest = _stamp(run.dir.checkpoint)
                losses, last = (losses + 1 if newest == last else 1), newest
                if losses == MAX_LOSSES:
                    write_text(run.dir.error, f"its machine was lost {losses} times ({_first_line(error)})\n")
                    return "failed"
            else:
                with self._lock:
                    self._running.pop(attempt)
                    unpack(files, run.dir.path)
                return outcome
            finally:
                with self._lock:
                    self._running.pop(attempt, None)

    def close(self) -> None:
        """Stop to receive."""
        self._closed.set()
        self._receiver.join()  # else it would connect again

    def _parcel(self, run: Run, attempt: str) -> Parcel:
        names = [value for word, value in zip(run.args, run.args[1:], strict=False) if word == "--config"]
        configs = [Path(name).read_bytes() for name in names]
        readers = max(1, int(self.cpus))
        return Parcel(run, pack(run.dir.path), configs, attempt, os.getcwd(), readers)

    def _wait(self, task: Any, stop: threading.Event) -> bool:  # noqa: ANN401 - of Ray
        """Wait for a task, or cancel it when ``stop`` is set and return False."""
        while not self.ray.wait([task], timeout=POLL_S)[0]:
            if stop.is_set():
                self.ray.cancel(task)
                self.ray.wait([task], timeout=SEND_S)
                self._take()
                return False
        return True

    def _receive(self) -> None:
        """Write what comes back from unfinished runs, until the connection ends."""
        with suppress(self.ray.exceptions.RayError, ConnectionError):
            while not self._closed.wait(POLL_S):
                self._take()

    def _take(self) -> None:
        for attempt, node, files in self.ray.get(self._mailbox.take.remote()):
            with self._lock:
                if attempt not in self._running:  # a newer attempt runs, or the run has ended
                    continue
                run, started = self._running[attempt]
                if files is not None:
                    unpack(files, run.dir.path)
                    continue
            started(node)


class _Mailbox:
    """Actor that keeps what tasks send until the grid takes it: attempt, machine, and files."""

    def __init__(self) -> None:
        self._letters: list[tuple[str, str, Files | None]] = []

    def put(self, attempt: str, node: str, files: Files | None) -> None:
        """Keep a letter, instead of an older one of the same attempt that has files."""
        self._letters = [other for other in self._letters if other[0] != attempt or other[2] is None]
        self._letters.append((attempt, node, files))

    def take(self) -> list[tuple[str, str, Files | None]]:
        """Return all letters, and keep none."""
        letters, self._letters = self._letters, []
        return letters


def train_parcel(parcel: Parcel, mailbox: Any) -> tuple[str, Files]:  # noqa: ANN401 - an actor of Ray
    """Train a run in a temporary folder; return its outcome, and the files of its folder. A task of Ray."""
    with suppress(OSError):  # only a superuser may
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    if os.path.isdir(parcel.cwd):
        os.chdir(parcel.cwd)
    node = socket.gethostname()
    with tempfile.TemporaryDirectory(prefix="lt_cb_", ignore_cleanup_errors=True) as place:
        folder = Path(place, "run")
        args = _with_configs(parcel, Path(place))
        unpack(parcel.files, folder)
        _post(mailbox, parcel.attempt, node, None)
        ended = threading.Event()

        def send() -> None:
            sent, pause = _stamp(RunDir(folder).checkpoint), SEND_S
            while not ended.wait(pause):
                if (now := _stamp(RunDir(folder).checkpoint)) != sent:
                    sent, begin = now, time.monotonic()
                    _post(mailbox, parcel.attempt, node, pack(folder))
                    pause = max(SEND_S, 20 * (time.monotonic() - begin))

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        run = replace(parcel.run, args=args, dir=RunDir(folder))
        try:
            outcome = train(run, {}, parcel.readers, threading.Event())
        except KeyboardInterrupt:  # the grid has cancelled the task; its training has ended
            _post(mailbox, parcel.attempt, node, pack(folder))
            raise
        finally:
            ended.set()
        return outcome, pack(folder)


def _post(mailbox: Any, attempt: str, node: str, files: Files | None) -> None:  # noqa: ANN401 - an actor of Ray
    """Send a letter, and wait until it has arrived. In ray.get the task would lend its core to another."""
    mailbox.put.remote(attempt, node, files).future().result()


def pack(folder: Path) -> Files:
    """Return the files of a folder. Checkpoints are read last, so that no other file is newer."""
    names = [path for path in folder.rglob("*") if path.is_file() and path.name not in STAYS]
    names.sort(key=lambda path: path.suffix == ".ckpt")
    files = {}
    for path in names:
        with suppress(FileNotFoundError):  # renamed in the meantime
            files[str(path.relative_to(folder))] = path.read_bytes()
    return files


def unpack(files: Files, folder: Path) -> None:
    """Write files to a folder, each whole, and remove others."""
    for name, content in files.items():
        with whole_file(folder / name, "wb") as stream:
            stream.write(content)
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in STAYS and str(path.relative_to(folder)) not in files:
            path.unlink(missing_ok=True)


def _with_configs(parcel: Parcel, place: Path) -> list[str]:
    """Write the configuration files, and return the arguments of the run with their new names."""
    args, contents = list(parcel.run.args), iter(parcel.configs)
    for i in [i for i, word in enumerate(args[:-1]) if word == "--config"]:
        file = place / f"config_{i}.yaml"
        file.write_bytes(next(contents))
        args[i + 1] = str(file)
    return args


def _connect(address: str) -> Any:  # noqa: ANN401 - a module without types
    """Return Ray, connected."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise InputError("--on needs Ray, which is not installed: pip install 'lt_cb[ray]'.") from error
    starts = address == "local"
    options: dict[str, Any] = {"include_dashboard": False} if starts else {}
    if "PYTHONPATH" in os.environ:  # classes of the user's own
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}
    for _ in range(LOCAL_STARTS if starts else 1):
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
            return ray
        except Exception as error:  # Ray raises many kinds
            reason = _first_line(error)
            ray.shutdown()
    if starts:
        raise InputError(
            f"Ray does not start ({reason}): it gives its parts 15 s, so end other work, and compile its code by "
            "python -m compileall -q $(python -c 'import ray; print(ray.__path__[0])')."
        )
    raise InputError(
        f"no Ray cluster answers at '{address}' ({reason}): start one by ray start --head, or set --on local. If the "
        "cluster wants a token, set RAY_AUTH_MODE=token."
    )


def _stamp(file: Path) -> int | None:
    return file.stat().st_mtime_ns if file.is_file() else None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
