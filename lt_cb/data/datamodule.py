"""Data module: a data set and its settings become loaders and class counts."""

import hashlib
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from lt_cb.data.decode import resize
from lt_cb.data.grouped import say_groups
from lt_cb.data.loaders.epoch import EpochLoader
from lt_cb.data.loaders.placement import fits_in_memory, make_loader
from lt_cb.data.loaders.resident import ResidentLoader
from lt_cb.data.sources.base import FileSource, SourceFactory, check_labels, hold_out_test
from lt_cb.data.sources.listing import TEST_SHARE, Paths, Split
from lt_cb.data.sources.make import make_source
from lt_cb.data.sources.names import ROOT
from lt_cb.data.view import CENTRE, Crop, Interpolation, View
from lt_cb.errors import InputError
from lt_cb.longtail import Subset, hold_out, long_tailed_subset
from lt_cb.longtail.sampler import Sampler
from lt_cb.longtail.several import choose
from lt_cb.longtail.subset import ImbalanceType, Indices, Labels, count_labels, count_unlabelled, training_counts
from lt_cb.schedule import check_fraction, training_progress
from lt_cb.task import Task


class LongTailedDataModule(LightningDataModule):
    """Long-tailed subset of a data set, with its whole test split.

    Classes are in the order of their size, as in Cui et al. 2019. Without ``val_fraction``, and if the data set has no
    validation split, validation during ``fit`` uses the test split, as in the paper: do not select anything by it.

    If an image has several labels, it counts for each of them. The counts of a subset are then upper bounds: an image
    that is removed for one class is lost for its other classes too.

    Images are held in memory, on the training device, if they fit. Otherwise they are decoded on demand.

    Args:
        source: None reads your images at ``root``: folders of classes, a table, or annotations in COCO's format. With
            the default root, it is ``Digits``. Or a name: ``Digits``, ``SideBySide``, ``CIFAR10``, ``CIFAR100``,
            ``FashionMNIST``, ``ImageFolder``, ``INaturalist2017``, ``INaturalist2018``, ``ILSVRC2012``, ``ImageNetLT``,
            ``PlacesLT``, ``COCO``, ``Manifest`` (a table of files), or the class path of a custom `lt_cb.data.Source`,
            with ``init_args`` if it has options. In Python also a function that makes a source of its root.
        root: folder of the data, or a table.
        task: ``one`` or ``several`` labels an image, for a source that may have either; None decides from the data.
        split: share of each class held out as test images, above 0 and below 1, if there is no test folder or column
            of splits. The same images for all seeds. Unused if there are test images.
        imbalance_factor: largest class count divided by the smallest, at least 1; None keeps all training images.
        imbalance_type: ``exponential`` decay as in the paper, or one ``step`` in the middle of the classes.
        n_max: images of the largest class; None takes as many as the smallest class of the data set has.
        subset_counts: training images to keep of each class, instead of an imbalance factor.
        subset_seed: seed of the choice of images, apart from the training's seed. With the same seed, the subset of a
            larger imbalance factor is contained in the subset of a smaller one.
        val_fraction: share of the subset held out for validation, in [0, 1), at least one image of each class of two.
            Unused if the data set has a validation split.
        sampler: how often an epoch shows each class; None shows each image once (instance-balanced).
        drs_start: fraction of the training, in [0, 1], before the sampler is used: deferred re-sampling (DRS, Cao et
            al. 2019). Sampling changes at the start of an epoch.
        batch_size: images a batch on each device.
        global_batch_size: images an optimiser step over all devices, by gradient accumulation in ``lt-cb fit``. None
            leaves accumulation to the Trainer.
        image_size: height and width in pixels that images are scaled and cropped to. None takes the default of the data
            set: for image folders and tables the images' own size if all are squares of one size, of at most 256
            pixels, else 64.
        interpolation: filter for images that are scaled.
        crop: crop of training images: ``padded``, or ``resized`` for a random region of 8 to 100 % of the image file,
            scaled to image_size, for images larger than that. Tests then show the centre, such as 224 of 256 pixels.
        crop_padding: zeros around a training image before a ``padded`` random crop, in pixels.
        horizontal_flip: flip half of the training images left to right.
        augment: transforms of ``torchvision.transforms.v2``, such as RandAugment or RandomErasing (Cutout), applied to
            each training image, uint8 of shape (C, H, W), after crop and flip.
        mean: mean of pixel values in [0, 1], one for each channel or one for all; None maps bytes x to x / 128 - 1.
        std: standard deviation of pixel values, in the same form as ``mean``.
        on_unreadable: ``refuse`` image files that cannot be read, or ``skip`` them: they count for no class.
        num_workers: processes that decode images that are not in memory, for each device; None is one for each core.
        seed: seed of shuffling, crops, augmentation and sampler; the command line sets it to ``seed_everything``.

    Raises:
        InputError: if a value is out of range, or the data set has fewer images than asked for.
    """

    def __init__(
        self,
        source: str | SourceFactory | None = None,
        root: str = ROOT,
        task: Literal["one", "several"] | None = None,
        split: float = TEST_SHARE,
        imbalance_factor: float | None = None,
        imbalance_type: ImbalanceType = "exponential",
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
            ("crop_padding", crop_padding, 0),
            ("num_workers", num_workers or 0, 0),
            ("subset_seed", subset_seed, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise InputError(f"{name} is {value}, but must be at least {least}.")
        if not 0.0 <= val_fraction < 1.0:
            raise InputError(f"val_fraction is {val_fraction}, but must be in [0, 1).")
        if not 0.0 < split < 1.0:
            raise InputError(f"split is {split}, but must be above 0 and below 1: the share of images to test on.")
        check_fraction("drs_start", drs_start)
        self.source = make_source(source, root, {} if task is None else {"task": task})
        hold_out_test(self.source, split)
        self.multi_label = self.source.multi_label  # targets are then int8 of shape (B, C), -1 for unknown
        self.task = Task.of(self.multi_label)
        size = self.source.image_size if image_size is None else image_size
        means, deviations = ((CENTRE,) if values is None else tuple(values) for values in (mean, std))
        self.view = View(size, interpolation, crop, means, deviations, self.source.channels)
        self.skipped: dict[Split, int] = {}  # number of unreadable images skipped in each split
        if isinstance(self.source, FileSource):
            self.source.view = self.view
            if on_unreadable == "skip":
                self.skipped = self.source.skip_unreadable()
        elif crop == "resized" or on_unreadable == "skip":
            option = "crop is resized" if crop == "resized" else "on_unreadable is skip"
            raise InputError(f"{option}, but {type(self.source).__name__} has no image files: leave the option out.")
        self.class_names = self.source.class_names
        self.image_size, self.in_channels = self.view.size, self.view.channels
        self.mean, self.std = list(self.view.mean), list(self.view.std)
        self.sampler, self.drs_start = sampler, drs_start
        self.batch_size, self.global_batch_size = batch_size, global_batch_size
        self.num_workers = num_workers
        self.crop_padding, self.horizontal_flip = crop_padding, horizontal_flip
        self.augment = nn.Sequential(*augment) if augment else None
        self.drop_single = False  # a last training batch of one image, which some networks cannot train on
        self.seed, self.subset_seed = seed, subset_seed
        self.val_fraction = 0.0 if self.source.has_val else val_fraction
        self.rows: dict[Split, Indices] = {}  # positions in the source of a split's images, once it is loaded
        self._splits: dict[Split, tuple[Tensor | Paths, Tensor]] = {}
        self._chosen: tuple[Indices, Indices] | None = None  # positions for training and for validation
        counts = None if subset_counts is None else tuple(subset_counts)
        self.subset = Subset(imbalance_factor, imbalance_type, n_max, counts, subset_seed)
        self.tested_on: str | None = None  # root of the tested data, if a checkpoint was trained on others
        self._count_classes()

    def _count_classes(self) -> None:
        """Set class counts. With several labels or groups, they are known only after the images are chosen."""
        names = self.class_names
        self.subset_counts = self.subset.class_counts(self.source.counts, names)
        self.class_counts = training_counts(self.subset_counts, self.val_fraction)
        self.num_images, self.num_unlabelled = sum(self.class_counts), 0
        groups = self.source.groups("train")
        if self.multi_label or groups is not None:
            labels = self.source.labels("train")
            check_labels(self.source, "train", labels)
            self._chosen = choose(labels, self.subset, self.subset_counts, names, self.val_fraction, groups)
            rows, held_out = self._chosen
            self.class_counts = count_labels(labels[rows], len(names))
            self.subset_counts = count_labels(labels[np.append(rows, held_out)], len(names))
            self.num_images, self.num_unlabelled = len(rows), count_unlabelled(labels[rows])
        say_groups(self)

    def training_labels(self) -> Labels:
        """Return the labels of the training images, if an image has several labels, or with groups."""
        assert self._chosen is not None
        return self.source.labels("train")[self._chosen[0]]

    def groups(self, split: Split) -> Indices | None:
        """Return the group of each image of a split in the order of ``rows``, int64 of shape (N,), or None."""
        groups = self.source.groups(self.origin(split))
        if groups is not None and self._chosen is not None and self.origin(split) == "train":
            groups = groups[self._chosen[int(split == "val")]]
        return groups

    def accumulation(self, devices: int) -> int | None:
        """Return the number of batches that make a ``global_batch_size``, or None without one."""
        if self.global_batch_size is None:
            return None
        batches, rest = divmod(self.global_batch_size, together := devices * self.batch_size)
        if rest or batches < 1:
            raise InputError(
                f"global_batch_size is {self.global_batch_size}, but must be a multiple of the {together} images that "
                f"{devices} x {self.batch_size} (devices x batch_size) are: set --data.batch_size, or "
                "--data.global_batch_size null."
            )
        return batches

    def facts(self) -> dict[str, Any]:
        """Return the facts that identify this training set, for the record of a run."""
        return {
            "seed_everything": self.seed,
            "subset_seed": self.subset_seed,
            "subset_sha256": hashlib.sha256(self.rows["train"].tobytes()).hexdigest() if "train" in self.rows else None,
            "validated_on": "held_out" if self.val_fraction else self.validation_split,
            **({"tested_on": self.tested_on, "validated_on": None} if self.tested_on else {}),
        }

    def prepare_data(self) -> None:
        """Download or decode the data, so that errors show before a run begins."""
        stage = self.trainer.state.fn if self.trainer else "fit"
        self._load("test")
        if stage != "test":
            self._load("train")
        if self.source.has_val and stage in ("fit", "validate"):
            self._load("val")

    def setup(self, stage: str) -> None:
        """Give the model the seed and whether it validates on the test split."""
        if self.trainer is not None:
            model: Any = self.trainer.lightning_module
            model.mix_seed, model.validates_on_test = self.seed, self.validation_split == "test"

    @cached_property
    def _streams(self) -> bool:
        """Whether images are decoded on demand, instead of held in memory by each process of this machine."""
        if not isinstance(self.source, FileSource):
            return False
        count = sum(len(self.source.labels(split)) for split in self.source.splits)
        copies = self.trainer.num_devices if self.trainer else 1
        return self.view.crop == "resized" or not fits_in_memory(count, self.view, copies)

    def origin(self, split: Split) -> Split:
        """Return the split of the source that the images of a split come from."""
        return "train" if split == "val" and self.val_fraction else split

    def _load(self, split: Split) -> None:
        if split in self._splits:
            return
        split = self.origin(split)
        source: Any = self.source
        images, labels = source.files(split) if self._streams else source.load(split)
        if not self._streams and images.dtype != np.uint8:
            raise InputError(
                f"the {split} images are {images.dtype}, but must be uint8 pixels of 0 to 255, (N, H, W, channels): "
                "convert them in the source's load()."
            )
        check_labels(self.source, split, labels)
        parts = {split: np.arange(len(labels))}
        if split == "train":
            if self._chosen is None:
                by_class = long_tailed_subset(labels, self.subset_counts, self.subset_seed)
                self._chosen = hold_out(by_class, self.val_fraction)
            parts["train"], held_out = self._chosen
            if self.val_fraction:
                parts["val"] = held_out
        for part, rows in parts.items():
            own = images if len(rows) == len(images) else images[rows]  # rows are sorted: no copy of all images
            kept = own if self._streams else torch.from_numpy(resize(own, self.view))
            self._splits[part], self.rows[part] = (kept, torch.from_numpy(labels[rows])), rows

    def targets(self, split: Split) -> Tensor:
        """Return the targets of a split in the order of ``rows``: int64 of shape (N,), or int8 labels (N, C)."""
        self._load(split)
        return self._splits[split][1].cpu()

    @property
    def augments(self) -> bool:
        """Whether a training image looks different in each epoch."""
        random_crop = self.crop_padding or self.view.crop == "resized"
        return bool(random_crop or self.horizontal_flip or self.augment is not None)

    @property
    def validation_split(self) -> Split:
        """The split of ``val_dataloader``."""
        return "val" if self.val_fraction or self.source.has_val else "test"

    def replace_images(self, split: Split, features: Tensor) -> None:
        """Make the loaders of a split yield features, floating of shape (N, D), instead of its images."""
        self._splits[split] = features, self.targets(split)

    def restore_images(self, split: Split) -> None:
        """Make the loaders of a split yield images again."""
        del self._splits[split]

    def images_at(self, split: Split, positions: Tensor) -> Tensor | Paths:
        """Return images at some positions of a split, uint8 of shape (B, C, H, W), or their paths."""
        self._load(split)
        images: Tensor | Paths = self._splits[split][0]
        if isinstance(self.source, FileSource):  # also if the images are in memory: machines decode their own
            return self.source.files(self.origin(split))[0][self.rows[split][positions.numpy()]]  # type: ignore[no-any-return]
        return images[positions]

    def ordered_dataloader(self, split: Split, positions: Tensor, batch_size: int | None = None) -> EpochLoader:
        """Return a loader of the images at some positions of a split, without augmentation; targets are positions."""
        return self._loader(split, positions, batch_size)

    def _loader(self, split: Split, positions: Tensor | None = None, batch_size: int | None = None) -> EpochLoader:
        self._load(split)
        trainer, train = self.trainer, split == "train" and positions is None
        images, targets = self._splits[split]
        if positions is not None:
            images, targets = images[positions if isinstance(images, Tensor) else positions.numpy()], positions
        loader = make_loader(
            images,
            targets,
            batch_size or self.batch_size,
            view=self.view,
            device=trainer.strategy.root_device if trainer else torch.device("cpu"),
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
            drop_single=self.drop_single,
        )
        if isinstance(loader, ResidentLoader) and positions is None:
            self._splits[split] = loader.images, loader.targets  # on their device, so that nothing is held twice
        return loader

    def _order(self, epoch: int) -> Tensor | None:
        progress = training_progress(self.trainer, epoch) if self.trainer else 0.0
        if self.sampler is None or progress < self.drs_start:
            return None
        labels = self._splits["train"][1].cpu().numpy()
        return torch.from_numpy(self.sampler.draw(labels, [self.seed, epoch], progress))

    def train_dataloader(self) -> EpochLoader:
        """Return shuffled, augmented batches of the subset. Without a Trainer, call ``set_epoch`` before each epoch."""
        return self._loader("train")

    def val_dataloader(self) -> EpochLoader:
        """Return batches of the held-out images, else of the validation split, else of the test split."""
        return self._loader(self.validation_split)

    def test_dataloader(self) -> EpochLoader:
        """Return batches of the whole test split, each image once over all processes."""
        return self._loader("test")
