"""Images from a generator that was fitted before: one forward pass a task.

A fit (`nisynth.fitting`) leaves the generator as one safetensors file; its hash is part of a run's
fingerprint. Labels are the plan's.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from nisynth.batch import ImageBatch, Task
from nisynth.determinism import deterministic
from nisynth.errors import ConfigError, TaskFailure, TeacherError
from nisynth.images import Normalization
from nisynth.synthesis.artefacts import differing_normalization
from nisynth.synthesis.naturalinversion.generator import Generator
from nisynth.synthesis.protocol import StepCallback
from nisynth.teachers import Teacher
from nisynth.teachers.checkpoint import hash_weights, read_checkpoint

KIND = "naturalinversion generator"
"""What a generator's file says it is, in its metadata."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Which generator to sample: the path or URL of the `generator.safetensors` that a fit left."""

    name: Literal["sampling"] = "sampling"
    generator: str = ""

    @property
    def iterations(self) -> int:
        """Returns 1: there is no loop."""
        return 1

    def __post_init__(self) -> None:
        if not self.generator:
            raise ConfigError("method.generator: missing; give the generator.safetensors of `nisynth fit`")


@dataclass(frozen=True, eq=False)
class FittedGenerator:
    """A generator whose weights take no gradient. sha256: of its weights, as a teacher's."""

    network: Generator
    latent_dim: int
    sha256: str


def generator_bytes(network: Generator, normalization: Normalization, more: Mapping[str, str]) -> bytes:
    """Returns a generator as a safetensors file that `load_generator` reads."""
    metadata = {
        "kind": KIND,
        "mean": json.dumps(normalization.mean),
        "std": json.dumps(normalization.std),
        **more,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    return safetensors.torch.save(tensors, metadata)


def load_generator(url: str, teacher: Teacher) -> FittedGenerator:
    """Returns the generator at `url`, on the teacher's device.

    Raises ConfigError, TeacherError or StorageError, one line that names `method.generator`: a file that is
    not there or no generator, or one of other classes, another image size or another mean and std.
    """
    field = f"method.generator {url}"
    try:
        checkpoint = read_checkpoint(url)
    except (ConfigError, TeacherError) as error:
        raise type(error)(str(error).replace("teacher.weights", "method.generator")) from error.__cause__
    if checkpoint.metadata.get("kind") != KIND:
        raise ConfigError(f"{field}: not a generator; give the generator.safetensors of `nisynth fit`")
    differing = differing_normalization(checkpoint.metadata, teacher.normalization)
    if differing is not None:
        raise ConfigError(f"{field}: fitted for {differing}")
    inputs = checkpoint.tensors.get("linear.weight", torch.empty(0, 0))
    latent_dim = inputs.shape[-1] - teacher.num_classes
    if latent_dim < 1:
        raise ConfigError(
            f"{field}: has {inputs.shape[-1]} inputs, the teacher {teacher.num_classes} classes"
        )
    with torch.device("meta"):  # a file decides no size: its tensors replace those of the same shape
        network = Generator(teacher.num_classes, teacher.input_px, latent_dim)
    try:
        network.load_state_dict(checkpoint.tensors, assign=True)
    except RuntimeError:
        raise ConfigError(
            f"{field}: its tensors are not those of a generator for {teacher.num_classes} classes and "
            f"{teacher.input_px} px"
        ) from None
    network = network.to(teacher.device).requires_grad_(False)
    return FittedGenerator(network, latent_dim, hash_weights(network))


class Sampler:
    """Renders each task from latents of the task's own seed; no iteration, no curve."""

    notes: Sequence[str] = ()

    def __init__(self, teacher: Teacher, generator: FittedGenerator) -> None:
        self._teacher, self._generator = teacher, generator

    def synthesize(self, task: Task, on_step: StepCallback | None = None) -> ImageBatch:
        """Returns `(B, 3, H, W)` float32 images of the task's labels; never calls `on_step`.

        The generator's BatchNorms normalize by the batch, as they did in its fit. Raises TaskFailure
        `not_finite`.
        """
        rng = torch.Generator().manual_seed(task.seed)
        labels = torch.from_numpy(task.labels.copy())
        z = torch.randn((len(labels), self._generator.latent_dim), generator=rng)
        with torch.no_grad(), deterministic():
            images = self._render(z, labels).cpu()
        if not bool(torch.isfinite(images).all()):
            raise TaskFailure("not_finite", f"task {task.index}: the generator's images are not finite")
        return ImageBatch(task=task, images=images, labels=labels)

    def _render(self, z: Tensor, labels: Tensor) -> Tensor:
        device = self._teacher.device
        y_one_hot = F.one_hot(labels, self._teacher.num_classes).float()
        images: Tensor = self._generator.network(z.to(device), y_one_hot.to(device))
        return images
