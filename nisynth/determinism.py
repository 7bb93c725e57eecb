"""The arithmetic under which equal tasks give equal bits: float32, deterministic algorithms.

A context and not a global setting, because consumers in the same process train with their own.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def deterministic() -> Iterator[None]:
    """Runs its block with deterministic algorithms and without TF32, and restores the settings after.

    An operation of a user's teacher that has no deterministic form on its device still runs, with
    torch's warning: such a teacher gets its images, but not the promise of equal bits. The promise holds
    on equal hardware and versions, at an equal number of threads.
    """
    # cuBLAS reads this once, when it is first used; torch warns where it is missing.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # mypy does not see the members that these modules define by other means.
    backends: Any = torch.backends
    memory: Any = torch.utils.deterministic
    float32_of = [
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
    ]
    precisions = [setting.fp32_precision for setting in float32_of]
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, fill = backends.cudnn.benchmark, memory.fill_uninitialized_memory
    try:
        for setting in float32_of:
            setting.fp32_precision = "ieee"
        torch.use_deterministic_algorithms(True, warn_only=True)
        backends.cudnn.benchmark = False
        # A debugging aid that writes NaN into every new tensor: 6 % of an iteration on a CPU.
        memory.fill_uninitialized_memory = False
        yield
    finally:
        for setting, precision in zip(float32_of, precisions, strict=True):
            setting.fp32_precision = precision
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        backends.cudnn.benchmark, memory.fill_uninitialized_memory = benchmark, fill
