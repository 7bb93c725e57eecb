"""Exact rewritings of the generator and the pyramid: the same function of the same parameters, cheaper.

- Nearest upsampling commutes with a 1x1 convolution, so the one of m_l runs before the upsampling. There it
  directly follows the 3x3 convolution, and the two are composed into one.
- Upsampling to twice the side and then convolving 3x3 is one transposed convolution of 4x4 and stride 2: 4
  products per image pixel instead of 9, and no upsampled map in memory.
- The head's 1x1 convolution of three channels is nine scaled channels, which a compiler joins with its
  neighbours.

In exact arithmetic nothing changes; in float32 only the rounding does. Maps keep the layout they come in, as
convolutions do: on a GPU, a single map in another layout costs two passes to convert it and back.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nisynth.synthesis.naturalinversion.generator import Generator, GeneratorBlock
from nisynth.synthesis.naturalinversion.pyramid import FeatureTransferPyramid, PyramidBlock


def generate(
    generator: Generator, z: Tensor, y: Tensor, layout: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """Returns what `generator(z, y)` does, with its maps laid out so: x_hat `(B, 3, H, W)`."""
    side_px = generator.start_px
    x: Tensor = generator.linear(torch.cat((z, y), dim=1)).view(len(z), -1, side_px, side_px)
    x = x.contiguous(memory_format=layout)
    for block in generator.blocks:
        assert isinstance(block, GeneratorBlock)
        x = upsampled_conv3(F.leaky_relu(block.norm(x), 0.2), block.conv, block.side_px)
    return x


def transfer(pyramid: FeatureTransferPyramid, features: Sequence[Tensor]) -> Tensor:
    """Returns what `pyramid(features)` does: m_L `(B, 3, H, W)`."""
    m_l: Tensor | None = None
    for block, feature in zip(pyramid.blocks, reversed(features), strict=True):
        assert isinstance(block, PyramidBlock)
        if block.conv3 is None or m_l is None:
            x = block.conv1(feature)
        else:
            x = F.conv2d(m_l + feature, *composed(block.conv1, block.conv3), padding=1)
        m_l = upsample(x, block.side_px)
    assert m_l is not None
    return m_l


def join(pyramid: FeatureTransferPyramid, x_hat: Tensor, m_l: Tensor) -> Tensor:
    """Returns what `pyramid.join(x_hat, m_l)` does: x_hat' `(B, 3, H, W)`."""
    joined = m_l + x_hat
    if pyramid.head is None:
        return joined
    weight, bias = pyramid.head.weight, pyramid.head.bias
    assert bias is not None
    mixed = (weight.flatten(2) * joined.flatten(2)[:, None]).sum(2).view_as(joined)
    return torch.tanh(mixed + bias[:, None, None])


def upsample(x: Tensor, side_px: int) -> Tensor:
    """Returns nearest upsampling of `(B, C, h, w)` to `side_px`, in the same layout.

    Whole multiples are an expansion, whose backward is the sum over each block of equal pixels.
    """
    batch, channels, height, width = x.shape
    times, rest = divmod(side_px, width)
    if rest:
        return F.interpolate(x, size=(side_px, side_px), mode="nearest")
    if times == 1:
        return x
    if x.is_contiguous(memory_format=torch.channels_last):
        pixels = x.permute(0, 2, 3, 1)[:, :, None, :, None]
        blocks = pixels.expand(batch, height, times, width, times, channels)
        return blocks.reshape(batch, side_px, side_px, channels).permute(0, 3, 1, 2)
    blocks = x[:, :, :, None, :, None].expand(batch, channels, height, times, width, times)
    return blocks.reshape(batch, channels, side_px, side_px)


def upsampled_conv3(x: Tensor, conv: nn.Conv2d, side_px: int) -> Tensor:
    """Returns the 3x3 convolution, padded by 1, of x upsampled to `side_px`."""
    if side_px != 2 * x.shape[-1]:
        return F.conv2d(upsample(x, side_px), conv.weight, conv.bias, padding=1)
    return F.conv_transpose2d(x, doubling_kernel(conv.weight), conv.bias, stride=2, padding=1)


def doubling_kernel(weight: Tensor) -> Tensor:
    """Returns the `(in, out, 4, 4)` kernel of stride 2 of an `(out, in, 3, 3)` one after doubling.

    An input pixel becomes a 2x2 block, so it reaches 4x4 outputs: the sum of four shifted 3x3 kernels.
    """
    mirrored = weight.flip(2, 3).transpose(0, 1)
    right, left = F.pad(mirrored, (0, 1)), F.pad(mirrored, (1, 0))
    wide = right + left
    return F.pad(wide, (0, 0, 0, 1)) + F.pad(wide, (0, 0, 1, 0))


def composed(conv1: nn.Conv2d, conv3: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Returns weight `(out, in, 3, 3)` and bias of the one convolution that does conv3, then conv1."""
    assert conv1.bias is not None
    assert conv3.bias is not None
    with torch.autocast(conv1.weight.device.type, enabled=False):
        mix = conv1.weight.flatten(1)
        weight = (mix @ conv3.weight.flatten(1)).view(-1, *conv3.weight.shape[1:])
        return weight, torch.addmv(conv1.bias, mix, conv3.bias)
