"""Defaults for the training of a pretrained network."""

from typing import Any

from jsonargparse import Namespace

from lt_cb.models.build import has_weights

# Touvron et al. 2022, Three things everyone should know about Vision Transformers, fine-tune with such values
CLIP = 1.0  # norm of the gradient
WEIGHT_DECAY = 0.05
RATE, ADAPTER_RATE = 1e-4, 5e-4


def adamw(adapter: str | None) -> dict[str, Any]:
    """Return the optimiser of a whole pretrained network, or of an adapter."""
    rate = RATE if adapter is None else ADAPTER_RATE
    return {"class_path": "torch.optim.AdamW", "init_args": {"lr": rate, "weight_decay": WEIGHT_DECAY}}


def of_pretrained(config: Namespace) -> dict[str, Any]:
    """Return the defaults of optimiser and clipping if the network of a configuration has pretrained weights."""
    adapter = config.model.adapter
    if adapter is None and not has_weights(config.model.backbone, config.model.backbone_args or {}):
        return {}
    return {"model.optimizer": adamw(adapter), "trainer.gradient_clip_val": CLIP}
