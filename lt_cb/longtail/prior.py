"""The class prior: the share of each class in the training images."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def class_prior(class_counts: Sequence[int]) -> NDArray[np.float64]:
    """Return the share of each class, float64 of shape (C,), which sums to 1 over the classes with images.

    A class without images gets the share of a class with one image, so that its logarithm is finite. It does not
    change the shares of the other classes.

    Args:
        class_counts: training images of each class, shape (C,), each at least 0.
    """
    counts = np.asarray(class_counts, dtype=np.float64)
    total = counts.sum() or len(counts)
    return np.asarray(np.maximum(counts, 1.0) / total)
