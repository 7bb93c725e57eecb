"""What DAFL and DFAD share: a generator against a student, in turns or in one step, without real images.

The published codes and DataFree's re-implementation of them differ in generator, rates, schedules and modes;
each difference is one field of the config, and the presets name the combinations.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nisynth.errors import ConfigError
from nisynth.fitting.fit import FitConfig, take_step
from nisynth.images.real import load_real_set
from nisynth.synthesis.generators import GENERATORS, FittedGenerator, GeneratorSpec
from nisynth.synthesis.judgement import class_balance
from nisynth.teachers import Teacher
from nisynth.teachers.checkpoint import hash_weights
from nisynth.teachers.logits import logits_of
from nisynth.teachers.predict import accuracy
from nisynth.training.student import StudentConfig, student_network

Mode = Literal["train", "eval"]


@dataclass(frozen=True, kw_only=True)
class StudentFitConfig:
    """How generator and student are trained. Raises ConfigError for a value that cannot be used.

    student: the network beside the generator. test_set: real images that it is measured on at the end.
    iterations: steps of the generator. student_steps: of the student for each of them; 0: in one step with
    the generator, on the same images. generator: which network. latent_dim: length of its input.
    lr_generator, lr_student: learning rates at the start. momentum, weight_decay: of the student's SGD.
    milestones, gamma: of the schedule `steps`. generator_mode: of its BatchNorms while the student learns.
    betas: of the generator's Adam. schedule: of the student's rate, by iteration: `steps` multiplies it by
    `gamma` at each of `milestones` (fractions of `iterations`), `cosine` falls to 0. decay_generator: the
    generator's rate follows it.
    """

    student: StudentConfig = field(default_factory=lambda: StudentConfig(arch="resnet18"))
    test_set: str | None = None
    iterations: int = 25_000
    student_steps: int = 5
    generator: Literal["dafl", "dfad", "datafree"] = "dfad"
    generator_mode: Mode = "train"
    latent_dim: int = 256
    lr_generator: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    decay_generator: bool = False
    lr_student: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["steps", "cosine", "constant"] = "steps"
    milestones: tuple[float, ...] = (0.2, 0.4)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        for name, least in (("iterations", 1), ("student_steps", 0), ("latent_dim", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"method.{name}: {getattr(self, name)} is not at least {least}")
        for name in ("lr_generator", "lr_student"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"method.{name}: {getattr(self, name)} is not above 0")
        for name in ("momentum", "weight_decay", "gamma"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"method.{name}: {getattr(self, name)} is not within 0..1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"method.betas: {list(self.betas)} are not within 0..1")
        if not all(0 < part < 1 for part in self.milestones):
            raise ConfigError(f"method.milestones: {list(self.milestones)} are not fractions of iterations")

    def decay_at(self, iteration: int) -> float:
        """Returns what the rates are multiplied by at an iteration, counted from 0."""
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * iteration / self.iterations))
        if self.schedule == "steps":
            return self.gamma ** sum(iteration >= round(part * self.iterations) for part in self.milestones)
        return 1.0


def make_generator(spec: GeneratorSpec, teacher: Teacher) -> FittedGenerator:
    """Returns a generator with fresh weights, on the teacher's device.

    Raises ConfigError for an image size that it cannot make.
    """
    step = GENERATORS[spec.arch].px_step
    if teacher.input_px % step:
        raise ConfigError(
            f"teacher.input_px: {teacher.input_px} is not a multiple of {step}, which generator {spec.arch}"
            " needs; use method one_to_many, which makes images of any size"
        )
    return FittedGenerator(spec, teacher.normalization).to(teacher.device)


class StudentFit:
    """Generator, student, their optimizers and rates; a method adds its losses."""

    def __init__(self, config: FitConfig, teacher: Teacher) -> None:
        method: StudentFitConfig = config.method
        self.config, self.teacher, self.method = config, teacher, method
        self.test = None
        if method.test_set is not None:
            self.test = load_real_set(method.test_set)
            self.test.check_fits(teacher)
        spec = GeneratorSpec(
            arch=method.generator,
            num_classes=teacher.num_classes,
            image_px=teacher.input_px,
            latent_dim=method.latent_dim,
        )
        self.fitted = make_generator(spec, teacher)
        self.student: nn.Module = student_network(method.student, teacher, config.seed).to(teacher.device)
        self.networks = nn.ModuleDict({"generator": self.fitted, "student": self.student})
        self.of_generator = torch.optim.Adam(
            self.fitted.parameters(), lr=method.lr_generator, betas=method.betas, fused=True
        )
        self.of_student = torch.optim.SGD(
            self.student.parameters(),
            lr=method.lr_student,
            momentum=method.momentum,
            weight_decay=method.weight_decay,
        )
        self.optimizers = [self.of_generator, self.of_student]
        self.identity: dict[str, Any] = {}
        if method.student.weights is not None:
            self.identity["initial_student"] = hash_weights(self.student)

    def set_rates(self, iteration: int) -> None:
        """Sets both optimizers' rates for an iteration."""
        decay, method = self.method.decay_at(iteration), self.method
        for group in self.of_student.param_groups:
            group["lr"] = method.lr_student * decay
        for group in self.of_generator.param_groups:
            group["lr"] = method.lr_generator * (decay if method.decay_generator else 1.0)

    def images(self, *purpose: object) -> Tensor:
        """Returns a fresh batch from the generator, with its gradient as the context says."""
        rng = self.config.rng(*purpose)
        images: Tensor = self.fitted(self.fitted.latents(self.config.batch_size, rng))
        return images

    def logits(self, images: Tensor) -> Tensor:
        """Returns the student's logits `(B, C)`."""
        return logits_of(self.student(images), len(images), self.teacher.num_classes)

    def student_step(
        self, iteration: int, number: int, loss_of: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Takes the student's step `number` of an iteration, on fresh images; returns its loss, 0-dim.

        loss_of: of the teacher's and the student's logits, `(B, C)` each.
        """
        self.fitted.train(self.method.generator_mode == "train")
        with torch.no_grad():
            images = self.images(iteration, "student", number)
            answers = self.teacher.logits(images)
        loss = loss_of(answers, self.logits(images))
        take_step(self.of_student, loss)
        return loss

    def balance(self, logits: Tensor) -> Tensor:
        """Returns how balanced the classes that the teacher sees are, 0..1."""
        return torch.tensor(class_balance(logits.argmax(1), self.teacher.num_classes))

    def generator(self) -> FittedGenerator:
        """Returns the generator, which takes no labels."""
        return self.fitted

    def accuracies(self) -> dict[str, Any]:
        """Returns the student's and the teacher's accuracy on the test set, if there is one."""
        if self.test is None:
            return {}
        pixels, labels = self.test.pixels, self.test.labels
        normalization, num_classes = self.teacher.normalization, self.teacher.num_classes
        return {
            "test_accuracy": accuracy(self.student.eval(), pixels, labels, normalization, num_classes),
            "teacher_accuracy": self.teacher.accuracy(pixels, labels),
            "test_set": self.method.test_set,
        }
