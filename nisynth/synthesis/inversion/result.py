"""The batch that a finished loop returns."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nisynth.batch import ImageBatch, Task
from nisynth.errors import TaskFailure
from nisynth.synthesis.inversion.curve import LossCurve
from nisynth.synthesis.inversion.iterate import KeptIterate


def finish_batch(
    task: Task, i_hat: Tensor, kept: KeptIterate, curve: LossCurve, figures: Mapping[str, Any] | None = None
) -> ImageBatch:
    """Returns the task's batch from the rendered images. Raises TaskFailure `not_finite`."""
    if not (kept.finite & torch.isfinite(i_hat).all()):
        raise TaskFailure("not_finite", _not_finite(task, curve, str((figures or {}).get("engine"))))
    return ImageBatch(
        task=task,
        # A copy: a model may render its own parameters, which the next task overwrites.
        images=i_hat.detach().to("cpu", copy=True),
        labels=torch.from_numpy(task.labels.copy()),
        curve=curve.points,
        figures={
            "best_iteration": int(kept.best_iteration),
            "best_total": float(kept.best_total),
            **curve.final(),
            **(figures or {}),
        },
    )


def _not_finite(task: Task, curve: LossCurve, engine: str) -> str:
    good = [p["iteration"] for p in curve.points if math.isfinite(p["total"])]
    when = f"after iteration {good[-1]}" if good else "from the first iteration"
    wider = ", or set engine.precision to float32" if "16" in engine else ""
    return (
        f"task {task.index}: the loss is not finite {when}; "
        f"check the teacher's weights and normalization, or lower the method's learning rates{wider}"
    )
