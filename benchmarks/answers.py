"""Prediction sets, wrong labels and unknown classes on long tails: measures the answers of ``recommend``.

    python benchmarks/answers.py sets --cifar10 cifar10 --cifar100 cifar100_20 --fashion fashion-mnist --out results

``sets``, ``suspects`` and ``unknown`` write ``answers_sets.csv``, ``answers_suspects.csv`` and ``answers_unknown.csv``.
A row is a data set, a subset seed and a method. Each data set is a tail at imbalance factor 100. The backbone is
EfficientNet-Lite0, the head is balanced softmax at lambda 0.3, the default of ``recommend``.

The kept rows use, to save time, the first 1,000 training and 300 test images of each class of CIFAR-10, and every fifth
class of CIFAR-100. The folders have ``train`` and ``test`` with a folder of images for each class.
"""

import argparse
import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lt_cb.data import LongTailedDataModule
from lt_cb.features import frozen_features
from lt_cb.heads.answers import fit_familiarity
from lt_cb.heads.folds import fit_temperature, held_out_logits, repeated_folds, temperature_scaled
from lt_cb.heads.recipes import POST_HOC, Candidate, Recipe
from lt_cb.heads.solve import Basis, FeatureSet, solve_path
from lt_cb.heads.suspects import mean_by_image
from lt_cb.losses import Loss, SoftmaxLoss
from lt_cb.losses.prior import balanced_posterior
from lt_cb.metrics import auroc, shot_groups
from lt_cb.module import LongTailedClassifier
from lt_cb.sets import held_out_scores, prediction_sets, quantile, thresholds
from lt_cb.unknown import nearest

FACTOR, SEEDS, FOLDS = 100.0, (0, 1, 2), 5
CANDIDATE, PATH = Candidate(Recipe(POST_HOC, (("tau", 1.0),)), 0.3), [1.0, 0.3]
LEVELS = (0.8, 0.9, 0.95)
TASKS = {"cifar10": (128, 500), "cifar100_20": (96, 500), "fashion_mnist": (96, 600)}  # image size, largest class
Row = dict[str, Any]


class Task(NamedTuple):
    """Features of training and test images, floating of shape (N, D), and their class indices."""

    features: Tensor
    targets: Tensor
    test_features: Tensor
    test_targets: Tensor

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.targets.max()) + 1


def load(name: str, root: str, seed: int) -> Task:
    """Return a task."""
    (size, n_max), grey = TASKS[name], name == "fashion_mnist"
    data = LongTailedDataModule(
        name if grey else "image_folder",
        root,
        imbalance_factor=FACTOR,
        n_max=n_max,
        subset_seed=seed,
        image_size=size,
        mean=[0.498],
        std=[0.502],
        interpolation="bicubic",
    )
    model = LongTailedClassifier(
        SoftmaxLoss(data.class_counts),
        "offline_lite0",
        backbone_args={"image_size": size},
        in_channels=1 if grey else 3,
        mean=data.mean,
        std=data.std,
    )
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    made = [frozen_features(model, data, split, trainer) for split in ("train", "test")]
    return Task(*(part for values, targets in made for part in (torch.from_numpy(values), targets)))


def solve(train: FeatureSet, test: Tensor) -> tuple[Loss, Tensor]:
    """Return the loss, and the logits of the head for features of other images."""
    loss = CANDIDATE.recipe.make(train.class_counts)
    heads = solve_path(train, [loss], PATH)[CANDIDATE.l2_strength]
    return loss, heads.logits(test)[0].double()


def held_out_posterior(train: FeatureSet, seed: int) -> tuple[Loss, Tensor, Tensor, Tensor, float]:
    """Return loss, scaled logits, targets and rows of held-out images, and the temperature, as in ``recommend``."""
    loss = CANDIDATE.recipe.make(train.class_counts)
    held_out = held_out_logits(train, repeated_folds(train.targets, train.num_classes, FOLDS, seed), CANDIDATE, PATH)
    temperature = fit_temperature(loss, held_out.logits, held_out.targets)
    logits = temperature_scaled(loss, held_out.logits, temperature).double()
    return loss, logits, held_out.targets, held_out.rows, temperature


def sets(task: Task, seed: int) -> Iterator[Row]:
    """Yield coverage and size of prediction sets by several rules."""
    basis, classes = Basis.fit(task.features), task.classes
    train = basis.project(task.features, task.targets, classes)
    test = basis.project(task.test_features, task.test_targets, classes)
    loss, logits, targets, _, temperature = held_out_posterior(train, seed)
    test_logits = temperature_scaled(loss, solve(train, test.features)[1].float(), temperature).double()
    plain = (logits.softmax(1), test_logits.softmax(1))
    balanced = (balanced_posterior(loss, logits), balanced_posterior(loss, test_logits))
    groups = shot_groups(train.class_counts)
    for level in LEVELS:
        for method, tested, limits in rules(plain, balanced, targets, level):
            inside = prediction_sets(tested, limits)
            hits = inside.gather(1, test.targets[:, None])[:, 0].double()
            coverage = torch.stack([hits[test.targets == label].mean() for label in range(classes)])
            row = {"level": level, "method": method, "coverage": coverage.mean(), "worst_class": coverage.min()}
            row |= {name: coverage[members].mean() for name, members in groups.items()}
            yield row | {"three_rarest": coverage[-3:].mean(), "size": inside.sum(1).double().mean()}


