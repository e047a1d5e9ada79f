"""Time and memory as images, classes and runs grow: tables of files, features, heads, folds, and the report.

    OMP_NUM_THREADS=1 python benchmarks/scale.py  # ten minutes of CPU time; adds to results/scale.csv

Each point is a forked process, on one thread. A point is not run if it needs more than 2 minutes of CPU time or 8 GiB,
by itself or by the point of a tenth of its size: its row has no figures, and says why. Points that the file has are not
measured again. `cpu_s` counts this process only and changes little when other work shares the machine; `wall_s` grows
with it. `added_mib` is the peak of resident memory, less the memory after importing the libraries.
"""

import csv
import io
import json
import multiprocessing
import os
import re
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lt_cb.__main__ import main as lt_cb
from lt_cb.data import LongTailedDataModule, Source
from lt_cb.data.sources import Manifest
from lt_cb.features import frozen_features
from lt_cb.hardware import processor
from lt_cb.heads.folds import cross_validate, repeated_folds, splits_of
from lt_cb.heads.recipes import BALANCED, make_recipes
from lt_cb.heads.setup import BETAS, GAMMAS, TAUS
from lt_cb.heads.solve import Basis, solve_path
from lt_cb.lab.report import main as write_report
from lt_cb.losses import SoftmaxLoss
from lt_cb.module import LongTailedClassifier

LIMIT_S, LIMIT_GIB = 120, 8
LATE = f"over {LIMIT_S // 60} min"
OUT = Path(__file__).parents[1] / "results" / "scale.csv"
COLUMNS = ("part", "size", "classes", "wall_s", "cpu_s", "added_mib", "reason", "processor", "threads")
WIDTH = 384  # features of an image, as many as ViT-S has
SEEDS = 5  # runs of a method
Task = Callable[[], object]  # the part that is measured, once all is prepared
Part = Callable[[int, int, Path], Task]
Queue = Any  # a queue of multiprocessing


def table(images: int, classes: int, folder: Path) -> Task:
    """Read a table of images with one label, and divide it into training and test images."""
    file = folder / "labels.csv"
    with file.open("w") as stream:
        stream.write("path,label,split\n")
        for i in range(images):
            stream.write(f"im/{i % 1000}/{i}.jpg,c{i % classes},{'train' if i // classes % 5 else 'test'}\n")
    return lambda: Manifest(str(file)).labels("train")


def features(images: int, classes: int, folder: Path) -> Task:
    """Compute features of images of 8 pixels by a matrix: everything but the network."""
    return _features(images, classes, folder)


def kept_features(images: int, classes: int, folder: Path) -> Task:
    """Check and read features that an earlier start has kept."""
    _features(images, classes, folder)()
    return _features(images, classes, folder)


def _features(images: int, classes: int, folder: Path) -> Task:
    os.environ["LT_CB_CACHE"] = str(folder)
    data = LongTailedDataModule(lambda root: Noise(images, classes))
    torch.manual_seed(0)
    options = {"image_size": 8, "in_channels": 1}
    model = LongTailedClassifier(SoftmaxLoss(data.class_counts), "scale.Projection", **options).eval()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", **quiet)
    return lambda: frozen_features(model, data, "train", trainer)


class Noise(Source):
    """Grey images of 8 pixels without a meaning."""

    image_size, channels = 8, 1

    def __init__(self, images: int, classes: int) -> None:
        super().__init__("")
        self.class_names = [str(c) for c in range(classes)]
        self.counts = [len(range(c, images, classes)) for c in range(classes)]

    def load(self, split: str) -> tuple[Any, Any]:
        """Return images, uint8 of shape (N, 8, 8, 1), and class indices, int64 of shape (N,)."""
        labels = torch.arange(sum(self.counts) if split == "train" else len(self.counts)) % len(self.counts)
        generator = torch.Generator().manual_seed(len(labels))
        pixels = torch.randint(256, (len(labels), 8, 8, 1), dtype=torch.uint8, generator=generator)
        return pixels.numpy(), labels.numpy()


