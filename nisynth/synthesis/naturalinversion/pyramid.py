"""The Feature Transfer Pyramid: Eq. 5 and Table 7, for any number of features of any size.

The features f_1 (shallow) ... f_N (deep) are the teacher's taps. Block l merges the map m_{l-1} from
below with the feature of its own size and carries it to the size and width of the next shallower one:

    m_1 = W1(up(f_N)),    m_l = W1(up(W3(m_{l-1} + f_{N-l+1})))

The last block ends in 3 channels at the image's size; it upsamples only where f_1 is smaller than the
image. (Eq. 5 writes f_{N-l}; the published code and Table 7 have f_{N-l+1}.)
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nisynth.synthesis.inversion.initialization import Weights, default_weights, prefixed

Head = Literal["tanh", "sum"]


class MapSize(NamedTuple):
    """Channels and side of a map (square, as the teacher's images)."""

    channels: int
    side_px: int


class PyramidBlock(nn.Module):
    """One block: 3x3 convolution of the merged map (not in the first block), upsampling, 1x1."""

    def __init__(self, own: MapSize, target: MapSize, *, merges: bool) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(own.channels, own.channels, 3, padding=1) if merges else None
        self.conv1 = nn.Conv2d(own.channels, target.channels, 1)
        self.side_px = target.side_px

    def forward(self, feature: Tensor, below: Tensor | None) -> Tensor:
        """Returns m_l `(B, target)` from the block's feature and, but for the first block, m_{l-1}."""
        x = feature
        if self.conv3 is not None and below is not None:
            x = self.conv3(below + feature)
        if x.shape[-1] != self.side_px:
            x = F.interpolate(x, size=(self.side_px, self.side_px), mode="nearest")
        m_l: Tensor = self.conv1(x)
        return m_l


class FeatureTransferPyramid(nn.Module):
    """The teacher's features to an image-sized map m_L, and the head that joins it to G's image.

    `taps` are the sizes of f_1 ... f_N, shallow to deep. 947,279 parameters for ResNet-34's taps, the
    12 of the head included.
    """

    def __init__(self, taps: Sequence[MapSize], image_px: int = 32, head: Head = "tanh") -> None:
        super().__init__()
        deep_to_shallow = list(reversed(taps))
        targets = [*deep_to_shallow[1:], MapSize(3, image_px)]
        self.blocks = nn.ModuleList(
            PyramidBlock(own, target, merges=l > 0)
            for l, (own, target) in enumerate(zip(deep_to_shallow, targets, strict=True))  # noqa: E741
        )
        self.head = nn.Conv2d(3, 3, 1) if head == "tanh" else None

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Returns m_L `(B, 3, H, W)` from f_1 ... f_N."""
        m_l: Tensor | None = None
        for block, feature in zip(self.blocks, reversed(features), strict=True):
            m_l = block(feature, m_l)
        assert m_l is not None
        return m_l

    def join(self, x_hat: Tensor, m_l: Tensor) -> Tensor:
        """Returns x_hat' `(B, 3, H, W)`: tanh(conv1x1(m_L + x_hat)) (Table 7), or the sum (Eq. 7)."""
        joined = m_l + x_hat
        return joined if self.head is None else torch.tanh(self.head(joined))

    def draw_weights(self, rng: torch.Generator) -> Weights:
        """Returns fresh initial weights by torch's default rule, in the order of the parameters."""
        layers = [(name, layer) for name, layer in self.named_modules() if isinstance(layer, nn.Conv2d)]
        weights: Weights = {}
        for name, layer in layers:
            weights |= prefixed(name, default_weights(layer, rng))
        return weights
