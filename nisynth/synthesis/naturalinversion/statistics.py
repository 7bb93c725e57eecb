"""R_BN in one pass over each BatchNorm's input and a handful of operations on all channels at once.

A layer's term is about E[d] and E[d^2], where d is the distance from the mean that the teacher remembers:
subtracting a value near the true mean first is what keeps E[d^2] - E[d]^2 from cancelling. Both sums come
from one read. From there on the channels of all layers lie side by side, since on a GPU a kernel for each
layer's few hundred numbers costs more than its arithmetic; the gradient, written out, reads each input once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class FeatureDistribution:
    """R_BN (Eq. 3) of one teacher: what `priors.feature_distribution` computes, for any precision.

    Reads what the BatchNorms remember once, when it is made.
    """

    def __init__(self, batch_norms: Sequence[nn.BatchNorm2d], first_bn_multiplier: float = 1.0) -> None:
        means = [norm.running_mean for norm in batch_norms if norm.running_mean is not None]
        variances = [norm.running_var for norm in batch_norms if norm.running_var is not None]
        channels, device = [len(mean) for mean in means], means[0].device
        self._mean = torch.cat(means)
        self._var = torch.cat(variances)
        self._layer = torch.tensor([i for i, count in enumerate(channels) for _ in range(count)]).to(device)
        # Row i lists the places of layer i's channels; where a layer has fewer than the widest, mask is 0.
        column = torch.arange(max(channels))
        starts = torch.tensor([0, *channels[:-1]]).cumsum(0)
        mask = column < torch.tensor(channels)[:, None]
        self._places = torch.where(mask, starts[:, None] + column, 0).to(device)
        self._mask = mask.to(self._mean)
        self._weights = torch.ones(len(channels), device=device)
        self._weights[0] = first_bn_multiplier

    def __call__(self, bn_inputs: Sequence[Tensor]) -> Tensor:
        """Returns R_BN, 0-dim, of each BatchNorm's input `(B, C_i, H_i, W_i)`."""
        distance: Tensor = _Distance.apply(self, *bn_inputs)
        return distance

    def gaps(self, bn_inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns each channel's biased variance and mean, less those remembered: two of `(sum C_i,)`."""
        firsts, seconds = [], []
        means = torch.split(self._mean, [x.shape[1] for x in bn_inputs])
        for x, mean in zip(bn_inputs, means, strict=True):
            d = _at_least_float32(x) - mean[:, None, None]
            per_image = x.shape[2] * x.shape[3]
            # Rows first: on a CPU this vectorizes, and partial sums of this size round well.
            firsts.append(d.sum((2, 3)) / per_image)
            seconds.append(torch.linalg.vector_norm(d, dim=(2, 3)).square() / per_image)
        first, second = torch.cat(firsts, 1).mean(0), torch.cat(seconds, 1).mean(0)
        return (second - first.square()).clamp_min(0.0) - self._var, first

    def norms(self, gaps: Tensor) -> Tensor:
        """Returns each layer's norm, `(L,)`, of one value per channel."""
        by_layer = gaps[self._places] * self._mask
        norm: Tensor = torch.linalg.vector_norm(by_layer, dim=1)
        return norm

    def total(self, var_norms: Tensor, mean_norms: Tensor) -> Tensor:
        """Returns the weighted sum over the layers, 0-dim."""
        return ((var_norms + mean_norms) * self._weights).sum()

    def slopes(self, gaps: Tensor, norms: Tensor) -> Tensor:
        """Returns the derivative of `total` to each gap; 0 where a norm is, as `vector_norm` has it."""
        per_layer = self._weights * torch.where(norms == 0, 0.0, norms.reciprocal())
        return gaps * per_layer.index_select(0, self._layer)

    def centers(self, mean_gaps: Tensor) -> Tensor:
        """Returns the batch's means `(sum C_i,)`."""
        return self._mean + mean_gaps


class _Distance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, r_bn: FeatureDistribution, *bn_inputs: Tensor) -> Tensor:
        var_gaps, mean_gaps = r_bn.gaps(bn_inputs)
        var_norms, mean_norms = r_bn.norms(var_gaps), r_bn.norms(mean_gaps)
        ctx.r_bn = r_bn
        ctx.save_for_backward(var_gaps, mean_gaps, var_norms, mean_norms, *bn_inputs)
        return r_bn.total(var_norms, mean_norms)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """d mean / dx = 1/M and d var / dx = 2 (x - mean) / M, in one pass over each x."""
        var_gaps, mean_gaps, var_norms, mean_norms, *bn_inputs = ctx.saved_tensors
        r_bn = ctx.r_bn
        slope = 2 * gradients[0] * r_bn.slopes(var_gaps, var_norms)
        offset = gradients[0] * r_bn.slopes(mean_gaps, mean_norms) - slope * r_bn.centers(mean_gaps)
        channels = [x.shape[1] for x in bn_inputs]
        of_inputs = []
        for x, a, b in zip(bn_inputs, slope.split(channels), offset.split(channels), strict=True):
            values = x.numel() // x.shape[1]
            straight = torch.addcmul(
                (b / values)[:, None, None], _at_least_float32(x), (a / values)[:, None, None]
            )
            of_inputs.append(straight.to(x.dtype))
        return None, *of_inputs


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
