"""Cross-validation of linear heads, the choice among them, and its temperature."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from lt_cb.data.images import progress
from lt_cb.errors import InputError
from lt_cb.heads.recipes import BALANCED, POST_HOC, SIGMOID, SOFTMAX, Candidate, Recipe
from lt_cb.heads.solve import BLOCK_ROWS, FeatureSet, solve_path
from lt_cb.lab.report.extra import stats
from lt_cb.longtail.groups import count_groups, group_folds
from lt_cb.longtail.several import stratify
from lt_cb.longtail.subset import count_labels
from lt_cb.losses import Loss
from lt_cb.losses.prior import assumed_prior, log_posterior
from lt_cb.metrics import average_precision

if TYPE_CHECKING:  # an optional part
    from lt_cb.lab.cluster import Cluster

Result = TypeVar("Result")
REPEATS = 3  # the choice depends on the folds, and heads are cheap
DEFAULT_L2 = 0.3  # L2 strength of the default choice
TIE = 1e-9  # smaller differences of scores are rounding
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
COMPARISON_TOLERANCE = 1e-4  # heads that are only compared need not be as exact as the final one


def stratified_folds(targets: Tensor, num_classes: int, folds: int, seed: int, groups: Tensor | None = None) -> Tensor:
    """Return the fold of each training image in [0, K), int64 of shape (N,), or -1 if it is always trained on.

    The images of a class are spread evenly over the folds; a class with fewer images than folds is held out in as many
    folds as it has images. A class of one image, or with several labels of fewer images than folds, is never held out.
    Targets are class indices, int64 of shape (N,), or multi-hot int8 of shape (N, C). Raise InputError if a fold is
    empty, or fewer than two classes are held out.

    With groups, int64 of shape (N,), each group is in one fold (``lt_cb.longtail.groups``).
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
            if len(members) > 1:
                rng = np.random.default_rng([seed, label])
                # a random first fold for each class, so that the larger folds differ between classes
                places = (np.arange(len(members)) + rng.integers(folds)) % folds
                assigned[torch.from_numpy(rng.permutation(members))] = torch.from_numpy(places)
    _check_folds(assigned, targets, num_classes, folds, groups)
    return assigned


def _check_folds(assigned: Tensor, targets: Tensor, num_classes: int, folds: int, groups: Tensor | None) -> None:
    """Raise InputError if fewer than two classes are held out, or a fold is empty."""
    sizes = count_labels(targets.numpy(), num_classes)
    if groups is not None:
        sizes = count_groups(targets.numpy(), groups.numpy(), num_classes)
    unit = "training images" if groups is None else "groups of training images"
    least = folds if targets.ndim == 2 and groups is None else 2
    held_out = sum(count > 0 for count in count_labels(targets[assigned >= 0].numpy(), num_classes))
    second, largest = sorted([0, 0, *sizes])[-2:]
    if held_out < 2:
        fewer = f"set --folds {min(second, folds - 1)} or fewer, or "
        advice = f"{fewer if least == folds and second > 1 else ''}add images"
        raise InputError(
            f"{held_out} of {num_classes} classes have {least} {unit} or more, but at least 2 are needed to choose by: "
            f"{advice}."
        )
    if largest < folds or len(set(assigned.tolist()) - {-1}) < folds:
        advice = f"set --folds {min(largest, folds - 1)} or fewer, or add images"
        raise InputError(f"no class has {folds} {unit}, one for each fold: {advice}.")


@dataclass
class Trial:
    """Results of all candidates on held-out images, by class and fold, for J repeats of K folds."""

    counts: Tensor  #: held-out images, int64 of shape (J K, C)
    measured: dict[Candidate, Tensor]  #: correct images, int64, or average precision, float64, of shape (J K, C)

    def rates(self, candidate: Candidate) -> Tensor:
        """Return accuracy, or average precision, by fold and class, float64 of shape (J K, C)."""
        values = self.measured[candidate]
        return values if values.is_floating_point() else values.double() / self.counts

    def scores(self) -> dict[Candidate, list[float]]:
        """Return the mean rate of each candidate in each fold, over the classes that are ever held out.

        A class that some folds do not hold out counts more in the others, so that the mean over the folds is the mean
        over the classes. The score of a single fold can then be above 1.
        """
        held_out = self.counts > 0
        times = held_out.sum(0)
        weights = held_out * len(held_out) / times.clamp(min=1) / (times > 0).sum()
        return {c: (self.rates(c).where(held_out, 0.0) * weights).sum(1).tolist() for c in self.measured}


