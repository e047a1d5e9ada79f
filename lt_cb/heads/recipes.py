"""Recipes: the losses, class weights and L2 strengths that are compared for a linear head."""

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

from lt_cb import losses
from lt_cb.errors import check_at_least
from lt_cb.losses import EffectiveNumber, Loss

POST_HOC = "PostHocLogitAdjustment"
SHORT_NAMES = {"SoftmaxLoss": "softmax", "FocalLoss": "focal", POST_HOC: "logit adjustment", "SigmoidLoss": "sigmoid"}
SYMBOLS = {"gamma": "γ", "tau": "τ"}


class Recipe(NamedTuple):
    """A loss with its options and class weights."""

    loss: str  #: name of a class in `lt_cb.losses`
    options: tuple[tuple[str, float | str], ...] = ()  #: arguments besides class counts and weighting, name and value
    beta: float | None = None  #: beta of `EffectiveNumber`; None without class weights

    def make(self, class_counts: Sequence[int], num_unlabelled: int = 0) -> Loss:
        """Return the loss for class counts of shape (C,), and a number of images without labels."""
        weighting = None if self.beta is None else EffectiveNumber(self.beta)
        options = {**dict(self.options), **({"num_unlabelled": num_unlabelled} if num_unlabelled else {})}
        loss: Loss = getattr(losses, self.loss)(class_counts, weighting=weighting, **options)
        return loss

    def config(self) -> dict[str, Any]:
        """Return the value of ``model.loss`` in a configuration."""
        options: dict[str, Any] = dict(self.options)
        if self.beta is not None:
            options["weighting"] = {"class_path": "lt_cb.losses.EffectiveNumber", "init_args": {"beta": self.beta}}
        return {"class_path": f"lt_cb.losses.{self.loss}", "init_args": options}

    def __str__(self) -> str:
        """Return a name such as ``focal γ 1, CB β 0.99 by label``."""
        options = dict(self.options)
        weight_of = options.pop("weight_of", None)
        name = SHORT_NAMES.get(self.loss, self.loss)
        name += "".join(f" {SYMBOLS[option]} {value:g}" for option, value in options.items())
        if self.beta is not None:
            name += f", CB β {self.beta:g}"
        return name if weight_of is None else f"{name} by {weight_of}"


SOFTMAX, SIGMOID = Recipe("SoftmaxLoss"), Recipe("SigmoidLoss")
BALANCED = Recipe(POST_HOC, (("tau", 1.0),))  # the head of balanced softmax


class Candidate(NamedTuple):
    """A recipe at an L2 strength."""

    recipe: Recipe
    l2_strength: float

    def __str__(self) -> str:
        """Return a name such as ``softmax, λ 0.01``."""
        return f"{self.recipe}, λ {self.l2_strength:g}"


def settings_of(recipe: Recipe) -> dict[str, float]:
    """Return the numbers of a recipe by name: ``tau``, ``gamma``, ``beta``."""
    options = {name: value for name, value in recipe.options if not isinstance(value, str)}
    return options if recipe.beta is None else {**options, "beta": recipe.beta}


def make_recipes(
    betas: Sequence[float], gammas: Sequence[float], taus: Sequence[float], multi_label: bool = False
) -> list[Recipe]:
    """Return the recipes to compare; raise InputError for a value out of range.

    - One label an image: softmax and focal loss, each also class-balanced, and post-hoc logit adjustment.
    - Several labels: sigmoid and focal loss, each also with class weights by sample and by label.

    Balanced softmax and the logit-adjusted loss are left out. The bias of a head is not penalised, so that they have
    the weights of plain softmax, with a bias shifted by the prior: the same head as post-hoc adjustment.
    """
    for beta in betas:
        EffectiveNumber(beta)
    for name, values in (("gamma", gammas), ("tau", taus)):
        for value in values:
            check_at_least(name, value, 0, "0 gives softmax." if name == "tau" else "0 gives the sigmoid loss.")
    focal = [Recipe("FocalLoss", (("gamma", gamma),)) for gamma in gammas]
    if multi_label:
        plain = [SIGMOID, *focal]
        weighted = [
            Recipe(recipe.loss, (*recipe.options, ("weight_of", weight_of)), beta)
            for recipe, beta, weight_of in product(plain, betas, ("sample", "label"))
        ]
        return [*plain, *weighted]
    adjusted = [Recipe(POST_HOC, (("tau", tau),)) for tau in taus if tau]
    made = [SOFTMAX, *adjusted, *(SOFTMAX._replace(beta=beta) for beta in betas)]
    for recipe in focal:
        made += [recipe, *(recipe._replace(beta=beta) for beta in betas)]
    return made