class Projection(nn.Sequential):
    """Network of 384 features, a random projection of the pixels."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64 * in_channels, WIDTH), nn.Linear(WIDTH, num_classes))


def head(images: int, classes: int, _: Path) -> Task:
    """Solve one head of balanced softmax at one L2 strength, as `recommend` does for its checkpoint."""
    values, targets = random_features(images, classes)

    def solve() -> None:
        data = Basis.fit(values).project(values, targets, classes)
        solve_path(data, [BALANCED.make(data.class_counts)], [0.3])

    return solve


def fold(images: int, classes: int, _: Path) -> Task:
    """Solve the default recipes of `recommend` at one L2 strength without a fold, and measure them on the fold."""
    values, targets = random_features(images, classes)
    data = Basis.fit(values).project(values, targets, classes)
    del values
    held_out = splits_of(repeated_folds(targets, classes, 5, seed=0, repeats=1))[0]
    assigned = torch.where(held_out, 0, -1)[None]
    return lambda: cross_validate(data, assigned, make_recipes(BETAS, GAMMAS, TAUS), [1.0])


def random_features(images: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return random features around a mean of each class, shape (N, 384), and long-tailed targets, shape (N,)."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.logspace(0, -2, classes)  # imbalance factor 100
    targets = torch.multinomial(shares, images, replacement=True, generator=generator)
    targets[: 2 * classes] = torch.arange(2 * classes) % classes
    means = torch.randn(classes, WIDTH, generator=generator)
    values = torch.empty(images, WIDTH)
    for rows, labels in zip(values.split(4096), targets.split(4096), strict=True):
        rows.normal_(generator=generator).add_(means[labels], alpha=0.3)
    return values, targets


def report(runs: int, classes: int, folder: Path) -> Task:
    """Write the report of folders of runs: methods with five seeds each, copies of one run with other numbers."""
    first = folder / "first"
    lt_cb(["fit", "--config=lt_cb:quickstart", "--trainer.max_epochs=2", f"--folder={first}"])
    config, record = (
        yaml.safe_load((first / "config.yaml").read_text()),
        json.loads((first / "result.json").read_text()),
    )
    metrics = (first / "metrics.csv").read_text()
    for method, (lr, decay, gamma, beta) in enumerate(islice(_settings(), -(-runs // SEEDS))):
        optimizer, loss = (config["model"][name]["init_args"] for name in ("optimizer", "loss"))
        optimizer["lr"], optimizer["weight_decay"] = lr, decay
        loss["gamma"], loss["weighting"]["init_args"]["beta"] = gamma, beta
        text = yaml.dump(config, Dumper=yaml.CSafeDumper)
        for seed in range(min(SEEDS, runs - SEEDS * method)):
            run = folder / "runs" / f"method_{method}" / f"seed_{seed}"
            run.mkdir(parents=True)
            (run / "config.yaml").write_text(re.sub("(seed_everything|subset_seed): 0", rf"\1: {seed}", text))
            (run / "metrics.csv").write_text(metrics)
            (run / "result.json").write_text(json.dumps(_result(record, classes, seed, method)))
    return lambda: write_report([str(folder / "runs")])


def _settings() -> Iterator[tuple[float, ...]]:
    """Yield the learning rate, weight decay, gamma and beta of each of 2,000 methods."""
    rates, decays = ([round(start * 1.1**i, 7) for i in range(10)] for start in (0.05, 1e-4))
    return product(rates, decays, (0.5, 1.0, 1.5, 2.0), (0.5, 0.9, 0.99, 0.999, 0.9999))


def _result(record: dict[str, Any], classes: int, seed: int, method: int) -> dict[str, Any]:
    """Return a result with other classes and random scores."""
    generator = torch.Generator().manual_seed(1000 * method + seed)
    counts = (500 * torch.logspace(0, -2, classes)).int().tolist()
    correct = torch.randint(20, 41, (classes,), generator=generator).tolist()
    groups: dict[str, list[int]] = {"many": [], "medium": [], "few": []}
    for c, count in enumerate(counts):
        groups["many" if count > 100 else "medium" if count >= 20 else "few"].append(c)
    rate = sum(correct) / 40 / classes
    return record | {
        "metrics": {name: value if name == "test/loss" else rate for name, value in record["metrics"].items()},
        "seeds": {"seed_everything": seed, "subset_seed": seed},
        "per_class_accuracy": [right / 40 for right in correct],
        "class_counts": counts,
        "class_names": [f"class {c}" for c in range(classes)],
        "shot_groups": groups,
        "correct": correct,
        "test_counts": [40] * classes,
        "confusion": [
            [r if i == j else (40 - r) * (j == (i + 1) % classes) for j in range(classes)]
            for i, r in enumerate(correct)
        ]
        if classes <= 100
        else None,
        "subset_sha256": f"{seed:064}",
        "checkpoint": f"runs/method_{method}/seed_{seed}/checkpoints/last.ckpt",
    }


MILLION = 10**6
POINTS: list[tuple[Part, list[int], list[int]]] = [
    (table, [10**4, 10**5, MILLION], [1000]),
    (features, [10**4, 10**5], [1000]),
    (kept_features, [10**4, 10**5], [1000]),
    (report, [10, 100, 1000, 10_000], [10]),
    (head, [10**4, 10**5, MILLION], [10, 100, 1000]),
    (fold, [10**4, 10**5, MILLION], [10, 100, 1000]),
    (report, [10, 100, 1000], [1000]),
    (report, [10, 100], [10_000]),
    (features, [MILLION], [1000]),
    (kept_features, [MILLION], [1000]),
]


def measure(part: Part, size: int, classes: int, queue: Queue) -> None:
    """Put wall time, CPU time, and memory beyond the imported libraries into a queue; or why there are none."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_GIB * 2**30,) * 2)
    before = memory("VmRSS")
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        try:
            task = part(size, classes, Path(folder))
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the preparation
            used = time.process_time()
            resource.setrlimit(resource.RLIMIT_CPU, (int(used) + LIMIT_S, -1))
            wall = time.perf_counter()
            task()
            figures = time.perf_counter() - wall, time.process_time() - used
        except (MemoryError, RuntimeError) as error:
            queue.put(f"over {LIMIT_GIB} GiB" if "alloc" in str(error).lower() else str(error))
        else:
            queue.put((*(round(seconds, 2) for seconds in figures), memory("VmHWM") - before))


