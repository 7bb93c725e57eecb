"""Where torch computes, and the float32 arithmetic under which equal tasks give equal bits.

Contexts and not global settings, because consumers in the same process train with their own.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def default_device() -> torch.device:
    """Returns this process's GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device | None = None) -> str:
    """Returns what a commit or a report calls a device: a GPU's model, or the CPU's kind of machine.

    device: by default the one that `default_device` gives.
    """
    device = default_device() if device is None else device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


@contextmanager
def float32_arithmetic(*, tf32_convolutions: bool = False, benchmark: bool = False) -> Iterator[None]:
    """Runs its block with IEEE float32 everywhere, and restores the settings after.

    tf32_convolutions: but for a GPU's convolutions. benchmark: let cuDNN search for the fastest algorithms,
    which need not be the same each time.
    """
    # mypy does not see the members that this module defines by other means.
    backends: Any = torch.backends
    float32_of = [backends.cudnn.conv, backends.mkldnn.conv, backends.cuda.matmul, backends.mkldnn.matmul]
    precisions = [setting.fp32_precision for setting in float32_of]
    benchmark_before = backends.cudnn.benchmark
    try:
        for setting in float32_of:
            setting.fp32_precision = "ieee"
        if tf32_convolutions:
            backends.cudnn.conv.fp32_precision = "tf32"
        backends.cudnn.benchmark = benchmark
        yield
    finally:
        for setting, precision in zip(float32_of, precisions, strict=True):
            setting.fp32_precision = precision
        backends.cudnn.benchmark = benchmark_before


@contextmanager
def deterministic() -> Iterator[None]:
    """Runs its block with deterministic algorithms and without TF32, and restores the settings after.

    An operation of a user's teacher that has no deterministic form on its device still runs, with
    torch's warning: such a teacher gets its images, but not the promise of equal bits. The promise holds
    on equal hardware and versions, at an equal number of threads.
    """
    # cuBLAS reads this once, when it is first used; torch warns where it is missing.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    memory: Any = torch.utils.deterministic
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = memory.fill_uninitialized_memory
    with float32_arithmetic():
        try:
            torch.use_deterministic_algorithms(True, warn_only=True)
            # A debugging aid that writes NaN into every new tensor: 6 % of an iteration on a CPU.
            memory.fill_uninitialized_memory = False
            yield
        finally:
            torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
            memory.fill_uninitialized_memory = fill
