"""Each rewriting against the naive form, values and gradients, in float64: equal but for its rounding."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nisynth.synthesis.naturalinversion.generator import Generator
from nisynth.synthesis.naturalinversion.identities import (
    composed,
    generate,
    join,
    transfer,
    upsample,
    upsampled_conv3,
)
from nisynth.synthesis.naturalinversion.pyramid import FeatureTransferPyramid, MapSize


def values(*shape: Any, seed: int = 0) -> Any:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64).requires_grad_()


def conv(*sizes: Any, **options: Any) -> Any:
    layer = nn.Conv2d(*sizes, **options).double()
    for i, parameter in enumerate(layer.parameters()):
        parameter.data = values(*parameter.shape, seed=10 + i).detach()
    return layer


def assert_same_function(naive: Any, rewritten: Any, inputs: Any) -> None:
    """Compares values, and the gradients of a random projection of them, to all `inputs`."""
    expected, actual = naive(), rewritten()
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-10)
    weights = values(*expected.shape, seed=99).detach()
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    given = torch.autograd.grad((actual * weights).sum(), inputs)
    for a, b in zip(given, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("side", "target"), [(4, 4), (4, 8), (3, 12), (8, 15), (5, 8), (1, 2)])
def test_nearest_upsampling(side: int, target: int, layout: torch.memory_format) -> None:
    x = values(2, 3, side, side).detach().contiguous(memory_format=layout).requires_grad_()
    assert_same_function(
        lambda: F.interpolate(x, size=(target, target), mode="nearest"), lambda: upsample(x, target), [x]
    )


def test_the_backward_of_upsampling_is_the_sum_over_each_block() -> None:
    x = values(1, 1, 2, 2)
    above = torch.arange(16.0, dtype=torch.float64).view(1, 1, 4, 4)
    (gradient,) = torch.autograd.grad((upsample(x, 4) * above).sum(), [x])
    assert gradient.flatten().tolist() == [0 + 1 + 4 + 5, 2 + 3 + 6 + 7, 8 + 9 + 12 + 13, 10 + 11 + 14 + 15]


@pytest.mark.parametrize(("side", "target"), [(1, 2), (4, 8), (5, 10), (4, 4), (8, 15), (2, 6)])
def test_convolution_after_upsampling(side: int, target: int) -> None:
    x, layer = values(2, 3, side, side), conv(3, 5, 3, padding=1)
    assert_same_function(
        lambda: layer(F.interpolate(x, size=(target, target), mode="nearest")),
        lambda: upsampled_conv3(x, layer, target),
        [x, layer.weight, layer.bias],
    )


def test_two_convolutions_in_one() -> None:
    x, conv3, conv1 = values(2, 4, 5, 5), conv(4, 4, 3, padding=1), conv(4, 3, 1)
    assert_same_function(
        lambda: conv1(conv3(x)),
        lambda: F.conv2d(x, *composed(conv1, conv3), padding=1),
        [x, *conv3.parameters(), *conv1.parameters()],
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maps_keep_their_layout(layout: torch.memory_format) -> None:
    """A change of it is a pass over the map that no operation asked for."""
    x, layer = values(2, 4, 4, 4).detach().contiguous(memory_format=layout), conv(4, 6, 3, padding=1)
    for out in (upsample(x, 8), upsampled_conv3(x, layer, 8), upsampled_conv3(x, layer, 4), layer(x)):
        assert out.is_contiguous(memory_format=layout)
    above = values(2, 4, 8, 8).detach().contiguous(memory_format=layout)
    (gradient,) = torch.autograd.grad(upsample(x.requires_grad_(), 8), [x], above)
    assert gradient.is_contiguous(memory_format=layout)
    generator = Generator(3, 32, latent_dim=6).double()
    maps = []
    for block in generator.blocks:
        block.norm.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    generate(generator, values(2, 6), torch.eye(3, dtype=torch.float64)[:2], layout)
    assert len(maps) == 3
    assert all(x.is_contiguous(memory_format=layout) for x in maps)


@pytest.mark.parametrize("head", ["tanh", "sum"])
def test_the_head(head: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pyramid = FeatureTransferPyramid([MapSize(3, 8)], 8, head).double()
    x_hat, m_l = values(2, 3, 8, 8), values(2, 3, 8, 8, seed=1)
    trained = [p for name, p in pyramid.named_parameters() if name.startswith("head")]
    assert_same_function(
        lambda: pyramid.join(x_hat, m_l), lambda: join(pyramid, x_hat, m_l), [*trained, x_hat, m_l]
    )


def test_the_composition_is_float32_whatever_surrounds_it() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        weight, bias = composed(nn.Conv2d(4, 3, 1), nn.Conv2d(4, 4, 3, padding=1))
    assert (weight.dtype, bias.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("image_px", [8, 16, 30, 32])
def test_the_generator(image_px: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = Generator(3, image_px, latent_dim=6).double()
    z, y = values(2, 6).detach(), torch.eye(3, dtype=torch.float64)[:2]
    assert_same_function(
        lambda: generator(z, y), lambda: generate(generator, z, y), list(generator.parameters())
    )


@pytest.mark.parametrize(
    ("sides", "image_px"), [((32, 16, 8, 4), 32), ((16, 8), 32), ((15, 8, 4), 15), ((8,), 8)]
)
def test_the_pyramid(sides: tuple[int, ...], image_px: int) -> None:
    taps = [MapSize(3 + 2 * i, side) for i, side in enumerate(sides)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pyramid = FeatureTransferPyramid(taps, image_px).double()
    features = [values(2, tap.channels, tap.side_px, tap.side_px, seed=i) for i, tap in enumerate(taps)]
    trained = [p for name, p in pyramid.named_parameters() if not name.startswith("head")]
    assert_same_function(
        lambda: pyramid(features), lambda: transfer(pyramid, features), [*trained, *features]
    )