def measure_all(
    train: FeatureSet, held_out: FeatureSet, recipes: Sequence[Recipe], l2_strengths: Sequence[float]
) -> dict[Candidate, Tensor]:
    """Solve every recipe at every L2 strength on training images, and measure the heads on held-out images.

    Return correct images, int64, or with several labels an image the average precision, float64, of shape (C,).
    """
    losses = {recipe: recipe.make(train.class_counts, train.num_unlabelled) for recipe in recipes}
    solved = [recipe for recipe in recipes if recipe.loss != POST_HOC]  # post-hoc adjustment needs no solve
    path = solve_path(train, [losses[recipe] for recipe in solved], l2_strengths, COMPARISON_TOLERANCE)
    targets, measured = held_out.targets, dict[Candidate, Tensor]()
    rows = len(targets) if targets.ndim == 2 else BLOCK_ROWS  # average precision needs all scores of a class at once
    blocks = list(zip(torch.split(held_out.features, rows), torch.split(targets, rows), strict=True))
    for l2_strength, heads in path.items():
        for features, labels in blocks:
            logits = dict(zip(solved, heads.logits(features), strict=True))
            for recipe in recipes:
                adjusted = losses[recipe].adjust(logits[SOFTMAX if recipe.loss == POST_HOC else recipe])
                if labels.ndim == 2:
                    values = average_precision(adjusted, labels)
                else:
                    values = labels[adjusted.argmax(1) == labels].bincount(minlength=train.num_classes)
                candidate = Candidate(recipe, l2_strength)
                measured[candidate] = measured[candidate] + values if candidate in measured else values
    return measured


def repeated_folds(
    targets: Tensor,
    num_classes: int,
    folds: int,
    seed: int,
    groups: Tensor | None = None,
    repeats: int = REPEATS,
) -> Tensor:
    """Return `stratified_folds` of J successive seeds, int64 of shape (J, N); raise InputError as they do."""
    return torch.stack([stratified_folds(targets, num_classes, folds, seed + j, groups) for j in range(repeats)])


def cross_validate(
    data: FeatureSet,
    folds: Tensor,
    recipes: Sequence[Recipe],
    l2_strengths: Sequence[float],
    cluster: "Cluster | None" = None,
) -> Trial:
    """Hold out each fold of `repeated_folds` once, solve all heads on the other images, and measure them on it."""
    splits = splits_of(folds)
    counts = [data.select(held_out).class_counts for held_out in splits]
    measured = _each(cluster, _measure_fold, splits, data, recipes, l2_strengths)
    results = list(progress(measured, "Heads of folds", len(splits)))
    return Trial(torch.tensor(counts), {c: torch.stack([result[c] for result in results]) for c in results[0]})


def _measure_fold(
    held_out: Tensor, data: FeatureSet, recipes: Sequence[Recipe], l2_strengths: Sequence[float]
) -> dict[Candidate, Tensor]:
    # the basis of the features uses no targets, and may have seen the held-out images
    return measure_all(data.select(~held_out), data.select(held_out), recipes, l2_strengths)


def _each(
    cluster: "Cluster | None",
    function: Callable[..., Result],
    items: Iterable[Any],
    *shared: Any,  # noqa: ANN401
) -> Iterable[Result]:
    """Yield a function of each item, computed by a cluster if there is one."""
    if cluster is not None:
        return cluster.map(function, items, *shared)
    return (function(item, *shared) for item in items)


def splits_of(folds: Tensor) -> list[Tensor]:
    """Return the held-out images of each fold, bool of shape (N,), repeat by repeat."""
    return [repeat == k for repeat in folds for k in range(int(repeat.max()) + 1)]


class HeldOut(NamedTuple):
    """Logits of held-out images: each image that a repeat of the folds holds out has a row for this repeat.

    M is the number of these images times the number of repeats. The rows are sorted by repeat, then by fold.
    """

    logits: Tensor  #: shape (M, C), without the post-hoc adjustment of the loss
    targets: Tensor  #: class indices, (M,), or multi-hot, (M, C)
    rows: Tensor  #: index of the training image, int64 of shape (M,)


