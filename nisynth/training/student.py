"""The network that a training begins with: built by name, its weights drawn from the seed or read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from nisynth.errors import ConfigError, TeacherError, one_line
from nisynth.randomness import torch_seed
from nisynth.teachers import build_network
from nisynth.teachers.checkpoint import read_checkpoint
from nisynth.teachers.logits import find_logits
from nisynth.teachers.operations import first_tensor


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The network to train.

    arch: a name that `nisynth teachers` prints, or `package.module:factory`. kwargs: arguments of the
    factory. weights: a path or URL of the weights to start from; by default they are drawn from train.seed.
    """

    arch: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = field(default=None, metadata={"added_later": True})


class Classes(Protocol):
    """What a student must fit: images of a size, in so many classes."""

    @property
    def num_classes(self) -> int: ...
    @property
    def input_px(self) -> int: ...


def student_network(student: StudentConfig, images: Classes, seed: int) -> nn.Module:
    """Returns a student with its initial weights, drawn from the seed or read from `student.weights`.

    images: what it is to be trained on: their classes and size. Raises ConfigError, TeacherError,
    StorageError.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(torch_seed(seed, "init"))
        arguments = {"num_classes": images.num_classes, **student.kwargs}
        network = build_network(student.arch, **arguments)
    try:
        with torch.no_grad():
            output = network.eval()(torch.zeros(2, 3, images.input_px, images.input_px))
    except Exception as error:  # the user's network may raise anything
        raise ConfigError(
            f"student.arch: {student.arch!r} fails on {images.input_px} px images ({one_line(error)})"
        ) from error
    try:
        find_logits(output, 2, images.num_classes)
    except TeacherError:
        first = first_tensor(output)
        shape = None if first is None else tuple(first.shape)
        raise ConfigError(
            f"student.arch: {student.arch!r} gives logits {shape} for 2 images, but these have"
            f" {images.num_classes} classes; build it with that many"
        ) from None
    if student.weights is not None:
        _load_initial(network, student)
    return network


def _load_initial(network: nn.Module, student: StudentConfig) -> None:
    assert student.weights is not None
    try:
        read_checkpoint(student.weights).load_into(network, student.arch)
    except (ConfigError, TeacherError) as error:
        raise type(error)(str(error).replace("teacher.", "student.")) from error.__cause__
