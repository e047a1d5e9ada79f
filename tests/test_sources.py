"""Data sets: folders of images, archives, and custom sources."""

import gzip
import io
import os
import shutil
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.cli import LightningArgumentParser
from PIL import EpsImagePlugin, Image, features

from lt_cb.__main__ import main
from lt_cb.data import LongTailedDataModule, Source, sources
from lt_cb.data.decode import decode, is_image, resize
from lt_cb.data.loaders.placement import folder_loader
from lt_cb.data.sources import CIFAR10, ILSVRC2012, Digits, FashionMNIST, ImageFolder
from lt_cb.data.sources.listing import Listing, draw_test
from lt_cb.data.sources.names import MODULES, canonical_source
from lt_cb.data.view import View


class Checkers(Source):
    class_names = ["black", "white"]
    image_size = 4

    def __init__(self, root: str, images: int = 10) -> None:
        super().__init__(root)
        self.counts = [images, images]

    def load(self, split):
        labels = np.repeat([0, 1], self.counts)
        return np.tile(labels[:, None, None, None] * 255, (1, 4, 4, 3)).astype(np.uint8), labels


class TestNames:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("cifar10", "CIFAR10"), ("CIFAR-10", "CIFAR10"), ("lt_cb.data.sources.CIFAR10", "CIFAR10"),
            ("lt_cb.data.sources.arrays.CIFAR10", "CIFAR10"), ("fashion_mnist", "FashionMNIST"),
            ("FashionMNIST", "FashionMNIST"), ("inat2018", "INaturalist2018"), ("inat2017", "INaturalist2017"),
            ("ilsvrc2012", "ILSVRC2012"), ("imagenet_lt", "ImageNetLT"), ("places_lt", "PlacesLT"),
            ("image_folder", "ImageFolder"), ("side_by_side", "SideBySide"), ("coco", "COCO"), ("digits", "Digits"),
            ("manifest", "Manifest"), ("my.module.CIFAR10", "my.module.CIFAR10"), ("cifar01", "cifar01"), ("?", "?"),
        ],
    )  # fmt: skip
    def test_canonical_source(self, name: str, expected: str) -> None:
        assert canonical_source(name) == canonical_source(expected) == expected

    def test_every_name_is_a_class(self) -> None:
        for name in MODULES:
            assert issubclass(getattr(sources, name), Source)
        with pytest.raises(AttributeError, match="has no attribute 'CIFAR11'"):
            sources.CIFAR11  # noqa: B018

    @pytest.mark.parametrize("name", ["digits", "Digits", "DIGITS", "lt_cb.data.sources.Digits"])
    def test_all_spellings_make_the_same_data_set(self, name: str) -> None:
        assert type(LongTailedDataModule(name).source) is Digits


