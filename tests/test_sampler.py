"""Samplers: the classes of an epoch against p_j = n_j^q / sum_i n_i^q of Kang et al. 2020."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import DataLoader, TensorDataset

from lt_cb.data import (
    ClassBalancedSampler,
    EffectiveNumberSampler,
    EpochSampler,
    LongTailedDataModule,
    ProgressivelyBalancedSampler,
    Sampler,
    SquareRootSampler,
)
from lt_cb.data.loaders.resident import ResidentLoader
from lt_cb.errors import InputError
from lt_cb.longtail.sampler import rarest_labels

SAMPLERS = [ClassBalancedSampler(), SquareRootSampler(), ProgressivelyBalancedSampler(), EffectiveNumberSampler(0.99)]
COUNTS = st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any)


def expected_shares(sampler: Sampler, counts: list[int], t: float) -> list[float]:
    if isinstance(sampler, EffectiveNumberSampler):
        raw = [n / sum(0.99**k for k in range(n)) if n else 0.0 for n in counts]
    elif isinstance(sampler, ProgressivelyBalancedSampler):
        existing = sum(n > 0 for n in counts)
        raw = [(1 - t) * n / sum(counts) + t * (n > 0) / existing for n in counts]
    else:
        q = 0.0 if isinstance(sampler, ClassBalancedSampler) else 0.5
        raw = [n**q if n else 0.0 for n in counts]
    return [share / sum(raw) for share in raw]


def labels_of(counts: list[int]) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
@given(counts=COUNTS, seed=st.integers(0, 2**32), t=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_an_epoch_shows_each_class_by_its_share(sampler: Sampler, counts: list[int], seed: int, t: float) -> None:
    labels = labels_of(counts)
    drawn = sampler.draw(labels, [seed], t)
    assert drawn.shape == labels.shape
    draws = np.bincount(labels[drawn], minlength=len(counts))
    for number, share in zip(draws, expected_shares(sampler, counts, t), strict=True):
        assert math.floor(share * len(labels) - 1e-4) <= number <= math.ceil(share * len(labels) + 1e-4)
    for label in np.flatnonzero(counts):  # images of a class come equally often, up to one
        times = np.bincount(drawn, minlength=len(labels))[labels == label]
        assert times.max() - times.min() <= 1


@pytest.mark.parametrize("sampler", [ProgressivelyBalancedSampler(), EffectiveNumberSampler(0.0)])
def test_neutral_settings_show_each_image_once(sampler: Sampler) -> None:
    drawn = sampler.draw(labels_of([30, 9, 1]), [5], 0.0)
    assert sorted(drawn) == list(range(40))
    assert list(drawn) != sorted(drawn)


def test_rounding_is_fair() -> None:
    """Each epoch rounds, but the mean over many epochs is the exact share."""
    labels = labels_of([7, 2, 1])
    draws = sum(np.bincount(labels[SquareRootSampler().draw(labels, [s])], minlength=3) for s in range(2000)) / 2000
    roots = np.sqrt([7, 2, 1])
    np.testing.assert_allclose(draws, 10 * roots / roots.sum(), atol=0.04)


def test_wrong_beta_and_drs_start_raise() -> None:
    with pytest.raises(ValueError, match=r"beta is 1.0, but must be in \[0, 1\)"):
        EffectiveNumberSampler(1.0)
    with pytest.raises(ValueError, match=r"drs_start is 160, but must be a fraction of the training in \[0, 1\]"):
        LongTailedDataModule(drs_start=160)


@pytest.mark.parametrize("shares", [[1.0], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0], [1.0, math.nan, 1.0]])
def test_wrong_shares_raise(shares: list[float]) -> None:
    class Own(Sampler):
        def class_shares(self, counts: np.ndarray, progress: float) -> np.ndarray:
            return np.array(shares)

    with pytest.raises(ValueError, match=r"Own.class_shares returned .*, but must return 3 shares of at least 0"):
        Own().draw(labels_of([3, 2, 1]), [0])


def epoch_of(loader: ResidentLoader, epoch: int) -> torch.Tensor:
    loader.set_epoch(epoch)
    return torch.cat([targets for _, targets in loader])


def test_the_data_module_samples_its_subset() -> None:
    data = LongTailedDataModule(imbalance_factor=50, sampler=ClassBalancedSampler())
    assert data.class_counts == [134, 86, 56, 36, 23, 15, 9, 6, 4, 2]  # images, not draws
    loader = data.train_dataloader()
    first = epoch_of(loader, 0)
    assert set(first.bincount(minlength=10).tolist()) == {37, 38}
    assert not torch.equal(first, epoch_of(loader, 1))
    assert torch.equal(first, epoch_of(loader, 0))
    assert torch.cat([targets for _, targets in data.test_dataloader()]).bincount().tolist() == [40] * 10


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_a_sampled_epoch(world_size: int) -> None:
    labels = torch.from_numpy(labels_of([30, 9, 1]))
    images = torch.zeros(40, 2, 2, 1, dtype=torch.uint8)

    def order(epoch: int) -> torch.Tensor:
        return torch.from_numpy(SquareRootSampler().draw(labels.numpy(), [0, epoch]))

    def shown(rank: int, world: int) -> torch.Tensor:
        loader = ResidentLoader(images, labels, 7, train=True, order=order, rank=rank, world_size=world)
        return epoch_of(loader, 3)

    whole = shown(0, 1)
    parts = [shown(rank, world_size) for rank in range(world_size)]
    assert all(torch.equal(part, whole[rank::world_size]) for rank, part in enumerate(parts))


class TestEpochSampler:
    @given(counts=COUNTS, world=st.integers(1, 5), epoch=st.integers(0, 9))
    @settings(max_examples=50, deadline=None)
    def test_processes_share_one_draw(self, counts: list[int], world: int, epoch: int) -> None:
        labels = labels_of(counts)
        shares = []
        for rank in range(world):
            share = EpochSampler(labels, ProgressivelyBalancedSampler(), 3, 10, num_replicas=world, rank=rank)
            share.set_epoch(epoch)
            shares.append(list(share))
            assert len(shares[-1]) == len(share) == math.ceil(len(labels) / world)
        drawn = ProgressivelyBalancedSampler().draw(labels, [3, epoch], epoch / 10)
        together = [share[i] for i in range(len(shares[0])) for share in shares]
        assert together[: len(labels)] == drawn.tolist()
        assert together[len(labels) :] == np.resize(drawn, len(together)).tolist()[len(labels) :]

    def test_rank_and_world_size_come_from_torch_distributed(self) -> None:
        alone = list(EpochSampler(labels_of([60, 30, 10]), ClassBalancedSampler()))
        torch.distributed.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
        try:
            second = list(EpochSampler(labels_of([60, 30, 10]), ClassBalancedSampler()))
        finally:
            torch.distributed.destroy_process_group()
        assert second == alone[1::2]

    def test_lightning_keeps_the_sampler_and_sets_its_epoch(self) -> None:
        sampler = EpochSampler([0] * 12 + [1] * 4, ClassBalancedSampler())
        data = TensorDataset(torch.rand(16, 2), torch.tensor([0] * 12 + [1] * 4))
        drawn = []

        class Module(LightningModule):
            def training_step(self, batch, batch_idx) -> None:
                drawn.append(batch[1].sum().item())

            def configure_optimizers(self) -> None:
                return None

        trainer = Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        trainer.fit(Module(), DataLoader(data, 16, sampler=sampler))
        assert drawn == [8, 8]
        assert sampler.epoch == 1

    def test_it_needs_pytorch_alone(self) -> None:
        code = (
            "import sys; sys.modules |= dict.fromkeys(('numpy', 'lightning', 'yaml', 'scipy'))\n"
            "from lt_cb.data import ClassBalancedSampler, EffectiveNumberSampler, EpochSampler\n"
            "for targets in ([0] * 90 + [1] * 10, [[1, 0]] * 90 + [[0, 1]] * 10):\n"
            "    for sampler in (ClassBalancedSampler(), EffectiveNumberSampler(0.999)):\n"
            "        drawn = list(EpochSampler(targets, sampler))\n"
            "        assert len(drawn) == 100 and 45 <= sum(i >= 90 for i in drawn) <= 55, drawn"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    @pytest.mark.parametrize("targets", [[], [[2, 0]], [[1.0, 0.0]], [[[1]]], [0.5, 1.0], [-1, 0]])
    def test_wrong_targets_raise(self, targets: list) -> None:
        with pytest.raises(InputError, match="must be class indices of shape"):
            EpochSampler(targets, ClassBalancedSampler())
        with pytest.raises(InputError, match="sampler is 'ClassBalancedSampler', but must be a Sampler"):
            EpochSampler([0, 1], "ClassBalancedSampler")


class TestSeveralLabels:
    def test_rarest_labels(self) -> None:
        labels = np.array([[1, 0, 1], [1, 0, 0], [1, 1, 0], [0, 1, 1], [-1, 0, -1], [0, 1, -1]], np.int8)
        assert rarest_labels(labels).tolist() == [
            2,
            0,
            0,
            2,
            3,
            1,
        ]  # the labels have 3, 3 and 2 images; ties go to the first
        assert rarest_labels(np.array([4, 2])).tolist() == [4, 2]

    @given(shape=st.tuples(st.integers(1, 40), st.integers(1, 6)), seed=st.integers(0, 2**32))
    @settings(deadline=None)
    def test_several_labels_are_drawn_by_the_rarest_label(self, shape: tuple[int, int], seed: int) -> None:
        labels = np.random.default_rng(seed).integers(-1, 2, shape, np.int8)
        positives = [sum(row[c] == 1 for row in labels) for c in range(shape[1])]
        rarest = [
            min((positives[c], c) for c in range(shape[1]) if row[c] == 1)[1] if (row == 1).any() else shape[1]
            for row in labels
        ]
        assert rarest_labels(labels).tolist() == rarest
        drawn = SquareRootSampler().draw(labels, [seed])
        assert drawn.tolist() == SquareRootSampler().draw(np.array(rarest), [seed]).tolist()
        own = EpochSampler(torch.from_numpy(labels), SquareRootSampler(), seed, num_replicas=1, rank=0)
        assert list(own) == SquareRootSampler().draw(np.array(rarest), [seed, 0]).tolist()
