"""Tests of a checkpoint on images of another place, and on training data that were moved."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused

from lt_cb.__main__ import main

CHECKPOINT = "runs/photos/version_0/checkpoints/last.ckpt"
COUNTS = {"cat": 20, "dog": 10, "eel": 5}  # 4, 2 and 1 are held out as test images
OPTIONS = ["--model.backbone=resnet20", "--model.fast=off", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"]
OPTIONS += ["--data.batch_size=8", "--data.crop_padding=0", "--trainer.enable_progress_bar=false"]


def draw(file: Path, label: int, seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    """Write noise in the colour of a class."""
    pixels = np.random.default_rng([label, seed]).integers(0, 120, (*size, 3), dtype=np.uint8)
    pixels[:, :, label % 3] += 100
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(file)


def hospital(root: str, counts: dict[str, int], seed: int = 1000, **image: Any) -> None:
    """Write class folders of other images with the same names of files."""
    for label, (name, count) in enumerate(counts.items()):
        for i in range(count):
            draw(Path(root, name, f"{i}.png"), "cdegh".index(name[0].lower()), seed + i, **image)
        Path(root, name, "readme.txt").write_text(str(label))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Train once on class folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place := tmp_path_factory.mktemp("trained"))
        patch.setenv("LT_CB_CACHE", str(place / "cache"))
        hospital("photos", COUNTS, seed=0)
        main(["fit", "--data.source=ImageFolder", "--data.root=photos", "--name=photos", *OPTIONS])
        yield place


@pytest.fixture(autouse=True)
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start each test where the training was, without what other tests wrote."""
    monkeypatch.chdir(trained)
    for path in trained.iterdir():
        if path.name not in ("photos", "labels", "runs", "cache"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def result(name: str, *args: str, command: str = "test") -> dict[str, Any]:
    """Test the checkpoint, and return the result."""
    shutil.rmtree(f"runs/{name}", ignore_errors=True)
    main([command, f"--ckpt_path={CHECKPOINT}", f"--folder=runs/{name}", "--trainer.enable_progress_bar=false", *args])
    found: dict[str, Any] = json.loads(Path(f"runs/{name}/result.json").read_text())
    return found


def line(caplog: pytest.LogCaptureFixture, start: str) -> str:
    """Return the one line that starts so."""
    (found,) = [message for message in caplog.messages if message.startswith(start)]
    return found


def own() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("runs/photos/version_0/result.json").read_text())
    return found


def predicted(root: str) -> list[tuple[str, str]]:
    """Return true and predicted class of each image in class folders, from predictions.csv."""
    shutil.rmtree("runs/predicted", ignore_errors=True)
    main(["predict", f"--ckpt_path={CHECKPOINT}", f"--images={root}", "--folder=runs/predicted"])
    with Path("runs/predicted/predictions.csv").open() as stream:
        return [(Path(row["file"]).parent.name, row["class"]) for row in csv.DictReader(stream)]


