"""A run's checkpoint: what is in it, what it was trained on, and whether it fits what is to be done with it."""

import functools
import inspect
import io
import os
import re
import zipfile
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from lt_cb.errors import InputError
from lt_cb.losses import Loss
from lt_cb.runs.folder import ALIASED, expanded_size, parse_yaml

CONFIG = "lt_cb_config"  # the resolved configuration of the run, as YAML
WANDB = "lt_cb_wandb_id"
THRESHOLDS = "lt_cb_thresholds"  # of several labels an image: logits from which on each is predicted
METRICS = "lt_cb_metrics"  # of the epoch that it ends with, which are written to the run's folder after it
BACKBONE, LOSS = "backbone.", "loss."  # in the state dict
DATA_FACTS = ("class_names", "image_size", "in_channels", "mean", "std", "multi_label")  # known of its data

UNSET: dict[str, Any] = {
    "init_args": {},
    "weighting": None,
    "reduction": "mean",
    "ignore_index": None,
    "weight_of": "sample",
}

Content = MutableMapping[str, Any]  # of a checkpoint, as torch.load returns it


def read(path: str | Path) -> dict[str, Any]:
    """Return a checkpoint, on the CPU.

    Raises:
        InputError: if there is none, or it is damaged.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no checkpoint '{path}': set --ckpt_path to a run's checkpoints/last.ckpt.")
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not compare the CRC-32 that it writes: a flipped bit in a
            if (part := archive.testzip()) is not None:  # weight would go unseen; it takes as long as loading
                raise zipfile.BadZipFile(f"the checksum of {part} is another")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what pickle, zip and its own reader do
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        other = f" The one before it is '{before(path)}'." if before(path).is_file() else ""
        raise InputError(f"'{path}' is not a checkpoint of a run, or it is damaged ({why}).{other}") from error
    if not isinstance(content, dict) or not _is_whole(content):
        raise InputError(f"'{path}' is not a checkpoint of a run: set --ckpt_path to a run's checkpoints/last.ckpt.")
    return content


def before(path: str | Path) -> Path:
    """Return where the checkpoint lies that one has taken the place of."""
    return Path(path).with_suffix(".before.ckpt")


def _is_whole(content: dict[str, Any]) -> bool:
    """Return whether what a checkpoint has is of the kinds that Lightning takes for granted."""
    kinds = {"epoch": int, "global_step": int, "loops": dict, "callbacks": dict, "hyper_parameters": Mapping}
    kinds |= {"optimizer_states": list, "lr_schedulers": list}
    state, version = content.get("state_dict"), content.get("pytorch-lightning_version")
    return (
        isinstance(version, str)
        and re.match(r"\d+(\.\d+)*", version) is not None
        and isinstance(state, dict)
        and all(isinstance(value, Tensor) for value in state.values())
        and all(isinstance(content[key], kind) for key, kind in kinds.items() if key in content)
        and all(
            isinstance(content.get("loops", {name: {}}).get(name), dict)
            for name in ("fit_loop", "validate_loop", "test_loop")
        )
    )


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints that are the one before or the new one, whenever a process is killed or a disk is full.

    One that is overwritten is kept, by the name of `before`, until the next is.

    Lightning writes to the system's temporary folder, and where that is on another file system copies from there over
    the checkpoint before.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ANN401
        """Write beside the target, to the disk, and rename.

        Raises:
            InputError: if it cannot be written; what was there before is kept.
        """
        if "://" in str(path):  # not of this machine
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
                os.fsync(stream.fileno())  # else a rename can reach the disk before what it names
            if file.exists():
                _keep(file)
            temporary.replace(file)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            kept = (
                f"the one before is kept: make room, and go on with --ckpt_path {file}"
                if file.exists()
                else "make room"
            )
            raise InputError(f"the checkpoint '{file}' cannot be written ({error.strerror}); {kept}.") from error


def _keep(file: Path) -> None:
    """Have the checkpoint that is to be overwritten in two places; there is one in its own all the time."""
    link = file.with_name(f".{file.name}.before.tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(file, link)
    except OSError:  # a file system without links
        return
    link.replace(before(file))


def config(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the configuration of the run, or of a checkpoint made in Python that of its model; None without either.

    Raises:
        InputError: if it is not one.
    """
    hparams = content.get("hyper_parameters", {})
    if CONFIG in content:
        if not isinstance(content[CONFIG], str):
            raise InputError("the configuration in the checkpoint is not YAML: the checkpoint is damaged.")
        run = parse_yaml(content[CONFIG], "the configuration in the checkpoint")
        if not _is_config(run):
            raise InputError("the configuration in the checkpoint is not that of a run: the checkpoint is damaged.")
    elif isinstance(hparams.get("loss"), dict):
        model = {key: value for key, value in hparams.items() if key not in (*DATA_FACTS, "_instantiator")}
        options = {key: value for key, value in hparams["loss"]["init_args"].items() if key != "class_counts"}
        run = {"model": {**model, "loss": {**hparams["loss"], "init_args": options}}}
        if expanded_size(run) > ALIASED:
            raise InputError("the configuration in the checkpoint contains itself: the checkpoint is damaged.")
    else:
        return None
    return without_pretrained(run, "model")


