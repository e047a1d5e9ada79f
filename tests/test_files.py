"""Lists of image files in all supported formats, and errors in them."""

import csv
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from lt_cb.__main__ import main
from lt_cb.data import LongTailedDataModule
from lt_cb.data.sources import Manifest
from lt_cb.data.sources.annotations import list_annotations
from lt_cb.data.sources.listing import list_lines
from lt_cb.data.sources.tree import find_images, list_tree
from lt_cb.losses import class_weights

COUNTS = json.loads(Path(__file__).with_name("class_counts.json").read_text())


def annotations(file: Path, labels: list[int], name: Callable[[int, int], str], num_classes: int) -> None:
    """Write annotations in the format of iNaturalist's competitions, entries and categories shuffled."""
    order = np.random.default_rng(0).permutation(len(labels)).tolist()
    content = {
        "info": {"year": 2018},
        "licenses": [{"id": 0, "name": "x", "url": "y"}],
        "images": [
            {
                "id": 7 * i,
                "file_name": name(i, labels[i]),
                "width": 800,
                "height": 600,
                "license": 0,
                "rights_holder": "",
            }
            for i in order
        ],
        "annotations": [{"id": i, "image_id": 7 * i, "category_id": labels[i]} for i in reversed(order)],
        "categories": [
            {"id": label, "name": f"species {label}", "supercategory": "Plantae"}
            for label in reversed(range(num_classes))
        ],
    }
    file.write_text(json.dumps(content))


def expanded(counts: list[int]) -> list[int]:
    return [label for label, count in enumerate(counts) for _ in range(count)]


