"""Real CIFAR-10 images and noise in a real VGG-11: what was measured once is measured again, within 10 %."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nisynth.evaluation.embedding import Features, ImageSet, embed
from nisynth.evaluation.figures import METRICS, measure_figures
from nisynth.evaluation.frechet import Gaussian, frechet_distance
from nisynth.evaluation.manifold import compare_manifolds
from nisynth.evaluation.networks import EmbeddingNetwork
from nisynth.evaluation.published import load_embedding
from nisynth.evaluation.quality import how_to_read
from nisynth.evaluation.scores import calibrate, kernel_distance
from nisynth.images import LabelledImages
from nisynth.images.real import load_real_set

pytestmark = pytest.mark.slow

FLOORS = {"pool": 0.136, "hidden": 0.249, "logits": 0.414, "tap3": 0.0016, "tap4": 0.0044}
"""Of 2,000 against 2,000 test images; the first two taps scatter by half from draw to draw."""
NOISE = {"pool": 34.9, "hidden": 113, "logits": 223, "tap1": 2.61, "tap2": 2.94, "tap3": 0.80, "tap4": 0.25}
DRAWS = 4


@pytest.fixture(scope="module")
def network(shared: Path) -> EmbeddingNetwork:
    return load_embedding(
        "vgg11", str(shared / "teachers/cifar10_vgg11.safetensors"), torch.device("cpu"), 32
    )


@pytest.fixture(scope="module")
def real(shared: Path, network: EmbeddingNetwork, tmp_path_factory: pytest.TempPathFactory) -> Features:
    images = load_real_set(str(shared / "data/cifar10-test.parquet"))
    return embed(ImageSet.of_real(images), network, folder=tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def noise(network: EmbeddingNetwork, tmp_path_factory: pytest.TempPathFactory) -> Features:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1000, 3, 32, 32), dtype=torch.uint8, generator=rng)
    images = LabelledImages(pixels, torch.arange(1000) % 10, (), "noise", "noise")
    return embed(ImageSet.of_real(images), network, folder=tmp_path_factory.mktemp("noise"))


def rows(draw: int, first: int, last: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(draw).permutation(10_000)[first:last]


@pytest.mark.parametrize("layer", FLOORS)
def test_floors(real: Features, layer: str) -> None:
    values = real.layers[layer]
    found = [
        frechet_distance(
            Gaussian.of(values[rows(draw, 0, 2000)]), Gaussian.of(values[rows(draw, 2000, 4000)])
        ).distance
        for draw in range(DRAWS)
    ]
    assert np.mean(found) == pytest.approx(FLOORS[layer], rel=0.1)


@pytest.mark.parametrize("layer", NOISE)
def test_noise_is_far_in_every_layer(real: Features, noise: Features, layer: str) -> None:
    reference = Gaussian.of(real.layers[layer][rows(0, 0, 2000)])
    found = frechet_distance(Gaussian.of(noise.layers[layer]), reference)
    assert found.distance == pytest.approx(NOISE[layer], rel=0.1)


def test_manifolds(real: Features, noise: Features) -> None:
    pool = real.layers["pool"]
    reference, other = pool[rows(0, 0, 2000)], pool[rows(0, 2000, 4000)]
    alike = compare_manifolds(other, reference, [3, 5])
    for k, expected in ((3, (0.893, 0.875, 1.02, 0.889)), (5, (0.945, 0.938, 1.01, 0.975))):
        assert tuple(vars(alike[k]).values()) == pytest.approx(expected, rel=0.1)
    far = compare_manifolds(noise.layers["pool"], reference, [3])[3]
    assert far.precision > 0.9  # which is why precision alone misleads
    assert far.recall == 0.0
    assert far.coverage < 0.05


def test_noise_is_called_what_it_is(real: Features, noise: Features) -> None:
    figures = measure_figures(noise, real, METRICS[:2], [])
    fd = next(figure for figure in figures if (figure.name, figure.layer) == ("fd", "pool"))
    assert fd.floor is not None
    assert fd.value > 100 * fd.floor
    text = " ".join(how_to_read(tuple(figures)))
    assert "precision alone misleads" in text
    assert "far from the real ones" in text


def test_kid_and_calibration(real: Features, noise: Features) -> None:
    pool = real.layers["pool"]
    assert kernel_distance(noise.layers["pool"], pool[rows(0, 0, 2000)]).mean == pytest.approx(46.6, rel=0.1)
    found = calibrate(real.layers["logits"], real.labels)
    assert found.accuracy == pytest.approx(0.917, abs=0.005)
    assert found.ece == pytest.approx(0.055, rel=0.1)
