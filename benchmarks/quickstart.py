"""Compare losses on the quickstart over seeds, for the table and the picture of the README.

    uv run python benchmarks/quickstart.py [--seeds 5] [--out docs]

Each run is ``lt-cb fit --config configs/quickstart.yaml --config configs/loss/LOSS.yaml`` with a training seed of its
own, on the one subset of the quickstart. Means are over all seeds, with their standard deviation; nothing is selected.
A second table has the same runs with the norm of the gradient clipped to 1.
"""

import argparse
import json
import platform
import sys
from pathlib import Path

import numpy as np
import torch

from lt_cb.commands.train import main

LOSSES = {
    "softmax": "softmax",
    "focal": "focal (γ = 1)",
    "cb_softmax": "class-balanced softmax (β = 0.9999)",
    "cb_focal": "class-balanced focal (γ = 1, β = 0.9999)",
}
METRICS = {"balanced_acc": "balanced", "acc/many": "many-shot", "acc/medium": "medium-shot", "acc/few": "few-shot"}


def run(loss: str, seed: int, folder: Path, *flags: str) -> dict:
    """Train once, or read what an earlier call left, and return the result."""
    log = folder / loss / f"seed_{seed}"
    last = log / "checkpoints/last.ckpt"  # of a call that was interrupted
    if not (log / "result.json").exists():
        main(
            [
                "fit",
                *("--config", "configs/quickstart.yaml"),
                *("--config", f"configs/loss/{loss}.yaml"),
                *("--seed_everything", str(seed), *flags),
                *("--folder", str(log), "--trainer.enable_progress_bar", "false"),
                *(("--ckpt_path", str(last)) if last.exists() else ()),
            ]
        )
    return json.loads((log / "result.json").read_text())


def table(results: dict[str, list[dict]]) -> str:
    """Markdown: mean ± standard deviation over seeds, in percent."""
    lines = [f"| loss | {' | '.join(METRICS.values())} | seconds a run |", "|---" * (len(METRICS) + 2) + "|"]
    for loss, runs in results.items():
        cells = []
        for metric in METRICS:
            values = 100 * np.array([r["metrics"][f"test/{metric}"] for r in runs])
            cells.append(f"{values.mean():.1f} ± {values.std(ddof=1):.1f}")
        seconds = np.median([sum(r["wall_time_s"].values()) for r in runs])
        lines.append(f"| {LOSSES[loss]} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def picture(results: dict[str, list[dict]], file: Path) -> None:
    """Accuracy of each class under its number of training images, mean and standard deviation over seeds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    for i, (loss, runs) in enumerate(results.items()):
        accuracy = 100 * np.array([r["per_class_accuracy"] for r in runs])
        x = np.arange(accuracy.shape[1]) + (i - 1.5) * 0.2
        axes.bar(x, accuracy.mean(0), 0.2, yerr=accuracy.std(0, ddof=1), label=LOSSES[loss], error_kw={"lw": 0.8})
    counts, names = runs[0]["class_counts"], runs[0]["class_names"]
    axes.set_xticks(range(len(names)), [f"{name}\n{count}" for name, count in zip(names, counts, strict=True)])
    axes.set_xlabel("digit, and its number of training images")
    axes.set_ylabel("test accuracy (%)")
    axes.set_ylim(0, 105)
    axes.legend(fontsize="small", ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.savefig(file, dpi=130)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--losses", nargs="+", default=list(LOSSES))
    parser.add_argument("--runs", type=Path, default=Path("runs/quickstart_comparison"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    sys.argv = sys.argv[:1]  # the command line below has its own
    seeds = range(options.seeds)
    results = {loss: [run(loss, seed, options.runs / "plain") for seed in seeds] for loss in options.losses}
    clip = ("--trainer.gradient_clip_val", "1")
    clipped = {loss: [run(loss, seed, options.runs / "clipped", *clip) for seed in seeds] for loss in options.losses}
    options.out.mkdir(exist_ok=True)
    text = (
        f"{options.seeds} training seeds, mean ± standard deviation in percent, last checkpoint; "
        f"{platform.machine()} with {torch.get_num_threads()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {results[options.losses[0]][0]['precision']}.\n\n{table(results)}\n\n"
        f"With `{' '.join(clip)}`:\n\n{table(clipped)}\n"
    )
    (options.out / "quickstart.md").write_text(text)
    picture(results, options.out / "quickstart.png")
    sys.stdout.write(text)
