"""``lt-cb recommend``: choose the loss and class weights of a head on a frozen backbone, and write its checkpoint."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lt_cb.commands.cli import CommandLine
from lt_cb.commands.train import make_trainer
from lt_cb.errors import enumerate_names
from lt_cb.features import classifier_of, frozen_features
from lt_cb.heads import page
from lt_cb.heads.folds import (
    Choice,
    Trial,
    choose,
    cross_validate,
    fit_temperature,
    held_out_logits,
    stratified_folds,
    temperature_scaled,
)
from lt_cb.heads.setup import GRID, Setup, add_grid, set_up
from lt_cb.heads.solve import Basis, solve_at
from lt_cb.metrics import label_scores
from lt_cb.runs import checkpoint as checkpoints
from lt_cb.runs.folder import RunDir, write_json, write_text


class Solved(NamedTuple):
    """The chosen head, and how it was chosen.

    Attributes:
        head: state of the classifier, weight (C, D) and bias (C,).
        temperature: temperature that the logits were divided by.
        thresholds: logits from which on each label is predicted; None with one label an image.
        trial: results of all candidates on held-out images.
        choice: the chosen candidate.
    """

    head: dict[str, Tensor]
    temperature: float
    thresholds: list[float] | None
    trial: Trial
    choice: Choice


def recommend(line: CommandLine, words: Sequence[str]) -> None:
    """Compare recipes by cross-validation on frozen features, and write and test a checkpoint with the best one.

    Args:
        line: the parsed command line.
        words: its words, see `lt_cb.heads.setup.set_up`.
    """
    setup, config = set_up(line, words), line.config
    classifier = classifier_of(setup.model)
    features, targets = frozen_features(setup.model, setup.data, "train", setup.trainer)
    solved = None
    if setup.trainer.is_global_zero:
        solved = _solve(setup, torch.from_numpy(features), targets, config.folds, config.lambdas)
    solved = setup.trainer.strategy.broadcast(solved)
    assert solved is not None
    classifier.load_state_dict(solved.head)
    run = _write(line, setup, solved)
    if setup.trainer.is_global_zero:
        write_json(run.recommendation, _record(solved))
        _report(setup, solved, run, config.folds)


def _solve(setup: Setup, features: Tensor, targets: Tensor, folds: int, l2_strengths: Sequence[float]) -> Solved:
    """Choose a recipe, and solve its head on all training images."""
    data, num_classes = setup.data, setup.model.num_classes
    assigned = stratified_folds(targets, num_classes, folds, data.subset_seed)
    basis = Basis.fit(features)
    train = basis.project(features, targets, num_classes)
    trial = cross_validate(train, assigned, setup.recipes, l2_strengths)
    choice = choose(trial.scores())
    recipe, l2_strength = choice.chosen
    loss = recipe.make(data.class_counts)
    held_out = held_out_logits(train, assigned, choice.chosen, l2_strengths)
    thresholds = label_scores(*held_out).best_thresholds.tolist() if data.multi_label else None
    temperature = 1.0 if data.multi_label else fit_temperature(loss, *held_out)
    heads = solve_at(train, loss, l2_strength, l2_strengths)
    weight, bias = basis.unproject(heads.weight[0], heads.bias[0])
    head = {"weight": weight / temperature, "bias": temperature_scaled(loss, bias[None], temperature)[0]}
    return Solved(head, temperature, thresholds, trial, choice)


def _write(line: CommandLine, setup: Setup, solved: Solved) -> RunDir:
    """Write the checkpoint that ``fit`` would write with the chosen loss, test it, and return its run folder."""
    config, model, data = line.config, setup.model, setup.data
    recipe = solved.choice.chosen.recipe
    loss = recipe.config()
    line.set_loss(loss)
    for name in (*GRID, "ckpt_path"):
        config.pop(name, None)
    checkpoints.without_pretrained(config.model)
    if config.trainer.max_epochs is None:
        config.trainer.max_epochs = 1  # fit needs an end
    model.loss = recipe.make(data.class_counts)
    model.hparams["loss"] = {**loss, "init_args": {"class_counts": data.class_counts, **loss["init_args"]}}
    model.thresholds = solved.thresholds
    trainer = make_trainer(line, setup.options)
    trainer.strategy.connect(model)
    run = RunDir(str(trainer.log_dir))
    trainer.save_checkpoint(run.checkpoint)
    features, _ = frozen_features(model, data, "test", setup.trainer)
    data.replace_images("test", torch.from_numpy(features))
    trainer.test(model, datamodule=data, ckpt_path=str(run.checkpoint), weights_only=True, verbose=False)
    return run


def _record(solved: Solved) -> dict[str, Any]:
    """Return the content of ``recommendation.json``."""
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


def _finding(choice: Choice, never_held_out: Sequence[str], folds: int) -> str:
    """Return the choice and its gain in words."""
    sentences = [f"Chosen: {choice.chosen}."]
    plain = f"plain {choice.plain.recipe}"
    if choice.is_plain:
        sentences.append(f"Class weights do not help here: {plain} is within one standard error of the best.")
    else:
        interval = f"95 % interval {100 * choice.low:.1f} to {100 * choice.high:.1f}"
        gain = f"It is {100 * choice.gain:.1f} points better than {plain} at its best λ, {choice.plain.l2_strength:g}"
        chance = "" if choice.low > 0 else ", but with so few images this may be chance"
        sentences.append(f"{gain}{chance} ({interval}).")
    if never_held_out:
        sentences.append(
            f"The choice ignores {enumerate_names(never_held_out)}: with fewer training images than the {folds} folds, "
            "a class is never held out."
        )
    return " ".join(sentences)


def _report(setup: Setup, solved: Solved, run: RunDir, folds: int) -> None:
    """Print the tables and the finding, and write them as a page."""
    data, trial, choice = setup.data, solved.trial, solved.choice
    names, counts = setup.model.class_names, trial.counts.sum(0)
    never_held_out = [name for name, count in zip(names, counts.tolist(), strict=True) if not count]
    finding = _finding(choice, never_held_out, folds)
    metric = page.PRECISION if data.multi_label else page.ACCURACY
    note = f"Means over {folds} folds of the training images, in percent. The best is bold; expect a little less of it "
    tables = [page.score_table(trial.scores(), metric, f"{note}on new images.")]
    charts = [page.score_chart(trial.scores(), metric, "folds")]
    held_out = f"Held-out images: {choice.chosen}."
    if data.multi_label:
        tables.append(page.precision_table(names, trial.rates(choice.chosen), counts, held_out))
    else:
        tables.append(page.accuracy_table(names, trial.measured[choice.chosen].sum(0), counts, held_out))
        correct = {c: trial.measured[c].sum(0).tolist() for c in dict.fromkeys((choice.plain, choice.chosen))}
        charts += page.accuracy_chart(names, data.class_counts, correct, counts.tolist())
    page.show(tables, finding)
    write_text(run.recommendation_page, page.html("Recommendation", finding, tables, charts))
    sys.stdout.write(f"Page: {run.recommendation_page}\nNext: lt-cb test --ckpt_path {run.checkpoint}, or predict\n")
