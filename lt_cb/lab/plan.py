"""Expansion of a grid file into runs, each a list of arguments for ``fit``. Imports no torch."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lt_cb.data.sources.names import canonical_source
from lt_cb.errors import InputError, did_you_mean
from lt_cb.runs.folder import RunDir, flatten, read_yaml, shipped

MAX_RUNS = 20_000
LOSSES = "lt_cb.losses"  # where a class of a loss or weighting is looked up that is named without a module
GRID_KEYS = ("folder", "config", "set", "seeds", "axes")
Settings = list[dict[str, Any]]
RESERVED = ("config", "seeds", "axes")  # keys of a choice that are no config keys


@dataclass
class Run:
    """One training of a grid."""

    name: str  # choices on the axes, joined by "_"
    seed: str  # "seed_" and the value of the first key of the seeds
    args: list[str]  # of ``fit``
    digest: str
    dir: RunDir
    aliases: list[str] = field(default_factory=list)  # names of other combinations with the same settings

    def __post_init__(self) -> None:
        """Join name and seed."""
        self.title = f"{self.name}/{self.seed}"

    @property
    def state(self) -> str:
        """``done``, ``to do``, or ``changed`` if the folder holds a run of another configuration."""
        done = self.dir.is_done
        if (done or self.dir.checkpoint.is_file()) and self.dir.planned not in (None, self.digest):
            return "changed"
        return "done" if done else "to do"


@dataclass
class Plan:
    """The distinct runs of a grid."""

    folder: Path
    runs: list[Run]

    @property
    def num_named(self) -> int:
        """Number of combinations, including those with equal settings."""
        return sum(1 + len(run.aliases) for run in self.runs)


def read_plan(file: Path) -> Plan:
    """Expand a grid file, which is YAML with any of these keys, into its distinct runs.

    - ``folder``: folder of the runs; default ``runs/NAME_OF_THE_FILE``.
    - ``config``: config files of all runs, relative to the grid file.
    - ``set``: config keys and values of all runs.
    - ``seeds``: list of values of ``seed_everything``, or a mapping of config keys to lists, which are zipped.
    - ``axes``: a run takes one choice of each axis. An axis maps config keys to lists, which are zipped; or choices to
      settings: config keys and values, ``config`` files, and ``axes`` of this choice, or its own ``seeds``.
    """
    grid = _mapping(read_yaml(file), f"'{file}'")
    for key in grid:
        if key not in GRID_KEYS:
            hint = did_you_mean(str(key), GRID_KEYS)
            raise InputError(f"'{file}' has '{key}', but a grid has {', '.join(GRID_KEYS)}.{hint}")
    folder = grid.get("folder", f"runs/{file.stem}")
    if not isinstance(folder, str) or not folder or "\0" in folder:
        raise InputError(f"'{file}': folder is {folder!r}, but must be a path, as runs/{file.stem}.")
    base = _arguments({"config": grid.get("config", [])}, file) + _arguments(_mapping(grid.get("set", {}), "set"), file)
    runs: dict[str, Run] = {}  # by digest
    titles: set[str] = set()
    axes = _mapping(grid.get("axes", {}), "axes")
    for parts, args, seeds in _expand(base, axes, _seeds(grid.get("seeds", [0])), file):
        name = "_".join(parts) or file.stem
        for values in seeds:
            complete = args + _arguments(values, file)
            seed = f"seed_{_label(next(iter(values.values())))}"
            run = Run(name, seed, complete, digest(complete), RunDir(Path(folder, name, seed)))
            if re.search(r"[/\0]", name) or name in (".", ".."):
                raise InputError(f"'{file}': the run '{name}' cannot name a folder: rename its choices.")
            if run.title in titles:
                raise InputError(f"'{file}': two runs are named '{run.title}': rename their choices.")
            titles.add(run.title)
            if len(titles) > MAX_RUNS:
                raise InputError(f"'{file}' names more than {MAX_RUNS:,} runs: give its axes fewer choices.")
            if (first := runs.setdefault(run.digest, run)) is not run:
                first.aliases.append(name)
    return Plan(Path(folder), list(runs.values()))


def digest(args: Sequence[str]) -> str:
    """Return the SHA-256 of arguments of ``fit``, with the contents of config files instead of their paths."""
    words, settings = iter(args), []
    for word in words:
        key, _, value = word.removeprefix("--").partition("=")
        content = read_yaml(Path(next(words))) if key == "config" else {key: value}
        settings.append(_canonical(content))
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def _canonical(value: Any, key: str = "") -> Any:  # noqa: ANN401 - YAML
    """Return the value of a config key with one spelling of each data set, loss and weighting."""
    key = key.rpartition(".")[2]
    if isinstance(value, dict):
        return {name: _canonical(v, key if name == "class_path" else str(name)) for name, v in value.items()}
    if not isinstance(value, str) or key not in ("source", "loss", "weighting"):
        return value
    if value.startswith("{"):  # a class with options, in an argument
        with suppress(ValueError):
            return _text(_canonical(json.loads(value), key))
    if key == "source":
        return canonical_source(value)
    name = value.rpartition(".")[2]
    in_lt_cb = name[:1].isupper() and (name == value or value.startswith(f"{LOSSES}."))
    return f"{LOSSES}.{name}" if in_lt_cb else value


def _arguments(settings: dict[str, Any], file: Path) -> list[str]:
    """Return the arguments of ``fit`` for config files, which come first, and for config keys."""
    files = settings.get("config", [])
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list) or not all(isinstance(name, str) and "\0" not in name for name in files):
        raise InputError(f"'{file}': config is {files!r}, but must be a file or a list of files.")
    for key in settings:
        if not isinstance(key, str):
            raise InputError(f"'{file}': {key!r} is set, but must be a config key, as model.loss.gamma.")
    args = []
    for path in [file.parent / shipped(name) for name in files]:
        _mapping(read_yaml(path), f"'{path}'")
        place = path.resolve()
        args += ["--config", str(place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place)]
    return args + [f"--{key}={_text(value)}" for key, value in settings.items() if key not in RESERVED]


def _text(value: Any) -> str:  # noqa: ANN401 - YAML
    """Return a value as text for ``fit``: strings without quotes, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _mapping(value: Any, what: str) -> dict[str, Any]:  # noqa: ANN401 - YAML
    if not isinstance(value, dict):
        raise InputError(f"{what} is {value!r}, but must be a mapping.")
    return value


