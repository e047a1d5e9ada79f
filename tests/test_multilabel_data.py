"""Subsets and held-out images of data with several labels an image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lt_cb.data import LongTailedDataModule, Source, SquareRootSampler
from lt_cb.errors import InputError
from lt_cb.longtail import Subset
from lt_cb.longtail.profile import class_counts_exponential, class_counts_step, exponents
from lt_cb.longtail.several import choose, multilabel_subset, stratify

PROFILES = {"exponential": class_counts_exponential, "step": class_counts_step}


@st.composite
def multi_hot(draw: st.DrawFn) -> np.ndarray:
    """Labels of shape (N, C): each class has a positive, some images have none, some labels are unknown."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    num_images, num_classes = draw(st.integers(10, 80)), draw(st.integers(2, 6))
    shares = rng.uniform(0.05, 0.6, num_classes)
    labels = (rng.random((num_images, num_classes)) < shares).astype(np.int8)
    labels[rng.random(labels.shape) < 0.1] = -1
    labels[np.arange(num_classes), np.arange(num_classes)] = 1
    return labels


def subset(labels: np.ndarray, kind: str, factor: float, seed: int, n_max: int | None = None) -> set[int] | None:
    """Return the images of a subset, or None if a class would lose all its images."""
    num_classes = labels.shape[1]
    caps = PROFILES[kind](n_max or int((labels == 1).sum(0).min()), num_classes, factor)
    try:
        kept = multilabel_subset(labels, caps, exponents(kind, num_classes), ["x"] * num_classes, seed)
    except InputError:
        return None
    counts = (labels[kept] == 1).sum(0)
    assert (counts <= caps).all()
    assert ((counts > 0) == (np.array(caps) > 0)).all()
    assert (np.diff(kept) > 0).all()
    return set(kept.tolist())


class TestSubset:
    @given(multi_hot(), st.sampled_from(["exponential", "step"]), st.floats(1, 30), st.floats(1, 30), st.integers(0, 9))
    @settings(deadline=None)
    def test_counts_are_at_most_the_caps_and_subsets_are_nested(
        self, labels: np.ndarray, kind: str, factor: float, other: float, seed: int
    ) -> None:
        larger, smaller = (subset(labels, kind, f, seed) for f in sorted((factor, other)))
        if larger is not None and smaller is not None:
            assert smaller <= larger
        assert subset(labels, kind, min(factor, other), seed) == larger

    @given(
        st.lists(st.integers(1, 30), min_size=2, max_size=6),
        st.sampled_from(["exponential", "step"]),
        st.floats(1, 30),
        st.booleans(),
    )
    @settings(deadline=None)
    def test_with_single_labels_each_class_reaches_its_cap(
        self, counts: list[int], kind: str, factor: float, explicit: bool
    ) -> None:
        labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
        several = np.eye(len(counts), dtype=np.int8)[labels]
        caps = PROFILES[kind](min(counts), len(counts), factor)
        powers = None if explicit else exponents(kind, len(counts))
        kept = multilabel_subset(several, caps, powers, [""] * len(counts), 0)
        assert np.bincount(labels[kept], minlength=len(counts)).tolist() == caps

    def test_seed_chooses_the_images(self) -> None:
        labels = np.random.default_rng(1).integers(0, 2, (200, 3), np.int8)
        first, again, other = (subset(labels, "exponential", 5, seed) for seed in (0, 0, 1))
        assert first == again != other

    def test_images_without_rarer_labels_are_removed_first(self) -> None:
        """Class 1 shrinks from 20 to 2 images; 18 of them have class 0 too, and 2 have class 2."""
        labels = np.zeros((41, 3), np.int8)
        labels[:38, 0] = 1
        labels[20:38, 1] = labels[38:40, 1] = labels[38:41, 2] = 1
        kept = multilabel_subset(labels, [20, 2, 3], None, ["a", "b", "c"], 0)
        assert (labels[kept] == 1).sum(0).tolist() == [20, 2, 3]
        assert {38, 39, 40} <= set(kept)

    def test_images_without_a_label_are_reduced_in_proportion(self) -> None:
        labels = np.zeros((300, 2), np.int8)
        labels[:100, 0] = labels[100:200, 1] = 1
        labels[200:, 1] = -1
        for factor, left in ((1, 100), (4, 62), (10, 55)):
            kept = subset(labels, "exponential", factor, 0)
            assert sum(image >= 200 for image in kept) == left  # 200, 125 and 110 of the 200 other images

    def test_losing_a_class_raises(self) -> None:
        labels = np.array([[1, 1]] * 9 + [[1, 0]] * 9, np.int8)[:, ::-1]
        always = np.array([[1, 1, 1]] * 5, np.int8)
        assert subset(labels, "exponential", 9, 0) is not None
        with pytest.raises(
            InputError, match=r"no image of 'a', 'c', because other labels .* lower --data\.imbalance_factor"
        ):
            multilabel_subset(always, [3, 0, 3], None, ["a", "b", "c"], 0)


