"""Answers from held-out images besides the choice of a head: prediction sets, suspects and unknown images."""

import csv
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_cb.callbacks.result import set_note
from lt_cb.data import LongTailedDataModule
from lt_cb.heads.folds import HeldOut, splits_of, temperature_scaled
from lt_cb.heads.gallery import image_names
from lt_cb.heads.solve import Basis
from lt_cb.heads.suspects import Suspect, mean_by_image, suspect_table, suspects
from lt_cb.lab.report.sections import Section
from lt_cb.lab.report.tables import wilson
from lt_cb.losses import Loss
from lt_cb.losses.prior import balanced_posterior
from lt_cb.runs.folder import RunDir, whole_file
from lt_cb.runs.record import SHOTS, Record
from lt_cb.sets import held_out_scores
from lt_cb.unknown import Familiarity, class_means, nearest, quantiles_of

MAX_AXES = 256  # axes of the distance; further ones are mostly noise, and would enlarge the checkpoint


class Answers(NamedTuple):
    """Answers from held-out images besides the choice."""

    set_scores: list[Tensor]  #: see `lt_cb.sets.held_out_scores`
    suspects: list[Suspect]  #: training images whose label looks wrong, the least probable labels first
    confusions: list[Suspect]  #: images that the head takes for another class, the most confident ones first
    familiarity: Familiarity  #: how familiar the known classes look


def answers(
    features: Tensor, targets: Tensor, loss: Loss, held_out: HeldOut, temperature: float, folds: Tensor
) -> Answers:
    """Return what held-out images tell.

    Args:
        features: of the training images, as the backbone yields them, shape (N, D).
        targets: their class indices, int64 of shape (N,).
        loss: loss of the chosen head.
        held_out: logits of the images that the folds hold out.
        temperature: temperature to divide the logits by.
        folds: folds of `repeated_folds`, int64 of shape (J, N).
    """
    logits = temperature_scaled(loss, held_out.logits, temperature).double()
    posterior = balanced_posterior(loss, logits)
    true = posterior.gather(1, held_out.targets[:, None])[:, 0]
    scores = held_out_scores(true, held_out.targets, posterior.shape[1], len(folds))
    mean, rows = mean_by_image(posterior, held_out.rows)
    predicted, _ = mean_by_image(loss.probabilities(logits), held_out.rows)
    confusions = suspects(predicted, targets[rows], rows)
    confusions.sort(key=lambda image: image.likely_posterior, reverse=True)
    familiarity = fit_familiarity(features, targets, posterior.max(1).values, folds)
    return Answers(scores, suspects(mean, targets[rows], rows), confusions, familiarity)


def fit_familiarity(features: Tensor, targets: Tensor, highest: Tensor, folds: Tensor) -> Familiarity:
    """Return how familiar images of the known classes look, calibrated on images that the first repeat holds out.

    Neither the axes nor the class means that such an image is compared with use it: axes fit their own images too well.

    Args:
        features: of the training images, shape (N, D).
        targets: their class indices, int64 of shape (N,).
        highest: highest balanced posterior of the images that the folds hold out, fold by fold, shape (M,).
        folds: folds of `repeated_folds`, int64 of shape (J, N).
    """
    units, distances, labels = F.normalize(features.float(), dim=1), [], []
    for held in splits_of(folds[:1]):
        distances.append(nearest(*_spots_and_means(units, targets, ~held, held)))
        labels.append(targets[held])
    distance, label = torch.cat(distances), torch.cat(labels)
    highest = highest[: len(label)].float()
    centre, whitening = whitened_axes(units, MAX_AXES)
    means = class_means((units - centre) @ whitening, targets)
    quantiles = quantiles_of(highest, label), quantiles_of(distance, label)
    made = Familiarity(centre, whitening, means, *quantiles, torch.zeros(1))
    return replace(made, ranks=quantiles_of(made.mean_rank(highest, distance), label))


def _spots_and_means(units: Tensor, targets: Tensor, known: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """Return held-out images and class means, in axes of the other images."""
    centre, whitening = whitened_axes(units[known], MAX_AXES)
    return (units[held] - centre) @ whitening, class_means((units[known] - centre) @ whitening, targets[known])


def whitened_axes(units: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the mean of features, shape (D,), and their strongest axes, scaled to variance 1, shape (D, R)."""
    basis, strongest = Basis.fit(units), slice(-most, None)
    return basis.mean, basis.axes[:, strongest] / basis.scale[:, None] / basis.variances[strongest].sqrt()


def write_suspects(run: RunDir, found: list[Suspect], data: LongTailedDataModule) -> None:
    """Write ``suspects.csv``."""
    with whole_file(run.suspects) as stream:
        csv.writer(stream).writerows(suspect_table(found, image_names(data, "train"), data.class_names))


def set_table(record: Record) -> Section | None:
    """Return coverage and size of the prediction sets of the test images by class and shot group; None without sets.

    The rarest class comes first.
    """
    if record.set_coverage is None or record.set_size is None or record.set_level is None:
        return None
    counts = record.test_counts or []
    rows = []
    for c in sorted(range(len(counts)), key=record.class_counts.__getitem__):
        name, total, rate, size = record.class_names[c], counts[c], record.set_coverage[c], record.set_size[c]
        if rate is not None and size is not None:
            low, high = wilson(round(rate * total), total)
            rows.append([name, str(total), f"{rate:.1%}", f"{low:.1%} to {high:.1%}", f"{size:.2f}"])
    for group in SHOTS:
        if (mean := record.metrics.get(f"test/coverage/{group}")) is not None:
            rows.append([f"{group}-shot classes", "", f"{mean:.1%}", "", ""])
    mean, size = (record.metrics[f"test/{name}"] for name in ("coverage", "set_size"))
    rows.append(["mean over classes", "", f"{mean:.1%}", "", f"{size:.2f}"])
    header = ["class", "test images", f"coverage, promised {record.set_level:.0%}", "95 % interval", "classes in a set"]
    return Section("Prediction sets", set_note(record.set_level), header, rows)
