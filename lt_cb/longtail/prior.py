"""The class prior: the share of each class in the training images. Imports neither torch nor NumPy."""

from collections.abc import Sequence


def class_prior(class_counts: Sequence[int]) -> list[float]:
    """Return the share of each class, C floats, which sum to 1 over the classes with images.

    A class without images gets the share of a class with one image, so that its logarithm is finite. It does not
    change the shares of the other classes.

    Args:
        class_counts: training images of each class, shape (C,), each at least 0.
    """
    total = sum(class_counts) or len(class_counts)
    return [max(float(count), 1.0) / total for count in class_counts]
