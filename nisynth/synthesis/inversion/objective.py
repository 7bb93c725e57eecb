"""What a batch is optimized for, Eq. 8, and which of its iterates becomes the result."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from nisynth.synthesis.inversion.priors import cross_entropy, feature_distribution, l2, total_variation
from nisynth.synthesis.naturalinversion.config import NaturalInversionConfig

# In elements: kernels read 16 bytes at once where a tensor begins at such a multiple.
ALIGNMENT = 64


class Observer(Protocol):
    """A teacher, or what stands for it: its logits, and the inputs of its BatchNorms."""

    @property
    def batch_norms(self) -> Sequence[nn.BatchNorm2d]:
        """The layers whose inputs `observe` returns, in its order."""

    def observe(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns logits `(B, C)` and the input of every BatchNorm2d, or what `r_bn` of `losses` reads."""


class Losses(NamedTuple):
    """The terms of Eq. 8 before their weights, and their weighted sum; 0-dim float32 tensors."""

    total: Tensor
    ce: Tensor
    r_bn: Tensor
    tv: Tensor
    l2: Tensor


def losses(
    config: NaturalInversionConfig,
    teacher: Observer,
    images: Tensor,
    labels: Tensor,
    r_bn: Callable[[Sequence[Tensor]], Tensor] | None = None,
) -> Losses:
    """Returns L_inv (Eq. 8) of normalized `(B, 3, H, W)` images with `(B,)` int64 labels.

    total = ce + bn_weight * r_bn + tv_weight * tv + l2_weight * l2. `r_bn` computes R_BN from what the
    teacher observes; by default that is `feature_distribution`.
    """
    logits, bn_inputs = teacher.observe(images)
    ce = cross_entropy(logits, labels)
    if r_bn is None:
        distance = feature_distribution(
            bn_inputs,
            teacher.batch_norms,
            first_bn_multiplier=config.first_bn_multiplier,
            bn_scale=config.bn_scale,
            slack=config.bn_slack,
        )
    else:
        distance = r_bn(bn_inputs)
    tv = total_variation(images, rescale=config.rescale_priors)
    norm = l2(images, rescale=config.rescale_priors)
    total = ce + config.bn_weight * distance + config.tv_weight * tv + config.l2_weight * norm
    return Losses(total, ce, distance, tv, norm)


class KeptIterate:
    """The iterate that will be rendered: one flat copy of theta, chosen without asking a GPU.

    theta moves into one flat tensor, of which its tensors become parts, so that keeping it is one pass.
    With `best` that is the iterate of lowest total loss so far (strictly lower, float32); with `last` the
    latest whose loss was seen. All state stays on the device and is updated in place.
    """

    def __init__(self, theta: Sequence[Tensor], select: Literal["best", "last"]) -> None:
        device = theta[0].device
        self._theta = _move_into_one(theta)
        self._select = select
        self._kept = self._theta.clone()
        self.best_total = torch.full((), torch.inf, device=device)
        self.best_iteration = torch.zeros((), dtype=torch.int64, device=device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)

    @torch.no_grad()
    def reset(self) -> None:
        """Forgets every loss, and keeps the present theta."""
        self._kept.copy_(self._theta)
        self.best_total.fill_(torch.inf)
        self.best_iteration.zero_()
        self.finite.fill_(True)

    @torch.no_grad()
    def see(self, total: Tensor, iteration: int | Tensor) -> None:
        """Takes note of the loss of the present theta; call it before the optimizer's step."""
        better = total < self.best_total
        torch.where(better, total, self.best_total, out=self.best_total)
        self.best_iteration.copy_(torch.where(better, iteration, self.best_iteration))
        self.finite.logical_and_(torch.isfinite(total))
        if self._select == "last":
            self._kept.copy_(self._theta)
        elif not better.is_cpu:
            torch.where(better, self._theta, self._kept, out=self._kept)
        elif better:
            self._kept.copy_(self._theta)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the kept iterate back into theta, in place."""
        self._theta.copy_(self._kept)


@torch.no_grad()
def _move_into_one(theta: Sequence[Tensor]) -> Tensor:
    """Returns a flat tensor that holds theta's values, and makes each tensor of theta a view of it."""
    sizes = [-(-parameter.numel() // ALIGNMENT) * ALIGNMENT for parameter in theta]
    flat = torch.zeros(sum(sizes), dtype=theta[0].dtype, device=theta[0].device)
    for parameter, part in zip(theta, torch.split(flat, sizes), strict=True):
        part[: parameter.numel()] = parameter.flatten()
        parameter.data = part[: parameter.numel()].view(parameter.shape)
    return flat