class TestClassFolders:
    def test_all_images_are_tested(self, caplog: pytest.LogCaptureFixture) -> None:
        hospital("b", {"cat": 3, "dog": 4, "eel": 1})
        caplog.clear()
        tested = result("b", "--data.root=b")
        assert line(caplog, "testing") == "testing all 8 images of 'b' with the classes of the checkpoint"
        assert (tested["test_counts"], tested["class_counts"]) == ([3, 4, 1], own()["class_counts"])
        assert (tested["class_names"], tested["shot_groups"]) == (own()["class_names"], own()["shot_groups"])
        pairs = predicted("b")
        assert tested["correct"] == [pairs.count((name, name)) for name in COUNTS]
        assert tested["tested_on"] == "b"
        assert own()["tested_on"] is None

    def test_splits_of_other_names(self, caplog: pytest.LogCaptureFixture) -> None:
        hospital("plain", {"cat": 3, "dog": 4, "eel": 1})
        expected = result("b", "--data.root=plain")["metrics"]
        for split in ("test", "Testing", "valid"):
            shutil.copytree("plain", f"{split}_only/{split}")
            caplog.clear()
            assert result("b", f"--data.root={split}_only")["metrics"] == expected
            kind = "val" if split == "valid" else "test"
            assert line(caplog, "testing").startswith(f"testing the 8 {kind} images of '{split}_only' with the classes")

    def test_other_files_there_are_no_annotations(self, caplog: pytest.LogCaptureFixture) -> None:
        hospital("b", {"cat": 3, "dog": 4, "eel": 1})
        Path("b/class_indices.json").write_text('{"0": "cat"}')
        caplog.clear()
        assert result("b", "--data.root=b")["test_counts"] == [3, 4, 1]
        assert not any("is read as" in message for message in caplog.messages)

    def test_a_training_folder_there_is_not_read(self) -> None:
        hospital("b/test", {"cat": 3, "dog": 4})
        hospital("b/train", {"cat": 2, "horse": 3}, seed=2000)
        with pytest.warns(UserWarning, match=r"^'b' has no images of 'eel': the means leave these classes out\.$"):
            tested = result("b", "--data.root=b")
        assert (tested["test_counts"], tested["class_counts"]) == ([3, 4, 0], own()["class_counts"])
        accuracies = tested["per_class_accuracy"]
        assert accuracies[2] is None
        assert tested["metrics"]["test/balanced_acc"] == pytest.approx(sum(accuracies[:2]) / 2)

    def test_one_class(self) -> None:
        hospital("b", {"dog": 2})
        with pytest.warns(UserWarning, match="'b' has no images of 'cat', 'eel'"):
            assert result("b", "--data.root=b")["test_counts"] == [0, 2, 0]

    def test_refusals(self, capsys: pytest.CaptureFixture[str]) -> None:
        hospital("b", {"cat": 3, "Dog": 4, "horse": 1})
        test = ("test", f"--ckpt_path={CHECKPOINT}")
        assert refused(capsys, *test, "--data.root=b") == (
            "'b' has images of 'Dog', 'horse', but the checkpoint was trained on 'cat', 'dog', 'eel': rename these "
            "classes, or remove their images. Did you mean 'dog'?"
        )
        hospital("c/images", {"cat": 3, "dog": 4})
        assert "Did you mean --data.root 'c/images'?" in refused(capsys, *test, "--data.root=c")
        assert refused(capsys, *test, "--data.root=none").startswith("there is no folder 'none'")
        Path("empty").mkdir()
        assert refused(capsys, *test, "--data.root=empty").startswith("'empty' needs ")

    def test_broken_images(self, capsys: pytest.CaptureFixture[str]) -> None:
        hospital("b", {"cat": 3, "dog": 4})
        for i in range(3):
            Path(f"b/cat/{i}.png").write_bytes(b"no image")
        assert "cannot be read as an image" in refused(capsys, "test", f"--ckpt_path={CHECKPOINT}", "--data.root=b")
        with pytest.warns(UserWarning, match="3 images cannot be read and are skipped"):
            tested = result("b", "--data.root=b", "--data.on_unreadable=skip")
        assert (tested["test_counts"], tested["skipped_images"]) == ([0, 4, 0], {"test": 3})

    def test_other_sizes_and_modes(self) -> None:
        """Images are scaled to the size of the training, and grey images get three channels."""
        for mode in ("L", "1", "RGBA", "CMYK"):
            shutil.rmtree("b", ignore_errors=True)
            hospital("b", {"cat": 2, "dog": 3, "eel": 1}, size=(30, 17), mode=mode) if mode in "L1" else None
            if mode not in "L1":
                for name, label in (("cat", 0), ("dog", 1), ("eel", 2)):
                    draw(file := Path("b", name, "0.tif"), label, 5, (30, 17), mode)
                    assert Image.open(file).mode == mode
            tested, pairs = result("b", "--data.root=b"), predicted("b")
            assert tested["correct"] == [pairs.count((name, name)) for name in COUNTS]

    def test_a_prior_and_validate(self, caplog: pytest.LogCaptureFixture) -> None:
        hospital("b", {"cat": 3, "dog": 4, "eel": 1})
        assert result("b", "--data.root=b", "--prior=uniform")["prior"] == pytest.approx([1 / 3] * 3)
        caplog.clear()
        main(["validate", f"--ckpt_path={CHECKPOINT}", "--data.root=b", "--folder=runs/v", "--verbose=false"])
        assert line(caplog, "validating").startswith("validating on all 8 images of 'b'")
        with Path("runs/v/metrics.csv").open() as stream:
            (row,) = csv.DictReader(stream)
        assert float(row["val/acc"]) == pytest.approx(result("b", "--data.root=b")["metrics"]["test/acc"])
        shutil.rmtree("runs/v")


