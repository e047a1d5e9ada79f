"""Features of a frozen network: computed once by a Lightning Trainer, kept on disk, and checked at each start."""

import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lt_cb.data import LongTailedDataModule
from lt_cb.data.cache import cache_file, reserve, stamp
from lt_cb.data.images import progress
from lt_cb.data.loaders.epoch import EpochLoader
from lt_cb.data.sources.base import FileSource, Source
from lt_cb.data.sources.listing import Split
from lt_cb.errors import InputError
from lt_cb.evaluation import Batch
from lt_cb.extract import block_features, classifier_of, features_of
from lt_cb.hardware import reused_memory
from lt_cb.longtail.subset import Indices
from lt_cb.models.adapter import plain_state, update
from lt_cb.module import LongTailedClassifier
from lt_cb.say import warn

if TYPE_CHECKING:  # an optional part
    from lt_cb.lab.cluster import Cluster

MACHINE_OPTIONS = ("accelerator", "strategy", "devices", "num_nodes", "precision", "enable_progress_bar")
CPU_BATCH_SIZE = 32  # twice as fast as 128, since activations fit into the cache of the CPU
NUM_COMPARED = 8  # kept images, of each start that computed some, whose features are computed again
BLOCK = 256  # images of a task on a cluster
MAX_PASSES = 3  # kept features are compared, then dropped and computed again; one more if another process interferes
SUMS = np.dtype([("checksum", "<u4"), ("start", "<u4")])
Features = npt.NDArray[np.float32]


def feature_trainer(options: Mapping[str, Any]) -> Trainer:
    """Return a Trainer for `frozen_features` on the machine that the options of another Trainer describe."""
    machine = {name: options[name] for name in MACHINE_OPTIONS}
    return Trainer(**machine, logger=False, enable_checkpointing=False, enable_model_summary=False)


def frozen_features(
    model: LongTailedClassifier,
    data: LongTailedDataModule,
    split: Split,
    trainer: Trainer,
    cluster: "Cluster | None" = None,
) -> tuple[Features, Tensor]:
    """Return features, float32 of shape (N, D), and targets, int64 of shape (N,) or int8 of shape (N, C), of a split.

    Features are the inputs of the network's last layer, in evaluation mode, for images that are scaled, cropped and
    normalised as in a test. The cache folder keeps them, so that no image is computed twice, not even for another
    subset. An interrupted computation resumes. Damaged features are computed again. So are all features if the network
    no longer computes the kept ones: each start compares a few. Raise InputError without a linear last layer, or disk
    space.

    With a ``lt_cb.lab.cluster.Cluster``, its machines compute blocks of images, and this one compares a few.
    """
    extractor = FeatureExtractor(model, data, split, trainer)
    if cluster is not None:
        extractor.compute_on(cluster, trainer)
    for _ in range(MAX_PASSES):
        extractor.compute(trainer)
        if not trainer.strategy.broadcast(len(extractor.missing())):
            return np.load(extractor.file, mmap_mode="r")[extractor.rows], data.targets(split)
    raise InputError(
        f"the features in '{extractor.file.parent}' change while they are used, by another process or a failing disk: "
        "set LT_CB_CACHE to another folder."
    )


def check_features(model: LongTailedClassifier, data: LongTailedDataModule, split: Split, trainer: Trainer) -> None:
    """Raise InputError if a network computes other features of a few images than are kept for its weights."""
    FeatureExtractor(model, data, split, trainer, replaces=False).compute(trainer)


