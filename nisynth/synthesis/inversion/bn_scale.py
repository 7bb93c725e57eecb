"""R_BN in the teacher's own scale, so that one weight suits every network.

Eq. 3 sums unsquared norms of means and variances, which are as large as a network's activations: the
same images give R_BN 3 under one ResNet-20 and 70 under another. How far sampling noise alone takes the
statistics of B independent draws from the remembered ones can be computed without data: the mean of channel c
by sigma_c / sqrt(B), its variance by sigma_c^2 sqrt(2 / B). Over all layers that is

    Y(B) = (sum_l ||sigma_l|| + sqrt(2) sum_l ||sigma_l^2||) / sqrt(B)

`bn_scale: teacher` multiplies the norms of the means and those of the variances each by that of the
paper's ResNet-34 over the teacher's. So the published weights mean the same everywhere, the loss stays
what it is under the paper's teacher, and it does not change when a network's activations are scaled
without changing its function (variances grow by the square, which one divisor for both would not undo).
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

BNScale = Literal["teacher", "published"]
_TINY = 1e-30


class SamplingNoise(NamedTuple):
    """The two sums of Y: sum_l ||sigma_l|| of the means, sqrt(2) sum_l ||sigma_l^2|| of the variances."""

    means: float
    variances: float

    def y(self, batch_size: int) -> float:
        """Returns Y, in the units of `published` R_BN."""
        return (self.means + self.variances) / math.sqrt(batch_size)


REFERENCE = SamplingNoise(means=45.2433547, variances=11.6918347)
"""Of the CIFAR-10 ResNet-34 of 94.68 % that the published weights were checked with: 3.56 at B=256."""


def sampling_noise(batch_norms: Sequence[nn.BatchNorm2d]) -> SamplingNoise:
    """Returns the sums of Y from what a network's BatchNorms remember."""
    return SamplingNoise(*(float(norms.sum()) for norms in _noise_of_layers(batch_norms)))


def scale_of_norms(batch_norms: Sequence[nn.BatchNorm2d], bn_scale: BNScale) -> Tensor:
    """Returns what multiplies each layer's norms of R_BN: `(2, L)` float32, means and variances."""
    noise = _noise_of_layers(batch_norms)
    if bn_scale == "published":
        return torch.ones_like(noise)
    return (noise.new_tensor(REFERENCE) / noise.sum(1).clamp_min(_TINY))[:, None].expand_as(noise)


def _noise_of_layers(batch_norms: Sequence[nn.BatchNorm2d]) -> Tensor:
    variances = [norm.running_var for norm in batch_norms if norm.running_var is not None]
    means = torch.stack([var.sum().sqrt() for var in variances])
    return torch.stack((means, math.sqrt(2) * torch.stack([torch.linalg.vector_norm(v) for v in variances])))
