"""Groups, such as all images of one patient, are never divided between splits or folds."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold

from lt_cb.__main__ import main
from lt_cb.data import LongTailedDataModule
from lt_cb.data.grouped import num_groups, say_groups
from lt_cb.data.sources import COCO, Manifest
from lt_cb.data.sources.listing import Listing, draw_test
from lt_cb.data.sources.tested import test_only as only_tested
from lt_cb.errors import InputError
from lt_cb.heads.folds import stratified_folds
from lt_cb.longtail.groups import count_groups, group_folds, hold_out_groups

TAIL = [60, 30, 16, 9, 5, 3, 1]  # groups of each class
RAREST = f"L{sum(TAIL) - 1}"

Drawn = tuple[np.ndarray, np.ndarray, int, int]


@st.composite
def grouped(draw: st.DrawFn) -> Drawn:
    """Labels, one or several an image, groups, number of classes, and a seed."""
    size, classes = draw(st.integers(1, 60)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shares = rng.dirichlet(np.full(classes, 0.5))
    labels = rng.choice(classes, size, p=shares)
    if draw(st.booleans()):
        labels = rng.choice(np.array([-1, 0, 1], np.int8), (size, classes), p=[0.1, 0.6, 0.3])
    groups = rng.integers(-5, draw(st.integers(-4, size)), size)
    return labels, groups, classes, draw(st.integers(0, 5))


def groups_of(labels: np.ndarray, groups: np.ndarray, label: int) -> set[int]:
    """Counted apart from the code under test."""
    has = labels == label if labels.ndim == 1 else labels[:, label] == 1
    return set(groups[has].tolist())


class TestSplits:
    @settings(deadline=None)
    @given(grouped(), st.floats(0.001, 0.999))
    def test_no_group_is_held_out_in_part_and_each_class_is_trained(self, drawn: Drawn, share: float) -> None:
        labels, groups, classes, seed = drawn
        order = np.random.default_rng(seed).permutation(len(labels))
        held_out = hold_out_groups(labels, groups, classes, share, order)
        assert not set(groups[held_out]) & set(groups[~held_out])
        assert not held_out.all()
        for label in range(classes):
            own = groups_of(labels, groups, label)
            assert not own or own - set(groups[held_out])
            assert count_groups(labels, groups, classes)[label] == len(own)
        assert np.array_equal(held_out, hold_out_groups(labels, groups, classes, share, order))

    @settings(deadline=None)
    @given(grouped(), st.integers(2, 6))
    def test_no_group_is_in_two_folds_and_each_class_is_trained(self, drawn: Drawn, folds: int) -> None:
        labels, groups, classes, seed = drawn
        assigned = group_folds(labels, groups, classes, folds, seed)
        assert all(len(set(assigned[groups == group])) == 1 for group in groups)
        assert set(assigned) <= set(range(-1, folds))
        for label in range(classes):
            own = groups_of(labels, groups, label)
            for k in range(folds):
                assert not own or own - set(groups[assigned == k])
            if len(own) == 1:
                assert set(assigned[np.isin(groups, list(own))]) == {-1}

    @settings(deadline=None)
    @given(st.lists(st.integers(1, 12), min_size=2, max_size=5), st.integers(1, 3), st.floats(0.05, 0.5))
    def test_a_class_of_two_pure_groups_is_held_out(self, counts: list[int], size: int, share: float) -> None:
        labels = np.repeat(np.arange(len(counts)), np.array(counts) * size)
        groups = np.arange(len(labels)) // size
        listing = Listing(np.array([str(i).encode() for i in range(len(labels))]), labels, ["x"] * len(counts), groups)
        train, test = draw_test(listing, share)
        for label, count in enumerate(counts):
            held_out = np.count_nonzero(test.labels == label) / size
            assert held_out == 0 if count == 1 else 1 <= held_out < count
            assert abs(held_out - count * share) < 1.001  # within a group of the share
        order = np.random.default_rng(0).permutation(len(labels))
        again = draw_test(listing.select(order)._replace(groups=1000 - groups[order]), share)
        assert set(again[1].paths) == set(test.paths)  # neither order nor numbers matter
        assert sorted([*train.paths, *test.paths]) == sorted(listing.paths)

    def test_as_well_stratified_as_scikit_learn(self) -> None:
        rng = np.random.default_rng(0)
        sizes = rng.geometric(0.4, sum(TAIL))
        labels, groups = np.repeat(np.repeat(np.arange(7), TAIL), sizes), np.repeat(np.arange(sum(TAIL)), sizes)
        totals = np.bincount(labels)

        def deviation(assigned: np.ndarray) -> float:
            counts = np.stack([np.bincount(labels[assigned == k], minlength=7) for k in range(5)])
            return float(np.abs(counts / totals - 0.2)[:, :5].mean())  # of classes in 5 groups or more

        reference = np.empty_like(labels)
        splitter = StratifiedGroupKFold(5, shuffle=True, random_state=0)
        with pytest.warns(UserWarning, match="least populated class"):
            folds = list(splitter.split(labels, labels, groups))
        for k, (_, rows) in enumerate(folds):
            reference[rows] = k
        assert deviation(group_folds(labels, groups, 7, 5, 0)) <= deviation(reference) + 0.005
        held_out = hold_out_groups(labels, groups, 7, 0.2, rng.permutation(len(labels)))
        assert np.abs(np.bincount(labels[held_out], minlength=7) / totals - 0.2)[:4].max() < 0.05

    def test_folds_of_heads(self) -> None:
        targets, groups = torch.arange(3).repeat_interleave(6), torch.arange(18) // 2
        assigned = stratified_folds(targets, 3, 3, 0, groups)
        assert all(sorted(assigned[targets == label].tolist()) == [0, 0, 1, 1, 2, 2] for label in range(3))
        with pytest.raises(InputError, match=r"^no class has 4 groups of training images, .*: set --folds 3 or fewer"):
            stratified_folds(targets, 3, 4, 0, groups)
        with pytest.raises(InputError, match=r"^0 of 3 classes have 2 groups .*: add images\.$"):
            stratified_folds(targets, 3, 2, 0, targets)
        several = torch.nn.functional.one_hot(targets).to(torch.int8)
        assert torch.equal(stratified_folds(several, 3, 3, 0, groups), assigned)


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., str]:
    """A table of lesions as in HAM10000, one to three images each, in any order."""

    def write(**columns: Callable[[int, str], str]) -> str:
        rng = np.random.default_rng(0)
        rows: list[dict[str, Any]] = []
        for name, number in zip("abcdefg", TAIL, strict=True):
            for _ in range(number):
                lesion = f"L{len({row['lesion_id'] for row in rows})}"
                rows += [{"lesion_id": lesion, "dx": name} for _ in range(rng.integers(1, 4))]
        rng.shuffle(rows)  # type: ignore[arg-type]
        for i, row in enumerate(rows):
            row |= {"image_id": f"{i}.png"} | {key: value(i, row["lesion_id"]) for key, value in columns.items()}
        with open(tmp_path / "t.csv", "w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return str(tmp_path / "t.csv")

    return write


def lesions(file: str, paths: np.ndarray) -> set[str]:
    """Lesions of some images, read from the table without lt_cb."""
    with open(file, newline="") as stream:
        lesion_of = {row["image_id"]: row["lesion_id"] for row in csv.DictReader(stream)}
    return {lesion_of[path.decode()] for path in paths}


def module(file: str, group_column: str | None = "lesion_id", **options: Any) -> LongTailedDataModule:
    return LongTailedDataModule(lambda root: Manifest(root, group_column=group_column), file, image_size=8, **options)


class TestTables:
    @pytest.mark.filterwarnings("ignore:.*has no test images of 'g'")
    @pytest.mark.parametrize("options", [{}, {"imbalance_factor": 4.0, "n_max": 20}, {"split": 0.4}])
    def test_every_split(self, table: Callable[..., str], options: dict[str, Any]) -> None:
        file = table()
        if "n_max" in options:
            options = {"subset_counts": [20, 12, 8, 5, 4, 2, 1]}
        with pytest.warns(UserWarning, match=r"^no validation image of .*'g'"):
            data = module(file, val_fraction=0.2, **options)
        train, val = (data.source.listing("train").paths[rows] for rows in data._chosen)
        test = data.source.listing("test").paths
        parts = [lesions(file, paths) for paths in (train, val, test)]
        assert sum(map(len, parts)) == len(set.union(*parts))
        assert num_groups(data) == dict(zip(("train", "val", "test"), map(len, parts), strict=True))
        assert data.class_counts == np.bincount(data.training_labels(), minlength=7).tolist()
        assert min(data.class_counts) >= 1
        assert sum(data.subset_counts) == len(train) + len(val)
        if "subset_counts" in options:
            assert data.subset_counts == options["subset_counts"]
        again = module(file, val_fraction=0.2, **options)
        assert np.array_equal(again._chosen[1], data._chosen[1])
        other = module(file, val_fraction=0.2, subset_seed=1, **options)
        assert set(other.source.listing("test").paths) == set(test)

    def test_groups_follow_the_rows(self, table: Callable[..., str], tmp_path: Path) -> None:
        file = table(split=lambda i, lesion: ("train", "train", "test")[int(lesion[1:]) % 3])
        for i in range(400):
            Image.fromarray(np.full((8, 8, 3), i % 256, np.uint8)).save(tmp_path / f"{i}.png")
        (tmp_path / "7.png").write_text("no image")
        with pytest.warns(UserWarning, match="no validation image of"):
            data = module(file, val_fraction=0.3, on_unreadable="skip")
        assert sum(data.skipped.values()) == 1
        for split in ("train", "val", "test"):
            before = data.groups(split)
            targets = data.targets(split)
            assert np.array_equal(data.groups(split), before)
            assert before.dtype == np.int64
            assert before.shape == (len(targets),)
            paths = data.source.listing(data.origin(split)).paths[data.rows[split]]
            for group in set(before.tolist()):
                assert len(lesions(file, paths[before == group])) == 1
        assert data.class_counts == data.targets("train").bincount(minlength=7).tolist()

    def test_a_group_in_two_given_splits(self, table: Callable[..., str]) -> None:
        file = table(split=lambda i, lesion: "train" if i % 2 or lesion == RAREST else "test")
        with pytest.raises(InputError) as caught:
            Manifest(file, group_column="Lesion_ID")
        message = str(caught.value)
        assert "has groups of 'lesion_id' with more than one split: " in message
        assert "' in rows " in message
        assert "(train) and" in message
        assert "leave out --data.source.group_column to use the splits as they are." in message
        assert not LongTailedDataModule("Manifest", file, image_size=8).groups("train")

    def test_a_row_without_a_group_is_alone(self, table: Callable[..., str], caplog: pytest.LogCaptureFixture) -> None:
        file = table(patient=lambda i, lesion: "" if i % 2 else lesion)
        source = Manifest(file, group_column="patient")
        groups = np.concatenate([source.groups("train"), source.groups("test")])
        assert np.count_nonzero(np.unique(groups, return_counts=True)[1] == 1) >= len(groups) // 2
        assert f"{len(groups) // 2} of {len(groups)} rows of '{file}' have no 'patient'" in caplog.text

    def test_data_to_test_on_need_no_groups(self, table: Callable[..., str]) -> None:
        with only_tested("test"):
            for name in ("lesion_id", "no such column"):
                assert num_groups(module(table(), name)) == {}

    def test_each_class_in_one_group(self, table: Callable[..., str]) -> None:
        file = table(site=lambda i, lesion: "x")
        with pytest.raises(InputError, match=r"each group of 'site' has all images of a class\. Set group_column to"):
            Manifest(file, group_column="site")

    def test_unknown_column(self, table: Callable[..., str]) -> None:
        with pytest.raises(InputError, match=r"group_column names 'lesionids', but .*Did you mean 'lesion_id'\?$"):
            Manifest(table(), group_column="lesionids")

    def test_one_line_suggests_a_column_when_splits_are_drawn(
        self, table: Callable[..., str], caplog: pytest.LogCaptureFixture
    ) -> None:
        images = len(Path(file := table()).read_text().splitlines()) - 1
        line = (
            f"'lesion_id' has {sum(TAIL)} values for {images} images: "
            "--data.source.group_column lesion_id keeps the images of each together."
        )
        for group, said in ((None, 1), ("lesion_id", 0)):
            data = module(file, group, val_fraction=0.1)
            output = caplog.text
            caplog.clear()
            assert output.count(line) == said
            assert output.count("groups of 'lesion_id' are kept together: ") == 1 - said
            assert (num_groups(data) == {}) == bool(said)
        file = table(split=lambda i, lesion: "train" if i % 2 or lesion == RAREST else "test")
        for fraction in (0.0, 0.1):
            data = module(file, None, val_fraction=fraction)
            assert ("keeps the images" in caplog.text) == bool(fraction)
            say_groups(data, drawn=True)  # before folds
            assert caplog.text.count("keeps the images") == 1
            caplog.clear()

    def test_columns_of_labels(self, tmp_path: Path) -> None:
        rows = [f"{i}.png,{i // 3},{i % 2},{int(i % 5 == 0)}" for i in range(60)]
        (tmp_path / "t.csv").write_text("\n".join(["path,Patient ID,edema,effusion", *rows]))
        data = module(str(tmp_path / "t.csv"), "patient id", val_fraction=0.2)
        assert data.class_names == ["edema", "effusion"]
        parts = [set(data.groups(split)) for split in ("train", "val", "test")]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 20
        assert num_groups(data)["test"] == 4


def test_a_run_records_its_groups(table: Callable[..., str], tmp_path: Path) -> None:
    file = table()
    for i in range(400):
        Image.fromarray(np.full((8, 8, 3), i % 256, np.uint8)).save(tmp_path / f"{i}.png")
    common = ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    data = [f"--data.root={file}", "--data.source=Manifest", "--data.source.group_column=lesion_id"]
    options = ["--data.val_fraction=0.2", "--data.image_size=8", "--data.crop_padding=0", "--data.num_workers=0"]
    with pytest.warns(UserWarning, match="no validation image of 'g'|has no test images of 'g'"):
        main(["fit", f"--trainer.default_root_dir={tmp_path}", "--name=run", *common, *data, *options])
    (result,) = tmp_path.rglob("result.json")
    groups = json.loads(result.read_text())["groups"]
    assert set(groups) == {"train", "val", "test"}
    assert sum(groups.values()) == sum(TAIL)


def test_an_image_has_one_group(tmp_path: Path) -> None:
    rows = [f"{i}.png,{'ab'[i % 2]},p{i // 2}" for i in range(8)]
    file = tmp_path / "t.csv"
    file.write_text("\n".join(["path,label,patient", *rows, "0.png,a,"]))
    with pytest.warns(UserWarning, match="repeat an image"):
        source = Manifest(str(file), group_column="patient")
    assert len(np.unique(np.concatenate([source.groups("train"), source.groups("test")]))) == 4
    file.write_text("\n".join(["path,label,patient", *rows, "0.png,a,p3"]))
    with (
        pytest.warns(UserWarning, match="repeat an image"),
        pytest.raises(InputError, match=r"more than one patient: '0.png' in rows 1 \(p0\) and 9 \(p3\): correct them"),
    ):
        Manifest(str(file), group_column="patient")


def test_annotations_without_training_images(tmp_path: Path) -> None:
    """A test elsewhere reads one split, and needs no groups."""
    for split, first in (("val", 0), ("test", 4)):
        content = {
            "images": [{"id": i, "file_name": f"{i}.png"} for i in range(first, first + 4)],
            "annotations": [{"image_id": i, "category_id": i % 2} for i in range(first, first + 4)],
            "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
        }
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"has annotations of val and test, .* but none of training images: add"):
        COCO(str(tmp_path))
    with only_tested("test") as found:
        source = COCO(str(tmp_path), group_column="location")
    assert (found, source.undivided) == (["test"], None)
    assert source.listing("test").paths.tolist() == [b"4.png", b"5.png", b"6.png", b"7.png"]
