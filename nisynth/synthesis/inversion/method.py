"""An inversion method with its options, on one teacher: all that a loop needs to know of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nisynth.synthesis.inversion import model
from nisynth.synthesis.inversion.config import InversionConfig
from nisynth.synthesis.inversion.model import ImageModel
from nisynth.synthesis.inversion.objective import FeatureDistance, Term, image_terms
from nisynth.teachers import Teacher

MakeModel = Callable[[Any, Teacher, int], ImageModel]
"""Constructs a method's model from its config, the teacher and the batch size."""


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
