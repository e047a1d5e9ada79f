"""Regret of ``lt-cb recommend``: its choice by folds of the training images against the best head of its grid.

    python benchmarks/heads.py --cifar10 cifar10 --cifar100 cifar100 --fashion fashion-mnist --out results

The folders of CIFAR have ``train`` and ``test`` with a folder of images for each class; Fashion-MNIST has its four
files. The backbone is EfficientNet-Lite0. A task is a data set with class counts and a subset seed. The scores of all
heads on each fold and on the test images go to a file of ``--scores`` for each task, and tasks with a file are skipped.
``--out`` gets two tables, made from these files without new solves:

- ``heads.csv``: a row a task with the balanced accuracy on the test images in percent, of the recommendation, of the
  best head of the grid, of fixed choices, and of `RIVALS`,
- ``heads_rules.csv``: the mean and largest regret of each rule of choice, by data set.
"""

import argparse
import csv
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lt_cb.data import LongTailedDataModule
from lt_cb.features import frozen_features
from lt_cb.hardware import processor
from lt_cb.heads.folds import COMPARISON_TOLERANCE, REPEATS, choose, cross_validate, measure_all, repeated_folds
from lt_cb.heads.recipes import BALANCED, Candidate, Recipe, make_recipes
from lt_cb.heads.setup import BETAS, LAMBDAS
from lt_cb.heads.setup import TAUS as DEFAULT_TAUS
from lt_cb.heads.solve import Basis, FeatureSet, solve_path
from lt_cb.losses import InverseFrequency, SoftmaxLoss
from lt_cb.module import LongTailedClassifier

FOLDS, SIZE = 5, 64
TASKS = {  # largest class, imbalance factors and subset seeds of each data set
    "digits": [(None, (10.0, 50.0), 4)],
    "cifar100_12": [(300, (60.0,), 4)],
    "cifar10": [(40, (2.0,), 3), (100, (10.0, 25.0), 3), (500, (10.0, 50.0, 100.0, 200.0), 2)],
    "fashion_mnist": [(40, (2.0,), 3), (100, (10.0, 25.0), 3), (500, (10.0, 100.0, 200.0), 2)],
    "cifar100": [(100, (50.0, 100.0), 2)],
}
FIXED = (0.03, 0.1, 0.3)  # lambda of balanced softmax without a choice
TAUS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
LOGISTIC = (*(10.0**exponent for exponent in range(-4, 4)), 3.0, 0.3, 0.03)  # lambda, 1 / (N C) of scikit-learn
RIDGE = tuple(10.0**exponent for exponent in range(-3, 7))  # alpha / N


class Score(NamedTuple):
    """Scores of a head: on each fold in [0, 1], and on the test images in percent."""

    folds: list[float]
    test: float


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
        "offline_lite0",
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


def read_scores(task: dict[str, Any]) -> dict[Candidate, Score]:
    """Return the scores of the heads of the default grid of ``recommend``."""
    grid = make_recipes(BETAS, (), DEFAULT_TAUS)
    heads = {}
    for head in task["heads"]:
        recipe = Recipe(head["loss"], tuple(tuple(option) for option in head["options"]), head["beta"])
        if recipe in grid:
            heads[Candidate(recipe, head["lambda"])] = Score(head["folds"], 100 * head["test"])
    return heads


def best_of(scores: Mapping[Candidate, Score], folds: int = FOLDS * REPEATS, **kinds: Any) -> Candidate:
    """Return the candidate of the largest mean over the first folds, among recipes of the given attributes."""
    among = [c for c in scores if all(getattr(c.recipe, name) in values for name, values in kinds.items())]
    return max(among, key=lambda c: statistics.mean(scores[c].folds[:folds]))


def unless(scores: Mapping[Candidate, Score], l2_strength: float, errors: float) -> Candidate:
    """Return balanced softmax, unless a head is better by more than a number of corrected standard errors."""
    default, better = Candidate(BALANCED, l2_strength), []
    for candidate, score in scores.items():
        gains = [own - other for own, other in zip(score.folds, scores[default].folds, strict=True)]
        error = statistics.stdev(gains) * math.sqrt(1 / len(gains) + 1 / (FOLDS - 1))
        if statistics.mean(gains) > errors * error:
            better.append(candidate)
    return max(better, key=lambda c: statistics.mean(scores[c].folds), default=default)


