"""``lt-cb heads``: the test accuracy of every loss, weighting, prior and L2 strength on frozen features."""

import csv
import sys
from collections.abc import Sequence

import torch
from lightning.pytorch.cli import LightningArgumentParser

from lt_cb.heads.recommend import PLAIN, Recommend, show
from lt_cb.commands.train import data_module, run
from lt_cb.data import LongTailedDataModule
from lt_cb.errors import InputError
from lt_cb.features import frozen_features
from lt_cb.heads.folds import Candidate, Recipe, try_all
from lt_cb.heads.page import BALANCED, PRECISION, html, surface
from lt_cb.heads.solve import Basis
from lt_cb.loggers import WandB
from lt_cb.metrics import accuracies
from lt_cb.module import LongTailedClassifier
from lt_cb.runs.folder import RunDir, whole_file, write_text


class Heads(Recommend):
    """The grid of ``recommend``, solved on all training images of several subsets, and tested."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the seeds."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--seeds", type=list[int], default=[0, 1, 2], help="Of the subsets, one or more.")

    def before_instantiate_classes(self) -> None:
        """Refuse seeds that say nothing."""
        super().before_instantiate_classes()
        seeds = self.config.seeds
        if not seeds or len(set(seeds)) < len(seeds):
            raise InputError(f"seeds is {seeds}, but must be one or more different numbers, as --seeds [0,1,2].")
        self.config.data.subset_seed = seeds[0]

    def run(self) -> None:
        """Solve and test the heads of each subset."""
        scores: dict[Candidate, list[float]] = {}
        for seed in self.config.seeds:
            if seed != self.datamodule.subset_seed:
                self.config.data.subset_seed = seed
                self.datamodule = data_module(type(self.datamodule), self.config.data)
            for candidate, score in self._test().items():
                scores.setdefault(candidate, []).append(score)
        if self.trainer.is_global_zero:
            self._write_scores(scores)

    def _test(self) -> dict[Candidate, float]:
        """Return the balanced accuracy, or mean average precision, in [0, 1], of each candidate on the test images."""
        model, data = self.model, self.datamodule
        (values, targets), (test_values, test_targets) = (
            frozen_features(model, data, split, self.trainer) for split in ("train", "test")
        )
        if not self.trainer.is_global_zero:
            return {}
        basis = Basis.of(torch.from_numpy(values))
        shown = basis.project(torch.from_numpy(test_values)), test_targets
        x, config = basis.project(torch.from_numpy(values)), self.config
        right = try_all(x, targets, model.num_classes, shown, self.tried, config.lambdas, basis.variances)
        if self.multi_label:
            return {candidate: values.nanmean().item() for candidate, values in right.items()}
        counted = test_targets.bincount(minlength=model.num_classes)
        return {candidate: accuracies(hits, counted, {})["balanced_acc"].item() for candidate, hits in right.items()}

    def _write_scores(self, scores: dict[Candidate, list[float]]) -> None:
        config = self.config
        folder = self.run_folder()
        _ = folder.experiment  # takes the folder
        files = RunDir(folder.log_dir)
        metric, column = (PRECISION, "mAP") if self.multi_label else (BALANCED, "balanced_acc")
        header = ["loss", "options", "beta", "lambda", "subset_seed", column]
        rows = [
            [c.recipe.loss, _options(c.recipe), c.recipe.beta, c.strength, seed, round(score, 6)]
            for c, each in scores.items()
            for seed, score in zip(config.seeds, each, strict=True)
        ]
        with whole_file(files.heads) as stream:
            csv.writer(stream).writerows([header, *rows])
        words = (
            f"Test images, means over {len(config.seeds)} subset seeds, in percent; bold is the best. Choose by none."
        )
        tables = [surface(scores, words, metric)]
        finding = (
            f"{len(scores)} heads on frozen features of {config.model.backbone}, trained on subset seeds "
            f"{', '.join(map(str, config.seeds))} and tested. lt-cb recommend chooses one by the training images alone."
        )
        show(tables, finding)
        write_text(files.heads_page, html("Heads", finding, tables, scores, "subset seeds", metric=metric))
        sys.stdout.write(f"{files.heads}, {files.heads_page}\n")
        asked = self.config_init.trainer.logger
        for logger in asked if isinstance(asked, list) else [asked]:
            if isinstance(logger, WandB):
                logger.beside = folder
                logger.log_table("heads", header, [[str(v) if isinstance(v, dict) else v for v in row] for row in rows])


def _options(recipe: Recipe) -> dict[str, float | str] | None:
    of: dict[str, float | str] = {} if recipe.weight_of is None else {"weight_of": recipe.weight_of}
    return {**dict(recipe.options), **of} or None


def main(args: Sequence[str]) -> None:
    """Run ``lt-cb heads``.

    Args:
        args: the words behind ``heads``.

    Raises:
        SystemExit: with code 2, after one sentence on stderr, if the input is wrong.
    """
    run(Heads, "heads", [*args, *PLAIN], LongTailedClassifier, LongTailedDataModule)
