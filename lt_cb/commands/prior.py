"""``--prior``: how the classes will be distributed, by a word or a CSV file."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lt_cb.data.sources.listing import read_csv
from lt_cb.errors import InputError, did_you_mean, enumerate_names
from lt_cb.losses import Loss


def read_prior(given: str, class_names: Sequence[str], loss: Loss) -> Tensor:
    """Return the share of each class, or what is in proportion to it.

    Args:
        given: ``uniform``, ``train`` for that of the training images, or the path of a CSV file whose columns
            ``class`` and ``share`` have each class once, with any number of at least 0: a share or a count. A class
            of 0 is never predicted.
        class_names: C names.
        loss: which knows the training images.

    Returns:
        float64 of shape (C,).

    Raises:
        InputError: if the file cannot be read, or has not a share of each class.
    """
    if given == "uniform":
        return torch.ones(len(class_names), dtype=torch.float64)
    if given == "train":
        return loss.class_prior()
    near = did_you_mean(given, ("uniform", "train"))
    columns = read_csv(Path(given), f"set --prior to uniform, train or such a file.{near}")
    if not {"class", "share"} <= columns.keys():
        had = enumerate_names(list(columns)) or "none"
        raise InputError(f"'{given}' has columns {had}, but must have class and share: rename them, or add a header.")
    known, shares = set(class_names), dict[str, float]()
    for name, share in zip(columns["class"], columns["share"], strict=True):
        if name not in known:
            near = did_you_mean(name, class_names)
            raise InputError(f"'{given}' has class '{name}', which is none of the model's: remove or rename it.{near}")
        if name in shares:
            raise InputError(f"'{given}' has class '{name}' more than once: give each class one share.")
        try:
            shares[name] = float(share)
        except ValueError:
            shares[name] = math.nan
        if not 0.0 <= shares[name] < math.inf:
            raise InputError(
                f"the share of class '{name}' in '{given}' is {share}, but must be a number of at least 0."
            )
    if missing := [name for name in class_names if name not in shares]:
        raise InputError(
            f"'{given}' has no share of {len(missing)} of the {len(class_names)} classes, {enumerate_names(missing)}: "
            "give each class one, and one that never comes 0."
        )
    if not any(shares.values()):
        raise InputError(f"all shares in '{given}' are 0, but one at least must be more.")
    most = max(shares.values())  # by which a sum cannot overflow
    return torch.tensor([shares[name] / most for name in class_names], dtype=torch.float64)
