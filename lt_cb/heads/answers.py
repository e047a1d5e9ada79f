"""Answers from held-out images besides the choice of a head: prediction sets and suspects."""

import csv
from typing import NamedTuple

from torch import Tensor

from lt_cb.callbacks.result import set_note
from lt_cb.data import LongTailedDataModule
from lt_cb.heads.folds import HeldOut, temperature_scaled
from lt_cb.heads.gallery import gallery, image_names, thumbnails
from lt_cb.heads.suspects import Suspect, mean_by_image, suspect_table, suspects
from lt_cb.lab.report.sections import Section
from lt_cb.lab.report.tables import wilson
from lt_cb.losses import Loss
from lt_cb.losses.prior import balanced_posterior
from lt_cb.runs.folder import RunDir, whole_file
from lt_cb.runs.record import SHOTS, Record
from lt_cb.sets import held_out_scores

MAX_SHOWN = 24  # suspects in the gallery


class Answers(NamedTuple):
    """What held-out images tell besides the choice."""

    set_scores: list[Tensor]  #: see `lt_cb.sets.held_out_scores`
    suspects: list[Suspect]  #: training images whose label looks wrong, the least probable labels first


def answers(loss: Loss, held_out: HeldOut, temperature: float, repeats: int) -> Answers:
    """Return prediction sets' scores and suspects, from logits of images that a number of repeated folds hold out."""
    posterior = balanced_posterior(loss, temperature_scaled(loss, held_out.logits, temperature).double())
    targets, num_classes = held_out.targets, posterior.shape[1]
    true = posterior.gather(1, targets[:, None])[:, 0]
    mean, rows = mean_by_image(posterior, held_out.rows)
    labels = targets.new_zeros(int(rows.max()) + 1).index_copy_(0, held_out.rows, targets)[rows]
    return Answers(held_out_scores(true, targets, num_classes, repeats), suspects(mean, labels, rows))


def write_suspects(run: RunDir, found: list[Suspect], data: LongTailedDataModule) -> None:
    """Write ``suspects.csv``."""
    with whole_file(run.suspects) as stream:
        csv.writer(stream).writerows(suspect_table(found, image_names(data, "train"), data.class_names))


def suspect_gallery(found: list[Suspect], data: LongTailedDataModule) -> str:
    """Return the first suspects as thumbnails, as HTML; nothing without suspects."""
    if not found:
        return ""
    first = found[:MAX_SHOWN]
    uris = thumbnails(data, "train", [image.row for image in first])
    names = data.class_names
    captions = [f"{names[image.label]}, or {names[image.likely]}?" for image in first]
    words = (
        f"For {len(found)} held-out training images another class is more probable than their label. The least "
        "probable labels come first; suspects.csv has all. Many are right, and only hard to recognise."
    )
    return gallery("Labels to check", words, uris, captions)


def set_table(record: Record) -> Section | None:
    """Return coverage and size of the prediction sets of the test images by class and shot group; None without sets."""
    if record.set_coverage is None or record.set_size is None or record.set_level is None:
        return None
    counts = record.test_counts or []
    rows = []
    for name, total, rate, size in zip(record.class_names, counts, record.set_coverage, record.set_size, strict=True):
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