class TestTrainingImages:
    """The same images at another place are found by their content."""

    @pytest.mark.parametrize("root", ["photos", "./photos/", "../{}/photos"])
    def test_the_same_place(self, root: str, caplog: pytest.LogCaptureFixture, trained: Path) -> None:
        caplog.clear()
        tested = result("b", f"--data.root={root.format(trained.name)}")
        assert "testing" not in caplog.text
        assert (tested["metrics"], tested["test_counts"]) == (own()["metrics"], [4, 2, 1])
        assert tested["tested_on"] is None

    def test_a_moved_folder_is_tested_on_held_out_images(self, caplog: pytest.LogCaptureFixture) -> None:
        shutil.copytree("photos", "moved")
        caplog.clear()
        tested = result("b", "--data.root=moved")
        assert line(caplog, "testing") == (
            "testing the 7 held-out images, as in training, of 'moved' with the classes of the checkpoint"
        )
        assert (tested["metrics"], tested["test_counts"]) == (own()["metrics"], [4, 2, 1])

    def test_another_share_held_out_has_training_images(self) -> None:
        with pytest.warns(UserWarning, match=r"11 of the 18 images of 'photos' are training images of the checkpoint"):
            assert result("b", "--data.split=0.5")["test_counts"] == [10, 5, 3]

    def test_training_images_among_others_are_named(self) -> None:
        hospital("b", {"cat": 3, "dog": 4, "eel": 1})
        trained_on = Path("runs/photos/version_0/checkpoints/last.ckpt")
        assert len(torch.load(trained_on, weights_only=True)["lt_cb_trained_on"]) == 28
        for i in range(5):
            shutil.copy(f"photos/eel/{i}.png", f"b/eel/copy_{i}.png")
        with pytest.warns(UserWarning, match=r"4 of the 13 images of 'b' are training images of the che"):
            assert result("b", "--data.root=b")["test_counts"] == [3, 4, 6]

    def test_a_checkpoint_without_digests(self, caplog: pytest.LogCaptureFixture) -> None:
        content = torch.load(CHECKPOINT, weights_only=True)
        del content["lt_cb_trained_on"]
        torch.save(content, "old.ckpt")
        hospital("b", {"cat": 3, "dog": 4, "eel": 1})
        caplog.clear()
        result("b", "--data.root=b", "--ckpt_path=old.ckpt")
        assert line(caplog, "testing").endswith(
            "; it does not say which images it was trained on, so make sure that none is here"
        )


