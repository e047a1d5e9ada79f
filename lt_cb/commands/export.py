"""``lt-cb export``: writes a file that maps images to class probabilities without this package."""

import importlib.util
import io
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lt_cb.commands.cli import CommandLine, Options, command
from lt_cb.commands.predict import IMAGES, image_loader, trained_view
from lt_cb.commands.prior import set_prior
from lt_cb.data.loaders.streaming import TEST_MARGIN
from lt_cb.data.view import View
from lt_cb.errors import InputError
from lt_cb.module import LongTailedClassifier
from lt_cb.runs.folder import whole_file, write_json

ONNX = ("onnx", "onnxscript", "onnxruntime")
FILE: Options = {
    "to": (str | None, None, "File to write."),
    "format": (Literal["onnx", "torch"] | None, None, "torch (torch.export) or onnx; default by the file's ending."),
    "logits": (bool, False, "Also return logits, after the probabilities: they are never rounded to 0 or 1."),
}
TOLERANCE = 1e-3  # difference of probabilities that rounding may make


class Exported(nn.Module):
    """Images, uint8 of shape (N, C, H, W) -> probabilities, float32 of shape (N, classes); and logits if asked for."""

    def __init__(self, model: LongTailedClassifier, with_logits: bool) -> None:
        super().__init__()
        self.model, self.with_logits = model, with_logits

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Normalise the images, and map them to probabilities, and to the scores behind the predicted classes."""
        logits = self.model(images).float()
        probabilities = self.model.probabilities(logits)
        return (probabilities, self.model.scores(logits)) if self.with_logits else probabilities


@command({**IMAGES, **FILE}, uses=("model",))
def export(cli: CommandLine) -> None:
    """Export, compare with the checkpoint on the CPU, and write only if both agree."""
    config = cli.config
    if config.to is None and cli.checkpoint is not None:
        raise InputError("export needs a file to write: set --to to one, as model.pt2 or model.onnx.")
    kind = config.format or ("onnx" if Path(str(config.to)).suffix == ".onnx" else "torch")
    if kind == "onnx" and not all(map(importlib.util.find_spec, ONNX)):
        raise InputError(f"--format onnx needs further packages: uv pip install {' '.join(ONNX)}.")
    model = cli.make_model()
    set_prior(cli, model)
    network, facts = Exported(model, config.logits).eval(), model.hparams
    shape = facts["in_channels"], facts["image_size"], facts["image_size"]
    one, several, many = (torch.randint(256, (count, *shape), dtype=torch.uint8) for count in (1, 2, 7))
    try:
        written, exported = (to_onnx if kind == "onnx" else to_torch)(network, several)
    except Exception as error:  # a network can lead the tracer to any error
        why = " ".join(str(error).split())[:300]
        raise InputError(f"this network cannot be exported as {kind} ({why}).") from error
    batches = [one, many]
    if config.images is not None:
        batches += [images for images, _ in image_loader(cli, model)[1]]
    with torch.no_grad():
        difference = max((first(exported(images)) - first(network(images))).abs().max().item() for images in batches)
    if not difference <= TOLERANCE:
        raise InputError(
            f"the exported probabilities differ from the checkpoint's by {difference:.2g}, more than rounding does: "
            f"nothing is written. Try the other --format than {kind}."
        )
    file = Path(config.to)
    with whole_file(file, "wb") as stream:
        stream.write(written)
    view = trained_view(cli, model)
    beside = {name: facts[name] for name in ("class_names", "image_size", "in_channels")}
    beside |= {**view.options, "prior": model.prior, "preprocessing": preprocessing(view)}
    if model.multi_label:
        beside["thresholds"] = model.threshold_probabilities  # probabilities from which each label is predicted
    write_json(file.with_name(f"{file.name}.json"), beside)
    sys.stdout.write(
        f"Exported: {file}, and its classes: {file.name}.json. On {sum(map(len, batches))} images its probabilities "
        f"differ from the checkpoint's by at most {difference:.1g}.\n"
    )


def preprocessing(view: View) -> list[str]:
    """Return lines of Python that make ``images``, the input of the network, from the image file named ``file``."""
    size, sampling = f"({view.size}, {view.size})", f"Image.Resampling.{view.interpolation.upper()}"
    scale = [f"image = ImageOps.fit(image, {size}, {sampling})"]
    if view.crop == "resized":
        scale = [
            f"(width, height), side = image.size, min(image.size) * {view.size} / {view.size + TEST_MARGIN}",
            "box = (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2",
            f"image = image.resize({size}, {sampling}, box)",
        ]
    return [
        "import numpy as np",
        "from PIL import Image, ImageOps",
        f"image = ImageOps.exif_transpose(Image.open(file)).convert('{'RGB' if view.channels == 3 else 'L'}')",
        *scale,
        f"images = np.asarray(image).reshape(1, *{size}, {view.channels}).transpose(0, 3, 1, 2).copy()  # uint8",
    ]


def first(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the probabilities of an exported network's outputs."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def to_torch(network: nn.Module, example: Tensor) -> tuple[bytes, Callable[[Tensor], Tensor]]:
    """Return the content of a file for ``torch.export.load``, and the exported function."""
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("N")},))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found")  # weights that share memory, on the CPU
        torch.export.save(program, buffer)
    buffer.seek(0)
    return buffer.getvalue(), torch.export.load(buffer).module()


def to_onnx(network: Exported, example: Tensor) -> tuple[bytes, Callable[[Tensor], Tensor]]:
    """Return the content of an ONNX file, ``images`` -> ``probabilities``, and the exported function."""
    import onnxruntime

    program = torch.onnx.export(
        network,
        (example,),
        input_names=["images"],
        output_names=["probabilities", "logits"][: 1 + network.with_logits],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    written: bytes = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    return written, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
