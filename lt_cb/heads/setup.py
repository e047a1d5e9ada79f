"""Set-up that ``recommend`` and ``heads`` share: options, recipes, data, and a frozen backbone."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lt_cb.commands.cli import CommandLine
from lt_cb.data import LongTailedDataModule
from lt_cb.data.view import Interpolation
from lt_cb.errors import InputError, check_at_least
from lt_cb.features import feature_trainer
from lt_cb.heads.recipes import Recipe, make_recipes
from lt_cb.loggers import RunFolder, TensorBoard, WandB, check_loggers
from lt_cb.models.build import OURS, pretrained_cfg
from lt_cb.module import LongTailedClassifier
from lt_cb.runs import checkpoint as checkpoints

LAMBDAS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.0003)
BETAS = (0.9, 0.99, 0.999, 0.9999)
GAMMAS = (1.0,)
TAUS = (0.5, 1.0, 1.5)
GRID = ("folds", "lambdas", "betas", "gammas", "taus")


def add_grid(parser: LightningArgumentParser) -> None:
    """Add the options of the recipes to compare."""
    parser.add_argument("--folds", type=int, default=5, help="Folds of the training images, at least 2.")
    parser.add_argument("--lambdas", type=list[float], default=list(LAMBDAS), help="L2 strengths, at least 0.")
    parser.add_argument("--betas", type=list[float], default=list(BETAS), help="Betas of the class weights, in [0, 1).")
    parser.add_argument("--gammas", type=list[float], default=list(GAMMAS), help="Gammas of focal loss, at least 0.")
    parser.add_argument("--taus", type=list[float], default=list(TAUS), help="Taus of logit adjustment, at least 0.")


@dataclass
class Setup:
    """All that ``recommend`` and ``heads`` start from.

    Attributes:
        recipes: recipes to compare.
        data: data module, without images held out for validation.
        model: model with the plain loss, whose backbone is frozen.
        trainer: Trainer that computes features.
        options: instantiated options, such as ``trainer.logger``.
    """

    recipes: list[Recipe]
    data: LongTailedDataModule
    model: LongTailedClassifier
    trainer: Trainer
    options: Namespace


def set_up(cli: CommandLine, words: Sequence[str]) -> Setup:
    """Make the data and the model of a command line.

    A backbone from timm gets its pretrained weights and the preprocessing that belongs to them. With ``--ckpt_path``,
    the weights come from the checkpoint.

    Args:
        cli: the parsed command line.
        words: its words. Preprocessing options among them override those of the weights.

    Raises:
        InputError: if the grid of recipes is wrong, or data or model cannot be made.
    """
    config = cli.config
    _check_grid(config)
    check_loggers(config.trainer.logger)
    config.data.val_fraction = 0.0  # the folds hold out images
    config.trainer.precision = config.trainer.precision or "32-true"
    config.model.loss = config.model.second_stage = None
    weights = None if cli.checkpoint is not None else _pretrained_weights(config.model)
    preprocessing = {} if weights is None else preprocessing_of(weights)
    for name in _given(words, preprocessing):
        del preprocessing[name]
    if "image_size" in preprocessing:
        size = preprocessing["image_size"]
        rank_zero_info(
            f"Images are scaled to {size} pixels, the size of the weights. Override it by --data.image_size."
        )
    for name in preprocessing.keys() - {"mean", "std"}:
        config.data[name] = preprocessing[name]
    data = cli.make_data()  # sets the plain loss, in a new configuration
    recipes = make_recipes(config.betas, config.gammas, config.taus, data.multi_label)
    for name in preprocessing.keys() & {"mean", "std"}:
        values = for_channels(preprocessing[name], data.in_channels)
        cli.config.data[name] = values
        setattr(data, name, values)
    if cli.checkpoint is not None:
        checkpoints.without_pretrained(cli.config.model)
    options = cli.make_all(data)
    if cli.checkpoint is not None:
        options.model.start_from(cli.checkpoint)
    return Setup(recipes, data, options.model, feature_trainer(options.trainer), options)


def loggers_beside(folder: RunFolder, options: Namespace) -> list[Logger]:
    """Return the loggers of the options, with the run folder beside them."""
    loggers: list[Logger] = as_list(options.trainer.logger)
    for logger in loggers:
        if isinstance(logger, WandB | TensorBoard):
            logger.beside = folder
    return loggers


def as_list(value: Any) -> list[Any]:  # noqa: ANN401 - one object, several, or a switch
    """Return the objects of a Trainer's option."""
    return value if isinstance(value, list) else [] if value in (None, True, False) else [value]


def _check_grid(config: Namespace) -> None:
    if not config.lambdas:
        raise InputError("--lambdas is empty: set it to one L2 strength or more, as --lambdas [0.1,0.01].")
    for l2_strength in config.lambdas:
        check_at_least("lambda", l2_strength, 0, "0 does not regularise.")
    if config.folds < 2:
        raise InputError(f"folds is {config.folds}, but must be at least 2.")


def _pretrained_weights(model: Namespace) -> Mapping[str, Any] | None:
    """Ask timm for pretrained weights, and return their description; None without pretrained weights."""
    weights = pretrained_cfg(model.backbone)
    if weights is None and model.backbone in OURS:
        rank_zero_warn(
            f"{model.backbone} has random weights, whose features are worth little: set --model.backbone to a "
            "pretrained network of timm, or --ckpt_path to a run.",
            stacklevel=1,
        )
    if weights is not None and "." not in model.backbone:  # a name of timm, not a class path
        model.backbone_args = {"pretrained": True, **(model.backbone_args or {})}
    return weights if (model.backbone_args or {}).get("pretrained", True) else None


def preprocessing_of(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data options that pretrained weights need.

    Args:
        weights: timm's description of the weights, ``pretrained_cfg``.
    """
    options = {"image_size": weights["input_size"][-1], "mean": list(weights["mean"]), "std": list(weights["std"])}
    if weights.get("interpolation") in get_args(Interpolation):
        options["interpolation"] = weights["interpolation"]
    return options


def for_channels(values: list[float], channels: int) -> list[float]:
    """Return a value for each channel, or the mean of the values if their number differs, for grey images."""
    return values if len(values) == channels else [sum(values) / len(values)]


def _given(words: Sequence[str], names: Mapping[str, Any]) -> list[str]:
    """Return the data options that flags give. Those of configuration files were chosen for another network."""
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        reader.add_argument(f"--data.{name}", dest=name, default=argparse.SUPPRESS)
    return list(vars(reader.parse_known_args(words)[0]))
