"""``lt-cb inspect``: counts and weights, a look at every file, exit codes, and the page."""

import os
import re
import shutil
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from refusals import refused

from lt_cb.__main__ import main
from lt_cb.commands.inspect_data import facts
from lt_cb.data import LongTailedDataModule
from lt_cb.data.sources import checks
from lt_cb.data.sources.checks import ImageFiles, look_at

ROOT = Path(__file__).parents[1]
FIT = ["fit", "--config", str(ROOT / "configs/quickstart.yaml")]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def test_inspect_shows_numbers_and_weights_and_writes_a_page(capsys: Capture) -> None:
    main(["inspect", "--config", str(ROOT / "configs/quickstart.yaml"), "--betas=[0.99]"])
    out = capsys.readouterr().out
    numbers, weights = (part.splitlines() for part in out.split("Class weight"))
    cells = {row.split()[1]: row.replace("│", " ").split() for row in numbers if row.startswith("│")}
    assert cells["9"][1:] == ["2", "1.99", "1.993"]  # 1 + beta, for 0.99 and 1 - 1/134
    cells = {row.split()[1]: row.replace("│", " ").split() for row in weights if row.startswith("│")}
    assert cells["9"][2] == "4.021"
    assert float(cells["max"][3]) == pytest.approx(float(cells["9"][2]) / float(cells["0"][2]), rel=1e-3)
    assert "--model.loss.weighting.beta 0.992537" in out
    assert [str(file) for file in Path("runs").rglob("*.*")] == ["runs/quickstart/inspect.html"]
    assert refused(capsys, "inspect", *FIT[1:], "--betas=[2]").startswith("beta is 2.0, but must be")


def test_inspect_counts_what_is_held_out(capsys: Capture) -> None:
    main(["inspect", *FIT[1:], "--data.val_fraction=0.1"])
    out = capsys.readouterr().out
    cells = [line.replace("│", " ").split() for line in out.split("Class weight")[0].splitlines() if line[:1] == "│"]
    assert [row[2] for row in cells] == ["14", "9", "6", "4", "3", "2", "1", "1", "1", "1"]
    assert [int(row[1]) + int(row[2]) for row in cells] == [134, 86, 56, 36, 23, 15, 9, 6, 4, 2]
    assert "42 more images are held out for validation (1 to 14 a class)." in out


def test_many_classes_fit_on_a_screen(capsys: Capture, tmp_path: Path) -> None:
    main(["inspect", "--config", str(ROOT / "configs/cifar100_lt.yaml")])
    out = capsys.readouterr().out
    assert out.count("80 more") == 2
    assert max(len(line) for line in out.splitlines() if not line.startswith("No page")) <= 100
    assert "No page of thumbnails: CIFAR100 is not in" in out  # and nothing is downloaded
    assert "--model.loss.weighting.beta 0.998 " in out


