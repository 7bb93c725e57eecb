"""The losses that inversion methods share: Eq. 2-4 of the paper, as its published code computes them.

Every norm is an unsquared L2 norm. The norms of R_TV and R_l2 run over the whole batch and so grow as
the root of its size, while the other terms are means over it: `rescale` multiplies them by sqrt(256/B),
which leaves the published B=256 as it is and gives every other batch size the same balance of terms.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nisynth.synthesis.inversion.bn_scale import BNScale, scale_of_norms

REFERENCE_BATCH_SIZE = 256

TVForm = Literal["l2", "l1"]
"""How R_TV measures differences of neighbours: norms over the batch (Eq. 4), or means of magnitudes."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns L_CE (Eq. 2), the mean over the batch, from `(B, C)` logits and `(B,)` int64 labels."""
    return F.cross_entropy(at_least_float32(logits), labels)


def feature_distribution(
    bn_inputs: Sequence[Tensor],
    batch_norms: Sequence[nn.BatchNorm2d],
    *,
    first_bn_multiplier: float = 1.0,
    bn_scale: BNScale = "published",
    slack: float = 0.0,
) -> Tensor:
    """Returns R_BN (Eq. 3): the distance of the batch's statistics from those the teacher remembers.

    `bn_inputs` holds the `(B, C_i, H_i, W_i)` input of every BatchNorm2d, shortcuts included, in the
    order of `batch_norms`. The paper writes "output of layer i"; the published code takes the input of
    the normalization, with biased variance, and so does this. The first layer's term is multiplied by
    `first_bn_multiplier` (DeepInversion's option; 1 in the published code), each layer's norms as
    `bn_scale` says. `slack` is how far, in units of sampling noise, a channel's mean and variance may be
    off for nothing: max(|gap| - slack * sigma / sqrt(B), 0), and with sigma^2 sqrt(2 / B) for variances.
    """
    scale = scale_of_norms(batch_norms, bn_scale).unbind(1)
    layers = zip(bn_inputs, batch_norms, scale, strict=True)
    terms = [_statistics_distance(x, norm, of_layer, slack) for x, norm, of_layer in layers]
    return first_bn_multiplier * terms[0] + sum(terms[1:], torch.zeros_like(terms[0]))


def _statistics_distance(x: Tensor, norm: nn.BatchNorm2d, scale: Tensor, slack: float) -> Tensor:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    var, mean = torch.var_mean(at_least_float32(x), dim=(0, 2, 3), correction=0)
    gaps = torch.stack((mean - norm.running_mean, var - norm.running_var))
    if slack:
        gaps = beyond(gaps, slack * channel_noise(norm.running_var, len(x)))
    return scale[0] * _norm(gaps[0]) + scale[1] * _norm(gaps[1])


def channel_noise(variances: Tensor, batch_size: int) -> Tensor:
    """Returns what sampling noise makes of channels' means and variances `(C,)`: `(2, C)`, one sigma."""
    return torch.stack((variances.sqrt(), math.sqrt(2) * variances)) / math.sqrt(batch_size)


def beyond(gaps: Tensor, allowed: Tensor) -> Tensor:
    """Returns by how much each gap is more than allowed, with its sign; 0 where it is not."""
    return gaps.sign() * (gaps.abs() - allowed).clamp_min(0.0)


def total_variation(images: Tensor, *, rescale: bool = True, form: TVForm = "l2") -> Tensor:
    """Returns R_TV (Eq. 4) of `(B, 3, H, W)` images: the norms of the differences between neighbours.

    Four directions: to the right, down, and along both diagonals (published code). `l1` takes the mean
    magnitude of each direction's differences instead of their norm (DataFree's DeepInversion); a mean does
    not grow with the batch, so `rescale` leaves it alone.
    """
    right = images[:, :, :, :-1] - images[:, :, :, 1:]
    down = images[:, :, :-1, :] - images[:, :, 1:, :]
    falling = images[:, :, :-1, :-1] - images[:, :, 1:, 1:]
    rising = images[:, :, 1:, :-1] - images[:, :, :-1, 1:]
    if form == "l1":
        return right.abs().mean() + down.abs().mean() + falling.abs().mean() + rising.abs().mean()
    return _scale(images, rescale) * (_norm(right) + _norm(down) + _norm(falling) + _norm(rising))


def l2(images: Tensor, *, rescale: bool = True) -> Tensor:
    """Returns R_l2 (Eq. 4), the norm of a `(B, 3, H, W)` batch."""
    return _scale(images, rescale) * _norm(images)


def at_least_float32(x: Tensor) -> Tensor:
    """Returns x in float32, or as it is where it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(at_least_float32(x))
    return norm


def _scale(images: Tensor, rescale: bool) -> float:
    return math.sqrt(REFERENCE_BATCH_SIZE / len(images)) if rescale else 1.0
