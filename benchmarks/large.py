"""Speed with large images and many classes: reading image files, and the loss of 8,142 classes in a training step.

Our loader and torchvision's transforms in a DataLoader read the same JPEGs in turn. The images are noise with the
spectrum of photographs, at about 0.7 bytes a pixel. Each loader has one worker with one thread, so a figure is that of
a core. The training step is ResNet-50's on images that are on the device already, in mixed precision where the hardware
has it.

    uv run python benchmarks/large.py [--rounds 5] [--images 600] [--device cuda --batch 256]
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, features
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from lt_cb.data import LongTailedDataModule
from lt_cb.hardware import mixed_precision
from lt_cb.losses import EffectiveNumber, FocalLoss, Loss, SoftmaxLoss
from lt_cb.module import LongTailedClassifier

SIZES = {"500 x 375 (ImageNet's mean)": (500, 375), "800 x 600 (iNaturalist's largest)": (800, 600)}
BATCH = 50
DISTINCT = 40  # images; the rest are copies, which take as long to decode


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Make an image whose amplitudes fall with the frequency, as in photographs."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)) + 1 / width
    planes = []
    for saturation in (1.0, 0.3, 0.3):
        noise = np.fft.rfft2(rng.standard_normal((height, width))) / frequency
        plane = np.fft.irfft2(noise, (height, width))
        planes.append(128 + 50 * saturation * plane / plane.std())
    pixels = np.clip(np.stack(planes, 2), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels, "YCbCr").convert("RGB")


def make_tree(root: Path, size: tuple[int, int], count: int) -> float:
    """Write ``root/{train,test}/{a,b}`` and return bytes a pixel."""
    first = root / "train/a"
    first.mkdir(parents=True)
    for i in range(DISTINCT):
        photograph(*size, i).save(first / f"{i:05}.jpg", quality=90)
    (root / "train/b").symlink_to("a")
    contents = [file.read_bytes() for file in sorted(first.iterdir())]
    for i in range(DISTINCT, count // 2):
        (first / f"{i:05}.jpg").write_bytes(contents[i % DISTINCT])
    (root / "test").symlink_to("train")
    return sum(map(len, contents)) / len(contents) / size[0] / size[1]


def theirs(root: Path, train: bool) -> Iterable[Any]:
    """Return a DataLoader with torchvision's transforms as scripts for ImageNet have them."""
    ends = [transforms.ToTensor(), transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    crop = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    test = [transforms.Resize(256), transforms.CenterCrop(224)]
    dataset = ImageFolder(str(root / "train"), transforms.Compose([*(crop if train else test), *ends]))
    return DataLoader(dataset, BATCH, shuffle=train, num_workers=1, persistent_workers=True)


def ours(root: Path, train: bool) -> Iterable[Any]:
    """Return the loader of the data module."""
    data = LongTailedDataModule(
        "image_folder", str(root), batch_size=BATCH, image_size=224, crop="resized", num_workers=1
    )
    return data.train_dataloader() if train else data.test_dataloader()


def images_a_second(loader: Iterable[Any], count: int) -> float:
    """Return the speed of an epoch."""
    start = time.perf_counter()
    assert sum(len(images) for images, _ in loader) == count
    return count / (time.perf_counter() - start)


def seconds(work: Callable[[], object], device: torch.device, steps: int) -> float:
    """Return the seconds of a piece of work, after two warm-up runs."""
    for count in (2, steps):
        start = time.perf_counter()
        for _ in range(count):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def training_step(loss: Loss, device: torch.device, batch: int, steps: int) -> tuple[float, float]:
    """Return images a second of ResNet-50, and the share of its loss in the time."""
    model = LongTailedClassifier(loss, "resnet50", decay_1d=False).to(device)
    optimizer = torch.optim.SGD(model.parameter_groups(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    if device.type == "cuda":
        model.backbone.compile()
    images = torch.randint(256, (batch, 3, 224, 224), dtype=torch.uint8, device=device)
    targets = torch.randint(len(loss.class_counts), (batch,), device=device)
    logits = torch.randn(batch, len(loss.class_counts), device=device, requires_grad=True)
    cast = torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision("auto") is not None)

    def step() -> None:
        with cast:
            value = model.loss(model(images), targets)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    whole = seconds(step, device, steps)
    return batch / whole, seconds(lambda: model.loss(logits, targets).backward(), device, steps) / whole


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--batch", type=int, default=32, help="images of a training step")
    parser.add_argument("--steps", type=int, default=5, help="training steps of a round")
    options = parser.parse_args()
    turbo = features.version_feature("libjpeg_turbo")
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, torchvision {torchvision.__version__}, Pillow {PIL.__version__}, libjpeg-turbo {turbo}; "
        f"{options.images} images, medians of {options.rounds} rounds (lowest to highest).\n"
    )
    print("| JPEGs | to 224 x 224 for | torchvision, images a second | lt_cb | times as many |\n|---|---|---|---|---|")
    for name, size in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            density = make_tree(Path(folder), size, options.images)
            for train in (True, False):
                loaders = [make(Path(folder), train) for make in (theirs, ours)]
                for loader in loaders:
                    images_a_second(loader, options.images)  # starts the worker
                rounds = [
                    [images_a_second(loader, options.images) for loader in loaders] for _ in range(options.rounds)
                ]
                cells = [
                    f"{statistics.median(v):.4g} ({min(v):.4g} to {max(v):.4g})"
                    for v in (*zip(*rounds, strict=True), [own / their for their, own in rounds])
                ]
                where = f"| {name}, {density:.2f} bytes a pixel | {'training' if train else 'testing'} | "
                print(where + " | ".join(cells) + " |", flush=True)
    counts = [1000 - 998 * label // 8141 for label in range(8142)]
    print(f"\n| ResNet-50, 224 x 224, batch {options.batch}, {options.device} | images a second | part of the loss |")
    print("|---|---|---|")
    for loss in (SoftmaxLoss(counts), FocalLoss(counts, 0.5, EffectiveNumber(0.999))):
        results = [training_step(loss, options.device, options.batch, options.steps) for _ in range(options.rounds)]
        speed, part = (statistics.median(values) for values in zip(*results, strict=True))
        print(f"| {type(loss).__name__}, 8,142 classes | {speed:.4g} | {part:.2%} |", flush=True)


if __name__ == "__main__":
    main()
