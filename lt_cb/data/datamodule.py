"""The data module: from a source and an imbalance to loaders and class counts."""

import hashlib
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from lt_cb.data.images import Interpolation, channel_values, resize
from lt_cb.data.loaders.epoch import EpochLoader
from lt_cb.data.loaders.placement import make_loader, must_stream
from lt_cb.data.loaders.resident import ResidentLoader
from lt_cb.data.loaders.streaming import Crop
from lt_cb.longtail.several import Chosen, choose
from lt_cb.longtail.profile import counts_of_subset
from lt_cb.longtail.sampler import Sampler
from lt_cb.data.sources import make_source
from lt_cb.data.sources.base import FileSource, SourceFactory, Split
from lt_cb.data.sources.listing import Paths
from lt_cb.longtail.subset import Indices, Labels, check_counts, check_labels, hold_out, long_tailed_subset
from lt_cb.errors import InputError
from lt_cb.schedule import check_fraction, training_progress


class LongTailedDataModule(LightningDataModule):
    """Long-tailed subset of a data set, with its whole test split.

    Class index order is size order, as in Cui et al. 2019. Without ``val_fraction`` or a validation split of the
    source, validation during ``fit`` looks at the test split, as in the paper: select nothing by it.

    Of several labels an image, a count is that of the images which have a label. Those of a subset are at most what is
    asked for: an image that a rare class loses, its other classes lose too.

    Images are held in memory, on the training device, where they fit; else they are decoded as they are asked for.

    Args:
        source: ``digits``, ``side_by_side``, ``cifar10``, ``cifar100``, ``fashion_mnist``, ``image_folder``,
            ``inat2017``, ``inat2018``, ``ilsvrc2012``, ``imagenet_lt``, ``places_lt``, ``coco``, ``manifest`` (a table
            of files), or the class path of a `lt_cb.data.Source` of your own, with ``init_args`` if it has options; in
            Python, what makes one of root.
        root: folder of the data.
        imbalance_factor: largest class count divided by the smallest, at least 1; None keeps every training image.
        imbalance_type: ``exponential`` decay (the paper's) or one ``step`` in the middle of the classes.
        n_max: images of the largest class; None takes as many as the smallest class of the source has.
        subset_counts: training images to keep of each class, in place of an imbalance factor.
        subset_seed: of the choice of images; apart from the training's seed. A subset of a higher imbalance factor
            is contained in one of a lower.
        val_fraction: share of the subset held out for validation, in [0, 1), class by class: each class of two
            images or more has at least one there, of several labels an image wherever these allow it. Nothing is held
            out of data that have a validation split.
        sampler: how often an epoch shows each class; None shows each image once (instance-balanced). It depends on
            the seed and the epoch alone, so that processes share it and a resumed training repeats it.
        drs_start: fraction of the training, in [0, 1], before the sampler is used: deferred re-sampling (DRS, Cao
            et al. 2019). It sets in with an epoch.
        batch_size: images a batch, for each device.
        global_batch_size: images an optimiser step, over all devices: ``lt-cb fit`` accumulates as many batches as that
            takes. None accumulates what the Trainer is told to.
        image_size: scale images to this height and width in pixels; None keeps the source's.
        interpolation: of images that are scaled.
        crop: of training images: ``padded``, or ``resized`` for a random region of the image file, of 8 to 100 % of its
            area, scaled to image_size. That is for images larger than image_size, and the test then looks at the
            centre: of 256 pixels of height the middle 224, say.
        crop_padding: zeros around a training image before a ``padded`` random crop, in pixels.
        horizontal_flip: flip half of the training images left to right.
        augment: applied to each training image, uint8 of shape (C, H, W), one after the other, after crop and flip: the
            transforms of ``torchvision.transforms.v2``, as RandAugment, AutoAugment or RandomErasing (Cutout).
        mean: of pixel values in [0, 1], one for each channel or for all; None is that of x / 128 - 1.
        std: likewise.
        on_unreadable: ``refuse`` image files that cannot be read, or ``skip`` them: they are looked for before anything
            else, count for no class, and are named in a warning.
        num_workers: processes that decode what is not in memory, for each device; None is one for each core.
        seed: of shuffling, crops, augmentation and sampler; the command line takes that of ``seed_everything``.

    Raises:
        InputError: if a value is out of range, or the source has fewer images than asked for.
    """

    def __init__(
        self,
        source: str | SourceFactory = "digits",
        root: str = "data",
        imbalance_factor: float | None = None,
        imbalance_type: Literal["exponential", "step"] = "exponential",
        n_max: int | None = None,
        subset_counts: list[int] | None = None,
        subset_seed: int = 0,
        val_fraction: float = 0.0,
        sampler: Sampler | None = None,
        drs_start: float = 0.0,
        batch_size: int = 128,
        global_batch_size: int | None = None,
        image_size: int | None = None,
        interpolation: Interpolation = "bilinear",
        crop: Crop = "padded",
        crop_padding: int = 4,
        horizontal_flip: bool = True,
        augment: list[nn.Module] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        on_unreadable: Literal["refuse", "skip"] = "refuse",
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("image_size", 1 if image_size is None else image_size, 1),
            ("crop_padding", crop_padding, 0),
            ("num_workers", num_workers or 0, 0),
            ("subset_seed", subset_seed, 0),
            ("seed", seed, 0),
        ):
            if value is None or value < least:
                raise InputError(f"{name} is {value}, but must be at least {least}.")
        if not 0.0 <= val_fraction < 1.0:
            raise InputError(f"val_fraction is {val_fraction}, but must be in [0, 1).")
        check_fraction("drs_start", drs_start)
        self.source = make_source(source, root)
        self._streams_alone = False  # also with one device
        if isinstance(self.source, FileSource):
            self.source.requested_size, self.source.interpolation = image_size, interpolation
            if on_unreadable == "skip":
                self._streams_alone = must_stream(self.source, crop, 1)
                self.source.skip_unreadable(in_memory=not self._streams_alone)
        elif on_unreadable == "skip":
            raise InputError(
                f"on_unreadable is skip, but {type(self.source).__name__} is no data set of image files: set "
                "--data.on_unreadable refuse."
            )
        elif crop == "resized":
            raise InputError(
                f"crop is resized, but {type(self.source).__name__} has images of {self.source.image_size} pixels in "
                "memory: set --data.crop padded."
            )
        self.subset_counts = counts_of_subset(
            self.source.counts, self.source.class_names, imbalance_factor, imbalance_type, n_max, subset_counts
        )
        self.subset_seed = subset_seed
        self.val_fraction = 0.0 if self.source.has_val else val_fraction
        self.sampler = sampler
        self.drs_start = drs_start
        self.batch_size = batch_size
        self.global_batch_size = global_batch_size
        self.crop = crop
        self.interpolation = interpolation
        self.num_workers = num_workers
        self.image_size = image_size or self.source.image_size
        self.in_channels = self.source.channels
        self.crop_padding = crop_padding
        self.horizontal_flip = horizontal_flip
        self.augment = nn.Sequential(*augment) if augment else None
        self.mean = channel_values("mean", mean, self.in_channels)
        self.std = channel_values("std", std, self.in_channels)
        self.seed = seed
        self._splits: dict[Split, tuple[Tensor | Paths, Tensor]] = {}
        self.rows: dict[Split, Indices] = {}  # of a split's images among those of the source, once it is loaded
        self.subset_hash: str | None = None
        self._chosen: Chosen | None = None
        if self.multi_label:  # whose counts are known once the images are chosen
            decay = None if imbalance_factor is None else imbalance_type
            self._chosen = choose(self.source, self.subset_counts, decay, self.val_fraction, subset_seed)
            self.subset_counts = self._chosen.subset_counts

    @property
    def task(self):
        from lt_cb.task import Task
        return Task.of(self.multi_label)

    @property
    def multi_label(self) -> bool:
        """Whether an image has any number of labels, so that targets are int8 of shape (B, C), -1 for unknown."""
        return self.source.multi_label

    @property
    def class_names(self) -> list[str]:
        """Names of the C classes, by class index."""
        return self.source.class_names

    @property
    def class_counts(self) -> list[int]:
        """Images of each class that are trained on, those of the subset less those held out for validation."""
        if self._chosen is not None:
            return list(self._chosen.class_counts)
        return [n - int(np.ceil((n - 1) * self.val_fraction)) if n else 0 for n in self.subset_counts]

    @property
    def num_images(self) -> int:
        """How many images are trained on, those of the subset less those held out for validation."""
        return sum(self.class_counts) if self._chosen is None else len(self._chosen.train)

    def training_labels(self) -> Labels:
        """Return the labels of the images that are trained on, of several labels an image, int8 of shape (N, C)."""
        assert self._chosen is not None
        return self.source.labels("train")[self._chosen.train]

    @property
    def skipped(self) -> dict[Split, int]:
        """How many images of each split were left out as unreadable; empty where that was not asked for."""
        unreadable = self.source.unreadable if isinstance(self.source, FileSource) else {}
        return {split: len(rows) for split, rows in unreadable.items()}

    def accumulation(self, devices: int) -> int | None:
        """Return how many batches of all devices make a ``global_batch_size``, None without one.

        Raises:
            InputError: if that is no whole number of at least 1.
        """
        if self.global_batch_size is None:
            return None
        together = devices * self.batch_size
        batches, rest = divmod(self.global_batch_size, together)
        if rest or batches < 1:
            raise InputError(
                f"global_batch_size is {self.global_batch_size}, but must be a multiple of the {together} images that "
                f"{devices} x {self.batch_size} (devices x batch_size) are: set --data.batch_size, or "
                "--data.global_batch_size null."
            )
        return batches

    def facts(self) -> dict[str, Any]:
        """Return what tells this training set from another, for the record of a run."""
        return {
            "seed_everything": self.seed,
            "subset_seed": self.subset_seed,
            "subset_sha256": self.subset_hash,
            "validated_on": "held_out" if self.val_fraction else "val" if self.source.has_val else "test",
        }

    def prepare_data(self) -> None:
        """Download or decode what is missing, so that what is wrong with it shows before a run begins."""
        stage = self.trainer.state.fn if self.trainer else "fit"
        self._load("test")
        if stage != "test":
            self._load("train")
        if self.source.has_val and stage in ("fit", "validate"):
            self._load("val")

    def setup(self, stage: str) -> None:
        """Give the model the seed and whether it validates on the test split."""
        model: Any = self.trainer and self.trainer.lightning_module
        model.mix_seed, model.validates_on_test = self.seed, self.validation_split == "test"

    @cached_property
    def _streams(self) -> bool:
        devices = self.trainer.num_devices if self.trainer else 1
        return self._streams_alone or must_stream(self.source, self.crop, devices)

    def origin(self, split: Split) -> Split:
        """Return the source's split that the images of a split are taken from."""
        return "train" if split == "val" and self.val_fraction else split

    def _load(self, split: Split) -> None:
        if split in self._splits:
            return
        split = self.origin(split)
        images: npt.NDArray[Any]
        if self._streams and isinstance(self.source, FileSource):
            images, labels = self.source.files(split)
        else:
            images, labels = self.source.load(split)
        if not self._streams and images.dtype != np.uint8:
            raise InputError(
                f"the {split} images are {images.dtype}, but must be uint8 pixels of 0 to 255, (N, H, W, channels): "
                "convert them in the source's load()."
            )
        check_labels(labels, split, len(self.class_names), self.multi_label)
        self.rows[split] = np.arange(len(labels))
        if split == "train":
            check_counts(labels, self.source.counts, self.class_names)
            if self._chosen is None:
                keep, held = hold_out(
                    long_tailed_subset(labels, self.subset_counts, self.subset_seed), self.val_fraction
                )
            else:
                keep, held = self._chosen.train, self._chosen.held
            self.subset_hash = hashlib.sha256(keep.tobytes()).hexdigest()
            if self.val_fraction:
                self._keep("val", images[held], labels[held])
                self.rows["val"] = held
            images, labels, self.rows[split] = images[keep], labels[keep], keep
        self._keep(split, images, labels)

    def _keep(self, split: Split, images: npt.NDArray[Any], labels: Labels) -> None:
        scaled = images if self._streams else torch.from_numpy(resize(images, self.image_size, self.interpolation))
        self._splits[split] = scaled, torch.from_numpy(labels)

    def targets(self, split: Split) -> Tensor:
        """Return the targets of a split's images in the order of ``rows``: int64 (N,), or with labels int8 (N, C)."""
        self._load(split)
        return self._splits[split][1].cpu()

    @property
    def augments(self) -> bool:
        """Whether a training image is another in each epoch."""
        return bool(self.crop_padding or self.horizontal_flip or self.augment is not None or self.crop == "resized")

    @property
    def validation_split(self) -> Split:
        """The split that ``val_dataloader`` shows."""
        return "val" if self.val_fraction or self.source.has_val else "test"

    def replace_images(self, split: Split, features: Tensor) -> None:
        """Have the loaders of a split give out features, floating of shape (N, D), in place of its images."""
        self._splits[split] = features, self.targets(split)

    def restore_images(self, split: Split) -> None:
        """Have the loaders of a split give out images again."""
        del self._splits[split]

    def ordered_dataloader(self, split: Split, positions: Tensor, batch_size: int | None = None) -> EpochLoader:
        """Batches of some images of a split, cropped as for a test, with their positions in place of classes.

        Args:
            split: which.
            positions: int64, shape (M,), of the images in the order to be shown, among those of the split.
            batch_size: None is that of the training.
        """
        loader = self._loader(split, positions)
        loader.batch_size = batch_size or self.batch_size
        return loader

    def _loader(self, split: Split, positions: Tensor | None = None) -> EpochLoader:
        self._load(split)
        trainer, train = self.trainer, split == "train" and positions is None
        images, targets = self._splits[split]
        if positions is not None:
            chosen = positions if isinstance(images, Tensor) else positions.numpy()
            images, targets = images[chosen], positions
        loader = make_loader(
            images,
            targets,
            self.batch_size,
            device=trainer.strategy.root_device if trainer else torch.device("cpu"),
            image_size=self.image_size,
            channels=self.in_channels,
            crop=self.crop,
            interpolation=self.interpolation,
            strict=isinstance(self.source, FileSource) and self.source.fixed_size is None,
            num_workers=self.num_workers,
            copies=trainer.num_devices if trainer else 1,
            train=train,
            crop_padding=self.crop_padding,
            horizontal_flip=self.horizontal_flip,
            augment=self.augment,
            seed=self.seed,
            order=self._order if train and self.sampler else None,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        if isinstance(loader, ResidentLoader) and positions is None:
            self._splits[split] = loader.images, loader.targets  # where they are now: nothing is held twice
        return loader

    def _order(self, epoch: int) -> Tensor | None:
        progress = training_progress(self.trainer, epoch) if self.trainer else 0.0
        if self.sampler is None or progress < self.drs_start:
            return None
        labels = self._splits["train"][1].cpu().numpy()
        return torch.from_numpy(self.sampler.draw(labels, [self.seed, epoch], progress))

    def train_dataloader(self) -> EpochLoader:
        """Shuffled, augmented batches of the subset; outside of a Trainer, ``set_epoch`` draws others each epoch."""
        return self._loader("train")

    def val_dataloader(self) -> EpochLoader:
        """Batches of the held-out images, or else of the source's validation split, or else of the test split."""
        return self._loader(self.validation_split)

    def test_dataloader(self) -> EpochLoader:
        """Batches of the whole test split, each image once over all processes."""
        return self._loader("test")
