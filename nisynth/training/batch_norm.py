"""BatchNorm over the global batch of several workers, so that they train what one process would.

On GPUs torch's SyncBatchNorm does it; it refuses CPU tensors, so on CPUs (gloo) a few lines of our own do.
Statistics per worker, the alternative, are another recipe: the student's accuracy would depend on the
number of workers.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def over_global_batch(network: nn.Module) -> nn.Module:
    """Returns the network with every BatchNorm made global; the same network when there is one worker.

    Parameters and statistics are the same tensors as before, under the same names.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return network
    if next(network.parameters()).is_cuda:
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return converted
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, GlobalBatchNorm2d.of(child))
    return network


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose batch in training mode is that of all workers, each with an equal part."""

    @classmethod
    def of(cls, own: nn.BatchNorm2d) -> "GlobalBatchNorm2d":
        """Returns a global BatchNorm that shares the parameters and statistics of a local one."""
        made = cls(own.num_features, own.eps, own.momentum, own.affine, own.track_running_stats)
        made._parameters, made._buffers, made.training = own._parameters, own._buffers, own.training
        return made

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = _sum_over_workers(x.sum((0, 2, 3))) / count
        centered = x - mean[:, None, None]
        # A second pass, not E[x^2] - E[x]^2, which loses half the digits.
        variance = _sum_over_workers(centered.square().sum((0, 2, 3))) / count
        self._track(mean.detach(), variance.detach() * (count / (count - 1)))
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        out = centered * scale[:, None, None]
        return out if self.bias is None else out + self.bias[:, None, None]

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(unbiased_variance, share)


class _SumOverWorkers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every worker's loss depends on the total, so the part's gradient is the sum of theirs.
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _sum_over_workers(part: Tensor) -> Tensor:
    total: Tensor = _SumOverWorkers.apply(part)
    return total
