"""All randomness of a task, drawn from its seed before the loop starts.

One CPU generator serves every device and both loops, so that they start from the same numbers. The order
is part of a run's identity: the model's weights in the order that it documents, then the jitter table.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from nisynth.batch import Task
from nisynth.randomness import torch_seed
from nisynth.synthesis.inversion.config import InversionConfig
from nisynth.synthesis.inversion.initialization import Weights
from nisynth.synthesis.inversion.jitter import draw_jitter
from nisynth.synthesis.inversion.model import ImageModel


class Draws(NamedTuple):
    """What a task draws, on the CPU.

    weights: initial state dict of the task's model. jitter: `(iterations, 2, 3)` int64, see `draw_jitter`.
    """

    weights: Weights
    jitter: Tensor


def draw(task: Task, config: InversionConfig, model: ImageModel) -> Draws:
    """Returns the task's draws. The same task, config and shapes of the model give the same ones."""
    rng = torch.Generator(device="cpu").manual_seed(task.seed)
    weights = model.draw_weights(rng)
    return Draws(weights, draw_jitter(config.iterations, config.jitter_px, config.flip, rng))


def rendering_rng(task: Task) -> torch.Generator:
    """Returns the CPU generator of what the rendering of a task's result draws, independent of `draw`'s."""
    return torch.Generator(device="cpu").manual_seed(torch_seed(task.seed, "render"))
