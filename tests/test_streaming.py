"""Images decoded on demand: equal to images in memory, or to torchvision's random crops."""

import itertools
import math
import os
import threading
import traceback
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, RandAugment, RandomResizedCrop, Resize
from torchvision.transforms.v2 import functional as tv

from lt_cb.data import LongTailedDataModule, SquareRootSampler
from lt_cb.data.decode import decode, decode_region
from lt_cb.data.loaders.epoch import EpochLoader
from lt_cb.data.loaders.streaming import StreamingLoader, centre_region, random_region
from lt_cb.data.view import View


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """Make an image without detail that scaling would lose."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def whole(width: int, height: int) -> tuple[float, float, float, float]:
    return 0, 0, width, height


def batches(loader: EpochLoader, epoch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader.set_epoch(epoch)
    return [(images.clone(), targets) for images, targets in loader]


class TestPadded:
    @pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
    @pytest.mark.parametrize(("image_size", "padding", "flip"), [(None, 4, True), (9, 12, False)])
    def test_batches_equal_the_ones_of_images_in_memory(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        workers: int,
        image_size: int | None,
        padding: int,
        flip: bool,
    ) -> None:
        def data(free: int) -> LongTailedDataModule:
            monkeypatch.setattr("lt_cb.data.loaders.placement.available_memory", lambda: free)
            return LongTailedDataModule(
                "ImageFolder", str(folder), imbalance_factor=3, batch_size=5, image_size=image_size,
                num_workers=workers,
                crop_padding=padding, horizontal_flip=flip, augment=[RandAugment(1)], sampler=SquareRootSampler(),
                val_fraction=0.2,
            )  # fmt: skip

        resident, streaming = data(10**12), data(1000)
        for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
            loaders = getattr(resident, name)(), getattr(streaming, name)()
            assert isinstance(loaders[1], StreamingLoader)
            assert len(loaders[0]) == len(loaders[1])
            for epoch in (0, 1, 1):
                for (images, targets), (others, same) in zip(
                    *(batches(loader, epoch) for loader in loaders), strict=True
                ):
                    assert torch.equal(images, others)
                    assert torch.equal(targets, same)
                    assert others.is_contiguous(memory_format=torch.channels_last)
        assert resident.facts() == streaming.facts()

    def test_images_beyond_half_of_the_memory_are_streamed(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog
    ) -> None:
        reported: list[str] = []
        monkeypatch.setattr("lt_cb.data.loaders.placement.rank_zero_info", reported.append)
        for free, streams in ((2 * 33 * 12 * 12 * 3, False), (2 * 33 * 12 * 12 * 3 - 1, True)):
            monkeypatch.setattr("lt_cb.data.loaders.placement.available_memory", lambda free=free: free)
            assert (
                isinstance(LongTailedDataModule("ImageFolder", str(folder)).test_dataloader(), StreamingLoader)
                == streams
            )
        sentence = "33 images take 0.0 GiB, more than half of the 0.0 GiB of free memory: they are decoded on demand."
        assert reported == [sentence]

    @pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="batches of workers do not come through /dev/shm")
    def test_workers_need_shared_memory(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A worker that finds none left waits for ever, and the training with it."""
        needed = (
            2 * (2 * 2 + 1) * 4 * 12 * 12 * 3
        )  # 2 workers have 2 batches each, one is in use; and again for validation
        for free, workers in ((needed, 2), (needed - 1, 0)):
            space = types.SimpleNamespace(f_bavail=free, f_frsize=1)
            with monkeypatch.context() as patched, warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                patched.setattr(os, "statvfs", lambda path, space=space: space)
                patched.setattr("lt_cb.data.loaders.placement.available_memory", lambda: 0)
                data = LongTailedDataModule("ImageFolder", str(folder), batch_size=4, num_workers=2)
                loaders = [data.train_dataloader(), data.test_dataloader()]
                assert [loader._decoded.num_workers for loader in loaders] == [workers] * 2
                if not workers:
                    assert sum(len(images) for images, _ in loaders[0]) == 21
            said = [str(warning.message) for warning in caught if "shm" in str(warning.message)]
            assert len(said) == (0 if workers else 1)
        assert said[0].startswith("/dev/shm has 0 MiB free, but --data.num_workers 2 needs")

    @pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
    def test_a_damaged_image_is_named(self, folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
        (folder / "test/dog/02.jpg").write_bytes(b"not an image")
        monkeypatch.setattr("lt_cb.data.loaders.placement.available_memory", lambda: 0)
        data = LongTailedDataModule("ImageFolder", str(folder), num_workers=workers)
        with pytest.raises(
            ValueError, match=r"^'\S+dog/02\.jpg' cannot be read as an image .*replace or remove it, or skip such files"
        ) as raised:
            list(data.test_dataloader())
        frames = [frame for frame, _ in traceback.walk_tb(raised.tb)][1:]  # a cycle would keep workers alive
        assert all(value is not raised.value for frame in frames for value in frame.f_locals.values())
        del frames, raised  # otherwise this frame and the error refer to each other


class TestResized:
    def test_a_decoded_region_equals_torchvisions_resized_crop(self, tmp_path: Path) -> None:
        image = smooth(300, 200)
        image.save(tmp_path / "image.png")
        for seed in range(20):
            left, top, right, bottom = box = random_region(np.random.default_rng(seed), 300, 200)
            own = decode_region(tmp_path / "image.png", lambda *_, box=box: box, View(64))
            size = int(bottom - top), int(right - left)
            theirs = np.asarray(tv.resized_crop(image, int(top), int(left), *size, [64, 64], antialias=True))
            difference = np.abs(own.astype(int) - theirs)
            assert difference[3:-3, 3:-3].max() <= 1  # at the border a crop has no neighbours
            assert difference.max() <= 8

    def test_test_images_equal_resize_and_centre_crop(self, tmp_path: Path) -> None:
        for size in ((500, 375), (320, 600)):
            image = smooth(*size)
            image.save(tmp_path / "image.png")
            own = decode_region(tmp_path / "image.png", lambda w, h: centre_region(224, w, h), View(224))
            theirs = np.asarray(CenterCrop(224)(Resize(256)(image)))
            difference = np.abs(own.astype(int) - theirs)  # torchvision rounds sizes and positions to whole pixels
            assert difference.mean() < 2
            assert difference.max() < 12

    def test_regions_lie_within_the_image(self) -> None:
        sizes = (1, 2, 3, 5, 17, 60, 224, 500, 1024, 2000)
        for seed, (width, height) in enumerate(itertools.product(sizes, sizes)):
            for rng in (np.random.default_rng([seed, again]) for again in range(5)):
                left, top, right, bottom = random_region(rng, width, height)
                assert 0 <= left < right <= width
                assert 0 <= top < bottom <= height
            left, top, right, bottom = centre_region(224, width, height)
            assert math.isclose(right - left, bottom - top)
            assert min(left, top, width - right, height - bottom) >= 0

    @pytest.mark.parametrize(("width", "height"), [(500, 375), (300, 300), (1000, 100), (40, 300)])
    def test_regions_have_torchvisions_distribution(self, width: int, height: int) -> None:
        rng = np.random.default_rng(0)
        own = np.array([random_region(rng, width, height) for _ in range(3000)])
        own = np.stack([own[:, 1], own[:, 0], own[:, 3] - own[:, 1], own[:, 2] - own[:, 0]], 1)
        transform, image = RandomResizedCrop(224), torch.empty(3, height, width)
        drawn = [transform.make_params([image]) for _ in range(3000)]
        theirs = np.array([[params[name] for name in ("top", "left", "height", "width")] for params in drawn], float)
        for values, others in (
            (own, theirs),
            (own**2, theirs**2),
            (own[:, 2] * own[:, 3], theirs[:, 2] * theirs[:, 3]),
        ):
            error = np.sqrt((values.var(0) + others.var(0)) / 3000)
            assert (np.abs(values.mean(0) - others.mean(0)) <= 4 * error + 1).all()

    def test_an_epoch_depends_only_on_seed_and_epoch(self, tmp_path: Path) -> None:
        smooth(90, 60).save(tmp_path / "image.jpg")
        paths = np.array([str(tmp_path / "image.jpg")] * 7, bytes)

        def images(epoch: int, workers: int = 0, **options: int) -> torch.Tensor:
            loader = StreamingLoader(
                paths, torch.arange(7), 3, view=View(16, crop="resized"), train=True, num_workers=workers, **options
            )
            return torch.cat([batch for batch, _ in batches(loader, epoch)])

        first = images(0)
        assert torch.equal(first, images(0, workers=2))
        assert torch.equal(first[1::2], images(0, rank=1, world_size=2)[:3])  # each process shows every second image
        assert not torch.equal(first, images(1))
        assert not torch.equal(first, images(0, seed=1))
        assert len({image.numpy().tobytes() for image in first}) == 7

    @pytest.mark.parametrize("side", [16, 32, 64])
    def test_reduced_decoding_looks_the_same(self, tmp_path: Path, side: int) -> None:
        image = smooth(611, 405)
        image.save(tmp_path / "image.jpg", quality=95)
        image.save(tmp_path / "image.png")
        for seed in range(20):
            box = random_region(np.random.default_rng(seed), 611, 405)
            reduced, full = (
                decode_region(tmp_path / f"image.{end}", lambda *_, box=box: box, View(side)) for end in ("jpg", "png")
            )
            error = np.square(reduced.astype(float) - full).mean()
            assert 10 * math.log10(255**2 / error) > 35  # dB

    def test_rotated_and_grey_images(self, tmp_path: Path) -> None:
        image = Image.new("L", (80, 40))
        image.paste(255, (0, 0, 40, 40))
        exif = Image.Exif()
        exif[0x0112] = 6  # rotate clockwise: white is then at the top
        image.save(tmp_path / "image.jpg", exif=exif)
        for channels in (1, 3):
            shown = decode_region(tmp_path / "image.jpg", whole, View(8, channels=channels))
            assert shown.shape == (8, 8, channels)
            assert shown[:3].min() > 250
            assert shown[5:].max() < 5

    def test_16_bit_images_become_8_bit_and_32_bit_images_raise(self, tmp_path: Path) -> None:
        ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
        for name in ("image.png", "image.tiff"):
            Image.fromarray(ramp).save(tmp_path / name)
            for image in (
                decode_region(tmp_path / name, whole, View(64)),
                decode(tmp_path / name, View(64)),
            ):
                np.testing.assert_allclose(image[..., 0], ramp / 257, atol=1)
        Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "float.tiff")
        with pytest.raises(
            ValueError, match=r"float\.tiff' cannot be read as an image \(its pixels are of mode F, of 32 bits"
        ):
            decode(tmp_path / "float.tiff", View(8))

    def test_12_bit_values_in_16_bit_images_warn_once(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for crop in ("padded", "resized"):
            monkeypatch.setattr("lt_cb.data.decode._warned_16_bit", threading.Lock())
            for split in ("train", "test"):
                for number in range(3):
                    values = np.full((12, 12), 65535, np.uint16) if number == 0 else np.full((12, 12), 4095, np.uint16)
                    Image.fromarray(values).save(folder / f"{split}/cat/{number:02}.png")
            data = LongTailedDataModule("ImageFolder", str(folder), crop=crop, num_workers=0)
            sentence = (
                r"0[12]\.png' has 16 bits a pixel, but no value above 4095: taken as 0 to 65535, it is almost black"
            )
            with pytest.warns(UserWarning, match=sentence) as caught:
                list(itertools.chain(data.train_dataloader(), data.test_dataloader()))
            assert len(caught) == 1

    def test_resized_crops_need_image_files(self) -> None:
        with pytest.raises(ValueError, match="crop is resized, but Digits has no image files: leave"):
            LongTailedDataModule("Digits", crop="resized").prepare_data()


def test_accumulation_makes_the_global_batch() -> None:
    assert LongTailedDataModule(batch_size=128).accumulation(8) is None
    data = LongTailedDataModule(batch_size=128, global_batch_size=1024)
    assert [data.accumulation(devices) for devices in (1, 2, 8)] == [8, 4, 1]
    for devices in (3, 16):  # 2.7 and 0.5 batches
        sentence = (
            rf"global_batch_size is 1024, but must be a multiple of the {devices * 128} images that {devices} x 128"
        )
        with pytest.raises(ValueError, match=sentence):
            data.accumulation(devices)
