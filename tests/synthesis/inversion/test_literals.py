"""Losses of published methods on inputs small enough to compute by hand, in float64."""

import math

import pytest
import torch
from torch import Tensor, nn

from nisynth.synthesis.inversion.priors import feature_distribution, l2, total_variation

X = torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=torch.float64)


def remembering(means: list[float], variances: list[float]) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(len(means)).double()
    norm.running_mean = torch.tensor(means, dtype=torch.float64)
    norm.running_var = torch.tensor(variances, dtype=torch.float64)
    return norm


def of_channels(*channels: Tensor) -> Tensor:
    """Two images of 1 x 2 pixels: one row of a channel each."""
    return torch.stack(channels, 1).view(2, len(channels), 1, 2)


def test_r_bn_takes_biased_variance() -> None:
    value = feature_distribution([of_channels(X)], [remembering([1.0], [1.5])])
    assert float(value) == pytest.approx(2 + 2, rel=1e-12)  # the unbiased variance would give 5.167


def test_r_bn_of_two_channels() -> None:
    value = feature_distribution([of_channels(X, 2 * X)], [remembering([1.0, 2.0], [1.5, 6.0])])
    assert float(value) == pytest.approx(12.7183472062, rel=1e-10)


def test_the_first_layers_term_may_weigh_more() -> None:
    norm = remembering([1.0], [1.5])
    value = feature_distribution([of_channels(X)] * 2, [norm, norm], first_bn_multiplier=10.0)
    assert float(value) == pytest.approx(44, rel=1e-12)


IMAGE = torch.tensor([[0.0, 1.0], [2.0, 4.0]], dtype=torch.float64).view(1, 1, 2, 2)
COPIES = IMAGE.expand(4, 3, 2, 2)


def test_total_variation() -> None:
    assert float(total_variation(IMAGE, rescale=False)) == pytest.approx(10.8416192530, rel=1e-10)
    assert float(total_variation(COPIES, rescale=False)) == pytest.approx(37.5564707649, rel=1e-10)
    assert float(total_variation(COPIES)) == pytest.approx(37.5564707649 * math.sqrt(64), rel=1e-10)


def test_total_variation_by_magnitudes_is_a_mean() -> None:
    for images in (IMAGE, COPIES):
        assert float(total_variation(images, form="l1")) == pytest.approx(9, rel=1e-12)


def test_l2() -> None:
    assert float(l2(COPIES, rescale=False)) == pytest.approx(15.8745078664, rel=1e-10)
