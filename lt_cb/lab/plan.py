"""From a grid file to the runs it asks for, each a list of arguments for ``fit``. Imports no torch."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lt_cb.errors import InputError, did_you_mean
from lt_cb.runs.folder import RunDir, flatten, read_yaml, shipped

MOST = 20_000  # runs of a grid
KEYS = ("folder", "config", "set", "seeds", "axes")


@dataclass
class Run:
    """One training: the arguments of ``fit``, and the folder it goes to."""

    name: str
    seed: int
    args: list[str]
    digest: str
    folder: Path
    aliases: list[str] = field(default_factory=list)  # other names of the grid that come to the same run

    @property
    def title(self) -> str:
        """Name and seed."""
        return f"{self.name}/seed_{self.seed}"

    @property
    def dir(self) -> RunDir:
        """The files in its folder."""
        return RunDir(self.folder)

    def settings(self) -> dict[str, Any]:
        """Return the keys that the arguments set, the last value of each: ``fit`` alone knows what they come to."""
        flat: dict[str, Any] = {}
        for key, value in _said(self.args):
            flat |= flatten(value if key == "config" else {key: value})
        return flat


@dataclass
class Plan:
    """The distinct runs of a grid."""

    folder: Path
    runs: list[Run]

    @property
    def named(self) -> int:
        """How many runs the grid names, equal ones counted apart."""
        return sum(1 + len(run.aliases) for run in self.runs)


def read_plan(file: Path) -> Plan:
    """Expand a grid file.

    Args:
        file: YAML with ``folder`` (of the runs), ``config`` (files that all runs start from, relative to the grid
            file), ``set`` (config keys and values for all), ``seeds`` (of ``seed_everything``, default 0, or a mapping
            of config keys to lists, which are zipped), and ``axes``: of each axis one choice is taken, and all
            combinations are run. An axis is a mapping of config keys to lists, which are zipped, or a mapping of
            choices to settings: config keys and values, ``config`` files, and ``axes`` that only this choice has.

    Raises:
        InputError: if the file is no grid.
    """
    grid = _mapping(read_yaml(file), f"'{file}'")
    for key in grid:
        if key not in KEYS:
            raise InputError(f"'{file}' has '{key}', but a grid has {', '.join(KEYS)}.{did_you_mean(str(key), KEYS)}")
    seeds = _seeds(grid.get("seeds", [0]), file)
    folder = grid.get("folder", f"runs/{file.stem}")
    if not isinstance(folder, str) or not folder or "\0" in folder:
        raise InputError(f"'{file}': folder is {folder!r}, but must be a path, as runs/{file.stem}.")
    folder = Path(folder)
    base = [
        *_arguments({"config": grid.get("config", [])}, file),
        *_arguments(_mapping(grid.get("set", {}), "set"), file),
    ]
    runs: dict[str, Run] = {}
    names: set[str] = set()
    for parts, args in _expand(base, _mapping(grid.get("axes", {}), "axes"), file):
        name = "_".join(parts) or file.stem
        if name in names:
            raise InputError(f"'{file}': two combinations are both named '{name}': give their choices other names.")
        names.add(name)
        if len(names) * len(seeds) > MOST:
            raise InputError(f"'{file}' names more than {MOST:,} runs: give its axes fewer choices.")
        for seed, settings in seeds.items():
            complete = [*args, *_arguments(settings, file)]
            run = Run(name, seed, complete, digest(complete), folder / name / f"seed_{seed}")
            first = runs.setdefault(run.digest, run)
            if first is not run:
                first.aliases.append(name)
    return Plan(folder, list(runs.values()))


def digest(args: Sequence[str]) -> str:
    """Return what tells a run from another: its arguments, and what the config files say, wherever they lie."""
    return hashlib.sha256(json.dumps(list(_said(args)), sort_keys=True, default=str).encode()).hexdigest()


def _said(args: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield key and value of each argument, and for a config file what it says."""
    words = iter(args)
    for word in words:
        key, _, text = word.removeprefix("--").partition("=")
        yield key, read_yaml(Path(next(words))) if word == "--config" else _value(text)


def _arguments(settings: dict[str, Any], file: Path) -> list[str]:
    """Return the arguments of ``fit`` for config files, which come first, and keys."""
    files = settings.get("config", [])
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list) or not all(isinstance(name, str) and "\0" not in name for name in files):
        raise InputError(f"'{file}': config is {files!r}, but must be a file or a list of files.")
    for key in settings:
        if not isinstance(key, str):
            raise InputError(f"'{file}': {key!r} is set, but must be a key of the configuration, as model.loss.gamma.")
    args = []
    for path in [file.parent / shipped(name) for name in files]:
        _mapping(read_yaml(path), f"'{path}'")
        place = path.resolve()
        args += ["--config", str(place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place)]
    return args + [f"--{key}={_text(value)}" for key, value in settings.items() if key not in ("config", "axes")]


def _text(value: Any) -> str:  # noqa: ANN401 - YAML
    """Return a value as ``fit`` reads it: a text as it is, which quotes would become a part of, all else as JSON."""
    plain = value is None or isinstance(value, bool | int | float | list | dict)
    return json.dumps(value, ensure_ascii=False, default=str) if plain else str(value)


def _value(text: str) -> Any:  # noqa: ANN401 - JSON
    try:
        return json.loads(text)
    except ValueError:
        return text


def _mapping(value: Any, what: str) -> dict[str, Any]:  # noqa: ANN401 - YAML
    if not isinstance(value, dict):
        raise InputError(f"{what} is {value!r}, but must be a mapping.")
    return value


def _seeds(seeds: Any, file: Path) -> dict[int, dict[str, Any]]:  # noqa: ANN401 - YAML
    """Return the keys and values of each seed."""
    lists = {"seed_everything": seeds} if isinstance(seeds, list) else seeds
    values = list(lists.values()) if isinstance(lists, dict) else []
    if (
        not values
        or not all(isinstance(v, list) and v for v in values)
        or not all(isinstance(seed, int) and seed >= 0 for seed in values[0])
    ):
        raise InputError(
            f"'{file}': seeds is {seeds}, but must be a list of integers of at least 0, or a mapping of config keys to "
            "lists, the first of them such a list."
        )
    if len(set(values[0])) < len(values[0]):
        raise InputError(f"'{file}': seeds has one of {values[0]} twice: each names a folder.")
    return dict(zip(values[0], _zipped("seeds", lists), strict=True))


def _zipped(what: str, lists: dict[str, list[Any]]) -> list[dict[str, Any]]:
    lengths = {len(values) for values in lists.values()}
    if len(lengths) != 1:
        raise InputError(f"{what} zips lists of {sorted(lengths)} values, but they must be equally long.")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _expand(args: list[str], axes: dict[str, Any], file: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the names of the choices and the arguments of each combination."""
    if not axes:
        yield [], args
        return
    (axis, choices), *rest = axes.items()
    for name, settings in _choices(str(axis), _mapping(choices, f"axis '{axis}'")):
        chosen = [*args, *_arguments(settings, file)]
        for inner, nested in _expand(chosen, _mapping(settings.get("axes", {}), f"axes of '{name}'"), file):
            for outer, complete in _expand(nested, dict(rest), file):
                yield [part for part in (name, *inner, *outer) if part], complete


def _choices(axis: str, choices: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if all(isinstance(values, list) for values in choices.values()):
        for settings in _zipped(f"axis '{axis}'", choices):
            yield f"{axis}{next(iter(settings.values()))}", settings
    else:
        for name, settings in choices.items():
            yield str(name), _mapping(settings, f"choice '{name}' of axis '{axis}'")