def _is_config(run: Any) -> bool:  # noqa: ANN401 - YAML
    """Return whether it is the configuration of a run, as far as it is looked into before a parser does."""
    if not isinstance(run, dict) or not all(isinstance(run.get(key), dict) for key in ("model", "data", "trainer")):
        return False
    nested = [run["model"].get(key) for key in ("second_stage", "backbone_args")]
    return "loss" in run["model"] and all(value is None or isinstance(value, dict) for value in nested)


def without_pretrained(hparams: dict[str, Any], *path: str) -> dict[str, Any]:
    """Return the options with ``backbone_args.pretrained`` switched off: the weights are in the checkpoint."""
    model = functools.reduce(lambda options, key: options.get(key) or {}, path, hparams)
    if (model.get("backbone_args") or {}).get("pretrained"):
        model["backbone_args"] = {**model["backbone_args"], "pretrained": False}
    return hparams


def class_facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return class counts and names, number and size of images, channels and the like that the model was trained on.

    Raises:
        InputError: if they are not in the checkpoint.
    """
    hparams = content.get("hyper_parameters", {})
    try:
        facts = {name: hparams[name] for name in DATA_FACTS if name != "multi_label"}
        options = hparams["loss"]["init_args"]
        facts |= {"multi_label": bool(hparams.get("multi_label")), "num_images": options.get("num_images")}
        return {"class_counts": options["class_counts"], **facts}
    except (KeyError, TypeError) as error:
        raise InputError(
            "the checkpoint does not say what classes and images it was trained on: take one that lt-cb fit has made."
        ) from error


def thresholds(content: Mapping[str, Any], num_classes: int) -> list[float] | None:
    """Return the logits from which on each of several labels is predicted, C numbers; None if none were chosen.

    Raises:
        InputError: if they are others.
    """
    kept = content.get(THRESHOLDS)
    if kept is None:
        return None
    if not isinstance(kept, list) or len(kept) != num_classes or not all(isinstance(v, float) for v in kept):
        raise InputError(f"the checkpoint's thresholds are not {num_classes} numbers: the checkpoint is damaged.")
    return kept


def check_classes(content: Mapping[str, Any], class_names: Sequence[str], multi_label: bool) -> None:
    """Compare the classes, and whether an image may have several, with those of a checkpoint.

    Raises:
        InputError: if they differ.
    """
    hparams = content.get("hyper_parameters", {})
    if bool(hparams.get("multi_label")) != multi_label:
        kinds = ("one label", "any number of labels")
        raise InputError(
            f"the checkpoint was trained on {kinds[not multi_label]} an image, but these data have "
            f"{kinds[multi_label]}: use the data it was trained on, or train anew."
        )
    loss = hparams.get("loss")
    counts = loss["init_args"]["class_counts"] if isinstance(loss, dict) else None
    names = hparams.get("class_names") or class_names
    trained = len(names) if counts is None else len(counts)
    if trained != len(class_names):
        raise InputError(
            f"the checkpoint has {trained} classes, but the data have {len(class_names)}: use the data it was trained "
            "on, or train anew."
        )
    for before, now in zip(names, class_names, strict=False):
        if before != now:
            raise InputError(f"the checkpoint's classes are not those of the data: '{before}' there is '{now}' here.")


def check_backbone(state: Mapping[str, Tensor], backbone: nn.Module) -> None:
    """Compare names and shapes of the weights with those of a checkpoint's backbone.

    Raises:
        InputError: if they differ.
    """
    theirs, ours = _shapes(state), _shapes(backbone.state_dict())
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            raise InputError(
                f"the checkpoint is of another network: '{name}' is {theirs.get(name, 'missing')} there and "
                f"{ours.get(name, 'missing')} here. Use the backbone, loss and second stage it was trained with."
            )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in state.items()}


def backbone_state(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of the backbone."""
    state = content["state_dict"]
    return {name.removeprefix(BACKBONE): value for name, value in state.items() if name.startswith(BACKBONE)}


