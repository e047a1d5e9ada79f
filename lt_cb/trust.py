"""What a configuration may name: classes of the kind that belongs at their key, and in a checkpoint known ones only."""

import importlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from lightning.pytorch import Callback
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from lt_cb.runs import checkpoint as checkpoints
from lt_cb.commands.messages import values
from lt_cb.data import LongTailedDataModule, Sampler, Source
from lt_cb.errors import InputError
from lt_cb.losses import Loss, Weighting
from lt_cb.models import SecondStage
from lt_cb.module import LongTailedClassifier
from lt_cb.runs.folder import parse_yaml, read_yaml

PACKAGES = ("lt_cb", "torch", "torchvision", "torchmetrics", "timm", "lightning")
KINDS: dict[str, type[Any]] = {  # by config key
    "model_class": LongTailedClassifier,
    "data_class": LongTailedDataModule,
    "data.source": Source,
    "data.sampler": Sampler,
    "data.augment": nn.Module,
    "model.loss": Loss,
    "model.loss.weighting": Weighting,
    "model.backbone": nn.Module,
    "model.optimizer": Optimizer,
    "model.lr_scheduler": LRScheduler,
    "model.metrics": Metric,
    "model.second_stage": SecondStage,
    "model.mix": nn.Module,
    "trainer.logger": Logger,
    "trainer.callbacks": Callback,
    "trainer.strategy": Strategy,
    "trainer.accelerator": Accelerator,
    "trainer.profiler": Profiler,
}
TRANSFORMS = ("data.augment", "model.mix")  # of which a checkpoint names no other module
TEXTS = ("name", "folder", "ckpt_path", "data.root", "trainer.default_root_dir")  # nothing is looked up by them
PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")  # package.module.Class


def read_checkpoint(args: Sequence[str]) -> dict[str, Any] | None:
    """Return the checkpoint that ``--ckpt_path`` names, or else the last config file that does; None without one.

    Raises:
        InputError: if it cannot be read, or names what it must not.
    """
    named = [config["ckpt_path"] for config in config_files(args) if config.get("ckpt_path")]
    path = str(["null", *named, *values(args, "--ckpt_path")][-1])
    if path in ("last", "best", "hpc", "registry", "null"):
        return None
    content = checkpoints.read(path)
    if not is_trusted(args):
        check_checkpoint(checkpoints.config(content), args)
    return content


def is_trusted(args: Sequence[str]) -> bool:
    """Return whether the command line says ``--trust_checkpoint true``; a file cannot."""
    return [value.lower() for value in values(args, "--trust_checkpoint")][-1:] == ["true"]


