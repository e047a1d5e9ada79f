"""``--prior``: the class prior to predict for, by a word or a CSV file."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from torch import Tensor

from lt_cb.commands.cli import CommandLine, Options
from lt_cb.data.sources.reading import read_csv
from lt_cb.errors import InputError, did_you_mean, enumerate_names
from lt_cb.longtail.prior import class_prior
from lt_cb.losses import Loss
from lt_cb.module import LongTailedClassifier
from lt_cb.runs import compare

PRIOR: Options = {
    "prior": (str | None, None, "Class prior to predict for: uniform, train, or a CSV file of class and share."),
}


def set_prior(cli: CommandLine, model: LongTailedClassifier) -> None:
    """Have a model predict for the prior of ``--prior``, if it is given and its training prior is known."""
    if cli.config.get("prior") is None:
        return
    trained, stage, why = cli.trained, model.second_stage, None
    if model.multi_label:
        why = "an image may have several labels, which do not share a prior"
    elif (trained.get("data") or {}).get("sampler") is not None:
        why = "the checkpoint was trained with a sampler, which changed how often classes came"
    elif stage is not None and not stage.trains:
        why = f"{type(stage).__name__} changes the logits"
    elif trained:
        try:
            now = yaml.safe_load(cli.config_yaml())
            compare.check_loss(trained["model"]["loss"], now["model"]["loss"])
        except InputError:
            why = "the checkpoint was trained with another loss than this --model.loss"
    if why is not None:
        raise InputError(f"--prior needs the loss and the class counts of the training, but {why}: leave it out.")
    model.set_prior(read_prior(cli.config.prior, model.class_names, model.loss))


def read_prior(given: str, class_names: Sequence[str], loss: Loss) -> Tensor:
    """Return numbers in proportion to the share of each class, float64 of shape (C,).

    ``given`` is ``uniform``, ``train`` for the share in the training images, or a CSV file with columns ``class`` and
    ``share``. Each class has one row, with a share or a count of at least 0. A class of 0 is never predicted.
    """
    if given == "uniform":
        return torch.ones(len(class_names), dtype=torch.float64)
    if given == "train":
        return torch.tensor(class_prior(loss.class_counts), dtype=torch.float64)
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
