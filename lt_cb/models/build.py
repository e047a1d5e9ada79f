"""Backbones by name: ResNets for small images, timm models, or custom ones."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lt_cb.errors import InputError, did_you_mean
from lt_cb.models import offline, resnet

OFFLINE = ("offline_lite0", "offline_lite2")
OURS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", *OFFLINE)
RESERVED = ("num_classes", "in_channels", "in_chans", "model_name")


def build_backbone(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    options: Mapping[str, Any] | None = None,
    image_size: int | None = None,
) -> nn.Module:
    """Create a network that maps images to logits.

    Args:
        name: ``resnet32`` (or 20, 44, 56, 110), ``offline_lite0`` or ``offline_lite2`` with weights from a package, a
            timm model, or the path ``package.module.function`` of a custom function or class, which is called with
            ``num_classes``, ``in_channels`` and the options.
        num_classes: C, the number of classes.
        in_channels: channels of the images.
        options: further keyword arguments, for example ``shortcut`` and ``init`` of ``resnet32``, or ``pretrained`` of
            timm.
        image_size: height and width in pixels, for timm models of a fixed size such as ViTs; None is their default.
    """
    options = dict(options or {})
    for option in RESERVED:
        if option in options:
            raise InputError(
                f"--model.backbone_args has {option}, which data and --model.backbone determine: remove it."
            )
    custom = _find(name)
    if name in OFFLINE and image_size is not None:
        options = {"image_size": image_size, **options}
    if custom is not None:
        return _call(name, custom, num_classes=num_classes, in_channels=in_channels, **options)
    import timm

    if not is_timm(name):
        raise InputError(
            f"there is no model '{name}': choose {', '.join(OURS)}, any name of timm.list_models(), or the path of a "
            "custom function." + did_you_mean(name, [*OURS, *timm.list_models()])
        )
    config = timm.get_pretrained_cfg(name)
    if image_size is not None and config is not None and config.fixed_input_size:
        options = {"img_size": image_size, **options}
    try:
        made = _call(name, timm.create_model, model_name=name, num_classes=num_classes, in_chans=in_channels, **options)
    except (AssertionError, ZeroDivisionError, RuntimeError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"model '{name}' cannot be made for these images ({why}): see --data.image_size.") from error
    patches = getattr(getattr(made, "patch_embed", None), "grid_size", None)
    if patches is not None and min(patches) < 1:
        raise InputError(
            f"model '{name}' cannot be made for images of {image_size} pixels, which are smaller than its patches: "
            "set --data.image_size higher."
        )
    return made


def pretrained_cfg(name: str) -> Mapping[str, Any] | None:
    """Return the preprocessing of pretrained weights: ``input_size`` (C, H, W), ``interpolation``, ``mean``, ``std``.

    It comes from timm, or from the attribute ``pretrained_cfg`` of a custom function; None without weights.
    """
    custom = _find(name)
    if custom is not None:
        return getattr(custom, "pretrained_cfg", None)
    import timm

    config = timm.get_pretrained_cfg(name) if has_timm_weights(name) else None
    return None if config is None else dataclasses.asdict(config)


def has_weights(name: str, options: Mapping[str, Any]) -> bool:
    """Return whether a network is made with pretrained weights, by timm or by a function that describes them."""
    custom = _find(name)
    return bool(options.get("pretrained")) if custom is None else hasattr(custom, "pretrained_cfg")


def with_weights(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a network with ``pretrained``, if timm has weights for it."""
    return {**options, "pretrained": True} if has_timm_weights(name) else dict(options)


def has_timm_weights(name: str) -> bool:
    """Return whether a name is a model of timm with pretrained weights."""
    import timm

    return is_timm(name) and timm.is_model_pretrained(name)


def is_timm(name: str) -> bool:
    """Return whether a name is a model of timm, or such a model with a tag of pretrained weights."""
    import timm

    return timm.is_model(name) and ("." not in name or timm.is_model_pretrained(name))


def _find(name: str) -> Callable[..., nn.Module] | None:
    """Return a network of lt_cb or import a custom function; None for a name of timm."""
    if name in OURS:
        return getattr(offline if name in OFFLINE else resnet, name)  # type: ignore[no-any-return]
    module, _, attribute = name.rpartition(".")
    if not module or module.strip("./\\") != module or is_timm(name):  # importlib raises other errors for a file path
        return None
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"--model.backbone is '{name}', but '{module}' cannot be imported ({error}): set PYTHONPATH to the folder "
            "of its file."
        ) from error
    custom: Callable[..., nn.Module] | None = getattr(found, attribute, None)
    if custom is None:
        raise InputError(f"'{module}' has no '{attribute}'.{did_you_mean(attribute, vars(found))}")
    return custom


def _call(name: str, make: Callable[..., nn.Module], **options: Any) -> nn.Module:  # noqa: ANN401 - passed on
    try:
        return make(**options)
    except TypeError as error:
        raise InputError(f"model '{name}' does not take these options ({error}): see --model.backbone_args.") from error
    except OSError as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"the weights of model '{name}' cannot be downloaded or read ({why}): offline, copy their file to this "
            "machine and set --model.backbone_args.pretrained_cfg_overlay '{file: FILE}', or set --model.backbone to "
            "offline_lite0, whose weights are a package, or to the path of a function that loads them."
        ) from error
