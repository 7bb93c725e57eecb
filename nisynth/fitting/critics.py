"""The critics of WGAN-GP (Gulrajani et al., 2017): no normalization, one number an image, class logits."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from nisynth.synthesis.generators.wgan import draw_uniform


class CriticBlock(nn.Module):
    """ReLU, conv 3x3, ReLU, conv 3x3, beside a shortcut; both halved by a mean where `down`.

    first: the block that sees the image: no ReLU before it, and its shortcut halves before it convolves.
    """

    def __init__(self, channels: int, width: int, *, down: bool = False, first: bool = False) -> None:
        super().__init__()
        self.down, self.first = down, first
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, width, 1) if down else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if not self.down:
            plain: Tensor = h + x
            return plain
        short = self.shortcut(F.avg_pool2d(x, 2)) if self.first else F.avg_pool2d(self.shortcut(x), 2)
        out: Tensor = F.avg_pool2d(h, 2) + short
        return out


class ResNetCritic(nn.Module):
    """1,053,825 parameters for width 128; 1,055,115 with 10 classes, 1,066,725 with 100."""

    def __init__(self, width: int, num_classes: int | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            CriticBlock(3, width, down=True, first=True),
            CriticBlock(width, width, down=True),
            CriticBlock(width, width),
            CriticBlock(width, width),
        )
        self.score = nn.Linear(width, 1)
        self.classes = None if num_classes is None else nn.Linear(width, num_classes)
        heads = [self.score, *([] if self.classes is None else [self.classes])]
        shortcuts = [block.shortcut for block in self.blocks if isinstance(block, CriticBlock)]
        draw_uniform(self, plain=(*heads, *shortcuts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns scores `(B,)` and class logits `(B, C)`, None without classes, of images in -1..1."""
        h = F.relu(self.blocks(x)).mean((2, 3))
        return self.score(h)[:, 0], None if self.classes is None else self.classes(h)


class DCGANCritic(nn.Module):
    """1,033,345 parameters for width 64 and 32 px; 4,114,689 for width 128."""

    def __init__(self, width: int, num_classes: int | None, image_px: int) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 4 * width]
        self.convs = nn.ModuleList(nn.Conv2d(inner, outer, 5, stride=2) for inner, outer in pairwise(widths))
        features = widths[-1] * (image_px // 8) ** 2
        self.score = nn.Linear(features, 1)
        self.classes = None if num_classes is None else nn.Linear(features, num_classes)
        draw_uniform(self, plain=(self.score, *([] if self.classes is None else [self.classes])))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns scores `(B,)` and class logits `(B, C)`, None without classes, of images in -1..1."""
        for conv in self.convs:
            x = F.leaky_relu(conv(F.pad(x, (1, 2, 1, 2))), 0.2)  # "SAME" of the published code
        h = x.flatten(1)
        return self.score(h)[:, 0], None if self.classes is None else self.classes(h)