def check_optimizer(content: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Compare what is optimised with the optimiser in a checkpoint, for a training that is to go on.

    Raises:
        InputError: if there is none, or it is of other parameters.
    """
    missing = [key for key in ("optimizer_states", "lr_schedulers", "loops") if key not in content]
    if missing:
        raise InputError(
            f"the checkpoint has weights, but no {missing[0]} to go on training with: test it, or train anew."
        )
    states = content["optimizer_states"]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if states and sizes != [len(group["params"]) for group in states[0]["param_groups"]]:
        raise InputError(
            "the checkpoint was trained with another loss, second stage or weight decay: go on with those, or train "
            "anew."
        )


def check_loss(before: Any, now: Any, key: str = "model.loss") -> None:  # noqa: ANN401 - YAML
    """Compare the configuration of the loss with that in a checkpoint, whose training is to go on.

    Raises:
        InputError: if they differ in an option, with both values.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            inner = key if name in ("class_path", "init_args") else f"{key}.{name}"
            default = UNSET.get(name, {})  # an option that is not written is as every loss has it
            if (name in before and name in now) or name in UNSET:
                check_loss(before.get(name, default), now.get(name, default), inner)
    elif before != now:
        raise InputError(
            f"the checkpoint was trained with --{key} {_short(before)}, but it is {_short(now)} now: go on with the "
            "loss it was trained with, or set --change_loss true."
        )


def check_steps(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare the classes of optimiser and schedule with those in a checkpoint, whose training is to go on.

    Raises:
        InputError: if one is another, which what the checkpoint has of it is not for.
    """
    for key in ("optimizer", "lr_scheduler"):
        theirs, ours = before.get(key), now.get(key)
        if isinstance(theirs, dict) and isinstance(ours, dict) and _short(theirs) != _short(ours):
            raise InputError(
                f"the checkpoint was trained with --model.{key} {_short(theirs)}, but it is {_short(ours)} now: go on "
                "with that which it was trained with, or train anew."
            )


def _short(value: Any) -> str:  # noqa: ANN401 - YAML
    return str(value.get("class_path")) if isinstance(value, dict) else "null" if value is None else str(value)


def describe(hparams: MutableMapping[str, Any]) -> None:
    """Replace objects among the hyper-parameters by plain values, as LightningCLI has them.

    So that ``load_from_checkpoint`` rebuilds the loss with ``weights_only=True``. A loss that does not keep its
    arguments as attributes cannot be described, and is then an argument of ``load_from_checkpoint``.
    """
    loss = hparams.pop("loss")
    for name in ("optimizer", "lr_scheduler", "mix", "metrics"):
        hparams.pop(name, None)
    try:
        hparams["second_stage"] = _plain(hparams.get("second_stage"))
        hparams["loss"] = _plain(loss)
    except AttributeError:
        return
    hparams["_instantiator"] = "lightning.pytorch.cli.instantiate_module"


def _plain(value: Any) -> Any:  # noqa: ANN401 - any argument of a loss
    if value is None or isinstance(value, bool | int | float | str | list | tuple | dict):
        return value
    if isinstance(value, Loss):
        arguments = value.arguments()
    else:
        arguments = {name: getattr(value, name) for name in inspect.signature(type(value)).parameters}
    return {
        "class_path": f"{type(value).__module__}.{type(value).__qualname__}",
        "init_args": {name: _plain(argument) for name, argument in arguments.items()},
    }
