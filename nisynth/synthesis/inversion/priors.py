"""The losses that inversion methods share: Eq. 2-4 of the paper, as its published code computes them.

Every norm is an unsquared L2 norm. The norms of R_TV and R_l2 run over the whole batch and so grow as
the root of its size, while the other terms are means over it: `rescale` multiplies them by sqrt(256/B),
which leaves the published B=256 as it is and gives every other batch size the same balance of terms.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REFERENCE_BATCH_SIZE = 256


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns L_CE (Eq. 2), the mean over the batch, from `(B, C)` logits and `(B,)` int64 labels."""
    return F.cross_entropy(logits.float(), labels)


def feature_distribution(
    bn_inputs: Sequence[Tensor],
    batch_norms: Sequence[nn.BatchNorm2d],
    *,
    first_bn_multiplier: float = 1.0,
) -> Tensor:
    """Returns R_BN (Eq. 3): the distance of the batch's statistics from those the teacher remembers.

    `bn_inputs` holds the `(B, C_i, H_i, W_i)` input of every BatchNorm2d, shortcuts included, in the
    order of `batch_norms`. The paper writes "output of layer i"; the published code takes the input of
    the normalization, with biased variance, and so does this. The first layer's term is multiplied by
    `first_bn_multiplier` (DeepInversion's option; 1 in the published code).
    """
    terms = [_statistics_distance(x, norm) for x, norm in zip(bn_inputs, batch_norms, strict=True)]
    return first_bn_multiplier * terms[0] + sum(terms[1:], torch.zeros_like(terms[0]))


def _statistics_distance(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    var, mean = torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)
    return _norm(mean - norm.running_mean) + _norm(var - norm.running_var)


def total_variation(images: Tensor, *, rescale: bool = True) -> Tensor:
    """Returns R_TV (Eq. 4) of `(B, 3, H, W)` images: the norms of the differences between neighbours.

    Four directions: to the right, down, and along both diagonals (published code).
    """
    right = images[:, :, :, :-1] - images[:, :, :, 1:]
    down = images[:, :, :-1, :] - images[:, :, 1:, :]
    falling = images[:, :, :-1, :-1] - images[:, :, 1:, 1:]
    rising = images[:, :, 1:, :-1] - images[:, :, :-1, 1:]
    return _scale(images, rescale) * (_norm(right) + _norm(down) + _norm(falling) + _norm(rising))


def l2(images: Tensor, *, rescale: bool = True) -> Tensor:
    """Returns R_l2 (Eq. 4), the norm of a `(B, 3, H, W)` batch."""
    return _scale(images, rescale) * _norm(images)


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x.float())
    return norm


def _scale(images: Tensor, rescale: bool) -> float:
    return math.sqrt(REFERENCE_BATCH_SIZE / len(images)) if rescale else 1.0
