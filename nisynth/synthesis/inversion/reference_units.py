"""Images in the reference's mean and std, whatever the teacher's own: `normalization: reference`.

The generator's image, alpha, R_TV and R_l2 live in normalized units. Where a teacher was trained on pixels
of 0..1, alpha = 5 is five times what a pixel can be; with the paper's std of 0.25 it is little more than
once. So the images are optimized in the units of the paper's CIFAR-10 networks, the teacher sees them in its
own, and the batch that comes out is in the teacher's: the same network with another mean and std, made up
for in its first layer, gives the same images.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from nisynth.batch import ImageBatch, Task
from nisynth.images import Normalization
from nisynth.synthesis.inversion.initialization import Weights
from nisynth.synthesis.inversion.method import Loop
from nisynth.synthesis.protocol import StepCallback
from nisynth.teachers import Teacher

REFERENCE_NORMALIZATION = Normalization((0.4914, 0.482158, 0.446531), (0.247032, 0.243485, 0.261588))
"""Of the networks that the published weights were held to."""


class Renormalization(nn.Module):
    """Images `(B, 3, H, W)` of one normalization in the units of another."""

    scale: Tensor
    shift: Tensor

    def __init__(self, given: Normalization, wanted: Normalization, device: torch.device) -> None:
        super().__init__()
        (mean, std), (wanted_mean, wanted_std) = given.columns(device), wanted.columns(device)
        self.register_buffer("scale", std / wanted_std)
        self.register_buffer("shift", (mean - wanted_mean) / wanted_std)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x in the wanted units."""
        return x * self.scale + self.shift


def from_reference_units(network: nn.Module, own: Normalization, device: torch.device) -> nn.Module:
    """Returns a network that takes images in the reference's units, with the weights of the given one."""
    return nn.Sequential(Renormalization(REFERENCE_NORMALIZATION, own, device), network).eval()


def in_reference_units(teacher: Teacher) -> Teacher:
    """Returns the teacher as one of the reference's normalization, with the same weights and taps."""
    return Teacher(
        from_reference_units(teacher.network, teacher.normalization, teacher.device),
        normalization=REFERENCE_NORMALIZATION,
        classes=teacher.classes,
        input_px=teacher.input_px,
        taps=[f"1.{tap.name}" for tap in teacher.taps],
        device=teacher.device,
    )


class InTeachersUnits:
    """A loop whose batches come out in the teacher's normalization instead of the reference's."""

    def __init__(self, loop: Loop, normalization: Normalization) -> None:
        self._loop = loop
        self._renormalize = Renormalization(REFERENCE_NORMALIZATION, normalization, torch.device("cpu"))

    @property
    def notes(self) -> Sequence[str]:
        """Returns those of the loop."""
        return self._loop.notes

    def synthesize(
        self, task: Task, on_step: StepCallback | None = None, start: Weights | None = None
    ) -> ImageBatch:
        """Returns the task's batch, `(B, 3, H, W)` float32 in the teacher's normalized space."""
        batch = self._loop.synthesize(task, on_step, start)
        return replace(batch, images=self._renormalize(batch.images))
