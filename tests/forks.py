"""Commands in forks of the process of the tests: it has imported torch, which takes a start some seconds."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lt_cb.__main__ import main

_fork = multiprocessing.get_context("fork")


class Command:
    """``lt-cb`` with its words, in a process with its own environment, whose output goes to a file."""

    def __init__(self, *words: str, environment: dict[str, str] | None = None) -> None:
        self.output = Path(f"output_{time.monotonic_ns()}.txt").absolute()
        self.process = _fork.Process(target=_run, args=(words, self.output, environment or {}))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    @property
    def runs(self) -> bool:
        return self.process.is_alive()

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 300.0) -> tuple[int, str]:
        """Return the exit code and all that it has printed."""
        self.process.join(seconds)
        assert self.process.exitcode is not None
        return self.process.exitcode, self.output.read_text()

    def wait_for(self, file: Path) -> None:
        while not file.exists():
            assert self.runs, self.output.read_text()
            time.sleep(0.02)


def processes(count: int, *words: str) -> list[tuple[int, str]]:
    """Run a command in several processes that train together, and return the exit code and output of each."""
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    begun = [Command(*words, environment={**together, "LOCAL_RANK": str(rank)}) for rank in range(count)]
    return [command.wait() for command in begun]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _run(words: Sequence[str], output: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests in the background ignore
    with output.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", 1, closefd=False) for descriptor in (1, 2))
    main(words)
