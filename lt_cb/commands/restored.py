"""Settings that a checkpoint brings, and the classes that a configuration may name.

A checkpoint brings numbers, never behaviour. Of the configuration inside it, only ``model``, ``data`` and the plain
values of ``trainer`` are read. Class paths must be classes known here. Values are never taken for files or for YAML.
"""

import importlib
import inspect
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torchmetrics
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lt_cb.data import LongTailedDataModule, Sampler, Source
from lt_cb.data.sources.names import canonical_source
from lt_cb.errors import InputError
from lt_cb.losses import Loss, Weighting
from lt_cb.models import SecondStage
from lt_cb.models.build import OURS, is_timm
from lt_cb.module import LongTailedClassifier
from lt_cb.runs.folder import RunDir


class Kind(NamedTuple):
    """Classes that an option takes, and the modules whose classes a checkpoint may name."""

    base: type[Any]
    modules: tuple[str, ...] = ()


KINDS = {
    "model_class": Kind(LongTailedClassifier, ("lt_cb.sam",)),
    "data_class": Kind(LongTailedDataModule),
    "data.source": Kind(Source, ("lt_cb.data.sources",)),
    "data.sampler": Kind(Sampler, ("lt_cb.longtail", "lt_cb.data")),
    "data.augment": Kind(nn.Module, ("torchvision.transforms.v2",)),
    "model.loss": Kind(Loss, ("lt_cb.losses",)),
    "model.loss.weighting": Kind(Weighting, ("lt_cb.losses",)),
    "model.optimizer": Kind(Optimizer, ("torch.optim",)),
    "model.lr_scheduler": Kind(LRScheduler, ("torch.optim.lr_scheduler", "lt_cb.schedule", "lightning.pytorch.cli")),
    "model.metrics": Kind(torchmetrics.Metric, ("torchmetrics.classification",)),
    "model.second_stage": Kind(SecondStage, ("lt_cb.models",)),
    "model.mix": Kind(nn.Module, ("torchvision.transforms.v2",)),
}
NOT_RESTORED = ("callbacks", "logger", "plugins", "profiler", "default_root_dir", "fast_dev_run", "model_registry")
FILES = ("pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")  # timm's; the weights are at hand
WORD = re.compile(r"[\w+-]*")  # a text that names nothing to import
CLASS_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


class _RefusedError(Exception):
    """Raised with a value that a checkpoint may not bring."""


