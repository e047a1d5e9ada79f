"""Suspects: training images whose label looks wrong, by heads that were not trained on them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from lt_cb.text import spreadsheet_safe


class Suspect(NamedTuple):
    """A training image for which another class is more probable than its label."""

    row: int  #: position among the training images
    label: int  #: class index of its label
    posterior: float  #: probability of its label, in [0, 1]
    likely: int  #: most probable class
    likely_posterior: float  #: probability of the most probable class


def mean_by_image(posterior: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean posterior of each image, shape (P, C), and its position among the training images, shape (P,).

    Args:
        posterior: of held-out images, shape (M, C); repeated folds hold out an image several times.
        rows: positions of these images, int64 of shape (M,).
    """
    images, place, times = rows.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    total = posterior.new_zeros(len(images), posterior.shape[1]).index_add_(0, place, posterior)
    return total / times[:, None], images


def suspects(posterior: Tensor, targets: Tensor, rows: Tensor) -> list[Suspect]:
    """Return the images whose most probable class is not their label, the least probable labels first.

    The posterior is balanced (``lt_cb.losses.prior.balanced_posterior``). The plain posterior of the label, known as
    self-confidence (Northcutt et al. 2021), is low for clean images of rare classes too, so that they would come first.

    Args:
        posterior: of images by heads that were not trained on them, shape (P, C).
        targets: labels, int64 of shape (P,).
        rows: positions among the training images, int64 of shape (P,).
    """
    own = posterior.gather(1, targets[:, None])[:, 0]
    highest, likely = posterior.max(1)
    order = own.argsort(stable=True)
    order = order[(likely != targets)[order]]
    columns = (values[order].tolist() for values in (rows, targets, own, likely, highest))
    return [Suspect(*values) for values in zip(*columns, strict=True)]


def suspect_table(found: Sequence[Suspect], files: Sequence[str], names: Sequence[str]) -> Iterator[list[object]]:
    """Yield header and rows of ``suspects.csv``; ``files`` name the training images, ``names`` the classes."""
    yield ["file", "class", "probability", "likely_class", "likely_probability"]
    for image in found:
        row = [files[image.row], names[image.label], f"{image.posterior:.6g}", names[image.likely]]
        yield [spreadsheet_safe(cell) for cell in (*row, f"{image.likely_posterior:.6g}")]
