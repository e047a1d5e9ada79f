"""Stratified folds of the training images, the grid of heads that is tried on them, and the choice."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lt_cb import losses
from lt_cb.data.images import progress
from lt_cb.longtail.several import stratify
from lt_cb.longtail.subset import count_labels
from lt_cb.errors import InputError, check_at_least
from lt_cb.heads.solve import rows_of, solve_at, solve_path
from lt_cb.losses import EffectiveNumber, Loss
from lt_cb.metrics import average_precision
from lt_cb.lab.report.tables import half_width

GOLDEN = (math.sqrt(5) - 1) / 2
ROUGH = 1e-4  # tolerance of heads that are only compared
NAMES = {"SoftmaxLoss": "softmax", "FocalLoss": "focal", "PostHocLogitAdjustment": "logit adjustment"}
NAMES |= {"SigmoidLoss": "sigmoid"}
SIGNS = {"gamma": "γ", "tau": "τ"}
Options = tuple[tuple[str, float], ...]
WeightOf = Literal["sample", "label", "positive"]


class Recipe(NamedTuple):
    """A loss with its options, and how simple it is.

    Attributes:
        loss: name of a class of `lt_cb.losses`.
        options: of it, beside class counts and weighting.
        beta: of `EffectiveNumber`; None without a weighting.
        weight_of: of a loss of several labels an image, what its class weights are of.
        complexity: 0 for plain softmax, or sigmoid; one more for the prior, and for each of beta and gamma.
    """

    loss: str
    complexity: int
    options: Options = ()
    beta: float | None = None
    weight_of: WeightOf | None = None

    def make(self, class_counts: Sequence[int]) -> Loss:
        """Return the loss for the class counts, shape (C,)."""
        weighting = None if self.beta is None else EffectiveNumber(self.beta)
        options: dict[str, Any] = dict(self.options)
        if self.weight_of is not None:
            options["weight_of"] = self.weight_of
        loss: Loss = getattr(losses, self.loss)(class_counts, weighting=weighting, **options)
        return loss

    def arguments(self) -> list[str]:
        """Return what tells ``lt-cb fit`` of it."""
        words = [f"--model.loss=lt_cb.losses.{self.loss}"]
        words += [f"--model.loss.{name}={value}" for name, value in self.options]
        if self.beta is not None:
            words += ["--model.loss.weighting=lt_cb.losses.EffectiveNumber", f"--model.loss.weighting.beta={self.beta}"]
        if self.weight_of is not None:
            words.append(f"--model.loss.weight_of={self.weight_of}")
        return words

    def __str__(self) -> str:
        """Show loss, options and beta."""
        shown = [f"{SIGNS.get(name, name)} {value:g}" for name, value in self.options]
        of = "" if self.weight_of is None else f" by {self.weight_of}"
        weights = [] if self.beta is None else [f"CB β {self.beta:g}{of}"]
        return ", ".join([" ".join([NAMES.get(self.loss, self.loss), *shown]), *weights])


SOFTMAX, SIGMOID = Recipe("SoftmaxLoss", 0), Recipe("SigmoidLoss", 0)
POST_HOC = "PostHocLogitAdjustment"  # trained as softmax: its tau costs no solve


def recipes(
    betas: Sequence[float], gammas: Sequence[float], taus: Sequence[float], multi_label: bool = False
) -> list[Recipe]:
    """Return what is tried: softmax, focal loss, each class-balanced, and post-hoc logit adjustment.

    Of several labels an image: sigmoid and focal loss, each also with class-balanced weights of samples and of labels.

    As the bias of a head is not penalised, balanced softmax and the logit-adjusted loss have the weights of plain
    softmax, and its bias shifted by the prior: they are post-hoc adjustment, and need no solve.

    Args:
        betas: of the effective number, each in [0, 1).
        gammas: of the focal loss, each at least 0.
        taus: strengths of the prior that is taken off the logits of a softmax head, each at least 0.
        multi_label: whether an image may have several labels.

    Raises:
        InputError: if a value is out of range.
    """
    for beta in betas:
        EffectiveNumber(beta)
    for name, values in (("gamma", gammas), ("tau", taus)):
        for value in values:
            check_at_least(name, value, 0, "0 gives softmax." if name == "tau" else "0 gives the sigmoid loss.")
    if multi_label:
        plain = [SIGMOID, *[Recipe("FocalLoss", 2, (("gamma", gamma),)) for gamma in gammas]]
        of: tuple[WeightOf, ...] = ("sample", "label")
        weighted = [
            recipe._replace(complexity=3 if recipe.options else 2, beta=beta, weight_of=weight_of)
            for recipe in plain
            for beta in betas
            for weight_of in of
        ]
        return [*plain, *weighted]
    found = [SOFTMAX]
    found += [Recipe(POST_HOC, 1, (("tau", tau),)) for tau in taus if tau]
    found += [Recipe("SoftmaxLoss", 2, (), beta) for beta in betas]
    for gamma in gammas:
        found += [Recipe("FocalLoss", 2, (("gamma", gamma),))]
        found += [Recipe("FocalLoss", 3, (("gamma", gamma),), beta) for beta in betas]
    return found


class Candidate(NamedTuple):
    """A recipe at an L2 strength."""

    recipe: Recipe
    strength: float

    def __str__(self) -> str:
        """Show both."""
        return f"{self.recipe}, λ {self.strength:g}"


def stratified_folds(targets: Tensor, num_classes: int, folds: int, seed: int) -> Tensor:
    """Return the fold of each training image, int64 of shape (N,) in [0, folds), -1 for those always trained on.

    The images of a class are spread over all folds, in numbers that differ by at most one. A class with fewer images
    than there are folds is in every training fold, as it could not be held out of each.

    Args:
        targets: class indices, int64 of shape (N,), or of several labels int8 of shape (N, C).
        num_classes: C, the number of classes.
        folds: at least 2.
        seed: of the choice.

    Raises:
        InputError: if there are fewer than 2 folds, or fewer than 2 classes to hold out of.
    """
    if folds < 2:
        raise InputError(f"folds is {folds}, but must be at least 2.")
    if targets.ndim == 2:
        labels = targets.numpy()
        frequent = (labels == 1).sum(0) >= folds
        assigned = torch.full((len(labels),), -1)
        left = np.flatnonzero(~(labels[:, ~frequent] == 1).any(1))
        for k in range(folds - 1):
            others, part = stratify(labels[left], 1 / (folds - k), seed)
            assigned[left[part]] = k
            left = left[others]
        assigned[left] = folds - 1
        counted = np.array([count_labels(labels[(assigned == k).numpy()], num_classes) for k in range(folds)])
        held = int((counted > 0).all(0).sum())
    else:
        assigned, held = torch.full_like(targets, -1), 0
        for label in range(num_classes):
            members = (targets == label).nonzero()[:, 0].numpy()
            if len(members) >= folds:
                rng = np.random.default_rng([seed, label])
                places = (np.arange(len(members)) + rng.integers(folds)) % folds  # rests fall to other folds by class
                assigned[torch.from_numpy(rng.permutation(members))] = torch.from_numpy(places)
                held += 1
    if held < 2:
        raise InputError(
            f"{held} of {num_classes} classes have {folds} training images or more, but at least 2 are needed to "
            "choose by: lower --folds, or add images."
        )
    return assigned


@dataclass
class Trial:
    """What all candidates do on held-out images.

    Attributes:
        measured: of each candidate, by fold and class, shape (K, C): images that it predicts rightly, int64, or of
            several labels the average precision, float64.
        counted: held-out images of each class, by fold, int64 of shape (K, C).
    """

    counted: Tensor
    measured: dict[Candidate, Tensor] = field(default_factory=dict)

    def rates(self, candidate: Candidate) -> Tensor:
        """Return accuracy, or of several labels average precision, by fold and class, float64 of shape (K, C)."""
        values = self.measured[candidate]
        return values if values.is_floating_point() else values.double() / self.counted

    def scores(self) -> dict[Candidate, list[float]]:
        """Return the mean over the classes that are held out of, for each candidate in each fold."""
        held = (self.counted > 0).all(0)
        return {candidate: self.rates(candidate)[:, held].mean(1).tolist() for candidate in self.measured}


def try_all(
    features: Tensor,
    targets: Tensor,
    num_classes: int,
    shown: tuple[Tensor, Tensor],
    tried: Sequence[Recipe],
    strengths: Sequence[float],
    variances: Tensor | None = None,
) -> dict[Candidate, Tensor]:
    """Solve all heads, and return how many images of each class they predict rightly, int64 of shape (C,).

    Of several labels an image, return the average precision of each class, float64 of shape (C,).

    Args:
        features: float32, shape (N, D), as `Basis.project` returns them.
        targets: class indices, int64 of shape (N,), or of several labels int8 of shape (N, C).
        num_classes: C, the number of classes.
        shown: features and targets of other images, to predict.
        tried: recipes, plain softmax or sigmoid among them.
        strengths: values of lambda, each at least 0.
        variances: of the columns of the features.
    """
    counts = count_labels(targets.numpy(), num_classes)
    made = {recipe: recipe.make(counts) for recipe in tried}
    solved = [recipe for recipe in tried if recipe.loss != POST_HOC]
    right = {}
    for strength, heads in solve_path(
        features, targets, [made[recipe] for recipe in solved], strengths, variances, ROUGH
    ).items():
        logits = dict(zip(solved, heads.logits(shown[0]), strict=True))
        for recipe in tried:
            adjusted = made[recipe].adjust(logits[SOFTMAX if recipe.loss == POST_HOC else recipe])
            if targets.ndim == 2:
                measured = average_precision(adjusted, shown[1])
            else:
                measured = shown[1][adjusted.argmax(1) == shown[1]].bincount(minlength=num_classes)
            right[Candidate(recipe, strength)] = measured
    return right


def cross_validate(
    features: Tensor,
    targets: Tensor,
    num_classes: int,
    folds: Tensor,
    tried: Sequence[Recipe],
    strengths: Sequence[float],
    variances: Tensor | None = None,
) -> Trial:
    """Solve all heads on all folds but one, and count what they get right on that one.

    Args:
        features: as `Basis.project` returns those of all training images; it looks at no targets, so that it may be of
            the held-out ones too.
        targets: as of `try_all`, like all that is not said here.
        num_classes: C, the number of classes.
        folds: as `stratified_folds` returns them.
        tried: recipes.
        strengths: values of lambda.
        variances: of the columns of the features.
    """
    number = int(folds.max()) + 1
    results: dict[Candidate, list[Tensor]] = {}
    for k in progress(range(number), "Heads of folds", number):
        held = folds == k
        shown = rows_of(features, held), targets[held]
        right = try_all(rows_of(features, ~held), targets[~held], num_classes, shown, tried, strengths, variances)
        for candidate, hits in right.items():
            results.setdefault(candidate, []).append(hits)
    counted = torch.tensor([count_labels(targets[folds == k].numpy(), num_classes) for k in range(number)])
    return Trial(counted, {candidate: torch.stack(rows) for candidate, rows in results.items()})


def held_out_logits(
    features: Tensor,
    targets: Tensor,
    num_classes: int,
    folds: Tensor,
    candidate: Candidate,
    strengths: Sequence[float],
    variances: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the logits of a candidate for all held-out images, (M, C), and their targets, (M,) or (M, C).

    Args:
        features: as of `cross_validate`, like all that is not said here.
        targets: class indices, int64 of shape (N,).
        num_classes: C, the number of classes.
        folds: of the images.
        candidate: whose heads are solved again.
        strengths: stronger ones, from which its heads start.
        variances: of the columns of the features.
    """
    recipe, strength = candidate
    logits, labels = [], []
    for k in range(int(folds.max()) + 1):
        held = folds == k
        y = targets[~held]
        loss = recipe.make(count_labels(y.numpy(), num_classes))
        heads = solve_at(rows_of(features, ~held), y, loss, strength, strengths, variances, ROUGH)
        logits.append(heads.logits(rows_of(features, held))[0])
        labels.append(targets[held])
    return torch.cat(logits), torch.cat(labels)


