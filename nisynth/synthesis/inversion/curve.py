"""What every loop does with its losses and its result: the curve, the batch, and the ways to fail."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nisynth.batch import ImageBatch, Task
from nisynth.errors import TaskFailure
from nisynth.synthesis.inversion.objective import KeptIterate, Losses
from nisynth.synthesis.protocol import StepCallback

# The CPU's allocator and the CUDA libraries have no exception type of their own.
ALLOCATION_ERRORS = ("can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")


class LossCurve:
    """The loss terms of the first, every `log_every`-th and the last iteration (Figure 5).

    Iterations count from 1: point k holds the losses of the iterate before the k-th step.
    """

    def __init__(self, iterations: int, log_every: int, on_step: StepCallback | None) -> None:
        self.points: list[dict[str, float]] = []
        self._iterations = iterations
        self._log_every = log_every
        self._on_step = on_step

    def wants(self, iteration: int) -> bool:
        """Says whether this iteration is a point of the curve."""
        return iteration in (1, self._iterations) or iteration % self._log_every == 0

    def add(self, iteration: int, terms: Losses) -> None:
        """Reads the terms from the device, keeps them and passes them on."""
        values = dict(zip(Losses._fields, torch.stack(terms).tolist(), strict=True))
        self.points.append({"iteration": iteration, **values})
        if self._on_step is not None:
            self._on_step(iteration, values)

    def final(self) -> Mapping[str, float]:
        """Returns the last point's terms as figures: `final_total`, `final_ce`, ..."""
        return {f"final_{name}": value for name, value in self.points[-1].items() if name != "iteration"}


def conclude(
    task: Task, i_hat: Tensor, kept: KeptIterate, curve: LossCurve, figures: Mapping[str, Any] | None = None
) -> ImageBatch:
    """Returns the task's batch from the rendered images. Raises TaskFailure `not_finite`."""
    if not (kept.finite & torch.isfinite(i_hat).all()):
        raise TaskFailure("not_finite", _not_finite(task, curve, str((figures or {}).get("engine"))))
    return ImageBatch(
        task=task,
        images=i_hat.cpu(),
        labels=torch.from_numpy(task.labels.copy()),
        curve=curve.points,
        figures={
            "best_iteration": int(kept.best_iteration),
            "best_total": float(kept.best_total),
            **curve.final(),
            **(figures or {}),
        },
    )


def within_memory(run: Callable[[], ImageBatch]) -> ImageBatch | None:
    """Returns what `run` returns, or None where the device's memory does not suffice.

    The caller raises: an exception chained to the allocator's would keep the failed task's tensors alive.
    """
    try:
        return run()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Says whether an allocator, on the device or on the host, raised this, or what this came of.

    (The end of a capture that ran out of memory raises an error of its own.)
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, RuntimeError) and any(text in str(error) for text in ALLOCATION_ERRORS):
        return True
    return error.__context__ is not None and is_out_of_memory(error.__context__)


def out_of_memory(task: Task, device: torch.device, fitting: int | None = None) -> TaskFailure:
    """Returns the failure of a batch that is too large; `fitting` is a size that should fit, else a guess."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    batch_size = len(task.labels)
    cure = f"try run.batch_size {fitting or batch_size // 2}" if batch_size > 1 else "it needs more memory"
    return TaskFailure(
        "out_of_memory",
        f"task {task.index}: run.batch_size {batch_size} does not fit the memory of {device}; {cure}",
    )


def _not_finite(task: Task, curve: LossCurve, engine: str) -> str:
    good = [p["iteration"] for p in curve.points if math.isfinite(p["total"])]
    when = f"after iteration {good[-1]}" if good else "from the first iteration"
    wider = ", or set engine.precision to float32" if "16" in engine else ""
    return (
        f"task {task.index}: the loss is not finite {when}; "
        f"check the teacher's weights and normalization, or lower method.lr_generator{wider}"
    )
