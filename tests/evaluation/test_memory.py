"""A set of the paper's size is measured in the memory that a small one takes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import resource, sys, torch
from pathlib import Path
from torch import nn
from nisynth.evaluation.embedding import ImageSet
from nisynth.evaluation.networks import read_layers
from nisynth.evaluation.quality import measure_quality
from nisynth.images import Normalization

CLASSES = tuple("0123456789")

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.wide = nn.Conv2d(3, 8, 8, stride=8), nn.Linear(128, 512)
        self.head = nn.Linear(512, 10)

    def forward(self, x):
        return self.head(torch.relu(self.wide(torch.relu(self.conv(x)).flatten(1))))

def images(count, first):
    def batches():
        for start in range(0, count, 256):
            rng = torch.Generator().manual_seed(first + start)
            size = min(256, count - start)
            pixels = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=rng)
            yield pixels, (start + torch.arange(size)) % 10
    return ImageSet("memory", "run", f"{count} {first}", count, 32, CLASSES, batches)

torch.manual_seed(0)
network = read_layers("net", Net(), Normalization((0.5,) * 3, (0.25,) * 3), 32, 32, CLASSES)
quality = measure_quality(
    images(int(sys.argv[1]), 0), network, real=images(4000, 10**9), folder=Path(sys.argv[2])
)
assert quality.figure("coverage", k=3) is not None
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_mb(count: int, folder: Path) -> float:
    """Returns the largest resident memory of a process that measures `count` images against 4,000."""
    command = [sys.executable, "-c", MEASURE, str(count), str(folder)]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return int(ended.stdout.split()[-1]) / 1000


@pytest.mark.slow
def test_a_quarter_of_a_million_images_take_little_more_memory_than_ten_thousand(tmp_path: Path) -> None:
    small, large = peak_mb(10_000, tmp_path / "small"), peak_mb(256_000, tmp_path / "large")
    print(f"peak resident memory: {small:,.0f} MB for 10,000 images, {large:,.0f} MB for 256,000")
    features_mb = (
        256_000 * (8 + 128 + 512 + 10) * 4 / 1e6
    )  # mapped from files, which count while they are read
    assert large - small < 150 + features_mb
