"""Which methods help a head on frozen features? Measures rows of docs/which.md, at imbalance factor 100.

    python benchmarks/which.py --cifar10 cifar10 --cifar100 cifar100_20 --out results

It writes ``which.csv``. A row is a data set, a subset seed, a question and a method; methods of a seed are paired.
The backbone is EfficientNet-Lite0 at 64 pixels. Five folds of the training images choose the setting of each method.

The kept rows use, to save time, the first 1,000 training and 300 test images of each class of CIFAR-10, and every fifth
class of CIFAR-100. The folders have ``train`` and ``test`` with a folder of images for each class.
"""

import argparse
import csv
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lt_cb.data import LongTailedDataModule, class_counts_exponential
from lt_cb.extract import features_of
from lt_cb.features import frozen_features
from lt_cb.heads.folds import fit_temperature, held_out_logits, repeated_folds, splits_of, temperature_scaled
from lt_cb.heads.recipes import BALANCED, SOFTMAX, Candidate
from lt_cb.heads.solve import Basis, FeatureSet, solve_path
from lt_cb.longtail.subset import long_tailed_subset
from lt_cb.losses import EffectiveNumber, InverseFrequency, SoftmaxLoss
from lt_cb.losses.prior import balanced_posterior
from lt_cb.metrics import shot_groups
from lt_cb.module import LongTailedClassifier
from lt_cb.runs.folder import commit

FACTOR, N_MAX, SEEDS, FOLDS, SIZE = 100.0, 500, (0, 1, 2), 5, 64
STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)  # lambda
SHRINKAGES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # covariance shares in linear discriminant analysis
FILLED = 100  # real and synthetic features of a rare class
POOL, BUDGET, DRAWS = 2000, 100, 5  # images without labels, labels to buy, random choices
Row = dict[str, Any]
Logits = dict[float, Tensor]  # logits of the test images, by setting


class Features(NamedTuple):
    """Features of all training images and of the test images, and of these flipped; with class indices."""

    train: Tensor
    targets: Tensor
    test: Tensor
    flipped: Tensor
    test_targets: Tensor


def load(root: str) -> Features:
    """Return the features of a folder of images."""
    options: Any = {"image_size": SIZE, "mean": [0.498], "std": [0.502], "interpolation": "bicubic", "num_workers": 0}
    data = LongTailedDataModule("image_folder", root, **options)
    arguments: Any = {"backbone_args": {"image_size": SIZE}, "mean": data.mean, "std": data.std}
    model = LongTailedClassifier(SoftmaxLoss(data.class_counts), "offline_lite0", **arguments)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    made = [frozen_features(model, data, split, trainer) for split in ("train", "test")]
    model.eval()
    with torch.no_grad():
        flipped = torch.cat([features_of(model, images.flip(-1)) for images, _ in data.test_dataloader()])
    return Features(torch.from_numpy(made[0][0]), made[0][1], torch.from_numpy(made[1][0]), flipped, made[1][1])


