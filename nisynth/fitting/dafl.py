"""DAFL (Chen et al., ICCV 2019): images that the teacher is sure of, evenly spread, with strong features."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nisynth.errors import ConfigError
from nisynth.fitting.fit import FitConfig, take_step
from nisynth.fitting.with_student import StudentFit, StudentFitConfig
from nisynth.teachers import Teacher
from nisynth.teachers.trace import Site, reading

_CIFAR100 = {"one_hot_weight": 0.5, "balance_weight": 20.0, "activation_weight": 0.1}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "cifar10": {},
    "cifar100": _CIFAR100,
    "datafree": {
        **{"one_hot_weight": 1.0, "balance_weight": 20.0, "activation_weight": 0.001, "entropy_base": "e"},
        **{"generator": "datafree", "latent_dim": 512, "lr_generator": 1e-3, "betas": [0.5, 0.999]},
        **{"iterations": 16_000, "student_steps": 5, "generator_mode": "eval"},
        **{"weight_decay": 1e-4, "schedule": "cosine"},
    },
}
"""The published code's two experiments (batch 1,024), and DataFree's re-implementation (batch 256)."""


@dataclass(frozen=True, kw_only=True)
class DAFLConfig(StudentFitConfig):
    """The published code's values for CIFAR-10 are the defaults.

    one_hot_weight, balance_weight, activation_weight: of the generator's three losses; 0 is none of it.
    entropy_base: of the logarithm in the balance of classes; published 10, DataFree e.
    """

    name: Literal["dafl"] = "dafl"
    one_hot_weight: float = 0.05
    balance_weight: float = 5.0
    activation_weight: float = 0.01
    entropy_base: Literal["10", "e"] = "10"
    iterations: int = 240_000
    student_steps: int = 0
    generator: Literal["dafl", "dfad", "datafree"] = "dafl"
    latent_dim: int = 1000
    lr_generator: float = 0.02
    milestones: tuple[float, ...] = (0.4, 0.8)


def one_hot_loss(logits: Tensor) -> Tensor:
    """Returns the cross-entropy of logits `(B, C)` with their own verdict, 0-dim."""
    return F.cross_entropy(logits, logits.argmax(1))


def balance_loss(logits: Tensor, base: Literal["10", "e"] = "10") -> Tensor:
    """Returns the negative entropy of the batch's mean probabilities, 0-dim: -log C where balanced."""
    mean = logits.softmax(1).mean(0)
    negative: Tensor = torch.special.xlogy(mean, mean).sum()
    return negative / (math.log(10) if base == "10" else 1.0)


def activation_loss(features: Tensor) -> Tensor:
    """Returns minus the mean absolute value of the features before the last layer, 0-dim."""
    return -features.abs().mean()


def distillation_loss(teacher: Tensor, student: Tensor) -> Tensor:
    """Returns KL(teacher || student) of logits `(B, C)` at temperature 1, meaned over the batch, 0-dim."""
    answers = teacher.log_softmax(1)
    return F.kl_div(student.log_softmax(1), answers, reduction="batchmean", log_target=True)


class DAFL(StudentFit):
    """The fit. Raises ConfigError for a teacher without a linear last layer, whose input are the features."""

    def __init__(self, config: FitConfig, teacher: Teacher) -> None:
        super().__init__(config, teacher)
        self._options: DAFLConfig = config.method
        self._sites: list[Site] = []
        if self._options.activation_weight:
            self._sites = [_last_linear(teacher)]

    def step(self, iteration: int) -> Mapping[str, Tensor]:
        """Takes a step of the generator, and those of the student."""
        self.set_rates(iteration)
        self.networks.train()
        images = self.images(iteration)
        terms = self._generator_terms(images)
        logits = terms.pop("logits")
        if self._options.student_steps == 0:
            terms["distillation"] = distillation_loss(logits.detach(), self.logits(images.detach()))
        take_step(self.of_generator, terms["total"])
        if self._options.student_steps == 0:
            take_step(self.of_student, terms["distillation"])
        for number in range(self._options.student_steps):
            terms["distillation"] = self.student_step(iteration, number, distillation_loss)
        return terms | {"class_balance": self.balance(logits)}

    def _generator_terms(self, images: Tensor) -> dict[str, Tensor]:
        options = self._options
        with reading(self._sites, "input") as features:
            logits = self.teacher.logits(images)
        terms = {
            "one_hot": one_hot_loss(logits),
            "balance": balance_loss(logits, options.entropy_base),
        }
        total = options.one_hot_weight * terms["one_hot"] + options.balance_weight * terms["balance"]
        if features:
            terms["activation"] = activation_loss(features[0])
            total = total + options.activation_weight * terms["activation"]
        return {**terms, "total": total, "logits": logits}


def _last_linear(teacher: Teacher) -> Site:
    found = [
        (name, module)
        for name, module in teacher.network.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == teacher.num_classes
    ]
    if not found:
        raise ConfigError(
            "method.activation_weight: the teacher has no linear last layer, whose input are its features;"
            " set it to 0"
        )
    name, module = found[-1]
    return Site(name, module, 0, torch.Size(), copied=False)
