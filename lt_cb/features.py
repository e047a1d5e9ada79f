"""Features of a frozen network: computed once by a Lightning Trainer, and kept on disk."""

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

MACHINE_OPTIONS = ("accelerator", "strategy", "devices", "num_nodes", "precision", "enable_progress_bar")
CPU_BATCH_SIZE = 32  # twice as fast as 128, since activations fit into the cache of the CPU
FLUSH_SECONDS = 10.0
Features = npt.NDArray[np.float32]


def classifier_of(model: LongTailedClassifier) -> nn.Linear:
    """Return the last layer of a network; its inputs are the features.

    Raises:
        InputError: if the network has no linear last layer, or the layer has no bias for a linear head.
    """
    linear = last_linear(model.backbone, model.num_classes)
    if linear is None:
        raise InputError(
            f"the backbone has no linear layer of {model.num_classes} outputs, one a class, and so no features before "
            "it: choose a backbone with a linear classifier."
        )
    if linear.bias is None and not model.loss.normalized_classifier:
        raise InputError("the backbone's classifier has no bias, which a head needs: choose another backbone.")
    return linear


def feature_trainer(options: Mapping[str, Any]) -> Trainer:
    """Return a Trainer for `frozen_features` on the machine that the options of another Trainer describe."""
    machine = {name: options[name] for name in MACHINE_OPTIONS}
    return Trainer(**machine, logger=False, enable_checkpointing=False, enable_model_summary=False)


def frozen_features(
    model: LongTailedClassifier, data: LongTailedDataModule, split: Split, trainer: Trainer
) -> tuple[Features, Tensor]:
    """Return features and targets of the images of a split.

    Features are the inputs of the network's last layer, in evaluation mode, for images that are scaled, cropped and
    normalised as in a test. They are kept in the cache folder, in one file for each split of a source, so that no
    image is computed twice, not even for another subset. An interrupted computation resumes. The file name is a digest
    of the network (weights without the classifier), the preprocessing and the images.

    Features are float32: float16 would take half of the disk space, but change some predictions.

    Args:
        model: its backbone, pixel mean and pixel standard deviation are used.
        data: source of the images.
        split: train, val or test.
        trainer: runs the prediction; several devices share the images.

    Returns:
        Features, float32 of shape (N, D), and targets, int64 of shape (N,), or int8 of shape (N, C) with several labels
        an image.

    Raises:
        InputError: if the last layer of the network is not linear, or there is no disk space for the features.
    """
    extractor = FeatureExtractor(model, data, split, trainer.precision)
    if len(extractor.missing()) or trainer.world_size > 1:  # all processes must join a distributed prediction
        handle = extractor.classifier.register_forward_hook(extractor.keep)
        try:
            trainer.predict(extractor, return_predictions=False)
        finally:
            handle.remove()
            extractor.flush()
    return np.asarray(np.load(extractor.file, mmap_mode="r")[data.rows[split]]), data.targets(split)


