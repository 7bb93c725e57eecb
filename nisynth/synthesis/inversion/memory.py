"""The failure of a batch that does not fit the device's memory."""

from collections.abc import Callable

import torch

from nisynth.batch import ImageBatch, Task
from nisynth.errors import TaskFailure

# The CPU's allocator and the CUDA libraries have no exception type of their own.
ALLOCATION_ERRORS = ("can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")


def within_memory(run: Callable[[], ImageBatch]) -> ImageBatch | None:
    """Returns what `run` returns, or None where the device's memory does not suffice.

    The caller raises, outside the handler: an exception that is chained to the allocator's would keep the
    failed task's tensors alive.
    """
    try:
        return run()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an allocator, on the device or on the host, raised this, or its cause.

    The end of a CUDA graph's capture that ran out of memory raises an error of its own, hence the cause.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, RuntimeError) and any(text in str(error) for text in ALLOCATION_ERRORS):
        return True
    return error.__context__ is not None and is_out_of_memory(error.__context__)


def out_of_memory(task: Task, device: torch.device) -> TaskFailure:
    """Returns the failure of a batch that is too large; its message proposes half the size."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    batch_size = len(task.labels)
    cure = f"try run.batch_size {batch_size // 2}" if batch_size > 1 else "it needs more memory"
    return TaskFailure(
        "out_of_memory",
        f"task {task.index}: run.batch_size {batch_size} does not fit the memory of {device}; {cure}",
    )
