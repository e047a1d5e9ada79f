"""Annotations in COCO's format as other tools and competitions write them: which files, which task, which classes."""

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from refusals import refused

from lt_cb.__main__ import main
from lt_cb.data import LongTailedDataModule
from lt_cb.data.sources import COCO

CATEGORIES = [
    {"id": 3, "name": "red fox", "supercategory": "Mammals", "family": "Canidae"},
    {"id": 0, "name": "empty", "supercategory": "Nothing", "family": ""},
    {"id": 10, "name": "grey wolf", "supercategory": "Mammals", "family": "Canidae"},
    {"id": 7, "name": "barn owl", "supercategory": "Birds", "family": "Tytonidae"},
]
ANIMALS = [category for category in CATEGORIES if category["id"]]


def write(
    file: Path, images: dict[str, list], categories: list | None = None, first: object = 0, **more: object
) -> None:
    """Write annotations: names of images and ids of their categories."""
    file.parent.mkdir(parents=True, exist_ok=True)
    ids = [first + 2 * i if isinstance(first, int) else f"{first}-{i}" for i in range(len(images))]
    entries = [(id_, category) for id_, given in zip(ids, images.values(), strict=True) for category in given]
    content = {
        "info": {"contributor": "someone"},
        "images": [{"id": id_, "file_name": name, "width": 9} for id_, name in zip(ids, images, strict=True)],
        "annotations": [
            {"id": i, "image_id": a, "category_id": b, "bbox": [0, 0, 1, 1]} for i, (a, b) in enumerate(entries)
        ],
        "categories": ANIMALS if categories is None else categories,
        **more,
    }
    file.write_text(json.dumps({name: entries for name, entries in content.items() if entries is not None}))


def species(prefix: str, counts: dict[int, int]) -> dict[str, list]:
    """Return images of one category each, by its id."""
    return {f"{prefix}{id_}_{i}.jpg": [id_] for id_, n in counts.items() for i in range(n)}


def draw(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (15 * i, 0, 0)).save(folder / name)


def counted(source: COCO, split: str) -> dict[str, int]:
    """Return the images of each class of a data set with one label an image."""
    counts = Counter(source.labels(split).tolist())
    return {source.class_names[label]: n for label, n in sorted(counts.items())}


TRAIN = species("train/a/", {3: 4, 7: 2, 10: 1})
VAL = species("val/a/", {3: 1, 7: 1, 10: 1})


