"""``lt-cb heads``: test accuracy of every recipe and L2 strength on frozen features."""

import csv
import sys
from collections.abc import Sequence

import torch

from lt_cb.commands.cli import CommandLine, command
from lt_cb.errors import InputError
from lt_cb.features import frozen_features
from lt_cb.heads import page
from lt_cb.heads.folds import measure_all
from lt_cb.heads.recipes import Candidate
from lt_cb.heads.setup import GRID, Setup, preprocessing, set_up
from lt_cb.heads.solve import Basis
from lt_cb.loggers import WandB
from lt_cb.runs.folder import RunDir, whole_file, write_text
from lt_cb.runs.record import METRICS


@command({**GRID, "seeds": (list[int], [0, 1, 2], "Subset seeds, one or more.")}, defaults=preprocessing)
def heads(cli: CommandLine) -> None:
    """Solve every recipe on all training images of several subsets, and write the scores on the test images."""
    seeds = cli.config.seeds
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds is {seeds}, but must be one or more different numbers, as --seeds [0,1,2].")
    cli.config.data.subset_seed = seeds[0]
    scores: dict[Candidate, list[float]] = {}
    with set_up(cli) as setup:
        for seed in seeds:
            if seed != setup.data.subset_seed:
                cli.config.data.subset_seed = seed
                setup.data = cli.make_data()
            for candidate, score in _test(setup, cli.config.lambdas).items():
                scores.setdefault(candidate, []).append(score)
    if setup.trainer.is_global_zero:
        _write(cli, setup, scores)


def _test(setup: Setup, l2_strengths: Sequence[float]) -> dict[Candidate, float]:
    """Return the balanced accuracy, or mean average precision, in [0, 1] of each candidate on the test images."""
    model, data = setup.model, setup.data
    test, train = (frozen_features(model, data, split, setup.trainer, setup.cluster) for split in ("test", "train"))
    if not setup.trainer.is_global_zero:
        return {}
    basis = Basis.fit(torch.from_numpy(train[0]))
    projected = [basis.project(torch.from_numpy(values), y, model.num_classes) for values, y in (train, test)]
    measured = measure_all(projected[0], projected[1], setup.recipes, l2_strengths)
    if data.multi_label:
        return {candidate: precisions.nanmean().item() for candidate, precisions in measured.items()}
    total = test[1].bincount(minlength=model.num_classes)
    return {candidate: (correct.double() / total).nanmean().float().item() for candidate, correct in measured.items()}


def _write(cli: CommandLine, setup: Setup, scores: dict[Candidate, list[float]]) -> None:
    """Print the scores, and write them as CSV, as a page, and as a table of W&B."""
    seeds = cli.config.seeds
    folder, *loggers = setup.run.loggers
    run = RunDir(folder.experiment.log_dir)  # type: ignore[attr-defined]  # creates the folder
    column = setup.data.task.main_metric
    metric = METRICS[column].title.lower()
    header = ["loss", "options", "beta", "lambda", "subset_seed", column]
    rows: list[list[object]] = []
    for (recipe, l2_strength), values in scores.items():
        options = str(dict(recipe.options)) if recipe.options else None
        rows += [
            [recipe.loss, options, recipe.beta, l2_strength, seed, round(score, 6)]
            for seed, score in zip(seeds, values, strict=True)
        ]
    with whole_file(run.heads) as stream:
        csv.writer(stream).writerows([header, *rows])
    note = f"Test images, means over {len(seeds)} subset seeds, in percent. ↑ is the highest; do not choose by it."
    table = page.score_table(scores, metric, note)
    finding = (
        f"{len(scores)} heads on frozen features of {cli.config.model.backbone}, trained on subset seeds "
        f"{', '.join(map(str, seeds))} and tested. To choose a head by training images only, use lt-cb recommend."
    )
    page.show([table], [finding])
    write_text(run.heads_page, page.html("Heads", finding, table, scores, metric))
    sys.stdout.write(f"{run.heads}, {run.heads_page}\n")
    for logger in loggers:
        if isinstance(logger, WandB):
            logger.log_table("heads", header, rows)
