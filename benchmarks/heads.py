"""Heads on frozen features: CIFAR-10, imbalance factor 100, EfficientNet-Lite0 at 128 pixels, against scikit-learn.

    python benchmarks/heads.py --root cifar10 --seeds 0 1 2

``cifar10`` has ``train`` and ``test``, each with a folder of images a class. For each subset seed it prints what the
folds choose and its balanced accuracy on the test images, that of scikit-learn's balanced logistic regression with C
chosen by the same folds and at its default, and of our plain softmax; then heads a minute and their distance from the
optimum.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lt_cb.commands.recommend import BETAS, GAMMAS, LAMBDAS, TAUS
from lt_cb.data import LongTailedDataModule
from lt_cb.hardware import processor
from lt_cb.heads.features import Features, kept_features
from lt_cb.heads.folds import POST_HOC, Candidate, choose, cross_validate, recipes, stratified_folds
from lt_cb.heads.solve import Basis, solve_path
from lt_cb.losses import SoftmaxLoss
from lt_cb.module import LongTailedClassifier

CLASSES, FOLDS = 10, 5
RIVAL = (1.0, 0.03, 0.01, 0.003, 0.001, 0.0003)  # C of scikit-learn: 1 / (N lambda)


def features(root: str, seed: int) -> dict[str, Features]:
    """Return the features of the training and test images."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
    data = LongTailedDataModule(
        "image_folder", root, imbalance_factor=100, subset_seed=seed, image_size=128, mean=[0.498], std=[0.502]
    )
    loss = SoftmaxLoss(data.class_counts)
    model = LongTailedClassifier(loss, "lite0_backbone.lite0", mean=data.mean, std=data.std)
    return {split: kept_features(model, data, split) for split in ("train", "test")}


def balanced(predicted: Tensor, targets: Tensor) -> float:
    """Return the balanced accuracy, in percent."""
    right = (predicted == targets).double()
    return 100 * statistics.mean(right[targets == label].mean().item() for label in range(CLASSES))


def ours(train: Features, test: Features, folds: Tensor) -> dict[str, Any]:
    """Return the choice, and test accuracy of it, plain softmax, and all that was tried."""
    started = time.perf_counter()
    values = torch.from_numpy(np.array(train.values))
    basis = Basis.of(values)
    projected = basis.project(values)
    tried = recipes(BETAS, GAMMAS, TAUS)
    trial = cross_validate(projected, train.targets, CLASSES, folds, tried, LAMBDAS, basis.variances)
    choice = choose(trial.scores())
    chosen_after = time.perf_counter() - started
    counts = train.targets.bincount(minlength=CLASSES).tolist()
    solved = [recipe for recipe in tried if recipe.loss != POST_HOC]
    made = {recipe: recipe.make(counts) for recipe in tried}
    started = time.perf_counter()
    path = solve_path(projected, train.targets, [made[r] for r in solved], LAMBDAS, basis.variances)
    seconds = time.perf_counter() - started
    tight = solve_path(projected, train.targets, [made[r] for r in solved], LAMBDAS, basis.variances, 1e-6)
    gaps = torch.cat([path[v].objective / tight[v].objective - 1 for v in LAMBDAS])
    shown = basis.project(torch.from_numpy(np.array(test.values)))
    accuracy = {}
    for strength, heads in path.items():
        logits = dict(zip(solved, heads.logits(shown), strict=True))
        for recipe in tried:
            adjusted = made[recipe].adjust(logits[tried[0] if recipe.loss == POST_HOC else recipe])
            accuracy[Candidate(recipe, strength)] = balanced(adjusted.argmax(1), test.targets)
    best = max(accuracy, key=lambda c: accuracy[c])
    return {
        "chosen": str(choice.chosen),
        "gain by folds": [100 * value for value in (choice.gain, choice.low, choice.high)],
        "test": accuracy[choice.chosen],
        "plain softmax": [str(choice.plain), accuracy[choice.plain]],
        "best of the grid": [str(best), accuracy[best]],
        "seconds to choose": chosen_after,
        "heads a minute": 60 * len(gaps) / seconds,
        "largest gap": gaps.max().item(),
        "grid": {str(candidate): value for candidate, value in accuracy.items()},
    }


def rival(train: Features, test: Features, folds: Tensor) -> dict[str, Any]:
    """Return C as the same folds choose it, its test accuracy, and that of the default."""
    started = time.perf_counter()
    x, y = np.array(train.values, np.float32), train.targets.numpy()
    mean, scale = x.mean(0), x.std(0) + 1e-6
    x, shown = (x - mean) / scale, (np.array(test.values, np.float32) - mean) / scale
    scores = {}
    for c in RIVAL:
        by_fold = []
        for k in range(FOLDS):
            held = (folds == k).numpy()
            model = LogisticRegression(C=c, class_weight="balanced", max_iter=200).fit(x[~held], y[~held])
            by_fold.append(balanced(torch.from_numpy(model.predict(x[held])), torch.from_numpy(y[held])))
        scores[c] = statistics.mean(by_fold)
    best = max(scores, key=lambda c: scores[c])
    seconds = time.perf_counter() - started
    tests = {}
    for c in (best, 1.0):
        model = LogisticRegression(C=c, class_weight="balanced", max_iter=200).fit(x, y)
        tests[c] = balanced(torch.from_numpy(model.predict(shown)), test.targets)
    return {"C": best, "test": tests[best], "test at C = 1": tests[1.0], "seconds to choose": seconds}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--without_rival", action="store_true", help="leave scikit-learn out, which takes minutes")
    options = parser.parse_args()
    print(f"{processor(torch.device('cpu'))}, {torch.get_num_threads()} threads, torch {torch.__version__},", end=" ")
    print(f"Python {platform.python_version()}")
    for seed in options.seeds:
        kept = features(options.root, seed)
        targets = kept["train"].targets
        folds = stratified_folds(targets, CLASSES, FOLDS, seed)
        rows = {"ours": ours} | ({} if options.without_rival else {"scikit-learn": rival})
        for name, measure in rows.items():
            print(json.dumps({"seed": seed, "by": name, **measure(kept["train"], kept["test"], folds)}), flush=True)


if __name__ == "__main__":
    main()