def recalls(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the accuracy of each class, shape (C,), NaN for a class without images."""
    hits = (logits.argmax(1) == targets).double()
    counts = targets.bincount(minlength=logits.shape[1])
    return torch.zeros(logits.shape[1], dtype=torch.float64).index_add_(0, targets, hits) / counts


def heads(make: Callable[[list[int]], Any]) -> Callable[[FeatureSet, Tensor], Logits]:
    """Return a solver of a head by its loss; logits are adjusted."""

    def solve(train: FeatureSet, test: Tensor) -> Logits:
        loss = make(train.class_counts)
        path = solve_path(train, [loss], STRENGTHS, 1e-4)
        return {strength: loss.adjust(head.logits(test)[0]) for strength, head in path.items()}

    return solve


def moments(train: FeatureSet) -> tuple[Tensor, Tensor]:
    """Return the class means, (C, R), and the pooled covariance, (R, R)."""
    x, size = train.features, train.num_classes
    sums = torch.zeros(size, x.shape[1]).index_add_(0, train.targets, x)
    means = sums / torch.tensor(train.class_counts).clamp(min=1)[:, None]
    centred = x - means[train.targets]
    return means, centred.T @ centred / len(x)


def shrunk(covariance: Tensor, share: float) -> Tensor:
    """Return a covariance that is mixed with a multiple of the identity."""
    return (1 - share) * covariance + share * covariance.diagonal().mean() * torch.eye(len(covariance))


def discriminant(train: FeatureSet, test: Tensor) -> Logits:
    """Solve linear discriminant analysis with equal priors."""
    means, covariance = moments(train)
    found = {}
    for share in SHRINKAGES:
        weight = torch.linalg.solve(shrunk(covariance, share), means.T)
        found[share] = test @ weight - 0.5 * (means.T * weight).sum(0)
    return found


def synthetic(train: FeatureSet, test: Tensor) -> Logits:
    """Solve softmax after Gaussian features with the pooled covariance have filled the rare classes."""
    means, covariance = moments(train)
    root = torch.linalg.cholesky(shrunk(covariance, 0.1))
    random = torch.Generator().manual_seed(0)
    missing = torch.tensor([max(FILLED - n, 0) for n in train.class_counts])
    labels = torch.arange(train.num_classes).repeat_interleave(missing)
    noise = torch.randn(len(labels), len(root), generator=random)
    features = torch.cat([train.features, means[labels] + noise @ root.T])
    filled = FeatureSet(features, torch.cat([train.targets, labels]), train.num_classes, train.variances)
    return heads(SoftmaxLoss)(filled, test)


METHODS: dict[str, Callable[[FeatureSet, Tensor], Logits]] = {
    "softmax": heads(SoftmaxLoss),
    "class-balanced weights": heads(lambda counts: SoftmaxLoss(counts, weighting=EffectiveNumber(0.9999))),
    "oversampling": heads(lambda counts: SoftmaxLoss(counts, weighting=InverseFrequency())),  # the same optimum
    "logit adjustment": heads(BALANCED.make),
    "discriminant analysis": discriminant,
    "synthetic features": synthetic,
}


def choose(solve: Callable[[FeatureSet, Tensor], Logits], train: FeatureSet, folds: Tensor) -> float:
    """Return the setting with the largest balanced accuracy, averaged over folds."""
    scores: dict[float, list[float]] = {}
    for held_out in splits_of(folds):
        tested = train.select(held_out)
        for setting, logits in solve(train.select(~held_out), tested.features).items():
            scores.setdefault(setting, []).append(float(recalls(logits, tested.targets).nanmean()))
    return max(scores, key=lambda setting: float(np.mean(scores[setting])))


def methods(train: FeatureSet, test: FeatureSet, flipped: Tensor, folds: Tensor) -> Iterator[Row]:
    """Yield balanced accuracies of heads."""
    few = shot_groups(train.class_counts)["few"]
    for method, solve in METHODS.items():
        setting = choose(solve, train, folds)
        logits = solve(train, torch.cat([test.features, flipped]))[setting]
        views = {method: logits[: len(flipped)]}
        if method == "logit adjustment":
            views["logit adjustment, two views"] = logits[: len(flipped)] + logits[len(flipped) :]
        for name, made in views.items():
            recall = recalls(made, test.targets)
            yield {"method": name, "setting": setting, "score": recall.mean(), "few": recall[few].mean()}


def priors(train: FeatureSet, test: FeatureSet, setting: float, folds: Tensor) -> Iterator[Row]:
    """Yield accuracies of a softmax head under three class priors of the test images, by corrections of the prior."""
    path = [value for value in STRENGTHS if value >= setting]
    loss = SoftmaxLoss(train.class_counts)
    held_out = held_out_logits(train, folds, Candidate(SOFTMAX, setting), path)
    temperature = fit_temperature(loss, held_out.logits, held_out.targets)
    logits = solve_path(train, [loss], path)[setting].logits(test.features)[0]
    posterior = temperature_scaled(loss, logits, temperature).double().softmax(1)
    trained = torch.tensor(train.class_counts).double() / len(train.targets)
    uniform = torch.full_like(trained, 1 / len(trained))
    for kind, prior in (("as in training", trained), ("uniform", uniform), ("inverted", trained.flip(0))):
        weights = prior[test.targets] / test.targets.bincount()[test.targets]
        estimate = trained
        for _ in range(1000):  # Saerens et al. 2002
            joint = posterior * estimate / trained
            estimate = (weights[:, None] * joint / joint.sum(1, keepdim=True)).sum(0)
        for method, assumed in (("none", trained), ("uniform", uniform), ("EM", estimate), ("true", prior)):
            score = (recalls(posterior * assumed / trained, test.targets) * prior).sum()
            yield {"method": f"{kind}: {method}", "setting": setting, "score": score}


def active(features: Features, rows: Tensor, basis: Basis, seed: int) -> Iterator[Row]:
    """Yield balanced accuracies of logit adjustment after more images have been labelled, by rules that choose them."""
    random = np.random.default_rng(seed)
    others = np.setdiff1d(np.arange(len(features.targets)), rows.numpy())
    pool = torch.from_numpy(random.permutation(others)[:POOL])
    classes = int(features.targets.max()) + 1

    images = basis.project(features.train, features.targets, classes)
    test = basis.project(features.test, features.test_targets, classes)

    def solve(chosen: Tensor, tested: Tensor) -> tuple[Any, Tensor]:
        train = FeatureSet(images.features[chosen], images.targets[chosen], classes, images.variances)
        loss = BALANCED.make(train.class_counts)
        return loss, solve_path(train, [loss], (1.0, 0.3), 1e-4)[0.3].logits(tested)[0]

    def score(chosen: Tensor) -> Tensor:
        loss, logits = solve(chosen, test.features)
        return recalls(loss.adjust(logits), test.targets).mean()

    loss, logits = solve(rows, images.features[pool])
    logits = logits.double()
    balanced = balanced_posterior(loss, logits)
    best = balanced.topk(2, 1).values
    counts = features.targets[rows].bincount(minlength=classes)
    rules = {
        "least confident": logits.softmax(1).max(1).values,
        "smallest balanced margin": best[:, 0] - best[:, 1],
        "rarest predicted class": counts[balanced.argmax(1)] - best[:, 0],
    }
    yield {"method": "none", "setting": 0.3, "score": score(rows)}
    drawn = [score(torch.cat([rows, pool[random.permutation(POOL)[:BUDGET]]])) for _ in range(DRAWS)]
    yield {"method": "random", "setting": 0.3, "score": torch.stack(drawn).mean()}
    for method, order in rules.items():
        yield {"method": method, "setting": 0.3, "score": score(torch.cat([rows, pool[order.argsort()[:BUDGET]]]))}
    yield {"method": "the whole pool", "setting": 0.3, "score": score(torch.cat([rows, pool]))}


def questions(features: Features, seed: int) -> Iterator[tuple[str, Row]]:
    """Yield question and row for a subset."""
    classes = int(features.targets.max()) + 1
    counts = class_counts_exponential(N_MAX, classes, FACTOR)
    rows = torch.from_numpy(np.sort(np.concatenate(long_tailed_subset(features.targets.numpy(), counts, seed))))
    basis = Basis.fit(features.train[rows])
    train = basis.project(features.train[rows], features.targets[rows], classes)
    test = basis.project(features.test, features.test_targets, classes)
    flipped = basis.project(features.flipped, features.test_targets, classes).features
    folds = repeated_folds(train.targets, classes, FOLDS, seed, repeats=1)
    settings = {}
    for row in methods(train, test, flipped, folds):
        settings[row["method"]] = row["setting"]
        yield "head", row
    yield from (("prior", row) for row in priors(train, test, settings["softmax"], folds))
    yield from (("labels", row) for row in active(features, rows, basis, seed))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cifar10", "cifar100"):
        parser.add_argument(f"--{name}", help="folder; without it, the data set is skipped")
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args()
    facts = {"commit": commit(), "python": platform.python_version(), "torch": torch.__version__}
    lines: list[Row] = []
    for name, root in (("cifar10", options.cifar10), ("cifar100_20", options.cifar100)):
        features = load(root) if root else None
        for seed in SEEDS if features is not None else ():
            for question, row in questions(features, seed):
                scores = {key: round(100 * float(row[key]), 3) for key in ("score", "few") if key in row}
                lines.append({"data": name, "subset_seed": seed, "question": question, **row, **scores, **facts})
                print(lines[-1], flush=True)
    with (options.out / "which.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(key for line in lines for key in line)))
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    main()