class TestStratify:
    @given(multi_hot(), st.floats(0.01, 0.9), st.integers(0, 9))
    @settings(deadline=None)
    def test_both_sides_have_each_class_where_possible(self, labels: np.ndarray, fraction: float, seed: int) -> None:
        train, held = stratify(labels, fraction, seed)
        assert sorted([*train, *held]) == list(range(len(labels)))
        assert (np.diff(train) > 0).all()
        assert (np.diff(held) > 0).all()
        positive = labels == 1
        assert positive[train].any(0).all()  # each class has a positive, so one for training
        for c in np.flatnonzero((positive.sum(0) > 1) & ~positive[held].any(0)):  # only if no image can be spared
            sole = positive[train].sum(0) == 1
            assert all((positive[image] & sole).any() for image in train if positive[image, c])
        assert [part.tolist() for part in stratify(labels, fraction, seed)] == [train.tolist(), held.tolist()]

    @pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
    def test_shares_are_near_the_fraction(self, fraction: float) -> None:
        rng = np.random.default_rng(0)
        labels = (rng.random((3000, 8)) < np.geomspace(0.4, 0.01, 8)).astype(np.int8)
        _, held = stratify(labels, fraction, 0)
        totals = labels.sum(0)
        assert (abs(labels[held].sum(0) - fraction * totals) <= 1 + 0.03 * totals).all()
        without = ~labels.any(1)
        assert without[held].sum() == pytest.approx(fraction * without.sum(), abs=1)
        assert len(held) == pytest.approx(fraction * 3000, abs=60)
        assert stratify(labels, fraction, 1)[1].tolist() != held.tolist()

    def test_fraction_zero_holds_out_nothing(self) -> None:
        train, held = stratify(np.ones((5, 2), np.int8), 0.0, 0)
        assert (train.tolist(), held.tolist()) == ([0, 1, 2, 3, 4], [])


