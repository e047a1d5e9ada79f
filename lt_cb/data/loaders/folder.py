"""Load a folder of images without classes, for predictions."""

from pathlib import Path

import torch
from torch import Tensor

from lt_cb.data.images import find_unreadable, load_images, warn_of_skipped
from lt_cb.data.loaders.epoch import EpochLoader
from lt_cb.data.loaders.placement import fits_in_memory, make_loader
from lt_cb.data.sources.listing import Paths, encode
from lt_cb.data.sources.tree import find_images
from lt_cb.data.view import View
from lt_cb.errors import InputError


def folder_loader(
    folder: str,
    view: View,
    batch_size: int = 128,
    num_workers: int | None = None,
    device: torch.device | str = "cpu",
    skip_unreadable: bool = False,
) -> tuple[list[Path], EpochLoader]:
    """Return the N image files under a folder, sorted, and a loader that shows them in this order; targets are 0."""
    if not folder:
        raise InputError("predict needs images: set --images to a folder of images.")
    files = find_images(Path(folder)) if Path(folder).is_dir() else []
    if not files:
        raise InputError(f"there are no images in '{folder}': set --images to a folder of images.")
    if skip_unreadable:
        unreadable = [files[row] for row in find_unreadable(files, view, "Checking images")]
        warn_of_skipped(unreadable)
        files = sorted(set(files) - set(unreadable))
        if not files:
            raise InputError(f"no image in '{folder}' can be read: set --images to another folder.")
    images: Tensor | Paths = encode(files)
    if view.crop == "padded" and fits_in_memory(len(files), view):
        images = torch.from_numpy(load_images(files, view, "Decoding images"))
    targets = torch.zeros(len(files), dtype=torch.int64)
    device = torch.device(device)
    return files, make_loader(images, targets, batch_size, view=view, device=device, num_workers=num_workers)