def fit_temperature(loss: Loss, logits: Tensor, targets: Tensor) -> float:
    """Return the T, in [0.05, 20], at which the posteriors of `cooled` logits fit best (Guo et al. 2017).

    Args:
        loss: the prior it assumes says how much a class counts.
        logits: of images that were held out, shape (M, C).
        targets: class indices, int64 of shape (M,).
    """
    weights = (loss.assumed_prior() / targets.bincount(minlength=logits.shape[1]).clamp(min=1)).float()[targets]

    def entropy(log_t: float) -> float:
        posteriors = loss.log_posterior(cooled(loss, logits, math.exp(log_t))).log_softmax(1)
        return float(-(weights * posteriors.gather(1, targets[:, None])[:, 0]).sum())

    low, high = math.log(0.05), math.log(20.0)
    while high - low > 1e-3:  # golden section
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        low, high = (low, right) if entropy(left) < entropy(right) else (left, high)
    return math.exp((low + high) / 2)


def cooled(loss: Loss, logits: Tensor, temperature: float) -> Tensor:
    """Return logits, (M, C), which the loss adjusts to what it would adjust these to, divided by the temperature."""
    shift = loss.adjust(torch.zeros_like(logits[:1]))
    return (logits + shift) / temperature - shift


class Choice(NamedTuple):
    """What to train the head with, and what it is worth.

    Attributes:
        chosen: the candidate.
        plain: plain softmax, or sigmoid, at its best strength.
        gain: of ``chosen`` over ``plain``, in balanced accuracy, or mean average precision, in [-1, 1].
        low: of the 95 % interval of the gain, of Student's t, paired by fold.
        high: of it.
    """

    chosen: Candidate
    plain: Candidate
    gain: float
    low: float
    high: float

    @property
    def is_plain(self) -> bool:
        """Whether plain softmax, or sigmoid, is chosen."""
        return self.chosen.recipe == self.plain.recipe


