"""``lt-cb recommend``: which loss and weighting a head on a frozen backbone is to have, and a checkpoint with it."""

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lt_cb import checkpoint as checkpoints
from lt_cb.commands.messages import Parser
from lt_cb.commands.train import CLI, run
from lt_cb.data import LongTailedDataModule
from lt_cb.errors import InputError, check_at_least, enumerate_names
from lt_cb.heads.features import classifier_of, feature_trainer, frozen_features
from lt_cb.heads.folds import (
    Candidate,
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
from lt_cb.heads.solve import Basis, solve_path
from lt_cb.loggers import RunFolder
from lt_cb.models.build import OURS, pretrained_cfg
from lt_cb.module import LongTailedClassifier
from lt_cb.report.tables import wilson
from lt_cb.run import RunDir, write_json

LAMBDAS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.0003)
BETAS = (0.9, 0.99, 0.999, 0.9999)
GAMMAS = (1.0,)
TAUS = (0.5, 1.0, 1.5)
OWN = ("folds", "lambdas", "betas", "gammas", "taus", "ckpt_path", "weights_only")
SHOWN = 10  # best candidates


class Solved(NamedTuple):
    """What comes of the features.

    Attributes:
        head: weight, (C, D), and bias, (C,), of the classifier, whose probabilities are calibrated.
        temperature: that they were divided by.
        trial: of all candidates.
        choice: among them.
    """

    head: dict[str, Tensor]
    temperature: float
    trial: Trial
    choice: Choice


class Recommend(CLI):
    """The command line of a training, of which only the classifier is solved."""

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

    def before_instantiate_classes(self) -> None:
        """Refuse a grid that cannot be; take weights and preprocessing that timm has for its backbone."""
        config = self.config
        config.data.val_fraction = 0.0  # folds hold out
        config.trainer.precision = config.trainer.precision or "32-true"  # features are kept in float32
        self.tried = recipes(config.betas, config.gammas, config.taus)
        for strength in config.lambdas or [-1.0]:
            check_at_least("lambda", strength, 0, "set --lambdas to one or more, 0 does not regularise.")
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
            _take_preprocessing(config.data, weights, _data_module(self._datamodule_class, config.data).in_channels)

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
        folder = self._write(solved.choice.chosen.recipe.arguments())
        if self.trainer.is_global_zero:
            self._report(solved.trial, solved.choice)
            write_json(RunDir(folder).recommendation, _record(solved))
            sys.stdout.write(f"Checkpoint for lt-cb test and lt-cb predict: {RunDir(folder).checkpoint}\n")

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
        temperature = fit_temperature(loss, *held)
        path = [value for value in config.lambdas if value >= strength]
        heads = solve_path(x, targets, [loss], path, basis.variances)[strength]
        weight, bias = basis.unproject(heads.weight[0], heads.bias[0])
        head = {"weight": weight / temperature, "bias": cooled(loss, bias[None], temperature)[0]}
        return Solved(head, temperature, trial, choice)

    def _write(self, arguments: list[str]) -> Path:
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
        cli.trainer.strategy.connect(cli.model)
        first = cli.trainer.loggers[0]
        assert isinstance(first, RunFolder)
        _ = first.experiment  # takes the folder
        folder = str(cli.trainer.log_dir)
        file = RunDir(folder).checkpoint
        cli.trainer.save_checkpoint(file)
        cli.trainer.test(cli.model, datamodule=self.datamodule, ckpt_path=str(file), weights_only=True, verbose=False)
        return Path(folder)

    def _report(self, trial: Trial, choice: Choice) -> None:
        console = Console()
        scores = {candidate: 100 * statistics.mean(values) for candidate, values in trial.scores().items()}
        table = Table(title="Balanced accuracy of held-out images, the best candidates")
        table.add_column("loss")
        table.add_column("lambda", justify="right")
        table.add_column("percent", justify="right")
        for candidate in sorted(scores, key=lambda c: -scores[c])[:SHOWN]:
            table.add_row(str(candidate.recipe), f"{candidate.strength:g}", f"{scores[candidate]:.1f}")
        console.print(table)
        console.print(self._class_table(trial, choice.chosen))
        names, counted = self.model.class_names, trial.counted.sum(0).tolist()
        small = [name for name, count in zip(names, counted, strict=True) if not count]
        lines = [f"Chosen: {choice.chosen}."]
        interval = f"{100 * choice.gain:.1f} points, 95 % interval {100 * choice.low:.1f} to {100 * choice.high:.1f}"
        if not choice.helps:
            lines.append("Weighting does not help here: plain softmax is within one standard error of the best.")
        else:
            beats = "It beats" if choice.low > 0 else "It is not shown, beyond chance, to beat"
            lines.append(f"{beats} plain softmax at its best lambda, {choice.plain.strength:g}: by {interval}.")
        if small:
            lines.append(
                f"Of {enumerate_names(small)} there are fewer training images than {self.config.folds} folds: they are "
                "trained on, but none was held out, and the choice is blind to them."
            )
        for line in lines:
            console.print(line, soft_wrap=True, highlight=False)

    def _class_table(self, trial: Trial, chosen: Candidate) -> Table:
        table = Table(title="Held-out accuracy by class, with Wilson's 95 % interval")
        for name in ("class", "images", "percent", "interval"):
            table.add_column(name, justify="left" if name == "class" else "right")
        rows = zip(
            self.model.class_names, trial.correct[chosen].sum(0).tolist(), trial.counted.sum(0).tolist(), strict=True
        )
        for name, correct, counted in rows:
            low, high = wilson(correct, counted)
            cells = (
                (f"{100 * correct / counted:.1f}", f"{100 * low:.1f} to {100 * high:.1f}") if counted else ("–", "–")
            )
            table.add_row(name, str(counted), *cells)
        return table


def _record(solved: Solved) -> dict[str, Any]:
    choice = solved.choice
    return {
        "chosen": str(choice.chosen),
        "plain_softmax": str(choice.plain),
        "gain": choice.gain,
        "interval": [choice.low, choice.high],
        "helps": choice.helps,
        "temperature": solved.temperature,
        "balanced_accuracy_by_fold": {str(candidate): values for candidate, values in solved.trial.scores().items()},
    }


def _data_module(cls: Any, data: Namespace) -> LongTailedDataModule:  # noqa: ANN401 - a class
    parser = Parser()
    parser.add_lightning_class_args(cls, "data")
    made: LongTailedDataModule = parser.instantiate_classes(Namespace(data=data)).data  # type: ignore[no-untyped-call]
    return made


def _take_preprocessing(data: Namespace, weights: Mapping[str, Any], channels: int) -> None:
    """Set image size, mean and deviation to those of the weights where they are not given."""
    data.image_size = data.image_size or weights["input_size"][-1]
    for name in ("mean", "std"):
        values = list(weights[name])
        if data[name] is None:
            data[name] = values if len(values) == channels else [sum(values) / len(values)]


def main(args: Sequence[str]) -> None:
    """Run ``lt-cb recommend``.

    Args:
        args: the words behind ``recommend``.

    Raises:
        SystemExit: with code 2, after one sentence on stderr, if the input is wrong.
    """
    plain = ["--model.loss=lt_cb.losses.SoftmaxLoss", "--model.second_stage=null"]
    run(Recommend, "recommend", [*args, *plain], LongTailedClassifier, LongTailedDataModule)
