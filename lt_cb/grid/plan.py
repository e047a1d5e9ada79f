"""From a grid file to the runs it asks for, each with its resolved configuration. Imports no torch."""

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lt_cb.errors import InputError, did_you_mean
from lt_cb.run import read_yaml

KEYS = ("folder", "config", "set", "seeds", "axes")
Config = dict[str, Any]


@dataclass
class Run:
    """One training: a resolved configuration of ``fit``, a seed, and where it goes."""

    name: str
    seed: int
    config: Config
    folder: Path
    aliases: list[str] = field(default_factory=list)  # other names of the grid that come to the same run

    @property
    def title(self) -> str:
        """Name and seed."""
        return f"{self.name}/seed_{self.seed}"


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
            file), ``set`` (config keys and values for all), ``seeds`` (default 0), and ``axes``: of each axis one
            choice is taken, and all combinations are run. An axis is a mapping of config keys to lists, which are
            zipped, or a mapping of choices to settings: config keys and values, ``config`` files, and ``axes`` that
            only this choice has.

    Raises:
        InputError: (a ValueError) if the file is no grid.
    """
    grid = _mapping(read_yaml(file), f"'{file}'")
    for key in grid:
        if key not in KEYS:
            raise InputError(f"'{file}' has '{key}', but a grid has {', '.join(KEYS)}.{did_you_mean(str(key), KEYS)}")
    seeds = grid.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(isinstance(s, int) and s >= 0 for s in seeds):
        raise InputError(f"'{file}': seeds is {seeds}, but must be a list of integers of at least 0.")
    folder = Path(grid.get("folder", f"runs/{file.stem}"))
    base = _apply({}, {"config": grid.get("config", []), **_mapping(grid.get("set", {}), "set")}, file)
    runs: dict[str, Run] = {}
    names: set[str] = set()
    for parts, config in _expand(base, _mapping(grid.get("axes", {}), "axes"), file):
        name = "_".join(parts) or file.stem
        if name in names:
            raise InputError(f"'{file}': two combinations are both named '{name}': give their choices other names.")
        names.add(name)
        for seed in seeds:
            run = Run(name, seed, {**config, "seed_everything": seed}, folder / name / f"seed_{seed}")
            first = runs.setdefault(json.dumps(_effective(run.config), sort_keys=True, default=str), run)
            if first is not run:
                first.aliases.append(name)
    return Plan(folder, list(runs.values()))


def _mapping(value: Any, what: str) -> Config:  # noqa: ANN401 - YAML
    if not isinstance(value, dict):
        raise InputError(f"{what} is {value!r}, but must be a mapping.")
    return value


def _expand(config: Config, axes: Config, file: Path) -> Iterator[tuple[list[str], Config]]:
    """Yield the names of the choices and the configuration of each combination."""
    if not axes:
        yield [], config
        return
    (axis, choices), *rest = axes.items()
    for name, settings in _choices(str(axis), _mapping(choices, f"axis '{axis}'")):
        chosen = _apply(config, settings, file)
        for inner, nested in _expand(chosen, _mapping(settings.get("axes", {}), f"axes of '{name}'"), file):
            for outer, complete in _expand(nested, dict(rest), file):
                yield [part for part in (name, *inner, *outer) if part], complete


def _choices(axis: str, choices: Config) -> Iterator[tuple[str, Config]]:
    if all(isinstance(values, list) for values in choices.values()):
        lengths = {len(values) for values in choices.values()}
        if len(lengths) != 1:
            raise InputError(f"axis '{axis}' zips lists of {sorted(lengths)} values, but they must be equally long.")
        for values in zip(*choices.values(), strict=True):
            yield f"{axis}{values[0]}", dict(zip(choices, values, strict=True))
    else:
        for name, settings in choices.items():
            yield str(name), _mapping(settings, f"choice '{name}' of axis '{axis}'")


def _apply(config: Config, settings: Config, file: Path) -> Config:
    config = copy.deepcopy(config)
    files = settings.get("config", [])
    for overlay in [files] if isinstance(files, str) else files:
        path = file.parent / overlay
        config = _merge(config, _mapping(read_yaml(path), f"'{path}'"))
    for key, value in settings.items():
        if key not in ("config", "axes"):
            _set(config, str(key).split("."), value)
    return config


def _merge(old: Any, new: Any) -> Any:  # noqa: ANN401 - YAML
    """Return ``old`` with ``new`` over it; a class of another path replaces the old one with its arguments."""
    old, new = _spec(old, new), _spec(new, old)
    if not isinstance(old, dict) or not isinstance(new, dict):
        return copy.deepcopy(new)
    if "class_path" in new and new["class_path"] != old.get("class_path"):
        return copy.deepcopy(new)
    added = {key: [*old.get(key, []), *value] for key, value in new.items() if key.endswith("+")}
    return {**old, **{key: _merge(old.get(key), value) for key, value in new.items()}, **added}


def _spec(value: Any, other: Any) -> Any:  # noqa: ANN401 - YAML
    """Return a class named by its path alone as a mapping, where the other side is one."""
    alone = isinstance(value, str) and isinstance(other, Mapping) and "class_path" in other
    return {"class_path": value} if alone else value


def _set(config: Config, path: list[str], value: Any) -> None:  # noqa: ANN401 - YAML
    key, *rest = path
    if "class_path" in config and key not in ("class_path", "init_args"):
        config = config.setdefault("init_args", {})
    if not rest:
        config.update(_merge(config, {key: value}))
        return
    inner = config.get(key)
    if isinstance(inner, str):
        inner = {"class_path": inner}
    if inner is None:
        inner = {}
    config[key] = _mapping(inner, key)
    _set(inner, rest, value)


def _effective(config: Config) -> Config:
    """Return what tells a run from another: class weights are all 1 where all classes have as many images."""
    data, loss = config.get("data", {}), config.get("model", {}).get("loss")
    balanced = data.get("imbalance_factor") == 1 and data.get("subset_counts") is None
    arguments = loss.get("init_args", {}) if isinstance(loss, dict) else {}
    weighting = arguments.get("weighting")
    options = weighting.get("init_args", {}) if isinstance(weighting, dict) else {}
    if not isinstance(loss, dict) or not balanced or options.get("normalization") == "none":
        return config
    config = copy.deepcopy(config)
    config["model"]["loss"].setdefault("init_args", {})["weighting"] = None
    return config
