"""VGG with BatchNorm for small images (Simonyan and Zisserman, ICLR-15), two hidden layers of 512.

Keys: features.{i}, classifier.{1,4,6}; dropout sits at classifier.0 and classifier.3. The features are
pooled to one pixel, which changes nothing at 32 px and admits larger images.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each stage ended by a 2x2 max pooling; then three linear layers."""

    def __init__(self, stages: Sequence[Sequence[int]], num_classes: int, dropout: float) -> None:
        super().__init__()
        self.features = nn.Sequential()
        in_channels = 3
        for widths in stages:
            for channels in widths:
                self.features.append(nn.Conv2d(in_channels, channels, 3, padding=1))
                self.features.append(nn.BatchNorm2d(channels))
                self.features.append(nn.ReLU())
                in_channels = channels
            self.features.append(nn.MaxPool2d(2))
        self.classifier = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(in_channels, 512), nn.ReLU(),
            nn.Dropout(dropout), nn.Linear(512, 512), nn.ReLU(),
            nn.Linear(512, num_classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out = F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        logits: Tensor = self.classifier(out)
        return logits


def vgg11(num_classes: int, dropout: float = 0.5) -> VGG:
    """Returns VGG-11 with BatchNorm for 32-px images: 9.8 million parameters."""
    return VGG(((64,), (128,), (256, 256), (512, 512), (512, 512)), num_classes, dropout)


def vgg16(num_classes: int, dropout: float = 0.5) -> VGG:
    """Returns VGG-16 with BatchNorm for 32-px images: 15.3 million parameters."""
    return VGG(((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3), num_classes, dropout)
