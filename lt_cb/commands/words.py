"""Words of the command line before they are parsed: environment, ``--config``, and the options that come first."""

import argparse
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]
from jsonargparse.typing import Path_fr

from lt_cb.errors import InputError, near_file
from lt_cb.runs.folder import ENVIRONMENT, LATEST, is_option, linked, parse_yaml, read_yaml, shipped

FIRST = ("ckpt_path", "model_class", "data_class", "trust_checkpoint")  # they decide how the rest is read
LOSS, ADAPTER = "model.loss", "model.adapter"  # defaults depend on them
SEPARATOR = "\0"  # between several values of one option: no word has it


class ConfigFile(ActionConfigFile):
    """``--config``: a path, ``~``, ``file://``, the name of a shipped file, or YAML."""

    skipped: tuple[str, ...] = ()  # options that no file sets

    def __call__(self, parser: Any, config: Namespace, value: Any, option: str | None = None) -> None:  # type: ignore[override]  # noqa: ANN401
        """Apply a configuration over the options before it."""
        kept = {key: config.get(key) for key in self.skipped}
        super().__call__(parser, config, shipped(value), option)  # type: ignore[no-untyped-call]
        for key, value in kept.items():
            config[key] = value


@cache
def resetting(action_class: type[argparse.Action]) -> type[argparse.Action]:
    """Return an action that forgets the options of a class when another class replaces it.

    jsonargparse keeps the options that both classes have: "softmax" over a configuration of class-balanced focal loss
    would be class-balanced softmax.
    """

    class Resetting(action_class):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as jsonargparse calls it
            if len(args) == 4:
                parser, config, value, option = args
                probe = config.clone()
                super().__call__(parser, probe, value, option, **kwargs)
                for key in list(_new_classes(config, probe)):
                    config[key] = None
            return super().__call__(*args, **kwargs)

    return Resetting


def _new_classes(before: Namespace, after: Namespace, prefix: str = "") -> Iterator[str]:
    """Yield the keys at which one class has replaced another."""
    for name, old in vars(before).items():
        new = after.get(name)
        if isinstance(old, Namespace) and isinstance(new, Namespace):
            if old.get("class_path") != new.get("class_path"):
                yield f"{prefix}{name}"
            else:
                yield from _new_classes(old, new, f"{prefix}{name}.")


def read_config(value: str) -> dict[str, Any]:
    """Return the settings of a ``--config`` value: a path, ``~``, ``file://``, a shipped name, or YAML."""
    value = shipped(value)
    try:
        file = Path_fr(value)
    except TypeError:  # no file
        settings = parse_yaml(value, "--config") if "\n" in value or ":" in value else None
        if not isinstance(settings, dict):
            raise InputError(
                f"there is no configuration file '{value}': give the path of a YAML file.{near_file(value)}"
            ) from None
    else:
        settings = read_yaml(Path(file.absolute), value)
        if not isinstance(settings, dict):
            raise InputError(f"'{value}' is not a configuration: write options as 'key: value'.")
    for key in ("trainer", "model", "data"):
        if not isinstance(settings.get(key, {}), dict):
            given = "null" if settings[key] is None else str(settings[key])[:80]
            raise InputError(
                f"{key} is {given} in a configuration file, but must be a mapping of its options: write them below it, "
                "or leave it out."
            )
    return settings


def environment() -> Iterator[str]:
    """Yield the options that environment variables set, a class before its options."""
    for name in sorted(os.environ):
        if is_option(name):
            yield f"--{name.removeprefix(ENVIRONMENT).lower().replace('__', '.')}={os.environ[name]}"


def shell_command(*words: str) -> str:
    """Return a line that starts lt-cb with words in a shell, as this process was started."""
    program, path = Path(sys.executable).with_name("lt-cb"), os.environ.get("PYTHONPATH")
    start = [str(program)] if program.exists() else [sys.executable, "-m", "lt_cb"]
    if "UV_RUN_RECURSION_DEPTH" in os.environ:
        start = ["uv", "run", "lt-cb"]
    elif shutil.which("lt-cb") == str(program):
        start = ["lt-cb"]
    return ("" if not path else f"PYTHONPATH={shlex.quote(path)} ") + shlex.join([*start, *words])


def joined(words: Sequence[str]) -> list[str]:
    """Return the words with all values behind an option as one, as the shell writes a pattern out as its files."""
    options = ("--ckpt_path", "--images")
    joined: list[str] = []
    behind = False
    for word in words:
        if behind and not word.startswith("-") and joined[-1] not in options:
            joined[-1] += SEPARATOR + word
            continue
        behind = word in options or (behind and not word.startswith("-"))
        joined.append(word)
    return joined


def checkpoint_paths(value: Any) -> list[str]:  # noqa: ANN401 - of a configuration or the command line
    """Return the files of ``--ckpt_path``: one, several as `joined` writes them, a list in YAML, or none."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]") and not os.path.exists(value):
        value = parse_yaml(value, "--ckpt_path")
    paths = value.split(SEPARATOR) if isinstance(value, str) else [] if value is None else value
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise InputError(f"ckpt_path is {value!r}, but must be the path of a checkpoint, or a list of paths.")
    paths = [str(linked(Path(path))) if LATEST in path else path for path in paths if path]
    files = [os.path.realpath(path) for path in paths]
    if repeated := [path for i, path in enumerate(paths) if files[i] in files[:i]]:
        raise InputError(f"--ckpt_path has '{repeated[0]}' twice: give each checkpoint once.")
    return paths


def class_options(words: Sequence[str]) -> list[str]:
    """Return the words with ``--model PATH`` and ``--data PATH`` written as ``--model_class`` and ``--data_class``."""
    return [re.sub(r"^--(model|data)(=|$)", r"--\1_class\2", word) for word in words]


class _Note(argparse.Action):
    """Notes an option, or the options of a configuration."""

    def __call__(self, parser: Any, found: Any, value: Any, option: str | None = None) -> None:  # noqa: ANN401
        settings: dict[str, Any] = {self.dest: None if value == "null" else value}
        if self.dest == "config":
            settings = read_config(value)
        if FIRST[0] in settings:
            settings[FIRST[0]] = checkpoint_paths(settings[FIRST[0]])
        for name in FIRST[1:3]:
            if not isinstance(settings.get(name), str | None):
                raise InputError(f"{name} is {settings[name]!r} in a configuration file, but must be a text or null.")
        if ADAPTER not in settings and "adapter" in settings.get("model", {}):
            settings[ADAPTER] = settings["model"]["adapter"]
        loss = settings.get("model", {}).get("loss")
        if isinstance(loss, str) or (isinstance(loss, dict) and "class_path" in loss):
            settings[LOSS] = loss
        vars(found).update({name: value for name, value in settings.items() if name in (*FIRST, LOSS, ADAPTER)})


def first_look(words: Sequence[str]) -> dict[str, Any]:
    """Return the options that must be known before the others can be parsed; `CommandLine` compares them afterwards."""
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    reader.add_argument("-c", "--config", action=_Note)
    for name in (*FIRST, LOSS, ADAPTER):
        reader.add_argument(f"--{name}", action=_Note)
    return vars(reader.parse_known_args(words)[0])
