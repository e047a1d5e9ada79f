"""Available memory, cores and number formats. Imports no torch."""

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # options of mallopt(3)


def available_memory() -> int:
    """Return the free main memory in bytes, within the limit of the control group."""
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


@contextmanager
def reused_memory() -> Iterator[None]:
    """Keep freed memory for the next batch, which halves the time of a network without gradients on a CPU.

    Otherwise glibc returns a block above 32 MiB, as activations are, to the kernel, which then clears each page anew.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt"):  # not glibc
        yield
        return
    libc.mallopt(MMAP_MAX, 0)
    libc.mallopt(TRIM_THRESHOLD, -1)
    try:
        yield
    finally:  # the values that glibc itself arrives at
        libc.mallopt(MMAP_MAX, 65536)
        libc.mallopt(MMAP_THRESHOLD, 2**25)
        libc.mallopt(TRIM_THRESHOLD, 2**26)
        libc.malloc_trim(0)


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def mixed_precision(accelerator: Any) -> str | None:  # noqa: ANN401 - a name or an instance
    """Return ``bf16-mixed`` if the hardware multiplies in bfloat16, otherwise None.

    Args:
        accelerator: argument of the Trainer: a name, or an instance.
    """
    import torch

    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if accelerator not in ("auto", "cpu") or (accelerator == "auto" and torch.backends.mps.is_available()):
        return None
    instructions: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # needs torch > 2.8
    return "bf16-mixed" if instructions.get("amx_bf16") or instructions.get("avx512_bf16") else None


def processor(device: Any) -> str:  # noqa: ANN401 - a torch.device
    """Return the name of a device for the record of a run: the GPU, or the CPU with its widest instruction set."""
    if device.type == "cuda":
        import torch

        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return f"{platform.machine()} {platform.processor()}".strip()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    widest = next((flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags), "")
    return f"{fields.get('model name', platform.machine())} {widest}".strip()
