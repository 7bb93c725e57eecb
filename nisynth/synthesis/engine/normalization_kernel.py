"""The kernel of `normalization`. To import this takes Triton, which comes with torch for NVIDIA GPUs."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# A tile's rows are pixels; 32 channels of 16 bits are two of the 32-byte sectors that memory gives out.
ROWS, NARROW, WIDE = 64, 32, 64
NUM_WARPS = 8
# Up to here an image's channels are shared out in narrow columns, or a GPU would have too few programs.
FEW_CHANNELS = 128


@triton.jit  # type: ignore[untyped-decorator]
def norm_relu_kernel(  # type: ignore[no-untyped-def]
    x, other, mean, scale, bias, y, moments, pixels, channels,
    has_other: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """One program normalizes a column of channels of one image, tile by tile, and sums over its pixels."""
    image = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    known = column < channels
    m = tl.load(mean + column, mask=known, other=0.0)[None, :]
    s = tl.load(scale + column, mask=known, other=0.0)[None, :]
    b = tl.load(bias + column, mask=known, other=0.0)[None, :]
    first = tl.zeros((rows, columns), tl.float32)
    second = tl.zeros((rows, columns), tl.float32)
    for top in range(0, pixels, rows):
        row = top + tl.arange(0, rows)
        here = (row < pixels)[:, None] & known[None, :]
        place = image * pixels * channels + row[:, None] * channels + column[None, :]
        d = tl.where(here, tl.load(x + place, mask=here, other=0.0).to(tl.float32) - m, 0.0)
        value = d * s + b
        if has_other:
            value += tl.load(other + place, mask=here, other=0.0).to(tl.float32)
        # Not tl.maximum, which would make a number of NaN.
        value = tl.where(value < 0.0, 0.0, value)
        tl.store(y + place, value.to(y.dtype.element_ty), mask=here)
        first += d
        second += d * d
    moment = moments + image * 2 * channels + column
    tl.store(moment, tl.sum(first, 0) / pixels, mask=known)
    tl.store(moment + channels, tl.sum(second, 0) / pixels, mask=known)


def launch(
    x: Tensor, other: Tensor | None, mean: Tensor, scale: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns what `normalization.norm_relu` does, of maps with the channels innermost, on their device."""
    batch_size, channels, height, width = x.shape
    y = torch.empty_like(x, memory_format=torch.channels_last)
    moments = torch.empty((batch_size, 2, channels), dtype=torch.float32, device=x.device)
    columns = NARROW if channels <= FEW_CHANNELS else WIDE
    grid = (batch_size, triton.cdiv(channels, columns))
    norm_relu_kernel[grid](
        x, x if other is None else other, mean, scale, bias, y, moments, height * width, channels,
        has_other=other is not None, rows=ROWS, columns=columns, num_warps=NUM_WARPS,
    )  # fmt: skip
    return y, moments
