"""Load image files as one uint8 array: decoded in threads with a progress bar, and cached on disk."""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.progress import track

from lt_cb.data.cache import cached
from lt_cb.data.decode import Images, decode, decode_region
from lt_cb.data.view import View
from lt_cb.errors import InputError, enumerate_names
from lt_cb.longtail.subset import Indices
from lt_cb.say import warn

Item = TypeVar("Item")


def progress(items: Iterable[Item], label: str, count: int) -> Iterable[Item]:
    """Iterate with a progress bar on a terminal, silently elsewhere."""
    return track(items, label, count, transient=True, disable=not sys.stdout.isatty())


def load_images(files: Sequence[Path], view: View, label: str) -> Images:
    """Decode image files to shape (N, size, size, channels), or read them from the cache of an earlier call."""

    def make() -> Images:
        images = np.empty((len(files), view.size, view.size, view.channels), np.uint8)

        def decode_into(i: int) -> None:
            images[i] = decode(files[i], view)

        if errors := call_with_each(decode_into, len(files), label):
            first, *others = sorted(errors)
            names = enumerate_names([str(files[i]) for i in others])
            more = f" {len(others)} more are refused: {names}." if others else ""
            raise type(errors[first])(f"{errors[first]}{more}")
        return images

    return cached("images", files, "decodes the images", make, f"1 {view.cache_key()}")


def find_unreadable(files: Sequence[Path], view: View, label: str) -> Indices:
    """Return the sorted positions of files that cannot be read as images; cached until a file changes."""

    def decode_all(i: int) -> None:
        decode_region(files[i], lambda width, height: (0, 0, width, height), view)

    def make() -> Indices:
        return np.array(sorted(call_with_each(decode_all, len(files), label)), np.int64)

    return cached("rows", files, "looks for unreadable images", make, "unreadable 1")


def warn_of_skipped(files: Sequence[Path]) -> None:
    """Warn of unreadable image files, if there are any."""
    if files:
        names = enumerate_names([str(file) for file in files])
        warn(f"{len(files)} images cannot be read and are skipped: {names}.")


def call_with_each(function: Callable[[int], object], count: int, label: str) -> dict[int, InputError]:
    """Call a function with 0 ... count - 1 in threads, show the progress, and return its errors by argument."""
    errors: dict[int, InputError] = {}

    def call(i: int) -> None:
        try:
            function(i)
        except InputError as error:
            errors[i] = error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for _ in progress(pool.map(call, range(count)), label, count):
                pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return errors
