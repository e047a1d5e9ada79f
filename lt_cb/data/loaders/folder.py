"""Batches of a folder of images without classes, to predict."""

import os
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lt_cb.data.images import Interpolation, UnreadableError, find_images, find_unreadable, load_images
from lt_cb.data.loaders.epoch import EpochLoader
from lt_cb.data.loaders.placement import fits_in_memory, make_loader
from lt_cb.data.loaders.streaming import Crop
from lt_cb.data.sources.listing import Paths
from lt_cb.errors import InputError, enumerate_names


def folder_loader(
    folder: str,
    image_size: int,
    channels: int,
    crop: Crop = "padded",
    interpolation: Interpolation = "bilinear",
    batch_size: int = 128,
    num_workers: int | None = None,
    device: torch.device | str = "cpu",
    skip_unreadable: bool = False,
) -> tuple[list[Path], EpochLoader]:
    """Return the image files under a folder, sorted, and a loader of them in that order, cropped as for testing.

    Args:
        folder: is searched with all folders in it.
        image_size: height and width that the network was trained at, in pixels.
        channels: 3 for RGB, 1 for grey.
        interpolation: of images that are scaled.
        crop: as of training: after ``resized``, the square at the centre without a margin is shown.
        batch_size: images a batch.
        num_workers: processes that decode what is not in memory; None is one for each core.
        device: that predicts.
        skip_unreadable: leave out what cannot be read as an image, and warn of it.

    Returns:
        N files, and a loader of (images, targets) whose targets are 0.

    Raises:
        InputError: if there are no images.
    """
    if not folder:
        raise InputError("predict needs images: set --images to a folder of images.")
    files = find_images(Path(folder)) if Path(folder).is_dir() else []
    if not files:
        raise InputError(f"there are no images in '{folder}': set --images to a folder of images.")
    held = crop == "padded" and fits_in_memory(len(files), image_size, channels)
    if skip_unreadable:
        rows = set(find_unreadable(files, image_size, channels, "Decoding images", interpolation, held).tolist())
        refused = [str(files[row]) for row in sorted(rows)]
        files = [file for row, file in enumerate(files) if row not in rows]
        if refused:
            rank_zero_warn(
                f"{len(refused)} images cannot be read and are left out: {enumerate_names(refused)}.", stacklevel=1
            )
        if not files:
            raise InputError(f"no image in '{folder}' can be read: set --images to another folder.")
    if held:
        try:
            decoded = load_images(files, image_size, channels, "Decoding images", interpolation)
        except UnreadableError as error:
            raise UnreadableError(f"{error} Or set --on_unreadable skip, which leaves it out.") from error
        images: Tensor | Paths = torch.from_numpy(decoded)
    else:
        images = np.array([os.fsencode(file) for file in files], bytes)
    return files, make_loader(
        images,
        torch.zeros(len(files), dtype=torch.int64),
        batch_size,
        device=torch.device(device),
        image_size=image_size,
        channels=channels,
        crop=crop,
        interpolation=interpolation,
        num_workers=num_workers,
    )