class TestCustomSource:
    name = f"{__name__}.Checkers"

    @pytest.mark.parametrize(
        ("given", "images"),
        [
            (["--data.source", name], 10),
            (["--data.source", name, "--data.source.images", "20"], 20),
            ([f"--data.source={{class_path: {name}, init_args: {{images: 30}}}}"], 30),
            ([f"--data.source={{class_path: {name}, init_args: {{images: 30}}}}", "--data.source.images=40"], 40),
        ],
    )
    def test_on_the_command_line(self, given: list[str], images: int) -> None:
        parser = LightningArgumentParser(exit_on_error=False)
        parser.add_lightning_class_args(LongTailedDataModule, "data")
        config = parser.parse_args([*given, "--data.root=x", "--data.imbalance_factor=5"])
        again = parser.parse_string(parser.dump(config))  # a run's config.yaml repeats it
        for read in (config, again):
            data = parser.instantiate_classes(read).data
            assert (data.class_counts, data.class_names) == ([images, images // 5], ["black", "white"])
            assert str(data.source.root) == "x"

    def test_unknown_names_raise(self) -> None:
        parser = LightningArgumentParser(exit_on_error=False)
        parser.add_lightning_class_args(LongTailedDataModule, "data")
        wrong = parser.parse_args(["--data.source", "digit"])
        with pytest.raises(ValueError, match=r"no data source 'digit': choose Digits, .* Did you mean 'Digits'"):
            parser.instantiate_classes(wrong)
        with pytest.raises(ValueError, match=r"'pathlib.Path' is not a subclass of lt_cb\.data\.Source"):
            LongTailedDataModule("pathlib.Path")

    @pytest.mark.parametrize("source", [name, Checkers, partial(Checkers, images=10)])
    def test_in_python(self, source) -> None:
        assert LongTailedDataModule(source, root="x", imbalance_factor=5).class_counts == [10, 2]

    def test_wrong_counts_and_dtypes_raise(self) -> None:
        class Miscounted(Checkers):
            def load(self, split):
                images, labels = super().load(split)
                return images[1:], labels[1:]

        class Floating(Checkers):
            def load(self, split):
                images, labels = super().load(split)
                return images / 255, labels

        for source, sentence in (
            (Miscounted, "the source counts 10 training images of class 'black', but loads 9"),
            (Floating, "the train images are float64, but must be uint8 pixels of 0 to 255"),
        ):
            with pytest.raises(ValueError, match=sentence):
                LongTailedDataModule(source, root="x").train_dataloader()


class TestImageFolder:
    def test_reads_classes_and_images(self, folder: Path) -> None:
        source = ImageFolder(str(folder))
        assert (source.class_names, source.counts, source.image_size) == (["cat", "dog", "eel"], [12, 6, 3], 12)
        images, labels = source.load("train")
        assert labels.tolist() == [0] * 12 + [1] * 6 + [2] * 3
        np.testing.assert_array_equal(images[3], np.asarray(Image.open(folder / "train/cat/03.png")))
        np.testing.assert_array_equal(images[13], np.asarray(Image.open(folder / "train/dog/01.jpg")))

    def test_images_are_scaled_cropped_and_rotated_by_exif(self, folder: Path) -> None:
        left_half_white = Image.new("L", (40, 20))
        left_half_white.paste(255, (0, 0, 20, 20))
        exif = Image.Exif()
        exif[0x0112] = 3  # upside down
        left_half_white.save(folder / "train/cat/00.png", exif=exif)
        source = ImageFolder(str(folder))
        source.view = View(8)
        images, _ = source.load("train")
        assert images.shape == (21, 8, 8, 3)
        assert images[0, :, :4].max() < 50
        assert images[0, :, 4:].min() > 200

    def test_damaged_and_outdated_caches_are_made_again(self, folder: Path, own_cache: Path) -> None:
        def load() -> np.ndarray:
            return ImageFolder(str(folder)).load("train")[0]

        original = load()
        (cache,) = own_cache.iterdir()
        written = cache.stat().st_mtime_ns
        np.testing.assert_array_equal(load(), original)
        assert cache.stat().st_mtime_ns == written  # it was read, not written again
        content = cache.read_bytes()
        damaged = [content[:cut] for cut in (0, 50, len(content) // 2, len(content) - 1)]
        for position in (10, 200, len(content) // 2, len(content) - 30):
            damaged.append(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        for wrong in damaged:
            cache.write_bytes(wrong)
            np.testing.assert_array_equal(load(), original)
        cache.write_bytes(damaged[0])
        load()
        assert cache.read_bytes() == content

        file = folder / "train/cat/05.png"
        times, size = file.stat(), file.stat().st_size
        pixels = np.asarray(Image.open(file)).copy()
        Image.fromarray(255 - pixels).save(file)
        with file.open("ab") as stream:
            stream.write(b"\0" * max(0, size - file.stat().st_size))
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # same size and modification time
        np.testing.assert_array_equal(load()[5], 255 - pixels)

    def test_an_unwritable_cache_warns(self, folder: Path, own_cache: Path) -> None:
        own_cache.write_text("a file where the folder should be")
        with pytest.warns(UserWarning, match="could be cached"):
            images, _ = ImageFolder(str(folder)).load("train")
        assert len(images) == 21

    def test_wrong_folders_raise(self, folder: Path) -> None:
        (folder / "train/fox").mkdir()
        with pytest.raises(ValueError, match="no training image of 'fox', so that"):
            ImageFolder(str(folder))
        (folder / "train/fox").rmdir()
        shutil.copytree(folder / "test/cat", folder / "test/fox")
        with pytest.raises(
            ValueError,
            match=r"test' has images of 'fox', but '\S+train' has none: add some there, or",
        ):
            ImageFolder(str(folder))
        for file in (folder / "test").rglob("*.*"):
            file.unlink()
        with pytest.raises(ValueError, match=r"there are no images in the class folders of '\S+test'"):
            ImageFolder(str(folder))

    @pytest.mark.parametrize("empty", [True, False])
    def test_a_class_without_test_images_warns(self, folder: Path, empty: bool) -> None:
        shutil.rmtree(folder / "test/cat")
        for file in (folder / "test/eel").iterdir():
            file.unlink()
        if empty:
            (folder / "test/cat").mkdir()
            (folder / "test/fox").mkdir()  # of no split
        else:
            (folder / "test/eel").rmdir()
        with pytest.warns(
            UserWarning, match=r"^'\S+' has no test images of 'cat', 'eel': metrics of this split leave"
        ) as caught:
            source = ImageFolder(str(folder))
        assert len(caught) == 1
        assert (source.class_names, source.counts) == (["cat", "dog", "eel"], [12, 6, 3])
        assert source.load("test")[1].tolist() == [1] * 4

    @pytest.mark.parametrize("damage", ["empty", "truncated", "text"])
    def test_a_damaged_image_is_named(self, folder: Path, damage: str) -> None:
        file = folder / "train/dog/03.jpg"
        content = file.read_bytes()
        file.write_bytes({"empty": b"", "truncated": content[: len(content) // 2], "text": b"not an image"}[damage])
        with pytest.raises(ValueError, match=r"dog/03\.jpg' cannot be read as an image"):
            ImageFolder(str(folder)).load("train")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with a name")
    def test_a_pipe_raises_without_blocking(self, folder: Path) -> None:
        (folder / "train/dog/03.jpg").unlink()
        os.mkfifo(folder / "train/dog/03.jpg")
        with pytest.raises(ValueError, match=r"dog/03\.jpg' cannot be read as an image \(it is no regular file\)"):
            ImageFolder(str(folder)).load("train")

    def test_all_damaged_images_are_named_at_once(self, folder: Path) -> None:
        for name in ("cat/02.png", "dog/03.jpg", "eel/00.webp"):
            (folder / "train" / name).write_bytes(b"not an image")
        with pytest.raises(ValueError, match=r"cat/02\.png' cannot .* 2 more are refused: '\S+03\.jpg', '\S+00\.webp'"):
            ImageFolder(str(folder)).load("train")

    def test_no_image_starts_a_program(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """PIL goes by the content of a file: a stranger's EPS, named as an image, would start Ghostscript."""
        started, programs = folder / "started", folder / "programs"
        programs.mkdir()
        (programs / "gs").write_text(f"#!/bin/sh\necho started >> '{started}'\n")
        (programs / "gs").chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
        Image.new("RGB", (8, 8)).save(folder / "a.eps")
        content = (folder / "a.eps").read_bytes()
        fields = {(3, 60): b"\1\0", (3, 65): b"\1\0", (3, 120): b"\5", (3, 20): b"\0\x08", (3, 30): b"\0\x08"}
        fields[8, 10] = content  # IPTC, with the EPS as its image
        iptc = b"".join(struct.pack(">3BH", 28, *kind, len(value)) + value for kind, value in fields.items())
        for crop in ("padded", "resized"):
            for name, stranger in (("00.png", content), ("01.jpg", b"%!PS-Adobe" + content), ("02.webp", iptc)):
                (folder / "train/cat/zz").mkdir(exist_ok=True)
                file = folder / "train/cat/zz" / name
                file.write_bytes(stranger)
                data = LongTailedDataModule("ImageFolder", str(folder), crop=crop, num_workers=0)
                with pytest.raises(ValueError, match=rf"zz/{name}' cannot be read as an image"):
                    list(data.train_dataloader())
                file.unlink()
        assert not started.exists()
        for stranger in (content, iptc):  # without the list of formats, each of them starts it
            with pytest.raises(OSError), Image.open(io.BytesIO(stranger)) as image:  # noqa: PT011
                image.load()
        assert started.read_text() == "started\n" * 3  # once for its version

    def test_raster_formats_are_read(self, tmp_path: Path) -> None:
        image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
        names = "png apng jpg jpe jfif jpeg mpo webp gif tif tiff bmp dib ppm pgm pnm jp2 j2k ico tga pcx dds sgi"
        for name in [*names.split(), "avif"][: 24 if features.check("avif") else 23]:
            image.convert("RGB").save(tmp_path / f"a.{name}")
            assert is_image(f"a.{name.upper()}")
            assert decode(tmp_path / f"a.{name}", View(16)).mean() == pytest.approx(127.5, abs=2)
        assert not any(map(is_image, ("a.eps", "a.ps", "a.pdf", "a.iim", "a.mpg", "a.h5", "a.wmf", "a", ".png")))

    def test_files_that_are_no_images_are_named_in_one_warning_a_split(self, folder: Path) -> None:
        for name in ("cat/x.heic", "cat/deep/y.NEF", "dog/notes.txt", "dog/photo", "eel/a.png.part"):
            (folder / "train" / name).parent.mkdir(exist_ok=True)
            (folder / "train" / name).write_bytes(b"x")
        (folder / "test/eel/z.pdf").touch()
        for name in (".DS_Store", "Thumbs.db", "README.md", "LICENSE", ".git/config", "desktop.ini"):
            (folder / "train/cat" / name).parent.mkdir(exist_ok=True)
            (folder / "train/cat" / name).touch()
        names = r"'\S+train/cat/deep/y\.NEF', '\S+x\.heic', '\S+notes\.txt', '\S+photo', '\S+a\.png\.part'"
        sentence = f"^5 files are no images that can be read, going by the name: {names}. Skipped; convert images"
        with pytest.warns(UserWarning, match=sentence) as caught:  # fit, inspect and recommend make the data once
            main(["inspect", f"--data.root={folder}", "--data.source=ImageFolder"])
        said = [str(warning.message) for warning in caught if "going by the name" in str(warning.message)]
        assert len(said) == 2
        assert "1 file is no image" in said[1]
        assert "z.pdf" in said[1]
        with pytest.warns(UserWarning, match=r"^2 files are no images .*: '\S+y\.NEF', '\S+x\.heic'"):  # predict
            files, _ = folder_loader(str(folder / "train/cat"), View(8))
        assert len(files) == 12
        for file in (folder / "train").glob("*/*.*g"):
            file.rename(file.with_suffix(".heic"))
        with (
            pytest.warns(UserWarning, match=r"^\d+ files are no"),
            pytest.raises(ValueError, match="image of 'cat', 'dog'"),
        ):
            ImageFolder(str(folder))

    def test_a_broken_link_is_named(self, folder: Path) -> None:
        (folder / "train/cat/link.png").symlink_to("/nowhere/a.png")
        with pytest.raises(ValueError, match=r"link\.png' cannot be read as an image \(.*No such file"):
            ImageFolder(str(folder)).load("train")

    @pytest.mark.parametrize("crop", ["padded", "resized"])
    def test_unreadable_images_are_skipped_on_request(self, folder: Path, own_cache: Path, crop: str) -> None:
        for name in ("train/cat/00.png", "train/cat/02.png", "train/dog/03.jpg", "test/eel/00.webp"):
            (folder / name).write_bytes((folder / name).read_bytes()[:100])
        (folder / "train/eel/link.png").symlink_to("/nowhere/a.png")

        def data() -> LongTailedDataModule:
            options = {"crop": crop, "num_workers": 0, "batch_size": 100, "on_unreadable": "skip"}
            return LongTailedDataModule("ImageFolder", str(folder), crop_padding=0, horizontal_flip=False, **options)

        sentence = (
            r"^5 images cannot be read and are skipped: '\S+cat/00\.png', '\S+cat/02\.png', '\S+dog/03\.jpg', "
            r"'\S+link\.png', '\S+00\.webp'\.$"
        )
        with pytest.warns(UserWarning, match=sentence) as caught:
            skipping = data()
        assert len(caught) == 1
        assert (skipping.class_counts, skipping.skipped) == ([10, 5, 3], {"train": 4, "test": 1})
        images, targets = next(iter(skipping.train_dataloader()))
        if crop == "padded":
            expected = {
                np.asarray(Image.open(f).convert("RGB")).tobytes()
                for f in (folder / "train").glob("*/0[1-9]*")
                if f.stat().st_size != 100
            }
            assert expected <= {image.permute(1, 2, 0).contiguous().numpy().tobytes() for image in images}
        assert np.bincount(targets).tolist() == [10, 5, 3]
        assert np.bincount(next(iter(skipping.test_dataloader()))[1]).tolist() == [4, 4, 3]
        written = {file: file.stat().st_mtime_ns for file in own_cache.iterdir()}
        with pytest.warns(UserWarning, match="^5 images"):
            assert data().class_counts == [10, 5, 3]
        assert {file: file.stat().st_mtime_ns for file in own_cache.iterdir()} == written
        Image.new("RGB", (12, 12)).save(folder / "train/dog/03.jpg")
        with pytest.warns(UserWarning, match="^4 images"):
            assert data().class_counts == [10, 6, 3]

    def test_skipping_must_leave_images_of_each_class(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        def data(**options) -> LongTailedDataModule:
            return LongTailedDataModule("ImageFolder", str(folder), on_unreadable="skip", **options)

        assert data().skipped == {"train": 0, "test": 0}
        (folder / "train/dog/05.jpg").write_bytes(b"no image")
        with pytest.warns(UserWarning, match=r"^1 images cannot be read and are skipped: '\S+05\.jpg'\.$"):
            main(["inspect", f"--data.root={folder}", "--data.source=ImageFolder", "--data.on_unreadable=skip"])
        out = capsys.readouterr().out
        assert "3 classes, 20 training images" in out
        assert "1 train images cannot be read: skipped." in out
        for file in (folder / "train/dog").iterdir():
            file.write_bytes(b"no image")
        with pytest.raises(ValueError, match="no train image of 'dog' can be read: replace the files, or remove"):
            data()
        with pytest.raises(ValueError, match="on_unreadable is skip, but Digits has no image files"):
            LongTailedDataModule("Digits", on_unreadable="skip")
        with pytest.raises(ValueError, match=r"skip such files by --data\.on_unreadable skip .* 5 more are refused"):
            ImageFolder(str(folder)).load("train")

    def test_images_of_several_sizes_are_scaled(self, folder: Path) -> None:
        assert LongTailedDataModule("ImageFolder", str(folder)).image_size == 12
        Image.new("RGB", (20, 20)).save(folder / "train/dog/03.jpg")
        assert LongTailedDataModule("ImageFolder", str(folder)).image_size == 64
        for file in (folder / "train").glob("*/*"):
            Image.new("RGB", (20, 10)).save(file)
        data = LongTailedDataModule("ImageFolder", str(folder))
        assert next(iter(data.train_dataloader()))[0].shape[1:] == (3, 64, 64)
        for file in (folder / "train").glob("*/*"):
            Image.new("RGB", (300, 300)).save(file)
        assert LongTailedDataModule("ImageFolder", str(folder)).image_size == 64
        assert LongTailedDataModule("ImageFolder", str(folder), image_size=8).image_size == 8


def paths_of(source: ImageFolder, split: str) -> list[str]:
    return [os.fsdecode(path) for path in source.listing(split).paths]


class TestSplits:
    @pytest.mark.parametrize(
        ("train", "test", "val"),
        [
            ("train", "test", None), ("Train", "TEST", "Valid"), ("training", "testing", "validation"),
            ("TRAINING", "Testing", "val"), ("train", None, "valid"), ("Training", None, "Validation"),
        ],
    )  # fmt: skip
    def test_usual_names_are_read(self, folder: Path, train: str, test: str | None, val: str | None) -> None:
        if val is not None:
            shutil.copytree(folder / "test", folder / "as_val")
            (folder / "as_val/cat/00.png").unlink()
        expected = [path.read_bytes() for path in sorted((folder / "train").glob("*/*"))]
        (folder / "train").rename(folder / train)
        (folder / "test").rename(folder / test) if test else shutil.rmtree(folder / "test")
        if val is not None:
            (folder / "as_val").rename(folder / val)
        data = LongTailedDataModule("ImageFolder", str(folder))
        source = data.source
        assert isinstance(source, ImageFolder)
        assert (source.class_names, source.counts, source.undivided) == (["cat", "dog", "eel"], [12, 6, 3], None)
        assert [(folder / path).read_bytes() for path in paths_of(source, "train")] == expected
        assert source.splits == (("train", "val", "test") if test and val else ("train", "test"))
        assert len(source.load("test")[0]) == (12 if test else 11)  # without test, val is the test split
        assert data.validation_split == ("val" if test and val else "test")

    @pytest.mark.parametrize("plain", [True, False])
    def test_without_test_images_some_are_held_out(
        self, folder: Path, plain: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        shutil.rmtree(folder / "test")
        for name, kept in (("dog", 2), ("eel", 1)):
            for file in sorted((folder / "train" / name).iterdir())[kept:]:
                file.unlink()
        if plain:
            for file in (folder / "train").iterdir():
                file.rename(folder / file.name)
            (folder / "train").rmdir()
        everything = {str(file.relative_to(folder)) for file in folder.glob("*/*" if plain else "*/*/*")}
        caplog.set_level("INFO", "lightning.pytorch")
        drawn = {}
        for seed, options in enumerate(({}, {"imbalance_factor": 1}, {"val_fraction": 0.5}, {"split": 0.5})):
            caplog.clear()
            with pytest.warns(UserWarning, match="has no test images of 'eel': metrics of this split leave") as caught:
                data = LongTailedDataModule("ImageFolder", str(folder), subset_seed=seed, seed=seed, **options)
            assert len(caught) == 1
            share = options.get("split", 0.2)
            line = f"no test folder: {share:.0%}".replace("%", " %")
            assert caplog.text.count(f"{line} of each class are held out as test images (--data.split)") == 1
            train, test = (set(paths_of(data.source, split)) for split in ("train", "test"))
            assert not train & test
            assert train | test == everything
            assert data.source.counts == ([6, 1, 1] if share == 0.5 else [10, 1, 1])
            assert np.bincount(next(iter(data.test_dataloader()))[1]).tolist() == [12 - data.source.counts[0], 1]
            if "imbalance_factor" not in options:
                assert data.class_counts == ([5, 1, 1] if "val_fraction" in options else data.source.counts)
            drawn[seed] = test
        assert drawn[0] == drawn[1] == drawn[2] < drawn[3]

    @settings(deadline=None)
    @given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=5), share=st.floats(0.001, 0.999))
    def test_the_draw_is_stratified_and_keeps_training_images(self, counts: list[int], share: float) -> None:
        labels = np.repeat(np.arange(len(counts)), counts)
        paths = np.array([f"{label}/{i}.png".encode() for i, label in enumerate(labels)])
        names = [str(label) for label in range(len(counts))]
        train, test = draw_test(Listing(paths, labels, names), share)
        assert sorted([*train.paths, *test.paths]) == sorted(paths)
        for part in (train, test):
            assert [path.split(b"/")[0] for path in part.paths] == [str(label).encode() for label in part.labels]
            assert (np.diff(part.labels) >= 0).all()
        for label, count in enumerate(counts):
            held_out = np.count_nonzero(test.labels == label)
            assert held_out == min(max(int(count * share + 0.5), 1), count - 1)
        order = np.random.default_rng(0).permutation(len(labels))  # neither order nor other classes matter
        shuffled = draw_test(Listing(paths[order], labels[order], names), share)[1]
        assert set(shuffled.paths) == set(test.paths)
        own = labels == 0
        alone = draw_test(Listing(paths[own], labels[own], names[:1]), share)[1]
        assert set(alone.paths) == set(test.paths[test.labels == 0])

    def test_added_images_leave_the_draw_nearly_unchanged(self) -> None:
        def drawn(number: int) -> set[bytes]:
            paths = np.array([f"a/{i}.png".encode() for i in range(number)])
            return set(draw_test(Listing(paths, np.zeros(number, np.int64), ["a"]), 0.2)[1].paths.tolist())

        before, after = drawn(1000), drawn(1100)
        assert (len(before), len(after)) == (200, 220)
        assert len(before & after) >= 190

    def test_the_share_is_checked_and_recorded(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for share in (0, 1, -0.2, 20, float("nan")):
            with pytest.raises(ValueError, match=r"^split is \S+, but must be above 0 and below 1: the share of"):
                LongTailedDataModule("ImageFolder", str(folder), split=share)
        for options in (("ImageFolder", str(folder)), ("Digits",)):
            with pytest.warns(UserWarning, match=r"^--data\.split 0\.3 is ignored: the data set has test images\.$"):
                LongTailedDataModule(*options, split=0.3)
        shutil.rmtree(folder / "test")
        run = ["--config=lt_cb:image_folder", f"--data.root={folder}", "--data.split=0.34"]
        with pytest.raises(SystemExit):
            main(["fit", *run, "--print_config"])
        assert yaml.safe_load(capsys.readouterr().out)["data"]["split"] == 0.34
        main(["inspect", *run])
        out = capsys.readouterr().out  # 8, 4 and 2 images, of which 1, 1 and 1 are held out for validation
        assert "3 classes, 11 training images" in out

    @pytest.mark.parametrize(
        ("folders", "sentence"),
        [
            ((), r"but its folders are: none\.$"),
            (
                ("trian/cat", "trian/dog", "vaild/cat"),
                r"'vaild'\. Did you mean 'train' by 'trian', 'valid' by",
            ),
            (
                ("trian/cat", "trian/dog", "test/cat"),
                r"are: 'test', 'trian'\. Did you mean 'train' by 'trian'\?$",
            ),
            (("test/cat", "test/dog"), r"are: 'test'\.$"),
            (("photos/cat", "photos/dog"), r"'photos'\. Did you mean --data\.root '\S+here/photos'\?$"),
            (("cat",), r"are: 'cat'\.$"),
        ],
    )
    def test_other_layouts_raise(self, tmp_path: Path, folders: tuple[str, ...], sentence: str) -> None:
        root = tmp_path / "here"
        root.mkdir()
        for name in folders:
            (root / name).mkdir(parents=True)
            Image.new("L", (8, 8)).save(root / name / "a.png")
        allowed = r"^'\S+here' needs train/<class>/\* .*or <class>/\* for 2 classes or more, "
        with pytest.raises(ValueError, match=allowed + ".*" + sentence):
            ImageFolder(str(root))

    def test_ignored_folders_are_named(self, folder: Path) -> None:
        for name in ("vaild/cat", "fox", "Training/cat"):
            shutil.copytree(folder / "test/cat", folder / name)
        for name in ("notes", ".hidden", "__MACOSX"):
            (folder / name).mkdir()
        names = r"'Training', 'fox', 'vaild'\. Did you mean 'valid' by 'vaild'\?$"
        sentence = rf"^Images of '\S+' are read only from 'train', 'test'\. Other folders .* are ignored: {names}"
        with pytest.warns(UserWarning, match=sentence) as caught:
            source = ImageFolder(str(folder))
        assert len(caught) == 1
        assert (source.counts, source.splits) == ([12, 6, 3], ("train", "test"))

    def test_classes_in_nested_folders_may_have_any_name(self, folder: Path) -> None:
        """A class such as tents is not taken for a split."""
        shutil.rmtree(folder / "test")
        for name, new in (("cat", "tents"), ("dog", "rain/2025"), ("eel", "valley")):
            (folder / new).parent.mkdir(exist_ok=True)
            (folder / "train" / name).rename(folder / new)
        (folder / "train").rmdir()
        assert ImageFolder(str(folder)).class_names == ["rain", "tents", "valley"]

    def test_derived_sources_draw_nothing(self, folder: Path) -> None:
        shutil.rmtree(folder / "test")
        with pytest.raises(ValueError, match=r"there is no folder '\S+val'"):
            ILSVRC2012(str(folder))
        with pytest.raises(ValueError, match=r"there is no folder '\S+test'"):
            CIFAR10(str(folder))

    def test_no_class_with_two_images_raises(self, folder: Path) -> None:
        shutil.rmtree(folder / "test")
        for place in (folder / "train").iterdir():
            for file in sorted(place.iterdir())[1:]:
                file.unlink()
        with pytest.raises(ValueError, match=r"^no class of '\S+' has two images, so that none can be held out"):
            ImageFolder(str(folder))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_scaled_images_equal_pils(interpolation: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for c in "ab":
            (tmp_path / split / c).mkdir(parents=True)
            for i in range(2):
                small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
                small.resize((16, 16), Image.Resampling.BICUBIC).save(tmp_path / split / c / f"{i}.png")
    how = getattr(Image.Resampling, interpolation.upper())
    for size in (8, 40):
        data = LongTailedDataModule("ImageFolder", str(tmp_path), image_size=size, interpolation=interpolation)
        images = next(iter(data.test_dataloader()))[0].permute(0, 2, 3, 1).numpy()
        files = sorted((tmp_path / "test").glob("*/*.png"))
        expected = np.stack([np.asarray(Image.open(file).resize((size, size), how)) for file in files])
        np.testing.assert_array_equal(images, expected)
        # torch scales images in memory, such as CIFAR
        original = np.stack([np.asarray(Image.open(file)) for file in files])
        scaled = resize(original, View(size, interpolation)).astype(int)
        assert np.abs(scaled - expected).max() <= 1


class TestOtherSources:
    def test_cifar_as_a_folder_must_have_its_classes(self, folder: Path) -> None:
        with pytest.raises(ValueError, match="has 3 classes, but CIFAR10 has 10"):
            LongTailedDataModule("CIFAR10", root=str(folder))

    def test_without_downloads_missing_data_raise(self, tmp_path: Path) -> None:
        for source in (CIFAR10(str(tmp_path)), FashionMNIST(str(tmp_path))):
            source.may_download = False
            with pytest.raises(ValueError, match=r"and nothing is downloaded: set --data\.root"):
                source.load("test")
        assert not list(tmp_path.iterdir())

    def test_cifar_counts_need_no_download(self, tmp_path: Path) -> None:
        assert sum(LongTailedDataModule("CIFAR10", root=str(tmp_path), imbalance_factor=100).class_counts) == 12406
        assert sum(LongTailedDataModule("CIFAR100", root=str(tmp_path), imbalance_factor=200).class_counts) == 9502

    @pytest.mark.parametrize("zipped", [True, False])
    def test_fashion_mnist_reads_idx_files(self, tmp_path: Path, zipped: bool) -> None:
        pixels = np.arange(2 * 28 * 28, dtype=np.uint8)
        contents = {
            "t10k-images-idx3-ubyte": struct.pack(">4i", 2051, 2, 28, 28) + pixels.tobytes(),
            "t10k-labels-idx1-ubyte": struct.pack(">2i", 2049, 2) + bytes([7, 3]),
        }
        for name, content in contents.items():
            (tmp_path / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content) if zipped else content)
        images, labels = FashionMNIST(str(tmp_path)).load("test")
        np.testing.assert_array_equal(images, pixels.reshape(2, 28, 28, 1))
        assert labels.tolist() == [7, 3]
        file = next(tmp_path.glob("t10k-images*"))
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(ValueError, match=r"t10k-images.*is damaged"):
            FashionMNIST(str(tmp_path)).load("test")
