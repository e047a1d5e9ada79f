"""``lt-cb export``: a checkpoint -> a file that maps images to class probabilities without this package."""

import importlib.util
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor, nn

from lt_cb.commands.predict import Predict
from lt_cb.commands.train import run
from lt_cb.errors import InputError
from lt_cb.module import LongTailedClassifier
from lt_cb.runs.folder import whole_file, write_json

ONNX = ("onnx", "onnxscript", "onnxruntime")
MOST = 1e-3  # difference of probabilities that rounding may make


class Probabilities(nn.Module):
    """What is exported: images, uint8 of shape (N, C, H, W) -> probabilities, float32 of shape (N, classes)."""

    def __init__(self, model: LongTailedClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Normalise the images, and map them to probabilities."""
        return self.model.probabilities(self.model(images).float())


class Export(Predict):
    """The command line of a prediction, of which only the model is needed."""

    needs_images = False

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the file."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--to", type=str | None, help="The file to write.")
        kinds = Literal["onnx", "torch"] | None
        parser.add_argument("--format", type=kinds, help="torch is torch.export's; default is by the file's ending.")

    def before_instantiate_classes(self) -> None:
        """Refuse what cannot be before the model is made; compare on the CPU, without rounding to bfloat16."""
        self.config.trainer.accelerator, self.config.trainer.precision = "cpu", "32-true"
        super().before_instantiate_classes()
        if self.config.to is None:
            raise InputError("export needs a file to write: set --to to one, as model.pt2 or model.onnx.")
        self.format = self.config.format or ("onnx" if Path(self.config.to).suffix == ".onnx" else "torch")
        if self.format == "onnx" and not all(map(importlib.util.find_spec, ONNX)):
            raise InputError(f"--format onnx needs further packages: uv pip install {' '.join(ONNX)}.")

    def run(self) -> None:
        """Export, compare with the checkpoint, and only then write."""
        assert self.checkpoint is not None
        content = dict(self.checkpoint)
        self.model.on_load_checkpoint(content)
        self.model.load_state_dict(content["state_dict"])
        network, file = Probabilities(self.model).eval(), Path(self.config.to)
        try:
            written, exported = (to_onnx if self.format == "onnx" else to_torch)(network, self._random(2))
        except Exception as error:  # whatever a network leads the tracer to
            why = " ".join(str(error).split())[:300]
            raise InputError(f"this network cannot be exported as {self.format} ({why}).") from error
        compared, most = 0, 0.0
        with torch.no_grad():
            for images in self._images():
                difference = (exported(images) - network(images)).abs().max().item()
                compared, most = compared + len(images), max(most, difference)
                if not difference <= MOST:
                    raise InputError(
                        f"the exported probabilities differ from the checkpoint's by {difference:.2g}, more than "
                        f"rounding does: nothing is written. Try the other --format than {self.format}."
                    )
        with whole_file(file, "wb") as stream:
            stream.write(written)
        facts = {name: self.model.hparams[name] for name in ("class_names", "image_size", "in_channels")}
        how = {"crop": self.crop, "interpolation": self.interpolation, "prior": self.model.prior}
        if self.model.multi_label:
            how["thresholds"] = self.model.threshold_probabilities  # from which on each label is predicted
        write_json(file.with_name(f"{file.name}.json"), facts | how)
        sys.stdout.write(
            f"Exported: {file}, and its classes: {file.name}.json. On {compared} images its probabilities differ from "
            f"the checkpoint's by at most {most:.1g}.\n"
        )

    def _random(self, count: int) -> Tensor:
        hparams = self.model.hparams
        shape = (count, hparams["in_channels"], hparams["image_size"], hparams["image_size"])
        return torch.randint(256, shape, dtype=torch.uint8)

    def _images(self) -> Iterator[Tensor]:
        """Yield random images, one alone and several, and those of the folder, if one is given."""
        yield from map(self._random, (1, 7))
        if self.config.images is not None:
            yield from (images for images, _ in self.loader)


def to_torch(network: nn.Module, example: Tensor) -> tuple[bytes, Callable[[Tensor], Tensor]]:
    """Return what ``torch.export.load`` reads, and the function that it then is."""
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("N")},))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found")  # of weights that share memory, on the CPU
        torch.export.save(program, buffer)
    buffer.seek(0)
    return buffer.getvalue(), torch.export.load(buffer).module()


def to_onnx(network: nn.Module, example: Tensor) -> tuple[bytes, Callable[[Tensor], Tensor]]:
    """Return what ONNX runtimes read, ``images`` -> ``probabilities``, and the function that it then is."""
    import onnxruntime

    program = torch.onnx.export(
        network,
        (example,),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    written: bytes = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    return written, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def main(args: Sequence[str]) -> None:
    """Run ``lt-cb export``.

    Args:
        args: the words behind ``export``.

    Raises:
        SystemExit: with code 2, after one sentence on stderr, if the input is wrong.
    """
    run(Export, "export", args, LongTailedClassifier, None)
