"""The conditional generator G(z|y): Table 6, for images of any size."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nisynth.synthesis.inversion.initialization import (
    Weights,
    batch_norm_weights,
    default_weights,
    kaiming_weights,
    prefixed,
)

LARGEST_START_PX = 8
WIDTH, LAST_WIDTH = 128, 64


def image_sides_px(image_px: int) -> list[int]:
    """Returns the sides of the generator's maps: the image's, halved until at most 8 px, start first.

    32 px: 8, 16, 32; 64 px: 8, 16, 32, 64; 224 px: 7, 14, 28, 56, 112, 224. An odd side halves upwards.
    """
    sides = [image_px]
    while sides[0] > LARGEST_START_PX:
        sides.insert(0, (sides[0] + 1) // 2)
    return sides


class GeneratorBlock(nn.Module):
    """BatchNorm, LeakyReLU, nearest upsampling to `side_px`, 3x3 convolution.

    BatchNorm keeps no running statistics: a generator makes one batch and is always in batch mode, at
    rendering too (published code).
    """

    def __init__(self, in_channels: int, out_channels: int, side_px: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels, track_running_stats=False)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.side_px = side_px

    def forward(self, x: Tensor, norm_like: Tensor | None = None) -> Tensor:
        """Returns `(B, out, side, side)` from `(B, in, h, w)`.

        norm_like: maps of x's size whose means and variances normalize x in the place of its own.
        """
        x = F.leaky_relu(self.norm(x) if norm_like is None else self._normalized(x, norm_like), 0.2)
        if x.shape[-1] != self.side_px:
            x = F.interpolate(x, size=(self.side_px, self.side_px), mode="nearest")
        out: Tensor = self.conv(x)
        return out

    def _normalized(self, x: Tensor, like: Tensor) -> Tensor:
        mean, var = like.mean((0, 2, 3)), like.var((0, 2, 3), unbiased=False)
        return F.batch_norm(x, mean, var, self.norm.weight, self.norm.bias, training=False, eps=self.norm.eps)


class Generator(nn.Module):
    """z and a one-hot label to an image, without a final activation.

    8,702,467 parameters for 10 classes and 32 px; 9,439,747 for 100 classes.
    """

    def __init__(self, num_classes: int, image_px: int = 32, latent_dim: int = 1024) -> None:
        super().__init__()
        start_px, *sides_px = image_sides_px(image_px)
        sides_px = sides_px or [start_px]
        self.start_px = start_px
        self.linear = nn.Linear(latent_dim + num_classes, WIDTH * start_px**2)
        widths = [WIDTH] * len(sides_px) + [LAST_WIDTH]
        blocks = [GeneratorBlock(widths[i], widths[i + 1], side_px) for i, side_px in enumerate(sides_px)]
        self.blocks = nn.Sequential(*blocks, GeneratorBlock(LAST_WIDTH, 3, image_px))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Returns `(B, 3, H, W)` from z `(B, latent_dim)` and one-hot labels y `(B, num_classes)`."""
        image: Tensor = self.blocks(self._first_map(z, y))
        return image

    def forward_exchanged(self, z: Tensor, y: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """Returns `(B, 3, H, W)`, image i with channels of the maps of image B-1-i where a mask says so.

        masks: one `(B, C, 1, 1)` bool for the map that enters each block. Every map is normalized as those
        of the batch itself are: its statistics belong to what was optimized.
        """
        own = mixed = self._first_map(z, y)
        for block, mask in zip(self.blocks, masks, strict=True):
            mixed = block(torch.where(mask, own.flip(0), mixed), own)
            own = block(own)
        return mixed

    def map_widths(self) -> list[int]:
        """Returns the channels of the map that enters each block."""
        norms = (block.norm for block in self.blocks if isinstance(block, GeneratorBlock))
        return [norm.num_features for norm in norms]

    def _first_map(self, z: Tensor, y: Tensor) -> Tensor:
        x: Tensor = self.linear(torch.cat((z, y), dim=1))
        return x.view(-1, WIDTH, self.start_px, self.start_px)

    def draw_weights(self, rng: torch.Generator) -> Weights:
        """Returns fresh initial weights, drawn in the order of the parameters (published code)."""
        weights = prefixed("linear", default_weights(self.linear, rng))
        for i, block in enumerate(self.blocks):
            assert isinstance(block, GeneratorBlock)
            weights |= prefixed(f"blocks.{i}.norm", batch_norm_weights(block.norm, rng))
            weights |= prefixed(f"blocks.{i}.conv", kaiming_weights(block.conv, rng))
        return weights
