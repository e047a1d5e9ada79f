"""What makes training faster without being asked for: precision and compilation, where they help."""

from typing import Any

import torch
from lightning.pytorch import Trainer

MANY_STEPS = 5_000  # that pay for a minute of compilation


def mixed_precision(accelerator: Any) -> str | None:  # noqa: ANN401 - of a Trainer, by name or itself
    """Return the precision of the Trainer for hardware that multiplies in bfloat16, None for other hardware.

    Args:
        accelerator: as the Trainer takes it.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if accelerator not in ("auto", "cpu") or (accelerator == "auto" and torch.backends.mps.is_available()):
        return None
    instructions: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # newer than torch 2.8
    return "bf16-mixed" if instructions.get("amx_bf16") else None


def compiles(trainer: Trainer) -> bool:
    """Return whether to compile the network: on an NVIDIA GPU, whose kernels are short, and for a long training."""
    on_gpu = trainer.strategy.root_device.type == "cuda"
    return on_gpu and trainer.estimated_stepping_batches >= MANY_STEPS
