"""Where images come from. A source of your own derives from `Source` and is named by its class path."""

import importlib
from typing import Any, cast

from lt_cb.data.sources.arrays import CIFAR10, CIFAR100, Checkpoint, Digits, FashionMNIST
from lt_cb.data.sources.base import FileSource, Source, Split
from lt_cb.data.sources.files import (
    ILSVRC2012,
    ImageFolder,
    ImageNetLT,
    INaturalist2017,
    INaturalist2018,
    Manifest,
    PlacesLT,
)
from lt_cb.errors import InputError, did_you_mean

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "ILSVRC2012",
    "SOURCES",
    "Checkpoint",
    "Digits",
    "FashionMNIST",
    "FileSource",
    "INaturalist2017",
    "INaturalist2018",
    "ImageFolder",
    "ImageNetLT",
    "Manifest",
    "PlacesLT",
    "Source",
    "Split",
    "make_source",
]

SOURCES: dict[str, type[Source]] = {
    "digits": Digits,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "fashion_mnist": FashionMNIST,
    "image_folder": ImageFolder,
    "inat2017": INaturalist2017,
    "inat2018": INaturalist2018,
    "ilsvrc2012": ILSVRC2012,
    "imagenet_lt": ImageNetLT,
    "places_lt": PlacesLT,
    "manifest": Manifest,
}


def make_source(name: str, root: str, image_size: int | None) -> Source:
    """Return the source of a short name, or of the class path of one's own.

    Args:
        name: a key of ``SOURCES`` or ``package.module.Class``, which is called with ``root``.
        root: folder of the data.
        image_size: for a `FileSource`, which scales while decoding.

    Raises:
        InputError: (a ValueError) if there is no such source.
    """
    cls: type[Any] | None = SOURCES.get(name)
    module, _, attribute = name.rpartition(".")
    try:
        cls = cls or cast(type[Any], getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError, ValueError) as error:
        if module and not isinstance(error, ImportError | AttributeError):
            raise
        raise InputError(
            f"there is no data source '{name}': choose {', '.join(SOURCES)}, or give the class path of your own."
            + did_you_mean(name, SOURCES)
        ) from error
    scales = isinstance(cls, type) and issubclass(cls, FileSource)
    return cast(Source, cls(root, image_size) if scales else cls(root))
