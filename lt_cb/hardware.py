"""The hardware: memory and cores that a process may use, and whether it multiplies in bfloat16. Imports no torch."""

import os
from pathlib import Path
from typing import Any


def available_memory() -> int:
    """Return the bytes of main memory that this process may still take."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no limit
        return free
    return max(min(free, limit - int(stat["anon"])), 0)


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def mixed_precision(accelerator: Any) -> str | None:  # noqa: ANN401 - of a Trainer, by name or itself
    """Return the precision of the Trainer for hardware that multiplies in bfloat16, None for other hardware.

    Args:
        accelerator: as the Trainer takes it.
    """
    import torch

    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if accelerator not in ("auto", "cpu") or (accelerator == "auto" and torch.backends.mps.is_available()):
        return None
    instructions: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # newer than torch 2.8
    return "bf16-mixed" if instructions.get("amx_bf16") else None
