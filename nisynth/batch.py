"""What one task asks for, and what it gives: `Task` in, `ImageBatch` out.

Tensors are `(B, 3, H, W)` float32 in the teacher's normalized space until `Normalization.to_pixels`
turns them into the uint8 images that a Parquet shard stores.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nisynth.errors import counted

if TYPE_CHECKING:  # what only reads plans and commits does not wait for torch
    from torch import Tensor

REAL_R_BN_IN_Y = "0.3-0.7"
"""R_BN in units of Y of real images that a teacher was not trained on, beside which a batch's is shown."""


@dataclass(frozen=True, eq=False)
class Task:
    """One independent unit of work: one generator, one batch, one seed, one shard, one commit.

    `labels` is `(B,)` int64, always a full batch; the shard keeps the first `rows` images, fewer than
    B only in the last task of a run whose size is no multiple of B.
    """

    index: int
    seed: int
    labels: npt.NDArray[np.int64]
    rows: int

    def __repr__(self) -> str:
        return f"Task({self.index}: {counted(self.rows, 'image')})"


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """The images of one task, with their labels and how they came to be; checks itself.

    images: `(B, 3, H, W)` float32, normalized, on the CPU, finite. labels: `(B,)` int64.
    curve: one dict of loss terms per logged iteration, `{"iteration", "total", ...}` (Figure 5).
    figures: facts about the result, e.g. `{"best_iteration": 1873, "best_total": 3.1}`.
    Raises ValueError when shapes or types disagree (a bug of the method, not of the user).
    """

    task: Task
    images: "Tensor"
    labels: "Tensor"
    curve: list[dict[str, float]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import torch

        if self.images.dtype != torch.float32 or self.images.ndim != 4 or self.images.shape[1] != 3:
            shape = tuple(self.images.shape)
            raise ValueError(f"images are {self.images.dtype} {shape}, not float32 (B, 3, H, W)")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels are {self.labels.dtype} {tuple(self.labels.shape)}")
        if not bool(torch.isfinite(self.images).all()):
            raise ValueError("images hold values that are not finite")

    def __repr__(self) -> str:
        height_px, width_px = self.images.shape[2:]
        return f"ImageBatch(task {self.task.index}: {len(self.labels):,} images, {width_px}x{height_px})"

    @property
    def committed_part(self) -> tuple["Tensor", "Tensor"]:
        """The images and labels that the shard holds: the first `task.rows` of the batch."""
        return self.images[: self.task.rows], self.labels[: self.task.rows]
