"""Checkpoints of runs: reading, writing, and comparing them with data, network and loss."""

import inspect
import io
import os
import zipfile
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from lt_cb.errors import InputError, near_file
from lt_cb.losses import Loss
from lt_cb.runs.folder import BEFORE, MAX_ALIASED, is_larger, parse_yaml
from lt_cb.runs.record import LOSS_FACTS
from lt_cb.runs.schema import PerClass, Seconds, mismatch
from lt_cb.unknown import Familiarity

CONFIG = "lt_cb_config"  # resolved configuration of the run, as YAML
WANDB = "lt_cb_wandb_id"
HISTORY = "lt_cb_history"  # settings of earlier parts of the training, see `lt_cb.runs.compare.history`
TRAINED_ON = "lt_cb_trained_on"  # digests of the training images, see `lt_cb.data.elsewhere`
THRESHOLDS = "lt_cb_thresholds"  # several labels an image: logits from which each label is predicted
SET_SCORES = "lt_cb_set_scores"  # one label an image: scores of held-out images, see `lt_cb.sets`
FAMILIARITY = "lt_cb_familiarity"  # one label an image: `lt_cb.unknown.Familiarity`
HEAD = "lt_cb_head"  # how ``recommend`` solved the head, see `lt_cb.evaluation.EvaluatedModule.head`
LEFT_OUT = "lt_cb_left_out"  # adapters: name and digest of the backbone whose weights the checkpoint leaves out
METRICS = "lt_cb_metrics"  # of the last epoch; the run folder gets them after the checkpoint
BACKBONE, LOSS = "backbone.", "loss."  # prefixes in the state dict
DATA_FACTS = ("class_names", "image_size", "in_channels", "mean", "std", "multi_label")  # the data give them to a model
PARTS = {  # of a checkpoint of Lightning
    **{"epoch": int, "global_step": int, "loops": dict, "callbacks": dict, "hyper_parameters": Mapping},
    **{"optimizer_states": list, "lr_schedulers": list},
}
LOOPS = ("fit_loop", "validate_loop", "test_loop")
Content = MutableMapping[str, Any]  # a checkpoint as torch.load returns it


def read(path: str | Path) -> dict[str, Any]:
    """Return a checkpoint, on the CPU; raise InputError if there is no such file, or it is damaged."""
    if not Path(path).is_file():
        raise InputError(
            f"there is no checkpoint '{path}': set --ckpt_path to a run's checkpoints/last.ckpt.{near_file(path)}"
        )
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes CRC-32 sums, but does not compare them
            if (part := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"the checksum of {part} differs")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch passes on the errors of pickle and zip
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        before = Path(path).with_suffix(BEFORE)
        other = f" The one before it is '{before}'." if before.is_file() else ""
        raise InputError(f"'{path}' is not a checkpoint of a run, or it is damaged ({why}).{other}") from error
    if not isinstance(content, dict) or not _is_whole(content):
        raise InputError(f"'{path}' is not a checkpoint of a run: set --ckpt_path to a run's checkpoints/last.ckpt.")
    return content


def keep_own_files(content: Content, folder: Path) -> None:
    """Drop names of files outside a folder from the states of the callbacks, which may delete these files."""
    states = content.get("callbacks", {})
    content["callbacks"] = {name: _own_files(state, folder.resolve()) for name, state in states.items()}


def _own_files(state: Any, folder: Path) -> Any:  # noqa: ANN401 - state of a callback
    """Return a callback's state without the names of files outside a folder."""
    if isinstance(state, Mapping):
        return {name: _own_files(value, folder) for name, value in state.items() if not _is_foreign(name, folder)}
    if isinstance(state, list | tuple):
        return type(state)(_own_files(value, folder) for value in state)
    return "" if _is_foreign(state, folder) else state


def _is_foreign(text: Any, folder: Path) -> bool:  # noqa: ANN401 - any value
    if not isinstance(text, str) or not text or "\0" in text:
        return False
    names_file = "::" in text or "://" in text or text.startswith(("/", ".", "~", os.sep)) or os.path.exists(text)
    return names_file and ("::" in text or "://" in text or folder not in Path(text).resolve().parents)


