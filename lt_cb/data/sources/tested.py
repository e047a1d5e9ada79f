"""Data without training images, on which a trained network is tested."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from lt_cb.data.sources.listing import Split

Part = TypeVar("Part")
_ORDER: ContextVar[tuple[Split, ...]] = ContextVar("_ORDER", default=())  # the first split that exists is read
_FOUND: ContextVar[list[Split]] = ContextVar("_FOUND")


@contextmanager
def test_only(split: Split) -> Iterator[list[Split]]:
    """Let sources read only one split, ``test`` or ``val``, or the other one if it does not exist.

    It then stands for the training images too. Yields a list that will hold the split that was read; it stays empty for
    data without these splits, and then all images are read.
    """
    kept: list[Split] = []
    order, found = _ORDER.set((split, "test", "val")), _FOUND.set(kept)
    try:
        yield kept
    finally:
        _ORDER.reset(order)
        _FOUND.reset(found)


def is_test_only() -> bool:
    """Return whether data need no training images."""
    return bool(_ORDER.get())


def tested_part(splits: dict[Split, Part]) -> dict[Split, Part]:
    """Return the part to test on for both train and test, if there is one."""
    found = [split for split in _ORDER.get() if split in splits][:1]
    _FOUND.get().extend(found)
    return dict.fromkeys(("train", "test"), splits[found[0]]) if found else splits
