"""Which iterate becomes the result."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

# In elements: kernels read 16 bytes at once where a tensor begins at such a multiple.
ALIGNMENT = 64


class KeptIterate:
    """The iterate that will be rendered: a copy of theta, chosen without making the host wait for a GPU.

    theta moves into one flat tensor, of which its tensors become views, so that one copy keeps all of it.
    `best` keeps the iterate of lowest total loss so far (strictly lower, float32), `last` the latest whose
    loss was considered. All state stays on the device and is updated in place.
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
    def consider(self, total: Tensor, iteration: int | Tensor) -> None:
        """Keeps the present theta if its loss says so; call it before the optimizer's step."""
        # Everything below is decided on the device: `if better` would make the host wait for a GPU in each
        # iteration, and a CUDA graph cannot branch. NaN compares as not better.
        better = total < self.best_total
        torch.where(better, total, self.best_total, out=self.best_total)
        self.best_iteration.copy_(torch.where(better, iteration, self.best_iteration))
        self.finite.logical_and_(torch.isfinite(total))
        if self._select == "last":
            self._kept.copy_(self._theta)
        elif not better.is_cpu:  # writes all of theta each time, from one or the other, without a branch
            torch.where(better, self._theta, self._kept, out=self._kept)
        elif better:  # a CPU may branch, and seldom copies
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
    # Parameters keep their identity, so an optimizer made before or after works on the same memory.
    for parameter, part in zip(theta, torch.split(flat, sizes), strict=True):
        part[: parameter.numel()] = parameter.flatten()
        parameter.data = part[: parameter.numel()].view(parameter.shape)
    return flat
