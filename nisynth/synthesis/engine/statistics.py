"""R_BN from the moments of each BatchNorm's input, which one pass over that input gives.

A layer's term needs E[d] and E[d^2], where d is the distance from the teacher's running mean. The batch's
own mean is near that one, so E[d^2] - E[d]^2 loses few digits to cancellation. Both sums come from one read
of the input. From there on the channels of all layers lie side by side, since on a GPU a kernel for each
layer's few hundred numbers costs more than its arithmetic. The gradient is written out, so that it reads
each input once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nisynth.synthesis.inversion.bn_scale import BNScale, scale_of_norms
from nisynth.synthesis.inversion.priors import at_least_float32, beyond, channel_noise


def moments(x: Tensor, mean: Tensor) -> Tensor:
    """Returns, of each image of x `(B, C, H, W)`, the means of d = x - mean and of d^2: `(B, 2, C)`.

    mean: `(C,)`. In float32, or the precision of x where that is higher.
    """
    of_images: Tensor = _Moments.apply(x, mean)
    return of_images


@torch.library.custom_op("nisynth::sum_over_images", mutates_args=())
def sum_over_images(moments: Sequence[Tensor]) -> Tensor:
    """Returns the sums over the first dimension of `(B, 2, C_i)`, side by side: `(2, sum C_i)`.

    An operator of its own, because torch concatenates all of them in one launch, its compiler in one each.
    """
    return torch.cat(list(moments), 2).sum(0)


@sum_over_images.register_fake
def _(moments: Sequence[Tensor]) -> Tensor:
    return moments[0].new_empty((2, sum(of_images.shape[2] for of_images in moments)))


def _keep_sizes(ctx: Any, inputs: tuple[list[Tensor]], output: Tensor) -> None:
    ctx.batch_size, ctx.channels = len(inputs[0][0]), [of_images.shape[2] for of_images in inputs[0]]


def _spread_over_images(ctx: Any, gradient: Tensor) -> list[Tensor]:
    return [part.expand(ctx.batch_size, -1, -1) for part in torch.split(gradient, ctx.channels, 1)]


sum_over_images.register_autograd(_spread_over_images, setup_context=_keep_sizes)


class FeatureDistribution:
    """R_BN (Eq. 3) of one teacher: what `priors.feature_distribution` computes, for any precision.

    Reads the running statistics once, when it is made.
    """

    def __init__(
        self,
        batch_norms: Sequence[nn.BatchNorm2d],
        first_bn_multiplier: float = 1.0,
        bn_scale: BNScale = "published",
        slack: float = 0.0,
    ) -> None:
        variances = [norm.running_var for norm in batch_norms if norm.running_var is not None]
        channels, device = [len(var) for var in variances], variances[0].device
        self._var = torch.cat(variances)
        self._layer = torch.tensor([i for i, count in enumerate(channels) for _ in range(count)]).to(device)
        # Row i lists the places of layer i's channels; where a layer has fewer than the widest, mask is 0.
        column = torch.arange(max(channels))
        starts = torch.tensor([0, *channels[:-1]]).cumsum(0)
        mask = column < torch.tensor(channels)[:, None]
        self._places = torch.where(mask, starts[:, None] + column, 0).to(device)
        self._mask = mask.to(self._var)
        self._weights = scale_of_norms(batch_norms, bn_scale).clone()
        self._weights[:, 0] *= first_bn_multiplier
        self._slack = slack

    def __call__(self, moments: Sequence[Tensor]) -> Tensor:
        """Returns R_BN, 0-dim, from the `moments` of each BatchNorm's input, `(B, 2, C_i)`."""
        total: Tensor = _SumOfNorms.apply(self, self.gaps(moments))
        return total

    def gaps(self, moments: Sequence[Tensor]) -> Tensor:
        """Returns each channel's mean and biased variance, less those remembered and beyond the slack.

        `(2, sum C_i)`.
        """
        first, second = sum_over_images(list(moments)) / len(moments[0])
        gaps = torch.stack((first, (second - first.square()).clamp_min(0.0) - self._var))
        if self._slack:
            gaps = beyond(gaps, self._slack * channel_noise(self._var, len(moments[0])))
        return gaps

    def norms(self, gaps: Tensor) -> Tensor:
        """Returns each layer's two norms, `(2, L)`."""
        by_layer = gaps[:, self._places] * self._mask
        norms: Tensor = torch.linalg.vector_norm(by_layer, dim=2)
        return norms

    def total(self, norms: Tensor) -> Tensor:
        """Returns the weighted sum over the layers, 0-dim."""
        return (norms * self._weights).sum()

    def slopes(self, gaps: Tensor, norms: Tensor) -> Tensor:
        """Returns the derivative of `total` to each gap; 0 where a norm is, as `vector_norm` has it."""
        per_layer = self._weights * torch.where(norms == 0, 0.0, norms.reciprocal())
        return gaps * per_layer.index_select(1, self._layer)


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor) -> Tensor:
        ctx.save_for_backward(x, mean)
        d = at_least_float32(x) - mean[:, None, None]
        pixels = x.shape[2] * x.shape[3]
        # Rows first: on a CPU this vectorizes, and partial sums of this size round well.
        first, second = d.sum((2, 3)), torch.linalg.vector_norm(d, dim=(2, 3)).square()
        return torch.stack((first / pixels, second / pixels), 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """With M = HW: d first / dx = 1 / M and d second / dx = 2 (x - mean) / M, in one pass over x."""
        x, mean = ctx.saved_tensors
        offset, slope = (gradients[0] / (x.shape[2] * x.shape[3])).unbind(1)
        slope = 2 * slope
        offset = offset - slope * mean
        straight = torch.addcmul(offset[..., None, None], at_least_float32(x), slope[..., None, None])
        return straight.to(x.dtype), None


class _SumOfNorms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, r_bn: FeatureDistribution, gaps: Tensor) -> Tensor:
        norms = r_bn.norms(gaps)
        ctx.r_bn = r_bn
        ctx.save_for_backward(gaps, norms)
        return r_bn.total(norms)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0] * ctx.r_bn.slopes(*ctx.saved_tensors)
