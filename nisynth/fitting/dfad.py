"""DFAD (Fang et al., 2019): the generator seeks images on which teacher and student differ, in turns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from nisynth.fitting.fit import take_step
from nisynth.fitting.with_student import Mode, StudentFit, StudentFitConfig

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "cifar": {},
    "datafree": {
        **{"generator": "datafree", "betas": [0.5, 0.999], "decay_generator": False},
        **{"iterations": 16_000, "generator_mode": "eval", "student_mode": "eval"},
        **{"weight_decay": 1e-4, "schedule": "cosine"},
    },
}
"""The published code, and DataFree's re-implementation of it; both with batch 256."""


@dataclass(frozen=True, kw_only=True)
class DFADConfig(StudentFitConfig):
    """The published code's values are the defaults. student_mode: of the student in the generator's step."""

    name: Literal["dfad"] = "dfad"
    student_mode: Mode = "train"
    decay_generator: bool = True


def discrepancy(teacher: Tensor, student: Tensor) -> Tensor:
    """Returns the mean absolute difference of raw logits `(B, C)`, 0-dim."""
    return (student - teacher).abs().mean()


class DFAD(StudentFit):
    """The fit: the student's steps, then one of the generator."""

    def step(self, iteration: int) -> Mapping[str, Tensor]:
        """Takes the student's steps and one of the generator; `total` is the generator's loss."""
        self.set_rates(iteration)
        self.networks.train()
        terms: dict[str, Tensor] = {}
        for number in range(self.method.student_steps):
            terms["student"] = self.student_step(iteration, number, discrepancy)
        self.fitted.train()
        self.student.train(self.config.method.student_mode == "train")
        images = self.images(iteration)
        answers = self.teacher.logits(images)
        terms["total"] = -discrepancy(answers, self.logits(images))
        take_step(self.of_generator, terms["total"])
        return terms | {"class_balance": self.balance(answers)}
