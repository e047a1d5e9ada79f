"""Features of a frozen backbone: computed once, and kept on disk."""

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor, nn

from lt_cb.data import LongTailedDataModule, Split
from lt_cb.data.cache import cache_file
from lt_cb.data.images import progress
from lt_cb.errors import InputError
from lt_cb.models import last_linear
from lt_cb.module import LongTailedClassifier

ROUNDING = 0.01  # of a feature, in standard deviations, that half precision may have; half of the images' noise is 0.5


class Features(NamedTuple):
    """What a frozen backbone makes of a split.

    Attributes:
        values: what the classifier is given, float16 or float32 of shape (N, D), mapped from disk.
        targets: class indices, int64 of shape (N,).
    """

    values: npt.NDArray[Any]
    targets: Tensor


def classifier_of(model: LongTailedClassifier) -> nn.Linear:
    """Return the classifier, which features are the input of.

    Raises:
        InputError: if the backbone has none.
    """
    linear = last_linear(model.backbone, model.num_classes)
    if linear is None:
        raise InputError(
            f"the backbone yields no features: it has no linear layer of {model.num_classes} outputs, one a class, as "
            "its classifier. Choose another --model.backbone."
        )
    return linear


@torch.inference_mode()
def features_of(model: LongTailedClassifier, images: Tensor) -> Tensor:
    """Return the features of a batch, float32 of shape (B, D): what the classifier is given in evaluation mode.

    Raises:
        InputError: if the classifier is not given one vector an image, or nothing at all.
    """
    kept: list[Tensor] = []
    handle = classifier_of(model).register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    training = model.training
    try:
        model.eval()(images)
    finally:
        handle.remove()
        model.train(training)
    if len(kept) != 1 or kept[0].shape[:-1] != images.shape[:1]:
        shapes = [tuple(features.shape) for features in kept]
        raise InputError(
            f"the backbone yields no features: its last linear layer is given {shapes or 'nothing'} for {len(images)} "
            "images, but must be given a vector an image. Choose another --model.backbone."
        )
    return kept[0].float()


def weights_digest(model: LongTailedClassifier) -> str:
    """Return a hash of the backbone without its classifier: modules, names and values."""
    classifier = classifier_of(model)
    own = {id(value) for value in classifier.state_dict(keep_vars=True).values()}
    digest = hashlib.sha256(repr(model.backbone).encode())
    for name, value in model.backbone.state_dict(keep_vars=True).items():
        if id(value) not in own:
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def kept_features(
    model: LongTailedClassifier, data: LongTailedDataModule, split: Split, device: torch.device | str = "cpu"
) -> Features:
    """Return the features of a split, from disk where they are, else computed and kept there.

    They lie in the cache (see `lt_cb.data.cache`), named by a hash of weights, preprocessing and images, so that those
    of another network or other images are never taken. A computation that was interrupted goes on where it was.
    They are kept in half precision unless it changes one of them by more than 1 % of its standard deviation over the
    first batch: a classifier on standardised features cannot tell.

    Args:
        model: whose backbone is frozen.
        data: images are preprocessed as for its test, without crops and flips.
        split: train, val or test.
        device: that computes.

    Raises:
        InputError: if the backbone yields no features, or they cannot be kept.
    """
    targets = data.plain_dataloader(split).targets.cpu()
    pixels = [str(v.flatten().tolist()) for v in (model.mean, model.std)]
    keys = f"features 1 {data.image_size} {data.crop}", *pixels, weights_digest(model), data.images_digest(split)
    file = cache_file(*keys).with_suffix(".npy")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            if not file.is_file():
                _compute(model.to(device), data, split, len(targets), file)
    except OSError as error:
        raise InputError(
            f"the features cannot be kept in '{file.parent}' ({error.strerror or error}): make room, or set the "
            "environment variable LT_CB_CACHE to another folder."
        ) from error
    values = np.load(file, mmap_mode="r")
    return Features(values, targets)


def _compute(model: LongTailedClassifier, data: LongTailedDataModule, split: Split, count: int, file: Path) -> None:
    partial, progress_file = file.with_suffix(".partial"), file.with_suffix(".rows")
    done, kept = 0, None
    if partial.is_file() and progress_file.is_file():
        done, kept = int(progress_file.read_text()), np.lib.format.open_memmap(partial, mode="r+")
    loader = data.plain_dataloader(split, done)
    batches: Iterable[tuple[Tensor, Tensor]] = loader
    for images, _ in progress(batches, f"Features of {split} images", len(loader)):
        values = features_of(model, images.to(model.device)).cpu().numpy()
        if kept is None:
            dtype = np.float16 if _half_suffices(values) else np.float32
            size = count * values.shape[1] * np.dtype(dtype).itemsize
            if size > shutil.disk_usage(file.parent).free:  # a mapped file of a full disk ends the process
                raise OSError(None, f"they take {size / 2**20:.0f} MiB, which are not free")
            kept = np.lib.format.open_memmap(partial, "w+", dtype, (count, values.shape[1]))
        kept[done : done + len(values)] = values
        kept.flush()
        done += len(values)
        temporary = progress_file.with_suffix(".tmp")
        temporary.write_text(str(done))
        os.replace(temporary, progress_file)  # after the features it counts
    os.replace(partial, file)
    progress_file.unlink(missing_ok=True)


def _half_suffices(values: npt.NDArray[np.float32]) -> bool:
    if not np.abs(values).max() < np.finfo(np.float16).max / 16:  # other batches may have larger ones
        return False
    error = np.sqrt(np.mean((values.astype(np.float16).astype(np.float32) - values) ** 2, 0))
    return bool((error <= ROUNDING * values.std(0))[values.std(0) > 0].all())
