"""Residual networks for small images (He et al., CVPR-16), with 1x1-convolution shortcuts.

ResNet-18/34 have a 64-channel 3x3 stem and four stages; ResNet-20/56 a 16-channel stem and three.
Keys: conv1, bn1, layer{k}.{i}.{conv1,bn1,conv2,bn2,shortcut.0,shortcut.1}, linear. No operation works
in place, so what a hook sees stays what it was and may be differentiated.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, identity or 1x1; the stride divides height and width."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, one stage per entry of `blocks` (each but the first halves the image), pooling, linear."""

    def __init__(self, blocks: Sequence[int], stem_channels: int, num_classes: int) -> None:
        super().__init__()
        self.num_stages = len(blocks)
        self.conv1 = nn.Conv2d(3, stem_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_channels)
        in_channels = stem_channels
        for stage, num_blocks in enumerate(blocks):
            channels = stem_channels * 2**stage
            layer = nn.Sequential()
            for i in range(num_blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                layer.append(BasicBlock(in_channels, channels, stride))
                in_channels = channels
            self.add_module(f"layer{stage + 1}", layer)
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        for stage in range(self.num_stages):
            out = getattr(self, f"layer{stage + 1}")(out)
        out = F.adaptive_avg_pool2d(out, 1).flatten(1)
        logits: Tensor = self.linear(out)
        return logits


def resnet18(num_classes: int) -> ResNet:
    """Returns ResNet-18 for 32-px images: 11.2 million parameters."""
    return ResNet((2, 2, 2, 2), 64, num_classes)


def resnet34(num_classes: int) -> ResNet:
    """Returns ResNet-34 for 32-px images: 21.3 million parameters."""
    return ResNet((3, 4, 6, 3), 64, num_classes)


def resnet20(num_classes: int) -> ResNet:
    """Returns the CIFAR ResNet-20: 0.27 million parameters."""
    return ResNet((3, 3, 3), 16, num_classes)


def resnet56(num_classes: int) -> ResNet:
    """Returns the CIFAR ResNet-56: 0.86 million parameters."""
    return ResNet((9, 9, 9), 16, num_classes)
