"""``lt-cb recommend``: choose the loss and class weights of a head on a frozen backbone, and write its checkpoint."""

import statistics
import sys
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lt_cb.commands.cli import CommandLine, command
from lt_cb.commands.elsewhere import digests_in
from lt_cb.commands.next import next_line
from lt_cb.commands.words import shell_command
from lt_cb.data import LongTailedDataModule
from lt_cb.data.grouped import say_groups
from lt_cb.data.sources.base import FileSource
from lt_cb.errors import enumerate_names
from lt_cb.extract import classifier_of
from lt_cb.features import check_features, frozen_features
from lt_cb.hardware import reused_memory
from lt_cb.heads import page
from lt_cb.heads.answers import Answers, answers, write_suspects
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
from lt_cb.lab.report.sections import Section
from lt_cb.metrics import best_thresholds
from lt_cb.module import LongTailedClassifier
from lt_cb.runs import checkpoint as checkpoints
from lt_cb.runs.folder import RunDir, write_json, write_text
from lt_cb.runs.record import METRICS
from lt_cb.text import printable


class Solved(NamedTuple):
    """The chosen head, and how it was chosen.

    Attributes:
        head: state of the classifier, weight (C, D) and bias (C,).
        temperature: temperature that the logits were divided by.
        thresholds: logits from which on each label is predicted; None with one label an image.
        answers: scores for prediction sets, and suspects; None with several labels an image.
        trial: results of all candidates on held-out images.
        choice: the chosen candidate.
    """

    head: dict[str, Tensor]
    temperature: float
    thresholds: list[float] | None
    answers: Answers | None
    trial: Trial
    choice: Choice


@command(GRID, defaults=preprocessing)
def recommend(cli: CommandLine) -> None:
    """Compare recipes by cross-validation on frozen features, and write and test a checkpoint with the best one."""
    solved, config = None, cli.config
    with set_up(cli) as setup:
        before = _trained_before(cli)
        classifier = classifier_of(setup.model)
        _check_images(setup.data, config.folds)
        features, targets = frozen_features(setup.model, setup.data, "train", setup.trainer, setup.cluster)
        if setup.trainer.is_global_zero:
            values = torch.from_numpy(features)
            with one_thread_if_small(values):
                solved = _solve(setup, values, targets, config.folds, config.lambdas)
    solved = setup.trainer.strategy.broadcast(solved)
    assert solved is not None
    classifier.load_state_dict(solved.head)
    run = _write(cli, setup, solved, before)
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
    trial = cross_validate(train, assigned, setup.recipes, l2_strengths, setup.cluster)
    choice = choose(trial.scores())
    recipe, l2_strength = choice.chosen
    loss = recipe.make(data.class_counts, data.num_unlabelled)
    held_out = held_out_logits(train, assigned, choice.chosen, l2_strengths, setup.cluster)
    thresholds = best_thresholds(held_out.logits, held_out.targets).tolist() if data.multi_label else None
    temperature = 1.0 if data.multi_label else fit_temperature(loss, held_out.logits, held_out.targets)
    answered = None if data.multi_label else answers(features, targets, loss, held_out, temperature, assigned)
    heads = solve_path(train, [loss], [v for v in l2_strengths if v >= l2_strength])[l2_strength]
    weight, bias = basis.unproject(heads.weight[0], heads.bias[0])
    head = {"weight": weight / temperature, "bias": temperature_scaled(loss, bias[None], temperature)[0]}
    return Solved(head, temperature, thresholds, answered, trial, choice)


def _trained_before(cli: CommandLine) -> Tensor | None:
    """Return the digests of the images that trained the backbone: none if it is pretrained; None if not known."""
    digests = np.empty(0, np.int64) if cli.checkpoint is None else digests_in(cli.checkpoint)
    return None if digests is None else torch.from_numpy(digests)


def _write(cli: CommandLine, setup: Setup, solved: Solved, trained_before: Tensor | None) -> RunDir:
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
    model.head = {"l2_strength": solved.choice.chosen.l2_strength, "temperature": solved.temperature}
    model.head["trained_before"] = trained_before
    if solved.answers is not None:
        model.set_scores, model.familiarity = solved.answers.set_scores, solved.answers.familiarity
    check_features(model, data, "train", setup.trainer)
    _ = trainer.logger.experiment  # type: ignore[union-attr]  # creates the folder
    trainer.strategy.connect(model)
    run = RunDir(str(trainer.log_dir))
    trainer.save_checkpoint(run.checkpoint)
    with reused_memory():
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


