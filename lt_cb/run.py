"""A run's folder: the names of its files, how they are read and written, and its state. Imports no torch."""

import csv
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lt_cb.errors import InputError

TERMINATED = 128 + 15  # the exit code after a SIGTERM


class RunDir:
    """The folder of a run, which need not exist. No other file of the project knows the names in it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"  # all of the configuration, resolved
        self.metrics = self.path / "metrics.csv"  # by epoch
        self.result = self.path / "result.json"  # test metrics, counts, accuracy of each class, seeds, versions, time
        self.checkpoint = self.path / "checkpoints" / "last.ckpt"  # after every epoch
        self.logits = self.path / "logits.npz"  # of the test images, by `SaveLogits`
        self.predictions = self.path / "predictions.csv"  # what ``predict`` writes
        self.recommendation = self.path / "recommendation.json"  # choice and scores by fold, of ``recommend``
        self.recommendation_page = self.path / "recommendation.html"
        self.heads = self.path / "heads.csv"  # balanced accuracy of each head, of ``heads``
        self.heads_page = self.path / "heads.html"
        self.grid = self.path / "grid.json"  # which run of a grid it is
        self.lock = self.path / "lock"  # held by the process that trains the run of a grid
        self.log = self.path / "log.txt"  # what the run of a grid prints
        self.error = self.path / "error.txt"  # why the run of a grid has failed

    @classmethod
    def below(cls, folder: Path) -> list["RunDir"]:
        """Return the folders of all runs below a folder, sorted: finished, begun, or planned by a grid."""
        run = cls(folder)
        names = [file.name for file in (run.result, run.config, run.grid)]
        return [cls(path) for path in sorted({file.parent for name in names for file in folder.rglob(name)})]

    @property
    def is_done(self) -> bool:
        """Whether there is a result."""
        return self.result.is_file()

    @property
    def is_training(self) -> bool:
        """Whether it is of ``fit``: the configurations of ``validate`` and ``test`` have an option more."""
        return "verbose" not in self.read_config()

    @property
    def state(self) -> str | None:
        """Why there is no result: failed, not begun or unfinished; None for one that none is expected of."""
        if self.error.exists():
            return "failed"
        if not self.config.exists():
            return "not begun"
        return "unfinished" if self.is_training else None

    def read_config(self) -> dict[str, Any]:
        """Return the configuration.

        Raises:
            InputError: if there is none, or it is damaged.
        """
        config = read_yaml(self.config)
        if not isinstance(config, dict):
            raise InputError(f"'{self.config}' is not the configuration of a run: remove it.")
        return config

    def read_result(self) -> dict[str, Any]:
        """Return the result.

        Raises:
            InputError: if there is none, or it is damaged.
        """
        try:
            raw = json.loads(self.result.read_text())
        except OSError as error:
            raise InputError(
                f"'{self.path}' has no {self.result.name}: give a finished run's folder, or entity/project/run of W&B."
            ) from error
        except ValueError as error:
            raise InputError(f"'{self.result}' is damaged ({error}): remove it.") from error
        if not isinstance(raw, dict) or not {"metrics", "class_counts", "per_class_accuracy", "seeds"} <= raw.keys():
            raise InputError(f"'{self.result}' is not the result of a run: remove it.")
        return raw

    def read_metrics(self) -> list[dict[str, str]]:
        """Return the rows of the metrics by epoch, none if there are none.

        Raises:
            InputError: if they are damaged.
        """
        try:
            with self.metrics.open(newline="") as stream:
                return list(csv.DictReader(stream))
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"'{self.metrics}' is damaged ({error}): remove it.") from error

    def read_grid(self) -> dict[str, Any]:
        """Return name, aliases, digest and arguments of the run, as its grid has written them.

        Raises:
            InputError: if they are damaged.
        """
        try:
            raw = json.loads(self.grid.read_text())
        except ValueError as error:
            raise InputError(f"'{self.grid}' is damaged ({error}): remove it.") from error
        if not isinstance(raw, dict) or "digest" not in raw:
            raise InputError(f"'{self.grid}' is not of a run of a grid: remove it.")
        return raw


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration by dotted keys, as the command line has them; a class is the name behind its path."""
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


def read_yaml(file: Path) -> Any:  # noqa: ANN401 - YAML
    """Return what a YAML file says.

    Raises:
        InputError: if it cannot be read, or is not YAML.
    """
    try:
        return yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except OSError as error:
        raise InputError(f"cannot read '{file}' ({error.strerror}): give the path of a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"'{file}' is not YAML: {' '.join(str(error).split())}.") from error


def write_json(file: Path, value: Any) -> None:  # noqa: ANN401 - JSON
    """Write a file that is never seen half-written, also where another process writes the same."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    temporary.replace(file)


def commit() -> str | None:
    """Return the commit of the code, with a + where it was changed since; None for an installed package."""
    root = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout

    try:
        top, head = git("rev-parse", "--show-toplevel", "HEAD").split()
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "lt_cb").strip()
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None
    return head[:12] + "+" * bool(changed) if Path(top) == root else None  # else the package lies in another's
