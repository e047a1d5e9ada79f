"""Batches are made on the device. A fake device refuses mixed devices and synchronisation."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from lt_cb.data.loaders.resident import ResidentLoader

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("train", [True, False])
def test_batches_are_made_on_the_device_without_synchronisation(train: bool, sampled: bool) -> None:
    with FakeTensorMode():
        images, targets = torch.zeros(10, 8, 6, 3, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64)
        loader = ResidentLoader(
            images,
            targets,
            4,
            device=CUDA,
            train=train,
            crop_padding=2,
            horizontal_flip=True,
            order=(lambda epoch: torch.arange(10)) if sampled else None,
        )
        assert (loader.images.device, loader.targets.device) == (CUDA, CUDA)
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            batches = list(loader)
            assert [tuple(batch.shape) for batch, _ in batches] == [(4, 3, 8, 6), (4, 3, 8, 6), (2, 3, 8, 6)]
            for batch, classes in batches:
                assert (batch.device, batch.dtype, classes.device) == (CUDA, torch.uint8, CUDA)
                assert batch.is_contiguous(memory_format=torch.channels_last)


def test_the_fake_device_refuses_synchronisation_and_mixed_devices() -> None:
    with FakeTensorMode():
        values = torch.zeros(3, device=CUDA)
        with pytest.raises(DataDependentOutputException):
            values.sum().item()
        with pytest.raises(RuntimeError, match="device"):
            values + torch.zeros(3)