def plain_settings(config: Mapping[str, Any], trusted: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings that a command takes over from a checkpoint's configuration, and by key the values left out.

    Values are left out because they could run code; `check_named` asks for them. ``trusted`` (``--trust_checkpoint``)
    lets the checkpoint name any class for model and data.
    """
    settings: dict[str, Any] = {"trainer": {}, "model": {}, "data": {}}
    refused: dict[str, Any] = {}
    if isinstance(seed := config.get("seed_everything"), int):
        settings["seed_everything"] = seed
    for name, value in _named(config.get("trainer", {})):
        if name not in NOT_RESTORED and _is_plain(value):
            settings["trainer"][name] = value
    for group in ("model", "data"):
        for name, value in _named(config.get(group, {})):
            try:
                settings[group][name] = value if trusted else _plain(f"{group}.{name}", value)
            except _RefusedError as error:
                refused[f"{group}.{name}"] = error.args[0]
        options = settings[group]
        if not trusted and options.get("adapter") and isinstance(args := config[group].get("backbone_args"), Mapping):
            refused |= {f"{group}.backbone_args.{name}": value for name, value in args.items() if name in FILES}
        if path := config.get(f"{group}_class"):
            known = trusted or (isinstance(path, str) and is_known(f"{group}_class", path))
            (settings if known else refused)[f"{group}_class"] = path
    return settings, refused


def _named(options: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the options with plain names: jsonargparse obeys others, such as ``loss.class_path`` and ``metrics+``."""
    return ((name, value) for name, value in options.items() if isinstance(name, str) and name.isidentifier())


def check_named(refused: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise InputError for the first value left out by `plain_settings` that the user's configuration does not name."""
    for key, value in refused.items():
        found: Any = config
        for name in key.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
        is_file = key.rpartition(".")[2] in FILES  # weights, which the user may have elsewhere
        if found is None if is_file else value not in [path for _, path in _class_paths(found, key)]:
            kind = "a file" if is_file else "not a class known here"
            raise InputError(
                f"the checkpoint names {value!r} for {key}, which is {kind}: name it yourself, by "
                "--config with the run's config.yaml, or set --trust_checkpoint true if you trust who made it."
            )


def is_known(key: str, path: str) -> bool:
    """Return whether a checkpoint may name this class, or this network, for an option."""
    module, _, name = path.rpartition(".")
    if key == "model.backbone":
        return path in OURS or module == "lt_cb.models" or is_timm(path)
    kind = KINDS.get(key)
    if kind is None or name.startswith("_") or not f"{module}.".startswith(tuple(f"{m}." for m in kind.modules)):
        return False
    found = _import(path)
    return isinstance(found, type) and issubclass(found, kind.base)


def names_of(key: str) -> list[str]:
    """Return the names of the known classes for an option, sorted."""
    return sorted({cls.__name__ for cls in _known_classes(key) if not cls.__name__.startswith("_")})


def options_of(key: str) -> set[str]:
    """Return the names of the options that the known classes for an option take."""
    return {name for cls in _known_classes(key) for name in inspect.signature(cls).parameters}


def _known_classes(key: str) -> list[type[Any]]:
    kind = KINDS.get(key)
    return [] if kind is None else [cls for cls in _subclasses(kind.base) if cls.__module__.startswith(kind.modules)]


def _subclasses(base: type[Any]) -> Iterator[type[Any]]:
    for cls in base.__subclasses__():
        yield cls
        yield from _subclasses(cls)


def _plain(key: str, value: Any, is_text: bool = True) -> Any:  # noqa: ANN401 - YAML
    """Return a value that a checkpoint may bring for an option, or raise _RefusedError with the value.

    ``is_text`` tells that a text of the option is used as a text; other texts must not name files or modules.
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list):
        return [_plain(key, item, is_text) for item in value]
    if key in KINDS:
        return _plain_class(key, value)
    if isinstance(value, Mapping) and key == "model.backbone_args":
        return {k: _plain(f"{key}.{k}", v, False) for k, v in _named(value) if k not in FILES}
    if isinstance(value, str) and (is_known(key, value) if key == "model.backbone" else is_text or _is_plain(value)):
        return value
    raise _RefusedError(value)


def _plain_class(key: str, value: Any) -> dict[str, Any]:  # noqa: ANN401 - YAML
    if isinstance(value, str):
        value = {"class_path": f"lt_cb.data.sources.{canonical_source(value)}" if key == "data.source" else value}
    path = value.get("class_path") if isinstance(value, Mapping) else None
    if not isinstance(path, str) or {*value} - {"class_path", "init_args"} or not is_known(key, path):
        raise _RefusedError(path if isinstance(path, str) else value)
    options, is_text = value.get("init_args") or {}, path.startswith("lt_cb.")
    if not isinstance(options, Mapping):
        raise _RefusedError(options)
    return {"class_path": path, "init_args": {k: _plain(f"{key}.{k}", v, is_text) for k, v in _named(options)}}


def _is_plain(value: Any) -> bool:  # noqa: ANN401 - YAML
    """Return whether a value is a number, a word that is no file's name, or a list of them."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, str):  # jsonargparse would read a file of this name
        return WORD.fullmatch(value) is not None and not os.path.exists(value)
    return value is None or isinstance(value, bool | int | float)


def _class_paths(config: Any, key: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401 - YAML
    """Yield option and path of each class in a configuration."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            if name == "class_path":
                yield key, str(value)
            else:
                yield from _class_paths(value, key if name == "init_args" else f"{key}.{name}".strip("."))
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _class_paths(value, key)
    elif isinstance(config, str) and (key in KINDS or key == "model.backbone") and CLASS_PATH.fullmatch(config):
        yield key, config


def _import(path: str) -> Any:  # noqa: ANN401 - an object
    """Return the object of a path, None if it cannot be imported."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError):
        return None


def place_of(path: str, name: Any) -> dict[str, Any]:  # noqa: ANN401 - of a checkpoint
    """Return the options that put new runs beside the run of a checkpoint, or below its name if it was moved."""
    if (run := RunDir.of(path)) is None:
        return {"name": name} if re.fullmatch(r"[\w-]+", str(name)) else {}
    above = run.path.absolute().parent
    root = above.parent.relative_to(Path.cwd()) if above.parent.is_relative_to(Path.cwd()) else above.parent
    return {"name": above.name, "trainer": {"default_root_dir": str(root)}}


def custom_class(which: str, path: Any, default: type[Any]) -> type[Any]:  # noqa: ANN401 - of a configuration
    """Return the class of a path, or the default."""
    if not path:
        return default
    module, _, name = str(path).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InputError(f"--{which} is '{path}', which cannot be imported ({error}): give a class path.") from error
    if not isinstance(found, type) or not issubclass(found, default):
        raise InputError(f"--{which} is '{path}', but must be a class that derives from {default.__name__}.")
    return found
