"""Placement of images: on the device or in main memory if they fit, otherwise in their files."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lt_cb.data.given import find_given
from lt_cb.data.images import find_unreadable, load_images, warn_of_skipped
from lt_cb.data.loaders.epoch import EpochLoader
from lt_cb.data.loaders.resident import ResidentLoader
from lt_cb.data.loaders.streaming import StreamingLoader
from lt_cb.data.sources.listing import Paths, encode
from lt_cb.data.view import View
from lt_cb.errors import InputError
from lt_cb.hardware import available_cores, available_memory
from lt_cb.say import warn

SHARED_MEMORY = "/dev/shm"  # batches of workers come through it
_warn_once = cache(warn)  # for the loaders of all splits together
PREFETCHED = 2  # batches that each worker of a DataLoader has ready


def fits_in_memory(count: int, view: View, copies: int = 1) -> bool:
    """Return whether uint8 images take at most half of the free main memory; report it if not."""
    needed = copies * count * view.size**2 * view.channels
    return _fits(count, needed, available_memory(), "memory: they are decoded on demand")


def fits_on_device(images: Tensor, device: torch.device) -> bool:
    """Return whether images are on a device or take at most half of its free memory; report it if not."""
    if images.device == device or device.type == "cpu":
        return True
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    else:
        return False
    otherwise = f"memory on {device}: they stay in main memory, and each batch is copied"
    return _fits(len(images), images.nbytes, free, otherwise)


def fits_in_shared_memory(batch_size: int, workers: int, view: View, copies: int = 1) -> bool:
    """Return whether the batches of workers, for training and validation at once, fit in shared memory; warn if not.

    A worker that finds none left would wait for ever.
    """
    try:
        space = os.statvfs(SHARED_MEMORY)
    except OSError:  # not Linux
        return True
    free, batch = space.f_bavail * space.f_frsize, batch_size * view.size**2 * view.channels
    needed = copies * 2 * (workers * PREFETCHED + 1) * batch
    if workers and needed > free:
        _warn_once(
            f"{SHARED_MEMORY} has {free / 2**20:.0f} MiB free, but --data.num_workers {workers} needs "
            f"{needed / 2**20:.0f} MiB: images are decoded without workers, which is slower. Enlarge it (docker run "
            "--shm-size=8g), or lower --data.num_workers or --data.batch_size."
        )
    return not workers or needed <= free


def _fits(count: int, needed: int, free: int, otherwise: str) -> bool:
    if needed > free / 2:
        rank_zero_info(
            f"{count} images take {needed / 2**30:.1f} GiB, more than half of the {free / 2**30:.1f} GiB of free "
            f"{otherwise}."
        )
    return needed <= free / 2


def make_loader(
    images: Tensor | Paths,
    targets: Tensor,
    batch_size: int,
    *,
    view: View,
    device: torch.device,
    num_workers: int | None = None,
    copies: int = 1,
    **options: Any,  # noqa: ANN401
) -> EpochLoader:
    """Return a `ResidentLoader` of images or features, or a `StreamingLoader` of paths.

    Without ``num_workers``, the cores are shared among the training processes of this machine (``copies``).
    """
    if isinstance(images, Tensor):
        place = device if fits_on_device(images, device) else torch.device("cpu")
        return ResidentLoader(images, targets, batch_size, device=place, **options)
    workers = max(1, available_cores() // copies) if num_workers is None else num_workers
    if not fits_in_shared_memory(min(batch_size, len(images)), workers, view, copies):
        workers = 0
    options |= {"view": view, "num_workers": workers, "pin_memory": device.type == "cuda"}
    return StreamingLoader(images, targets, batch_size, **options)


def folder_loader(
    given: str | Sequence[str],
    view: View,
    batch_size: int = 128,
    num_workers: int | None = None,
    device: torch.device | str = "cpu",
    skip_unreadable: bool = False,
) -> tuple[list[Path], EpochLoader]:
    """Return N image files, and a loader that shows them in this order; targets are 0.

    ``given`` names images, folders, patterns or lists, see `lt_cb.data.given`.
    """
    files = find_given([given] if isinstance(given, str) else given)
    if skip_unreadable:
        unreadable = {files[row] for row in find_unreadable(files, view, "Checking images")}
        warn_of_skipped(sorted(unreadable))
        files = [file for file in files if file not in unreadable]
        if not files:
            raise InputError(f"none of the {len(unreadable)} images can be read: set --images to others.")
    images: Tensor | Paths = encode(files)
    if view.crop == "padded" and fits_in_memory(len(files), view):
        images = torch.from_numpy(load_images(files, view, "Decoding images"))
    targets = torch.zeros(len(files), dtype=torch.int64)
    device = torch.device(device)
    return files, make_loader(images, targets, batch_size, view=view, device=device, num_workers=num_workers)
