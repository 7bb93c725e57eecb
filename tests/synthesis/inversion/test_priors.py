"""Every loss against a literal computation with loops over numpy arrays."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nisynth.synthesis.inversion.priors import cross_entropy, feature_distribution, l2, total_variation


def norm(values: Any) -> Any:
    return float(np.sqrt(sum(float(v) ** 2 for v in np.asarray(values, dtype=np.float64).ravel())))


def images(batch_size: int = 2, side: int = 4) -> Any:
    return torch.randn((batch_size, 3, side, side + 1), generator=torch.Generator().manual_seed(3))


def test_cross_entropy_is_the_mean_of_minus_log_softmax() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5], [-1.0, 0.0, 3.0]])
    labels = torch.tensor([1, 0])
    expected = 0.0
    for row, label in zip(logits.numpy(), labels.numpy(), strict=True):
        expected -= np.log(np.exp(row[label]) / np.exp(row).sum()) / 2
    assert float(cross_entropy(logits, labels)) == pytest.approx(expected, rel=1e-6)


def test_total_variation_takes_four_directions() -> None:
    x = images()
    a = x.numpy()
    steps = {"right": (0, 1), "down": (1, 0), "falling": (1, 1), "rising": (-1, 1)}
    expected = 0.0
    for dy, dx in steps.values():
        differences = []
        for b in range(2):
            for c in range(3):
                for i in range(4):
                    for j in range(5):
                        if 0 <= i + dy < 4 and j + dx < 5:
                            differences.append(a[b, c, i, j] - a[b, c, i + dy, j + dx])
        expected += norm(differences)
    assert float(total_variation(x, rescale=False)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("pattern", "silent"),
    [
        (lambda i, j: i, "right"),
        (lambda i, j: j, "down"),
        (lambda i, j: i - j, "falling"),
        (lambda i, j: i + j, "rising"),
    ],
)
def test_an_image_constant_along_one_direction_pays_for_the_three_others(pattern: str, silent: str) -> None:
    side = 4
    x = torch.tensor([[float(pattern(i, j)) for j in range(side)] for i in range(side)])
    difference = {
        "right": pattern(0, 1) - pattern(0, 0),
        "down": pattern(1, 0) - pattern(0, 0),
        "falling": pattern(1, 1) - pattern(0, 0),
        "rising": pattern(0, 1) - pattern(1, 0),
    }
    pairs = {"right": 12, "down": 12, "falling": 9, "rising": 9}
    assert difference[silent] == 0
    expected = sum(abs(difference[d]) * np.sqrt(3 * pairs[d]) for d in pairs)
    assert float(total_variation(x.expand(1, 3, side, side), rescale=False)) == pytest.approx(expected)


def test_l2_is_the_unsquared_norm_over_the_whole_batch() -> None:
    x = images()
    assert float(l2(x, rescale=False)) == pytest.approx(norm(x), rel=1e-6)


@pytest.mark.parametrize("loss", [total_variation, l2])
def test_rescaled_priors_equal_the_published_ones_at_256_and_do_not_grow_with_the_batch(loss: Any) -> None:
    one = images(1)
    few, many = one.expand(8, 3, 4, 5), one.expand(256, 3, 4, 5)
    assert float(loss(many)) == pytest.approx(float(loss(many, rescale=False)))
    assert float(loss(few)) == pytest.approx(float(loss(many)), rel=1e-4)
    assert float(loss(one)) == pytest.approx(16 * float(loss(one, rescale=False)))


def test_feature_distribution_takes_biased_variance_and_unsquared_norms() -> None:
    rng = torch.Generator().manual_seed(4)
    inputs = [torch.randn((2, c, 3, 2), generator=rng) * 2 + 1 for c in (4, 3)]
    layers = []
    for x in inputs:
        layer = nn.BatchNorm2d(x.shape[1])
        layer.running_mean.normal_(generator=rng)
        layer.running_var.uniform_(0.5, 2, generator=rng)
        layers.append(layer)
    expected = []
    for x, layer in zip(inputs, layers, strict=True):
        mean_gaps, var_gaps = [], []
        for c in range(x.shape[1]):
            values = x[:, c].numpy().astype(np.float64).ravel()
            mean = values.sum() / len(values)
            var = ((values - mean) ** 2).sum() / len(values)
            mean_gaps.append(mean - float(layer.running_mean[c]))
            var_gaps.append(var - float(layer.running_var[c]))
        expected.append(norm(mean_gaps) + norm(var_gaps))
    assert float(feature_distribution(inputs, layers)) == pytest.approx(sum(expected), rel=1e-5)
    assert float(feature_distribution(inputs, layers, first_bn_multiplier=10.0)) == pytest.approx(
        10 * expected[0] + expected[1], rel=1e-5
    )


def test_slack_forgives_what_sampling_noise_explains() -> None:
    layer = nn.BatchNorm2d(1)
    layer.running_mean.fill_(1)
    layer.running_var.fill_(1.5)
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]]).view(2, 1, 1, 2)  # mean 3, biased variance 3.5
    # B = 2: one sigma is sqrt(1.5 / 2) of the mean and sqrt(2 / 2) * 1.5 of the variance.
    for slack, expected in (
        (0.0, 4.0),
        (0.5, 4 - 0.5 * (0.75**0.5 + 1.5)),
        (2.0, 2 - 2 * 0.75**0.5),
        (3.0, 0.0),
    ):
        assert float(feature_distribution([x], [layer], slack=slack)) == pytest.approx(expected, abs=1e-6)


def test_gradients_are_finite_where_a_norm_is_zero() -> None:
    flat = torch.zeros((2, 3, 4, 4), requires_grad=True)
    (total_variation(flat) + l2(flat)).backward()
    assert torch.equal(flat.grad, torch.zeros_like(flat))
