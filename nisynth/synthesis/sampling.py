"""Images from a generator that was fitted before: one forward pass a task.

A fit (`nisynth.fitting`) leaves the generator as one safetensors file; its hash is part of a run's
fingerprint. A generator that takes labels gets the plan's. Images of one that takes none are labelled by
what the teacher says of them: their labels are observed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from nisynth.batch import ImageBatch, Task
from nisynth.device import deterministic
from nisynth.errors import ConfigError, TaskFailure, TeacherError
from nisynth.images import Normalization
from nisynth.synthesis.artefacts import differing_normalization
from nisynth.synthesis.generators import GENERATORS, FittedGenerator, GeneratorSpec
from nisynth.synthesis.protocol import StepCallback
from nisynth.teachers import Teacher
from nisynth.teachers.checkpoint import Checkpoint, hash_weights, read_checkpoint
from nisynth.teachers.save import tensors_bytes

KIND = "nisynth generator"
"""What a generator's file says it is, in its metadata."""
MAX_SIZE = 2**16
"""The largest latent or width that a file may state."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Which generator to sample.

    generator: the path or URL of the `generator.safetensors` that a fit left.
    """

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
class LoadedGenerator:
    """A generator in eval mode whose weights take no gradient.

    sha256: of its weights, as a teacher's. states: what else of it the run's identity holds: `labels`, where
    they are observed, and `real_images`, where it was fitted to any (their number and sha256).
    """

    network: FittedGenerator
    sha256: str
    states: Mapping[str, Any] = field(default_factory=dict)


def generator_bytes(network: FittedGenerator, normalization: Normalization, more: Mapping[str, str]) -> bytes:
    """Returns a generator as a safetensors file that `load_generator` reads."""
    spec = network.spec
    metadata = {
        "kind": KIND,
        "arch": spec.arch,
        "num_classes": str(spec.num_classes),
        "latent_dim": str(spec.latent_dim),
        "width": str(spec.width),
        "labels": "planned" if spec.conditional else "observed",
        "mean": json.dumps(normalization.mean),
        "std": json.dumps(normalization.std),
        **more,
    }
    return tensors_bytes(network.state_dict(), metadata)


def load_generator(url: str, teacher: Teacher) -> LoadedGenerator:
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
        raise ConfigError(f"{field}: fitted for {differing}; fit one to this teacher")
    spec, states = _spec(checkpoint, teacher, field), _states(checkpoint, field)
    with torch.device("meta"):  # a file decides no size: its tensors replace those of the same shape
        network = FittedGenerator(spec, teacher.normalization)
    try:
        network.load_state_dict(checkpoint.tensors, assign=True)
    except RuntimeError:
        raise ConfigError(
            f"{field}: its tensors are not those of a {spec.arch} generator for {teacher.num_classes} classes"
            f" and {teacher.input_px} px; fit one to this teacher"
        ) from None
    network = network.to(teacher.device).eval().requires_grad_(False)
    return LoadedGenerator(network, hash_weights(network), states)


def _spec(checkpoint: Checkpoint, teacher: Teacher, field: str) -> GeneratorSpec:
    stated = checkpoint.metadata
    try:
        numbers = {name: int(stated[name]) for name in ("num_classes", "latent_dim", "width")}
        arch, labels = stated["arch"], stated["labels"]
        if arch not in GENERATORS or labels not in ("planned", "observed"):
            raise ValueError(arch)
        if not all(0 <= number <= MAX_SIZE for number in numbers.values()) or not numbers["latent_dim"]:
            raise ValueError(numbers)
    except (KeyError, ValueError):
        raise ConfigError(f"{field}: does not say which generator it is; fit it with this version") from None
    if numbers["num_classes"] != teacher.num_classes:
        raise ConfigError(
            f"{field}: fitted for {numbers['num_classes']} classes, the teacher has {teacher.num_classes};"
            " fit one to this teacher"
        )
    if teacher.input_px % GENERATORS[arch].px_step:
        raise ConfigError(f"{field}: {arch} makes no images of {teacher.input_px} px")
    return GeneratorSpec(arch=arch, image_px=teacher.input_px, conditional=labels == "planned", **numbers)


def _states(checkpoint: Checkpoint, field: str) -> dict[str, Any]:
    states: dict[str, Any] = {}
    if checkpoint.metadata["labels"] == "observed":
        states["labels"] = "observed"
    if "real_images" in checkpoint.metadata:
        try:
            real = json.loads(checkpoint.metadata["real_images"])
            states["real_images"] = {"num_images": int(real["num_images"]), "sha256": str(real["sha256"])}
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ConfigError(f"{field}: real_images in its metadata is damaged; fit it again") from None
    return states


class Sampler:
    """Renders each task from latents of the task's own seed; no iteration, no curve."""

    notes: Sequence[str] = ()

    def __init__(self, teacher: Teacher, generator: LoadedGenerator) -> None:
        self._teacher, self._generator = teacher, generator.network

    def synthesize(self, task: Task, on_step: StepCallback | None = None) -> ImageBatch:
        """Returns `(B, 3, H, W)` float32 images and their labels; never calls `on_step`.

        Labels are the task's, or, of a generator that takes none, the class that the teacher gives to each
        decoded image (`pixels: clamp`). One-to-many's BatchNorms normalize by the batch, as in its fit; the
        others' by their running statistics. Raises TaskFailure `not_finite`.
        """
        rng = torch.Generator().manual_seed(task.seed)
        labels = torch.from_numpy(task.labels.copy())
        with torch.no_grad(), deterministic():
            z = self._generator.latents(len(labels), rng)
            images = self._generator(z, labels.to(self._teacher.device)).cpu()
            if not bool(torch.isfinite(images).all()):
                raise TaskFailure("not_finite", f"task {task.index}: the generator's images are not finite")
            if not self._generator.spec.conditional:
                labels = self._teacher.predict(self._teacher.normalization.to_pixels(images))
        return ImageBatch(task=task, images=images, labels=labels)
