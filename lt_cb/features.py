"""Features of a frozen network: computed once by a Lightning Trainer, and kept on disk."""

import hashlib
import json
import os
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
from lt_cb.data.sources.base import FileSource, Source
from lt_cb.data.sources.listing import Split
from lt_cb.errors import InputError
from lt_cb.evaluation import Batch
from lt_cb.models import last_linear
from lt_cb.module import LongTailedClassifier

MACHINE_OPTIONS = ("accelerator", "strategy", "devices", "num_nodes", "precision", "enable_progress_bar")
CPU_BATCH_SIZE = 32  # twice as fast as 128, since activations fit into the cache of the CPU
Features = npt.NDArray[np.float32]


def classifier_of(model: LongTailedClassifier) -> nn.Linear:
    """Return the last layer of a network, whose inputs are the features; raise InputError if no head can replace it."""
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
    """Return features, float32 of shape (N, D), and targets, int64 of shape (N,) or int8 of shape (N, C), of a split.

    Features are the inputs of the network's last layer, in evaluation mode, for images that are scaled, cropped and
    normalised as in a test. The cache folder keeps them, so that no image is computed twice, not even for another
    subset. An interrupted computation resumes. Raise InputError without a linear last layer, or disk space.
    """
    extractor = FeatureExtractor(model, data, split, trainer.precision)
    if len(extractor.missing()) or trainer.world_size > 1:  # all processes must join a distributed prediction
        with extractor.classifier.register_forward_hook(extractor.keep):
            trainer.predict(extractor, return_predictions=False)
    return np.load(extractor.file, mmap_mode="r")[data.rows[split]], data.targets(split)


class FeatureExtractor(LightningModule):
    """Writes the features of a split to ``<digest>.npy``: a row for each image of the source, NaN until computed."""

    def __init__(self, model: LongTailedClassifier, data: LongTailedDataModule, split: Split, precision: str) -> None:
        super().__init__()
        self.model, self.data, self.split = model, data, split
        self.classifier = classifier_of(model)
        data.targets(split)  # loads the split
        origin = data.origin(split)
        self.shape = len(data.source.labels(origin)), self.classifier.in_features
        digests = network_digest(model), images_digest(data, origin)
        self.file = cache_file(f"features 2 {precision} ", *digests).with_suffix(".npy")
        self._seen: tuple[Tensor, Tensor] | None = None  # features and logits of a batch

    def keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep inputs and outputs of the classifier, as a forward hook."""
        self._seen = inputs[0], output

    def missing(self) -> Tensor:
        """Return the positions in the split, int64 of shape (M,), of images without features."""
        rows, kept = self.data.rows[self.split], self._read()
        return torch.arange(len(rows)) if kept is None else torch.from_numpy(np.isnan(kept[rows].sum(1)).nonzero()[0])

    def _read(self) -> Features | None:
        """Return the kept features, None if the file is missing or damaged."""
        try:
            kept: Features = np.load(self.file, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return None
        return kept if kept.shape == self.shape else None

    def prepare_data(self) -> None:
        """Create the file in full length, so that a full disk is noticed before anything is computed."""
        part = self.file.with_suffix(".part")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.file.with_suffix(".lock")):
                if self._read() is None:
                    empty = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=self.shape)
                    with part.open("r+b") as stream:
                        reserve(stream, part.stat().st_size)
                    empty[:] = np.nan
                    empty.flush()
                    part.replace(self.file)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise InputError(
                f"the features, {self.shape[0] * self.shape[1] * 4 / 2**30:.2f} GiB, cannot be kept in "
                f"'{self.file.parent}' ({error.strerror}): free disk space there, or set LT_CB_CACHE to another folder."
            ) from error

    def predict_dataloader(self) -> EpochLoader:
        """Return batches of the images without features, and their positions in the split."""
        self.data.trainer = self.trainer
        self._features = np.load(self.file, mmap_mode="r+")
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        batch_size = min(CPU_BATCH_SIZE, self.data.batch_size) if on_cpu else None
        return self.data.ordered_dataloader(self.split, self.missing(), batch_size)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Keep the features of a batch and return the positions of its images; raise InputError if none fit a head."""
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
        self._features[self.data.rows[self.split][positions.cpu().numpy()]] = features.cpu().numpy()
        return positions  # Lightning warns if a step returns None

    def on_predict_end(self) -> None:
        """Write the features to disk, and wait for the other processes."""
        self._features.flush()
        self.trainer.strategy.barrier()


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
    digest = hashlib.sha256(f"{split} {data.view.cache_key(data.view.crop)}".encode())
    if isinstance(source, FileSource):
        for path in source.files(split)[0].tolist():
            digest.update(os.fsencode(stamp(Path(os.fsdecode(path)))))
    else:
        digest.update(np.ascontiguousarray(source.load(split)[0]).tobytes())
    return digest.hexdigest()
