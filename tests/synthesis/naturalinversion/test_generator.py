"""Table 6: parameter counts, sizes, and batch statistics at all times."""

from typing import Any

import pytest
import torch
from torch import nn

from nisynth.synthesis.naturalinversion.generator import Generator, image_sides_px


@pytest.mark.parametrize(("num_classes", "expected"), [(10, 8_702_467), (100, 9_439_747)])
def test_parameter_count(num_classes: int, expected: int) -> None:
    with torch.device("meta"):
        generator = Generator(num_classes)
    assert sum(p.numel() for p in generator.parameters()) == expected


@pytest.mark.parametrize(
    ("image_px", "sides_px"),
    [
        (8, [8]),
        (16, [8, 16]),
        (28, [7, 14, 28]),
        (32, [8, 16, 32]),
        (36, [5, 9, 18, 36]),
        (64, [8, 16, 32, 64]),
        (224, [7, 14, 28, 56, 112, 224]),
    ],
)
def test_the_start_size_halves_the_side_until_8_px(image_px: int, sides_px: Any) -> None:
    assert image_sides_px(image_px) == sides_px
    image = Generator(2, image_px, latent_dim=4)(torch.randn(2, 4), torch.eye(2))
    assert image.shape == (2, 3, image_px, image_px)


def test_it_is_the_network_of_table_6() -> None:
    """Against the same layers written out, with nearest upsampling as repetition."""
    torch.manual_seed(0)
    generator = Generator(10)
    linear, *rest = list(generator.parameters())
    z, y = torch.randn(3, 1024), torch.eye(10)[:3]
    x = torch.cat((z, y), 1) @ linear.T + rest[0]
    x = x.view(3, 128, 8, 8)
    layers = [rest[i : i + 4] for i in range(1, len(rest), 4)]
    for (gamma, beta, weight, bias), upsamples in zip(layers, (True, True, False), strict=True):
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        x = (x - mean) / (var + 1e-5).sqrt() * gamma.view(1, -1, 1, 1) + beta.view(1, -1, 1, 1)
        x = torch.where(x > 0, x, 0.2 * x)
        if upsamples:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = nn.functional.conv2d(x, weight, bias, padding=1)
    assert torch.allclose(generator(z, y), x, atol=1e-4)


def test_rendering_uses_batch_statistics_too() -> None:
    generator = Generator(2, 16, latent_dim=4)
    z, y = torch.randn(2, 4), torch.eye(2)
    assert torch.equal(generator.eval()(z, y), generator.train()(z, y))
    assert not list(generator.buffers())


def test_initial_weights_follow_the_published_rules() -> None:
    with torch.device("meta"):
        generator = Generator(10)
    weights = generator.draw_weights(torch.Generator().manual_seed(0))
    assert list(weights) == [name for name, _ in generator.named_parameters()]
    bound = 1034**-0.5
    assert 0.99 * bound < float(weights["linear.weight"].abs().max()) <= bound
    assert 0.9 * bound < float(weights["linear.bias"].abs().max()) <= bound
    for i, fan_in in enumerate((128 * 9, 128 * 9, 64 * 9)):
        assert float(weights[f"blocks.{i}.conv.weight"].std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
        assert not weights[f"blocks.{i}.conv.bias"].any()
        assert float(weights[f"blocks.{i}.norm.weight"].mean()) == pytest.approx(1, abs=0.01)
        assert float(weights[f"blocks.{i}.norm.weight"].std()) == pytest.approx(0.02, rel=0.3)
        assert not weights[f"blocks.{i}.norm.bias"].any()
