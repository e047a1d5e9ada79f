"""Defaults for the training of a pretrained network."""

from typing import Any

from jsonargparse import Namespace

from lt_cb.models.build import has_weights

# Touvron et al. 2022, Three things everyone should know about Vision Transformers, fine-tune with such values
ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4, "weight_decay": 0.05}}
CLIP = 1.0  # norm of the gradient


def of_pretrained(config: Namespace) -> dict[str, Any]:
    """Return the defaults of optimiser and clipping if the network of a configuration has pretrained weights."""
    if not has_weights(config.model.backbone, config.model.backbone_args or {}):
        return {}
    return {"model.optimizer": ADAMW, "trainer.gradient_clip_val": CLIP}
