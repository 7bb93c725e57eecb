"""MobileNetV2 (Sandler et al., CVPR-18) in the form used on CIFAR: the first two strides are 1.

Against the ImageNet network: a stride-1 block whose width changes has a 1x1-convolution shortcut, and
the activation is ReLU, as in the CIFAR checkpoints people hold. Keys: conv1, bn1,
layers.{i}.{conv1,bn1,conv2,bn2,conv3,bn3,shortcut.0,shortcut.1}, conv2, bn2, linear.
"""

import torch.nn.functional as F
from torch import Tensor, nn

# expansion, channels, blocks, stride of the first block (Table 2 of the paper, strides for 32 px)
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter by depthwise 3x3, project by 1x1; a shortcut where the stride is 1."""

    def __init__(self, in_channels: int, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self.has_shortcut = stride == 1
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if self.has_shortcut and in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        projected: Tensor = self.bn3(self.conv3(out))
        return projected + self.shortcut(x) if self.has_shortcut else projected


class MobileNetV2(nn.Module):
    """Stem, 17 inverted residual blocks, a 1280-channel 1x1 convolution, pooling, linear."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.layers = nn.Sequential()
        in_channels = 32
        for expansion, channels, num_blocks, first_stride in STAGES:
            for i in range(num_blocks):
                stride = first_stride if i == 0 else 1
                self.layers.append(InvertedResidual(in_channels, channels, expansion, stride))
                in_channels = channels
        self.conv2 = nn.Conv2d(in_channels, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280)
        self.linear = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layers(out)
        out = F.relu(self.bn2(self.conv2(out)))
        out = F.adaptive_avg_pool2d(out, 1).flatten(1)
        logits: Tensor = self.linear(out)
        return logits


def mobilenetv2(num_classes: int) -> MobileNetV2:
    """Returns the CIFAR MobileNetV2: 2.3 million parameters."""
    return MobileNetV2(num_classes)
