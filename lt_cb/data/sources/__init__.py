"""Where images come from. A source of your own derives from `Source` and is named by its class path."""

import importlib

from lt_cb.data.sources.arrays import CIFAR10, CIFAR100, Digits, FashionMNIST
from lt_cb.data.sources.base import Source, SourceFactory
from lt_cb.data.sources.coco import COCO
from lt_cb.data.sources.files import (
    ILSVRC2012,
    ImageFolder,
    ImageNetLT,
    INaturalist2017,
    INaturalist2018,
    Manifest,
    PlacesLT,
)
from lt_cb.data.sources.side_by_side import SideBySide
from lt_cb.errors import InputError, did_you_mean

SOURCES: dict[str, type[Source]] = {
    "digits": Digits,
    "side_by_side": SideBySide,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "fashion_mnist": FashionMNIST,
    "image_folder": ImageFolder,
    "inat2017": INaturalist2017,
    "inat2018": INaturalist2018,
    "ilsvrc2012": ILSVRC2012,
    "imagenet_lt": ImageNetLT,
    "places_lt": PlacesLT,
    "coco": COCO,
    "manifest": Manifest,
}


SOURCES |= {cls.__name__: cls for cls in SOURCES.values()}


def make_source(source: str | SourceFactory, root: str) -> Source:
    """Return the source of a short name, of the class path of one's own, or that a factory makes of its root."""
    if not isinstance(source, str):
        return source(root)
    if source in SOURCES:
        return SOURCES[source](root)
    module, _, attribute = source.rpartition(".")
    try:
        factory: SourceFactory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        if module.strip(".") == module != "" and isinstance(error, TypeError | ValueError):
            raise  # of a module of one's own
        raise InputError(
            f"there is no data source '{source}': choose {', '.join(SOURCES)}, or give the class path of your own."
            + did_you_mean(source, SOURCES)
        ) from error
    if not isinstance(factory, type) or not issubclass(factory, Source):  # what is no source is not even called
        raise InputError(f"data source '{source}' is no class that derives from lt_cb.data.Source: give one that does.")
    return factory(root)
