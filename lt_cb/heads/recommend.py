"""``lt-cb recommend``: which loss and weighting a head on a frozen backbone is to have, and a checkpoint with it."""

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lt_cb.runs import checkpoint as checkpoints
from lt_cb.commands.messages import values
from lt_cb.commands.train import CLI, OF_SEVERAL, data_module, have_several_labels, run
from lt_cb.data import LongTailedDataModule
from lt_cb.data.images import RESAMPLING
from lt_cb.errors import InputError, check_at_least, enumerate_names
from lt_cb.features import classifier_of, feature_trainer, frozen_features
from lt_cb.heads.folds import (
    Choice,
    Trial,
    choose,
    cooled,
    cross_validate,
    fit_temperature,
    held_out_logits,
    recipes,
    stratified_folds,
)
from lt_cb.heads.page import BALANCED, PRECISION, class_section, html, precision_section, surface
from lt_cb.heads.solve import Basis, solve_at
from lt_cb.loggers import RunFolder
from lt_cb.metrics import best_thresholds
from lt_cb.models.build import OURS, pretrained_cfg
from lt_cb.module import LongTailedClassifier
from lt_cb.lab.report.sections import Section
from lt_cb.runs.folder import RunDir, write_json, write_text
from lt_cb.trust import must_be_trusted

LAMBDAS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.0003)
BETAS = (0.9, 0.99, 0.999, 0.9999)
GAMMAS = (1.0,)
TAUS = (0.5, 1.0, 1.5)
PREPROCESSING = ("image_size", "interpolation", "mean", "std")
PLAIN = ("--model.loss=lt_cb.losses.SoftmaxLoss", "--model.second_stage=null")  # what is solved goes in afterwards
OWN = ("folds", "lambdas", "betas", "gammas", "taus", "ckpt_path", "weights_only")


class Solved(NamedTuple):
    """What comes of the features.

    Attributes:
        head: weight, (C, D), and bias, (C,), of the classifier, whose probabilities are calibrated.
        temperature: that they were divided by.
        thresholds: of several labels an image, logits from which on each is predicted; None of one.
        trial: of all candidates.
        choice: among them.
    """

    head: dict[str, Tensor]
    temperature: float
    thresholds: list[float] | None
    trial: Trial
    choice: Choice


