"""The generators of WGAN-GP (Gulrajani et al., 2017): residual blocks, or DCGAN's transposed convolutions.

With labels, every BatchNorm of a hidden layer has a scale and an offset per class; the one before the last
convolution of the residual network has not (published code).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DOUBLINGS = 3


class ClassBatchNorm(nn.Module):
    """BatchNorm of `(B, C, ...)` with a scale and an offset per class, or one for all."""

    def __init__(self, channels: int, num_classes: int | None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels, affine=False)  # any map is `(B, C, positions)` to it
        self.scale = nn.Parameter(torch.ones(num_classes or 1, channels))
        self.offset = nn.Parameter(torch.zeros(num_classes or 1, channels))

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        rows = torch.zeros(len(x), dtype=torch.int64, device=x.device) if y is None else y
        normalized = self.norm(x.flatten(2) if x.ndim > 2 else x).view_as(x)
        column = (*rows.shape, x.shape[1], *[1] * (x.ndim - 2))
        out: Tensor = normalized * self.scale[rows].view(column) + self.offset[rows].view(column)
        return out


class UpBlock(nn.Module):
    """BN, ReLU, x2, conv 3x3, BN, ReLU, conv 3x3, beside a shortcut of x2 and conv 1x1."""

    def __init__(self, width: int, num_classes: int | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = (ClassBatchNorm(width, num_classes) for _ in range(2))
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.shortcut = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        h = self.conv1(_doubled(F.relu(self.norm1(x, y))))
        h = self.conv2(F.relu(self.norm2(h, y)))
        out: Tensor = h + self.shortcut(_doubled(x))
        return out


class ResNetGenerator(nn.Module):
    """z and, where classes are given, a label to an image in -1..1: three residual blocks of one width.

    1,204,483 parameters for width 128, z of 128 and 32 px; 1,218,307 with 10 classes, 1,356,547 with 100.
    """

    def __init__(self, latent_dim: int, image_px: int, width: int, num_classes: int | None) -> None:
        super().__init__()
        self.width, self.start_px = width, image_px // 2**DOUBLINGS
        self.linear = nn.Linear(latent_dim, width * self.start_px**2)
        blocks = [UpBlock(width, num_classes) for _ in range(DOUBLINGS)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = ClassBatchNorm(width, None)
        self.to_rgb = nn.Conv2d(width, 3, 3, padding=1)
        draw_uniform(self, plain=(self.linear, self.to_rgb, *(block.shortcut for block in blocks)))

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns `(B, 3, H, W)` in -1..1 from z `(B, latent_dim)` and labels `(B,)`, or None."""
        x = self.linear(z).view(len(z), self.width, self.start_px, self.start_px)
        for block in self.blocks:
            x = block(x, y)
        return torch.tanh(self.to_rgb(F.relu(self.norm(x, None))))


class DCGANGenerator(nn.Module):
    """z and, where classes are given, a label to an image in -1..1: 5x5 transposed convolutions of stride 2.

    1,565,955 parameters for width 64, z of 128 and 32 px; 5,179,907 for width 128.
    """

    def __init__(self, latent_dim: int, image_px: int, width: int, num_classes: int | None) -> None:
        super().__init__()
        widths = [4 * width, 2 * width, width]
        self.width, self.start_px = widths[0], image_px // 2**DOUBLINGS
        self.linear = nn.Linear(latent_dim, self.width * self.start_px**2)
        self.norm = ClassBatchNorm(self.linear.out_features, num_classes)
        self.norms = nn.ModuleList(ClassBatchNorm(channels, num_classes) for channels in widths[1:])
        outer = [*widths[1:], 3]
        self.convs = nn.ModuleList(
            nn.ConvTranspose2d(inner, out, 5, stride=2) for inner, out in zip(widths, outer, strict=True)
        )
        draw_uniform(self, plain=(self.linear,))

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns `(B, 3, H, W)` in -1..1 from z `(B, latent_dim)` and labels `(B,)`, or None."""
        x = F.relu(self.norm(self.linear(z), y)).view(len(z), self.width, self.start_px, self.start_px)
        for conv, norm in zip(self.convs, [*self.norms, None], strict=True):
            x = conv(x)[:, :, 1:-2, 1:-2]  # "SAME" of the published code: 1 px before, 2 after
            x = torch.tanh(x) if norm is None else F.relu(norm(x, y))
        return x


def draw_uniform(network: nn.Module, plain: tuple[nn.Module, ...] = ()) -> None:
    """Draws weights as the published code: uniform, std sqrt(4 / (fan in + fan out)), biases of zero.

    plain: layers with std sqrt(2 / (fan in + fan out)). A stride divides the fan on the larger side by its
    square. Draws from torch's global generator, as construction does.
    """
    for layer in network.modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            continue
        taps, stride = 1, 1
        inner, outer = layer.weight.shape[1], layer.weight.shape[0]
        if not isinstance(layer, nn.Linear):
            taps, stride = layer.kernel_size[0] ** 2, layer.stride[0] ** 2
        if isinstance(layer, nn.ConvTranspose2d):
            fans = outer * taps / stride + inner * taps  # its weight is (in, out, k, k)
        else:
            fans = inner * taps + outer * taps / stride
        std = math.sqrt((2 if any(layer is one for one in plain) else 4) / fans)
        with torch.no_grad():
            layer.weight.uniform_(-std * math.sqrt(3), std * math.sqrt(3))
            if layer.bias is not None:
                layer.bias.zero_()


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
