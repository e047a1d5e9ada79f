"""Gradient accumulation: a step is a mean over its images, also the last, smaller one of an epoch."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from lt_cb.data import LongTailedDataModule
from lt_cb.losses import SoftmaxLoss
from lt_cb.module import LongTailedClassifier

COUNTS = [10] * 9 + [5]  # 95 images


def train(folder: Path, batch_size: int, accumulate: int, backbone: str = "plain.flat", **options) -> torch.Tensor:
    """Return the weights of a network after two epochs, as one vector."""
    data = LongTailedDataModule(
        "digits", subset_counts=COUNTS, image_size=16, crop_padding=0, horizontal_flip=False, batch_size=batch_size
    )
    seed_everything(0)
    model = LongTailedClassifier(
        SoftmaxLoss(data.class_counts),
        backbone,
        in_channels=1,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.5),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": False, "limit_val_batches": 0, "max_epochs": 2, "default_root_dir": folder}
    Trainer(accumulate_grad_batches=accumulate, **quiet, **options).fit(model, data)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_single_batch_is_a_whole_step(tmp_path: Path) -> None:
    one, two = train(tmp_path, 95, 1, "resnet20", max_steps=1), train(tmp_path, 95, 2, "resnet20", max_steps=1)
    torch.testing.assert_close(two, one)


@pytest.mark.parametrize("options", [{}, {"gradient_clip_val": 0.05}], ids=["plain", "clipped"])
def test_accumulated_batches_equal_one_large_batch(options: dict, tmp_path: Path) -> None:
    """38 + 38 + 19 images, as three batches or as 2 + 2 + 1 batches of 19; then 60 + 35, and 30 + 30 + 30 + 5."""
    for size, accumulate in ((38, 2), (60, 2), (60, 4)):
        whole = train(tmp_path, size, 1, **options)
        parts = train(tmp_path, size // accumulate, accumulate, **options)
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_two_processes_accumulate_like_one(tmp_path: Path) -> None:
    """48 images in batches of 16, 16 and 16 in one process, and 47 of 16, 16 and 15 in the other."""
    one = train(tmp_path, 64, 1)
    two = train(tmp_path, 16, 2, devices=2, strategy="ddp_fork")
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
