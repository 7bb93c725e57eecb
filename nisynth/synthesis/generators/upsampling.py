"""The generators of DAFL, DFAD and DataFree: a linear layer, two doublings, 3x3 convolutions."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class UpsamplingGenerator(nn.Module):
    """z to an image: Linear to a quarter of the side, BatchNorm, then twice (x2, conv, BN, LeakyReLU).

    widths: channels of the three maps. eps: of the two later BatchNorms; DAFL's published code has .8, which
    it means as momentum. bias: of the first two convolutions. unit: end in a sigmoid, for pixel values / 255
    (DataFree); else in tanh and a BatchNorm without weights, for normalized images (DAFL, DFAD).
    Parameters at 32 px: DAFL's 8,423,939 (z of 1000), DFAD's 2,329,091 (256), DataFree's 8,776,259 (512).
    """

    def __init__(
        self,
        latent_dim: int,
        image_px: int,
        *,
        widths: Sequence[int] = (128, 128, 64),
        eps: float = 1e-5,
        bias: bool = True,
        unit: bool = False,
    ) -> None:
        super().__init__()
        first, middle, last = widths
        self.width, self.start_px = first, image_px // 4
        self.linear = nn.Linear(latent_dim, first * self.start_px**2)
        self.norm = nn.BatchNorm2d(first)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "conv": nn.Conv2d(inner, outer, 3, padding=1, bias=bias),
                    "norm": nn.BatchNorm2d(outer, eps=eps),
                }
            )
            for inner, outer in ((first, middle), (middle, last))
        )
        self.to_rgb = nn.Conv2d(last, 3, 3, padding=1)
        self.head = nn.Sigmoid() if unit else nn.Sequential(nn.Tanh(), nn.BatchNorm2d(3, affine=False))

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns `(B, 3, H, W)` from z `(B, latent_dim)`; labels change nothing."""
        x = self.norm(self.linear(z).view(len(z), self.width, self.start_px, self.start_px))
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            x = block["conv"](F.interpolate(x, scale_factor=2.0, mode="nearest"))
            x = F.leaky_relu(block["norm"](x), 0.2)
        image: Tensor = self.head(self.to_rgb(x))
        return image