class TestTable1:
    """Classes, images and imbalance of the paper's Table 1."""

    @pytest.mark.parametrize(
        ("source", "classes", "images", "imbalance"),
        [
            ("inat2017", 5089, 579184, "435.44"),
            ("inat2018", 8142, 437513, "500.00"),
            ("ilsvrc2012", 1000, 1281167, "1.78"),
        ],
    )
    def test_counts(self, source: str, classes: int, images: int, imbalance: str) -> None:
        counts = COUNTS[source]
        assert (len(counts), sum(counts), f"{max(counts) / min(counts):.2f}") == (classes, images, imbalance)

    @pytest.mark.parametrize("source", ["inat2017", "inat2018", "ilsvrc2012"])
    def test_inspect_reads_all_classes(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str) -> None:
        """Files with all classes; the largest class has 50 images."""
        counts = [-(-n * 50 // max(COUNTS[source])) for n in COUNTS[source]]
        labels, classes = expanded(counts), len(counts)
        root = tmp_path
        if source == "inat2017":
            annotations(
                tmp_path / "train2017.json", labels, lambda i, c: f"train_val_images/Aves/species {c}/{i}.jpg", classes
            )
        elif source == "inat2018":
            lines = [f"train_val2018/Plantae/{c}/{i}.jpg {c}" for i, c in enumerate(labels)]
            (tmp_path / "iNaturalist18_train.txt").write_text("\n".join(lines) + "\n")
        else:
            source, root = "Manifest", tmp_path / "ilsvrc.csv"
            rows = [f"train/n{c:08}/{i}.JPEG,n{c:08},train" for i, c in enumerate(labels)]
            root.write_text("path,label,split\n" + "\n".join(rows) + "\nval/x.JPEG,n00000000,val\n")
        for _ in ("read", "from the cache"):
            data = LongTailedDataModule(source, str(root), image_size=224)
            assert data.class_counts == counts
        assert sum(class_weights(data.class_counts, 0.999).tolist()) == pytest.approx(classes)
        capsys.readouterr()
        words = ["inspect", "--data.source", source, "--data.root", str(root), "--data.image_size", "224"]
        words += [f"--page={tmp_path}/page.html"]
        with pytest.raises(SystemExit) as stopped:  # fit needs the images
            main(words)
        shown = capsys.readouterr()
        expected = f"{classes} classes, {len(labels)} training images, imbalance factor {50 / min(counts):.2f}"
        assert expected in shown.out
        assert stopped.value.code == 1
        if source != "Manifest":
            assert "no image is in" in shown.err


@pytest.fixture
def images(tmp_path: Path) -> Callable[[list[str]], None]:
    def make(paths: list[str]) -> None:
        for i, path in enumerate(paths):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (30, 20), (i, i, i)).save(tmp_path / path)

    return make


def shades(data: LongTailedDataModule, loader: str) -> list[tuple[int, int]]:
    """Return the grey value, which identifies the image, and the class of each image."""
    return sorted(
        (int(image.float().mean().round()), int(target))
        for batch, targets in getattr(data, loader)()
        for image, target in zip(batch, targets, strict=True)
    )


class TestFormats:
    @pytest.mark.parametrize(("year", "top"), [(2017, "train_val_images"), (2018, "train_val2018")])
    @pytest.mark.parametrize("torchvisions", [False, True])
    def test_inaturalist(self, tmp_path: Path, images: Callable, year: int, top: str, torchvisions: bool) -> None:
        def name(i: int, c: int) -> str:
            return f"{top}/Aves/species {c}/{i}.jpg"

        labels = [2, 0, 1, 0, 0]
        annotations(tmp_path / f"train{year}.json", labels, name, 3)
        (tmp_path / "lists").mkdir()
        annotations(tmp_path / f"lists/val{year}.json", labels[:3], lambda i, c: name(i, c), 3)
        images(
            [(f"{year}/" + name(i, c).partition("/")[2]) if torchvisions else name(i, c) for i, c in enumerate(labels)]
        )
        data = LongTailedDataModule(f"INaturalist{year}", str(tmp_path), image_size=8, crop="resized", num_workers=0)
        assert data.class_counts == [3, 1, 1]
        assert data.class_names == ["species 0", "species 1", "species 2"]
        assert shades(data, "train_dataloader") == list(enumerate(labels))
        assert shades(data, "test_dataloader") == list(enumerate(labels[:3]))
        (tmp_path / "categories.json").write_text(json.dumps([{"id": i, "name": "abc"[i]} for i in (2, 1, 0)]))
        assert LongTailedDataModule(f"INaturalist{year}", str(tmp_path)).class_names == ["a", "b", "c"]

    @pytest.mark.parametrize(("source", "stem"), [("ImageNetLT", "ImageNet_LT"), ("PlacesLT", "Places_LT")])
    def test_imagenet_lt_and_places_lt(self, tmp_path: Path, images: Callable, source: str, stem: str) -> None:
        files = {"train": ["train/n02/a b.jpg 1", "train/n01/c.jpg 0"], "val": ["train/n01/d.jpg 0"]}
        files["test"] = ["val/n02/e.jpg 1", ""]
        images([line.rpartition(" ")[0] for lines in files.values() for line in lines if line])
        (tmp_path / stem).mkdir()
        for split, lines in files.items():
            (tmp_path / stem / f"{stem}_{split}.txt").write_text("\n".join(lines))
        data = LongTailedDataModule(source, str(tmp_path), image_size=8, crop="resized", num_workers=0)
        assert (data.class_names, data.class_counts) == (["n01", "n02"], [1, 1])
        assert shades(data, "train_dataloader") == [(0, 1), (1, 0)]
        assert shades(data, "val_dataloader") == [(2, 0)]
        assert shades(data, "test_dataloader") == [(3, 1)]
        assert LongTailedDataModule(source, str(tmp_path)).image_size == 224

    def test_ilsvrc_tests_on_its_validation_folder(self, tmp_path: Path, images: Callable) -> None:
        images(
            [
                "train/n01/a.JPEG",
                "train/n01/b.JPEG",
                "train/n02/c.JPEG",
                "val/n01/d.JPEG",
                "val/n02/e.JPEG",
                "test/f.JPEG",
            ]
        )
        data = LongTailedDataModule("ILSVRC2012", str(tmp_path), image_size=8, num_workers=0)
        assert (data.class_names, data.class_counts) == (["n01", "n02"], [2, 1])
        assert shades(data, "test_dataloader") == shades(data, "val_dataloader") == [(3, 0), (4, 1)]

    def test_a_folder_with_validation_images(self, tmp_path: Path, images: Callable) -> None:
        images([f"{split}/{name}/x.png" for split in ("train", "val", "test") for name in ("cat", "dog")])
        data = LongTailedDataModule("ImageFolder", str(tmp_path), image_size=8)
        assert shades(data, "val_dataloader") == [(2, 0), (3, 1)]
        assert shades(data, "test_dataloader") == [(4, 0), (5, 1)]

    @pytest.mark.parametrize("ending", ["csv", "parquet"])
    @pytest.mark.parametrize("labels", [["dog", "cat", "dog"], [1, 0, 1], [120000000, 7, 120000000]])
    def test_tables(self, tmp_path: Path, images: Callable, ending: str, labels: list) -> None:
        import pyarrow
        from pyarrow import parquet

        paths, splits = ["x/a.png", "b.png", "ä/c.png"], ["train", "Train ", "val"]
        images(paths)
        paths[1] = str(tmp_path / "b.png")
        file = tmp_path / f"table.{ending}"
        if ending == "csv":
            rows = [",".join(map(str, row)) for row in zip(splits, labels, paths, strict=True)]
            file.write_text("\n".join(["\ufeffsplit,label,path", *rows, ""]))
        else:
            parquet.write_table(
                pyarrow.table({"path": paths, "label": labels, "split": splits, "more": [1, 2, 3]}), file
            )
        data = LongTailedDataModule("Manifest", str(file), image_size=8, crop="resized", num_workers=0)
        assert data.class_names == sorted({str(label) for label in labels}, key=lambda name: (len(name), name))
        assert shades(data, "train_dataloader") == [(0, 1), (1, 0)]
        assert shades(data, "test_dataloader") == [(2, 1)]

    def test_bytes_in_parquet(self, tmp_path: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        table = {"path": [b"a.png", b"\xff.png", b"c.png"], "label": [b"cat", b"d\xffg", b"cat"]}
        table["split"] = [b"train", b"train", b"test"]
        parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
        source = Manifest(str(tmp_path / "t.parquet"))
        assert [source.listing(split).paths.tolist() for split in source.splits] == [
            [b"a.png", b"\xff.png"],
            [b"c.png"],
        ]
        assert source.class_names == ["cat", os.fsdecode(b"d\xffg")]
        several = {**table, "labels": [[b"cat", b"dog"], [], []]}
        del several["label"]
        parquet.write_table(pyarrow.table(several), tmp_path / "t.parquet")
        assert Manifest(str(tmp_path / "t.parquet")).labels("train").tolist() == [[1, 1], [0, 0]]

    def test_classes_that_share_folders_are_numbered(self, tmp_path: Path) -> None:
        (tmp_path / "list.txt").write_text("x/a.jpg 0\nx/b.jpg 2\n")
        assert list_lines(tmp_path / "list.txt").class_names == ["0", "1", "2"]
        (tmp_path / "list.txt").write_text("r/a/x/1.jpg 0\nr/b/x/2.jpg 1\n")
        assert list_lines(tmp_path / "list.txt").class_names == ["a/x", "b/x"]


@pytest.mark.slow
def test_names_that_are_not_utf_8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """pytest's stdout is strict, as a terminal's is: a raw name there would be a UnicodeEncodeError."""
    monkeypatch.chdir(tmp_path)
    for split, name, i in itertools.product((b"train", b"test"), (b"cat\xff", b"cat\xfe", b"eel"), range(4)):
        os.makedirs(folder := b"/".join((b"odd", split, name)), exist_ok=True)
        Image.new("RGB", (8, 8), (i, 60 * len(name), 0)).save(os.fsdecode(folder + b"/%d\xe9.png" % i))
    for extra in (b"odd/train/cat\xff/x\xff.heic", b"odd/train/cat\xff/y\xff.png"):
        Path(os.fsdecode(extra)).write_bytes(b"x")
    data = ["--data.source=ImageFolder", "--data.root=odd"]
    assert r"train/cat\udcff/y\udcff.png' cannot be read as an image" in refused(
        capsys, "fit", *data, "--trainer.max_epochs=1"
    )
    with pytest.warns(UserWarning, match="2 images|1 images|1 file") as caught:
        main(["inspect", *data, "--data.on_unreadable=skip"])
    assert sum(r"\udcff.heic'" in str(warning.message) for warning in caught) == 1
    assert r"cat\udcff" in capsys.readouterr().out
    os.remove(b"odd/train/cat\xff/y\xff.png")
    tiny = [
        "--model.backbone=resnet20",
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--data.val_fraction=0.3",
    ]
    main(["fit", *data, *tiny])
    main(["predict", "--ckpt_path=runs/run/version_0/checkpoints/last.ckpt", "--images=odd/test"])
    with Path("runs/run/version_0/predictions/predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len({row["file"] for row in rows}) == 12
    assert {row["class"] for row in rows} <= {r"cat\udcff", r"cat\udcfe", "eel"}
    with pytest.raises(SystemExit) as ended:
        main(["report", "runs"])
    assert ended.value.code == 0
    result = json.loads(Path("runs/run/version_0/result.json").read_text())
    assert list(map(os.fsencode, result["class_names"])) == [b"cat\xfe", b"cat\xff", b"eel"]
    os.rename("odd", os.fsdecode(b"odd\xff"))  # no YAML could hold the name, and a checkpoint holds its configuration
    sentence = refused(capsys, "fit", data[0], os.fsdecode(b"--data.root=odd\xff"))
    assert sentence == r"'--data.root=odd\udcff' is not UTF-8, so that no configuration can hold it: rename the folder."


COCO = """{"images": [{"id": 5, "file_name": %s}], "annotations": [{"image_id": %s, "category_id": 1}],
    "categories": [{"id": %s, "name": "a"}]}"""


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "content", "sentence"),
        [
            ("t.json", "{", "is no annotation file"),
            ("t.json", '{"images": []}', "is no annotation file with images, annotations and categories"),
            ("t.json", "[" * 200_000, "is no annotation file"),
            ("t.json", '{"categories": ' + '{"a":' * 200_000, "is no annotation file"),
            (
                "t.json",
                COCO % ('"a.png"', 5, "1e999"),
                "1 of 1 annotations of .* does not list, such as image 5, category 1",
            ),
            ("t.json", COCO % ('"a.png"', 6, 1), "1 of 1 annotations of .* does not list, such as image 6, category 1"),
            ("t.json", COCO % (r'"\ud800.png"', 5, 1), "cannot be the name of a file"),
            (
                "t.txt",
                "a.jpg 0\nb.jpg one\n",
                r"line 2 of '\S+t.txt' is 'b.jpg one', but must be a path and a class index",
            ),
            ("t.txt", "a.jpg\n", "line 1 .* must be a path and a class index"),
            ("t.txt", "", "names no image"),
            (
                "t.csv",
                "path,colour,shape,split\na,b,1,train\n",
                r"column 'colour' of '\S+t.csv' has 'b' in row 1, but a label column has 1, 0, or empty for unknown",
            ),
            ("t.csv", "path,label,split\n\na,b\n", r"line 3 of '\S+t.csv' has 2 fields, but the header has 3"),
            ("t.csv", "path,label,split\na,,train\n", r"row 1 of '\S+t.csv' has no label"),
            ("t.csv", 'path,label,split\n"a' + "," * 200_000, "cannot be read as CSV"),
            ("t.csv", "", "has columns none, but must have path and label"),
            (
                "t.txt",
                "a.jpg 0\nb.jpg 120000000\n",
                "a list of 2 images has class index 120000000, but indices go from 0",
            ),
            ("t.parquet", "x", "cannot be read as Parquet"),
        ],
    )
    def test_wrong_files_raise(self, tmp_path: Path, name: str, content: str, sentence: str) -> None:
        read = {"json": list_annotations, "txt": list_lines, "csv": Manifest, "parquet": Manifest}[name[2:]]
        with pytest.raises(ValueError, match=r"the list of images '.*' is not there: set --data.root"):
            read(tmp_path / name)
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=sentence):
            read(tmp_path / name)

    def test_empty_cells_of_a_parquet_table_raise(self, tmp_path: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        for column in ("path", "label", "split"):
            table = {"path": ["a", "b"], "label": [0, 1], "split": ["train", "val"]}
            parquet.write_table(pyarrow.table({**table, column: [table[column][0], None]}), tmp_path / "t.PARQUET")
            with pytest.raises(ValueError, match=rf"row 2 of '\S+t\.PARQUET' has no {column}: give it one"):
                Manifest(str(tmp_path / "t.PARQUET"))

    def test_different_categories_of_splits_raise(self, tmp_path: Path) -> None:
        annotations(tmp_path / "train2018.json", [0, 1, 2], lambda i, c: f"x/{i}.jpg", 3)
        annotations(tmp_path / "val2018.json", [0, 1], lambda i, c: f"x/{i}.jpg", 2)
        with pytest.raises(ValueError, match=r"the categories of '\S+val2018\.json' differ from the training images'"):
            LongTailedDataModule("INaturalist2018", str(tmp_path), crop="resized").test_dataloader()

    def test_a_class_without_images_allows_no_imbalance_factor(self, tmp_path: Path) -> None:
        (tmp_path / "iNaturalist18_train.txt").write_text("x/0/1.jpg 0\nx/2/2.jpg 2\n")
        with pytest.raises(
            ValueError, match="class '1' has no training image, so that no subset of imbalance factor 2"
        ):
            LongTailedDataModule("INaturalist2018", str(tmp_path), imbalance_factor=2)

    def test_wrong_splits_raise(self, tmp_path: Path) -> None:
        for rows, sentence in (
            ("a,x,train", "no image of split test"),
            ("a,x,trian", "has split 'trian', but allowed"),
        ):
            (tmp_path / "t.csv").write_text(f"path,label,split\n{rows}\n")
            with pytest.raises(ValueError, match=sentence):
                LongTailedDataModule("Manifest", str(tmp_path / "t.csv"), image_size=8)

    def test_missing_images_are_listed_together(self, tmp_path: Path, images: Callable) -> None:
        names = [f"im/{i}.png" for i in range(30)]
        images([*names[:5], "im/test.png"])
        rows = "".join(f"{name},{i % 2},train\n" for i, name in enumerate(names))
        (tmp_path / "t.csv").write_text(f"path,label,split\n{rows}im/test.png,0,test\n")
        data = LongTailedDataModule("Manifest", str(tmp_path / "t.csv"), image_size=8)
        with pytest.raises(
            ValueError, match=r"25 of 30 images are not in '\S+': 'im/5.png', .*'im/14.png' and 15 more\."
        ):
            data.train_dataloader()
        assert len(data.test_dataloader()) == 1

    def test_only_absolute_paths_may_lead_out_of_the_folder(self, tmp_path: Path, images: Callable) -> None:
        images(["a.png", "below/b.png", "below/c.png"])
        table = tmp_path / "below/t.csv"
        for outside in ("../a.png", "x/../../a.png"):
            table.write_text(f"path,label,split\n{outside},0,train\nb.png,1,train\n./../below/c.png,1,test\n")
            with pytest.raises(
                ValueError, match=rf"1 of 2 paths lead out of '\S+below': '{outside}'\. Write absolute paths"
            ):
                LongTailedDataModule("Manifest", str(table), image_size=8).train_dataloader()
        table.write_text(f"path,label,split\n{tmp_path}/a.png,0,train\nb.png,1,train\nc.png,1,test\n")
        data = LongTailedDataModule("Manifest", str(table), image_size=8)
        assert shades(data, "test_dataloader") == [(2, 1)]
        assert len(data.train_dataloader()) == 1

    def test_circular_links_are_followed_once(self, tmp_path: Path, images: Callable) -> None:
        images([f"{split}/{name}/x.png" for split in ("train", "test") for name in ("cat", "dog")])
        images(["elsewhere/y.png"])
        cat = tmp_path / "train/cat"
        for name, target in (("up", ".."), ("self", "self"), ("out", tmp_path / "elsewhere")):
            (cat / name).symlink_to(target)
        (tmp_path / "elsewhere/back").symlink_to(cat)
        assert list_tree(tmp_path / "train").paths.tolist() == [b"cat/out/y.png", b"cat/x.png", b"dog/x.png"]
        found = [str(file.relative_to(cat)) for file in find_images(cat)]
        assert found == ["out/y.png", "up/dog/x.png", "x.png"]
        (tmp_path / "train/eel").symlink_to(tmp_path / "train")
        with pytest.raises(ValueError, match="no training image of 'eel'"):
            LongTailedDataModule("ImageFolder", str(tmp_path), image_size=8)
