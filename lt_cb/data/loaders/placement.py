"""Where images are: on the device or in main memory if they fit, else in their files until they are asked for."""

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lt_cb.data.images import Interpolation
from lt_cb.data.loaders.epoch import EpochLoader
from lt_cb.data.loaders.resident import FeatureLoader, ResidentLoader
from lt_cb.data.loaders.streaming import Crop, StreamingLoader
from lt_cb.data.sources.base import FileSource, Source
from lt_cb.data.sources.listing import Paths
from lt_cb.hardware import available_cores, available_memory


def must_stream(source: Source, crop: Crop, copies: int) -> bool:
    """Return whether the images of a source are decoded as they are asked for, else held by each of some processes."""
    if not isinstance(source, FileSource) or crop == "resized":
        return crop == "resized"  # which is cut from the files
    count = sum(len(source.listing(split).paths) for split in source.splits)
    return not fits_in_memory(count, source.image_size, source.channels, copies)


def fits_in_memory(count: int, image_size: int, channels: int, copies: int = 1) -> bool:
    """Return whether uint8 images take at most half of the free main memory, and say if not."""
    needed, free = copies * count * image_size**2 * channels, available_memory()
    if needed > free / 2:
        rank_zero_info(
            f"{count} images take {needed / 2**30:.1f} GiB, more than half of the {free / 2**30:.1f} GiB of memory "
            "that are free: they are decoded as they are asked for."
        )
    return needed <= free / 2


def fits_on_device(images: Tensor, device: torch.device) -> bool:
    """Return whether images are on a device, or take at most half of its free memory, and say if not."""
    if images.device == device:
        return True
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    else:
        return False
    if images.nbytes > free / 2:
        rank_zero_info(
            f"{len(images)} images take {images.nbytes / 2**30:.1f} GiB, more than half of the {free / 2**30:.1f} GiB "
            f"that are free on {device}: they stay in main memory, and each batch is copied."
        )
    return images.nbytes <= free / 2


def make_loader(
    images: Tensor | Paths,
    targets: Tensor,
    batch_size: int,
    *,
    device: torch.device,
    image_size: int,
    channels: int,
    crop: Crop,
    interpolation: Interpolation = "bilinear",
    strict: bool = False,
    num_workers: int | None = None,
    copies: int = 1,
    **options: Any,  # noqa: ANN401
) -> EpochLoader:
    """Return a `ResidentLoader` of images, `FeatureLoader` or `StreamingLoader` of paths; the arguments are theirs.

    Without ``num_workers``, as many processes decode as there are cores for each of ``copies`` processes that train.
    """
    if isinstance(images, Tensor):
        kept = device if fits_on_device(images, device) else torch.device("cpu")
        made = FeatureLoader if images.ndim == 2 else ResidentLoader
        return made(images, targets, batch_size, device=kept, **options)
    return StreamingLoader(
        images,
        targets,
        batch_size,
        image_size=image_size,
        channels=channels,
        crop=crop,
        interpolation=interpolation,
        strict=strict,
        num_workers=max(1, available_cores() // copies) if num_workers is None else num_workers,
        pin_memory=device.type == "cuda",
        **options,
    )