class TestTablesAndAnnotations:
    @pytest.fixture(autouse=True)
    def images(self) -> None:
        hospital("b", {"cat": 3, "dog": 4, "eel": 1})

    @pytest.mark.parametrize("split", ["", ",split"])
    def test_a_table(self, split: str, caplog: pytest.LogCaptureFixture) -> None:
        expected = result("b", "--data.root=b")
        files = sorted(Path("b").rglob("*.png"))
        rows = [f"{file},{file.parent.name}{split and ',test'}\n" for file in files]
        Path("b.csv").write_text(f"path,label{split}\n" + "".join(rows))
        caplog.clear()
        tested = result("b", "--data.root=b.csv")
        assert (tested["metrics"], tested["test_counts"]) == (expected["metrics"], [3, 4, 1])
        out = caplog.text
        assert "'b.csv' is read as a table; the training had folders of classes: --data.source changes it" in out
        assert f"testing {'the 8 test' if split else 'all 8'} images of 'b.csv' with the classes" in out

    def test_a_table_with_a_column_a_class(self, capsys: pytest.CaptureFixture[str]) -> None:
        expected = result("b", "--data.root=b")["metrics"]
        names = ["eel", "dog", "cat"]
        rows = [[str(f), *(str(int(f.parent.name == n)) for n in names)] for f in sorted(Path("b").rglob("*.png"))]
        Path("b.csv").write_text("\n".join(map(",".join, [["path", *names], *rows])))
        assert result("b", "--data.root=b.csv")["metrics"] == expected
        rows[0][1:] = ["1", "1", "0"]
        rows[1][1:] = ["0", "0", "0"]
        Path("b.csv").write_text("\n".join(map(",".join, [["path", *names], *rows])))
        sentence = refused(capsys, "test", f"--ckpt_path={CHECKPOINT}", "--data.root=b.csv")
        assert sentence.startswith("the checkpoint was trained on one label an image, but 2 of 8 images of 'b.csv'")

    def test_annotations(self) -> None:
        expected = result("b", "--data.root=b")["metrics"]
        files = sorted(Path("b").rglob("*.png"))
        numbers = {"eel": 3, "cat": 7, "dog": 9}
        content = {
            "images": [{"id": i, "file_name": str(file)} for i, file in enumerate(files)],
            "annotations": [{"image_id": i, "category_id": numbers[f.parent.name]} for i, f in enumerate(files)],
            "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        }
        Path("coco").mkdir()
        shutil.copytree("b", "coco/b")
        Path("coco/test.json").write_text(json.dumps(content))
        assert result("b", "--data.root=coco")["metrics"] == pytest.approx(expected)


def test_the_report_does_not_mix_places(capsys: pytest.CaptureFixture[str]) -> None:
    hospital("site/photos", {"cat": 3, "dog": 4, "eel": 1})
    tested = result("b", "--data.root=site/photos")
    with pytest.raises(SystemExit, match="0"):
        main(["report", "runs"])
    out = capsys.readouterr().out
    assert "site/photos" in out
    error = f"{100 - 100 * tested['metrics']['test/acc']:.2f}"
    assert error in out


@pytest.fixture(scope="module")
def several(trained: Path) -> str:
    """Train once on a table with a column a class; return the checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        shutil.copytree("photos/cat", "labels/cat")
        rows = [[f"cat/{i}.png", i % 2, i % 3 == 0, i % 4 == 0, "train" if i < 15 else "test"] for i in range(20)]
        write_table("labels/several.csv", ["path", "cat", "dog", "eel", "split"], rows)
        main(["fit", "--data.source=Manifest", "--data.root=labels/several.csv", "--name=several", *OPTIONS])
        start = ["--ckpt_path=runs/several/version_0/checkpoints/last.ckpt", "--folder=runs/recommended"]
        main(["recommend", *start, "--lambdas=[0.1]", "--betas=[0.9]", "--folds=2"])
    return "runs/several/version_0/checkpoints/last.ckpt"


def write_table(file: str, header: list[str], rows: list[list[Any]]) -> None:
    with Path(file).open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *([int(c) if isinstance(c, bool) else c for c in row] for row in rows)])


class TestSeveralLabels:
    def test_missing_columns_and_unknown_labels(self, several: str) -> None:
        hospital("b", {"cat": 6})
        rows = [[f"b/cat/{i}.png", i % 2, "" if i == 5 else i < 3] for i in range(6)]
        write_table("b.csv", ["path", "eel", "cat"], rows)
        for checkpoint in (several, "runs/recommended/checkpoints/last.ckpt"):
            with pytest.warns(UserWarning, match="'b.csv' has no images of 'dog': the means leave these classes out"):
                tested = result("b", "--data.root=b.csv", f"--ckpt_path={checkpoint}")
            assert (tested["test_counts"], tested["known_counts"]) == ([3, 0, 3], [5, 0, 6])
            precisions = tested["per_class_average_precision"]
            assert precisions[1] is None
            assert tested["metrics"]["test/mAP"] == pytest.approx((precisions[0] + precisions[2]) / 2)

    def test_the_columns_of_the_training(self, several: str) -> None:
        """Label columns that the training named need not all be there."""
        hospital("b", {"cat": 6})
        write_table("b.csv", ["path", "age", "cat"], [[f"b/cat/{i}.png", 40 + i, i % 2] for i in range(6)])
        options = ["--data.source=Manifest", "--data.source.label_columns=[cat, dog, eel]", f"--ckpt_path={several}"]
        with pytest.warns(UserWarning, match="'b.csv' has no images of 'dog', 'eel'"):
            assert result("b", "--data.root=b.csv", *options)["known_counts"] == [6, 0, 0]

    def test_one_label_an_image(self, several: str, caplog: pytest.LogCaptureFixture) -> None:
        hospital("b", {"cat": 3, "dog": 4, "eel": 1})
        caplog.clear()
        assert result("b", "--data.root=b", f"--ckpt_path={several}")["test_counts"] == [3, 4, 1]
        assert line(caplog, "each") == "each of 8 images of 'b' has one label: the others count as absent"

    def test_a_moved_table(self, several: str) -> None:
        before = json.loads(Path("runs/several/version_0/result.json").read_text())
        shutil.copytree("labels", "moved")
        tested = result("b", "--data.root=moved/several.csv", f"--ckpt_path={several}")
        assert (tested["metrics"], tested["class_counts"]) == (before["metrics"], before["class_counts"])


class TestPredict:
    @pytest.fixture(autouse=True)
    def images(self) -> None:
        for i in range(4):
            draw(Path("new", f"{i}.png"), 0, i)
        draw(Path("new/deep/4.png"), 0, 4)
        Path("new/notes.pdf").write_text("no image")
        Path("lists").mkdir()

    @staticmethod
    def files(*images: str) -> list[str]:
        shutil.rmtree("runs/predicted", ignore_errors=True)
        main(["predict", f"--ckpt_path={CHECKPOINT}", "--folder=runs/predicted", *images, "--trainer.accelerator=cpu"])
        with Path("runs/predicted/predictions.csv").open() as stream:
            return [row["file"] for row in csv.DictReader(stream)]

    def test_kinds_of_images(self) -> None:
        assert self.files("--images", "new/3.png", "new/0.png") == ["new/3.png", "new/0.png"]  # a shell writes them so
        assert self.files("--images=[new/3.png, new/0.png]") == ["new/3.png", "new/0.png"]
        assert self.files("--images", "new/deep", "new/[01].png") == ["new/deep/4.png", "new/0.png", "new/1.png"]
        with pytest.warns(
            UserWarning, match=r"1 file is no image that can be read, going by the name: 'new/notes\.pdf'"
        ):
            assert self.files("--images", "new/*") == [f"new/{i}.png" for i in range(4)]
        with pytest.warns(UserWarning, match="1 file is no image"):
            assert len(self.files("--images=new/**")) == 5
        Path("lists/a.txt").write_text("\ufeff../new/2.png\r\n\r\nnew/1.png\r\n", encoding="utf-8")
        assert self.files("--images", "lists/a.txt") == ["lists/../new/2.png", "new/1.png"]
        with pytest.warns(UserWarning, match=r"1 images are given more than once, and used once: 'new/1\.png'"):
            assert self.files("--images", "new/1.png", "./new/1.png", "new/0.png") == ["new/1.png", "new/0.png"]

    def test_unreadable_images_are_skipped_in_order(self) -> None:
        Path("new/0.png").write_text("no image")
        with pytest.warns(UserWarning, match="1 images cannot be read and are skipped"):
            files = self.files("--images", "new/3.png", "new/0.png", "new/1.png", "--on_unreadable=skip")
        assert files == ["new/3.png", "new/1.png"]

    def test_refusals(self, capsys: pytest.CaptureFixture[str]) -> None:
        predict = ("predict", f"--ckpt_path={CHECKPOINT}", "--images")
        assert refused(capsys, *predict, "new/0.png", "new/none.png").startswith(
            "there is no file or folder 'new/none."
        )
        assert refused(capsys, *predict, "new/*.jpg").startswith("no file matches 'new/*.jpg': set --images to images")
        assert refused(capsys, *predict, "new/*.pdf").startswith("there are no images in 'new/*.pdf'")
        assert "'new/notes.pdf' cannot be read as an image" in refused(capsys, *predict, "new/notes.pdf")
        Path("lists/a.txt").write_text("new/1.png\nnone.png\n")
        assert refused(capsys, *predict, "lists/a.txt").startswith(
            "1 of 2 images in the list 'lists/a.txt' are not there: 'none.png (line 2)'. Write paths that start from"
        )
        Path("lists/a.txt").write_text("\n")
        assert refused(capsys, *predict, "lists/a.txt").startswith("the list 'lists/a.txt' names no image")
        assert refused(capsys, *predict[:2], "--images=[]").startswith("predict needs images")