def config_files(args: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the config files say; of one that is missing or wrong, the parser says so."""
    files = [read_yaml(Path(file)) for file in values(args, "--config") if os.path.isfile(file)]
    return [content for content in files if isinstance(content, dict)]


def check_kinds(config: Mapping[str, Any]) -> None:
    """Look whether each class that a parsed configuration names, is of the kind that its key takes.

    jsonargparse lets any callable pass where a function may stand in for a class.

    Raises:
        InputError: if one is not.
    """
    for key, path in _named(config):
        kind = KINDS.get(key)
        if kind is None or key == "model.backbone" or "." not in path:  # a backbone may be any function
            continue
        found = _import(path)
        if found is not None and not _makes(found, kind):
            raise InputError(f"--{key} is {path}, but must be a class that derives from {kind.__name__}.")


def check_checkpoint(config: Mapping[str, Any] | None, own_words: Sequence[str]) -> None:
    """Refuse what a checkpoint's configuration must not name, before any of it is imported.

    It may name classes of lt_cb and of the packages it builds on, each of the kind that its key takes, and what the
    user names too: whoever wrote the checkpoint chooses the rest, and a callable can be ``os.system``.

    Args:
        config: of the checkpoint, None without one.
        own_words: the user's command line.

    Raises:
        InputError: naming the first that is refused.
    """
    if config is None:
        return
    named = set(_own_paths(own_words))
    for key, path in _named(config, strict=True):
        if path not in named and not _is_known(key, path):
            raise InputError(
                f"the checkpoint names {path!r} for {key or 'its configuration'}, which is not a class known to be "
                "harmless there: if you trust who made it, set --trust_checkpoint true, or name the class yourself, "
                f"by --{key or 'config'}."
            )


def _named(config: Any, key: str = "", strict: bool = False) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - YAML
    """Yield key and name of each class; strictly, also of all that could be taken for one, or for a file of them."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            if name == "class_path":
                yield key, str(value)
            else:
                own = str(name).rstrip("+")
                inner = key if own in ("init_args", "dict_kwargs") else f"{key}.{own}".strip(".")
                yield from _named(value, inner, strict)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _named(value, key, strict)
    elif isinstance(config, str) and key not in TEXTS:
        if not strict:
            if key in KINDS and PATH.fullmatch(config):
                yield key, config
            return
        try:
            parsed = yaml.safe_load(config)  # as jsonargparse does with a text in the place of a class
        except (yaml.YAMLError, ValueError):
            parsed = None
        if isinstance(parsed, Mapping | list):
            yield from _named(parse_yaml(config, f"{key} in the checkpoint"), key, strict)
        elif _looks_importable(config) or (len(config) < 1000 and "\0" not in config and os.path.isfile(config)):
            yield key, config


def must_be_trusted(key: str, path: str) -> bool:
    """Return whether a checkpoint that names this for a key is not loaded without being trusted."""
    return _looks_importable(path) and not _is_known(key, path)


def _looks_importable(text: str) -> bool:
    return PATH.fullmatch(text) is not None and find_spec(text.partition(".")[0]) is not None


def _is_known(key: str, path: str) -> bool:
    if "." not in path:
        return key in KINDS and not os.path.isfile(path)  # a short name, of which jsonargparse knows its subclasses
    parts = path.split(".")
    if key not in KINDS or parts[0] not in PACKAGES or any(part.startswith("_") for part in parts):
        return False
    found = _import(path)
    if key == "model.backbone" and getattr(found, "__module__", "") == "lt_cb.models.resnet":
        return True
    if key in TRANSFORMS and not getattr(found, "__module__", "").startswith(("torchvision.transforms", "lt_cb.")):
        return False
    if not isinstance(found, type) or found.__module__.partition(".")[0] not in PACKAGES:
        return False
    return issubclass(found, KINDS[key])


def _import(path: str) -> Any:  # noqa: ANN401 - what it names
    """Return what a path names, None if there is none: whoever makes it says so."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError):  # the last of a name that begins with a dot
        return None


def _makes(found: Any, kind: type[Any]) -> bool:  # noqa: ANN401 - anything
    """Return whether it is a class of this kind, or a function that says it returns one."""
    if not isinstance(found, type):
        try:
            found = get_type_hints(found).get("return")
        except (NameError, TypeError, AttributeError):
            return False
    return isinstance(found, type) and issubclass(found, kind)


def _own_paths(words: Sequence[str]) -> Iterator[str]:
    """Yield the class paths that a command line and its config files name."""
    options = [word.partition("=") for word in words]
    following: Iterable[str] = [*words[1:], ""]
    for (option, equals, value), after in zip(options, following, strict=False):
        given = value if equals else after
        if not option.startswith("--") or option.removeprefix("--") in (*TEXTS, "images"):
            continue
        if option == "--config" and os.path.isfile(given):
            yield from _paths(read_yaml(Path(given)))
        elif PATH.fullmatch(given):
            yield given
        else:
            try:
                yield from _paths(yaml.safe_load(given))
            except (yaml.YAMLError, ValueError):
                continue  # the parser says what is wrong


def _paths(value: Any) -> Iterator[str]:  # noqa: ANN401 - YAML
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _paths(inner)
    if isinstance(value, str) and PATH.fullmatch(value):
        yield value
