"""Speed of training, loading and starting, compared with programs that a user would write instead.

Each program runs in its own process. They alternate, round by round, so that a noisy machine disturbs all alike. The
second epoch of a training is timed, with its evaluation. All programs train the same ResNet-32 on random pixels, in
the number and size of the images of CIFAR-10 at imbalance factor 100.

    uv run python benchmarks/speed.py [--rounds 5] [--images 12406] [--test-images 10000]

It prints Markdown tables. It also writes them to the section of this machine in ``benchmarks/RESULTS.md``, and the
measurements to ``benchmarks/results.json``.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH = 128
HERE = Path(__file__).parent


def resident() -> float:
    """Return the MiB of main memory of this process."""
    status = Path("/proc/self/status")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines()) if status.exists() else {}
    return int(lines.get("VmRSS", "0 kB").split()[0]) / 1024


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def pixels(count: int, seed: int) -> tuple[Any, Any]:
    """Return images, uint8 (N, 32, 32, 3), and labels, int64 (N,)."""
    import numpy as np

    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), np.arange(count, dtype=np.int64) % 10


def datasets(options: argparse.Namespace) -> tuple[Any, Any]:
    """Return the training and the test set with torchvision's PIL transforms, like torchvision's CIFAR10."""
    from PIL import Image
    from torch.utils.data import Dataset
    from torchvision import transforms

    tensor = [transforms.ToTensor(), transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))]
    crop = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]

    class Images(Dataset):  # type: ignore[type-arg]
        def __init__(self, count: int, steps: list[Any]) -> None:
            self.images, self.labels = pixels(count, 0)
            self.transform = transforms.Compose(steps)

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])

    return Images(options.images, [*crop, *tensor]), Images(options.test_images, tensor)


class Clock:
    """Times the second epoch of a Lightning training, and the validation that ends it."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}

    def callback(self) -> Any:
        """Return the callback."""
        from lightning.pytorch import Callback

        times = self.times

        class Stopwatch(Callback):
            def mark(self, trainer: Any, name: str) -> None:
                if trainer.current_epoch == 1 and not trainer.sanity_checking:
                    synchronize()
                    times[name] = time.perf_counter()

            def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
                self.mark(trainer, "start")

            def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
                self.mark(trainer, "trained")

            def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
                self.mark(trainer, "evaluated")

        return Stopwatch()

    def seconds(self) -> dict[str, float]:
        """Return seconds of training and of the whole."""
        start = self.times["start"]
        return {"train_s": self.times["trained"] - start, "epoch_s": self.times["evaluated"] - start}


def ours(options: argparse.Namespace, fast: bool = True) -> dict[str, float]:
    """Train through lt_cb's module and data module, as ``lt-cb fit`` does."""
    from lightning.pytorch import Trainer

    imported = resident()
    from lt_cb.data import LongTailedDataModule, Source
    from lt_cb.hardware import mixed_precision
    from lt_cb.losses import SoftmaxLoss
    from lt_cb.module import LongTailedClassifier

    class Random(Source):
        class_names = [str(label) for label in range(10)]
        counts = [len(range(label, options.images, 10)) for label in range(10)]  # of `pixels`
        image_size = 32

        def load(self, split: str) -> tuple[Any, Any]:
            return pixels(options.images if split == "train" else options.test_images, 0)

    sys.modules["random_source"] = type(sys)("random_source")
    sys.modules["random_source"].Random = Random  # type: ignore[attr-defined]
    data = LongTailedDataModule("random_source.Random", batch_size=BATCH)
    module = LongTailedClassifier(SoftmaxLoss(data.class_counts), fast="auto" if fast else "off")
    clock = Clock()
    precision = mixed_precision("auto") if fast else None
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=2, precision=precision or "32-true", callbacks=[clock.callback()], default_root_dir=folder,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, data)
    return {**clock.seconds(), "memory_mib": resident() - imported}


def plain(options: argparse.Namespace) -> dict[str, float]:
    """Train like `ours`, in float32."""
    return ours(options, fast=False)


def lightning(options: argparse.Namespace) -> dict[str, float]:
    """Train with Lightning and a DataLoader of two workers, as in their tutorials."""
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch.nn import functional as F
    from torch.utils.data import DataLoader
    from torchmetrics.classification import MulticlassAccuracy

    from lt_cb.models import resnet32

    class Classifier(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.accuracy = resnet32(10), MulticlassAccuracy(10)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = F.cross_entropy(self.network(batch[0]), batch[1])
            self.log("train/loss", loss, prog_bar=True)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            logits = self.network(batch[0])
            self.log("val/loss", F.cross_entropy(logits, batch[1]))
            self.accuracy(logits, batch[1])
            self.log("val/acc", self.accuracy)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)

    train, test = datasets(options)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=2, callbacks=[clock.callback()], default_root_dir=folder, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        loaders = [
            DataLoader(part, BATCH, shuffle=part is train, num_workers=2, persistent_workers=True)
            for part in (train, test)
        ]
        trainer.fit(Classifier(), *loaders)
    return clock.seconds()


