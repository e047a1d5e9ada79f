"""``lt-cb recommend``: choose the loss and class weights of a head on a frozen backbone, and write its checkpoint."""

import sys
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lt_cb.commands.cli import CommandLine, command
from lt_cb.commands.restored import is_known
from lt_cb.data import LongTailedDataModule
from lt_cb.data.grouped import say_groups
from lt_cb.errors import enumerate_names
from lt_cb.features import check_features, classifier_of, frozen_features
from lt_cb.heads import page
from lt_cb.heads.folds import (
    REPEATS,
    Choice,
    Trial,
    choose,
    cross_validate,
    fit_temperature,
    held_out_logits,
    repeated_folds,
    temperature_scaled,
)
from lt_cb.heads.recipes import Candidate, settings_of
from lt_cb.heads.setup import GRID, Setup, preprocessing, set_up
from lt_cb.heads.solve import Basis, one_thread_if_small, solve_path
from lt_cb.metrics import best_thresholds
from lt_cb.module import LongTailedClassifier
from lt_cb.runs import checkpoint as checkpoints
from lt_cb.runs.folder import RunDir, write_json, write_text
from lt_cb.runs.record import METRICS


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


@command(GRID, defaults=preprocessing)
def recommend(cli: CommandLine) -> None:
    """Compare recipes by cross-validation on frozen features, and write and test a checkpoint with the best one."""
    setup, config = set_up(cli), cli.config
    classifier = classifier_of(setup.model)
    _check_images(setup.data, config.folds)
    features, targets = frozen_features(setup.model, setup.data, "train", setup.trainer)
    solved = None
    if setup.trainer.is_global_zero:
        values = torch.from_numpy(features)
        with one_thread_if_small(values):
            solved = _solve(setup, values, targets, config.folds, config.lambdas)
    solved = setup.trainer.strategy.broadcast(solved)
    assert solved is not None
    classifier.load_state_dict(solved.head)
    run = _write(cli, setup, solved)
    if setup.trainer.is_global_zero:
        _report(cli, setup, solved, run)


def _check_images(data: LongTailedDataModule, folds: int) -> None:
    """Check that folds can be made and the test images can be read, before features are computed."""
    counts = torch.tensor(data.class_counts)
    one_label = torch.arange(len(counts)).repeat_interleave(counts)
    groups = _groups(data)
    if groups is None:
        say_groups(data, drawn=True)
    known = data.multi_label or groups is not None
    targets = torch.from_numpy(data.training_labels()) if known else one_label
    repeated_folds(targets, len(counts), folds, data.subset_seed, groups)
    data.targets("test")


def _groups(data: LongTailedDataModule) -> Tensor | None:
    """Return the groups of the training images, which folds keep together."""
    groups = data.groups("train")
    return None if groups is None else torch.from_numpy(groups)


def _solve(setup: Setup, features: Tensor, targets: Tensor, folds: int, l2_strengths: Sequence[float]) -> Solved:
    """Choose a recipe, and solve its head on all training images."""
    data, num_classes = setup.data, setup.model.num_classes
    assigned = repeated_folds(targets, num_classes, folds, data.subset_seed, _groups(data))
    basis = Basis.fit(features)
    train = basis.project(features, targets, num_classes)
    trial = cross_validate(train, assigned, setup.recipes, l2_strengths)
    choice = choose(trial.scores())
    recipe, l2_strength = choice.chosen
    loss = recipe.make(data.class_counts, data.num_unlabelled)
    held_out = held_out_logits(train, assigned, choice.chosen, l2_strengths)
    thresholds = best_thresholds(held_out.logits, held_out.targets).tolist() if data.multi_label else None
    temperature = 1.0 if data.multi_label else fit_temperature(loss, held_out.logits, held_out.targets)
    heads = solve_path(train, [loss], [v for v in l2_strengths if v >= l2_strength])[l2_strength]
    weight, bias = basis.unproject(heads.weight[0], heads.bias[0])
    head = {"weight": weight / temperature, "bias": temperature_scaled(loss, bias[None], temperature)[0]}
    return Solved(head, temperature, thresholds, trial, choice)


def _write(cli: CommandLine, setup: Setup, solved: Solved) -> RunDir:
    """Write the checkpoint that ``fit`` would write with the chosen loss, test it, and return its run folder.

    The checkpoint and the test are of a new network, as in a new process. The test starts from the images.
    """
    data, trainer = setup.data, setup.run
    cli.set_loss(solved.choice.chosen.recipe.config())
    config = cli.config
    for name in (*GRID, "ckpt_path", "trust_checkpoint"):
        config.pop(name, None)
    checkpoints.without_pretrained(config.model)
    if config.trainer.max_epochs is None:
        config.trainer.max_epochs = 1  # fit needs an end
    model: LongTailedClassifier = cli.make_all(data).model
    model.backbone.load_state_dict(setup.model.backbone.state_dict())
    model.thresholds = solved.thresholds
    check_features(model, data, "train", setup.trainer)
    _ = trainer.logger.experiment  # type: ignore[union-attr]  # creates the folder
    trainer.strategy.connect(model)
    run = RunDir(str(trainer.log_dir))
    trainer.save_checkpoint(run.checkpoint)
    trainer.test(model, datamodule=data, ckpt_path=str(run.checkpoint), weights_only=True, verbose=False)
    return run