RULES: dict[str, Callable[[Mapping[Candidate, Score]], Candidate]] = {
    "recommend": lambda s: choose({c: score.folds for c, score in s.items()}).chosen,
    "arg-max of 3 x 5 folds": best_of,
    "arg-max of 5 folds": lambda s: best_of(s, FOLDS),
    "balanced softmax 0.3 unless better by half a standard error": lambda s: unless(s, 0.3, 0.5),
    "balanced softmax 0.1 unless better by a standard error": lambda s: unless(s, 0.1, 1.0),
    "balanced softmax, lambda by folds": lambda s: best_of(s, options=[BALANCED.options]),
    **{f"balanced softmax {v:g}": (lambda s, v=v: Candidate(BALANCED, v)) for v in FIXED},
    "class-balanced softmax by folds": lambda s: best_of(s, beta=BETAS),
    "softmax, lambda by folds": lambda s: best_of(s, beta=[None], loss=["SoftmaxLoss"]),
}


def row(task: dict[str, Any]) -> dict[str, Any]:
    """Return a row of ``heads.csv``."""
    scores = read_scores(task)
    choice = choose({candidate: score.folds for candidate, score in scores.items()})
    best = max(scores, key=lambda c: scores[c].test)
    line = {key: value for key, value in task.items() if key not in ("heads", "rivals")}
    line |= {"chosen": str(choice.chosen), "repeats_that_choose_it": choice.by_repeat.count(choice.chosen)}
    line |= {"gain_by_folds": 100 * choice.gain, "low": 100 * choice.low, "high": 100 * choice.high}
    line |= {"recommended": scores[choice.chosen].test, "best": scores[best].test, "best_is": str(best)}
    line |= {f"balanced_softmax_{v:g}": scores[Candidate(BALANCED, v)].test for v in FIXED}
    line |= {"cb_softmax": scores[RULES["class-balanced softmax by folds"](scores)].test}
    line |= {"softmax": scores[choice.plain].test}
    for rival, found in task["rivals"].items():
        line |= {rival: 100 * found["test"], f"{rival}_setting": found["setting"]}
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in line.items()}


def rules(tasks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the regret of each rule: mean of each data set, mean over data sets, and the largest of a task."""
    table = []
    for name, rule in RULES.items():
        regrets: dict[str, list[float]] = {}
        for task in tasks:
            scores = read_scores(task)
            regret = max(score.test for score in scores.values()) - scores[rule(scores)].test
            regrets.setdefault(task["data"], []).append(regret)
        means = {data: statistics.mean(values) for data, values in regrets.items()}
        largest = max(max(values) for values in regrets.values())
        line = {"rule": name, "mean": statistics.mean(means.values()), "largest": largest, **means}
        table.append({key: round(value, 3) if isinstance(value, float) else value for key, value in line.items()})
    return table


def write(file: Path, table: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV."""
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cifar10", "cifar100", "cifar100_12", "fashion"):
        parser.add_argument(f"--{name}", help="folder; without it, the data set is skipped")
    parser.add_argument("--scores", type=Path, default=Path("scores"), help="folder of the scores by fold")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the tables")
    parser.add_argument("--only", nargs="*", default=list(TASKS), help="data sets to use")
    parser.add_argument("--largest", type=int, default=10**9, help="skip tasks whose largest class is larger")
    options = parser.parse_args()
    roots = {**vars(options), "fashion_mnist": options.fashion, "digits": "."}
    options.scores.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        for n_max, factors, seeds in TASKS[name]:
            for factor, seed in ((f, s) for f in factors for s in range(seeds)):
                file = options.scores / f"{name}_{n_max}_{factor:g}_{seed}.json"
                if roots[name] is not None and not file.is_file() and (n_max or 0) <= options.largest:
                    made = solve(name, roots[name], n_max, factor, seed)
                    file.write_text(json.dumps(made))
                    print(file.name, made["training_images"], made["cpu_seconds"], flush=True)
    tasks = [json.loads(file.read_text()) for file in options.scores.glob("*.json")]
    order = list(TASKS)
    keys = ("n_max", "imbalance_factor", "subset_seed")
    tasks.sort(key=lambda task: [order.index(task["data"]), *(task[key] or 0 for key in keys)])
    write(options.out / "heads.csv", [row(task) for task in tasks])
    write(options.out / "heads_rules.csv", rules(tasks))


if __name__ == "__main__":
    main()
