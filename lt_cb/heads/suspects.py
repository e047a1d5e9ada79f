"""Suspects: training images whose label looks wrong, by the posterior of a head that was not trained on them."""

from typing import NamedTuple

from torch import Tensor


class Suspect(NamedTuple):
    """A training image that a held-out head gives another class."""

    row: int  #: position among the training images
    label: int  #: class index of its label
    posterior: float  #: balanced posterior of its label, in [0, 1]
    likely: int  #: most probable class
    likely_posterior: float  #: balanced posterior of the most probable class


def suspects(posterior: Tensor, targets: Tensor, rows: Tensor) -> list[Suspect]:
    """Return the images whose most probable class is not their label, the least probable labels first.

    The posterior is balanced (`lt_cb.losses.prior.balanced_posterior`). The plain posterior, known as self-confidence
    (Northcutt et al. 2021), is low for nearly all images of a rare class, so that clean ones would come first.

    Args:
        posterior: of images by heads that were not trained on them, shape (M, C).
        targets: their labels, int64 of shape (M,).
        rows: their positions among the training images, int64 of shape (M,).
    """
    own = posterior.gather(1, targets[:, None])[:, 0]
    highest, likely = posterior.max(1)
    order = own.argsort(stable=True)
    order = order[(likely != targets)[order]]
    columns = (values[order].tolist() for values in (rows, targets, own, likely, highest))
    return [Suspect(*values) for values in zip(*columns, strict=True)]
