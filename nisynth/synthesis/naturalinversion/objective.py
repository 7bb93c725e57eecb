"""What a batch is optimized for, Eq. 8, and which of its iterates becomes the result."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from nisynth.synthesis.naturalinversion.config import NaturalInversionConfig
from nisynth.synthesis.priors import cross_entropy, feature_distribution, l2, total_variation
from nisynth.teachers import Teacher


class Losses(NamedTuple):
    """The terms of Eq. 8 before their weights, and their weighted sum; 0-dim float32 tensors."""

    total: Tensor
    ce: Tensor
    r_bn: Tensor
    tv: Tensor
    l2: Tensor


def losses(config: NaturalInversionConfig, teacher: Teacher, images: Tensor, labels: Tensor) -> Losses:
    """Returns L_inv (Eq. 8) of normalized `(B, 3, H, W)` images with `(B,)` int64 labels.

    total = ce + bn_weight * r_bn + tv_weight * tv + l2_weight * l2.
    """
    logits, bn_inputs = teacher.observe(images)
    ce = cross_entropy(logits, labels)
    r_bn = feature_distribution(
        bn_inputs, teacher.batch_norms, first_bn_multiplier=config.first_bn_multiplier
    )
    tv = total_variation(images, rescale=config.rescale_priors)
    norm = l2(images, rescale=config.rescale_priors)
    total = ce + config.bn_weight * r_bn + config.tv_weight * tv + config.l2_weight * norm
    return Losses(total, ce, r_bn, tv, norm)


class KeptIterate:
    """The iterate that will be rendered: one flat copy of theta, chosen without asking the device.

    With `best` that is the iterate of lowest total loss so far (strictly lower, float32); with `last` the
    latest whose loss was seen. All state stays on the device and is updated in place.
    """

    def __init__(self, theta: Sequence[Tensor], select: Literal["best", "last"]) -> None:
        device = theta[0].device
        self._theta = theta
        self._select = select
        self._flat = _flatten(theta)
        self.best_total = torch.full((), torch.inf, device=device)
        self.best_iteration = torch.zeros((), dtype=torch.int64, device=device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)

    @torch.no_grad()
    def see(self, total: Tensor, iteration: int) -> None:
        """Takes note of the loss of the present theta; call it before the optimizer's step."""
        better = total < self.best_total
        torch.where(better, total, self.best_total, out=self.best_total)
        self.best_iteration.masked_fill_(better, iteration)
        self.finite.logical_and_(torch.isfinite(total))
        keep = better if self._select == "best" else torch.ones_like(better)
        torch.where(keep, _flatten(self._theta), self._flat, out=self._flat)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the kept iterate back into theta, in place."""
        sizes = [parameter.numel() for parameter in self._theta]
        for parameter, kept in zip(self._theta, torch.split(self._flat, sizes), strict=True):
            parameter.copy_(kept.view_as(parameter))


def _flatten(theta: Sequence[Tensor]) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in theta])
