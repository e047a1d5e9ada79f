"""The data module: from a source and an imbalance to loaders and class counts."""

import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lt_cb.data.images import Images, find_images, load_images, resize
from lt_cb.data.loaders.epoch import EpochLoader
from lt_cb.data.loaders.resident import ResidentLoader, home
from lt_cb.data.loaders.streaming import Crop, StreamingLoader
from lt_cb.data.profile import class_counts_exponential, class_counts_step
from lt_cb.data.sampler import Sampler
from lt_cb.data.sources import Checkpoint, make_source
from lt_cb.data.sources.base import FileSource, Split
from lt_cb.data.sources.listing import Paths
from lt_cb.data.subset import hold_out, long_tailed_subset
from lt_cb.errors import InputError
from lt_cb.hardware import available_cores, available_memory
from lt_cb.schedule import check_part_of_training, training_progress


class LongTailedDataModule(LightningDataModule):
    """Long-tailed subset of a data set, with its whole test part.

    Class index order is size order, as in Cui et al. 2019. Without ``val_fraction`` or a validation part of the
    source, validation during ``fit`` looks at the test part, as in the paper: select nothing by it.

    Images are held in memory, on the training device, where they fit; else they are decoded as they are asked for.

    Args:
        source: ``digits``, ``cifar10``, ``cifar100``, ``fashion_mnist``, ``image_folder``, ``inat2017``, ``inat2018``,
            ``ilsvrc2012``, ``imagenet_lt``, ``places_lt``, ``manifest`` (a table of files), or the class path of a
            `lt_cb.data.Source` of your own.
        root: folder of the data.
        imbalance_factor: largest class count divided by the smallest, at least 1; None keeps every training image.
        imbalance_type: ``exponential`` decay (the paper's) or one ``step`` in the middle of the classes.
        n_max: images of the largest class; None takes as many as the smallest class of the source has.
        subset_counts: training images to keep of each class, in place of an imbalance factor.
        subset_seed: of the choice of images; apart from the training's seed. A subset of a higher imbalance factor
            is contained in one of a lower.
        val_fraction: share of the subset held out for validation, in [0, 1), class by class: each class of two
            images or more has at least one there. Nothing is held out of data that have a validation part.
        sampler: how often an epoch shows each class; None shows each image once (instance-balanced). It depends on
            the seed of the training and the epoch alone, so that processes share it and a resumed training repeats it.
        defer_sampling: part of the training, in [0, 1], before the sampler is used: deferred re-sampling (DRS, Cao
            et al. 2019). It sets in with an epoch.
        batch_size: images a batch, for each device.
        global_batch_size: images that an optimiser step has to see, devices x batch_size x accumulated batches; None
            checks nothing.
        image_size: scale images to this height and width in pixels; None keeps the source's.
        crop: of training images: ``padded``, or ``resized`` for a random part of the image file, of 8 to 100 % of its
            area, scaled to image_size. That is for images larger than image_size, and the test then looks at the
            centre: of 256 pixels of height the middle 224, say.
        crop_padding: zeros around a training image before a ``padded`` random crop, in pixels.
        horizontal_flip: flip half of the training images left to right.
        augment: applied to each training image, uint8 of shape (C, H, W), one after the other, after crop and flip: the
            transforms of ``torchvision.transforms.v2``, as RandAugment, AutoAugment or RandomErasing (Cutout).
        mean: of pixel values in [0, 1], one for each channel or for all; None is that of x / 128 - 1.
        std: likewise.
        predict_dir: folder of images for ``predict``.
        num_workers: processes that decode what is not in memory, for each device; None is one for each core.

    Raises:
        InputError: (a ValueError) if a value is out of range, or the source has fewer images than asked for.
    """

    def __init__(
        self,
        source: str = "digits",
        root: str = "data",
        imbalance_factor: float | None = None,
        imbalance_type: Literal["exponential", "step"] = "exponential",
        n_max: int | None = None,
        subset_counts: list[int] | None = None,
        subset_seed: int = 0,
        val_fraction: float = 0.0,
        sampler: Sampler | None = None,
        defer_sampling: float = 0.0,
        batch_size: int = 128,
        global_batch_size: int | None = None,
        image_size: int | None = None,
        crop: Crop = "padded",
        crop_padding: int = 4,
        horizontal_flip: bool = True,
        augment: list[nn.Module] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        predict_dir: str | None = None,
        num_workers: int | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("image_size", 1 if image_size is None else image_size, 1),
            ("crop_padding", crop_padding, 0),
            ("num_workers", num_workers or 0, 0),
            ("subset_seed", subset_seed, 0),
        ):
            if value < least:
                raise InputError(f"{name} is {value}, but must be at least {least}.")
        if not 0.0 <= val_fraction < 1.0:
            raise InputError(f"val_fraction is {val_fraction}, but must be in [0, 1).")
        check_part_of_training("defer_sampling", defer_sampling)
        self.source = make_source(source, root, image_size)
        self.subset_counts = self._counts_of_subset(imbalance_factor, imbalance_type, n_max, subset_counts)
        self.subset_seed = subset_seed
        self.val_fraction = 0.0 if self.source.has_val else val_fraction
        self.sampler = sampler
        self.defer_sampling = defer_sampling
        self.batch_size = batch_size
        self.global_batch_size = global_batch_size
        self.crop = crop
        self.num_workers = num_workers
        self.image_size = image_size or self.source.image_size
        self.in_channels = self.source.channels
        self.crop_padding = crop_padding
        self.horizontal_flip = horizontal_flip
        self.augment = nn.Sequential(*augment) if augment else None
        self.mean = self._channel_values("mean", mean)
        self.std = self._channel_values("std", std)
        self.predict_dir = predict_dir
        self._parts: dict[str, tuple[Tensor | Paths, Tensor]] = {}
        self.subset_hash: str | None = None

    @property
    def class_names(self) -> list[str]:
        """Names of the C classes, by class index."""
        return self.source.class_names

    @property
    def class_counts(self) -> list[int]:
        """Images of each class that are trained on: those of the subset less those held out for validation."""
        return [n - int(np.ceil((n - 1) * self.val_fraction)) if n else 0 for n in self.subset_counts]

    def _counts_of_subset(
        self, imbalance_factor: float | None, imbalance_type: str, n_max: int | None, explicit: list[int] | None
    ) -> list[int]:
        available, names = self.source.counts, self.source.class_names
        if explicit is not None:
            if imbalance_factor is not None or n_max is not None:
                raise InputError("subset_counts and imbalance_factor or n_max are both given, but exclude each other.")
            if len(explicit) != len(available) or min(explicit) < 0 or not any(explicit):
                raise InputError(
                    f"subset_counts is {explicit}, but must have {len(available)} counts of at least 0, not all 0."
                )
            counts = list(explicit)
        elif imbalance_factor is None:
            if n_max is not None:
                raise InputError(f"n_max is {n_max} without an imbalance_factor: give one too (1 is balanced).")
            return list(available)
        else:
            profile = class_counts_step if imbalance_type == "step" else class_counts_exponential
            n_max = min(available) if n_max is None else n_max
            if not min(available) and n_max == 0:
                raise InputError(
                    f"class '{names[available.index(0)]}' has no training image, so that no subset of imbalance factor "
                    f"{imbalance_factor:g} has all classes: leave --data.imbalance_factor out."
                )
            counts = profile(n_max, len(available), imbalance_factor)
            if counts[-1] < 1:
                raise InputError(
                    f"imbalance_factor {imbalance_factor:g} leaves class '{names[-1]}' without an image: "
                    f"with {n_max} images in the largest class it can be at most {n_max}."
                )
        for name, asked, there in zip(names, counts, available, strict=True):
            if asked > there:
                raise InputError(
                    f"{asked} training images of class '{name}' are asked for, but there are {there}: lower "
                    "--data.n_max or --data.subset_counts."
                )
        return counts

    def _channel_values(self, name: str, values: list[float] | None) -> list[float]:
        values = [128 / 255] if values is None else values
        if len(values) not in (1, self.in_channels) or (name == "std" and min(values) <= 0):
            raise InputError(
                f"{name} is {values}, but images of {self.in_channels} channels take 1 or {self.in_channels} values"
                f"{' above 0' if name == 'std' else ''}."
            )
        return values * (self.in_channels // len(values))

    def prepare_data(self) -> None:
        """Download or decode what is missing, so that what is wrong with it shows before a run begins."""
        stage = self.trainer.state.fn if self.trainer else "fit"
        if stage == "predict":
            self._load_folder()
            return
        self._load("test")
        if stage != "test":
            self._load("train")
        if self.source.has_val and stage in ("fit", "validate"):
            self._load("val")
        if stage == "fit" and self.trainer and self.global_batch_size is not None:
            self._check_global_batch(
                self.global_batch_size, self.trainer.world_size, self.trainer.accumulate_grad_batches
            )
        if stage == "fit" and self.trainer and self.sampler is not None:
            training_progress(self.trainer, 0)  # refuses a training without an end before anything is written

    def _check_global_batch(self, asked: int, devices: int, accumulated: int) -> None:
        together = devices * self.batch_size * accumulated
        if together != asked:
            batches = asked / (devices * self.batch_size)
            advice = "--data.batch_size, or leave --data.global_batch_size out"
            if batches >= 1 and batches.is_integer():
                advice = f"--trainer.accumulate_grad_batches {int(batches)}"
            raise InputError(
                f"global_batch_size is {asked}, but {devices} x {self.batch_size} x {accumulated} (devices x "
                f"batch_size x accumulated batches) are {together}: set {advice}."
            )

    def _load(self, split: Split) -> tuple[Tensor | Paths, Tensor]:
        if split not in self._parts:
            images: Images | Paths
            if self._streams and isinstance(self.source, FileSource):
                images, labels = self.source.files(split)
            else:
                images, labels = self.source.load(split)
            num_classes = len(self.class_names)
            if labels.min() < 0 or labels.max() >= num_classes:
                raise InputError(
                    f"the {split} labels go from {labels.min()} to {labels.max()}, but {num_classes} classes allow "
                    f"0 to {num_classes - 1}: check the source."
                )
            if split == "train":
                keep, held = hold_out(
                    long_tailed_subset(labels, self.subset_counts, self.subset_seed), self.val_fraction
                )
                self.subset_hash = hashlib.sha256(keep.tobytes()).hexdigest()
                if self.val_fraction:
                    self._parts["val"] = self._to_tensors(images[held], labels[held])
                images, labels = images[keep], labels[keep]
            self._parts[split] = self._to_tensors(images, labels)
        return self._parts[split]

    @cached_property
    def _streams(self) -> bool:
        """Whether images are decoded as they are asked for; it is said why where nobody asked for it."""
        source = self.source
        resized = self.crop == "resized"
        if resized and not isinstance(source, FileSource | Checkpoint):
            raise InputError(
                f"crop is resized, but {type(source).__name__} has images of {source.image_size} pixels in memory: set "
                "--data.crop padded."
            )
        if resized or not isinstance(source, FileSource):
            return resized
        splits: tuple[Split, ...] = ("train", "val", "test") if source.has_val else ("train", "test")
        count = sum(len(source.listing(split).paths) for split in splits)
        copies = self.trainer.num_devices if self.trainer else 1  # one for each process
        needed, free = copies * count * source.image_size**2 * source.channels, available_memory()
        if needed <= free / 2:
            return False
        rank_zero_info(
            f"{count} images take {needed / 2**30:.1f} GiB, more than half of the {free / 2**30:.1f} GiB of memory "
            "that are free: they are decoded as they are asked for."
        )
        return True

    def _to_tensors(self, images: Images | Paths, labels: np.ndarray) -> tuple[Tensor | Paths, Tensor]:
        targets = torch.from_numpy(labels)
        if images.dtype == np.uint8:
            return torch.from_numpy(resize(cast(Images, images), self.image_size)), targets
        return cast(Paths, images), targets

    def _load_folder(self) -> tuple[Tensor | Paths, Tensor]:
        if "predict" not in self._parts:
            if self.predict_dir is None:
                raise InputError("predict needs images: set --data.predict_dir to a folder of images.")
            folder = Path(self.predict_dir)
            self.predict_files = find_images(folder) if folder.is_dir() else []
            if not self.predict_files:
                raise InputError(f"there are no images in '{folder}': set --data.predict_dir to a folder of images.")
            images: Tensor | Paths
            if self._streams:
                images = np.array([os.fsencode(file) for file in self.predict_files], bytes)
            else:
                decoded = load_images(self.predict_files, self.image_size, self.in_channels, "Decoding images")
                images = torch.from_numpy(decoded)
            self._parts["predict"] = images, torch.zeros(len(images), dtype=torch.int64)
        return self._parts["predict"]

    def _loader(self, part: str, train: bool = False, shard: bool = True) -> EpochLoader:
        trainer = self.trainer if shard else None
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        images, targets = self._parts[part]
        options: dict[str, Any] = {
            "train": train,
            "crop_padding": self.crop_padding,
            "horizontal_flip": self.horizontal_flip,
            "seed": _seed(),
            "order": self._order if train and self.sampler else None,
            "rank": trainer.global_rank if trainer else 0,
            "world_size": trainer.world_size if trainer else 1,
            "augment": self.augment,
        }
        if not isinstance(images, Tensor):
            workers = self.num_workers
            if workers is None:
                workers = max(1, available_cores() // (self.trainer.num_devices if self.trainer else 1))
            return StreamingLoader(
                images,
                targets,
                self.batch_size,
                image_size=self.image_size,
                channels=self.in_channels,
                crop=self.crop,
                strict=getattr(self.source, "requested_size", self.image_size) is None,
                num_workers=workers,
                pin_memory=device.type == "cuda",
                **options,
            )
        loader = ResidentLoader(images, targets, self.batch_size, device=home(images, device), **options)
        self._parts[part] = loader.images, loader.targets  # where they are now: nothing is held twice
        return loader

    def _order(self, epoch: int) -> Tensor | None:
        progress = training_progress(self.trainer, epoch) if self.trainer else 0.0
        if self.sampler is None or progress < self.defer_sampling:
            return None
        labels = self._parts["train"][1].cpu().numpy()
        return torch.from_numpy(self.sampler.draw(labels, [_seed(), epoch], progress))

    def train_dataloader(self) -> EpochLoader:
        """Shuffled, augmented batches of the subset; outside of a Trainer, ``set_epoch`` draws others each epoch."""
        self._load("train")
        return self._loader("train", train=True)

    def val_dataloader(self) -> EpochLoader:
        """Batches of the held-out part, or else of the source's validation part, or else of the test part."""
        if not self.val_fraction and not self.source.has_val:
            return self.test_dataloader()
        self._load("train" if self.val_fraction else "val")
        return self._loader("val")

    def test_dataloader(self) -> EpochLoader:
        """Batches of the whole test part, each image once over all processes."""
        self._load("test")
        return self._loader("test")

    def predict_dataloader(self) -> EpochLoader:
        """Batches of the images in ``predict_dir``, all of them in every process, in the order of the file names."""
        self._load_folder()
        return self._loader("predict", shard=False)


def _seed() -> int:
    return int(os.environ.get("PL_GLOBAL_SEED", 0))  # of seed_everything, the same in all processes
