"""All randomness of a task, drawn from its seed before the loop starts.

One CPU generator serves every device and every engine, so that they start from the same numbers. The
order is part of a run's identity: weights of the generator, then of the pyramid (each in the order of its
parameters), z, alpha, jitter table. A change of it changes every image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nisynth.batch import Task
from nisynth.synthesis.inversion.initialization import Weights, prefixed
from nisynth.synthesis.inversion.jitter import draw_jitter
from nisynth.synthesis.naturalinversion.config import NaturalInversionConfig
from nisynth.synthesis.naturalinversion.renderer import Renderer
from nisynth.teachers import Teacher


@dataclass(frozen=True, eq=False)
class Draws:
    """What a task draws, on the CPU.

    weights: initial state dict of the task's Renderer, alpha included. z: `(B, latent_dim)` float32.
    jitter: `(iterations, 2, 3)` int64, see `draw_jitter`.
    """

    weights: Weights
    z: Tensor
    jitter: Tensor


def draw(task: Task, config: NaturalInversionConfig, teacher: Teacher) -> Draws:
    """Returns the task's draws. The same task, config and shape of teacher give the same ones."""
    rng = torch.Generator(device="cpu").manual_seed(task.seed)
    batch_size = len(task.labels)
    shapes = Renderer.blank(config, teacher, batch_size, torch.device("meta"))
    weights = shapes.draw_weights(rng)
    z = torch.randn((batch_size, config.latent_dim), generator=rng)
    weights |= prefixed("scaling", shapes.scaling.draw_weights(rng))
    jitter = draw_jitter(config.iterations, config.jitter_px, config.flip, rng)
    return Draws(weights=weights, z=z, jitter=jitter)