def test_inspect_makes_no_network(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lt_cb.module.build_backbone", None)
    main(["inspect", *FIT[1:], "--model.backbone=resnet152", "--model.backbone_args={pretrained: true}"])
    assert "imbalance factor 67.00" in capsys.readouterr().out


class Page(HTMLParser):
    """Elements, text and the largest nesting error of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("img", "br", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def pictures(self) -> list[str]:
        return [str(attributes["title"]) for tag, attributes in self.elements if tag == "img"]


def inspect(capsys: Capture, *words: str) -> tuple[int, str, str, Page]:
    """Return exit code, output, errors and page."""
    capsys.readouterr()
    code = 0
    try:
        main(["inspect", *words])
    except SystemExit as stopped:
        code = int(str(stopped.code))
    out, err = capsys.readouterr()
    page = Page(Path(out.splitlines()[-1].removeprefix("Page: ")).read_text())
    assert not page.open
    return code, out, err, page


def photo(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Return a random picture with the spectrum of photographs."""
    noise = np.random.default_rng(seed).normal(size=(3, size[1], size[0]))
    y, x = np.meshgrid(np.fft.fftfreq(size[1]), np.fft.fftfreq(size[0]), indexing="ij")
    smooth = np.fft.ifft2(np.fft.fft2(noise) / np.sqrt(x**2 + y**2 + 1e-4)).real
    pixels = 128 + 45 * (smooth - smooth.mean()) / smooth.std()
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """12 cats and 5 dogs for training, 4 of each for testing; no two alike."""
    root = tmp_path / "photos"
    for seed, (split, name, i) in enumerate(
        [("train", "cat", i) for i in range(12)]
        + [("train", "dog", i) for i in range(5)]
        + [("test", name, i) for name in ("cat", "dog") for i in range(4)]
    ):
        (root / split / name).mkdir(parents=True, exist_ok=True)
        photo(seed).save(root / split / name / f"{i}.png")
    return root


def words_for(root: Path) -> list[str]:
    return ["--data.source=ImageFolder", f"--data.root={root}", "--betas=[0.9]", "--name=own"]


def files_of(root: Path) -> ImageFiles:
    source = LongTailedDataModule("ImageFolder", str(root), image_size=32).source
    files = look_at(source)
    assert files is not None
    return files


class TestFiles:
    def test_sound_files(self, photos: Path, capsys: Capture) -> None:
        code, out, err, page = inspect(capsys, *words_for(photos))
        assert (code, "warning" in err, "fit would stop" in err) == (0, False, False)
        assert "duplicates, and near-duplicates between train and other splits: none." in out
        assert out.endswith("Page: runs/own/inspect.html\n")
        dogs, cats = page.pictures()[:5], page.pictures()[5:]  # the rarest class first, 8 images a class
        assert dogs == [f"train/dog/{i}.png" for i in range(5)]
        assert len(set(cats)) == 8
        assert "train 17 (68.0 %), test 8 (32.0 %)" in out
        first = Path("runs/own/inspect.html").read_bytes()
        assert inspect(capsys, *words_for(photos), "--page=again.html")[0] == 0
        assert Path("again.html").read_bytes() == first

    def test_broken_and_missing_files_are_named_after_the_whole_report(self, photos: Path, capsys: Capture) -> None:
        (photos / "train/cat/3.png").write_bytes(b"no image")
        whole = (photos / "test/dog/1.png").read_bytes()
        (photos / "test/dog/1.png").write_bytes(whole[: len(whole) // 2])
        code, out, err, page = inspect(capsys, *words_for(photos))
        assert code == 1
        assert "2 classes, 17 training images" in out
        assert "unreadable files: 2, 'train/cat/3.png' (train, cat): cannot identify image file" in out
        assert "'test/dog/1.png' (test, dog): " in out
        assert "fit would stop: 2 images cannot be read: 'train/cat/3.png', 'test/dog/1.png'. Replace" in err
        assert "train/cat/3.png" in page.text
        assert "train/cat/3.png" not in page.pictures()
        (photos / "test/dog/1.png").write_bytes(whole)  # only the changed file is read again
        assert "unreadable files: 1, " in inspect(capsys, *words_for(photos))[1]
        with pytest.warns(UserWarning, match="1 images cannot be read and are skipped"):
            code, out, *_ = inspect(capsys, *words_for(photos), "--data.on_unreadable=skip")
        assert code == 0
        assert "1 train images cannot be read: skipped." in out

    def test_no_file_can_be_read(self, photos: Path, capsys: Capture) -> None:
        for file in photos.rglob("*.png"):
            file.write_bytes(b"")
        os.remove(photos / "train/cat/0.png")
        os.mkfifo(photos / "train/cat/0.png")
        (photos / "train/cat/link.png").symlink_to("/nowhere/a.png")
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            code, out, err, page = inspect(capsys, *words_for(photos))
        assert (code, page.pictures()) == (1, [])
        assert "unreadable files: 26, 'train/cat/0.png' (train, cat): it is no regular file; " in out
        assert "fit would stop: 26 images cannot be read" in err

    def test_missing_files_of_a_table(self, photos: Path, capsys: Capture) -> None:
        table = photos / "t.csv"
        table.write_text(
            "path,label,split\ntrain/cat/0.png,cat,train\ntrain/dog/9.png,dog,train\ntest/cat/0.png,cat,test\n"
        )
        with pytest.warns(UserWarning, match="has no test images of 'dog'"):
            code, out, err, page = inspect(capsys, "--data.source=Manifest", f"--data.root={table}")
        assert code == 1
        assert "missing files: 1, 'train/dog/9.png' (train, dog)" in out
        assert "fit would stop: 1 of 2 images are not in" in err
        assert "there is no such file" in page.text

    def test_data_that_fit_refuses_end_with_1_and_wrong_options_with_2(self, photos: Path, capsys: Capture) -> None:
        def code_of(*words: str) -> int:
            with pytest.raises(SystemExit) as stopped:
                main(["inspect", *words])
            assert "Traceback" not in capsys.readouterr().err
            return int(str(stopped.value.code))

        words = words_for(photos)
        assert code_of(*words, "--data.image_size=0") == 2
        assert code_of(*words, "--data.rooot=x") == 2
        assert code_of(*words, f"--page={photos}") == 2
        assert code_of("--data.source=ImageFolder", "--data.root=nowhere") == 2
        shutil.rmtree(photos / "train/dog")
        (photos / "train/dog").mkdir()
        assert code_of(*words) == 1
        table = photos / "t.csv"
        table.write_text("path,label,split\na.png,cat,train\na.png,dog,train\nb.png,cat,test\n")
        assert code_of("--data.source=Manifest", f"--data.root={table}") == 1

    def test_listed_twice(self, photos: Path, capsys: Capture) -> None:
        rows = [
            f"train/{name}/{i}.png,{name},{split}"
            for name in ("cat", "dog")
            for i, split in ((0, "train"), (1, "test"))
        ]
        table = photos / "t.csv"
        table.write_text("\n".join(["path,label,split", *rows, "./train/cat/0.png,cat,train"]))
        with pytest.warns(
            UserWarning, match=r"1 of 5 rows of '\S+' repeat an image with the same label, such as './train/cat/0.png'"
        ):
            code, out, *_ = inspect(capsys, "--data.source=Manifest", f"--data.root={table}")
        assert code == 0
        assert "duplicates, and near-duplicates between train and other splits: none." in out

    def test_a_second_look_reads_nothing(self, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = files_of(photos)
        read: list[Path] = []
        whole = checks.read_whole
        monkeypatch.setattr(checks, "read_whole", lambda file, channels: (read.append(file), whole(file, channels))[1])
        assert (files_of(photos).rows == first.rows).all()
        photo(99).save(photos / "train/cat/0.png")
        photo(98).save(photos / "train/cat/new.png")
        (photos / "train/dog/0.png").unlink()
        changed = files_of(photos)
        assert sorted(file.name for file in read) == ["0.png", "new.png"]
        order = {path: i for i, path in enumerate(first.paths)}
        for i, path in enumerate(changed.paths):
            assert path in ("train/cat/0.png", "train/cat/new.png") or changed.rows[i] == first.rows[order[path]]

    def test_sizes_modes_and_formats(self, photos: Path) -> None:
        modes = {"L": "png", "RGBA": "png", "CMYK": "jpg", "I;16": "png", "P": "gif"}
        for mode, ending in modes.items():
            image = Image.new(mode, (20, 10)) if mode == "I;16" else photo(len(mode), (20, 10)).convert(mode)
            image.save(photos / "train/dog" / f"{mode[0]}{len(mode)}.{ending}")
        turned = photo(50, (300, 100))
        exif = turned.getexif()
        exif[0x0112] = 6  # turned by 90 degrees
        turned.save(photos / "train/dog/turned.jpg", exif=exif)
        about = dict(facts(files_of(photos), 32))
        assert about["sizes"] == "96 x 64 (80.6 %), 20 x 10 (16.1 %), 100 x 300 (3.2 %)"  # 25, 5 and 1 of 31
        assert (about["smallest"], about["largest"]) == ("20 x 10", "100 x 300")
        assert about["modes"] == "RGB (83.9 %), CMYK (3.2 %), I;16 (3.2 %), L (3.2 %) and 2 more"
        assert about["formats"] == "PNG (90.3 %), JPEG (6.5 %), GIF (3.2 %)"
        assert about["below 32 pixels, enlarged"] == "16.1 %"


class TestDuplicates:
    def test_equal_files_by_importance(self, photos: Path, capsys: Capture) -> None:
        shutil.copy(photos / "train/cat/0.png", photos / "test/cat/same.png")
        Image.open(photos / "train/cat/1.png").save(photos / "train/dog/pixels.bmp")  # other bytes
        shutil.copy(photos / "train/cat/2.png", photos / "train/cat/copy.png")
        code, out, _, page = inspect(capsys, *words_for(photos))
        lines = [line for line in out.splitlines() if "duplicates" in line]
        assert [line.partition(":")[0] for line in lines] == [
            "duplicates between train and other splits",
            "duplicates with different labels",
            "other duplicates",
        ]
        assert lines[0].endswith("such as 'train/cat/0.png' (train, cat) = 'test/cat/same.png' (test, cat).")
        assert lines[1].endswith("such as 'train/cat/1.png' (train, cat) = 'train/dog/pixels.bmp' (train, dog).")
        assert "1, such as 'train/cat/2.png' (train, cat) = 'train/cat/copy.png'" in lines[2]
        assert code == 0
        assert page.pictures()[-6:-4] == ["train/cat/0.png", "test/cat/same.png"]

    def test_near_duplicates(self, photos: Path) -> None:
        original = Image.open(photos / "train/cat/5.png").convert("RGB")
        width, height = original.size
        edited = {
            "a_jpeg.jpg": original,
            "another_format.webp": original,
            "halved.png": original.resize((width // 2, height // 2)),
            "doubled.png": original.resize((2 * width, 2 * height)),
            "brighter.png": ImageEnhance.Brightness(original).enhance(1.2),
            "darker.png": ImageEnhance.Brightness(original).enhance(0.8),
            "grey.png": original.convert("L"),
            "cropped_by_2_percent.png": original.crop((1, 1, width - 1, height)),
        }
        for name, image in edited.items():
            image.save(photos / "test/dog" / name, **({"quality": 40} if name.endswith("jpg") else {}))
        files = files_of(photos)
        names = {(files.name(one), files.name(other)) for one, other in files.near_duplicates["test"]}
        assert names == {("'train/cat/5.png' (train, cat)", f"'test/dog/{name}' (test, dog)") for name in edited}

    def test_blank_images_are_no_near_duplicates(self, photos: Path) -> None:
        for i, path in enumerate(("train/cat/a.png", "test/cat/b.png", "test/dog/c.png")):
            Image.new("RGB", (40, 40), (i, 0, 0)).save(photos / path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert files_of(photos).near_duplicates == {"test": []}

    def test_two_images(self, tmp_path: Path) -> None:
        for split, name, seed in (("train", "a", 0), ("train", "b", 1), ("test", "a", 0)):
            (tmp_path / split / name).mkdir(parents=True)
            photo(seed).save(tmp_path / split / name / ("x.png" if split == "train" else "x.jpg"), quality=60)
        files = files_of(tmp_path)
        assert [tuple(map(files.paths.__getitem__, pair)) for pair in files.near_duplicates["test"]] == [
            ("train/a/x.png", "test/a/x.jpg")
        ]

    def test_pairs_are_those_of_a_plain_loop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = np.random.default_rng(0)
        rows = np.zeros(300, checks.ROW)
        kinds = rng.normal(size=(40, 64))
        waves = kinds[rng.integers(0, 40, 300)] + 0.25 * rng.normal(size=(300, 64))
        rows["waves"] = waves / np.linalg.norm(waves, axis=1, keepdims=True)
        left, right = np.arange(200), np.arange(200, 300)
        expected = checks.near_duplicates(rows, left, right)
        assert 50 < len(expected) < 100
        monkeypatch.setattr(checks, "PAIRS", 700)  # three images at once
        assert checks.near_duplicates(rows, left, right) == expected
        monkeypatch.setattr(checks, "PAIRS", 1)
        assert sorted(checks.near_duplicates(rows, left, right)) == sorted(expected)


class TestPage:
    def test_loads_nothing_and_escapes_names(self, photos: Path, capsys: Capture) -> None:
        odd = "<img src=x onerror=alert(1)>&\u202eb"
        shutil.copytree(photos / "train/dog", photos / "train" / odd)
        *_, page = inspect(capsys, *words_for(photos))
        sources = [attributes["src"] or "" for tag, attributes in page.elements if tag == "img"]
        assert len(sources) > 10
        assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
        assert not [tag for tag, _ in page.elements if tag in ("script", "link", "iframe")]
        policy = next(attributes["content"] for tag, attributes in page.elements if "http-equiv" in attributes)
        assert str(policy).startswith("default-src 'none'")
        assert "<img src=x onerror=alert(1)>&\\u202eb" in page.text

    def test_many_classes_are_cut_in_the_middle(self, tmp_path: Path, capsys: Capture) -> None:
        image = tmp_path / "image.png"
        Image.new("RGB", (4, 4)).save(image)
        numbers = [1 + i // 100 for i in range(400)]
        classes = [c for c, n in enumerate(numbers) for _ in range(n)]
        rows = [f"{i}.png,{c:03},train" for i, c in enumerate(classes)]
        for i in range(len(rows)):  # one file of several classes would be a contradiction
            os.link(image, tmp_path / f"{i}.png")
        (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *rows, "image.png,000,test"]))
        with pytest.warns(UserWarning, match="has no test images of"):
            *_, page = inspect(capsys, "--data.source=Manifest", f"--data.root={tmp_path}/t.csv")
        assert "150 of 400 classes are left out, between the 200 rarest and the 50 with the most images." in page.text
        assert sum(attributes.get("class") == "class" for _, attributes in page.elements) == 250

    def test_a_data_set_without_files(self, capsys: Capture) -> None:
        code, out, _, page = inspect(capsys, *FIT[1:], "--betas=[]")
        assert code == 0
        assert len(page.pictures()) == 10 * 8
        assert re.search(r"runs/quickstart/inspect.html\n$", out)

    def test_several_labels(self, photos: Path, capsys: Capture) -> None:
        cells = ["cat;dog", "cat", "", "dog", "cat", "cat;dog"]
        rows = [f"train/cat/{i}.png,{cell},{'test' if i > 3 else 'train'}" for i, cell in enumerate(cells)]
        (photos / "t.csv").write_text("\n".join(["path,labels,split", *rows]))
        shutil.copy(photos / "train/cat/2.png", photos / "train/cat/5.png")
        code, out, _, page = inspect(capsys, "--data.source=Manifest", f"--data.root={photos}/t.csv")
        assert code == 0
        assert "'train/cat/2.png' (train, no label) = 'train/cat/5.png' (test, cat, dog)" in out
        assert page.pictures()[:4] == [f"train/cat/{i}.png" for i in (0, 1, 0, 3)]