def _zipped(what: str, lists: dict[str, Any]) -> Settings:
    """Return the settings of each position in lists of equal length."""
    if not lists or not all(isinstance(values, list) and values for values in lists.values()):
        raise InputError(f"{what} is {lists}, but must be a list, or map config keys to lists, none of them empty.")
    if len(lengths := {len(values) for values in lists.values()}) > 1:
        raise InputError(f"{what} zips lists of {sorted(lengths)} values, but they must be equally long.")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _seeds(value: Any) -> Settings:  # noqa: ANN401 - YAML
    """Return the settings of each seed."""
    return _zipped("seeds", _mapping({"seed_everything": value} if isinstance(value, list) else value, "seeds"))


def _expand(
    args: list[str], axes: dict[str, Any], seeds: Settings, file: Path
) -> Iterator[tuple[list[str], list[str], Settings]]:
    """Yield the names of the choices, the arguments and the seeds of each combination."""
    if not axes:
        yield [], args, seeds
        return
    (axis, given), *rest = axes.items()
    choices = _mapping(given, f"axis '{axis}'")
    if all(isinstance(values, list) for values in choices.values()):
        zipped = _zipped(f"axis '{axis}'", choices)
        named = [(f"{axis}{_label(next(iter(settings.values())))}", settings) for settings in zipped]
    else:
        named = [(str(name), _mapping(part, f"choice '{name}' of axis '{axis}'")) for name, part in choices.items()]
    for name, settings in named:
        chosen = [*args, *_arguments(settings, file)]
        own = _seeds(settings["seeds"]) if "seeds" in settings else seeds
        for inner, nested, kept in _expand(chosen, _mapping(settings.get("axes", {}), f"axes of '{name}'"), own, file):
            for outer, complete, last in _expand(nested, dict(rest), kept, file):
                yield [part for part in (name, *inner, *outer) if part], complete, last


def _label(value: Any) -> str:  # noqa: ANN401 - YAML
    """Return a value as a part of a folder's name: 0.5, or _Tempered_t0.5 for a class with options."""
    if isinstance(value, dict):
        return "".join(f"_{key}{_label(inner)}" for key, inner in flatten(value).items())
    if isinstance(value, list):
        return "-".join(map(_label, value))
    return re.sub(r"[^\w.+-]+", "-", str(value))
