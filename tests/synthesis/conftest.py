"""Small teachers and tasks that the tests of synthesis share."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nisynth.batch import Task
from nisynth.images import Normalization
from nisynth.teachers import Teacher, load_teacher

MakeTask = Callable[..., Task]
MakeTeacher = Callable[..., Teacher]


class OddBlock(nn.Module):
    """A residual block whose shortcut has a BatchNorm of its own."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)) + self.shortcut(x))


class OddNet(nn.Module):
    """Three stages of odd widths at the image's side, a half and a quarter of it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(OddBlock(3, 5, 1), OddBlock(5, 9, 2), OddBlock(9, 13, 2))
        self.linear = nn.Linear(13, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.stages(x).mean((2, 3)))
        return logits


@pytest.fixture(scope="session")
def make_teacher() -> MakeTeacher:
    """`make_teacher(input_px=32, num_classes=4)`: an OddNet with arbitrary but fixed weights."""

    def make(input_px: int = 32, num_classes: int = 4) -> Teacher:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            network = OddNet(num_classes)
            for layer in network.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.running_mean.normal_()
                    layer.running_var.uniform_(0.5, 2.0)
        return Teacher(
            network,
            normalization=Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
            classes=[str(c) for c in range(num_classes)],
            input_px=input_px,
        )

    return make


@pytest.fixture(scope="session")
def odd_teacher(make_teacher: MakeTeacher) -> Teacher:
    return make_teacher(input_px=16)


@pytest.fixture(scope="session")
def shipped_teacher() -> Teacher:
    return load_teacher(arch="resnet20")


@pytest.fixture(scope="session")
def make_task() -> MakeTask:
    """`make_task(batch_size, num_classes=4, index=0, seed=...)`: a task with labels 0, 1, ... around."""

    def make(batch_size: int, num_classes: int = 4, index: int = 0, seed: int = 2**64 - 3) -> Task:
        labels = np.arange(batch_size, dtype=np.int64) % num_classes
        return Task(index=index, seed=seed, labels=labels, rows=batch_size)

    return make
