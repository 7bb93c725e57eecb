"""The teacher's judgement of finished images: accuracy and R_BN in units of Y, chunk by chunk."""

import pytest
import torch

from nisynth.synthesis.inversion.bn_scale import sampling_noise
from nisynth.synthesis.inversion.priors import feature_distribution
from nisynth.synthesis.judgement import CHUNK, judge
from tests.golden.record import tiny_teacher


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (count, 3, 16, 16), generator=rng, dtype=torch.uint8)
    return pixels, torch.arange(count) % 4


def test_accuracy_and_r_bn_are_those_of_the_whole_batch() -> None:
    teacher = tiny_teacher()
    pixels, labels = images(CHUNK + 7)
    found = judge(teacher, pixels, labels)
    assert found.teacher_accuracy == teacher.accuracy(pixels, labels)
    _, inputs = teacher.logits_and_bn_inputs(teacher.normalization.normalize(pixels))
    noise = sampling_noise(teacher.batch_norms)
    scaled = feature_distribution(inputs, teacher.batch_norms, bn_scale="teacher")
    published = feature_distribution(inputs, teacher.batch_norms)
    assert found.r_bn_in_y == pytest.approx(float(scaled) / 56.9351894 * (CHUNK + 7) ** 0.5, rel=1e-5)
    assert found.r_bn_in_y == pytest.approx(float(published) / noise.y(CHUNK + 7), rel=0.5)


def test_images_drawn_from_what_the_teacher_remembers_are_about_one_y_away() -> None:
    """One layer, remembering uniform pixels: a batch of B pixels is off by what sampling makes of it."""
    from torch import nn

    from nisynth.images import Normalization
    from nisynth.teachers import Teacher

    class OneNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.pool = nn.AvgPool2d(4)
            self.linear = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.linear(self.pool(self.norm(x)).mean((2, 3)))
            return out

    network = OneNorm()
    network.norm.running_var = torch.ones(3)
    teacher = Teacher(
        network,
        normalization=Normalization((0.5, 0.5, 0.5), (0.1, 0.1, 0.1)),
        classes=["a", "b"],
        input_px=16,
    )
    rng = torch.Generator().manual_seed(0)
    off = []
    for _ in range(20):
        level = 0.5 + 0.1 * torch.randn((16, 3, 1, 1), generator=rng)  # a flat image is one draw a channel
        pixels = (255 * level).clamp(0, 255).round().to(torch.uint8).expand(16, 3, 16, 16)
        off.append(judge(teacher, pixels, torch.zeros(16, dtype=torch.int64)).r_bn_in_y)
    assert sum(off) / len(off) == pytest.approx(1.0, abs=0.25)
