"""A backbone by name: ours, timm's, or one's own."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lt_cb.errors import InputError, did_you_mean
from lt_cb.models import resnet

OURS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")


def build_backbone(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    options: Mapping[str, Any] | None = None,
    image_size: int | None = None,
) -> nn.Module:
    """Make a network that maps images to logits.

    Args:
        name: ``resnet32`` (or 20, 44, 56, 110), a timm model, or ``package.module.function`` of your own, which is
            called with ``num_classes``, ``in_channels`` and the options.
        num_classes: C, the number of classes.
        in_channels: channels of the images.
        options: further keyword arguments, as ``shortcut`` and ``init`` of ours or ``pretrained`` of timm's.
        image_size: height and width in pixels, for what is built for one size alone, as timm's ViTs; None is its own.

    Raises:
        InputError: if there is no such model, or it does not take the options.
    """
    options = dict(options or {})
    for told in ("num_classes", "in_channels", "in_chans", "model_name"):
        if told in options:
            raise InputError(f"--model.backbone_args has {told}, which data and --model.backbone tell: leave it out.")
    if name in OURS:
        return _call(name, getattr(resnet, name), num_classes=num_classes, in_channels=in_channels, **options)
    module, _, attribute = name.rpartition(".")
    if module.strip("./\\") == module != "":  # no path
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            import timm

            if not timm.is_model(name.partition(".")[0]):  # some timm models have a dot in their name
                raise InputError(
                    f"--model.backbone is '{name}', but '{module}' cannot be imported ({error}): set PYTHONPATH to the "
                    "folder of its file."
                ) from error
        else:
            custom = getattr(found, attribute, None)
            if custom is None:
                raise InputError(f"'{module}' has no '{attribute}'.{did_you_mean(attribute, vars(found))}")
            return _call(name, custom, num_classes=num_classes, in_channels=in_channels, **options)
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise InputError(
            f"there is no model '{name}': choose {', '.join(OURS)}, any name of timm.list_models(), or the class path "
            "of your own." + did_you_mean(name, [*OURS, *timm.list_models()])
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
    """Return ``input_size`` (C, H, W), ``interpolation``, ``mean`` and ``std`` of a backbone's weights.

    They are timm's, or the attribute ``pretrained_cfg`` of a function of your own; None without weights.
    """
    module, _, attribute = name.rpartition(".")
    if name in OURS:
        return None
    try:
        own: Mapping[str, Any] | None = getattr(
            getattr(importlib.import_module(module), attribute), "pretrained_cfg", None
        )
        return own
    except (ImportError, AttributeError, ValueError):
        pass  # some timm models have a dot in their name
    import timm

    if not timm.is_model(name.partition(".")[0]) or not timm.is_model_pretrained(name):
        return None
    config = timm.get_pretrained_cfg(name)
    return None if config is None else dataclasses.asdict(config)


def _call(name: str, make: Callable[..., nn.Module], **kwargs: Any) -> nn.Module:  # noqa: ANN401 - passed on
    try:
        return make(**kwargs)
    except TypeError as error:
        raise InputError(f"model '{name}' does not take these options ({error}): see --model.backbone_args.") from error
    except OSError as error:
        why = str(error).partition("\n")[0]
        raise InputError(
            f"the weights of model '{name}' cannot be downloaded or read ({why}): offline, fetch their file "
            "elsewhere and set --model.backbone_args.pretrained_cfg_overlay.file to it, "
            "or set --model.backbone to a class path of your own that loads them."
        ) from error