class FeatureExtractor(LightningModule):
    """Predicts the features of a split, and writes each batch of them to a file.

    ``<digest>.npy`` has the features of all images of the split of the source, float32 of shape (M, D).
    ``<digest>.done.npy``, bool of shape (M,), marks the computed ones.
    """

    def __init__(
        self, model: LongTailedClassifier, data: LongTailedDataModule, split: Split, precision: str = "32-true"
    ) -> None:
        super().__init__()
        self.model, self.data, self.split = model, data, split
        self.classifier = classifier_of(model)
        data.targets(split)  # loads the split
        origin = data.origin(split)
        self.shape = len(data.source.labels(origin)), self.classifier.in_features
        base = cache_file(f"features 1 {precision} ", network_digest(model), images_digest(data, origin))
        self.file, self.done_file = base.with_suffix(".npy"), base.with_suffix(".done.npy")
        self._seen: tuple[Tensor, Tensor] | None = None  # features and logits of a batch
        self._flushed, self._unflushed = time.monotonic(), list[npt.NDArray[np.int64]]()

    def keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep inputs and outputs of the classifier, as a forward hook."""
        self._seen = inputs[0], output

    def missing(self) -> Tensor:
        """Return the positions in the split, int64 of shape (M,), of images without features."""
        rows, done = self.data.rows[self.split], _read(self.done_file, self.shape[:1])
        if done is None or _read(self.file, self.shape) is None:
            return torch.arange(len(rows))
        return torch.from_numpy(np.flatnonzero(~done[rows]))

    def prepare_data(self) -> None:
        """Create the files in full length, so that a full disk is noticed before anything is computed.

        Raises:
            InputError: if there is no disk space for the features.
        """
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.file.with_suffix(".lock")):
                if _read(self.file, self.shape) is None or _read(self.done_file, self.shape[:1]) is None:
                    self.done_file.unlink(missing_ok=True)
                    _allocate(self.file, np.float32, self.shape)
                    _allocate(self.done_file, np.bool_, self.shape[:1])
        except OSError as error:
            self.file.unlink(missing_ok=True)
            raise InputError(
                f"the features, {self.shape[0] * self.shape[1] * 4 / 2**30:.2f} GiB, cannot be kept in "
                f"'{self.file.parent}' ({error.strerror}): free disk space there, or set LT_CB_CACHE to another folder."
            ) from error

    def predict_dataloader(self) -> EpochLoader:
        """Return batches of the images without features, and their positions in the split."""
        self.data.trainer = self.trainer
        self._features = np.load(self.file, mmap_mode="r+")
        self._done = np.load(self.done_file, mmap_mode="r+")
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        batch_size = min(CPU_BATCH_SIZE, self.data.batch_size) if on_cpu else None
        return self.data.ordered_dataloader(self.split, self.missing(), batch_size)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute and keep the features of a batch; return the positions of its images.

        Raises:
            InputError: if the logits are not the output of the last linear layer, or the features are not finite.
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
        return positions  # Lightning warns if a step returns None

    def flush(self) -> None:
        """Write the features to disk, and only then mark them as computed."""
        if not self._unflushed:
            return
        self._features.flush()
        for rows in self._unflushed:
            self._done[rows] = True
        self._done.flush()
        self._flushed, self._unflushed = time.monotonic(), []

    def on_predict_end(self) -> None:
        """Write the last features, and wait for the other processes."""
        self.flush()
        self.trainer.strategy.barrier()


def _read(file: Path, shape: tuple[int, ...]) -> npt.NDArray[Any] | None:
    try:
        array: npt.NDArray[Any] = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None  # missing or damaged
    return array if array.shape == shape else None


def _allocate(file: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
    with file.open("r+b") as stream:
        reserve(stream, file.stat().st_size)


def network_digest(model: LongTailedClassifier) -> str:
    """Return a digest of everything but the images that features depend on: weights, structure and normalisation."""
    classifier = classifier_of(model)
    excluded = {id(value) for value in [*classifier.parameters(), *classifier.buffers()]}
    options = {**(model.hparams.get("backbone_args") or {}), "pretrained": None}  # the weights are in the digest
    digest = hashlib.sha256(json.dumps([model.hparams["backbone"], options], sort_keys=True, default=str).encode())
    for name, value in model.backbone.state_dict(keep_vars=True).items():
        if id(value) not in excluded:
            array = value.detach().cpu().contiguous()
            digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
            digest.update(array.view(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    for value in (model.mean, model.std):
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()


def images_digest(data: LongTailedDataModule, split: Split) -> str:
    """Return a digest of all images in a split of the source, and of their scaling and cropping."""
    source: Source = getattr(data.source, "image_folder", None) or data.source
    view = data.view
    interpolation = "" if view.interpolation == "bilinear" else f" {view.interpolation}"
    digest = hashlib.sha256(f"{split} {view.size} {view.channels} {view.crop}{interpolation}".encode())
    if isinstance(source, FileSource):
        for path in source.files(split)[0].tolist():
            digest.update(os.fsencode(stamp(Path(os.fsdecode(path)))))
    else:
        digest.update(np.ascontiguousarray(source.load(split)[0]).tobytes())
    return digest.hexdigest()
