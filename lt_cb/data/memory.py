"""Where images have room."""

import os
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor


def home(images: Tensor, device: torch.device) -> torch.device:
    """Return the device if the images take at most half of its free memory, else the CPU, and say so."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    else:
        return device if device.type == "cpu" else torch.device("cpu")
    if images.device == device or images.nbytes <= free / 2:
        return device
    rank_zero_info(
        f"{len(images)} images take {images.nbytes / 2**30:.1f} GiB, more than half of the {free / 2**30:.1f} GiB that "
        f"are free on {device}: they stay in main memory, and each batch is copied."
    )
    return torch.device("cpu")


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
