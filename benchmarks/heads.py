"""Regret of ``lt-cb recommend``: its choice by folds of the training images against the best head of its grid.

    python benchmarks/heads.py --cifar10 cifar10 --cifar100 cifar100 --fashion fashion-mnist --out results

The folders of CIFAR have ``train`` and ``test`` with a folder of images for each class; Fashion-MNIST has its four
files. The backbone is EfficientNet-Lite0. A task is a data set with class counts and a subset seed. The scores of all
heads on each fold and on the test images go to a file of ``--scores`` for each task, and tasks with a file are skipped.
``--out`` gets two tables, made from these files without new solves:

- ``heads.csv``: a row a task with the balanced accuracy on the test images in percent, of the recommendation, of the
  best head of the grid, and of the rivals of `RIVALS`,
- ``heads_rules.csv``: the mean and largest regret of each rule of choice, by data set.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lt_cb.data import LongTailedDataModule
from lt_cb.features import frozen_features
from lt_cb.hardware import processor
from lt_cb.heads.folds import COMPARISON_TOLERANCE, REPEATS, cross_validate, measure_all, repeated_folds
from lt_cb.heads.recipes import make_recipes
from lt_cb.heads.setup import BETAS, LAMBDAS
from lt_cb.heads.solve import Basis, FeatureSet, solve_path
from lt_cb.losses import InverseFrequency, SoftmaxLoss
from lt_cb.module import LongTailedClassifier

FOLDS, SIZE = 5, 64
TASKS = {  # largest class, imbalance factors and subset seeds of each data set
    "digits": [(None, (10.0, 50.0), 4)],
    "cifar100_12": [(300, (60.0,), 4)],
    "cifar10": [(40, (2.0,), 3), (100, (10.0, 25.0), 3), (500, (10.0, 50.0, 100.0, 200.0), 2)],
    "fashion_mnist": [(40, (2.0,), 3), (100, (10.0, 25.0), 3), (500, (10.0, 100.0, 200.0), 2)],
    "cifar100": [(100, (10.0, 50.0, 100.0), 2)],
}
TAUS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
LOGISTIC = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)  # lambda = 1 / (N C) of scikit-learn
RIDGE = tuple(10.0**exponent for exponent in range(-3, 4))  # alpha / N


def features(name: str, root: str, n_max: int | None, factor: float, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return features and class indices of training and test images."""
    data = LongTailedDataModule(
        "image_folder" if name.startswith("cifar") else name,
        root,
        imbalance_factor=factor,
        n_max=n_max,
        subset_seed=seed,
        image_size=SIZE,
        interpolation="bicubic",
        mean=[0.498],
        std=[0.502],
    )
    model = LongTailedClassifier(
        SoftmaxLoss(data.class_counts),
        "offline_backbone.efficientnet_lite0",
        backbone_args={"image_size": SIZE},
        in_channels=1 if name in ("digits", "fashion_mnist") else 3,
        mean=data.mean,
        std=data.std,
    )
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    made = {split: frozen_features(model, data, split, trainer) for split in ("train", "test")}
    return {split: (torch.from_numpy(values), targets) for split, (values, targets) in made.items()}


def balanced(predicted: Tensor, targets: Tensor, classes: int) -> float:
    """Return the balanced accuracy over the classes that occur."""
    correct = targets[predicted == targets].bincount(minlength=classes)
    return (correct.double() / targets.bincount(minlength=classes)).nanmean().item()


def logistic(train: FeatureSet, test: FeatureSet) -> dict[float, float]:
    """Return scores of scikit-learn's balanced logistic regression by lambda; the test suite compares the solutions."""
    path = solve_path(
        train, [SoftmaxLoss(train.class_counts, InverseFrequency("samples"))], LOGISTIC, COMPARISON_TOLERANCE
    )
    return {
        strength: balanced(heads.logits(test.features)[0].argmax(1), test.targets, test.num_classes)
        for strength, heads in path.items()
    }


def ridge(train: FeatureSet, test: FeatureSet) -> dict[float, float]:
    """Return scores of a ridge regression of -1 and 1, with each class of equal weight, by alpha / N."""
    share = 1 / (train.num_classes * train.targets.bincount(minlength=train.num_classes).clamp(min=1).double())
    weights = share[train.targets][:, None]
    x, y = train.features.double(), 2 * torch.nn.functional.one_hot(train.targets, train.num_classes).double() - 1
    mean, centre = (weights * x).sum(0), (weights * y).sum(0)
    x, y = x - mean, y - centre
    products, right = x.T @ (weights * x), x.T @ (weights * y)
    scores = {}
    for alpha in RIDGE:
        solution = torch.linalg.solve(products + alpha * torch.eye(len(products), dtype=torch.float64), right)
        logits = (test.features.double() - mean) @ solution + centre
        scores[alpha] = balanced(logits.argmax(1), test.targets, test.num_classes)
    return scores


