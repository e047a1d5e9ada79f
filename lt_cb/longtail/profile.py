"""Class-count profiles of long-tailed data."""

from lt_cb.errors import InputError


def _counts(imbalance_type: str, n_max: int, num_classes: int, imbalance_factor: float) -> list[int]:
    if n_max < 1:
        raise InputError(f"n_max is {n_max}, but the largest class must keep at least 1 image.")
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes}, but a long-tailed profile needs at least 2.")
    if not 1.0 <= imbalance_factor < float("inf"):
        raise InputError(
            f"imbalance_factor is {imbalance_factor}, but must be at least 1: it is the largest class count divided by "
            "the smallest (LDAM-DRW's code uses the inverse), and 1 is balanced."
        )
    shares = [(1.0 / imbalance_factor) ** e for e in exponents(imbalance_type, num_classes)]
    return [int(n_max * share + 1e-9) for share in shares]  # 49 * (1 / 49) is an ulp below 1


def class_counts_exponential(n_max: int, num_classes: int, imbalance_factor: float) -> list[int]:
    """Return class counts that decay exponentially with the class index (section 5.1 of Cui et al. 2019).

    n_i = floor(n_max * (1 / IF)^(i / (C - 1))) for i = 0 ... C - 1.

    Args:
        n_max: images of class 0, the largest; at least 1.
        num_classes: C, at least 2.
        imbalance_factor: IF = n_max / n_min, at least 1. If it is above n_max, the last classes get no image.

    Returns:
        C counts, largest first.
    """
    return _counts("exponential", n_max, num_classes, imbalance_factor)


def class_counts_step(n_max: int, num_classes: int, imbalance_factor: float) -> list[int]:
    """Return class counts with one step (Buda et al. 2018, half of the classes in the minority).

    The first C // 2 classes keep n_max images, the others floor(n_max / IF). The arguments are the same as for
    `class_counts_exponential`.
    """
    return _counts("step", n_max, num_classes, imbalance_factor)


def exponents(imbalance_type: str, num_classes: int) -> list[float]:
    """Return the C exponents e_i of a profile n_i = n_max (1 / IF)^e_i, ``exponential`` or ``step``."""
    if imbalance_type == "step":
        return [float(i >= num_classes // 2) for i in range(num_classes)]
    return [i / (num_classes - 1) for i in range(num_classes)]
