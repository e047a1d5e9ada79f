"""Features before the classifier of a frozen network, computed once through Lightning's Trainer and kept on disk."""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lt_cb.data import LongTailedDataModule
from lt_cb.data.cache import cache_file, reserve, stamp
from lt_cb.data.loaders.epoch import EpochLoader
from lt_cb.data.sources.base import FileSource, Source, Split
from lt_cb.errors import InputError
from lt_cb.evaluation import Batch
from lt_cb.models import last_linear
from lt_cb.module import LongTailedClassifier

MACHINE = ("accelerator", "strategy", "devices", "num_nodes", "precision", "enable_progress_bar")
CPU_BATCH = 32  # twice as fast as 128, whose activations leave the cache, and are mapped anew for each layer
FLUSH_SECONDS = 10.0
Features = npt.NDArray[np.float32]


def classifier_of(model: LongTailedClassifier) -> nn.Linear:
    """Return the last layer of a network, whose input are its features.

    Raises:
        InputError: if it has none, or one without a bias, which no linear head could be put into.
    """
    linear = last_linear(model.backbone, model.num_classes)
    if linear is None:
        raise InputError(
            f"the backbone has no linear layer of {model.num_classes} outputs, one a class, so that it yields no "
            "features before its classifier: choose a backbone with one."
        )
    if linear.bias is None and not model.loss.normalized_classifier:
        raise InputError("the backbone's classifier has no bias, which a head needs: choose another backbone.")
    return linear


def feature_trainer(options: Mapping[str, Any]) -> Trainer:
    """Return a Trainer for `frozen_features`, on the machine that the options of another are for."""
    machine = {name: options[name] for name in MACHINE}
    return Trainer(**machine, logger=False, enable_checkpointing=False, enable_model_summary=False)


def frozen_features(
    model: LongTailedClassifier, data: LongTailedDataModule, split: Split, trainer: Trainer
) -> tuple[Features, Tensor]:
    """Return the features of a split's images, and their classes.

    They are what the classifier of the network takes, in evaluation mode, of images that are scaled, cropped and
    normalised as for a test. They are kept in the cache's folder, one file a source's split, in which the images of
    other subsets find their place: none is ever computed twice. An interrupted computation goes on where it was. The
    file's name is a digest of the network (its weights without the classifier), of the preprocessing and of the images,
    so that features of another network or of other images are never taken for these.

    They are float32: in half precision they would take half of the disk, but change some predictions.

    Args:
        model: whose backbone is taken, and whose pixel mean and deviation.
        data: of the images.
        split: train, val or test.
        trainer: that predicts; several devices share the images.

    Returns:
        Features, float32 of shape (N, D), and targets, int64 of shape (N,), or int8 of shape (N, C).

    Raises:
        InputError: if the network has no linear classifier as its last layer, or the features cannot be kept.
    """
    task = FeatureExtractor(model, data, split, trainer.precision)
    if task.missing() or trainer.world_size > 1:  # with which the other processes begin, to wait for what comes of it
        handle = task.classifier.register_forward_hook(task.keep)
        try:
            trainer.predict(task, return_predictions=False)
        finally:
            handle.remove()
            task.flush()  # what is computed by then, also where it was interrupted
    return np.asarray(np.load(task.file, mmap_mode="r")[data.rows[split]]), data.targets(split)


