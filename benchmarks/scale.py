"""Time and memory as data, classes and runs grow: tables of files, heads, and the report.

    python benchmarks/scale.py  # an hour on 2 cores; writes benchmarks/scale.csv after each point

Each point is a process of its own. A point that takes more than 20 minutes is written as such, and larger ones are
skipped.
"""

import csv
import io
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

LIMIT_S = 1200
OUT = Path(__file__).with_suffix(".csv")
COLUMNS = ("part", "size", "classes", "wall_s", "cpu_s", "peak_mib")
WIDTH = 384  # features of an image, as many as ViT-S has


def table(images: int, classes: int) -> float:
    """Read a table of images with one label, and divide it into training and test images."""
    from lt_cb.data.sources import Manifest

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "labels.csv")
        with file.open("w") as stream:
            stream.write("path,label,split\n")
            rows = range(images)
            stream.writelines(
                f"im/{i % 1000}/{i}.jpg,c{i % classes},{'train' if i // classes % 5 else 'test'}\n" for i in rows
            )
        begin = time.perf_counter()
        Manifest(str(file)).labels("train")
        return time.perf_counter() - begin


def head(images: int, classes: int) -> float:
    """Solve one head of balanced softmax at one L2 strength, on random features with a class-dependent mean."""
    import torch

    from lt_cb.heads.solve import Basis, solve_path
    from lt_cb.losses import PostHocLogitAdjustment

    generator = torch.Generator().manual_seed(0)
    counts = torch.logspace(0, -2, classes)  # imbalance factor 100
    targets = torch.multinomial(counts, images, replacement=True, generator=generator)
    targets[:classes] = torch.arange(classes)
    means = torch.randn(classes, WIDTH, generator=generator)
    features = torch.randn(images, WIDTH, generator=generator).add_(means[targets], alpha=0.3)
    begin = time.perf_counter()
    data = Basis.fit(features).project(features, targets, classes)
    solve_path(data, [PostHocLogitAdjustment(data.class_counts)], [0.3])
    return time.perf_counter() - begin


def report(runs: int, classes: int) -> float:
    """Write the report of kept rows: methods with ten seeds each, made by repeating a row with other numbers."""
    from lt_cb.lab.report import main

    kept = Path(__file__).parents[1] / "results" / "cifar10_losses"
    with (kept / "runs.csv").open() as stream:
        first = next(csv.DictReader(stream))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "configs").symlink_to(kept / "configs")
        with (Path(folder) / "runs.csv").open("w") as stream:
            writer = csv.DictWriter(stream, first)
            writer.writeheader()
            for i in range(runs):
                values = {"experiment": f"method_{i // 10}", "seed": i % 10, "subset_seed": i % 10}
                writer.writerow(first | values | {"error": f"{20 + i % 7}.{i % 100:02}"})
        begin = time.perf_counter()
        main([folder, "--out", str(Path(folder) / "out")])
        return time.perf_counter() - begin


POINTS: list[tuple[Callable[[int, int], float], list[int], list[int]]] = [
    (table, [10**4, 10**5, 10**6], [1000]),
    (head, [10**4, 10**5, 10**6], [10, 100, 1000]),
    (report, [10, 100, 1000, 10_000], [10]),
]


def measure(part: Callable[[int, int], float], size: int, classes: int, queue: "multiprocessing.Queue[object]") -> None:
    """Put wall time, CPU time and peak memory of a point into a queue."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    with redirect_stdout(io.StringIO()):
        wall = part(size, classes)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    queue.put((round(wall, 2), round(cpu, 2), after.ru_maxrss // 1024))


def run() -> None:
    """Measure all points that the file does not have yet."""
    done: dict[tuple[str, str, str], list[str]] = {}
    if OUT.is_file():
        with OUT.open() as stream:
            done = {(row[0], row[1], row[2]): row for row in list(csv.reader(stream))[1:]}
    context = multiprocessing.get_context("spawn")
    for part, sizes, all_classes in POINTS:
        for classes in all_classes:
            for size in sizes:
                key = (part.__name__, str(size), str(classes))
                if key not in done:
                    queue: multiprocessing.Queue[object] = context.Queue()
                    process = context.Process(target=measure, args=(part, size, classes, queue))
                    process.start()
                    process.join(LIMIT_S)
                    late = process.is_alive()
                    process.kill()
                    figures = [f"> {LIMIT_S}", "", ""] if late or queue.empty() else list(map(str, queue.get()))  # type: ignore[call-overload]
                    done[key] = [*key, *figures]
                    print(*done[key], flush=True)
                    with OUT.open("w") as stream:
                        csv.writer(stream).writerows([COLUMNS, *done.values()])
                if done[key][3].startswith(">"):
                    break


if __name__ == "__main__":
    run()
