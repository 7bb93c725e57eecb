"""Adaptive Channel Scaling: one learned factor per image and channel, Eq. 6-7."""

import torch
from torch import Tensor, nn

from nisynth.synthesis.inversion.initialization import Weights

INITIAL_MEAN, INITIAL_STD = 5.0, 1.0


class AdaptiveChannelScaling(nn.Module):
    """alpha `(B, 3, 1, 1)`, initially N(5, 1), times the image."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((batch_size, 3, 1, 1), INITIAL_MEAN))

    def forward(self, images: Tensor) -> Tensor:
        """Returns alpha * images, `(B, 3, H, W)`."""
        return self.alpha * images

    def draw_weights(self, rng: torch.Generator) -> Weights:
        """Returns a fresh initial alpha."""
        return {"alpha": torch.empty(self.alpha.shape).normal_(INITIAL_MEAN, INITIAL_STD, generator=rng)}
