"""``lt-cb predict``: a checkpoint and a folder of images -> ``predictions.csv``."""

import csv
import operator
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

from lightning.pytorch.cli import LightningArgumentParser

from lt_cb.runs import checkpoint as checkpoints
from lt_cb.commands.train import CLI, run
from lt_cb.data.loaders import folder_loader
from lt_cb.data.view import Crop, Interpolation, View
from lt_cb.errors import InputError
from lt_cb.module import LongTailedClassifier
from lt_cb.runs.folder import RunDir, whole_file

BETWEEN = ";"  # several labels of an image, and their probabilities


class Predict(CLI):
    """The command line of a training without its data: what the model has to know of them is in the checkpoint."""

    needs_images = True
    crop: Crop = "padded"
    interpolation: Interpolation = "bilinear"

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add Trainer and model, but no data."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{k}": v for k, v in self.trainer_defaults.items() if k != "callbacks"})
        parser.add_lightning_class_args(self._model_class, "model")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the images, and what the model has to know of its training data."""
        self.datamodule_class = None
        super().add_arguments_to_parser(parser)
        parser.add_argument("--ckpt_path", type=str | None, help="Of a run.")
        parser.add_argument("--images", type=str | None, help="Folder of images, which is searched below too.")
        parser.add_argument("--top", type=int, default=1, help="Columns for so many of the most probable classes.")
        parser.add_argument("--probabilities", type=bool, default=False, help="A column for each class.")
        unreadable = "refuse, or skip, which leaves out images that cannot be read, and says which."
        parser.add_argument("--on_unreadable", type=Literal["refuse", "skip"], default="refuse", help=unreadable)
        parser.add_argument("--batch_size", type=int, default=128, help="Images a batch.")
        parser.add_argument("--num_workers", type=int | None, help="Processes that decode; default one a core.")
        parser.add_argument("--weights_only", type=bool | None, help="Is not looked at, but is in the config of a run.")
        none = {"class_counts": [1, 1], "num_images": 1, **dict.fromkeys(checkpoints.DATA_FACTS)}
        none["multi_label"] = False  # all of it to be able to show the help
        facts = none if self.checkpoint is None else checkpoints.class_facts(self.checkpoint)
        parser.add_argument("--trained_on", type=dict, default=facts, help="Is taken from the checkpoint.")
        targets = {name: f"model.{name}" for name in checkpoints.DATA_FACTS}
        targets |= {name: f"model.loss.init_args.{name}" for name in ("class_counts", "num_images")}
        for name, target in targets.items():
            parser.link_arguments("trained_on", target, compute_fn=operator.itemgetter(name))

    def before_checkpoint(self, config: dict[str, Any]) -> dict[str, Any]:
        """Keep the model and where runs go; images, callbacks and further loggers are of the training."""
        config = super().before_checkpoint(config)
        data = config.pop("data", {})
        self.crop, self.interpolation = data.get("crop", "padded"), data.get("interpolation", "bilinear")
        for key, value, allowed in (("crop", self.crop, Crop), ("interpolation", self.interpolation, Interpolation)):
            if value not in get_args(allowed):
                choice = " or ".join(get_args(allowed))
                raise InputError(
                    f"the checkpoint's data.{key} is {value!r}, but must be {choice}: the checkpoint is damaged."
                )
        trainer = config.get("trainer", {})
        kept = {key: trainer[key] for key in ("accelerator", "precision", "default_root_dir") if key in trainer}
        return {"trainer": kept, "model": config["model"], **({"name": config["name"]} if "name" in config else {})}

    def instantiate_classes(self) -> None:
        """Find the images, then make model and Trainer."""
        if self.config.images is None and self.needs_images:
            raise InputError("predict needs images: set --images to a folder of images.")
        super().instantiate_classes()
        hparams, config, classes = self.model.hparams, self.config, len(self.model.class_names)
        if not 1 <= config.top <= classes:
            raise InputError(f"--top is {config.top}, but must be from 1 to {classes}, the number of classes.")
        if config.top > 1 and self.model.multi_label:
            raise InputError(
                "--top is for one label an image, but this network was trained on several: all above their thresholds "
                "are written; --probabilities true adds a column for each class."
            )
        if config.top > 1 or config.probabilities:
            self.model.top = classes if config.probabilities else config.top
        if config.images is None:
            return
        self.files, self.loader = folder_loader(
            config.images,
            View(hparams.image_size, self.interpolation, self.crop, channels=hparams.in_channels),
            config.batch_size,
            config.num_workers,
            skip_unreadable=config.on_unreadable == "skip",
        )

    def run(self) -> None:
        """Predict, and write file, class and probability, and of further classes what is asked for."""
        batches = self.trainer.predict(self.model, self.loader, ckpt_path=self.config.ckpt_path)
        folder = self.trainer.log_dir  # a broadcast, which all processes have to join
        if not self.trainer.is_global_zero or not batches:
            return
        if any(probabilities.isnan().any() for _, probabilities in batches):
            raise InputError(
                "the probabilities are nan: the weights are damaged, or of a training that diverged. Take another "
                "checkpoint."
            )
        file = RunDir(folder or ".").predictions
        header, rows = (self._several if self.model.multi_label else self._ranked)(batches)
        with whole_file(file) as stream:
            writer = csv.writer(stream)
            writer.writerow(header)
            writer.writerows([_shown(str(path)), *row] for path, row in zip(self.files, rows, strict=True))
        sys.stdout.write(f"Predictions of {len(self.files)} images: {file}\n")

    def _ranked(self, batches: list[Any]) -> tuple[list[str], Iterator[list[str]]]:
        """Return the header, and for each image class and probability, and of further classes what is asked for."""
        top, names, all_of_them = self.config.top, self.model.class_names, self.config.probabilities
        header = ["file", "class", "probability"]
        header += [f"{column}_{place}" for place in range(2, top + 1) for column in ("class", "probability")]

        def rows() -> Iterator[list[str]]:
            for ranked, probabilities in batches:
                pairs = zip(
                    ranked.view(len(ranked), -1).tolist(), probabilities.view(len(ranked), -1).tolist(), strict=True
                )
                for labels, values in pairs:
                    row = []
                    for label, value in zip(labels[:top], values, strict=False):
                        row += [_shown(names[label]), f"{value:.6f}"]
                    if all_of_them:
                        by_class = dict(zip(labels, values, strict=True))
                        row += [f"{by_class[label]:.6f}" for label in range(len(names))]
                    yield row

        return header + [_shown(name) for name in names if all_of_them], rows()

    def _several(self, batches: list[Any]) -> tuple[list[str], Iterator[list[str]]]:
        """Return the header, and for each image all labels above their thresholds, by descending probability."""
        names, all_of_them = self.model.class_names, self.config.probabilities

        def rows() -> Iterator[list[str]]:
            for predicted, probabilities in batches:
                for chosen, values in zip(predicted.tolist(), probabilities.tolist(), strict=True):
                    labels = sorted((c for c, on in enumerate(chosen) if on), key=lambda c: -values[c])
                    row = [_shown(BETWEEN.join(names[c] for c in labels))]
                    row.append(BETWEEN.join(f"{values[c]:.6g}" for c in labels))
                    yield row + [f"{value:.6g}" for value in values if all_of_them]

        header = ["file", "classes", "probabilities"]
        return header + [_shown(name) for name in names if all_of_them], rows()


def _shown(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula: a quote stands before what would be one."""
    return f"'{text}" if re.match(r"[=@\t\r]|[+-](?!\d+(\.\d+)?$)", text) else text


def main(args: Sequence[str]) -> None:
    """Run ``lt-cb predict``.

    Args:
        args: the words behind ``predict``.

    Raises:
        SystemExit: with code 2, after one sentence on stderr, if the input is wrong.
    """
    run(Predict, "predict", args, LongTailedClassifier, None)