def _is_whole(content: dict[str, Any]) -> bool:
    """Return whether a checkpoint has the parts and types that Lightning takes for granted."""
    state, version = content.get("state_dict"), content.get("pytorch-lightning_version")
    return (
        isinstance(version, str)
        and version[:1].isdecimal()
        and isinstance(state, dict)
        and all(isinstance(value, Tensor) for value in state.values())
        and all(isinstance(content[key], kind) for key, kind in PARTS.items() if key in content)
        and ("loops" not in content or all(isinstance(content["loops"].get(name), dict) for name in LOOPS))
    )


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints that are complete even after a kill or on a full disk, and reads them by `read`.

    Lightning writes to the system's temporary folder, and copies the file if the target is on another file system. This
    class writes next to the target and renames. The previous checkpoint stays, with the suffix ``BEFORE``.
    """

    def __init__(self, loaded: dict[str, Any] | None = None) -> None:
        self._loaded = loaded or {}  # checkpoints already read, by path, each for the first load

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:  # noqa: ANN401 - torch.load's options
        """Return a checkpoint, on the CPU; raise InputError if there is no such file, or it is damaged."""
        content = self._loaded.pop(str(path), None)
        return read(path) if content is None else dict(content)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ANN401
        """Write next to the target, sync to disk, and rename; raise InputError if that fails."""
        if "://" in str(path):  # not a local file
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        file = Path(path)
        temporary = file.with_name(f".{file.name}.tmp")  # one name, so that kills leave one file at most
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                stream.write(buffer.getbuffer())
                stream.flush()
                os.fsync(stream.fileno())  # else the rename can reach the disk before the content
            if file.exists():
                link = file.with_name(f".{file.name}.before.tmp")
                with suppress(OSError):  # a file system without links
                    link.unlink(missing_ok=True)
                    os.link(file, link)
                    link.replace(file.with_suffix(BEFORE))
            temporary.replace(file)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            remedy = f"the one before is kept: make room, and resume with --ckpt_path {file}"
            remedy = remedy if file.exists() else "make room"
            raise InputError(f"the checkpoint '{file}' cannot be written ({error.strerror}); {remedy}.") from error


def config(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the configuration in a checkpoint: of the run, or of the model alone for a checkpoint made in Python."""
    hparams = content.get("hyper_parameters", {})
    if CONFIG in content:
        run: dict[str, Any] = parse_yaml(str(content[CONFIG]), "the configuration in the checkpoint")
        if not _is_config(run):
            raise InputError("the configuration in the checkpoint is not that of a run: the checkpoint is damaged.")
    elif isinstance(hparams.get("loss"), dict):
        model = {key: value for key, value in hparams.items() if key not in (*DATA_FACTS, "_instantiator")}
        options = {key: value for key, value in hparams["loss"]["init_args"].items() if key not in LOSS_FACTS}
        run = {"model": {**model, "loss": {**hparams["loss"], "init_args": options}}}
        if is_larger(run, MAX_ALIASED):
            raise InputError("the configuration in the checkpoint contains itself: the checkpoint is damaged.")
    else:
        return None
    without_pretrained(run["model"])
    return run


def _is_config(run: Any) -> bool:  # noqa: ANN401 - YAML
    """Return whether YAML has the parts of a configuration that are read before a parser checks it."""
    return (
        isinstance(run, dict)
        and all(isinstance(run.get(key), dict) for key in ("model", "data", "trainer"))
        and all(isinstance(run["model"].get(key), dict | None) for key in ("second_stage", "backbone_args"))
        and "loss" in run["model"]
    )


def without_pretrained(model: dict[str, Any]) -> dict[str, Any]:
    """Switch off ``backbone_args.pretrained`` in the options of a model: the weights are in the checkpoint."""
    if (model.get("backbone_args") or {}).get("pretrained"):
        model["backbone_args"] = {**model["backbone_args"], "pretrained": False}
    return model