def script(options: argparse.Namespace) -> dict[str, float]:
    """Train like scripts of papers: PIL workers, and loss and accuracies read at each step."""
    import torch
    from torch.nn import functional as F
    from torch.utils.data import DataLoader

    from lt_cb.models import resnet32

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = resnet32(10).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    train, test = datasets(options)
    loaders = [DataLoader(part, BATCH, shuffle=part is train, num_workers=4, pin_memory=True) for part in (train, test)]

    def run(loader: Any, training: bool) -> None:
        network.train(training)
        losses, hits = [], []
        for images, targets in loader:
            images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
            logits = network(images)
            loss = F.cross_entropy(logits, targets)
            top = logits.topk(5, 1).indices == targets[:, None]
            losses.append(loss.item())
            hits += [(top[:, :k].any(1).float().mean() * 100).item() for k in (1, 5)]
            if training:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    for _ in range(2):
        start = time.perf_counter()
        run(loaders[0], True)
        synchronize()
        trained = time.perf_counter()
        with torch.no_grad():
            run(loaders[1], False)
        synchronize()
        evaluated = time.perf_counter()
    return {"train_s": trained - start, "epoch_s": evaluated - start}


def bare(options: argparse.Namespace) -> dict[str, float]:
    """Only compute: bfloat16, channels-last, and the same batch again and again."""
    import torch
    from torch.nn import functional as F

    from lt_cb.hardware import mixed_precision
    from lt_cb.models import resnet32

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = resnet32(10).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    images = torch.randn(BATCH, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    targets = torch.arange(BATCH, device=device) % 10
    cast = torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision("auto") is not None)

    def step(size: int) -> None:
        with cast:
            loss = F.cross_entropy(network(images[:size]), targets[:size])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def sizes(count: int) -> list[int]:
        return [min(BATCH, count - start) for start in range(0, count, BATCH)]

    for epoch in range(2):
        synchronize()
        start = time.perf_counter()
        network.train()
        for size in sizes(options.images)[: None if epoch else 3]:
            step(size)
        synchronize()
        trained = time.perf_counter()
        network.eval()
        with torch.no_grad(), cast:
            for size in sizes(options.test_images):
                network(images[:size])
        synchronize()
        evaluated = time.perf_counter()
    return {"train_s": trained - start, "epoch_s": evaluated - start}


def our_loader(options: argparse.Namespace) -> dict[str, float]:
    """Crop and flip an epoch with the resident loader, on one core."""
    import torch

    from lt_cb.data.loaders.resident import ResidentLoader

    torch.set_num_threads(1)
    images, labels = (torch.from_numpy(part) for part in pixels(options.images, 0))
    loader = ResidentLoader(images, labels, BATCH, train=True, crop_padding=4, horizontal_flip=True)
    return {"seconds": min(_seconds(lambda: list(map(len, loader))) for _ in range(3))}


def their_loader(options: argparse.Namespace) -> dict[str, float]:
    """Crop and flip an epoch with torchvision's transforms in a DataLoader, on one core."""
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    loader = DataLoader(datasets(options)[0], BATCH, shuffle=True, num_workers=0)
    return {"seconds": _seconds(lambda: list(map(len, loader)))}


SMALLEST = """
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, DemoModel
LightningCLI(DemoModel, BoringDataModule)
"""
FIRST_STEP = """
import os
from lightning.pytorch import Callback
class Stop(Callback):
    def on_train_batch_end(self, *args):
        os._exit(0)
"""