def class_means(train: FeatureSet, test: FeatureSet) -> dict[float, float]:
    """Return the score of the nearest class mean by cosine; it has no setting."""
    one_hot = torch.nn.functional.one_hot(train.targets, train.num_classes).float()
    means = torch.nn.functional.normalize(one_hot.T @ train.features / one_hot.sum(0)[:, None], dim=1)
    return {0.0: balanced((test.features @ means.T).argmax(1), test.targets, test.num_classes)}


RIVALS: Mapping[str, Callable[[FeatureSet, FeatureSet], dict[float, float]]] = {
    "logistic": logistic,
    "ridge": ridge,
    "class_means": class_means,
}


def by_folds(method: Callable[..., dict[float, float]], train: FeatureSet, test: FeatureSet, folds: Tensor) -> Any:
    """Return the setting of a rival that is best on five folds, and its score on the test images."""
    splits = [folds[0] == k for k in range(FOLDS)]
    scores = [method(train.select(~held_out), train.select(held_out)) for held_out in splits]
    means = {setting: statistics.mean(score[setting] for score in scores) for setting in scores[0]}
    chosen = max(means, key=lambda setting: means[setting])
    return {"setting": chosen, "by_folds": means[chosen], "test": method(train, test)[chosen]}


def solve(name: str, root: str, n_max: int | None, factor: float, seed: int) -> dict[str, Any]:
    """Return the scores of all heads of a task on the folds and on the test images."""
    (raw, targets), (raw_test, test_targets) = features(name, root, n_max, factor, seed).values()
    classes = int(test_targets.max()) + 1
    recipes = make_recipes(BETAS, (), TAUS)
    started = time.perf_counter(), time.process_time()
    folds = repeated_folds(targets, classes, FOLDS, seed)
    basis = Basis.fit(raw)
    train, test = basis.project(raw, targets, classes), basis.project(raw_test, test_targets, classes)
    trial = cross_validate(train, folds, recipes, LAMBDAS)
    seconds = time.perf_counter() - started[0], time.process_time() - started[1]
    counted = test_targets.bincount(minlength=classes)
    correct = measure_all(train, test, recipes, LAMBDAS)
    heads = [
        {
            "loss": recipe.loss,
            "options": recipe.options,
            "beta": recipe.beta,
            "lambda": strength,
            "folds": [round(score, 6) for score in scores],
            "test": (correct[recipe, strength].double() / counted).nanmean().item(),
        }
        for (recipe, strength), scores in trial.scores().items()
    ]
    rivals = {rival: by_folds(method, train, test, folds) for rival, method in RIVALS.items()}
    facts = {"data": name, "n_max": n_max, "imbalance_factor": factor, "subset_seed": seed, "image_size": SIZE}
    facts |= {"classes": classes, "training_images": len(targets), "test_images": len(test_targets)}
    facts |= {"seconds_to_choose": round(seconds[0], 1), "cpu_seconds": round(seconds[1], 1), "repeats": REPEATS}
    facts |= {"processor": processor(torch.device("cpu")), "torch": torch.__version__}
    return {**facts, "rivals": rivals, "heads": heads}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cifar10", "cifar100", "cifar100_12", "fashion"):
        parser.add_argument(f"--{name}", help="folder; without it, the data set is skipped")
    parser.add_argument("--scores", type=Path, default=Path("scores"), help="folder of the scores by fold")
    parser.add_argument("--only", nargs="+", default=list(TASKS), help="data sets to use")
    parser.add_argument("--largest", type=int, default=10**9, help="skip tasks whose largest class is larger")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
    roots = {**vars(options), "fashion_mnist": options.fashion, "digits": "."}
    options.scores.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        for n_max, factors, seeds in TASKS[name]:
            for factor, seed in ((f, s) for f in factors for s in range(seeds)):
                file = options.scores / f"{name}_{n_max}_{factor:g}_{seed}.json"
                if roots[name] is not None and not file.is_file() and (n_max or 0) <= options.largest:
                    made = solve(name, roots[name], n_max, factor, seed)
                    file.write_text(json.dumps(made))
                    print(
                        file.name, made["training_images"], made["seconds_to_choose"], made["cpu_seconds"], flush=True
                    )


if __name__ == "__main__":
    main()
