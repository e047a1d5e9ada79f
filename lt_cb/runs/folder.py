"""Folder of a run: names of its files, reading, writing, and its state. Imports no torch."""

import csv
import functools
import io
import json
import math
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from lt_cb.errors import InputError, did_you_mean
from lt_cb.runs.record import Record

TERMINATED = 128 + 15  # the exit code after a SIGTERM
ALIASED = 100_000  # values that aliases may add to a YAML text


class RunDir:
    """Folder of a run, which need not exist. Only this class knows the names of the files in it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"  # resolved configuration
        self.metrics = self.path / "metrics.csv"  # by epoch
        self.result = self.path / "result.json"  # `lt_cb.runs.record.Record`
        self.checkpoint = self.path / "checkpoints" / "last.ckpt"  # after every epoch
        self.checkpoint_before = self.checkpoint.with_suffix(".before.ckpt")  # the checkpoint of the epoch before
        self.logits = self.path / "logits.npz"  # of the test images, by `SaveLogits`
        self.predictions = self.path / "predictions.csv"  # of ``predict``
        self.recommendation = self.path / "recommendation.json"  # of ``recommend``: choice, and scores by fold
        self.recommendation_page = self.path / "recommendation.html"
        self.heads = self.path / "heads.csv"  # of ``heads``: balanced accuracy of each head
        self.heads_page = self.path / "heads.html"
        self.grid = self.path / "grid.json"  # the run that a grid has planned here
        self.lock = self.path / "lock"  # held while a grid trains the run
        self.log = self.path / "log.txt"  # output of a run of a grid
        self.error = self.path / "error.txt"  # why a run of a grid failed

    @classmethod
    def below(cls, folder: Path) -> list["RunDir"]:
        """Return the folders of all runs below a folder, sorted: finished, started, or planned by a grid."""
        run = cls(folder)
        names = [file.name for file in (run.result, run.config, run.grid)]
        return [cls(path) for path in sorted({file.parent for name in names for file in folder.rglob(name)})]

    @property
    def is_done(self) -> bool:
        """Whether there is a readable result, and it belongs to the run that a grid has planned here, if any."""
        result, grid = _stamp(self.result), _stamp(self.grid)
        return result is not None and _is_of_run(self.path, result, grid)

    @property
    def is_training(self) -> bool:
        """Whether the run is of ``fit``."""
        return "verbose" not in self.read_config()  # an option of ``validate`` and ``test``

    @property
    def state(self) -> str | None:
        """Why there is no result; None for ``validate`` and ``test`` runs, which need not write one."""
        if self.result.exists():
            return f"its {self.result.name} is damaged, or of another run"
        if self.error.exists():
            return "failed"
        if not self.config.exists():
            return "not started"
        return "unfinished" if self.is_training else None

    def read_config(self) -> dict[str, Any]:
        """Return the configuration.

        Raises:
            InputError: if the file is missing or damaged.
        """
        config = read_yaml(self.config)
        if not isinstance(config, dict):
            raise InputError(f"'{self.config}' is not the configuration of a run. Remove the file.")
        return config

    def read_result(self) -> Record:
        """Return the result.

        Raises:
            InputError: if the file is missing or damaged.
        """
        try:
            return Record.read(self.result)
        except OSError as error:
            raise InputError(
                f"'{self.path}' has no {self.result.name}: give the folder of a finished run, or at W&B "
                "entity/project/run."
            ) from error

    def read_metrics(self) -> list[dict[str, str]]:
        """Return the rows of ``metrics.csv``; an empty list without the file.

        Raises:
            InputError: if the file is damaged.
        """
        try:
            whole, end, _ = self.metrics.read_bytes().decode().rpartition("\n")  # a kill may have cut off the last row
            rows = list(csv.DictReader(io.StringIO(whole + end, newline="")))
            for row in rows:
                if None in row or not all(_is_number(value) for value in row.values() if value):
                    raise csv.Error("a row has other columns than the header, or a text")
            return rows
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"'{self.metrics}' is damaged ({error}). Remove the file.") from error

    def read_grid(self) -> dict[str, Any]:
        """Return name, aliases, digest and arguments of the run, as written by its grid.

        Raises:
            InputError: if the file is missing or damaged.
        """
        try:
            raw = json.loads(self.grid.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"'{self.grid}' is damaged ({error}). Remove the file.") from error
        if not isinstance(raw, dict) or not isinstance(raw.get("digest"), str):
            raise InputError(f"'{self.grid}' does not describe a run of a grid. Remove the file.")
        return raw


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


@functools.cache
def _is_of_run(path: Path, result: tuple[int, int], grid: tuple[int, int] | None) -> bool:
    """Return whether a result is readable and has the digest in grid.json; the stamps make the cache notice changes."""
    run = RunDir(path)
    try:
        own = run.read_result().grid
    except InputError:
        return False
    try:
        return own is None or grid is None or run.read_grid()["digest"] == own
    except InputError:  # the grid will write it again
        return True


def _is_number(value: Any) -> bool:  # noqa: ANN401 - of a table
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration by dotted keys, as on the command line; a class is its name without the module."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = prefix + ("" if key == "init_args" else f"{key}.")
        if isinstance(value, dict):
            flat |= flatten(value, name)
        elif key == "class_path":
            flat[prefix.rstrip(".")] = str(value).rpartition(".")[2]
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def shipped(path: str) -> str:
    """Return the path of a shipped configuration such as ``lt_cb:loss/cb_focal``; any other path is unchanged.

    Raises:
        InputError: if no shipped configuration has this name.
    """
    scheme, colon, name = path.partition(":")
    if scheme != "lt_cb" or not colon:
        return path
    package = Path(__file__).parents[1]
    folder = next(place for place in (package / "configs", package.parent / "configs") if place.is_dir())
    names = sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml"))
    if name.removesuffix(".yaml") not in names:
        raise InputError(
            f"there is no configuration '{path}': choose {', '.join(f'lt_cb:{name}' for name in names)}."
            + did_you_mean(path, [f"lt_cb:{name}" for name in names])
        )
    return str(folder / f"{name.removesuffix('.yaml')}.yaml")


def read_yaml(file: Path, name: str | None = None) -> Any:  # noqa: ANN401 - YAML
    """Return the content of a YAML file.

    Args:
        file: path of the file.
        name: its name in error messages; the default is the path.

    Raises:
        InputError: if the file cannot be read, or is not YAML.
    """
    name = name or str(file)
    try:
        return parse_yaml(file.read_text(encoding="utf-8"), f"'{name}'")
    except OSError as error:
        raise InputError(f"cannot read '{name}' ({error.strerror}): give the path of a YAML file.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"'{name}' is not YAML: {error}.") from error


def parse_yaml(text: str, what: str) -> Any:  # noqa: ANN401 - YAML
    """Return the content of a YAML text.

    Args:
        text: YAML.
        what: name of the text in error messages.

    Raises:
        InputError: if the text is not YAML, or its aliases expand to far more values than are written.
    """
    try:
        value = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        size = expanded_size(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{what} is not YAML: {' '.join(str(error).split())}.") from error
    if size > len(text) + ALIASED:
        raise InputError(f"{what} expands to more than {ALIASED:,} values by its aliases: write the values out.")
    return value


def expanded_size(value: Any, sizes: dict[int, float] | None = None) -> float:  # noqa: ANN401 - of lists and mappings
    """Return the number of values with repeated objects counted each time; infinity if one contains itself."""
    sizes = {} if sizes is None else sizes
    if not isinstance(value, dict | list | tuple):
        return 1
    if id(value) not in sizes:
        sizes[id(value)] = math.inf  # until its size is known
        inner = value.values() if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(expanded_size(v, sizes) for v in inner)
    return sizes[id(value)]


def is_tested_in_part(config: Mapping[str, Any]) -> bool:
    """Return whether a flattened configuration limits the test to a part of the images."""
    limit = config.get("trainer.limit_test_batches")
    return limit is not None and not (isinstance(limit, float) and limit >= 1.0)  # 1 is one batch, 1.0 all


def write_json(file: Path, value: Any) -> None:  # noqa: ANN401 - JSON
    """Write a value as a `whole_file`."""
    write_text(file, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a text as a `whole_file`."""
    with whole_file(file) as stream:
        stream.write(text)


@contextmanager
def whole_file(file: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file for writing that appears only when complete, also if another process writes the same file.

    Args:
        file: path; missing folders are created.
        mode: ``w`` (UTF-8) or ``wb``.

    Raises:
        OSError: with the name of the file, if it cannot be written; the old file is kept.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open(mode) if "b" in mode else temporary.open(mode, newline="", encoding="utf-8") as stream:
            yield stream
        temporary.replace(file)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(file)
        raise


def commit() -> str | None:
    """Return the commit of the code, with a + if files were changed since; None for an installed package."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout

    try:
        top, head = git("rev-parse", "--show-toplevel", "HEAD").split()
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "lt_cb").strip()
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None
    return head[:12] + "+" * bool(changed) if Path(top) == root else None  # else a repository around the package