def start(program: str, first_step: bool) -> dict[str, float]:
    """Start a command line, to its help or its first step of training."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "smallest.py").write_text(SMALLEST)
        Path(folder, "first_step.py").write_text(FIRST_STEP)
        command = [sys.executable, *(["-m", "lt_cb"] if program == "ours" else ["smallest.py"])]
        environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}:."}
        arguments = ["fit", "--help"]
        if first_step:
            quick = ["--config", str(HERE.parent / "configs/quickstart.yaml")] if program == "ours" else []
            arguments = ["fit", *quick, "--trainer.callbacks+=first_step.Stop", "--trainer.enable_progress_bar=false"]

        def run() -> None:
            subprocess.run([*command, *arguments], cwd=folder, env=environment, check=True, capture_output=True)

        return {"seconds": _seconds(run)}


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


EPOCHS = {"lt_cb": ours, "lt_cb, fast off": plain, "Lightning + DataLoader": lightning, "script": script, "bare": bare}
LOADERS = {"lt_cb": our_loader, "torchvision": their_loader}
STARTS: dict[str, Callable[[], dict[str, float]]] = {
    "help, lt_cb": lambda: start("ours", False),
    "help, smallest LightningCLI": lambda: start("smallest", False),
    "first step, lt_cb": lambda: start("ours", True),
    "first step, smallest LightningCLI": lambda: start("smallest", True),
}


def machine() -> dict[str, Any]:
    """Describe this machine."""
    import lightning as pl
    import torch

    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in cpu.splitlines() if "model name" in line]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": f"{os.cpu_count()} x {names[0] if names else platform.processor()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": pl.__version__,
    }


Results = dict[str, dict[str, list[dict[str, float]]]]


def measure(options: argparse.Namespace) -> Results:
    """Run all programs alternately, each in its own process."""
    results: Results = {"epoch": {}, "loader": {}, "start": {}}
    for _ in range(options.rounds):
        for group, programs in (("epoch", EPOCHS), ("loader", LOADERS)):
            for name in programs:
                arguments = ["--images", str(options.images), "--test-images", str(options.test_images)]
                command = [sys.executable, __file__, "--only", f"{group}:{name}", *arguments]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                results[group].setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
                print(group, name, results[group][name][-1], file=sys.stderr, flush=True)
        for name, run in STARTS.items():
            results["start"].setdefault(name, []).append(run())
            print(name, results["start"][name][-1], file=sys.stderr, flush=True)
    return results


def median(values: list[float], form: str) -> str:
    """Show median, lowest and highest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def ratios(rounds: list[dict[str, float]], to: list[dict[str, float]], key: str) -> list[float]:
    """Return the quotients of each round."""
    return [a[key] / b[key] for a, b in zip(rounds, to, strict=True)]


def table(results: Results, images: int) -> str:
    """Return the results as Markdown."""
    lines = ["| an epoch | training images a second | seconds with evaluation | times lt_cb's | ", "|---|---|---|---|"]
    reference = results["epoch"]["lt_cb"]
    for name, rounds in results["epoch"].items():
        speed = median([images / r["train_s"] for r in rounds], ".0f")
        seconds = median([r["epoch_s"] for r in rounds], ".1f")
        lines.append(f"| {name} | {speed} | {seconds} | {median(ratios(rounds, reference, 'epoch_s'), '.2f')} |")
    memory = median([r["memory_mib"] for r in reference], ".0f")
    lines += ["", f"Memory of lt_cb's training above what importing Lightning takes: {memory} MiB.", ""]
    lines += ["| loader, one core | images a second | times lt_cb's time |", "|---|---|---|"]
    reference = results["loader"]["lt_cb"]
    for name, rounds in results["loader"].items():
        speed = median([images / r["seconds"] for r in rounds], ".0f")
        lines.append(f"| {name} | {speed} | {median(ratios(rounds, reference, 'seconds'), '.1f')} |")
    lines += ["", "| from the command | seconds | times the smallest LightningCLI's |", "|---|---|---|"]
    for what in ("help", "first step"):
        rounds, smallest = (results["start"][f"{what}, {name}"] for name in ("lt_cb", "smallest LightningCLI"))
        seconds = median([r["seconds"] for r in rounds], ".1f")
        lines.append(f"| to the {what} | {seconds} | {median(ratios(rounds, smallest, 'seconds'), '.2f')} |")
    return "\n".join(lines)


def write(file: Path, heading: str, value: Any) -> None:
    """Add the value of this machine to the values of other machines."""
    machines = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**machines, heading: value}, indent=1) + "\n")


def main() -> None:
    """Measure everything, or one program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=12406)
    parser.add_argument("--test-images", type=int, default=10000)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of RESULTS.md and results.json")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        group, name = options.only.split(":", 1)
        print(json.dumps({"epoch": EPOCHS, "loader": LOADERS}[group][name](options)))
        return
    results, described = measure(options), machine()
    heading = f"{described['gpu'] or described['cpu']}"
    about = ", ".join(f"{name} {value}" for name, value in described.items() if value)
    numbers = f"{options.images} training and {options.test_images} test images"
    text = f"{about}; {numbers}; medians of {options.rounds} rounds (lowest to highest).\n\n"
    text += table(results, options.images)
    print(text)
    write(options.out / "results.json", heading, {"machine": described, "images": options.images, "results": results})
    page = options.out / "RESULTS.md"
    before = (
        page.read_text() if page.exists() else "# How fast it is\n\n`uv run python benchmarks/speed.py` measures it.\n"
    )
    title, *sections = before.split("\n## ")
    kept = [section for section in sections if section.split("\n", 1)[0] != heading]
    page.write_text("\n## ".join([title, *kept, f"{heading}\n\n{text}\n"]))


if __name__ == "__main__":
    main()