class FeatureExtractor(LightningModule):
    """Predicts features, and writes each batch of them where it belongs.

    Two files: ``<digest>.npy`` has the features of all images of a split, float32 of shape (M, D), and
    ``<digest>.done.npy`` says, as bool of shape (M,), which of them are computed.
    """

    def __init__(
        self, model: LongTailedClassifier, data: LongTailedDataModule, split: Split, precision: str = "32-true"
    ) -> None:
        super().__init__()
        self.model, self.data, self.split = model, data, split
        self.classifier = classifier_of(model)
        data.targets(split)  # has it be loaded
        images = images_digest(data, data.origin(split))
        base = cache_file(f"features 1 {precision} ", network_digest(model), images)
        self.file, self.done_file = base.with_suffix(".npy"), base.with_suffix(".done.npy")
        self._seen: tuple[Tensor, Tensor] | None = None  # features and logits
        self._flushed, self._unflushed = time.monotonic(), list[npt.NDArray[np.int64]]()

    def keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep what the classifier takes and gives: a hook of it."""
        self._seen = inputs[0], output

    def missing(self) -> int:
        """Return how many features of the split have still to be computed."""
        return len(self._missing())

    def _missing(self) -> Tensor:
        rows, done = self.data.rows[self.split], self._read(self.done_file, (self._num_images(),))
        if done is None or self._read(self.file, (self._num_images(), self.classifier.in_features)) is None:
            return torch.arange(len(rows))
        return torch.from_numpy(np.flatnonzero(~done[rows]))

    def _num_images(self) -> int:
        of_training = self.data.origin(self.split) == "train"
        if of_training and not self.data.multi_label:
            return sum(self.data.source.counts)
        return len(self.data.source.labels("train") if of_training else self.data.rows[self.split])

    @staticmethod
    def _read(file: Path, shape: tuple[int, ...]) -> npt.NDArray[Any] | None:
        try:
            array: npt.NDArray[Any] = np.load(file, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return None  # none yet, or damaged
        return array if array.shape == shape else None

    def prepare_data(self) -> None:
        """Make the files, all of their length, so that a full disk is told before anything is computed."""
        shape = self._num_images(), self.classifier.in_features
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.file.with_suffix(".lock")):
                features, done = self._read(self.file, shape), self._read(self.done_file, shape[:1])
                if features is None or done is None:
                    self.done_file.unlink(missing_ok=True)
                    _allocate(self.file, np.float32, shape)
                    _allocate(self.done_file, np.bool_, shape[:1])
        except OSError as error:
            self.file.unlink(missing_ok=True)
            size = shape[0] * shape[1] * 4 / 2**30
            raise InputError(
                f"the features, {size:.2f} GiB, cannot be kept in '{self.file.parent}' ({error.strerror}): make room "
                "there, or set LT_CB_CACHE to another folder."
            ) from error

    def predict_dataloader(self) -> EpochLoader:
        """Batches of the images whose features are missing, and their positions."""
        self.data.trainer = self.trainer
        self._features = np.load(self.file, mmap_mode="r+")
        self._done = np.load(self.done_file, mmap_mode="r+")
        small = self.trainer.strategy.root_device.type == "cpu"
        batch_size = min(CPU_BATCH, self.data.batch_size) if small else None
        return self.data.ordered_dataloader(self.split, self._missing(), batch_size)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the features of a batch, keep them, and return their positions.

        Raises:
            InputError: if the network's logits are not those of its last linear layer, or features are not finite.
        """
        images, positions = batch
        logits = self.model(images)
        if self._seen is None or self._seen[0].ndim != 2 or not torch.equal(self._seen[1], logits):
            raise InputError(
                "the logits of the backbone are not the output of its last linear layer, so that a head on its "
                "features would not be its classifier: choose another backbone."
            )
        features = self._seen[0].float()
        if not features.isfinite().all():
            raise InputError("the backbone's features are not finite: check its weights and --trainer.precision.")
        rows = self.data.rows[self.split][positions.cpu().numpy()]
        self._features[rows] = features.cpu().numpy()
        self._unflushed.append(rows)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()
        return positions  # None would be warned of

    def flush(self) -> None:
        """Write what is computed, and only then that it is."""
        if not self._unflushed:
            return
        self._features.flush()
        for rows in self._unflushed:
            self._done[rows] = True
        self._done.flush()
        self._flushed, self._unflushed = time.monotonic(), []

    def on_predict_end(self) -> None:
        """Write what is left, and wait for the other processes."""
        self.flush()
        self.trainer.strategy.barrier()


def _allocate(file: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
    with file.open("r+b") as stream:
        reserve(stream, file.stat().st_size)


def network_digest(model: LongTailedClassifier) -> str:
    """Return a digest of all that features of given images depend on: weights, structure, and pixel normalisation."""
    classifier = classifier_of(model)
    own = {id(value) for value in [*classifier.parameters(), *classifier.buffers()]}
    digest = hashlib.sha256()
    options = {**(model.hparams.get("backbone_args") or {}), "pretrained": None}  # the weights say more
    digest.update(json.dumps([model.hparams["backbone"], options], sort_keys=True, default=str).encode())
    for name, value in model.backbone.state_dict(keep_vars=True).items():
        if id(value) not in own:
            array = value.detach().cpu().contiguous()
            digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
            digest.update(array.view(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    for value in (model.mean, model.std):
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()


def images_digest(data: LongTailedDataModule, split: Split) -> str:
    """Return a digest of the images of a split, all that the source has, and of how they are scaled and cropped."""
    source: Source = getattr(data.source, "image_folder", None) or data.source
    how = "" if data.interpolation == "bilinear" else f" {data.interpolation}"
    digest = hashlib.sha256(f"{split} {data.image_size} {data.in_channels} {data.crop}{how}".encode())
    if isinstance(source, FileSource):
        for path in source.files(split)[0].tolist():
            digest.update(os.fsencode(stamp(Path(os.fsdecode(path)))))
    else:
        digest.update(np.ascontiguousarray(source.load(split)[0]).tobytes())
    return digest.hexdigest()
