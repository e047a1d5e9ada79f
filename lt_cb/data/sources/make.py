"""Make a data set from its name."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from lt_cb.data.sources.annotations import json_files
from lt_cb.data.sources.base import Source, SourceFactory
from lt_cb.data.sources.names import MODULES, PACKAGE, ROOT, canonical_source
from lt_cb.data.sources.table_files import has_classes, tables_of
from lt_cb.errors import InputError, did_you_mean

for _module in sorted(set(MODULES.values())):  # jsonargparse knows a class by its short name once it is imported
    importlib.import_module(f"{PACKAGE}.{_module}")


def fitting_source(root: str | Path, before: str | None = None) -> str:
    """Return the data set that reads a file or folder of images; ``before`` is preferred if it can."""
    place = Path(root).expanduser()
    if place.is_file():
        return "COCO" if place.suffix.lower() == ".json" else "Manifest"
    if not place.is_dir() or (before in (None, "ImageFolder") and has_classes(place)):
        return "ImageFolder"
    if json_files(place):
        return "COCO"
    return "Manifest" if tables_of(place) and (before == "Manifest" or not has_classes(place)) else "ImageFolder"


def default_source(root: str) -> str:
    """Return the data set of a root without a source: ``Digits`` for the default root, else `fitting_source`."""
    return "Digits" if root == ROOT else fitting_source(root)


def make_source(
    source: str | SourceFactory | None, root: str, options: Mapping[str, str] = MappingProxyType({})
) -> Source:
    """Make a data set from its name, the class path of a custom one, or a factory, with further options."""
    source = default_source(root) if source is None else source
    if not isinstance(source, str):
        return _call(source, root, options)
    name = canonical_source(source)
    try:
        found = pkgutil.resolve_name(f"{PACKAGE}.{name}" if name in MODULES else name)
    except (ImportError, AttributeError, ValueError) as error:
        reason = f" ({error})" if "." in source else ""
        raise InputError(
            f"there is no data source '{source}'{reason}: choose {', '.join(MODULES)}, or give the class path of a "
            "custom source." + did_you_mean(source, MODULES)
        ) from error
    if not isinstance(found, type) or not issubclass(found, Source):
        raise InputError(f"data source '{source}' is not a subclass of lt_cb.data.Source: give one that is.")
    return _call(found, root, options)


def _call(make: Callable[..., Source], root: str, options: Mapping[str, str]) -> Source:
    """Make a data set, or name the options that it does not have."""
    try:
        return make(root, **options)
    except TypeError as error:
        if unknown := [name for name in options if f"unexpected keyword argument '{name}'" in str(error)]:
            raise InputError(
                f"--data.{unknown[0]} is {options[unknown[0]]}, but this data source has no such choice: leave it out."
            ) from error
        raise
