"""Folder of a run: names of its files, reading, writing, and its state. Imports no torch."""

import csv
import io
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from lt_cb.errors import InputError, did_you_mean
from lt_cb.runs.record import Record, read_bytes

TERMINATED = 128 + 15  # the exit code after a SIGTERM
ENVIRONMENT = "LT_CB_"  # LT_CB_MODEL__LOSS=FocalLoss is --model.loss=FocalLoss
LATEST = "latest"  # link beside the runs of a name, to the newest
BEFORE = ".before.ckpt"  # suffix of the checkpoint that the newest one has replaced
MAX_ALIASED = 100_000  # values that aliases may add to a YAML text


class RunDir:
    """Folder of a run, which need not exist. Only this class knows the names of the files in it."""

    def __init__(self, path: str | Path) -> None:
        self.path = linked(Path(path))
        self.config = self.path / "config.yaml"  # resolved configuration
        self.metrics = self.path / "metrics.csv"  # by epoch
        self.result = self.path / "result.json"  # `lt_cb.runs.record.Record`
        self.checkpoint = self.path / "checkpoints" / "last.ckpt"  # after every epoch
        self.checkpoint_before = self.checkpoint.with_suffix(BEFORE)  # the checkpoint of the epoch before
        self.logits = self.path / "logits.npz"  # of the test images, by `SaveLogits`
        self.predictions = self.path / "predictions.csv"  # of ``predict``
        self.recommendation = self.path / "recommendation.json"  # of ``recommend``: choice, and scores by fold
        self.recommendation_page = self.path / "recommendation.html"
        self.suspects = self.path / "suspects.csv"  # training images whose label looks wrong
        self.heads = self.path / "heads.csv"  # of ``heads``: balanced accuracy of each head
        self.heads_page = self.path / "heads.html"
        self.grid = self.path / "grid.json"  # the run that a grid has planned here
        self.lock = self.path / "lock"  # held while a grid trains the run
        self.writing = self.path / ".lock"  # held by the process that writes the run
        self.log = self.path / "log.txt"  # output of a run of a grid
        self.error = self.path / "error.txt"  # why a run of a grid failed

    @classmethod
    def below(cls, folder: Path) -> list["RunDir"]:
        """Return the folders of all runs below a folder, sorted: finished, started, or planned by a grid."""
        run = cls(folder)
        names = [file.name for file in (run.result, run.config, run.grid)]
        return [cls(path) for path in sorted({file.parent for name in names for file in folder.rglob(name)})]

    @classmethod
    def of(cls, checkpoint: str) -> "RunDir | None":
        """Return the folder of the run that wrote a checkpoint; None if the file lies elsewhere."""
        file = Path(checkpoint).absolute()
        path = file.parent.parent
        run = cls(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
        return run if file.parent.name == run.checkpoint.parent.name and run.config.is_file() else None

    @property
    def is_done(self) -> bool:
        """Whether there is a `finished` result."""
        return self.finished is not None

    @property
    def finished(self) -> Record | None:
        """The result, if it is readable, and belongs to the run that a grid has planned here, if any; else None."""
        try:
            record = self.read_result()
        except InputError:
            return None
        return record if record.grid is None or self.planned in (None, record.grid) else None  # damaged plans are None

    @property
    def planned(self) -> str | None:
        """Digest of the run that a grid has planned here; None without one, or if the file is damaged."""
        try:
            digest: str = json.loads(read_bytes(self.grid).decode())["digest"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
        return digest

    @property
    def is_training(self) -> bool:
        """Whether ``fit`` made the run."""
        return not {"verbose", "prior"} & self.read_config().keys()  # options of ``validate`` and ``test``

    @property
    def state(self) -> str | None:
        """Why there is no result; None for ``validate`` and ``test``, which need not write one."""
        if self.result.exists():
            return f"its {self.result.name} is damaged, or of another run"
        if self.error.exists():
            return "failed"
        if not self.config.exists():
            return "not started"
        return "unfinished" if self.is_training else None

    def read_config(self) -> dict[str, Any]:
        """Return the configuration; raise InputError if the file is missing or damaged."""
        if isinstance(config := read_yaml(self.config), dict):
            return config
        raise InputError(f"'{self.config}' is not the configuration of a run. Remove the file.")

    def read_result(self) -> Record:
        """Return the result; raise InputError if the file is missing or damaged."""
        try:
            return Record.read(self.result)
        except OSError as error:
            raise InputError(
                f"'{self.path}' has no {self.result.name}: give the folder of a finished run, or at W&B "
                "entity/project/run."
            ) from error

    def read_metrics(self) -> list[dict[str, str]]:
        """Return the rows of ``metrics.csv``, none without the file; raise InputError if it is damaged."""
        try:
            whole, end, _ = read_bytes(self.metrics).decode().rpartition("\n")  # a kill may have cut off the last row
            rows = list(csv.DictReader(io.StringIO(whole + end, newline="")))
            if any(None in row for row in rows):
                raise csv.Error("a row has more columns than the header")
            _ = [float(value) for row in rows for value in row.values() if value]  # raises ValueError for a text
            return rows
        except FileNotFoundError:
            return []
        except (OSError, ValueError, csv.Error) as error:
            raise InputError(f"'{self.metrics}' is damaged ({error}). Remove the file.") from error


def linked(path: Path) -> Path:
    """Return the path with ``latest``, the link to the newest run, replaced by the name of that run."""
    for folder in (path, *path.parents):
        if folder.name == LATEST and folder.is_symlink():
            return folder.parent / folder.readlink() / path.relative_to(folder)
    return path


def flatten(config: Mapping[str, Any], prefix: str = "", full_paths: bool = False) -> dict[str, Any]:
    """Return a configuration by dotted keys, as on the command line; a class is its name, or its full path."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = prefix + ("" if key == "init_args" else f"{key}.")
        if isinstance(value, dict):
            flat |= flatten(value, name, full_paths)
        elif key == "class_path":
            flat[prefix.rstrip(".")] = str(value) if full_paths else str(value).rpartition(".")[2]
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def is_option(variable: str) -> bool:
    """Return whether an environment variable is an option of the command line."""
    return variable.startswith(ENVIRONMENT) and variable != f"{ENVIRONMENT}CACHE"


def shipped(path: str) -> str:
    """Return the path of a shipped configuration such as ``lt_cb:loss/cb_focal``; any other path is unchanged."""
    if not path.startswith("lt_cb:"):
        return path
    package = Path(__file__).parents[1]
    folder = next(place for place in (package / "configs", package.parent / "configs") if place.is_dir())
    files = {f"lt_cb:{file.relative_to(folder).with_suffix('').as_posix()}": file for file in folder.rglob("*.yaml")}
    name, names = path.removesuffix(".yaml"), sorted(files)
    if name not in files:
        raise InputError(f"there is no configuration '{path}': choose {', '.join(names)}." + did_you_mean(path, names))
    return str(files[name])


def read_yaml(file: Path, name: str | None = None) -> Any:  # noqa: ANN401 - YAML
    """Return the content of a YAML file; ``name`` replaces its path in error messages."""
    name = name or str(file)
    try:
        return parse_yaml(read_bytes(file), f"'{name}'")
    except OSError as error:
        raise InputError(f"cannot read '{name}' ({error.strerror}): give the path of a YAML file.") from error


def parse_yaml(content: str | bytes, name: str) -> Any:  # noqa: ANN401 - YAML
    """Return the value of YAML, as text or UTF-8; ``name`` stands for it in error messages."""
    try:
        text = content.decode() if isinstance(content, bytes) else content
        value = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{name} is not YAML: {' '.join(str(error).split())}.") from error
    if is_larger(value, len(text) + MAX_ALIASED):
        raise InputError(f"{name} expands to more than {MAX_ALIASED:,} values by its aliases: write the values out.")
    return value


def is_larger(value: Any, limit: int) -> bool:  # noqa: ANN401 - YAML
    """Return whether there are more than ``limit`` values, each counted as often as aliases repeat it."""
    waiting, size = [value], 1
    while waiting and size <= limit:
        value = waiting.pop()
        inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        waiting += inner
        size += len(inner)
    return size > limit


def is_tested_in_part(settings: Mapping[str, Any]) -> bool:
    """Return whether a flattened configuration limits the test to a part of the images."""
    limit = settings.get("trainer.limit_test_batches")
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
    """Open a file for writing, ``w`` (UTF-8) or ``wb``, that appears only when complete; an OSError names the file."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        text: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}  # odd file names
        with temporary.open(mode, **({} if "b" in mode else text)) as stream:
            yield stream
        temporary.replace(file)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(file)
        raise


def commit() -> str | None:
    """Return the commit of the code, with a + if lt_cb was changed since; None for an installed package."""
    git = ["git", "-C", str(Path(__file__).resolve().parents[2]), "--git-dir=.git"]  # no repository around it
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "lt_cb"], check=False).returncode == 1
    except (OSError, subprocess.CalledProcessError):
        return None
    return head[:12] + "+" * changed
