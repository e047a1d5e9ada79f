"""Set-up that ``recommend`` and ``heads`` share: options, recipes, data, and a frozen backbone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lt_cb.commands.cli import CommandLine, Options
from lt_cb.commands.save import run_trainer
from lt_cb.data import LongTailedDataModule
from lt_cb.data.view import Interpolation
from lt_cb.errors import InputError, check_at_least
from lt_cb.features import feature_trainer
from lt_cb.heads.recipes import Recipe, make_recipes
from lt_cb.loggers import check_loggers
from lt_cb.models.build import OURS, pretrained_cfg
from lt_cb.module import LongTailedClassifier
from lt_cb.runs import checkpoint as checkpoints
from lt_cb.say import warn

if TYPE_CHECKING:  # an optional part
    from lt_cb.lab.cluster import Cluster

LAMBDAS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
BETAS = (0.999, 0.9999)
GAMMAS: tuple[float, ...] = ()
TAUS = (0.5, 1.0, 1.5)
GRID: Options = {
    "folds": (int, 5, "Folds of the training images, at least 2."),
    "lambdas": (list[float], list(LAMBDAS), "L2 strengths, at least 0, which is slow."),
    "betas": (list[float], list(BETAS), "Betas of the class weights, in [0, 1)."),
    "gammas": (list[float], list(GAMMAS), "Gammas of focal loss, at least 0."),
    "taus": (list[float], list(TAUS), "Taus of logit adjustment, at least 0."),
    "on": (str | None, None, "Ray cluster to compute on: local, auto, ray://HOST:10001 or HOST:6379."),
    "cpus": (float, 1.0, "With --on: cores of a task."),
    "gpus": (float | None, None, "With --on: GPUs of a task, as 0.5; default 1 if there are any."),
}


@dataclass
class Setup:
    """All that ``recommend`` and ``heads`` start from.

    Attributes:
        recipes: recipes to compare.
        data: data module, without images held out for validation.
        model: model with the plain loss, whose backbone is frozen.
        run: Trainer of the run, with its folder and loggers.
        trainer: Trainer that computes features.
        cluster: Ray cluster that computes features and heads; None computes them here.
    """

    recipes: list[Recipe]
    data: LongTailedDataModule
    model: LongTailedClassifier
    run: Trainer
    trainer: Trainer
    cluster: "Cluster | None" = None


@contextmanager
def set_up(cli: CommandLine) -> Iterator[Setup]:
    """Make the data and the model of a command line, and connect to its cluster until the end of the context.

    The weights are frozen: pretrained, or from ``--ckpt_path``.

    Raises:
        InputError: if the grid of recipes is wrong, data, model or Trainer cannot be made, or no cluster answers.
    """
    setup, config = _make(cli), cli.config
    if config.on is None:
        yield setup
        return
    if setup.trainer.world_size > 1:
        raise InputError("--on is set, and --trainer.devices or num_nodes too: set one of them.")
    from lt_cb.lab.cluster import Cluster

    setup.cluster = Cluster(config.on, config.cpus, config.gpus)
    try:
        yield setup
    finally:
        setup.cluster.close()


def _make(cli: CommandLine) -> Setup:
    config = cli.config
    _check_grid(config)
    check_loggers(config.trainer.logger)
    config.data.val_fraction = 0.0  # the folds hold out images
    config.trainer.precision = config.trainer.precision or "32-true"
    config.model.loss = config.model.second_stage = None
    weights = None
    if cli.checkpoint is None:
        weights = weights_of(config.model)
        _prepare(config.model, weights)
    pixels = {name: list(weights[name]) for name in ("mean", "std")} if weights is not None else {}
    pixels = {name: values for name, values in pixels.items() if config.data[name] == values}
    for name in pixels:
        config.data[name] = None  # grey images refuse values for three channels
    data = cli.make_data()  # sets the plain loss, in a new configuration
    recipes = make_recipes(config.betas, config.gammas, config.taus, data.multi_label)
    if weights is not None:
        size, own = data.image_size, weights["input_size"][-1]
        rank_zero_info(f"Images are scaled to {size} pixels (--data.image_size); the weights were trained on {own}.")
    for name, values in pixels.items():
        cli.config.data[name] = for_channels(values, data.in_channels)
        setattr(data, name, cli.config.data[name])
    if cli.checkpoint is not None:
        checkpoints.without_pretrained(cli.config.model)
    options = cli.make_all(data)
    if cli.checkpoint is not None:
        options.model.start_from(cli.checkpoint)
    run = run_trainer(cli, options.trainer)
    return Setup(recipes, data, options.model, run, feature_trainer(options.trainer))


def _check_grid(config: Namespace) -> None:
    if not config.lambdas:
        raise InputError("--lambdas is empty: set it to one L2 strength or more, as --lambdas [0.1,0.01].")
    for l2_strength in config.lambdas:
        check_at_least("lambda", l2_strength, 0, "0 does not regularise.")
    if config.trainer.fast_dev_run:
        raise InputError("--trainer.fast_dev_run is set, but heads are compared on all images: leave it out.")
    if config.folds < 2:
        raise InputError(f"folds is {config.folds}, but must be at least 2.")


def weights_of(model: Namespace) -> Mapping[str, Any] | None:
    """Return the description of a network's pretrained weights; None if it has random weights."""
    wanted = (model.backbone_args or {}).get("pretrained", True)
    return pretrained_cfg(model.backbone) if wanted else None


def preprocessing(config: Namespace) -> dict[str, Any]:
    """Return the options of data that the pretrained weights of a configuration need, by key.

    Configuration files describe a training of another network, so that they do not override these options.
    """
    weights = weights_of(config.model)
    if weights is None:
        return {}
    options = {"image_size": weights["input_size"][-1], "mean": list(weights["mean"]), "std": list(weights["std"])}
    if weights.get("interpolation") in get_args(Interpolation):
        options["interpolation"] = weights["interpolation"]
    return {f"data.{name}": value for name, value in options.items()}


def _prepare(model: Namespace, weights: Mapping[str, Any] | None) -> None:
    """Ask timm for pretrained weights; warn of random weights."""
    if weights is not None and "." not in model.backbone and model.backbone not in OURS:  # a name of timm
        model.backbone_args = {"pretrained": True, **(model.backbone_args or {})}
    if weights is None and model.backbone in OURS:
        warn(
            f"{model.backbone} has random weights, whose features are worth little: set --model.backbone to a "
            "pretrained network of timm, or --ckpt_path to a run."
        )


def for_channels(values: list[float], channels: int) -> list[float]:
    """Return a value for each channel, or the mean of the values if their number differs, for grey images."""
    return values if len(values) == channels else [sum(values) / len(values)]
