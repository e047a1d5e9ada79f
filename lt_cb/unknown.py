"""Unknown: how unfamiliar an image looks, beside held-out images of the known classes."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

POINTS = 1000  # quantiles kept of a distribution


@dataclass
class Familiarity:
    """Class means of features on the unit sphere, and what held-out images of the known classes score.

    The distance is the Mahalanobis distance to the nearest class mean, in axes in which all features have covariance 1.
    """

    centre: Tensor  #: mean of the unit features, shape (D,)
    whitening: Tensor  #: axes, scaled so that the features have variance 1 along each, shape (D, R)
    means: Tensor  #: of the classes with training images, shape (K, R)
    posteriors: Tensor  #: quantiles of the highest balanced posterior of held-out images, ascending, shape (Q,)
    distances: Tensor  #: quantiles of their distance, ascending, shape (Q,)
    ranks: Tensor  #: quantiles of the mean of both ranks, ascending, shape (Q,)

    def unknown(self, features: Tensor, posterior: Tensor) -> Tensor:
        """Return the share of held-out images that look more familiar, in [0, 1], shape (B,).

        If images from a value u on are called unknown, 1 - u of the held-out images of the known classes would be, with
        equal weights of the classes.

        Args:
            features: inputs of the last layer, shape (B, D).
            posterior: ``lt_cb.losses.prior.balanced_posterior``, shape (B, C).
        """
        spot = self.project(features)
        mean_rank = self.mean_rank(posterior.max(1).values, nearest(spot, self.means.to(spot)))
        return share_below(self.ranks, mean_rank)

    def project(self, features: Tensor) -> Tensor:
        """Return features on the unit sphere in the whitened axes, shape (B, R)."""
        units = F.normalize(features.float(), dim=1)
        return (units - self.centre.to(units)) @ self.whitening.to(units)

    def mean_rank(self, highest: Tensor, distance: Tensor) -> Tensor:
        """Return the mean of two shares: of held-out images with a higher posterior, and with a lower distance."""
        return (1 - share_below(self.posteriors, highest) + share_below(self.distances, distance)) / 2

    def state(self) -> dict[str, Tensor]:
        """Return the tensors by name, for a checkpoint."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Familiarity":
        """Return the object of `state`; raise ValueError if the tensors do not belong together."""
        tensors = {field.name: state.get(field.name) for field in fields(cls)}
        whole = {name: value for name, value in tensors.items() if isinstance(value, Tensor) and value.isfinite().all()}
        if whole.keys() != tensors.keys():
            raise ValueError("a tensor is missing, or not finite")
        made = cls(**whole)
        (width, rank), quantiles = made.whitening.shape, (made.posteriors, made.distances, made.ranks)
        if made.centre.shape != (width,) or made.means.shape[1:] != (rank,) or any(q.ndim != 1 for q in quantiles):
            raise ValueError("the shapes differ")
        return made


def class_means(spots: Tensor, targets: Tensor) -> Tensor:
    """Return the mean spot of each class with images, shape (K, R), for spots of shape (N, R)."""
    one_hot = F.one_hot(targets).T.to(spots)
    counts = one_hot.sum(1, keepdim=True)
    existing = counts[:, 0] > 0
    return (one_hot @ spots)[existing] / counts[existing]


def nearest(spots: Tensor, means: Tensor) -> Tensor:
    """Return the squared distance of each spot, shape (B, R), to the nearest mean, of shape (K, R); shape (B,)."""
    return torch.cdist(spots, means).min(1).values ** 2


def share_below(quantiles: Tensor, values: Tensor) -> Tensor:
    """Return the share of a distribution, given by evenly spaced quantiles, below each value, shape (B,)."""
    return torch.searchsorted(quantiles.to(values), values.contiguous()).to(values) / len(quantiles)


def quantiles_of(values: Tensor, targets: Tensor) -> Tensor:
    """Return ``POINTS`` evenly spaced quantiles of values, shape (N,), whose classes have equal weights."""
    weights = (1.0 / targets.bincount().double())[targets]
    ordered, order = values.sort()
    share = weights[order].cumsum(0) / weights.sum()
    places = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
    return ordered[torch.searchsorted(share, places).clamp(max=len(values) - 1)].float()
