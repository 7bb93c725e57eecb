"""Sets of small images, and the tiny network that looks at them."""

from pathlib import Path

import pytest
import torch

from nisynth.evaluation.embedding import ImageSet
from nisynth.evaluation.networks import EmbeddingNetwork, read_layers
from nisynth.images import LabelledImages, Normalization
from tests.tiny import TinyNet

CLASSES = ("0", "1", "2", "3")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are kept in this test's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def network() -> EmbeddingNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = TinyNet()
    return read_layers("tiny", net, Normalization((0.5,) * 3, (0.25,) * 3), 16, 16, CLASSES)


def images(count: int, seed: int = 0, side_px: int = 16, low: int = 0, high: int = 256) -> ImageSet:
    """Returns random images, their classes in turn."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(low, high, (count, 3, side_px, side_px), dtype=torch.uint8, generator=rng)
    return ImageSet.of_real(
        LabelledImages(pixels, torch.arange(count) % 4, CLASSES, f"memory-{seed}", "test")
    )
