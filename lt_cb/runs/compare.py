"""Comparison of a checkpoint with the data, network, optimiser and loss that are to use it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lt_cb.errors import InputError
from lt_cb.runs.folder import flatten
from lt_cb.runs.record import training_callbacks

# options of a loss that a configuration may leave out, with their defaults
UNSET: dict[str, Any] = {"init_args": {}, "weighting": None, "reduction": "mean", "weight_of": "sample"}


# settings outside model and data that change the weights, and settings inside that do not
TRAINING = ("accumulate_grad_batches", "gradient_clip_val", "limit_train_batches", "overfit_batches", "precision")
LENGTHS = ("max_epochs", "max_steps", "max_time")
NEUTRAL = ("data.root", "data.num_workers", "data.on_unreadable", "model.metrics", "model.fast")


def history(before: Mapping[str, Any], now: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return the settings of an earlier part of a training that now differ: ``{"first stage loss": "FocalLoss"}``.

    Args:
        before: configuration of the earlier part.
        now: configuration of the part that follows.
        part: ``first stage``, or ``resumed from``, for which the length does not matter.
    """
    of_trainer = (*TRAINING, *LENGTHS) if part == "first stage" else TRAINING
    theirs, ours = (_training_settings(config, of_trainer) for config in (before, now))
    changed = {key: theirs[key] for key in sorted(theirs.keys() & ours.keys()) if theirs[key] != ours[key]}
    names = {key: f"{part} {re.sub('^(model|data|trainer)[.]', '', key)}" for key in changed}
    return {names[key]: v if isinstance(v, bool | int | float | str) else str(v) for key, v in changed.items()}


def _training_settings(config: Mapping[str, Any], of_trainer: Sequence[str]) -> dict[str, Any]:
    keys = ("seed_everything", *(f"trainer.{name}" for name in of_trainer))
    settings = {
        key: value
        for key, value in flatten(config).items()
        if key in keys or (key.startswith(("model.", "data.")) and not key.startswith(NEUTRAL))
    }
    callbacks = [str(callback.get("class_path")).rpartition(".")[2] for callback in training_callbacks(config)]
    return {**settings, "trainer.callbacks": " + ".join(callbacks)}


def check_classes(content: Mapping[str, Any], class_names: Sequence[str], multi_label: bool) -> None:
    """Raise InputError if classes or task differ from the checkpoint's."""
    hparams = content.get("hyper_parameters", {})
    if bool(hparams.get("multi_label")) != multi_label:
        kinds = ("one label", "any number of labels")
        raise InputError(
            f"the checkpoint was trained on {kinds[not multi_label]} an image, but these data have "
            f"{kinds[multi_label]}: use the data it was trained on, or train anew."
        )
    loss, names = hparams.get("loss"), hparams.get("class_names") or class_names
    trained = len(loss["init_args"]["class_counts"] if isinstance(loss, dict) else names)
    if trained != len(class_names):
        raise InputError(
            f"the checkpoint has {trained} classes, but the data have {len(class_names)}: use the data it was trained "
            "on, or train anew."
        )
    for before, now in zip(names, class_names, strict=False):
        if before != now:
            raise InputError(f"the checkpoint's classes are not those of the data: '{before}' there is '{now}' here.")


def check_backbone(state: Mapping[str, Tensor], backbone: nn.Module) -> None:
    """Raise InputError if names or shapes of the weights differ from a checkpoint's backbone."""
    theirs, ours = ({name: list(v.shape) for name, v in each.items()} for each in (state, backbone.state_dict()))
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            raise InputError(
                f"the checkpoint is of another network: '{name}' is {theirs.get(name, 'missing')} there and "
                f"{ours.get(name, 'missing')} here. Use its backbone, adapter, loss and second stage."
            )


def check_optimizer(content: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Raise InputError if training cannot resume with an optimiser, for which the checkpoint has no state."""
    missing = [key for key in ("optimizer_states", "lr_schedulers", "loops") if key not in content]
    if missing:
        raise InputError(
            f"the checkpoint has weights, but no {missing[0]}, so that training cannot resume: resume from the "
            "last.ckpt beside it, or train it further with lt-cb finetune."
        )
    try:
        groups = [optimizer.param_groups, *(state["param_groups"] for state in content["optimizer_states"][:1])]
        sizes = [[len(group["params"]) for group in each] for each in groups]
    except (TypeError, LookupError) as error:
        raise InputError("the checkpoint's optimizer_states are damaged: test it, or train anew.") from error
    if sizes[0] != sizes[-1]:
        raise InputError(
            "the checkpoint was trained with another loss, second stage or weight decay: use the same, or train anew."
        )


def check_loss(before: Any, now: Any, key: str = "model.loss") -> None:  # noqa: ANN401 - YAML
    """Raise InputError if training would resume with another loss, naming the first option that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            inner = key if name in ("class_path", "init_args") else f"{key}.{name}"
            if (name in before and name in now) or name in UNSET:
                check_loss(before.get(name, UNSET.get(name)), now.get(name, UNSET.get(name)), inner)
    elif before != now:
        raise InputError(f"{_change(key, before, now)}: resume with the same loss, or set --change_loss true.")


def check_steps(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise InputError if training would resume with another class of optimiser or schedule: its state differs."""
    for key in ("optimizer", "lr_scheduler"):
        theirs, ours = before.get(key), now.get(key)
        if isinstance(theirs, dict) and isinstance(ours, dict) and theirs.get("class_path") != ours.get("class_path"):
            raise InputError(f"{_change(f'model.{key}', theirs, ours)}: use the same, or train anew.")


def _change(key: str, *values: Any) -> str:  # noqa: ANN401 - YAML
    before, now = ("null" if v is None else v.get("class_path") if isinstance(v, dict) else v for v in values)
    return f"the checkpoint was trained with --{key} {before}, but it is {now} now"


def check_callbacks(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise InputError if training would resume without its callbacks, unless ``trainer.callbacks`` is set."""
    lost = [str(callback.get("class_path")) for callback in training_callbacks(before)]
    if lost and now["trainer"].get("callbacks") is None:
        raise InputError(
            f"the checkpoint was trained with the callbacks {', '.join(lost)}, and does not bring them: add --config "
            "with the run's config.yaml, or set --trainer.callbacks [] to resume without them."
        )
