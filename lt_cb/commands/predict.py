"""``lt-cb predict``: writes the classes of a folder of images to ``predictions.csv``."""

import csv
import re
import sys
from dataclasses import replace
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from lt_cb.commands.cli import CommandLine, command
from lt_cb.commands.prior import add_prior, set_prior
from lt_cb.commands.save import run_folder
from lt_cb.data.loaders import folder_loader
from lt_cb.data.view import View
from lt_cb.errors import InputError
from lt_cb.hardware import mixed_precision
from lt_cb.module import LongTailedClassifier
from lt_cb.runs.folder import RunDir, whole_file


def add_images(parser: LightningArgumentParser) -> None:
    """Add the options of the images."""
    parser.add_argument("--images", type=str | None, help="Folder of images, searched with its subfolders.")
    unreadable = "refuse, or skip images that cannot be read, with a warning."
    parser.add_argument("--on_unreadable", type=Literal["refuse", "skip"], default="refuse", help=unreadable)
    parser.add_argument("--batch_size", type=int, default=128, help="Images a batch.")
    parser.add_argument("--num_workers", type=int | None, help="Processes that decode; default one a core.")
    add_prior(parser)


def _add_options(parser: LightningArgumentParser) -> None:
    add_images(parser)
    parser.add_argument("--top", type=int, default=1, help="Columns for so many of the most probable classes.")
    parser.add_argument("--probabilities", type=bool, default=False, help="A column for each class.")


def trained_model(cli: CommandLine) -> LongTailedClassifier:
    """Return the model of the checkpoint, for the class prior that ``--prior`` names."""
    model = cli.make_model()
    set_prior(cli, model)
    return model


def trained_view(cli: CommandLine, model: LongTailedClassifier) -> View:
    """Return how the training showed test images."""
    data, facts = cli.trained.get("data") or {}, model.hparams
    view = View(facts["image_size"], channels=facts["in_channels"])
    return replace(view, **{name: data[name] for name in view.options if name in data})


def image_loader(cli: CommandLine, model: LongTailedClassifier) -> tuple[list[Any], Any]:
    """Return the files of ``--images``, and a loader of batches of them."""
    config, skips = cli.config, cli.config.on_unreadable == "skip"
    view = trained_view(cli, model)
    return folder_loader(config.images, view, config.batch_size, config.num_workers, skip_unreadable=skips)


@command(_add_options, uses=("model",))
def predict(cli: CommandLine) -> None:
    """Predict, and write file, class and probability of each image, and of further classes if asked for."""
    config = cli.config
    if config.images is None and cli.checkpoint is not None:
        raise InputError("predict needs images: set --images to a folder of images.")
    model = trained_model(cli)
    classes = len(model.class_names)
    if not 1 <= config.top <= classes:
        raise InputError(f"--top is {config.top}, but must be from 1 to {classes}, the number of classes.")
    if config.top > 1 and model.multi_label:
        raise InputError(
            "--top is for one label an image, but this network was trained on several: predict writes all labels above "
            "their thresholds; --probabilities true adds a column for each class."
        )
    if config.top > 1 or config.probabilities:
        model.top = classes if config.probabilities else config.top
    files, loader = image_loader(cli, model)
    machine = {name: config.trainer[name] for name in ("accelerator", "strategy", "devices", "num_nodes", "precision")}
    if machine["precision"] is None and config.model.fast == "auto":
        machine["precision"] = mixed_precision(config.trainer.accelerator)
    bar = config.trainer.enable_progress_bar
    trainer = Trainer(**machine, logger=run_folder(cli), enable_checkpointing=False, enable_progress_bar=bar)
    batches: Any = trainer.predict(model, loader)
    folder = trainer.log_dir  # a broadcast that all processes must join
    if not trainer.is_global_zero or not batches:
        return
    if any(probabilities.isnan().any() for _, probabilities in batches):
        raise InputError(
            "the probabilities are nan: the weights are damaged, or the training diverged. Take another checkpoint."
        )
    file = RunDir(folder or ".").predictions
    header, rows = model.task.prediction_table(batches, model.class_names, config.top, config.probabilities)
    with whole_file(file) as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", *map(spreadsheet_safe, header)])
        writer.writerows(map(spreadsheet_safe, [str(path), *row]) for path, row in zip(files, rows, strict=True))
    sys.stdout.write(f"Predictions of {len(files)} images: {file}\n")


def spreadsheet_safe(text: str) -> str:
    """Return a text with a quote before it if a spreadsheet would take it for a formula."""
    return f"'{text}" if re.match(r"[=@\t\r]|[+-](?!\d+(\.\d+)?$)", text) else text
