"""An inversion method with its options, on one teacher: all that a loop needs to know of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from nisynth.batch import ImageBatch, Task
from nisynth.synthesis.inversion import model
from nisynth.synthesis.inversion.config import InversionConfig
from nisynth.synthesis.inversion.initialization import Weights
from nisynth.synthesis.inversion.model import ImageModel
from nisynth.synthesis.inversion.objective import FeatureDistance, image_terms
from nisynth.synthesis.inversion.term import Term
from nisynth.synthesis.protocol import StepCallback, Synthesizer
from nisynth.teachers import Teacher

MakeModel = Callable[[Any, Teacher, int], ImageModel]
"""Constructs a method's model from its config, the teacher and the batch size."""


class Loop(Synthesizer, Protocol):
    """A loop that runs an inversion method: the plain one or the engine's."""

    def synthesize(
        self, task: Task, on_step: StepCallback | None = None, start: Weights | None = None
    ) -> ImageBatch:
        """Returns the task's full batch; `start`: initial weights in place of those that the task draws."""


MakeLoop = Callable[[Any, MakeModel], Loop]
"""Constructs the loop that runs a model with a config, on the teacher and with the engine of a run."""


@dataclass(frozen=True, eq=False)
class InversionMethod:
    """What both loops run. extra_terms: losses beside those of Eq. 8, each with its weight."""

    config: InversionConfig
    teacher: Teacher
    make_model: MakeModel
    extra_terms: Sequence[Term] = ()

    def blank_model(self, batch_size: int, device: torch.device) -> ImageModel:
        """Returns a model with memory on `device`, for a task's draws to fill."""
        return model.blank(lambda: self.make_model(self.config, self.teacher, batch_size), device)

    def terms(self, r_bn: FeatureDistance | None = None) -> list[Term]:
        """Returns the loss terms in the order of their sum; `r_bn` as in `image_terms`."""
        return [*image_terms(self.config, self.teacher, r_bn), *self.extra_terms]
