"""The images themselves as what is optimized: one tensor."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nisynth.synthesis.deepinversion.config import DeepInversionConfig
from nisynth.synthesis.inversion.initialization import Weights
from nisynth.synthesis.inversion.model import Acceleration, ImageModel
from nisynth.synthesis.inversion.schedule import warm_up_and_cosine
from nisynth.teachers import Teacher


class Pixels(ImageModel):
    """x `(B, 3, H, W)`, normalized, initially N(0, 1)."""

    def __init__(self, config: DeepInversionConfig, teacher: Teacher, batch_size: int) -> None:
        super().__init__()
        self.config = config
        mean, std = teacher.normalization.mean, teacher.normalization.std
        self._ranges = [(-m / s, (1 - m) / s) for m, s in zip(mean, std, strict=True)]
        self.x = nn.Parameter(torch.empty((batch_size, 3, teacher.input_px, teacher.input_px)))

    def draw_weights(self, rng: torch.Generator) -> Weights:
        """Returns x, normal noise."""
        return {"x": torch.randn(self.x.shape, generator=rng)}

    def adam_groups(self) -> list[dict[str, Any]]:
        """Returns x, with its learning rate and Adam's betas."""
        return [{"params": [self.x], "lr": self.config.lr, "betas": self.config.betas}]

    def learning_rate_factors(self, iterations: int) -> Sequence[float] | None:
        """Returns the schedule's factors; None where the rate is constant."""
        return warm_up_and_cosine(iterations) if self.config.schedule == "cosine" else None

    @torch.no_grad()
    def constrain(self) -> None:
        """Clips x to what decodes to 0..255, where the config says so."""
        if self.config.clip:
            for channel, (low, high) in enumerate(self._ranges):
                self.x[:, channel].clamp_(low, high)

    def forward(self, y: Tensor, jitter: Tensor | None = None, by: Acceleration | None = None) -> Tensor:
        """Returns x."""
        return self.x


class HalfSizePixels(Pixels):
    """The same, seen by the losses at half its side; rendered at its own."""

    def forward(self, y: Tensor, jitter: Tensor | None = None, by: Acceleration | None = None) -> Tensor:
        """Returns the 2x2 means of x, `(B, 3, H/2, W/2)`; without jitter, which is to render, x itself."""
        return self.x if jitter is None else F.avg_pool2d(self.x, 2)
