"""Parameter groups of an optimiser: weight decay, and rates that fall from the last layer to the first."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lt_cb.errors import InputError

SCALE = "lr_scale"  # timm's key in a parameter group


def check_layer_decay(value: float | None) -> float | None:
    """Return a layer-wise decay of the rate; raise InputError if it is not in (0, 1]."""
    if value is not None and not 0.0 < value <= 1.0:
        raise InputError(f"layer_decay is {value}, but must be in (0, 1]; null or 1 gives all layers the same rate.")
    return value


def layer_scales(backbone: nn.Module, layer_decay: float | None) -> dict[nn.Parameter, float]:
    """Return the factor of the rate of each trained parameter of a network: layer_decay^k, k layers from the last.

    timm finds the layers. Without ``layer_decay`` the result is empty.
    """
    if layer_decay is None:
        return {}
    from timm.optim._param_groups import param_groups_layer_decay

    groups = param_groups_layer_decay(backbone, layer_decay=layer_decay)
    return {parameter: group[SCALE] for group in groups for parameter in group["params"]}


def grouped(
    parameters: Iterable[nn.Parameter], no_decay: Collection[nn.Parameter], scales: Mapping[nn.Parameter, float]
) -> list[dict[str, Any]]:
    """Return groups of trained parameters: with weight decay, then without; in both, the last layers first."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter in (p for p in parameters if p.requires_grad):
        groups.setdefault((parameter in no_decay, -scales.get(parameter, 1.0)), []).append(parameter)
    return [
        {"params": groups[excluded, scale]}
        | ({"weight_decay": 0.0} if excluded else {})
        | ({SCALE: -scale} if scales else {})
        for excluded, scale in sorted(groups)
    ]


def scale_rates(optimizer: Optimizer) -> None:
    """Let each step of an optimiser scale the rates of its groups, which the schedule does not see."""
    if not any(SCALE in group for group in optimizer.param_groups):
        return
    rates: list[Any] = []

    def scale(optimizer: Optimizer, *_: Any) -> None:  # noqa: ANN401 - arguments of the step
        rates[:] = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * group[SCALE]

    def restore(optimizer: Optimizer, *_: Any) -> None:  # noqa: ANN401 - arguments of the step
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    optimizer.register_step_pre_hook(scale)
    optimizer.register_step_post_hook(restore)
