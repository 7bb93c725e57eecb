"""Adaptive Channel Scaling: one learned factor per image and channel, Eq. 6-7."""

import torch
from torch import Tensor, nn

from nisynth.synthesis.inversion.initialization import Weights

SPREAD = 0.2
"""The standard deviation of the initial alpha over its mean: N(5, 1) in the paper."""


class AdaptiveChannelScaling(nn.Module):
    """alpha `(B, 3, 1, 1)`, initially N(mean, mean / 5), times the image; 5 in the paper."""

    def __init__(self, batch_size: int, mean: float = 5.0) -> None:
        super().__init__()
        self._mean = mean
        self.alpha = nn.Parameter(torch.full((batch_size, 3, 1, 1), mean, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        """Returns alpha * images, `(B, 3, H, W)`."""
        return self.alpha * images

    def draw_weights(self, rng: torch.Generator) -> Weights:
        """Returns a fresh initial alpha."""
        alpha = torch.empty(self.alpha.shape).normal_(self._mean, SPREAD * self._mean, generator=rng)
        return {"alpha": alpha}
