"""Head, fine-tuned network and adapter on the same test images, for tails of 500 to 5 images a class.

    python benchmarks/finetune.py --cifar10 cifar10 --cifar100_20 cifar100_20 --runs runs/finetune --out results

The folders have ``train`` and ``test`` with a folder of images for each class. A method is a call of ``recommend`` and
one of ``finetune``, with their defaults. Runs go to ``--runs``. A finished run is not repeated, and an interrupted
fine-tuning resumes. ``finetune.csv`` in ``--out`` is written anew after each run. Its rows have the balanced accuracy
on the test images in percent, and the difference from the head with a paired 95 % interval. Test images choose nothing.
"""

import argparse
import csv
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lt_cb.paired import accuracy_difference
from lt_cb.runs import checkpoint as checkpoints
from lt_cb.runs.folder import RunDir

SEEDS = (0, 1, 2)
TAIL = ("--data.imbalance_factor=100", "--data.n_max=500")


class Method(NamedTuple):
    """A network, its image size, and further options of its fine-tuning."""

    backbone: str
    size: int
    options: tuple[str, ...] = ()


PATHS = {"efficientnet_lite0": "offline_lite0", "vit_small": "offline_backbone.vit_small"}
METHODS = {
    "fine-tuned": Method("efficientnet_lite0", 128),
    "fine-tuned on all": Method("efficientnet_lite0", 128, ("--data.val_fraction=0",)),
    "lora": Method("vit_small", 112, ("--model.adapter=lora",)),
}


def lt_cb(*words: str) -> float:
    """Run ``lt-cb``, and return the seconds it took."""
    examples = Path(__file__).resolve().parents[1] / "examples"
    paths = os.pathsep.join([str(examples), *filter(None, [os.environ.get("PYTHONPATH")])])
    started = time.perf_counter()
    common = ("--trust_checkpoint=true", "--trainer.callbacks+=lt_cb.callbacks.SaveLogits")
    quiet = ("--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu")
    subprocess.run(
        [sys.executable, "-m", "lt_cb", *words, *common, *quiet], check=True, env=os.environ | {"PYTHONPATH": paths}
    )
    return time.perf_counter() - started


def head(data: str, root: str, seed: int, method: Method, folder: RunDir) -> None:
    """Run ``recommend``, unless it is done."""
    if not folder.is_done:
        source = ("--data.source=image_folder", f"--data.root={root}", *TAIL, f"--data.subset_seed={seed}")
        network = (f"--model.backbone={PATHS[method.backbone]}", f"--data.image_size={method.size}")
        network += (f"--model.backbone_args.image_size={method.size}",)
        lt_cb("recommend", *source, *network, f"--folder={folder.path}")


def finetune(start: RunDir, method: Method, folder: RunDir) -> None:
    """Run ``finetune``, or resume it, unless it is done."""
    if folder.is_done:
        return
    if folder.checkpoint.is_file():
        lt_cb("fit", f"--ckpt_path={folder.checkpoint}", f"--folder={folder.path}")
    else:
        lt_cb("finetune", f"--ckpt_path={start.checkpoint}", f"--folder={folder.path}", *method.options)


def answers(folder: RunDir) -> tuple[Tensor, Tensor]:
    """Return predicted and true classes of the test images, both int64 of shape (N,)."""
    with np.load(folder.logits) as saved:
        return torch.from_numpy(saved["logits"]).argmax(1), torch.from_numpy(saved["targets"])


def rows(data: str, seed: int, name: str, method: Method, start: RunDir, tuned: RunDir) -> list[dict[str, Any]]:
    """Return a row for the head, and one for the network that was trained from it."""
    (old, targets), (new, _) = answers(start), answers(tuned)
    change = accuracy_difference(new, old, targets)
    last = checkpoints.read(tuned.checkpoint)
    state = next(value for key, value in last["callbacks"].items() if key.startswith("BestEpoch"))
    facts = {"data": data, "subset_seed": seed, "backbone": method.backbone, "image_size": method.size}
    made = []
    for label, folder in (("head", start), (name, tuned)):
        record = folder.read_result()
        seconds = record.wall_time_s.get("fit") if label == name else None
        made.append({**facts, "method": label, "balanced_accuracy": 100 * record.metrics["test/balanced_acc"]})
        made[-1] |= {"training_images": sum(record.class_counts), "test_images": record.test_images, "seconds": seconds}
        made[-1] |= {"processor": record.processor, "threads": record.threads, "commit": record.commit}
    rate = tuned.read_config()["model"]["optimizer"]["init_args"]["lr"]
    made[1] |= {"gain": 100 * change.mean, "low": 100 * change.low, "high": 100 * change.high, "rate": rate}
    if state["compares"]:
        made[1] |= {"kept_epoch": state["kept_epoch"], "held_out_start": 100 * state["start_score"]}
        made[1] |= {"held_out_kept": 100 * state["kept_score"]}
    return [{k: round(v, 3) if isinstance(v, float) and k != "rate" else v for k, v in row.items()} for row in made]


def write(file: Path, table: list[dict[str, Any]]) -> None:
    """Write rows as CSV."""
    names = list(dict.fromkeys(name for row in table for name in row))
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(table)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cifar10", "cifar100_20"):
        parser.add_argument(f"--{name}", help="folder; without it, the data set is skipped")
    parser.add_argument("--runs", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    options = parser.parse_args()
    table: list[dict[str, Any]] = []
    for name in options.methods:
        for data in ("cifar10", "cifar100_20"):
            for seed in SEEDS if getattr(options, data) else ():
                method = METHODS[name]
                place = options.runs / f"{data}_{seed}_{method.backbone}"
                start, tuned = (
                    RunDir(place.with_name(f"{place.name}_head")),
                    RunDir(place.with_name(f"{place.name}_{name.replace(' ', '_')}")),
                )
                head(data, getattr(options, data), seed, method, start)
                finetune(start, method, tuned)
                table += [row for row in rows(data, seed, name, method, start, tuned) if row not in table]
                write(options.out / "finetune.csv", table)
                print(table[-1], flush=True)


if __name__ == "__main__":
    main()
