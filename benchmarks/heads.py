"""Regret of ``lt-cb recommend``: its choice by folds of the training images against the best of its grid.

    python benchmarks/heads.py --cifar10 cifar10 --cifar100 cifar100 --fashion fashion-mnist --out results/heads.csv

The folders of CIFAR have ``train`` and ``test`` with a folder of images for each class; Fashion-MNIST has its four
files. The backbone is EfficientNet-Lite0. A row of the table is a data set at an imbalance factor and a subset seed.
It has these scores, as balanced accuracy on the test images in percent:

- the recommendation, and the best of its grid,
- fixed recipes at lambda = 0.01,
- scikit-learn's balanced logistic regression at C = 1; with ``--tune_scikit_learn`` also at a C chosen by the same
  folds, which takes minutes.

Rows that the table has already are skipped.
"""

import argparse
import csv
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lt_cb.data import LongTailedDataModule
from lt_cb.features import frozen_features
from lt_cb.hardware import processor
from lt_cb.heads.folds import choose, cross_validate, measure_all, stratified_folds
from lt_cb.heads.recipes import POST_HOC, SOFTMAX, Candidate, Recipe, make_recipes
from lt_cb.heads.setup import BETAS, GAMMAS, LAMBDAS, TAUS
from lt_cb.heads.solve import Basis, solve_path
from lt_cb.losses import SoftmaxLoss
from lt_cb.module import LongTailedClassifier

FOLDS, LAMBDA = 5, 0.01
FIXED = {
    "softmax": SOFTMAX,
    "cb_softmax_0.9999": Recipe("SoftmaxLoss", (), 0.9999),
    "cb_focal_0.9999": Recipe("FocalLoss", (("gamma", 1.0),), 0.9999),
    "balanced_softmax": Recipe(POST_HOC, (("tau", 1.0),)),
}
TASKS = {  # image size and imbalance factors of each data set
    "cifar10": (128, (10.0, 50.0, 100.0, 200.0)),
    "cifar100": (96, (50.0, 100.0, 200.0)),
    "fashion_mnist": (96, (10.0, 100.0, 200.0)),
    "digits": (64, (10.0, 50.0)),
}
SCIKIT_LEARN_C = (0.01, 0.003, 0.001, 0.0003)  # C = 1 / (N lambda)


