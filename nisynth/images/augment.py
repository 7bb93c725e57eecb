"""Shuffle, crop and flip: which images make up a step, and how each is changed.

All of it is a pure function of (seed, epoch), drawn on the CPU for a whole epoch at once: equal on every
device, for every number of workers, and again after a resume. The images stay uint8 on the device, and
each batch is gathered, shifted and mirrored there by one indexing, with no loader process in between.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nisynth.randomness import torch_seed


@dataclass(frozen=True, eq=False)
class EpochDraws:
    """The draws of one epoch, by place in its order.

    order: `(M,)` int64, the images. shift_px: `(M, 2)` int64, down and right, -pad..pad. flip: `(M,)` bool.
    """

    order: Tensor
    shift_px: Tensor
    flip: Tensor

    def to(self, device: torch.device) -> "EpochDraws":
        """Returns the same draws on a device."""
        return EpochDraws(self.order.to(device), self.shift_px.to(device), self.flip.to(device))


def draw_epoch(seed: int, epoch: int, num_images: int, pad_px: int, flip: bool) -> EpochDraws:
    """Returns the draws of one epoch over all images: a permutation, crops of a padded image, mirrorings."""
    generator = torch.Generator().manual_seed(torch_seed(seed, "epoch", epoch))
    order = torch.randperm(num_images, generator=generator)
    shift = torch.randint(-pad_px, pad_px + 1, (num_images, 2), generator=generator)
    mirrored = torch.rand(num_images, generator=generator) < 0.5
    return EpochDraws(order, shift, mirrored & flip)


def augment(pixels: Tensor, order: Tensor, shift_px: Tensor, flip: Tensor) -> Tensor:
    """Returns `(B, 3, H, W)`: images `order` of `pixels` `(N, 3, H, W)`, mirrored and shifted, black outside.

    The same as padding each side with black and cropping back to H x W.
    """
    channels, height, width = pixels.shape[1:]
    rows = torch.arange(height, device=pixels.device) + shift_px[:, :1]
    columns = torch.arange(width, device=pixels.device) + shift_px[:, 1:]
    in_rows, in_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    columns = torch.where(flip[:, None], width - 1 - columns, columns)
    picked = pixels[
        order[:, None, None, None],
        torch.arange(channels, device=pixels.device)[:, None, None],
        rows.clamp(0, height - 1)[:, None, :, None],
        columns.clamp(0, width - 1)[:, None, None],
    ]
    return picked * (in_rows[:, None, :, None] & in_columns[:, None, None, :])
