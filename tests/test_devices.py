"""Losses on a simulated GPU: fake tensors know their device, and raise an error where code waits for a value."""

import inspect

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import lt_cb.losses
from lt_cb.losses import EffectiveNumber, Loss

COUNTS = [500, 60, 7, 1, 0]
LOSSES = [
    loss
    for loss in map(vars(lt_cb.losses).get, lt_cb.losses.__all__)
    if inspect.isclass(loss) and issubclass(loss, Loss) and not inspect.isabstract(loss)
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)
def test_losses_stay_on_the_device_without_waiting(cls: type[Loss], dtype: torch.dtype) -> None:
    size = len(COUNTS)
    for options in ({}, {"weighting": EffectiveNumber(0.99)}, {"reduction": "weighted_mean"}):
        if "num_images" in inspect.signature(cls).parameters:
            options = {"num_images": sum(COUNTS), **options}
        loss = cls(COUNTS, **options).train()
        with FakeTensorMode(allow_non_fake_inputs=True):
            loss.to("cuda")
            logits = torch.zeros(8, size, device="cuda", dtype=dtype)
            indices, unknown = (
                torch.zeros(8, device="cuda", dtype=torch.int64),
                torch.full_like(logits, -1).to(torch.int8),
            )
            for targets in [indices, torch.zeros_like(logits), unknown][
                : 1 + (1 + loss.multi_label) * loss.soft_targets
            ]:
                value = loss(logits, targets)
                assert (value.device.type, value.dtype, value.shape) == ("cuda", torch.float32, ())
            assert loss.adjust(logits).device == loss.probabilities(logits).device == logits.device
            with pytest.raises(RuntimeError):
                loss(logits, targets.cpu())
            with pytest.raises(DataDependentOutputException):  # the check itself works
                value.item()
