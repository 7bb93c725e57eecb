"""The jitter of the published code: a cyclic roll on both axes, then a mirror, one draw for the batch.

All draws of a task are made beforehand and lie in one small table on the device. Roll and mirror are
applied as one permutation of the rows and one of the columns, with indices computed on the device from a
row of the table, so that the loop never waits for a number and a captured loop can read its next row.
"""

from typing import Any

import torch
from torch import Tensor


def draw_jitter(iterations: int, jitter_px: int, flip: bool, rng: torch.Generator) -> Tensor:
    """Returns the table of a task: `(iterations, 2, 3)` int64.

    Per iteration one draw for the generator's image and one for the image that the losses see; per draw
    pixels down and pixels right, both uniform in -jitter_px..jitter_px, and 1 where the image is mirrored
    (every second time with `flip`). A longer table begins with the shorter one of the same generator.
    """
    num_shifts = 2 * jitter_px + 1
    num_values = torch.tensor([num_shifts, num_shifts, 2 if flip else 1])
    uniform = torch.rand((iterations, 2, 3), generator=rng, dtype=torch.float64)
    return (uniform * num_values).long() - torch.tensor([jitter_px, jitter_px, 0])


def apply_jitter(images: Tensor, jitter: Tensor) -> Tensor:
    """Returns the `(B, C, H, W)` images rolled, then mirrored, by one `(3,)` row of the table.

    `jitter` lies on the images' device. The backward pass is the inverse permutation.
    """
    jittered: Tensor = _Permutation.apply(images, *_indices(images, jitter))
    return jittered


def _indices(images: Tensor, jitter: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the source row and column of every target row and column, and the same of the inverse."""
    height, width = images.shape[-2:]
    down, right, mirrored = jitter.unbind()
    row = torch.arange(height, device=images.device)
    column = torch.arange(width, device=images.device)

    def mirror(index: Tensor) -> Tensor:
        return torch.where(mirrored == 1, width - 1 - index, index)

    rows, inverse_rows = (row - down) % height, (row + down) % height
    columns, inverse_columns = (mirror(column) - right) % width, mirror((column + right) % width)
    return rows, columns, inverse_rows, inverse_columns


class _Permutation(torch.autograd.Function):
    """Permutes rows and columns. index_select's own backward would add into a zeroed tensor instead."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, rows: Tensor, columns: Tensor, inverse_rows: Tensor, inverse_columns: Tensor
    ) -> Tensor:
        ctx.save_for_backward(inverse_rows, inverse_columns)
        return images.index_select(2, rows).index_select(3, columns)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inverse_rows, inverse_columns = ctx.saved_tensors
        gradient = gradients[0].index_select(2, inverse_rows).index_select(3, inverse_columns)
        return gradient, None, None, None, None
