"""In which arithmetic a network is trained, decided once around a whole training; and its memory."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch

from nisynth.device import deterministic
from nisynth.errors import ConfigError, first_line

Precision = Literal["auto", "float32", "bfloat16"]


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[Callable[[], Any]]:
    """Gives a function that makes the context of a forward pass.

    `float32` is deterministic and without TF32: the reference. `bfloat16` is autocast. `auto` is bfloat16
    on a GPU that computes in it, else float32. Raises ConfigError for a GPU that does not.
    """
    able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bfloat16" and device.type == "cuda" and not able:
        name = torch.cuda.get_device_name(device)
        raise ConfigError(f"train.precision: {name} has no bfloat16; use float32")
    if precision == "bfloat16" or (precision == "auto" and able):
        yield lambda: torch.autocast(device.type, torch.bfloat16)
        return
    with deterministic():
        yield nullcontext


def free_memory_bytes(device: torch.device) -> int:
    """Returns the memory that is free on a device, or in this process's container, the less of the two.

    Pages of files that are only cached count as free. Where a system tells neither: 4 GB.
    """
    found = [free for free in (_free_host_bytes(), _free_container_bytes()) if free is not None]
    if device.type == "cuda":
        found.append(torch.cuda.mem_get_info(device)[0])
    return min(found, default=4 << 30)


def _free_host_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _free_container_bytes() -> int | None:
    """Returns what control group version 2 leaves this process, None where it sets no limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        parts = dict(
            line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines()
        )
        return max(0, limit - used + int(parts["file"]))
    except (OSError, ValueError, KeyError):
        return None


def own_randomness(device: torch.device) -> AbstractContextManager[None]:
    """Leaves torch's global generators as they were, whatever is drawn inside."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


@contextmanager
def gpu_memory(batch_size: int) -> Iterator[None]:
    """Turns a GPU's lack of memory into one line."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise ConfigError(
            f"train.batch_size: {batch_size} images, or the set itself, do not fit in the GPU's memory"
            f" ({first_line(str(error))[:160]}); lower it"
        ) from None