def _result(choice: Choice, score: float, metric: str) -> str:
    """Return the choice, its score and its gain over plain softmax or sigmoid, in one sentence."""
    made = f"Chosen: {choice.chosen}, with {100 * score:.1f} % {metric} on held-out images"
    if choice.is_plain:
        return f"{made}; weighting is not shown to help."
    plain = f"plain {choice.plain.recipe} at its best λ, {choice.plain.l2_strength:g}"
    gain = f"{100 * choice.gain:.1f} points better than {plain}"
    interval = f"95 % interval {100 * choice.low:.1f} to {100 * choice.high:.1f}"
    if choice.low > 0:
        return f"{made}, {gain} ({interval})."
    return f"{made}; not shown to help: it is {gain}, but this may be chance ({interval})."


def _notes(choice: Choice, scores: page.Scores, ignored: Sequence[str], few: str) -> list[str]:
    """Return sentences on the choice: why not the highest score, whether other folds agree, and classes left out."""
    chosen, best = choice.chosen, page.highest(scores, choice.chosen)
    notes = []
    if best != chosen:
        default = "the default" if chosen == choice.default else f"the default, {choice.default},"
        kept = ". So the default is kept" if chosen == choice.default else ""
        score = 100 * statistics.mean(scores[best])
        notes.append(f"{best} has {score:.1f} %, but is not better than {default} by one standard error{kept}.")
    elif chosen == choice.default:
        notes.append("It is the default, and nothing else has a higher score.")
    if not choice.is_plain:
        notes.append("The interval is a little too good, because the choice was made on the same images.")
    agreed = choice.by_repeat.count(chosen)
    others = [str(other) for other in dict.fromkeys(choice.by_repeat) if other != chosen]
    other_choices = f"; with other folds the choice is {' or '.join(others)}" if others else ""
    notes.append(f"{agreed} of {len(choice.by_repeat)} repeats of the folds choose it{other_choices}.")
    notes += _ends_of_grid(chosen, scores)
    if ignored:
        notes.append(f"The choice ignores {enumerate_names(ignored)}: a class of {few} is never held out.")
    return notes


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


def _class_table(setup: Setup, solved: Solved, held_out: Sequence[int]) -> Section:
    """Return accuracy or average precision of each class, the rarest first."""
    trial, choice, data = solved.trial, solved.choice, setup.data
    names, training = data.class_names, data.class_counts
    note = f"Held-out images of all folds, means over {REPEATS} repeats, the rarest class first: {choice.chosen}."
    if data.multi_label:
        return page.precision_table(names, training, trial.rates(choice.chosen), note)
    correct = {
        str(c.recipe): (trial.measured[c].sum(0) / REPEATS).round().long() for c in (choice.chosen, choice.plain)
    }
    return page.accuracy_table(names, training, held_out, correct, note)


def _report(cli: CommandLine, setup: Setup, solved: Solved, run: RunDir) -> None:
    """Write ``recommendation.json``, ``suspects.csv`` and the page, and print the tables and the result."""
    trial, choice, folds, data = solved.trial, solved.choice, len(solved.trial.counts) // REPEATS, setup.data
    scores, held_out = trial.scores(), (trial.counts.sum(0) // REPEATS).tolist()
    metric = METRICS[data.task.main_metric].title.lower()
    write_json(run.recommendation, _record(solved, metric))
    if solved.answers is not None:
        write_suspects(run, solved.answers.suspects, data)
    ignored = [name for name, count in zip(data.class_names, held_out, strict=True) if not count]
    few = "one group of training images" if data.groups("train") is not None else "one training image"
    if data.multi_label and data.groups("train") is None:
        few = f"fewer training images than the {folds} folds"
    result = _result(choice, statistics.mean(scores[choice.chosen]), metric)
    notes = _notes(choice, scores, ignored, few)
    words = (
        f"Means over {folds} folds of the training images, repeated {REPEATS} times, in percent. ✓ is chosen, ↑ the "
        "highest. A score that is the best of many will be a little worse on new images."
    )
    table, by_class = page.score_table(scores, metric, words, choice.chosen), _class_table(setup, solved, held_out)
    page.show([table, by_class], notes)
    before = page.answers_html(notes, by_class, solved.answers, data, run)
    place = str(data.source.root) if isinstance(data.source, FileSource) else type(data.source).__name__
    title = printable(f"Recommendation: {place}, {str(cli.config.model.backbone).rpartition('.')[2]}")
    after = page.made_by(shell_command("recommend", *cli.words))
    write_text(run.recommendation_page, page.html(title, result, table, scores, metric, before, after))
    sys.stdout.write(f"{printable(f'Page: {run.recommendation_page}')}\n{printable(result)}\n")
    sys.stdout.write(next_line(data, run, run.checkpoint))
