"""Adapters: small trained matrices in the linear layers of a frozen transformer, by peft."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lt_cb.errors import InputError, check_at_least
from lt_cb.models.classifier import classifier_name, last_linear

ATTENTION = (  # names of linear layers by which a transformer is known
    "qkv",
    "q",
    "k",
    "v",
    "qk",
    "kv",
    "q_proj",
    "k_proj",
    "v_proj",
    "to_q",
    "to_k",
    "to_v",
    "query",
    "key",
    "value",
)


def attach_adapter(backbone: nn.Module, num_classes: int, rank: int) -> None:
    """Add low-rank adapters to all linear layers, and freeze all weights but adapters and classifier.

    LoRA (`Hu et al. 2022 <https://arxiv.org/abs/2106.09685>`_) adds B A to a frozen weight W of shape (out, in), with
    B = 0 of shape (out, rank) and random A of shape (rank, in), so that the network computes the same at first. All
    linear layers have adapters, as in `QLoRA <https://arxiv.org/abs/2305.14314>`_.

    Args:
        backbone: network with attention, changed in place.
        num_classes: C, the number of classes; the classifier is the last linear layer with C outputs.
        rank: rank of the adapters, at least 1.

    Raises:
        InputError: if peft is not installed, or the backbone has no attention layers with known names.
    """
    check_at_least("adapter_rank", rank, 1, "8 is common.")
    classifier, name = last_linear(backbone, num_classes), classifier_name(backbone, num_classes)
    linear = (layer for layer, module in backbone.named_modules() if isinstance(module, nn.Linear))
    targets = [layer for layer in linear if layer != name]
    if not any(layer.rpartition(".")[2] in ATTENTION for layer in targets):
        raise InputError(
            "--model.adapter is lora, but the backbone has no linear layers for queries, keys and values, which are "
            f"found by name ({', '.join(ATTENTION)}): choose a vision transformer of timm, or leave the adapter out."
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError(
            f"--model.adapter needs the package peft ({error}): run pip install 'lt_cb[adapters]'."
        ) from error
    for module in backbone.modules():
        if hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = True  # type: ignore[assignment]  # timm else uses the weights of the layer, and not the layer
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), backbone)
    assert classifier is not None
    classifier.requires_grad_(True)


def adapted_layers(backbone: nn.Module) -> dict[str, Any]:
    """Return the layers of peft in a network by name."""
    return {name: layer for name, layer in backbone.named_modules() if hasattr(layer, "get_delta_weight")}


def merge_adapter(backbone: nn.Module) -> None:
    """Add the adapters to the weights of their layers, and remove them: the network computes the same, and faster."""
    for name, layer in adapted_layers(backbone).items():
        layer.merge()
        backbone.set_submodule(name, layer.get_base_layer())


def plain_names(backbone: nn.Module) -> dict[str, str]:
    """Return the names of all weights but the adapters', each with its name in the network without adapters."""
    inner = tuple(f"{name}.base_layer." for name in adapted_layers(backbone))
    own = (name for name in backbone.state_dict() if ".lora_" not in name)
    return {name: name.replace(".base_layer.", ".") if name.startswith(inner) else name for name in own}


def plain_state(backbone: nn.Module) -> dict[str, Tensor]:
    """Return the state of the network with merged adapters; an adapter of zeros changes nothing.

    Without adapters these are the tensors themselves.
    """
    own = backbone.state_dict(keep_vars=True)
    state = {plain: own[name] for name, plain in plain_names(backbone).items()}
    for name, layer in adapted_layers(backbone).items():
        if (delta := layer.get_delta_weight("default").detach()).any():
            state[f"{name}.weight"] = state[f"{name}.weight"] + delta
    return state


def frozen_names(backbone: nn.Module, num_classes: int) -> dict[str, str]:
    """Return the names of the weights that a checkpoint of an adapter leaves out, as `plain_names` has them.

    These are all but adapters, classifier, statistics of batch norm, and position embeddings. timm resizes the latter
    to the image size, which another processor may round otherwise.
    """
    classifier = f"{classifier_name(backbone, num_classes)}."
    norms = {
        f"{name}.{buffer}"
        for name, module in backbone.named_modules()
        if isinstance(module, _BatchNorm)
        for buffer, _ in module.named_buffers(recurse=False)
    }
    return {
        own: plain
        for own, plain in plain_names(backbone).items()
        if not own.startswith(classifier) and own not in norms and "pos" not in own
    }


def frozen_digest(backbone: nn.Module, num_classes: int) -> str:
    """Return the SHA-256 of the weights that a checkpoint of an adapter leaves out."""
    state, digest = backbone.state_dict(), hashlib.sha256()
    for own, plain in sorted(frozen_names(backbone, num_classes).items(), key=lambda names: names[1]):
        update(digest, plain, state[own])
    return digest.hexdigest()


def update(digest: Any, name: str, value: Tensor) -> None:  # noqa: ANN401 - of hashlib
    """Add name, type, shape and numbers of a tensor to a digest."""
    array = value.detach().cpu().contiguous()
    digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
    digest.update(array.view(-1).view(torch.uint8).numpy() if array.numel() else b"")


def with_adapter(state: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Return the state of a network without adapters by the names of a backbone with adapters, which it keeps."""
    names = {plain: own for own, plain in plain_names(backbone).items()}
    fresh = {name: value for name, value in backbone.state_dict().items() if ".lora_" in name}
    return {names.get(name, name): value for name, value in state.items()} | fresh
