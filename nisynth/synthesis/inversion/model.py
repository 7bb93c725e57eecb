"""The seam between an inversion method and the loops: a model of one batch's images."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nisynth.synthesis.inversion.initialization import Weights
from nisynth.teachers import Teacher


@dataclass(frozen=True)
class Acceleration:
    """What the compiled engine lends a model for the images of one step.

    features: the teacher's features from its graph, as `Teacher.features` returns them.
    autocast: the context in which convolutions and linear layers run in the engine's precision.
    rewrites: whether the model should compute by exact rewrites of its layers, if it has any.
    layout: how they lay out their maps.
    """

    features: Callable[[Tensor], list[Tensor]]
    autocast: Callable[[], AbstractContextManager[Any]]
    rewrites: bool
    layout: torch.memory_format

    @classmethod
    def none(cls, teacher: Teacher) -> "Acceleration":
        """Returns what the plain loop has: the teacher's own features, float32, every layer as written."""
        return cls(teacher.features, nullcontext, rewrites=False, layout=torch.contiguous_format)


class ImageModel(nn.Module):
    """What one batch optimizes, and the images that it makes: one class per inversion method.

    Its parameters are theta: Adam moves them, and the kept iterate is a copy of them. Its buffers are what
    a task draws besides (z). `blank` gives it memory only: no tensor holds anything until
    `load_state_dict` fills all of them, in place, with a task's `draw_weights`.
    """

    differentiates_features: bool = False
    """Whether a gradient flows through the teacher's features that the model reads."""

    def draw_weights(self, rng: torch.Generator) -> Weights:
        """Returns a task's initial state dict, on the CPU, drawn from `rng` in a fixed order.

        The order is part of a run's identity: a change of it changes every image.
        """
        raise NotImplementedError

    def adam_groups(self) -> list[dict[str, Any]]:
        """Returns the parameters in groups with their learning rates, as torch's optimizers take them."""
        raise NotImplementedError

    def learning_rate_factors(self, iterations: int) -> Sequence[float] | None:
        """Returns what multiplies the learning rates at each step; None where they are constant."""
        return None

    def num_optimized(self, batch_size: int) -> int:
        """Returns how many of a batch's images are optimized, its first ones; `render` adds the others."""
        return batch_size

    def render(self, y: Tensor, rng: torch.Generator) -> Tensor:
        """Returns the result's images, `(B, 3, H, W)` float32, from the labels of those that were optimized.

        rng: on the CPU, for what a rendering draws; independent of the task's other draws.
        """
        i_hat: Tensor = self(y)
        return i_hat

    def constrain(self) -> None:
        """Puts theta back into its bounds, in place, after each step; by default it has none."""

    def forward(self, y: Tensor, jitter: Tensor | None = None, by: Acceleration | None = None) -> Tensor:
        """Returns the batch's images, `(B, 3, H, W)` float32, normalized, with a gradient to theta.

        y: `(B,)` int64 labels. jitter: a `(3,)` row for an image inside the model, where it has one; the
        loop itself jitters what is returned. None renders the result. by: what the engine lends; a model
        may ignore it.
        """
        raise NotImplementedError


def blank(make: Callable[[], ImageModel], device: torch.device) -> ImageModel:
    """Returns the model that `make` constructs, with memory on `device` and without drawing any weights."""
    with torch.device("meta"):
        model = make()
    return model.to_empty(device=device)