class FeatureExtractor(LightningModule):
    """Writes the features of a split to ``<digest>.npy``: a row for each image of the source, NaN until computed.

    ``<digest>.sums`` has the checksum of each row, and a number of the start that computed it. A few images of every
    earlier start are computed again. If their features differ, all rows of that start are dropped, since the code of
    the network, or of a library, has changed. Without ``replaces``, this raises InputError instead.
    """

    def __init__(
        self,
        model: LongTailedClassifier,
        data: LongTailedDataModule,
        split: Split,
        trainer: Trainer,
        replaces: bool = True,
    ) -> None:
        super().__init__()
        self.model, self.data, self.split, self.replaces = model, data, split, replaces
        data.targets(split)  # loads the split
        self.rows, origin = data.rows[split], data.origin(split)
        self.shape = len(data.source.labels(origin)), classifier_of(model).in_features
        device, precision = trainer.strategy.root_device.type, str(trainer.precision)
        exact = device == "cpu" and precision.startswith(("32", "64"))
        self.tolerance = 1e-4 if exact else 2e-2  # relative; batches of other sizes are rounded otherwise
        digests = network_digest(model), images_digest(data, origin)
        self.file = cache_file(f"features 3 {precision} {device} ", *digests).with_suffix(".npy")
        self._start: int | None = None  # number of this start

    def compute(self, trainer: Trainer) -> None:
        """Compute the missing features, and on the first call compare a few of the kept ones."""
        with reused_memory():
            trainer.predict(self, return_predictions=False)

    def compute_on(self, cluster: "Cluster", trainer: Trainer) -> None:
        """Compute the missing features on the machines of a ``lt_cb.lab.cluster.Cluster``, a block of images a task."""
        self.prepare_data()
        missing, start = self.missing(), secrets.randbits(32)
        blocks = [missing[i : i + BLOCK] for i in range(0, len(missing), BLOCK)]
        kept = self._open("r+")
        assert kept is not None  # `prepare_data` has created it
        self._features, self._sums = kept
        images = (self.data.images_at(self.split, block) for block in blocks)
        options = self.data.view, min(CPU_BATCH_SIZE, self.data.batch_size), str(trainer.precision)
        values = cluster.map(block_features, images, self.model, *options)
        for block, found in zip(blocks, progress(values, "Features", len(blocks)), strict=True):
            self._write(self.rows[block.numpy()], found, start)
        self._features.flush()  # type: ignore[attr-defined]
        self._sums.flush()  # type: ignore[attr-defined]

    def _write(self, rows: Indices, values: Features, start: int) -> None:
        """Keep features and their checksums."""
        for row, value in zip(rows, values, strict=True):
            self._features[row] = value
            self._sums[row] = checksum(self._features, row), start

    def missing(self) -> Tensor:
        """Return the positions in the split, int64 of shape (M,), of images without features, or with damaged ones."""
        if (kept := self._open()) is None:
            return torch.arange(len(self.rows))
        features, checksums = np.asarray(kept[0]), kept[1]["checksum"][self.rows].tolist()  # slices faster than memmap
        rows = zip(self.rows.tolist(), checksums, strict=True)
        return torch.tensor([i for i, (row, value) in enumerate(rows) if checksum(features, row) != value]).long()

    def _open(self, mode: Literal["r", "r+"] = "r") -> tuple[Features, npt.NDArray[np.void]] | None:
        """Return the kept features and their sums, memory-mapped; None if a file is missing or damaged."""
        try:
            features = np.lib.format.open_memmap(self.file, mode=mode)
            sums = np.lib.format.open_memmap(self.file.with_suffix(".sums"), mode=mode)
        except PermissionError:
            raise
        except Exception:  # damaged headers make numpy raise all kinds of errors
            return None
        whole = features.shape == self.shape and features.dtype == np.float32 and features.flags.c_contiguous
        return (features, sums) if whole and sums.shape == self.shape[:1] and sums.dtype == SUMS else None

    def prepare_data(self) -> None:
        """Create the files in full length, so that a full disk is noticed before anything is computed."""
        if self._open() is not None:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.file.with_suffix(".lock")):
                if self._open() is None:
                    self._create()
        except OSError as error:
            raise InputError(
                f"the features, {self.shape[0] * self.shape[1] * 4 / 2**30:.2f} GiB, cannot be kept in "
                f"'{self.file.parent}' ({error.strerror}): free disk space there, or set LT_CB_CACHE to another folder."
            ) from error

    def _create(self) -> None:
        files = {self.file: np.full(1, np.nan, np.float32), self.file.with_suffix(".sums"): np.zeros(1, SUMS)}
        parts = {file: file.with_name(f"{file.name}.part") for file in files}
        try:
            for file, value in files.items():
                shape = self.shape[: 1 if value.dtype == SUMS else 2]
                empty = np.lib.format.open_memmap(parts[file], mode="w+", dtype=value.dtype, shape=shape)
                with parts[file].open("r+b") as stream:
                    reserve(stream, parts[file].stat().st_size)
                empty[:] = value
                empty.flush()
            for file, part in parts.items():
                part.replace(file)
        finally:
            for part in parts.values():
                part.unlink(missing_ok=True)

    def predict_dataloader(self) -> EpochLoader:
        """Return batches of images to compare and images without features, and their positions in the split."""
        missing = self.missing()
        compared = self._sample(missing) if self._start is None else missing[:0]
        plan = len(missing), torch.cat([compared, missing]), self._start or secrets.randbits(32)
        self._missing, positions, self._start = self.trainer.strategy.broadcast(plan)
        kept = self._open("r+" if self._missing else "r")  # all may be kept in a folder that is read-only
        assert kept is not None  # `prepare_data` has created it
        self._features, self._sums = kept
        self._compared = self.rows[positions[: len(positions) - self._missing].numpy()]
        self.data.trainer = self.trainer
        if (bar := self.trainer.progress_bar_callback) is not None and self.trainer.is_global_zero:
            (bar.enable if self._missing else bar.disable)()
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        batch_size = min(CPU_BATCH_SIZE, self.data.batch_size) if on_cpu else None
        return self.data.ordered_dataloader(self.split, positions, batch_size)

    def _sample(self, missing: Tensor) -> Tensor:
        """Return the positions of a few images of each start that have features."""
        kept = self._open()
        if kept is None:
            return missing[:0]
        positions = np.setdiff1d(np.arange(len(self.rows)), missing.numpy())
        starts = kept[1]["start"][self.rows[positions]]
        members = (positions[starts == start] for start in np.unique(starts))
        chosen = [m[np.unique(np.linspace(0, len(m) - 1, NUM_COMPARED).round().astype(int))] for m in members]
        return torch.from_numpy(np.concatenate([positions[:0], *chosen]))

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compare or keep the features of a batch, and return the positions of its images."""
        images, positions = batch
        rows, values = self.rows[positions.cpu().numpy()], features_of(self.model, images).cpu().numpy()
        compared = np.isin(rows, self._compared)
        if compared.any():
            self._compare(rows[compared], values[compared])
        self._write(rows[~compared], values[~compared], self._start or 0)
        return positions  # Lightning warns if a step returns None

    def _compare(self, rows: Indices, fresh: Features) -> None:
        """Drop kept features that differ from fresh ones, and all that the same start computed."""
        kept = self._features[rows]
        differs = np.linalg.norm(fresh - kept, axis=1) > self.tolerance * np.linalg.norm(kept, axis=1).mean()
        if not differs.any():
            return
        if not self.replaces:
            raise InputError(
                "the network of the checkpoint computes other features than its head was trained on: the backbone is "
                "random, or keeps values outside its state_dict(). Make them buffers, or choose another backbone."
            )
        warn(
            "The network computes other features than those kept for its name and weights, so its code, or that of the "
            "images, has changed: all are computed again."
        )
        dropped = np.isin(self._sums["start"], self._sums["start"][rows[differs]])
        np.lib.format.open_memmap(self.file.with_suffix(".sums"), mode="r+")["checksum"][dropped] = 0

    def on_predict_end(self) -> None:
        """Write the features to disk, and wait for the other processes."""
        if self._missing:
            self._features.flush()  # type: ignore[attr-defined]
        self.trainer.strategy.barrier()
        if self._missing and self.trainer.is_global_zero:
            self._sums["start"][self.rows] = self._start  # compared above, or of this start
            self._sums.flush()  # type: ignore[attr-defined]


def checksum(features: Features, row: int) -> int:
    """Return the CRC-32 of a row, which depends on its number too."""
    return zlib.crc32(features[row], row)


def network_digest(model: LongTailedClassifier) -> str:
    """Return a digest of everything but the images that features depend on: weights, structure and normalisation."""
    classifier = classifier_of(model)
    excluded = {id(value) for value in [*classifier.parameters(), *classifier.buffers()]}
    options = {**(model.hparams.get("backbone_args") or {}), "pretrained": None}  # the weights are in the digest
    digest = hashlib.sha256(json.dumps([model.hparams["backbone"], options], sort_keys=True, default=str).encode())
    for name, value in plain_state(model.backbone).items():
        if id(value) not in excluded:
            update(digest, name, value)
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