def class_facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of the training data: class counts and names, number and size of images, channels."""
    hparams = content.get("hyper_parameters", {})
    try:
        facts = {name: hparams[name] for name in DATA_FACTS if name != "multi_label"}
        options = hparams["loss"]["init_args"]
        facts |= {"multi_label": bool(hparams.get("multi_label")), "num_images": options.get("num_images")}
        facts |= {"num_unlabelled": options.get("num_unlabelled", 0)}  # older checkpoints have none
        facts["class_counts"] = options["class_counts"]
    except (KeyError, TypeError) as error:
        raise InputError("the checkpoint does not name its classes and images: use one made by lt-cb fit.") from error
    for name in ("mean", "std"):  # one number for each channel
        if facts[name] is not None and mismatch(facts[name], PerClass[float], facts["in_channels"]):
            raise InputError(f"the checkpoint's {name} does not fit its images: the checkpoint is damaged.")
    return facts


def thresholds(content: Mapping[str, Any], num_classes: int) -> list[float] | None:
    """Return the logits from which on each label is predicted, C numbers; None if not chosen, or with one label."""
    kept: list[float] | None = content.get(THRESHOLDS)
    if kept is not None and mismatch(kept, PerClass[float], num_classes):
        raise InputError(f"the checkpoint's thresholds are not {num_classes} numbers: the checkpoint is damaged.")
    return kept


def set_scores(content: Mapping[str, Any], num_classes: int) -> list[Tensor] | None:
    """Return the scores of held-out images that calibrate prediction sets, C tensors; None if there are none."""
    kept: list[Tensor] | None = content.get(SET_SCORES)
    if kept is None:
        return None
    whole = isinstance(kept, list) and len(kept) == num_classes and all(map(_are_scores, kept))
    if not whole or not any(map(len, kept)):
        raise InputError(
            f"the checkpoint's held-out scores are not of {num_classes} classes: the checkpoint is damaged."
        )
    return kept


def _are_scores(values: Any) -> bool:  # noqa: ANN401 - from a file
    """Return whether values are probabilities in ascending order."""
    is_list = isinstance(values, Tensor) and values.ndim == 1 and values.is_floating_point()
    return is_list and bool(((values >= 0) & (values <= 1)).all() and (values.diff() >= 0).all())


def familiarity(content: Mapping[str, Any]) -> Familiarity | None:
    """Return how familiar images of the known classes look; None if it was not measured."""
    kept = content.get(FAMILIARITY)
    try:
        return None if kept is None else Familiarity.from_state(kept)
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"the checkpoint's measure of unknown images is damaged ({error}).") from error


def head(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how ``recommend`` solved the head, None for any other: its ``l2_strength`` and ``temperature``.

    ``trained_before`` has the digests of the images that trained the backbone, None if they are not known.
    """
    kept: dict[str, Any] | None = content.get(HEAD)
    if kept is None:
        return None
    numbers = {name: kept.get(name) for name in ("l2_strength", "temperature")} if isinstance(kept, dict) else {}
    if not numbers or mismatch(numbers, dict[str, Seconds], 0):
        raise InputError("the checkpoint's description of its head is damaged: run lt-cb recommend again.")
    return kept


def history(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of earlier parts of the training that differ from its last part."""
    kept = content.get(HISTORY)
    kept = kept if isinstance(kept, dict) else {}
    return {str(key): value for key, value in kept.items() if isinstance(value, bool | int | float | str)}


def backbone_state(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of the backbone."""
    state = content["state_dict"]
    return {name.removeprefix(BACKBONE): value for name, value in state.items() if name.startswith(BACKBONE)}


def left_out(content: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return name and digest of the backbone whose weights a checkpoint leaves out; None if it has all weights."""
    kept = content.get(LEFT_OUT)
    if kept is None:
        return None
    if not isinstance(kept, dict) or not all(isinstance(kept.get(key), str) for key in ("name", "sha256")):
        raise InputError("the checkpoint does not name the backbone of its adapters: the checkpoint is damaged.")
    return kept["name"], kept["sha256"]


def describe(hparams: MutableMapping[str, Any]) -> None:
    """Replace objects by class paths and options; leave out a loss that does not keep its arguments as attributes."""
    loss = hparams.pop("loss")
    for name in ("optimizer", "lr_scheduler", "mix", "metrics"):
        hparams.pop(name, None)
    with suppress(AttributeError):
        hparams["second_stage"] = _plain(hparams.get("second_stage"))
        hparams["loss"] = _plain(loss)
        hparams["_instantiator"] = "lightning.pytorch.cli.instantiate_module"


def _plain(value: Any) -> Any:  # noqa: ANN401 - any argument of a loss
    if value is None or isinstance(value, bool | int | float | str | list | tuple | dict):
        return value
    names = inspect.signature(type(value)).parameters
    arguments = value.arguments() if isinstance(value, Loss) else {name: getattr(value, name) for name in names}
    return {
        "class_path": f"{type(value).__module__}.{type(value).__qualname__}",
        "init_args": {name: _plain(argument) for name, argument in arguments.items()},
    }
