"""Data without training images, on which a trained network is tested."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from lt_cb.data.sources.listing import Split

Part = TypeVar("Part")
_TESTED: ContextVar[tuple[Split, list[Split]] | None] = ContextVar("_TESTED", default=None)  # asked for, and found


@contextmanager
def test_only(split: Split) -> Iterator[list[Split]]:
    """Let sources read only one split, ``test`` or ``val``, or the other one if it does not exist.

    It then stands for the training images too. Yields a list that will hold the split that was read; it stays empty for
    data without these splits, and then all images are read.
    """
    found: list[Split] = []
    token = _TESTED.set((split, found))
    try:
        yield found
    finally:
        _TESTED.reset(token)


def is_test_only() -> bool:
    """Return whether data need no training images."""
    return _TESTED.get() is not None


def with_test(splits: dict[Split, Part]) -> dict[Split, Part]:
    """Return the splits, in which validation becomes the test split if there is no other; see also `test_only`."""
    if (tested := _TESTED.get()) is None:
        if "test" not in splits and "val" in splits:
            splits["test"] = splits.pop("val")
        return splits
    order: tuple[Split, ...] = (tested[0], "test", "val")
    if (split := next((split for split in order if split in splits), None)) is None:
        return splits
    tested[1].append(split)
    return dict.fromkeys(("train", "test"), splits[split])
