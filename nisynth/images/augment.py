"""Shuffle, crop, flip and mix: which images make up a step, and how each is changed.

All of it is a pure function of (seed, epoch), drawn on the CPU for a whole epoch at once: equal on every
device, for every number of workers, and again after a resume. The images stay uint8 on the device, and
each batch is gathered, shifted and mirrored there by one indexing, with no loader process in between.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nisynth.randomness import key, torch_seed

Padding = Literal["reflect", "zero"]


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


def augment(
    pixels: Tensor, order: Tensor, shift_px: Tensor, flip: Tensor, padding: Padding = "zero"
) -> Tensor:
    """Returns `(B, 3, H, W)`: images `order` of `pixels` `(N, 3, H, W)`, mirrored and shifted.

    The same as padding each side and cropping back to H x W: with black (`zero`), or with the image mirrored
    at its outermost pixels (`reflect`), which takes a padding below the image's side.
    """
    channels, height, width = pixels.shape[1:]
    rows = torch.arange(height, device=pixels.device) + shift_px[:, :1]
    columns = torch.arange(width, device=pixels.device) + shift_px[:, 1:]
    inside = _within(rows, height)[:, None, :, None] & _within(columns, width)[:, None, None, :]
    rows, columns = _source(rows, height, padding), _source(columns, width, padding)
    columns = torch.where(flip[:, None], width - 1 - columns, columns)
    picked = pixels[
        order[:, None, None, None],
        torch.arange(channels, device=pixels.device)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None],
    ]
    return picked if padding == "reflect" else picked * inside


def _within(places: Tensor, side: int) -> Tensor:
    return (places >= 0) & (places < side)


def _source(places: Tensor, side: int, padding: Padding) -> Tensor:
    """Returns where in 0..side-1 the pixels at these places of the padded image come from."""
    if padding == "reflect":
        return (side - 1) - ((side - 1) - places.abs()).abs()
    return places.clamp(0, side - 1)


@dataclass(frozen=True, eq=False)
class Mixture:
    """How each image of an epoch is mixed with its partner, by place in the epoch's order.

    share: `(M,)` float32, 0..1, of the image itself. center: `(M, 2)` float32, 0..1, of the box that the
    partner fills, down and right. in_box: `(M,)` bool, whether the two are mixed by a box (CutMix) or by
    weights (mixup).
    """

    share: Tensor
    center: Tensor
    in_box: Tensor

    def to(self, device: torch.device) -> "Mixture":
        """Returns the same draws on a device."""
        return Mixture(self.share.to(device), self.center.to(device), self.in_box.to(device))

    def weights(self, places: Tensor, height: int, width: int) -> Tensor:
        """Returns the weight, `(B, 1, H, W)` float32, that the image itself has in each pixel of its mixture.

        A box has a share of 1 - share of the image's area before it is cut off at the borders.
        """
        share, center, in_box = self.share[places], self.center[places], self.in_box[places]
        half = (1.0 - share).sqrt() / 2
        sides = []
        for axis, side in enumerate((height, width)):
            middle = (torch.arange(side, device=share.device) + 0.5) / side
            sides.append((middle - center[:, axis, None]).abs() < half[:, None])
        box = sides[0][:, :, None] & sides[1][:, None, :]
        mixed = torch.where(in_box[:, None, None], (~box).float(), share[:, None, None])
        return mixed[:, None]


def draw_mixture(seed: int, epoch: int, num_images: int, mixup: float, cutmix: float) -> Mixture | None:
    """Returns the draws that mix one epoch's images; None where both strengths are 0.

    mixup, cutmix: alpha of the Beta(alpha, alpha) that a share is drawn from (Zhang et al., 2018; Yun et al.,
    2019), 0 for none; with both, every image draws which of them it takes.
    """
    if not (mixup or cutmix):
        return None
    # RandomState: NumPy promises that its streams never change, which it does not of its newer generators.
    state = np.random.RandomState(np.frombuffer(key(seed, "mixture", epoch).to_bytes(8, "little"), "<u4"))
    coin, center = state.random_sample(num_images), state.random_sample((num_images, 2))
    in_box = coin < (0.5 if mixup and cutmix else float(cutmix > 0))
    alpha = np.where(in_box, cutmix, mixup)
    share = state.beta(alpha, alpha)
    return Mixture(
        torch.from_numpy(share).float(), torch.from_numpy(center).float(), torch.from_numpy(in_box)
    )
