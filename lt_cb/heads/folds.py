"""Cross-validation of linear heads, the choice among them, and its temperature."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lt_cb.data.images import progress
from lt_cb.errors import InputError
from lt_cb.heads.recipes import POST_HOC, SIGMOID, SOFTMAX, Candidate, Recipe
from lt_cb.heads.solve import FeatureSet, solve_path
from lt_cb.lab.report.tables import half_width
from lt_cb.longtail.groups import count_groups, group_folds
from lt_cb.longtail.several import stratify
from lt_cb.longtail.subset import count_labels
from lt_cb.losses import Loss
from lt_cb.losses.prior import assumed_prior, log_posterior
from lt_cb.metrics import average_precision

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
COMPARISON_TOLERANCE = 1e-4  # heads that are only compared need not be as exact as the final one


def stratified_folds(targets: Tensor, num_classes: int, folds: int, seed: int, groups: Tensor | None = None) -> Tensor:
    """Return the fold of each training image in [0, K), int64 of shape (N,), or -1 if it is always trained on.

    The images of a class are spread evenly over all folds. A class with fewer images than folds is never held out;
    raise InputError if fewer than two classes remain. Targets are class indices, int64 of shape (N,), or multi-hot int8
    of shape (N, C).

    With groups, int64 of shape (N,), each group is in one fold (``lt_cb.longtail.groups``). A class in fewer groups
    than folds is then held out in some folds only.
    """
    assigned = torch.full((len(targets),), -1)
    if groups is not None:
        assigned = torch.from_numpy(group_folds(targets.numpy(), groups.numpy(), num_classes, folds, seed))
    elif targets.ndim == 2:
        labels = targets.numpy()
        frequent = (labels == 1).sum(0) >= folds
        left = np.flatnonzero(~(labels[:, ~frequent] == 1).any(1))
        for k in range(folds - 1):
            others, held_out = stratify(labels[left], 1 / (folds - k), seed)
            assigned[left[held_out]] = k
            left = left[others]
        assigned[left] = folds - 1
    else:
        for label in range(num_classes):
            members = (targets == label).nonzero()[:, 0].numpy()
            if len(members) >= folds:
                rng = np.random.default_rng([seed, label])
                # a random first fold for each class, so that the larger folds differ between classes
                places = (np.arange(len(members)) + rng.integers(folds)) % folds
                assigned[torch.from_numpy(rng.permutation(members))] = torch.from_numpy(places)
    counts = [count_labels(targets[assigned == k].numpy(), num_classes) for k in range(folds)]
    num_held_out = int((torch.tensor(counts) > 0).all(0).sum())
    if num_held_out < 2:
        sizes, unit = count_labels(targets.numpy(), num_classes), "training images"
        if groups is not None:
            sizes, unit = count_groups(targets.numpy(), groups.numpy(), num_classes), "groups of training images"
        most = sorted([0, 0, *sizes])[-2]  # images, or groups, of the second largest class
        advice = f"set --folds {min(most, folds - 1)} or fewer, or add images" if most > 1 else "add images"
        raise InputError(
            f"{num_held_out} of {num_classes} classes have {folds} {unit} or more, but at least 2 are needed "
            f"to choose by: {advice}."
        )
    return assigned


@dataclass
class Trial:
    """Results of all candidates on held-out images, by fold and class."""

    counts: Tensor  #: held-out images, int64 of shape (K, C)
    measured: dict[Candidate, Tensor]  #: correct images, int64, or average precision, float64, of shape (K, C)

    def rates(self, candidate: Candidate) -> Tensor:
        """Return accuracy, or average precision, by fold and class, float64 of shape (K, C)."""
        values = self.measured[candidate]
        return values if values.is_floating_point() else values.double() / self.counts

    def scores(self) -> dict[Candidate, list[float]]:
        """Return the mean rate of each candidate in each fold, over the classes that every fold holds out."""
        classes = (self.counts > 0).all(0)
        return {candidate: self.rates(candidate)[:, classes].mean(1).tolist() for candidate in self.measured}


def measure_all(
    train: FeatureSet, held_out: FeatureSet, recipes: Sequence[Recipe], l2_strengths: Sequence[float]
) -> dict[Candidate, Tensor]:
    """Solve every recipe at every L2 strength on training images, and measure the heads on held-out images.

    Return correct images, int64, or with several labels an image the average precision, float64, of shape (C,).
    """
    losses = {recipe: recipe.make(train.class_counts, train.num_unlabelled) for recipe in recipes}
    solved = [recipe for recipe in recipes if recipe.loss != POST_HOC]  # post-hoc adjustment needs no solve
    path = solve_path(train, [losses[recipe] for recipe in solved], l2_strengths, COMPARISON_TOLERANCE)
    targets, measured = held_out.targets, {}
    for l2_strength, heads in path.items():
        logits = dict(zip(solved, heads.logits(held_out.features), strict=True))
        for recipe in recipes:
            adjusted = losses[recipe].adjust(logits[SOFTMAX if recipe.loss == POST_HOC else recipe])
            if targets.ndim == 2:
                values = average_precision(adjusted, targets)
            else:
                values = targets[adjusted.argmax(1) == targets].bincount(minlength=train.num_classes)
            measured[Candidate(recipe, l2_strength)] = values
    return measured


def cross_validate(data: FeatureSet, folds: Tensor, recipes: Sequence[Recipe], l2_strengths: Sequence[float]) -> Trial:
    """Hold out each fold of `stratified_folds` once, solve all heads on the other images, and measure them on it."""
    # the basis of the features uses no targets, and may have seen the held-out images
    number = int(folds.max()) + 1
    counts, results = [], []
    for k in progress(range(number), "Heads of folds", number):
        held_out = data.select(folds == k)
        counts.append(held_out.class_counts)
        results.append(measure_all(data.select(folds != k), held_out, recipes, l2_strengths))
    return Trial(torch.tensor(counts), {c: torch.stack([result[c] for result in results]) for c in results[0]})


def held_out_logits(
    data: FeatureSet, folds: Tensor, candidate: Candidate, l2_strengths: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Solve a candidate on all folds again; return held-out logits, (M, C), and targets, (M,) or (M, C)."""
    path = [value for value in l2_strengths if value >= candidate.l2_strength]  # the larger ones are warm starts
    logits, targets = [], []
    for k in range(int(folds.max()) + 1):
        train, held_out = data.select(folds != k), data.select(folds == k)
        loss = candidate.recipe.make(train.class_counts, train.num_unlabelled)
        heads = solve_path(train, [loss], path, COMPARISON_TOLERANCE)[candidate.l2_strength]
        logits.append(heads.logits(held_out.features)[0])
        targets.append(held_out.targets)
    return torch.cat(logits), torch.cat(targets)