def rules(
    plain: tuple[Tensor, Tensor], balanced: tuple[Tensor, Tensor], targets: Tensor, level: float
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield name, posterior of the test images, and thresholds of each rule."""
    for kind, (held_out, posterior) in (("softmax", plain), ("balanced", balanced)):
        classes, true = posterior.shape[1], held_out.gather(1, targets[:, None])[:, 0]
        kept = held_out_scores(true, targets, classes, 3)
        floor = torch.tensor([conformal(scores, level) for scores in kept])
        together = conformal(torch.cat(kept).sort().values, level)
        yield f"{kind}, all images together", posterior, torch.full_like(floor, together)
        yield f"{kind}, each class alone", posterior, floor
        if kind == "balanced":
            common = uncorrected(kept, level)
            yield "balanced, all classes", posterior, torch.full_like(floor, common)
            yield "balanced, half way", posterior, (floor + common) / 2
            exact = quantile(kept, 1 - level)
            yield "balanced, all classes, n + 1", posterior, torch.full_like(floor, exact)
            own = torch.tensor([quantile([scores], 1 - level) for scores in kept])
            yield "balanced, each class alone, interpolated", posterior, own
            yield "balanced, half way, n + 1, interpolated", posterior, (own + exact) / 2
            yield "lt_cb", posterior, thresholds(kept, level)


def conformal(scores: Tensor, level: float) -> float:
    """Return the threshold of split conformal prediction: the floor((n + 1)(1 - level))-th lowest score, or 0."""
    rank = int((len(scores) + 1) * (1 - level) + 1e-9)
    return float(scores[rank - 1]) if rank else 0.0


def uncorrected(kept: list[Tensor], level: float) -> float:
    """Return the quantile of all scores, if each class has the same weight."""
    weights = torch.cat([torch.full_like(scores, 1 / len(scores)).double() for scores in kept if len(scores)])
    scores, order = torch.cat(kept).sort()
    return float(scores[int((weights[order].cumsum(0) / weights.sum() <= 1 - level + 1e-9).sum())])


def suspects(task: Task, seed: int) -> Iterator[Row]:
    """Yield the AUROC of suspects, if 10 % of the labels are replaced by other classes."""
    basis, classes, rng = Basis.fit(task.features), task.classes, np.random.default_rng(seed)
    wrong = torch.from_numpy(rng.permutation(len(task.targets)) < round(0.1 * len(task.targets)))
    other = (task.targets + torch.from_numpy(rng.integers(1, classes, len(wrong)))) % classes
    labels = torch.where(wrong, other, task.targets)
    loss, logits, _, rows, _ = held_out_posterior(basis.project(task.features, labels, classes), seed)
    posteriors = {"self-confidence": logits.softmax(1), "balanced posterior": balanced_posterior(loss, logits)}
    for method, posterior in posteriors.items():
        mean, images = mean_by_image(posterior, rows)
        score, is_wrong = mean.gather(1, labels[images][:, None])[:, 0], wrong[images]
        worst = torch.zeros_like(is_wrong).index_fill_(0, score.argsort()[: len(score) // 10], True)
        tail = (task.targets[images] >= classes - 3) & ~is_wrong
        row = {"method": method, "auroc": auroc(-score[:, None], is_wrong.long()[:, None])[0]}
        row |= {"clean_tail": int(tail.sum()), "clean_tail_in_worst_tenth": int((tail & worst).sum())}
        yield row | {"wrong_in_worst_tenth": is_wrong[worst].double().mean()}


def unknown(task: Task, seed: int) -> Iterator[Row]:
    """Yield the AUROC of each score between test images of a class left out of training and of the others."""
    for left_out in range(0, task.classes, max(task.classes // 10, 1)):
        known = task.targets != left_out
        features, targets = task.features[known], task.targets[known]
        targets = targets - (targets > left_out).long()
        basis, classes = Basis.fit(features), task.classes - 1
        train = basis.project(features, targets, classes)
        test = basis.project(task.test_features, task.test_targets, classes)
        folds = repeated_folds(targets, classes, FOLDS, seed, repeats=1)
        held_out = held_out_logits(train, folds, CANDIDATE, PATH)
        loss, logits = solve(train, test.features)
        highest = balanced_posterior(loss, held_out.logits).max(1).values
        familiarity = fit_familiarity(features, targets, highest, folds)
        posterior = balanced_posterior(loss, logits)
        distance = nearest(familiarity.project(task.test_features), familiarity.means)
        scores = {"largest softmax probability": -logits.softmax(1).max(1).values}
        scores |= {"largest balanced posterior": -posterior.max(1).values, "spherical Mahalanobis distance": distance}
        scores["lt_cb"] = familiarity.unknown(task.test_features, posterior)
        is_unknown = task.test_targets == left_out
        for method, score in scores.items():
            row: Row = {"left_out": left_out, "method": method}
            row["auroc"] = auroc(score.double()[:, None], is_unknown.long()[:, None])[0]
            if method == "lt_cb":
                flagged = score >= 0.95
                row |= {"known_flagged": flagged[~is_unknown].double().mean()}
                row |= {"unknown_flagged": flagged[is_unknown].double().mean()}
            yield row


QUESTIONS: dict[str, Callable[[Task, int], Iterator[Row]]] = {"sets": sets, "suspects": suspects, "unknown": unknown}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=QUESTIONS)
    for name in ("cifar10", "cifar100", "fashion"):
        parser.add_argument(f"--{name}", help="folder; without it, the data set is skipped")
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args()
    lines: list[Row] = []
    for name, root in zip(TASKS, (options.cifar10, options.cifar100, options.fashion), strict=True):
        for seed in SEEDS if root is not None else ():
            for row in QUESTIONS[options.question](load(name, root, seed), seed):
                values = {k: round(float(v), 4) if isinstance(v, Tensor) else v for k, v in row.items()}
                lines.append({"data": name, "subset_seed": seed, **values})
                print(lines[-1], flush=True)
    with (options.out / f"answers_{options.question}.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(key for line in lines for key in line)))
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    main()