class TestTask:
    def test_one_category_an_image(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Several boxes of one category are one label; categories without images are no classes."""
        write(tmp_path / "train.json", {**TRAIN, "b.jpg": [7, 7, 7]}, CATEGORIES)
        write(tmp_path / "val.json", VAL)
        source = COCO(str(tmp_path))
        assert not source.multi_label
        assert counted(source, "train") == {"red fox": 4, "barn owl": 3, "grey wolf": 1}
        assert counted(source, "test") == {"red fox": 1, "barn owl": 1, "grey wolf": 1}
        assert f"one label an image: each of 11 images of '{tmp_path}' has one category. For several" in caplog.text
        assert "train 'train.json', test 'val.json'" in caplog.text
        assert COCO(str(tmp_path), task="several").labels("test").tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]

    def test_all_splits_decide(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        write(tmp_path / "train.json", TRAIN)
        write(tmp_path / "val.json", {**VAL, "c.jpg": [3, 7]})
        assert COCO(str(tmp_path)).multi_label
        assert "several labels an image: of 11 images of" in caplog.text
        assert "1 have several categories and 0 have none." in caplog.text
        with pytest.raises(
            ValueError, match=r"task is one, but 1 of 11 images of '.*' have several .*: 'c.jpg'\. Corr"
        ):
            COCO(str(tmp_path), task="one")

    def test_images_without_annotations(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """They have no label; they are left out if a category says that an image is empty."""
        write(tmp_path / "a.json", {"none.jpg": [], **TRAIN})
        source = COCO(str(tmp_path))
        assert source.multi_label
        assert "of 8 images of" in caplog.text
        assert "0 have several categories and 1 have none. For one label an image: --data.source COCO" in caplog.text
        asked = COCO(str(tmp_path), task="one")
        assert not asked.multi_label
        assert sum(asked.counts) + len(asked.labels("test")) == 7
        caplog.clear()
        write(tmp_path / "a.json", {"none.jpg": [], "empty.jpg": [0], **TRAIN}, CATEGORIES)
        assert not COCO(str(tmp_path)).multi_label
        assert "8 images of" in caplog.text
        assert "have one category, and 1 without annotations are left out" in caplog.text

    def test_one_class_is_a_label_that_images_have_or_not(self, tmp_path: Path) -> None:
        write(tmp_path / "a.json", {"a.jpg": [3], "b.jpg": [3], "c.jpg": []})
        assert COCO(str(tmp_path)).multi_label


class TestFiles:
    @pytest.mark.parametrize(
        ("train", "others", "expected"),
        [
            ("train.json", ["train_mini.json", "val.json", "categories.json"], ["test 'val.json'"]),
            ("train_mini.json", ["val.json"], ["test 'val.json'"]),
            ("train2019.json", ["val2019.json", "val2018.json"], ["test 'val2019.json'"]),
            ("instances_Train.json", ["instances_Validation.json"], ["test 'instances_Validation.json'"]),
            (
                "annotations/instances_train2017.json",
                ["annotations/instances_val2017.json"],
                ["test 'annotations/inst"],
            ),
            ("train/_annotations.coco.json", ["valid/_annotations.coco.json"], ["test 'valid/_annotations.coco.json'"]),
            (
                "metadata/x22_train_a.json",
                ["metadata/x22_val_a.json", "test_a.json"],
                ["val 'meta", "test 'test_a.json'"],
            ),
            ("train_a.json", ["cis_test_a.json", "trans_test_a.json"], []),
        ],
    )
    def test_the_training_file_as_root(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, train: str, others: list[str], expected: list[str]
    ) -> None:
        write(tmp_path / train, TRAIN)
        for i, other in enumerate(others):
            write(tmp_path / other, species(f"{i}/", {3: 2, 7: 1, 10: 1}))
        source = COCO(str(tmp_path / train))
        assert f"annotations in '{tmp_path}': train '{train}'" in caplog.text
        assert all(f", {listed}" in caplog.text for listed in expected)
        assert source.folder == tmp_path
        assert (source.undivided is None) == bool(expected)
        if not expected:
            assert "several files may be the annotations of test: 'cis_test_a.json', 'trans_" in caplog.text
        elif len(others) < 3:  # the folder as root means the same
            assert (COCO(str(tmp_path)).listing("test").paths == source.listing("test").paths).all()

    @pytest.mark.parametrize(
        ("file", "images"),
        [
            ("annotations/instances_default.json", "images/default"),  # CVAT
            ("annotations/instances_default.json", "images"),
            ("result.json", "."),  # Label Studio
            ("lila_camera_traps.1.0.json", "."),
            ("_annotations.coco.json", "."),
        ],
    )
    def test_a_single_file_is_divided(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, images: str
    ) -> None:
        names = species("images\\" if file == "result.json" else "", {3: 10, 7: 5, 10: 1})
        write(tmp_path / file, names)
        draw(tmp_path / images, *(name.replace("\\", "/") for name in names))
        for root in (tmp_path, tmp_path / file):
            data = LongTailedDataModule("COCO", str(root), image_size=9, crop_padding=0)
            assert data.class_counts == [8, 4, 1]
            assert counted(data.source, "test") == {"red fox": 2, "barn owl": 1}
            assert "no test annotations: 20 % of each class are held out as test images" in caplog.text
            assert sum(len(targets) for _, targets in data.test_dataloader()) == 3

    def test_a_test_file_without_annotations(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Ids are texts, as in all camera traps."""
        train = species("", {0: 3, 3: 5, 7: 5})
        write(tmp_path / "iwildcam2022_train_annotations.json", train, CATEGORIES, first="8b31d3be")
        write(tmp_path / "iwildcam2022_test_information.json", VAL, annotations=None)
        draw(tmp_path / "train", *train)
        source = COCO(str(tmp_path))
        assert counted(source, "train") == {"empty": 2, "red fox": 4, "barn owl": 4}
        assert counted(source, "test") == {"empty": 1, "red fox": 1, "barn owl": 1}
        assert "'iwildcam2022_test_information.json' in" in caplog.text
        assert "has no annotations, so that its images are not used for test" in caplog.text
        assert len(source.files("train")[0]) == 10

    def test_inaturalist_2021(self, tmp_path: Path) -> None:
        for name, images in (("train", TRAIN), ("train_mini", {"train/a/3_0.jpg": [3]}), ("val", VAL)):
            write(tmp_path / f"{name}.json", images)
        write(tmp_path / "public_test.json", {"public_test/x.jpg": []}, annotations=None)
        source = COCO(str(tmp_path))
        assert (source.counts, source.has_val) == ([4, 2, 1], False)
        assert counted(source, "test") == {"red fox": 1, "barn owl": 1, "grey wolf": 1}

    def test_images_elsewhere(self, tmp_path: Path) -> None:
        write(tmp_path / "lists/cct.json", TRAIN)
        draw(tmp_path / "disk", *TRAIN)
        for folder in ("../disk", str(tmp_path / "disk")):
            assert len(COCO(str(tmp_path / "lists/cct.json"), image_folder=folder).files("train")[0]) == 5
        with pytest.raises(ValueError, match="image_folder is 'none', but there is no such folder"):
            COCO(str(tmp_path / "lists"), image_folder="none")

    def test_images_in_a_subfolder_of_any_name(self, tmp_path: Path) -> None:
        write(tmp_path / "cct.json", TRAIN)
        draw(tmp_path / "cct_images", *TRAIN)
        assert len(COCO(str(tmp_path)).files("train")[0]) == 5

    def test_missing_files_can_be_left_out(self, tmp_path: Path) -> None:
        write(tmp_path / "cct.json", TRAIN)
        draw(tmp_path, *list(TRAIN)[1:])
        with pytest.raises(
            ValueError, match=r"1 of . images are not in .* or leave them out by --data.on_unreadable skip"
        ):
            LongTailedDataModule(COCO, str(tmp_path)).prepare_data()
        with pytest.warns(UserWarning, match="1 images cannot be read and are skipped"):
            data = LongTailedDataModule(COCO, str(tmp_path), on_unreadable="skip")
        assert sum(data.skipped.values()) == 1

    def test_roots_that_are_no_annotations_raise(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(ValueError, match=r"the list of images '.*none.json' is not there: set --data.root"):
            COCO(str(tmp_path / "none.json"))
        write(tmp_path / "a.json", TRAIN)
        words = ["inspect", "--data.source=Manifest", f"--data.root={tmp_path / 'a.json'}"]
        assert "If it has annotations in COCO's format: --data.source COCO." in refused(capsys, *words)

    def test_ambiguous_files_raise(self, tmp_path: Path) -> None:
        for name in ("a.json", "b.json"):
            write(tmp_path / name, TRAIN)
        with pytest.raises(ValueError, match=r"may be the training annotations: 'a.json', 'b.json'. Set --data.root"):
            COCO(str(tmp_path))


class TestGroups:
    def test_locations_stay_together(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        names = species("", {3: 30, 7: 20, 10: 10})
        write(tmp_path / "a.json", names)
        content = json.loads((tmp_path / "a.json").read_text())
        location_of = {}
        for i, image in enumerate(content["images"]):
            image["location"] = location_of[image["file_name"]] = i % 12
        (tmp_path / "a.json").write_text(json.dumps(content))
        data = LongTailedDataModule("COCO", str(tmp_path), image_size=9)
        assert "'location' has 12 values for 60 images: --data.source COCO --data.source.group_column" in caplog.text
        assert len(data.source.labels("test")) == 12
        source = COCO(str(tmp_path), group_column="location")
        places = [{location_of[path.decode()] for path in source.listing(split).paths} for split in ("train", "test")]
        assert places[0] | places[1] == set(range(12))
        assert not places[0] & places[1]
        with pytest.raises(ValueError, match=r"group_column is 'locatoin', but .* have .*Did you mean 'location'\?"):
            COCO(str(tmp_path), group_column="locatoin")
        for split in ("train", "val"):
            (tmp_path / f"{split}.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"12 groups of 'location' in '.*' are in train and in test: '0', '1', "):
            COCO(str(tmp_path), group_column="location")


class TestClasses:
    def test_class_field(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Two species of one family are one label of an image."""
        write(tmp_path / "a.json", {**species("", {3: 5, 7: 5, 10: 5}), "both.jpg": [3, 10]})
        data = LongTailedDataModule(lambda root: COCO(root, class_field="family"), str(tmp_path), split=0.2)
        assert data.class_names == ["Canidae", "Tytonidae"]
        assert data.class_counts == [9, 4]
        assert "class_field 'family': 3 categories are 2 classes." in caplog.text
        assert COCO(str(tmp_path)).multi_label
        with pytest.raises(
            ValueError, match=r"class_field is 'famly', but .* have 'family', .* Did you mean 'family'\?"
        ):
            COCO(str(tmp_path), class_field="famly")
        write(tmp_path / "a.json", species("", {0: 5, 7: 5}), CATEGORIES)
        with pytest.raises(ValueError, match=r"1 of the categories .* are without a family, such as the one with id 0"):
            COCO(str(tmp_path), class_field="family")

    def test_ids_of_categories(self, tmp_path: Path) -> None:
        """Classes are sorted by number, also if ids are texts; annotations may write a number as a text."""
        texts = [{**category, "id": str(category["id"])} for category in ANIMALS]
        for categories in (ANIMALS, texts):
            write(tmp_path / "a.json", {name: [str(id_) for id_ in ids] for name, ids in TRAIN.items()}, categories)
            assert COCO(str(tmp_path)).class_names == ["red fox", "barn owl", "grey wolf"]
        write(
            tmp_path / "a.json",
            {"1.jpg": ["b"], "2.jpg": ["b"], "3.jpg": ["a"]},
            [{"id": id_, "name": id_ * 2} for id_ in "ba"],
        )
        assert COCO(str(tmp_path)).class_names == ["aa", "bb"]

    def test_the_command_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        names = species("", {3: 6, 7: 3, 10: 3})
        write(tmp_path / "x.json", names)
        draw(tmp_path, *names)
        words = ["inspect", "--data.source=COCO", f"--data.root={tmp_path / 'x.json'}"]
        main([*words, "--data.source.class_field=supercategory", "--data.source.task=one"])
        assert "2 classes, 9 training images, imbalance factor 3.50" in capsys.readouterr().out
        assert "class_field is 'order'" in refused(capsys, *words, "--data.source.class_field=order")


def with_image(annotation: str, categories: str) -> str:
    images = '"images": [{"id": 5, "file_name": "a.jpg"}]'
    return f'{{{images}, "annotations": [{annotation}], "categories": [{categories}]}}'


ANNOTATION = '{"image_id": 5, "category_id": 1}'


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is no annotation file with images, annotations and categories"),
        ('{"images": [', "is no annotation file"),
        ('[{"file_name": "a.jpg", "label": "cat"}]', "but a list of 1 entries with 'file_name', 'label'"),
        ('{"metainfo": {}, "data_list": []}', "but an object with 'metainfo', 'data_list': export it in COCO's format"),
        ('{"images": [], "annotations": []}', "without any entry in 'images'"),
        ('{"a": 1}\n{"a": 2}', "Extra data: line 2"),
        ('{"images": {"a": 1}, "categories": []}', "but an object with 'images', 'categories'"),
        ('{"images": [{"id": 5}]}', "1 of 1 images of .* have no file_name, such as the one at position 1"),
        ('{"images": [{"file_name": "a"}]}', "1 of 1 images of .* have no id"),
        ('{"images": [7]}', "1 of 1 images of .* have no file_name"),
        ('{"images": [{"file_name": "a", "id": [1]}]}', r"images of .* have the id \[1\], but an id is a number or"),
        (
            '{"images": [{"file_name": "a", "id": 5}, {"file_name": "b", "id": 5}]}',
            "gives the same id to several images .*, such as 5 to two images",
        ),
        (with_image("", ""), "has no annotated image"),
        (with_image('{"image_id": 5, "caption": "a cat"}', '{"id": 1}'), "1 of 1 annotations .* have no category_id"),
        (with_image('{"image_id": [5], "category_id": 1}', '{"id": 1}'), r"such as image \[5\], category 1"),
        (with_image(ANNOTATION, '{"id": 1}, {"id": "1"}'), "the same id .* '1' to two categories"),
        (with_image(ANNOTATION, '{"id": 1}'), "class_field is 'name', but the categories of .* have 'id'"),
        (with_image(ANNOTATION, "3"), "is no annotation file"),
    ],
)
def test_wrong_files_raise(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=sentence) as error:
        COCO(str(tmp_path))
    assert "\n" not in str(error.value)


def test_repeated_images_raise(tmp_path: Path) -> None:
    write(tmp_path / "train.json", {**TRAIN, "x/./a.jpg": [3], "x/a.jpg": [7]})
    with pytest.raises(
        ValueError, match=r"1 images of .* have more than one category: 'x/a.jpg': correct them\. For sev"
    ):
        COCO(str(tmp_path))
    write(tmp_path / "train.json", TRAIN)
    write(tmp_path / "val.json", {**VAL, next(iter(TRAIN)): [3]})
    with pytest.warns(UserWarning, match="1 images are listed more than once"):  # without images, who knows
        COCO(str(tmp_path))
    draw(tmp_path, *TRAIN, *VAL)
    with pytest.raises(
        ValueError, match=r"1 images of .* have more than one split: 'train/a/3_0.jpg': keep each image"
    ):
        COCO(str(tmp_path))