def choose(scores: Mapping[Candidate, Sequence[float]]) -> Choice:
    """Choose by the one-standard-error rule.

    Of all candidates that are worse than the best by at most one standard error of the difference, paired by fold, the
    simplest recipe is taken, at its best setting; all tau count as equally simple. Whether it beats plain softmax
    beyond chance is another question, for which a few folds of few images are a weak test: the interval answers it, and
    the choice does not depend on it.

    Args:
        scores: of each candidate in each fold, shape (K,), in [0, 1], among them plain softmax or sigmoid.
    """
    means = {candidate: statistics.mean(values) for candidate, values in scores.items()}
    best = max(means, key=lambda c: means[c])
    near = []
    for candidate, values in scores.items():
        lost = [a - b for a, b in zip(scores[best], values, strict=True)]
        if statistics.mean(lost) <= statistics.stdev(lost) / math.sqrt(len(lost)):
            near.append(candidate)
    chosen = min(near, key=lambda c: (c.recipe.complexity, -means[c]))
    plain = max((c for c in means if c.recipe in (SOFTMAX, SIGMOID)), key=lambda c: means[c])
    gains = [a - b for a, b in zip(scores[chosen], scores[plain], strict=True)]
    gain, half = statistics.mean(gains), half_width(gains)
    return Choice(chosen, plain, gain, gain - half, gain + half)