def fit_temperature(loss: Loss, logits: Tensor, targets: Tensor) -> float:
    """Return the temperature in [0.05, 20] that minimises the cross-entropy of held-out images (Guo et al. 2017)."""
    # each class counts by its share of the prior that the loss assumes
    weights = (assumed_prior(loss) / targets.bincount(minlength=logits.shape[1]).clamp(min=1)).float()[targets]

    def cross_entropy(log_temperature: float) -> float:
        scaled = temperature_scaled(loss, logits, math.exp(log_temperature))
        log_p = log_posterior(loss, scaled).log_softmax(1)
        return float(-(weights * log_p.gather(1, targets[:, None])[:, 0]).sum())

    low, high = math.log(0.05), math.log(20.0)
    while high - low > 1e-3:  # golden-section search
        left, right = high - GOLDEN_RATIO * (high - low), low + GOLDEN_RATIO * (high - low)
        low, high = (low, right) if cross_entropy(left) < cross_entropy(right) else (left, high)
    return math.exp((low + high) / 2)


def temperature_scaled(loss: Loss, logits: Tensor, temperature: float) -> Tensor:
    """Return logits, (M, C), such that ``loss.adjust`` gives the adjusted input divided by the temperature."""
    shift = loss.adjust(torch.zeros_like(logits[:1]))
    return (logits + shift) / temperature - shift


class Choice(NamedTuple):
    """The chosen candidate, and its gain over plain softmax or sigmoid."""

    chosen: Candidate
    plain: Candidate  #: plain softmax, or sigmoid, at its best L2 strength
    gain: float  #: score of ``chosen`` minus score of ``plain``, in [-1, 1]
    low: float  #: lower end of the 95 % interval of the gain (Student's t, paired by fold)
    high: float  #: upper end of the interval

    @property
    def is_plain(self) -> bool:
        """Whether the chosen recipe is plain softmax or sigmoid."""
        return self.chosen.recipe == self.plain.recipe


def choose(scores: Mapping[Candidate, Sequence[float]]) -> Choice:
    """Choose the simplest recipe, at its best setting, among candidates within one standard error of the best.

    ``scores`` are in [0, 1], by fold, and have plain softmax or sigmoid. The standard error belongs to the difference,
    paired by fold. A few folds of few images are a weak test: the gain over plain softmax need not be significant.
    """
    means = {candidate: statistics.mean(values) for candidate, values in scores.items()}
    best = max(means, key=lambda c: means[c])
    near_best = []
    for candidate, values in scores.items():
        losses = [a - b for a, b in zip(scores[best], values, strict=True)]
        if statistics.mean(losses) <= statistics.stdev(losses) / math.sqrt(len(losses)):
            near_best.append(candidate)
    chosen = min(near_best, key=lambda c: (c.recipe.complexity, -means[c]))
    plain = max((c for c in means if c.recipe in (SOFTMAX, SIGMOID)), key=lambda c: means[c])
    gains = [a - b for a, b in zip(scores[chosen], scores[plain], strict=True)]
    gain, half = statistics.mean(gains), half_width(gains)
    return Choice(chosen, plain, gain, gain - half, gain + half)
