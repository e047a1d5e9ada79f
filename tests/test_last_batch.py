"""A last batch of one image, which batch norm cannot train on where the network's last map is 1 x 1."""

import warnings
from pathlib import Path

import pytest
import torch
from refusals import refused

from lt_cb.__main__ import main
from lt_cb.data.loaders.resident import ResidentLoader

DIGITS = (
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--model.backbone=resnet20",
    "--data.source=Digits",
    "--trainer.gradient_clip_val=1",  # batch norm over two images can have gradients of any size
)


def fit(images: int, batch_size: int, image_size: int, *words: str) -> list[str]:
    """Return the words of a training with so many images; ResNet-20 makes a last map of 1 x 1 of 4 x 4 pixels."""
    counts = [images - 9] + [1] * 9
    sizes = (f"--data.batch_size={batch_size}", f"--data.image_size={image_size}", f"--data.subset_counts={counts}")
    return ["fit", *DIGITS, *sizes, *words]


@pytest.mark.slow
def test_it_is_dropped_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="last batch of an epoch has 1 image, but the batch norm") as caught:
        main(fit(17, 8, 4))
    assert sum("last batch" in str(warning.message) for warning in caught) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*last batch")
        main(fit(18, 8, 4))  # a last batch of two
        main(fit(17, 8, 8))  # a last map of 2 x 2 trains on one image
    files = sorted(Path("runs/run").glob("version_*/checkpoints/last.ckpt"))
    assert [torch.load(file, weights_only=True)["global_step"] for file in files] == [2, 3, 3]
    for sizes in ((17, 1, 4), (17, 1, 4, "--model.mix=torchvision.transforms.v2.MixUp")):
        sentence = refused(capsys, *fit(*sizes))
        assert sentence.startswith("--data.batch_size is 1 for 17 images on 1 devices, but the batch norm of this")


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_all_processes_drop_the_same_batch(world_size: int) -> None:
    """If only the process of one image dropped it, the others would wait for it."""
    for total in range(4 * world_size, 9 * world_size):
        images, last = torch.zeros(total, 2, 2, 1, dtype=torch.uint8), total % (4 * world_size)
        for train, drop_single in ((True, True), (True, False), (False, True)):
            options = {"world_size": world_size, "train": train, "drop_single": drop_single}
            loaders = [ResidentLoader(images, torch.arange(total), 4, rank=i, **options) for i in range(world_size)]
            sizes = [[len(targets) for _, targets in loader] for loader in loaders]
            assert list(map(len, sizes)) == list(map(len, loaders))
            if train and drop_single:
                assert len(set(map(len, sizes))) == 1
                assert min(map(min, sizes)) > 1
                dropped = total - sum(map(sum, sizes))
                assert dropped == (last if last < 2 * world_size else 0)
            else:
                assert sum(map(sum, sizes)) >= total