class Recommend(CLI):
    """The command line of a training, of which only the classifier is solved; see `lt_cb.heads.compare` too."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add folds and grid."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--folds", type=int, default=5, help="Of the training images, to choose by; at least 2.")
        parser.add_argument("--lambdas", type=list[float], default=list(LAMBDAS), help="L2 strengths, at least 0.")
        parser.add_argument("--betas", type=list[float], default=list(BETAS), help="Of the class weights, in [0, 1).")
        parser.add_argument("--gammas", type=list[float], default=list(GAMMAS), help="Of the focal loss, at least 0.")
        parser.add_argument("--taus", type=list[float], default=list(TAUS), help="Of the prior taken off, at least 0.")
        parser.add_argument("--ckpt_path", type=str | None, help="A run, whose backbone is taken.")
        parser.add_argument("--weights_only", type=bool | None, help="Is not looked at, but is in the config of a run.")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the arguments, and keep them."""
        assert isinstance(args, list)
        self.words = args
        super().parse_arguments(parser, args)
        self.multi_label = have_several_labels(self._datamodule_class, self.config.data)
        if self.multi_label:
            super().parse_arguments(parser, [*args, OF_SEVERAL])

    def before_instantiate_classes(self) -> None:
        """Refuse a grid that cannot be; take weights and preprocessing that timm has for its backbone."""
        config = self.config
        config.data.val_fraction = 0.0  # folds hold out
        config.trainer.precision = config.trainer.precision or "32-true"  # features are kept in float32
        self.tried = recipes(config.betas, config.gammas, config.taus, self.multi_label)
        if not config.lambdas:
            raise InputError("--lambdas is empty: set it to one L2 strength or more, as --lambdas [0.1,0.01].")
        for strength in config.lambdas:
            check_at_least("lambda", strength, 0, "0 does not regularise.")
        if config.folds < 2:
            raise InputError(f"folds is {config.folds}, but must be at least 2.")
        if self.checkpoint is not None:
            checkpoints.without_pretrained(config.model)
            return
        name = config.model.backbone
        weights = pretrained_cfg(name)
        if weights is None and name in OURS:
            rank_zero_warn(
                f"{name} has random weights, whose features are worth little: set --model.backbone to a pretrained "
                "network of timm, or --ckpt_path to a run.",
                stacklevel=1,
            )
        if "." not in name and weights is not None:  # of timm
            config.model.backbone_args = {"pretrained": True, **(config.model.backbone_args or {})}
        if weights is not None and (config.model.backbone_args or {}).get("pretrained", True):
            channels = data_module(self._datamodule_class, config.data).in_channels
            given = {name for name in PREPROCESSING if list(values(self.words, f"--data.{name}"))}
            take_preprocessing(config.data, weights, channels, given)

    def instantiate_classes(self) -> None:
        """Make data and model, and a Trainer that predicts features."""
        self.config_init = self.parser.instantiate_classes(self.config)
        self.datamodule, self.model = self.config_init.data, self.config_init.model
        self.trainer = feature_trainer(self.config_init.trainer)

    def after_instantiate_classes(self) -> None:
        """Take the backbone of a checkpoint."""
        if self.checkpoint is not None:
            self.model.start_from(self.checkpoint)

    def run(self) -> None:
        """Compute features, choose, solve, write the checkpoint, and test it."""
        data, model = self.datamodule, self.model
        classifier = classifier_of(model)
        features, targets = frozen_features(model, data, "train", self.trainer)
        solved = self._solve(torch.from_numpy(features), targets) if self.trainer.is_global_zero else None
        solved = self.trainer.strategy.broadcast(solved)  # the others have waited
        assert solved is not None
        classifier.load_state_dict(solved.head)
        folder = self._write(solved.choice.chosen.recipe.arguments(), solved.thresholds)
        if self.trainer.is_global_zero:
            write_json(RunDir(folder).recommendation, _record(solved))
            self._report(solved, folder)

    def _solve(self, features: Tensor, targets: Tensor) -> Solved:
        config, num_classes = self.config, self.model.num_classes
        folds = stratified_folds(targets, num_classes, config.folds, self.datamodule.subset_seed)
        basis = Basis.of(features)
        x = basis.project(features)
        del features
        trial = cross_validate(x, targets, num_classes, folds, self.tried, config.lambdas, basis.variances)
        choice = choose(trial.scores())
        recipe, strength = choice.chosen
        loss = recipe.make(self.datamodule.class_counts)
        held = held_out_logits(x, targets, num_classes, folds, choice.chosen, config.lambdas, basis.variances)
        temperature = 1.0 if self.multi_label else fit_temperature(loss, *held)
        thresholds = best_thresholds(*held).tolist() if self.multi_label else None
        heads = solve_at(x, targets, loss, strength, config.lambdas, basis.variances)
        weight, bias = basis.unproject(heads.weight[0], heads.bias[0])
        head = {"weight": weight / temperature, "bias": cooled(loss, bias[None], temperature)[0]}
        return Solved(head, temperature, thresholds, trial, choice)

    def _write(self, arguments: list[str], thresholds: list[float] | None) -> Path:
        """Write the checkpoint of a run that ``fit`` would have with this loss, test it, and return its folder."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        config = {key: value for key, value in config.items() if key not in OWN}
        checkpoints.without_pretrained(config, "model")
        del config["model"]["loss"]
        if config["trainer"].get("max_epochs") is None:  # there is none, but fit asks for an end
            config["trainer"]["max_epochs"] = 1
        words = ["--config", yaml.safe_dump(config), *arguments]
        cli = CLI("fit", words, self._model_class, self._datamodule_class)  # type: ignore[arg-type]
        cli.model.backbone.load_state_dict(self.model.backbone.state_dict())
        cli.model.thresholds = thresholds
        cli.trainer.strategy.connect(cli.model)
        first = cli.trainer.loggers[0]
        assert isinstance(first, RunFolder)
        _ = first.experiment  # takes the folder
        folder = str(cli.trainer.log_dir)
        file = RunDir(folder).checkpoint
        cli.trainer.save_checkpoint(file)
        shown, _ = frozen_features(self.model, self.datamodule, "test", self.trainer)
        self.datamodule.replace_images("test", torch.from_numpy(shown))
        cli.trainer.test(cli.model, datamodule=self.datamodule, ckpt_path=str(file), weights_only=True, verbose=False)
        return Path(folder)

    def _finding(self, solved: Solved) -> str:
        """Return what is chosen, and whether it is worth it, in words."""
        choice = solved.choice
        names, counted = self.model.class_names, solved.trial.counted.sum(0).tolist()
        small = [name for name, count in zip(names, counted, strict=True) if not count]
        said = [f"Chosen: {choice.chosen}."]
        interval = f"{100 * choice.gain:.1f} points, 95 % interval {100 * choice.low:.1f} to {100 * choice.high:.1f}"
        plain = f"plain {choice.plain.recipe}"
        if choice.is_plain:
            said.append(f"Weighting does not help here: {plain} is within one standard error of the best.")
        else:
            beats = "It beats" if choice.low > 0 else "It is not shown, beyond chance, to beat"
            said.append(f"{beats} {plain} at its best λ, {choice.plain.strength:g}: by {interval}.")
        if small:
            said.append(
                f"Of {enumerate_names(small)} there are fewer training images than {self.config.folds} folds: they are "
                "trained on, but none was held out, and the choice is blind to them."
            )
        return " ".join(said)

    def _report(self, solved: Solved, folder: Path) -> None:
        """Print the tables and the finding, and write them as a page."""
        trial, choice, names = solved.trial, solved.choice, self.model.class_names
        words = f"Means over {self.config.folds} folds of the training images, in percent; bold is the best, "
        words += "which of so many is a little better than it will be on new images."
        counted, held_out = trial.counted.sum(0), f"Held-out images: {choice.chosen}."
        metric = PRECISION if self.multi_label else BALANCED
        if self.multi_label:
            by_class = precision_section(names, trial.rates(choice.chosen), counted, f"{held_out} Over the folds.")
        else:
            by_class = class_section(names, trial.measured[choice.chosen].sum(0), counted, held_out)
        tables = [surface(trial.scores(), words, metric), by_class]
        finding = self._finding(solved)
        classes = []
        for candidate in dict.fromkeys(() if self.multi_label else (choice.plain, choice.chosen)):
            right = trial.measured[candidate].sum(0).tolist()
            each = zip(names, self.datamodule.class_counts, right, counted.tolist(), strict=True)
            classes += [(str(candidate.recipe), *numbers) for numbers in each]
        show(tables, finding)
        page = RunDir(folder).recommendation_page
        write_text(page, html("Recommendation", finding, tables, trial.scores(), "folds", classes, metric))
        own = " --trust_checkpoint true" * must_be_trusted("model.backbone", self.config.model.backbone)
        sys.stdout.write(f"Page: {page}\nGo on: lt-cb test --ckpt_path {RunDir(folder).checkpoint}{own}, or predict\n")


def show(tables: Sequence[Section], finding: str) -> None:
    """Print tables and words."""
    console = Console(highlight=False)
    for section in tables:
        table = Table(title=section.title, caption=section.words)
        for i, name in enumerate(section.header):
            table.add_column(name, justify="right" if i else "left")
        for row in section.rows:
            table.add_row(row[0], *(Text(cell.strip("*"), "bold" if cell.startswith("**") else "") for cell in row[1:]))
        console.print(table)
    console.print(finding, soft_wrap=True)


def _record(solved: Solved) -> dict[str, Any]:
    choice = solved.choice
    plain = str(choice.plain.recipe)
    metric = "balanced_accuracy" if solved.thresholds is None else "mean_average_precision"
    return {
        "chosen": str(choice.chosen),
        f"plain_{plain}": str(choice.plain),
        "gain": choice.gain,
        "interval": [choice.low, choice.high],
        f"beats_plain_{plain}": choice.low > 0,
        "temperature": solved.temperature,
        f"{metric}_by_fold": {str(candidate): values for candidate, values in solved.trial.scores().items()},
    }


def take_preprocessing(data: Namespace, weights: Mapping[str, Any], channels: int, given: Collection[str]) -> None:
    """Set image size, interpolation, mean and deviation to those of the weights, but for those that are given.

    Given is what the command line says. A config file's are for a network that is trained on the images.
    """
    if "image_size" not in given:
        data.image_size = weights["input_size"][-1]
        rank_zero_info(
            f"Images are scaled to {data.image_size} pixels, as for the weights; --data.image_size is yours."
        )
    if "interpolation" not in given and weights.get("interpolation") in RESAMPLING:
        data.interpolation = weights["interpolation"]
    for name in {"mean", "std"} - set(given):
        taken = list(weights[name])
        data[name] = taken if len(taken) == channels else [sum(taken) / len(taken)]


def main(args: Sequence[str]) -> None:
    """Run ``lt-cb recommend``.

    Args:
        args: the words behind ``recommend``.

    Raises:
        SystemExit: with code 2, after one sentence on stderr, if the input is wrong.
    """
    run(Recommend, "recommend", [*args, *PLAIN], LongTailedClassifier, LongTailedDataModule)
