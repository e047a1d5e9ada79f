"""Prediction sets: all classes that an image may have, so that a set holds the true class as often as promised."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_KEPT = 1000  # scores of a class; more would move its threshold past 0.1 % of its images at most


def held_out_scores(posterior: Tensor, targets: Tensor, repeats: int = 1) -> list[Tensor]:
    """Return what a checkpoint keeps: for each class the posterior of the true class of its held-out images, sorted.

    Args:
        posterior: `lt_cb.losses.prior.balanced_posterior` of held-out images, shape (N, C).
        targets: class indices, int64 of shape (N,).
        repeats: how often each image was held out, by heads of other folds.

    Returns:
        C tensors, float32: a score for each image of the class, or `MAX_KEPT` evenly spaced quantiles of more images.
    """
    true, kept = posterior.gather(1, targets[:, None])[:, 0].float(), []
    for label in range(posterior.shape[1]):
        scores = true[targets == label].sort().values
        number = min(len(scores) // repeats, MAX_KEPT)
        kept.append(scores[((torch.arange(number) + 0.5) * len(scores) / max(number, 1)).long()])
    return kept


def thresholds(kept: Sequence[Tensor], level: float) -> Tensor:
    r"""Return the posterior from which on each class is in a set, float64 of shape (C,).

    It is half way between two thresholds (Interp-Q of `Ding et al. 2025 <https://arxiv.org/abs/2507.06867>`_):

    - the threshold of the class: of its n held-out images at most :math:`\lfloor (n + 1) (1 - level) \rfloor` lie below
      it (split conformal prediction); 0 if that is none, also without held-out images,
    - the threshold of all classes: the highest with at most a share of 1 - level below it, if each class has the same
      weight.

    Thresholds of the classes alone hold for each class, but make large sets: a class with few images gets 0.

    Args:
        kept: sorted scores of C classes from `held_out_scores`. At least one class has a score.
        level: promised share of sets with the true class, in (0, 1).
    """
    return (_of_each(kept, level) + _of_all(kept, level)) / 2


def _of_each(kept: Sequence[Tensor], level: float) -> Tensor:
    ranks = [math.floor((len(scores) + 1) * (1 - level) + 1e-9) for scores in kept]
    values = [float(scores[rank - 1]) if rank else 0.0 for scores, rank in zip(kept, ranks, strict=True)]
    return torch.tensor(values, dtype=torch.float64)


def _of_all(kept: Sequence[Tensor], level: float) -> float:
    scores = torch.cat(list(kept))
    weights = torch.cat([scores.new_full((len(scores),), 1 / max(len(scores), 1)).double() for scores in kept])
    ordered, order = scores.sort()
    below = weights[order].cumsum(0) / weights.sum()  # share up to and with each score
    return float(ordered[int((below <= 1 - level + 1e-9).sum())])


def prediction_sets(posterior: Tensor, limits: Tensor) -> Tensor:
    """Return the classes in the set of each image, bool of shape (B, C).

    A class is in the set if its posterior, shape (B, C), reaches its limit from `thresholds`, shape (C,). The most
    probable class always is.
    """
    most_probable = torch.zeros_like(posterior, dtype=torch.bool).scatter_(1, posterior.argmax(1, keepdim=True), True)
    return (posterior >= limits.to(posterior)) | most_probable