def features(name: str, root: str, size: int, factor: float, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return features and class indices of training and test images."""
    source = "image_folder" if name.startswith("cifar") else name
    grey = name in ("digits", "fashion_mnist")
    data = LongTailedDataModule(
        source, root, imbalance_factor=factor, subset_seed=seed, image_size=size, mean=[0.498], std=[0.502]
    )
    model = LongTailedClassifier(
        SoftmaxLoss(data.class_counts),
        "offline_backbone.efficientnet_lite0",
        backbone_args={"image_size": size},
        in_channels=1 if grey else 3,
        mean=data.mean,
        std=data.std,
    )
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    made = {split: frozen_features(model, data, split, trainer) for split in ("train", "test")}
    return {split: (torch.from_numpy(values), targets) for split, (values, targets) in made.items()}


def balanced(correct: Tensor, total: Tensor) -> float:
    """Return the balanced accuracy in percent."""
    return 100 * (correct.double() / total).nanmean().float().item()


def logistic(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], c: float, classes: int) -> float:
    """Return the balanced accuracy of scikit-learn, on standardised features."""
    model = LogisticRegression(C=c, class_weight="balanced", max_iter=300).fit(train[0].numpy(), train[1].numpy())
    predicted = torch.from_numpy(model.predict(test[0].numpy()))
    return balanced(test[1][predicted == test[1]].bincount(minlength=classes), test[1].bincount(minlength=classes))


def row(name: str, root: str, size: int, factor: float, seed: int, tune_scikit_learn: bool) -> dict[str, Any]:
    """Return a row of the table."""
    (raw, targets), (raw_test, test_targets) = features(name, root, size, factor, seed).values()
    classes = int(test_targets.max()) + 1
    counted = test_targets.bincount(minlength=classes)
    started = time.perf_counter()
    basis = Basis.fit(raw)
    train, test = basis.project(raw, targets, classes), basis.project(raw_test, test_targets, classes)
    recipes = make_recipes(BETAS, GAMMAS, TAUS)
    folds = stratified_folds(targets, classes, FOLDS, seed)
    choice = choose(cross_validate(train, folds, recipes, LAMBDAS).scores())
    seconds = time.perf_counter() - started
    correct = measure_all(train, test, recipes, LAMBDAS)
    scores = {candidate: balanced(right, counted) for candidate, right in correct.items()}
    best = max(scores, key=lambda c: scores[c])
    line: dict[str, Any] = {"data": name, "imbalance_factor": factor, "subset_seed": seed, "image_size": size}
    line |= {"classes": classes, "training_images": len(targets), "chosen": str(choice.chosen)}
    line |= {"gain_by_folds": 100 * choice.gain, "low": 100 * choice.low, "high": 100 * choice.high}
    line |= {"recommended": scores[choice.chosen], "best": scores[best], "best_is": str(best)}
    line |= {name: scores[Candidate(recipe, LAMBDA)] for name, recipe in FIXED.items()}
    standard = [
        ((values - basis.mean) / basis.scale, labels) for values, labels in ((raw, targets), (raw_test, test_targets))
    ]
    line["scikit_learn"] = logistic(standard[0], standard[1], 1.0, classes)
    if tune_scikit_learn:
        means = {}
        for c in SCIKIT_LEARN_C:
            means[c] = statistics.mean(
                logistic(
                    (standard[0][0][folds != k], targets[folds != k]),
                    (standard[0][0][folds == k], targets[folds == k]),
                    c,
                    classes,
                )
                for k in range(FOLDS)
            )
        line["scikit_learn_C"] = max(means, key=lambda c: means[c])
        line["scikit_learn_by_folds"] = logistic(standard[0], standard[1], line["scikit_learn_C"], classes)
    line |= {"seconds_to_choose": seconds, "processor": processor(torch.device("cpu")), "torch": torch.__version__}
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in line.items()}


def speed(root: str) -> None:
    """Print heads a minute on CIFAR-10, and the largest relative gap to the optimum."""
    raw, targets = features("cifar10", root, 128, 100.0, 0)["train"]
    train = Basis.fit(raw).project(raw, targets, 10)
    losses = [recipe.make(train.class_counts) for recipe in make_recipes(BETAS, GAMMAS, ())]
    started = time.perf_counter()
    path = solve_path(train, losses, LAMBDAS)
    seconds = time.perf_counter() - started
    tight = solve_path(train, losses, LAMBDAS, 1e-7)
    gaps = torch.cat([path[v].objective / tight[v].objective - 1 for v in LAMBDAS])
    print(f"{len(targets)} images: {60 * len(gaps) / seconds:.0f} heads a minute, gap at most {gaps.max():.1e}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cifar10", "cifar100", "fashion"):
        parser.add_argument(f"--{name}", help="folder; without it, the data set is skipped")
    parser.add_argument("--out", type=Path, default=Path("heads.csv"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="subset seeds")
    parser.add_argument("--only", help="the only data set to use")
    parser.add_argument("--factors", type=float, nargs="+", help="imbalance factors instead of the default ones")
    parser.add_argument("--tune_scikit_learn", action="store_true", help="also choose C by the folds")
    parser.add_argument("--speed", action="store_true", help="print heads a minute on CIFAR-10, and stop")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
    roots = {"cifar10": options.cifar10, "cifar100": options.cifar100, "fashion_mnist": options.fashion, "digits": "."}
    if options.speed:
        speed(options.cifar10)
        return
    done = list(csv.DictReader(options.out.open())) if options.out.is_file() else []
    keys = {(d["data"], float(d["imbalance_factor"]), int(d["subset_seed"])) for d in done}
    for name, (size, factors) in TASKS.items():
        for factor in options.factors or factors:
            for seed in options.seeds:
                if roots[name] is None or options.only not in (None, name) or (name, factor, seed) in keys:
                    continue
                line = row(name, roots[name], size, factor, seed, options.tune_scikit_learn)
                print(line, flush=True)
                done.append({key: str(value) for key, value in line.items()})
                with options.out.open("w", newline="") as stream:
                    writer = csv.DictWriter(stream, list(dict.fromkeys(key for d in done for key in d)))
                    writer.writeheader()
                    writer.writerows(done)


if __name__ == "__main__":
    main()