def held_out_logits(
    data: FeatureSet,
    folds: Tensor,
    candidate: Candidate,
    l2_strengths: Sequence[float],
    cluster: "Cluster | None" = None,
) -> HeldOut:
    """Solve a candidate on all folds of `repeated_folds` again, and return the logits of the held-out images."""
    path = [value for value in l2_strengths if value >= candidate.l2_strength]  # the larger ones are warm starts
    splits = splits_of(folds)
    logits = list(_each(cluster, _logits_of_fold, splits, data, candidate, path))
    index = torch.cat([held_out.nonzero()[:, 0] for held_out in splits])
    return HeldOut(torch.cat(logits), data.targets[index], index)


def _logits_of_fold(held_out: Tensor, data: FeatureSet, candidate: Candidate, path: Sequence[float]) -> Tensor:
    train = data.select(~held_out)
    loss = candidate.recipe.make(train.class_counts, train.num_unlabelled)
    heads = solve_path(train, [loss], path, COMPARISON_TOLERANCE)[candidate.l2_strength]
    return heads.logits(data.features[held_out])[0]


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
    low: float  #: lower end of the 95 % interval of the gain, as if there had been no choice
    high: float  #: upper end of the interval
    default: Candidate  #: chosen unless another candidate is better by more than one standard error
    by_repeat: list[Candidate]  #: what each repeat of the folds alone chooses; empty without repeats

    @property
    def is_plain(self) -> bool:
        """Whether the chosen recipe is plain softmax or sigmoid."""
        return self.chosen.recipe == self.plain.recipe


def choose(scores: Mapping[Candidate, Sequence[float]], repeats: int = REPEATS) -> Choice:
    """Choose the default, unless another candidate is better by more than one standard error.

    The default is balanced softmax (logit adjustment with tau = 1) at the L2 strength nearest to ``DEFAULT_L2``; with
    several labels an image, or without balanced softmax, it is the plain loss at its best L2 strength. Of several
    better candidates, and if the default is worse than the plain loss, the candidate of the best mean is chosen.

    ``scores`` are in [0, 1], by fold and repeat by repeat, and have plain softmax or sigmoid. The standard errors are
    of paired differences, corrected for the overlap of the training images between folds (Nadeau and Bengio 2003).
    """
    means = {candidate: statistics.mean(values) for candidate, values in scores.items()}
    plain = _best(means, [c for c in means if c.recipe in (SOFTMAX, SIGMOID)])
    default = min((c for c in means if c.recipe == BALANCED), key=_steps_from_default, default=plain)
    overlap = 1 / (len(scores[plain]) // repeats - 1)  # held-out images per training image
    better = []
    for candidate in scores:
        gain, error = _paired(scores[candidate], scores[default], overlap)
        if gain > error + TIE:
            better.append(candidate)
    chosen = _best(means, better) if better else default
    if means[chosen] < means[plain] - TIE:
        chosen = _best(means, list(means))
    gain, error = _paired(scores[chosen], scores[plain], overlap)
    half = float(stats.t.ppf(0.975, len(scores[plain]) - 1)) * error
    by_repeat = []
    if repeats > 1:
        size = len(scores[plain]) // repeats
        for first in range(0, repeats * size, size):
            part = {candidate: values[first : first + size] for candidate, values in scores.items()}
            by_repeat.append(choose(part, repeats=1).chosen)
    return Choice(chosen, plain, gain, gain - half, gain + half, default, by_repeat)


def _best(means: Mapping[Candidate, float], among: Sequence[Candidate]) -> Candidate:
    """Return the candidate of the largest mean; of equal ones the one of the largest L2 strength."""
    highest = max(means[candidate] for candidate in among)
    return max((c for c in among if means[c] >= highest - TIE), key=lambda c: c.l2_strength)


def _steps_from_default(candidate: Candidate) -> float:
    """Return how many times larger or smaller an L2 strength is than the default, as a logarithm."""
    return abs(math.log(max(candidate.l2_strength, 1e-9) / DEFAULT_L2))


def _paired(a: Sequence[float], b: Sequence[float], overlap: float) -> tuple[float, float]:
    """Return the mean of the differences, and its corrected standard error."""
    differences = [left - right for left, right in zip(a, b, strict=True)]
    return statistics.mean(differences), statistics.stdev(differences) * math.sqrt(1 / len(differences) + overlap)
