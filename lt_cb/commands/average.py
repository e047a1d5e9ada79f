"""Several checkpoints behind ``--ckpt_path``: their networks, and whether they fit together."""

from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace

from lt_cb.commands.cli import CommandLine
from lt_cb.commands.elsewhere import digests_in, is_elsewhere
from lt_cb.commands.prior import set_prior
from lt_cb.errors import InputError
from lt_cb.module import LongTailedClassifier
from lt_cb.runs import checkpoint as checkpoints

# options of data that training alone depends on; networks of an average may differ in them
OF_TRAINING = (
    *("root", "subset_seed", "val_fraction", "sampler", "drs_start", "batch_size", "global_batch_size"),
    *("crop_padding", "horizontal_flip", "augment", "mean", "std", "num_workers", "seed"),
)


def trained_networks(cli: CommandLine) -> list[LongTailedClassifier]:
    """Return the network of each checkpoint, with its weights, for ``--prior``."""
    networks = []
    for line in (cli, *cli.others):
        networks.append(line.make_model())
        set_prior(line, networks[-1])
    return networks


def check_data(cli: CommandLine) -> None:
    """Check that all checkpoints would be tested on the same images; collect the digests of their training images."""
    digests = [digests for line in (cli, *cli.others) if (digests := digests_in(line.checkpoint or {})) is not None]
    for path, line in zip(cli.ckpt_paths[1:], cli.others, strict=True):
        first, other = cli.config.data, line.config.data
        if is_elsewhere({"data": other.as_dict()}, first):
            raise InputError(
                f"'{path}' was trained on other data than '{cli.ckpt_paths[0]}': set --data.root and --data.source to "
                "the data to test their average on."
            )
        for name in sorted(vars(first).keys() - {*OF_TRAINING}):
            if _plain(first[name]) != _plain(other[name]):
                raise InputError(
                    f"'{path}' has --data.{name} {_plain(other[name])}, but '{cli.ckpt_paths[0]}' has "
                    f"{_plain(first[name])}: average checkpoints of the same data and image size, or set the option."
                )
    if cli.checkpoint is not None and cli.others and digests:
        cli.checkpoint[checkpoints.TRAINED_ON] = torch.from_numpy(np.unique(np.concatenate(digests)))


def _plain(value: Any) -> Any:  # noqa: ANN401 - of a configuration
    return value.as_dict() if isinstance(value, Namespace) else value
