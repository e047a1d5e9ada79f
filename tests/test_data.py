import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torchvision.transforms.v2 import RandomErasing
from torchvision.transforms.v2 import functional as tv

from lt_cb.data import LongTailedDataModule, SquareRootSampler
from lt_cb.data.loaders.epoch import EpochLoader
from lt_cb.data.loaders.placement import folder_loader
from lt_cb.data.loaders.resident import ResidentLoader
from lt_cb.data.sources import Digits
from lt_cb.data.view import View
from lt_cb.longtail.subset import hold_out, long_tailed_subset

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [50, 40, 30, 20]))


class TestSubset:
    @given(st.lists(st.integers(0, 20), min_size=4, max_size=4), st.integers(0, 2**32), st.floats(0, 0.99))
    @settings(deadline=None)
    def test_counts_nesting_and_hold_out(self, counts: list[int], seed: int, fraction: float) -> None:
        smaller = long_tailed_subset(LABELS, [n // 2 for n in counts], seed)
        larger = long_tailed_subset(LABELS, counts, seed)
        train, val = hold_out(larger, fraction)
        assert np.bincount(LABELS[np.concatenate([train, val])], minlength=4).tolist() == counts
        assert len(set(train) | set(val)) == sum(counts)
        assert all(set(few) <= set(many) for few, many in zip(smaller, larger, strict=True))
        smaller_train, smaller_val = hold_out(smaller, fraction)
        assert set(smaller_train) <= set(train)
        assert set(smaller_val) <= set(val)
        for label, count in enumerate(counts):
            assert (LABELS[train] == label).any() == (count > 0)
            assert (LABELS[val] == label).any() == (count > 1 and fraction > 0)

    def test_seed_chooses_the_images(self) -> None:
        first, again, other = (np.concatenate(long_tailed_subset(LABELS, [9] * 4, seed)) for seed in (0, 0, 1))
        assert (first == again).all()
        assert (first != other).any()


class TestDataModule:
    def test_class_counts_before_setup_equal_the_training_images(self) -> None:
        data = LongTailedDataModule("Digits", imbalance_factor=50)
        assert data.class_counts == [134, 86, 56, 36, 23, 15, 9, 6, 4, 2]
        for _ in range(2):
            labels = torch.cat([targets for _, targets in data.train_dataloader()])
            assert labels.bincount().tolist() == data.class_counts
        assert torch.cat([targets for _, targets in data.test_dataloader()]).bincount().tolist() == [40] * 10

    def test_held_out_images_are_not_in_the_class_counts(self) -> None:
        data = LongTailedDataModule("Digits", imbalance_factor=50, val_fraction=0.2)
        train = torch.cat([targets for _, targets in data.train_dataloader()]).bincount()
        val = torch.cat([targets for _, targets in data.val_dataloader()]).bincount()
        assert train.tolist() == data.class_counts
        assert (train + val).tolist() == data.subset_counts
        assert val.min() == 1

    def test_digits_equal_the_ones_of_scikit_learn(self) -> None:
        theirs = load_digits()
        pixels = np.round(theirs.images * (255 / 16)).astype(np.uint8)[..., None]
        last = np.concatenate([np.flatnonzero(theirs.target == label)[-40:] for label in range(10)])
        for split, chosen in (("test", np.sort(last)), ("train", np.setdiff1d(np.arange(1797), last))):
            images, labels = Digits("").load(split)
            np.testing.assert_array_equal(images, pixels[chosen], strict=True)
            np.testing.assert_array_equal(labels, theirs.target[chosen])
        assert np.bincount(labels).tolist() == Digits.counts

    def test_step_and_explicit_counts(self) -> None:
        assert (
            LongTailedDataModule(imbalance_factor=10, imbalance_type="step", n_max=100).class_counts
            == [100] * 5 + [10] * 5
        )
        counts = [100, 90, 5, 0, 7, 8, 9, 10, 11, 12]
        data = LongTailedDataModule(subset_counts=counts)
        data.prepare_data()
        assert torch.cat([t for _, t in data.train_dataloader()]).bincount(minlength=10).tolist() == counts
        assert LongTailedDataModule().class_counts == Digits.counts

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"imbalance_factor": 0.5}, "imbalance_factor is 0.5, but must be at least 1"),
            ({"imbalance_factor": 1000}, "leaves class '9' without an image: with 134 images .* at most 134"),
            (
                {"imbalance_factor": 10, "n_max": 139},
                "139 training images of class '0' are asked for, but there are 138",
            ),
            ({"n_max": 10}, "n_max is 10 without an imbalance_factor"),
            ({"subset_counts": [1, 2]}, "must have 10 counts"),
            ({"subset_counts": [1] * 10, "imbalance_factor": 2}, "exclude each other"),
            ({"val_fraction": 1.0}, r"val_fraction is 1.0, but must be in \[0, 1\)"),
            ({"batch_size": 0}, "batch_size is 0, but must be at least 1"),
            ({"seed": -1}, "seed is -1, but must be at least 0"),
            ({"std": [0.0]}, "above 0"),
            ({"mean": [0.1, 0.2, 0.3]}, r"mean is \[0.1, 0.2, 0.3\], but must have one value"),
            ({"image_size": 0}, "image_size is 0, but must be at least 1"),
            ({"source": "cifar01"}, "there is no data source 'cifar01'.* Did you mean 'CIFAR10'?"),
            ({"source": "my.module.Source"}, "there is no data source 'my.module.Source'"),
            ({"source": "ImageFolder", "root": "/nowhere"}, "there is no folder '/nowhere': set --data.root"),
        ],
    )
    def test_wrong_options_raise(self, options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            LongTailedDataModule(**options)

    def test_labels_out_of_range_raise_on_loading(self) -> None:
        class Eleven(Digits):
            def load(self, split):
                return np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 10])

        with pytest.raises(ValueError, match=r"labels go from 0 to 10, but 10 classes allow 0 to 9"):
            LongTailedDataModule(Eleven).prepare_data()

    def test_facts_identify_the_subset(self) -> None:
        first, other = (LongTailedDataModule(imbalance_factor=50, subset_seed=s, seed=7) for s in (1, 2))
        seeds = {"seed_everything": 7, "subset_seed": 1}
        assert first.facts() == {**seeds, "subset_sha256": None, "validated_on": "test"}
        assert LongTailedDataModule(imbalance_factor=50, val_fraction=0.1).facts()["validated_on"] == "held_out"
        for data in (first, other):
            data.prepare_data()
        assert len(first.facts()["subset_sha256"]) == 64
        assert first.facts()["subset_sha256"] != other.facts()["subset_sha256"]

    @pytest.mark.parametrize(
        ("options", "recorded"),
        [
            (
                {"imbalance_factor": 50, "val_fraction": 0.1, "batch_size": 64, "crop_padding": 2, "subset_seed": 3},
                "0984c6f15a5f76f5caf5b4b39a323e3a0da8dd8ee7e1aedcc0097278d51ed341",
            ),
            ({}, "da02b55596875987e404fb2a88e7f3b5749b88ccd563a26aa488f4091b1046ed"),
        ],
    )
    def test_batches_equal_the_recorded_ones(self, options: dict, recorded: str) -> None:
        sampler = SquareRootSampler() if options else None
        data = LongTailedDataModule(seed=7, sampler=sampler, **options)
        digest = hashlib.sha256()
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
            for epoch in (0, 1):
                loader.set_epoch(epoch)
                for images, targets in loader:
                    digest.update(images.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
                    digest.update(targets.numpy().tobytes())
        assert digest.hexdigest() == recorded


class TestView:
    def test_one_mean_is_repeated_for_all_channels(self) -> None:
        view = View(32, mean=(0.5,), std=(0.1, 0.2, 0.3))
        assert (view.mean, view.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
        assert View(8, channels=1).mean == (128 / 255,)
        data = LongTailedDataModule(image_size=9, mean=[0.3])
        assert (data.view.size, data.view.channels, data.mean, data.image_size) == (9, 1, [0.3], 9)

    def test_wrong_values_raise(self) -> None:
        for options, sentence in (
            ({"crop": "round"}, "crop is 'round', but must be padded or resized"),
            ({"interpolation": [1]}, r"interpolation is \[1\], but must be bilinear or bicubic"),
            ({"mean": (0.1, 0.2)}, "must have one value, or 3"),
            ({"std": (0.0,)}, "must be above 0"),
        ):
            with pytest.raises(ValueError, match=sentence):
                View(8, **options)

    def test_caches_keep_their_names(self) -> None:
        """A default option adds nothing to the name of a cache, so that a new option keeps old caches valid."""
        assert View(32).cache_key() == "32 3"
        assert View(9, "bicubic", channels=1).cache_key("padded") == "9 1 padded interpolation=bicubic"


def test_hooks_work_without_a_trainer() -> None:
    data = LongTailedDataModule("Digits", imbalance_factor=10)
    data.prepare_data()
    data.setup("fit")
    assert sum(len(targets) for _, targets in data.train_dataloader()) == sum(data.class_counts)


def test_public_names() -> None:
    import lt_cb.data

    for name in lt_cb.data.__all__:
        assert getattr(lt_cb.data, name) is not None
    with pytest.raises(AttributeError, match=r"module 'lt_cb\.data' has no attribute 'Samplre'"):
        lt_cb.data.Samplre  # noqa: B018


class TestFolderLoader:
    @staticmethod
    def images(loader: EpochLoader) -> torch.Tensor:
        return torch.cat([images for images, _ in loader])

    @pytest.mark.parametrize("crop", ["padded", "resized"])
    def test_images_equal_the_ones_of_a_test_loader(self, folder: Path, crop: str) -> None:
        test = LongTailedDataModule("ImageFolder", str(folder), image_size=9, crop=crop, num_workers=0)
        files, loader = folder_loader(str(folder / "test"), View(9, crop=crop), batch_size=5, num_workers=0)
        assert [file.parent.name for file in files] == ["cat"] * 4 + ["dog"] * 4 + ["eel"] * 4
        assert [(len(images), targets.tolist()) for images, targets in loader] == [(n, [0] * n) for n in (5, 5, 2)]
        assert torch.equal(self.images(loader), self.images(test.test_dataloader()))

    def test_images_beyond_memory_are_streamed(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _, resident = folder_loader(str(folder), View(9))
        monkeypatch.setattr("lt_cb.data.loaders.placement.available_memory", lambda: 0)
        _, streamed = folder_loader(str(folder), View(9), num_workers=0)
        assert (type(resident).__name__, type(streamed).__name__) == ("ResidentLoader", "StreamingLoader")
        assert torch.equal(self.images(resident), self.images(streamed))

    def test_one_image(self, folder: Path) -> None:
        file = folder / "test/dog/02.jpg"
        files, loader = folder_loader(str(file), View(9), num_workers=0)
        assert files == [file]
        assert torch.equal(self.images(loader), self.images(folder_loader(str(file.parent), View(9))[1])[2:3])

    def test_folders_without_images_raise(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("no image")
        (tmp_path / "a.png").write_text("no image")
        (tmp_path / "empty").mkdir()
        for path, sentence in (
            ("", "predict needs images: set --images to images, a folder, a pattern"),
            (tmp_path / "empty", f"there are no images in '{tmp_path}/empty': set --images to images, a folder"),
            (tmp_path / "none", f"there is no file or folder '{tmp_path}/none': set --images to images, a folder"),
            (tmp_path / "none.jpg", f"there is no file or folder '{tmp_path}/none.jpg'"),
            (tmp_path / "a.txt", r"1 of 1 images in the list '\S+a\.txt' are not there: 'no image \(line 1\)'"),
            (tmp_path / "a.png", r"a\.png' cannot be read as an image"),
            (tmp_path / "*.jpg", r"no file matches '\S+\*\.jpg': set --images to images"),
            (tmp_path / "*.txt", r"there are no images in '\S+\*\.txt': set --images to images"),
        ):
            with pytest.raises(ValueError, match=sentence):
                folder_loader(str(path), View(9))

    @pytest.mark.parametrize(
        "source", ["ImageFolder", "ILSVRC2012", "COCO", "ImageNetLT", "INaturalist2018", "Manifest"]
    )
    def test_data_that_are_not_there_raise(self, tmp_path: Path, source: str) -> None:
        problem = (
            "the list of images '.*nowhere' is not there" if source == "Manifest" else "there is no folder '.*nowhere'"
        )
        with pytest.raises(ValueError, match=rf"{problem}: set --data\.root to"):
            LongTailedDataModule(source, str(tmp_path / "nowhere"))


class TestLoader:
    images = torch.randint(0, 256, (23, 8, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(23)

    def loader(self, **options) -> ResidentLoader:
        return ResidentLoader(self.images, self.targets, 4, **options)

    def test_crops_and_flips_equal_torchvisions(self) -> None:
        padding = 2
        loader = self.loader(train=True, crop_padding=padding, horizontal_flip=True, seed=3)
        padded = tv.pad(self.images.permute(0, 3, 1, 2), padding)
        crops = [tv.crop(padded, y, x, 8, 6) for y in range(5) for x in range(5)]
        allowed = torch.stack([*crops, *map(tv.hflip, crops)], 1)  # (N, 50, C, H, W)
        shown, rows = [], []
        for epoch in range(40):
            loader.set_epoch(epoch)
            for batch, targets in loader:
                shown.append(batch)
                rows.append(targets)
        matches = (allowed[torch.cat(rows)] == torch.cat(shown)[:, None]).flatten(2).all(2)  # (40 N, 50)
        assert shown[0].dtype == torch.uint8
        assert matches.any(1).all()
        assert matches.any(0).all()

    def test_an_epoch_depends_only_on_seed_and_epoch(self) -> None:
        def draw(seed: int, epoch: int) -> torch.Tensor:
            loader = self.loader(train=True, crop_padding=2, horizontal_flip=True, seed=seed)
            loader.set_epoch(epoch)
            return torch.cat([images for images, _ in loader])

        assert torch.equal(draw(1, 5), draw(1, 5))
        assert not torch.equal(draw(1, 5), draw(1, 6))
        assert not torch.equal(draw(1, 5), draw(2, 5))

    def test_augmentation_follows_crop_and_flip_and_does_not_depend_on_the_number_of_processes(self) -> None:
        erase = RandomErasing(p=1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0))

        def draw(epoch: int, world_size: int = 1, **options) -> dict[int, torch.Tensor]:
            images = {}
            for rank in range(world_size):
                loader = self.loader(
                    train=True, crop_padding=2, horizontal_flip=True, rank=rank, world_size=world_size, **options
                )
                loader.set_epoch(epoch)
                images |= {int(t): image for batch, targets in loader for image, t in zip(batch, targets, strict=True)}
            return images

        before = torch.random.get_rng_state()
        erased, plain = draw(0, augment=erase), draw(0)
        assert torch.equal(torch.random.get_rng_state(), before)  # the global generator is untouched
        for target, image in erased.items():
            changed = image != plain[target]
            assert not image[changed].any()  # erased to 0, else as without
            assert (image == 0).all(0).sum() >= 9  # a quarter of 8 x 6 pixels, rounded down to whole ones
        assert all(torch.equal(image, erased[target]) for target, image in draw(0, 3, augment=erase).items())
        assert any(not torch.equal(image, erased[target]) for target, image in draw(1, augment=erase).items())

    def test_the_memory_layout_of_images_makes_no_difference(self) -> None:
        """The images of torchvision's CIFAR are a transposed array."""
        options = {"train": True, "crop_padding": 2, "horizontal_flip": True}
        transposed = self.images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        loader = ResidentLoader(transposed, self.targets, 4, **options)
        for (images, _), (same, _) in zip(loader, self.loader(**options), strict=True):
            assert torch.equal(images, same)

    def test_padding_takes_at_most_a_fifth_more_memory(self) -> None:
        images = torch.zeros(1000, 32, 32, 3, dtype=torch.uint8)
        loader = ResidentLoader(images, torch.zeros(1000, dtype=torch.int64), 128, train=True, crop_padding=4)
        held = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in self.tensors(loader)}
        assert images.nbytes <= sum(held.values()) <= 1.2 * images.nbytes

    @staticmethod
    def tensors(loader: ResidentLoader) -> list[torch.Tensor]:
        return [value for value in vars(loader).values() if isinstance(value, torch.Tensor)]

    @pytest.mark.parametrize(("world_size", "repeated"), [(1, 0), (2, 0), (3, 0), (5, 2)])
    def test_processes_share_an_epoch(self, world_size: int, repeated: int) -> None:
        """With 5 processes and batches of 4, 3 of 23 images remain for the last step."""
        for train in (True, False):
            loaders = [self.loader(train=train, rank=rank, world_size=world_size) for rank in range(world_size)]
            shares = [torch.cat([targets for _, targets in loader]) for loader in loaders]
            assert [len(list(loader)) for loader in loaders] == [len(loader) for loader in loaders]
            assert [len(share) for share in shares] == [loader.num_samples for loader in loaders]
            seen = torch.cat(shares).bincount(minlength=23)
            if train:  # equally many batches, so that no process waits for another
                assert len({len(loader) for loader in loaders}) == 1
                assert (seen.min(), seen.sum()) == (1, 23 + repeated)
            else:
                assert seen.tolist() == [1] * 23
