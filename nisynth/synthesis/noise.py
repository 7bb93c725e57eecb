"""Normal noise in place of images: the floor that any method must beat.

It costs nothing to make, so it is also the load under which everything but synthesis is measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from nisynth.batch import ImageBatch, Task
from nisynth.synthesis.protocol import StepCallback
from nisynth.teachers import Teacher


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Images whose every value is drawn from N(0, 1) in the teacher's normalized space."""

    name: Literal["noise"] = "noise"

    @property
    def iterations(self) -> int:
        """Returns 1: there is no loop."""
        return 1


class NoiseSynthesizer:
    """Draws each task's images from the task's own seed, without a loop and without a curve."""

    notes: Sequence[str] = ()

    def __init__(self, teacher: Teacher) -> None:
        self._side_px = teacher.input_px

    def synthesize(self, task: Task, on_step: StepCallback | None = None) -> ImageBatch:
        """Returns `(B, 3, H, W)` float32 normal noise with the task's labels; never calls `on_step`."""
        rng = torch.Generator().manual_seed(task.seed)
        labels = torch.from_numpy(task.labels.copy())
        images = torch.randn((len(labels), 3, self._side_px, self._side_px), generator=rng)
        return ImageBatch(task=task, images=images, labels=labels)