def memory(name: str) -> int:
    """Return the resident memory of this process in MiB: VmRSS now, VmHWM the peak."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024  # type: ignore[index]


def figures(part: Part, size: int, classes: int) -> list[object]:
    """Return wall time, CPU time, memory and an empty reason; or the reason why there are none."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=measure, args=(part, size, classes, queue))
    process.start()
    process.join()
    if process.exitcode:
        late = process.exitcode == -signal.SIGXCPU
        return ["", "", "", LATE if late else f"ended with {process.exitcode}"]
    found = queue.get()
    return ["", "", "", found] if isinstance(found, str) else [*found, ""]


def run() -> None:
    """Measure all points that the file does not have yet."""
    rows: list[list[str]] = []
    if OUT.is_file():
        with OUT.open(newline="") as stream:
            rows = list(csv.reader(stream))[1:]
    done = {tuple(row[:3]): row for row in rows}
    for part, sizes, all_classes in POINTS:
        for classes, size in product(all_classes, sizes):
            key = (part.__name__, str(size), str(classes))
            if key not in done:
                smaller = done.get((part.__name__, str(size // 10), str(classes)))
                found = expected(smaller) or figures(part, size, classes)
                done[key] = [*key, *map(str, found), processor(torch.device("cpu")), "1"]
                print(*done[key], flush=True)
                with OUT.open("w", newline="") as stream:
                    csv.writer(stream, lineterminator="\n").writerows([COLUMNS, *done.values()])


def expected(smaller: list[str] | None) -> list[object]:
    """Return the row of a point that is too large, by the point of a tenth of its size; empty if it may be run."""
    if smaller is None or not (smaller[6] or 10 * float(smaller[4]) > LIMIT_S):
        return []
    return ["", "", "", smaller[6] or LATE]


if __name__ == "__main__":
    run()
