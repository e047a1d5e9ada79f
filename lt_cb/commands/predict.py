"""``lt-cb predict``: writes the classes of images to ``predictions.csv``."""

import csv
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer

from lt_cb.average import Average
from lt_cb.commands.average import trained_networks
from lt_cb.commands.cli import CommandLine, Options, command
from lt_cb.commands.prior import PRIOR
from lt_cb.commands.save import run_folder
from lt_cb.commands.words import SEPARATOR
from lt_cb.data.given import find_given
from lt_cb.data.loaders.placement import folder_loader
from lt_cb.data.view import View
from lt_cb.errors import InputError
from lt_cb.features import CPU_BATCH_SIZE, MACHINE_OPTIONS
from lt_cb.hardware import mixed_precision, reused_memory
from lt_cb.module import LongTailedClassifier
from lt_cb.runs.folder import RunDir, whole_file
from lt_cb.task import LABEL_SEPARATOR
from lt_cb.text import printable, spreadsheet_safe

GPU_BATCH_SIZE = 128
IMAGES: Options = {
    "images": (
        list[str] | str | None,
        None,
        "Images, folders (searched with their subfolders), patterns such as 'new/*.jpg', or a .txt file of paths.",
    ),
    "on_unreadable": (
        Literal["refuse", "skip"],
        "refuse",
        "refuse, or skip images that cannot be read, with a warning.",
    ),
    "batch_size": (int | None, None, "Images a batch; default 128, on a CPU 32."),
    "num_workers": (int | None, None, "Processes that decode; default one a core."),
    **PRIOR,
}
TOP: Options = {
    "top": (int, 1, "Columns for so many of the most probable classes."),
    "probabilities": (bool, False, "A column for each class."),
    "sets": (float | None, None, "A column with all classes an image may have, right in this share, as 0.9."),
    "unknown": (bool, False, "A column with the share of held-out training images that look more familiar."),
}


def trained_view(cli: CommandLine, model: LongTailedClassifier) -> View:
    """Return how the training showed test images."""
    data, facts = cli.trained.get("data") or {}, model.hparams
    view = View(facts["image_size"], channels=facts["in_channels"])
    return replace(view, **{name: data[name] for name in view.options if name in data})


def _check_views(cli: CommandLine, networks: Sequence[LongTailedClassifier]) -> None:
    """Raise InputError if two networks were trained on images of another size, scaling, crop or channels."""
    lines = (cli, *cli.others)
    views = [trained_view(line, network) for line, network in zip(lines, networks, strict=True)]
    for path, view in zip(cli.ckpt_paths, views, strict=True):
        if view != views[0]:
            raise InputError(
                f"'{path}' was trained on {_words(view)}, but '{cli.ckpt_paths[0]}' on {_words(views[0])}: average "
                "checkpoints that see images alike."
            )


def _words(view: View) -> str:
    return f"{view.channels} channels of {view.size} pixels ({view.interpolation}, {view.crop} crop)"


def image_loader(cli: CommandLine, model: LongTailedClassifier, on_cpu: bool = True) -> tuple[list[Any], Any]:
    """Return the files of ``--images``, and a loader of batches of them."""
    config, skips = cli.config, cli.config.on_unreadable == "skip"
    given = config.images.split(SEPARATOR) if isinstance(config.images, str) else config.images
    view = trained_view(cli, model)
    size = config.batch_size if config.batch_size is not None else CPU_BATCH_SIZE if on_cpu else GPU_BATCH_SIZE
    return folder_loader(given, view, size, config.num_workers, skip_unreadable=skips)


def _ask_for_sets(model: LongTailedClassifier, level: float) -> None:
    """Make ``predict_step`` return prediction sets; raise InputError if the checkpoint has none."""
    if model.multi_label:
        raise InputError(
            "--sets is for one label an image, but this network was trained on several: leave it out; predict writes "
            "all labels above their thresholds."
        )
    if not 0.0 < level < 1.0:
        raise InputError(f"--sets is {level:g}, but must be above 0 and below 1: the share of right sets, as 0.9.")
    model.set_level = level
    model.check_sets()


def _ask_for_unknown(model: LongTailedClassifier) -> None:
    """Make ``predict_step`` return how unfamiliar images look; raise InputError if the checkpoint cannot tell."""
    if model.familiarity is None:
        raise InputError(
            "--unknown needs the features of held-out images, which only a checkpoint of recommend with one label an "
            "image has: leave it out, or run lt-cb recommend with --ckpt_path."
        )
    model.says_unknown = True


@command({**IMAGES, **TOP}, uses=("model",))
def predict(cli: CommandLine) -> None:
    """Predict, and write file, class and probability of each image, and of further classes if asked for."""
    config = cli.config
    if config.images is None and cli.checkpoint is not None:
        find_given([])
    if len(cli.ckpt_paths) > 1 and (config.sets is not None or config.unknown):
        raise InputError(
            f"--{'unknown' if config.sets is None else 'sets'} is calibrated for one network, and does not hold for an "
            "average: give one --ckpt_path, or leave it out."
        )
    first, *further = networks = trained_networks(cli)
    _check_views(cli, networks)
    model = Average(networks, cli.ckpt_paths) if further else first
    classes = len(model.class_names)
    if not 1 <= config.top <= classes:
        raise InputError(f"--top is {config.top}, but must be from 1 to {classes}, the number of classes.")
    if config.top > 1 and model.multi_label:
        raise InputError(
            "--top is for one label an image, but this network was trained on several: predict writes all labels above "
            "their thresholds; --probabilities true adds a column for each class."
        )
    if config.sets is not None:
        _ask_for_sets(first, config.sets)
    if config.unknown:
        _ask_for_unknown(first)
    if config.top > 1 or config.probabilities:
        model.top = classes if config.probabilities else config.top
    if config.trainer.precision is None and config.model.fast == "auto":
        config.trainer.precision = mixed_precision(config.trainer.accelerator)
    machine = {name: config.trainer[name] for name in MACHINE_OPTIONS}
    trainer = Trainer(**machine, logger=run_folder(cli), enable_checkpointing=False)
    files, loader = image_loader(cli, first, on_cpu=trainer.strategy.root_device.type == "cpu")
    with reused_memory():
        batches: Any = trainer.predict(model, loader)
    folder = trainer.log_dir  # a broadcast that all processes must join
    if not trainer.is_global_zero or not batches:
        return
    if any(probabilities.isnan().any() for _, probabilities, *_ in batches):
        raise InputError(
            "the probabilities are nan: the weights are damaged, or the training diverged. Take another checkpoint."
        )
    file = RunDir(folder or ".").predictions
    pairs = [batch[:2] for batch in batches]
    header, rows = model.task.prediction_table(pairs, model.class_names, config.top, config.probabilities)
    if config.sets is not None:
        header.append("set")
        sets = torch.cat([batch[2] for batch in batches]).tolist()
        names = (LABEL_SEPARATOR.join(compress(model.class_names, held)) for held in sets)
        rows = ([*row, text] for row, text in zip(rows, names, strict=True))
    if config.unknown:
        header.append("unknown")
        shares = torch.cat([batch[-1] for batch in batches]).tolist()
        rows = ([*row, f"{share:.3f}"] for row, share in zip(rows, shares, strict=True))
    with whole_file(file) as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", *map(spreadsheet_safe, header)])
        writer.writerows(map(spreadsheet_safe, [str(path), *row]) for path, row in zip(files, rows, strict=True))
    by = f", averaged over {len(networks)} checkpoints" if further else ""
    sys.stdout.write(f"Predictions of {len(files)} images{by}: {printable(str(file))}\n")
