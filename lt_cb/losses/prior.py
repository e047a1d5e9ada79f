"""Class prior that each loss assumes, for predictions under another prior (``--prior``)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_cb import losses
from lt_cb.errors import InputError
from lt_cb.longtail.prior import class_prior
from lt_cb.losses import DistributionBalancedLoss, FocalLoss, LogitAdjustedLoss, Loss, SigmoidLoss
from lt_cb.losses.weighting import with_images


def weighted_prior(loss: Loss) -> Tensor:
    r"""Return the prior :math:`p_c \propto w_c n_c`, float64 of shape (C,): the rule for most losses.

    A class weight acts like more images of the class. Weights that multiply both terms of a label do not change its
    probability. Deferred weights count, because they are applied at the end of the training.
    """
    mass = loss.positive_counts()
    if loss.weighting is not None and loss.weight_of != "label":
        mass = mass * loss.weighting(loss.class_counts)
    return _normalized(loss, mass)


def adjusted_prior(loss: LogitAdjustedLoss) -> Tensor:
    r"""Return the prior :math:`p_c \propto w_c n_c / \pi_c^\tau` of a logit-adjusted loss, float64 of shape (C,)."""
    return _normalized(
        loss, weighted_prior(loss) / torch.tensor(class_prior(loss.class_counts), dtype=torch.float64) ** loss.tau
    )


def _normalized(loss: Loss, mass: Tensor) -> Tensor:
    return mass / mass.where(with_images(loss.class_counts), 0.0).sum()


Rule = Callable[[Any], Tensor | str]


def only_neutral(reason: str, rule: Rule = weighted_prior, **neutral: float) -> Rule:
    """Return a rule that gives the ``reason`` unless the options of the loss have these neutral values."""

    def prior_or_reason(loss: Loss) -> Tensor | str:
        return rule(loss) if all(getattr(loss, name) == value for name, value in neutral.items()) else reason

    return prior_or_reason


def _equalization_prior(loss: losses.EqualizationLoss) -> Tensor | str:
    return "it leaves out tail classes" if loss.gamma and loss.tail.any() else weighted_prior(loss)


SMOOTHING = "its smoothed targets hide how improbable a class is"
SCALING = only_neutral("it scales each class differently", adjusted_prior, gamma=0)
PLAIN = (losses.SoftmaxLoss, losses.SigmoidLoss, losses.FocalLoss)
ADJUSTED = (losses.LogitAdjustedLoss, losses.BalancedSoftmaxLoss, losses.PostHocLogitAdjustment, losses.LADELoss)
RULES: dict[type[Loss], Rule] = {
    **dict.fromkeys(PLAIN, weighted_prior),
    **dict.fromkeys(ADJUSTED, adjusted_prior),
    losses.VectorScalingLoss: SCALING,
    losses.ClassDependentTemperatureLoss: SCALING,
    losses.LDAMLoss: only_neutral("it has margins", max_margin=0),
    losses.GCLLoss: only_neutral("it adds noise", noise=0),
    losses.EqualizationLoss: _equalization_prior,
    losses.SeesawLoss: only_neutral("it re-weights pairs of classes", p=0, q=0),
    losses.LabelSmoothingLoss: only_neutral(SMOOTHING, smoothing=0),
    losses.LabelAwareSmoothingLoss: only_neutral(SMOOTHING, head=0, tail=0),
    losses.PolyLoss: only_neutral("it adds a polynomial term", epsilon=0),
    losses.AsymmetricLoss: only_neutral(
        "it treats present and absent labels differently", gamma_positive=0, gamma_negative=0, margin=0
    ),
    losses.DistributionBalancedLoss: only_neutral(
        "it re-balances labels and tolerates negatives", beta=0, kappa=0, negative_scale=1
    ),
}
"""Rules that return the prior a loss class assumes, or the reason why it assumes none.

Add a custom loss in its own file, with ``RULES[MyLoss] = weighted_prior`` if its probabilities are posteriors under the
training prior.
"""


def assumed_prior(loss: Loss) -> Tensor:
    """Return the class prior under which the probabilities of a fully trained loss are posteriors.

    It is float64 of shape (C,), and sums to 1 over the classes with images. InputError is raised if the probabilities
    are not posteriors, or the loss has no rule in ``RULES``.
    """
    name = type(loss).__name__
    rule = RULES.get(type(loss))
    if rule is None:
        raise InputError(
            f"--prior needs to know the class prior that {name} assumes, but RULES has no entry for it: leave --prior "
            f"out, or add RULES[{name}] = weighted_prior from lt_cb.losses.prior to the file of the loss."
        )
    prior = rule(loss)
    if isinstance(prior, str):
        raise InputError(
            f"--prior needs probabilities that belong to a class prior, but those of {name} do not, because {prior}: "
            "leave --prior out, or train with a softmax, focal or logit-adjusted loss."
        )
    return prior


def log_posterior(loss: Loss, logits: Tensor) -> Tensor:
    r"""Return log-probabilities of classes that exclude each other, (B, C), up to a constant for each sample.

    Add log q - log p, with p from `assumed_prior`, to predict under another prior q (Saerens et al. 2002). This assumes
    that the images of a class look the same under both priors.

    A sigmoid loss gives C binary posteriors. If each image has one class, they are the posterior of the classes. With
    focal loss, sigma(z) is no posterior. The minimum of the loss gives the log-odds

    .. math:: \gamma z + \log(p - \gamma (1 - p) \log(1 - p)) - \log(1 - p - \gamma p \log p), \quad p = \sigma(z)

    as `Charoenphakdee et al. 2021 <https://arxiv.org/abs/2011.09172>`_ derive for softmax. Weights of positive terms
    multiply the odds, so they are divided out first and then multiply the posterior.
    """
    logits = loss.adjust(logits)
    if not isinstance(loss, SigmoidLoss):
        return logits
    gamma = loss.gamma if isinstance(loss, FocalLoss | DistributionBalancedLoss) else 0.0
    z = logits.clamp(-60.0, 60.0)  # p and 1 - p are normal float32 here; beyond, the log-odds are linear
    p, rest = z.sigmoid(), (-z).sigmoid()
    up, down = p - gamma * rest * F.logsigmoid(-z), rest - gamma * p * F.logsigmoid(z)
    log_odds = gamma * z + up.log() - down.log() + (1.0 + gamma) * (logits - z)
    if loss.class_weights is None or loss.weight_of != "positive":
        return F.logsigmoid(log_odds)
    log_weights = loss.class_weights.to(log_odds.dtype).log()
    return log_weights + F.logsigmoid(log_odds - log_weights)


def log_prior_of(loss: Loss) -> Tensor | None:
    """Return the logarithm of `assumed_prior`, float64 of shape (C,), or None if the loss has no known prior."""
    try:
        return assumed_prior(loss).log()
    except InputError:
        return None


def balanced_posterior(loss: Loss, logits: Tensor) -> Tensor:
    """Return class probabilities as if all classes were equally frequent, for raw logits, both of shape (B, C).

    They are the posterior divided by `assumed_prior`, normalised. A loss without a known prior gives its own
    probabilities, normalised.
    """
    return divide_by_prior(loss, logits, log_prior_of(loss))


def divide_by_prior(loss: Loss, logits: Tensor, log_prior: Tensor | None) -> Tensor:
    """Return `balanced_posterior`, with the result of `log_prior_of`."""
    if log_prior is None:
        return F.normalize(loss.probabilities(logits), p=1.0, dim=1).clamp(max=1.0)
    return (log_posterior(loss, logits) - log_prior.to(logits)).softmax(1)
