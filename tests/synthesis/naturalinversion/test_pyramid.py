"""Eq. 5 and Table 7 against a literal computation, and shapes of every kind."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nisynth.synthesis.naturalinversion.pyramid import FeatureTransferPyramid, MapSize

RESNET34 = [MapSize(64, 32), MapSize(128, 16), MapSize(256, 8), MapSize(512, 4)]


def up(x: Tensor, side: int) -> Any:
    """Nearest upsampling of (C, h, h) by repetition."""
    factor = side // x.shape[1]
    out = np.zeros((x.shape[0], side, side))
    for i in range(side):
        for j in range(side):
            out[:, i, j] = x[:, i // factor, j // factor]
    return out


def w1(x: Tensor, weight: Tensor, bias: Any) -> Any:
    out = np.zeros((weight.shape[0], *x.shape[1:]))
    for o in range(weight.shape[0]):
        out[o] = bias[o] + sum(weight[o, c, 0, 0] * x[c] for c in range(x.shape[0]))
    return out


def w3(x: Tensor, weight: Tensor, bias: Any) -> Any:
    side = x.shape[1]
    out = np.zeros((weight.shape[0], side, side))
    for o in range(weight.shape[0]):
        for i in range(side):
            for j in range(side):
                total = bias[o]
                for c in range(x.shape[0]):
                    for di in (-1, 0, 1):
                        for dj in (-1, 0, 1):
                            if 0 <= i + di < side and 0 <= j + dj < side:
                                total += weight[o, c, di + 1, dj + 1] * x[c, i + di, j + dj]
                out[o, i, j] = total
    return out


@pytest.mark.parametrize("image_px", [4, 8])
def test_three_blocks_by_hand(image_px: int) -> None:
    """With f_1 as large as the image, and with f_1 smaller: then the last block upsamples."""
    pyramid = FeatureTransferPyramid([MapSize(2, 4), MapSize(3, 2), MapSize(5, 1)], image_px)
    shapes = [(3, 5, 1, 1), (3, 3, 3, 3), (2, 3, 1, 1), (2, 2, 3, 3), (3, 2, 1, 1)]
    parameters = list(pyramid.blocks.parameters())
    assert [tuple(p.shape) for p in parameters[::2]] == shapes
    with torch.no_grad():
        for k, p in enumerate(parameters):
            p.copy_(((torch.arange(p.numel()) * 7 + k) % 11 - 5).view_as(p) / 10)
    a = [p.detach().numpy().astype(np.float64) for p in parameters]
    rng = np.random.default_rng(0)
    f1, f2, f3 = rng.normal(size=(2, 4, 4)), rng.normal(size=(3, 2, 2)), rng.normal(size=(5, 1, 1))

    m1 = w1(up(f3, 2), a[0], a[1])
    m2 = w1(up(w3(m1 + f2, a[2], a[3]), 4), a[4], a[5])
    m3 = w1(up(w3(m2 + f1, a[6], a[7]), image_px), a[8], a[9])

    features = [torch.tensor(f, dtype=torch.float32)[None] for f in (f1, f2, f3)]
    assert np.allclose(pyramid(features)[0].detach().numpy(), m3, atol=1e-5)


def test_the_head_is_tanh_of_a_1x1_convolution_or_the_bare_sum() -> None:
    x_hat, m_l = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    taps = [MapSize(2, 4)]
    pyramid = FeatureTransferPyramid(taps, 4, head="tanh")
    weight, bias = (p.detach() for p in pyramid.head.parameters())
    expected = torch.zeros(2, 3, 4, 4)
    for o in range(3):
        expected[:, o] = bias[o] + sum(weight[o, c, 0, 0] * (x_hat + m_l)[:, c] for c in range(3))
    assert torch.allclose(pyramid.join(x_hat, m_l), torch.tanh(expected), atol=1e-6)
    assert torch.equal(FeatureTransferPyramid(taps, 4, head="sum").join(x_hat, m_l), m_l + x_hat)


def test_parameter_count_for_resnet34_taps() -> None:
    pyramid = FeatureTransferPyramid(RESNET34)
    assert sum(p.numel() for p in pyramid.parameters()) == 947_279


@pytest.mark.parametrize(
    ("taps", "image_px"),
    [
        (RESNET34, 32),
        ([MapSize(7, 16)], 32),
        ([MapSize(5, 32), MapSize(9, 16), MapSize(13, 8)], 64),
        ([MapSize(4, 9), MapSize(6, 5)], 18),
        ([MapSize(4, 8), MapSize(6, 8)], 8),
    ],
)
def test_any_widths_sides_and_number_of_taps(taps: Any, image_px: int) -> None:
    features = [torch.randn(2, tap.channels, tap.side_px, tap.side_px) for tap in taps]
    assert FeatureTransferPyramid(taps, image_px)(features).shape == (2, 3, image_px, image_px)


def test_initial_weights_cover_every_parameter_within_the_default_bounds() -> None:
    pyramid = FeatureTransferPyramid(RESNET34)
    weights = pyramid.draw_weights(torch.Generator().manual_seed(0))
    assert list(weights) == [name for name, _ in pyramid.named_parameters()]
    layers = dict(pyramid.named_modules())
    for name, tensor in weights.items():
        layer = layers[name.rpartition(".")[0]]
        bound = (layer.in_channels * layer.kernel_size[0] ** 2) ** -0.5
        assert float(tensor.abs().max()) <= bound
    assert float(weights["blocks.0.conv1.weight"].abs().max()) > 0.99 * 512**-0.5