class Tones(Source):
    """Grey images whose tone is their index, with random labels."""

    class_names = ["a", "b", "c"]
    image_size = 4
    channels = 1
    multi_label = True

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.counts = (self.labels("train") == 1).sum(0).tolist()

    def labels(self, split: str) -> np.ndarray:
        rng = np.random.default_rng(0 if split == "train" else 1)
        return rng.choice(np.array([-1, 0, 1], np.int8), (120 if split == "train" else 30, 3), p=[0.1, 0.5, 0.4])

    def load(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        labels = self.labels(split)
        tones = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
        return np.broadcast_to(tones, (len(labels), 4, 4, 1)).copy(), labels


def shown(loader: object) -> dict[int, list[int]]:
    """Return the labels by tone; each image comes once."""
    pairs = [
        (int(image.max()), target.tolist())
        for images, targets in loader
        for image, target in zip(images, targets, strict=True)
    ]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


class TestDataModule:
    options = {"imbalance_factor": 5, "val_fraction": 0.2, "crop_padding": 0, "batch_size": 7}

    def test_counts_equal_the_images_of_the_loaders(self) -> None:
        source = Tones("")
        data = LongTailedDataModule(Tones, **self.options)
        assert data.multi_label
        assert not LongTailedDataModule().multi_label
        before = data.class_counts, data.subset_counts, data.num_images
        train, held = shown(data.train_dataloader()), shown(data.val_dataloader())
        assert not train.keys() & held.keys()
        assert before == (data.class_counts, data.subset_counts, len(train))
        count = {name: (np.array(list(part.values())) == 1).sum(0) for name, part in (("t", train), ("h", held))}
        assert count["t"].tolist() == data.class_counts
        assert (count["t"] + count["h"]).tolist() == data.subset_counts
        caps = class_counts_exponential(min(source.counts), 3, 5)
        assert all(count <= cap for count, cap in zip(data.subset_counts, caps, strict=True))
        for part in (train, held):
            assert all(labels == source.labels("train")[tone].tolist() for tone, labels in part.items())
        assert sorted(train) == data.rows["train"].tolist()
        assert sorted(held) == data.rows["val"].tolist()
        assert shown(data.test_dataloader()) == dict(enumerate(source.labels("test").tolist()))
        assert data.targets("train").dtype == torch.int8
        assert data.targets("train").shape == (len(train), 3)

    def test_all_kinds_of_subsets(self) -> None:
        whole = LongTailedDataModule(Tones)
        assert (whole.class_counts, whole.num_images) == (Tones("").counts, 120)
        given = LongTailedDataModule(Tones, subset_counts=[20, 0, 5])
        assert given.class_counts[1] == 0
        assert max(given.class_counts) <= 20
        step = LongTailedDataModule(Tones, imbalance_factor=4, imbalance_type="step", n_max=40)
        assert all(n <= cap for n, cap in zip(step.class_counts, [40, 10, 10], strict=True))
        inner, outer = (
            set(shown(LongTailedDataModule(Tones, imbalance_factor=f, crop_padding=0).train_dataloader()))
            for f in (8, 2)
        )
        assert inner < outer
        hashes = set()
        for seed in (0, 0, 1):
            data = LongTailedDataModule(Tones, imbalance_factor=5, subset_seed=seed)
            data.prepare_data()
            hashes.add(data.facts()["subset_sha256"])
        assert len(hashes) == 2

    def test_processes_share_an_epoch_of_a_sampler(self) -> None:
        data = LongTailedDataModule(Tones, sampler=SquareRootSampler(), **self.options)
        loader = data.train_dataloader()
        loader.batch_size = 1000
        whole = next(iter(loader))[1]
        parts = []
        for rank in range(2):
            loader.rank, loader.world_size = rank, 2
            parts.append(torch.cat([targets for _, targets in loader]))
        assert torch.equal(parts[0], whole[::2])
        assert torch.equal(parts[1], whole[1::2])

    @pytest.mark.parametrize(
        ("wrong", "sentence"),
        [
            (
                np.zeros((120, 3)),
                r"are float64 of shape \(120, 3\), but .* int8 labels of shape \(N, 3\)",
            ),
            (np.zeros((120, 2), np.int8), r"are int8 of shape \(120, 2\), but"),
            (np.zeros(120, np.int8), r"are int8 of shape \(120,\), but"),
            (np.full((120, 3), 2, np.int8), "each 1, 0, or -1 for unknown: check the source"),
            (np.ones((120, 3), np.int8), r"counts \d+ training images of class 'a', but loads 120"),
        ],
    )
    def test_wrong_labels_raise(self, wrong: np.ndarray, sentence: str) -> None:
        source = Tones("")
        source.labels = lambda split: wrong
        with pytest.raises(InputError, match=sentence):
            LongTailedDataModule(lambda root: source)

    def test_held_out_images_are_in_the_subset(self) -> None:
        labels, caps = Tones("").labels("train"), (30, 20, 10)
        train, held_out = choose(labels, Subset(counts=caps, seed=3), caps, ["a", "b", "c"], 0.2)
        assert not set(train) & set(held_out)
        assert ((labels[np.append(train, held_out)] == 1).sum(0) <= caps).all()