def _record(solved: Solved, metric: str) -> dict[str, Any]:
    """Return the content of ``recommendation.json``."""
    choice = solved.choice
    plain = str(choice.plain.recipe)
    return {
        "chosen": str(choice.chosen),
        f"plain_{plain}": str(choice.plain),
        "gain": choice.gain,
        "interval": [choice.low, choice.high],
        "default": str(choice.default),
        "chosen_by_each_repeat": [str(candidate) for candidate in choice.by_repeat],
        f"beats_plain_{plain}": choice.low > 0,
        "temperature": solved.temperature,
        f"{metric.replace(' ', '_')}_by_fold": {str(c): values for c, values in solved.trial.scores().items()},
    }


def _finding(choice: Choice, candidates: Collection[Candidate], ignored: Sequence[str], few: str) -> str:
    """Return the choice in words: its gain, how far other folds agree, and what it left out."""
    chosen, plain = choice.chosen, f"plain {choice.plain.recipe}"
    sentences = [f"Chosen: {chosen}."]
    if choice.is_plain:
        sentences.append("Weighting is not shown to help: nothing else is better by more than one standard error.")
    else:
        if chosen == choice.default:
            sentences.append("It is the default: nothing else is better by more than one standard error.")
        interval = f"95 % interval {100 * choice.low:.1f} to {100 * choice.high:.1f}"
        gain = f"it is {100 * choice.gain:.1f} points better than {plain} at its best λ, {choice.plain.l2_strength:g}"
        if choice.low > 0:
            sentences.append(f"On held-out images {gain} ({interval}).")
        else:
            sentences.append(f"Not shown to help: on held-out images {gain}, but this may be chance ({interval}).")
        sentences.append("The interval is a little too good, because the choice was made on the same images.")
    agreed = choice.by_repeat.count(chosen)
    others = [str(other) for other in dict.fromkeys(choice.by_repeat) if other != chosen]
    other_choices = f"; with other folds the choice is {' or '.join(others)}" if others else ""
    sentences.append(f"{agreed} of {len(choice.by_repeat)} repeats of the folds choose it{other_choices}.")
    sentences += _ends_of_grid(chosen, candidates)
    if ignored:
        sentences.append(f"The choice ignores {enumerate_names(ignored)}: a class of {few} is never held out.")
    return " ".join(sentences)


def _ends_of_grid(chosen: Candidate, candidates: Collection[Candidate]) -> list[str]:
    """Return a sentence for each value of the chosen candidate at an end of its grid.

    The smallest beta, gamma and tau are no ends, since plain softmax lies below them.
    """
    l2_strengths = {candidate.l2_strength for candidate in candidates}
    sentences = []
    for end, extreme in (("largest", max(l2_strengths)), ("smallest", min(l2_strengths))):
        if len(l2_strengths) > 1 and chosen.l2_strength == extreme:
            sentences.append(f"λ {extreme:g} is the {end} of the grid: try {end[:-3]}er ones too (--lambdas).")
    values = settings_of(chosen.recipe)
    grid = [settings_of(candidate.recipe) for candidate in candidates]
    for name, value in values.items():
        if value == max(others.get(name, value) for others in grid):
            sentences.append(f"{name} {value:g} is the largest of the grid: try larger ones too (--{name}s).")
    return sentences


def _report(cli: CommandLine, setup: Setup, solved: Solved, run: RunDir) -> None:
    """Write ``recommendation.json``, print the tables and the finding, and write them as a page."""
    trial, choice, folds = solved.trial, solved.choice, len(solved.trial.counts) // REPEATS
    names, counts, scores = setup.model.class_names, (trial.counts.sum(0) // REPEATS).tolist(), trial.scores()
    metric = METRICS[setup.data.task.main_metric].title.lower()
    write_json(run.recommendation, _record(solved, metric))
    ignored = [name for name, count in zip(names, counts, strict=True) if not count]
    few = "one group of training images" if setup.data.groups("train") is not None else "one training image"
    if setup.data.multi_label and setup.data.groups("train") is None:
        few = f"fewer training images than the {folds} folds"
    finding = _finding(choice, list(scores), ignored, few)
    note = (
        f"Means over {folds} folds of the training images, repeated {REPEATS} times, in percent. The best is bold. "
        "Since it is the best of many, it will be a little worse on new images."
    )
    held_out = f"Held-out images of all folds, means over {REPEATS} repeats: {choice.chosen}."
    if setup.data.multi_label:
        by_class = page.precision_table(names, trial.rates(choice.chosen), counts, held_out)
    else:
        methods = {
            str(c.recipe): (trial.measured[c].sum(0) / REPEATS).round().long() for c in (choice.plain, choice.chosen)
        }
        by_class = page.accuracy_table(names, methods, counts, held_out)
    tables = [page.score_table(scores, metric, note), by_class]
    page.show(tables, finding)
    write_text(run.recommendation_page, page.html("Recommendation", finding, tables, scores, metric))
    trust = "" if is_known("model.backbone", cli.config.model.backbone) else " --trust_checkpoint true"
    sys.stdout.write(
        f"Page: {run.recommendation_page}\nNext: lt-cb test --ckpt_path {run.checkpoint}{trust}, or predict\n"
    )
