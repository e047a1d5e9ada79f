"""Class-count profiles: how many images of each class a long-tailed subset keeps."""

from collections.abc import Sequence

from lt_cb.errors import InputError


def _check(n_max: int, num_classes: int, imbalance_factor: float) -> None:
    if n_max < 1:
        raise InputError(f"n_max is {n_max}, but the largest class must keep at least 1 image.")
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes}, but a long-tailed profile needs at least 2.")
    if not 1.0 <= imbalance_factor < float("inf"):
        raise InputError(
            f"imbalance_factor is {imbalance_factor}, but must be at least 1: it is the largest class count divided by "
            "the smallest (LDAM-DRW's code uses the inverse), and 1 is balanced."
        )


def _floor(count: float) -> int:
    # n_max * (1 / IF) can fall an ulp short of the whole number it stands for, as 49 * (1 / 49) does
    return int(count + 1e-9)


def class_counts_exponential(n_max: int, num_classes: int, imbalance_factor: float) -> list[int]:
    """Class counts that decay exponentially with the class index, section 5.1 of Cui et al. 2019.

    n_i = floor(n_max * (1 / IF)^(i / (C - 1))) for i = 0 ... C - 1.

    Args:
        n_max: images of class 0, the largest; at least 1.
        num_classes: C, at least 2.
        imbalance_factor: IF = n_max / n_min, at least 1. Above n_max, the last classes get no image.

    Returns:
        C counts, largest first.

    Raises:
        InputError: if an argument is out of its range.
    """
    _check(n_max, num_classes, imbalance_factor)
    return [_floor(n_max * (1.0 / imbalance_factor) ** e) for e in exponents("exponential", num_classes)]


def class_counts_step(n_max: int, num_classes: int, imbalance_factor: float) -> list[int]:
    """Class counts in one step: the first C // 2 classes keep n_max images, the others floor(n_max / IF).

    Step imbalance is that of Buda et al. 2018, with half of the classes in the minority. Arguments and errors are those
    of `class_counts_exponential`.
    """
    _check(n_max, num_classes, imbalance_factor)
    minority = _floor(n_max / imbalance_factor)
    return [n_max] * (num_classes // 2) + [minority] * (num_classes - num_classes // 2)


def exponents(imbalance_type: str, num_classes: int) -> list[float]:
    """Return e_i of the C counts n_max (1 / IF)^e_i of a profile, ``exponential`` or ``step``."""
    if imbalance_type == "step":
        return [float(i >= num_classes // 2) for i in range(num_classes)]
    return [i / (num_classes - 1) for i in range(num_classes)]


def counts_of_subset(
    available: Sequence[int],
    class_names: Sequence[str],
    imbalance_factor: float | None = None,
    imbalance_type: str = "exponential",
    n_max: int | None = None,
    explicit: Sequence[int] | None = None,
) -> list[int]:
    """Class counts of a subset: those given, those of a profile, or all that is available.

    Args:
        available: training images of each class, C counts.
        class_names: C names, for messages.
        imbalance_factor: of the profile, at least 1; None without a profile.
        imbalance_type: ``exponential`` or ``step``.
        n_max: images of the largest class; None takes as many as the smallest class has.
        explicit: C counts, in place of a profile.

    Raises:
        InputError: if a value is out of range, or a class has fewer images than asked for.
    """
    if explicit is not None:
        if imbalance_factor is not None or n_max is not None:
            raise InputError("subset_counts and imbalance_factor or n_max are both given, but exclude each other.")
        if len(explicit) != len(available) or min(explicit) < 0 or not any(explicit):
            raise InputError(
                f"subset_counts is {explicit}, but must have {len(available)} counts of at least 0, not all 0."
            )
        counts = list(explicit)
    elif imbalance_factor is None:
        if n_max is not None:
            raise InputError(f"n_max is {n_max} without an imbalance_factor: give one too (1 is balanced).")
        return list(available)
    else:
        profile = class_counts_step if imbalance_type == "step" else class_counts_exponential
        n_max = min(available) if n_max is None else n_max
        if not min(available) and n_max == 0:
            raise InputError(
                f"class '{class_names[available.index(0)]}' has no training image, so that no subset of imbalance "
                f"factor {imbalance_factor:g} has all classes: leave --data.imbalance_factor out."
            )
        counts = profile(n_max, len(available), imbalance_factor)
        if counts[-1] < 1:
            raise InputError(
                f"imbalance_factor {imbalance_factor:g} leaves class '{class_names[-1]}' without an image: "
                f"with {n_max} images in the largest class of the subset it can be at most {n_max}. Data that are "
                "long-tailed by themselves need none."
            )
    for name, asked, existing in zip(class_names, counts, available, strict=True):
        if asked > existing:
            raise InputError(
                f"{asked} training images of class '{name}' are asked for, but there are {existing}: lower "
                "--data.n_max or --data.subset_counts."
            )
    return counts
