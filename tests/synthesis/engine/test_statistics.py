"""R_BN in one pass against the definition, against float64, and its gradient against finite differences."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nisynth.synthesis.engine.statistics import FeatureDistribution, moments, sum_over_images
from nisynth.synthesis.inversion.priors import feature_distribution

SHAPES = ((5, 7, 6, 6), (5, 3, 6, 6), (5, 11, 3, 3))


def values(*shape: Any, seed: int = 0, **options: Any) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **options)


def remembering(mean: Any, var: Any) -> Any:
    """A BatchNorm that remembers these."""
    norm = nn.BatchNorm2d(len(mean), dtype=mean.dtype)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)
    return norm


def distance(
    norms: Any, inputs: Any, multiplier: float = 1.0, bn_scale: str = "published", slack: float = 0.0
) -> Any:
    """R_BN of these inputs, through their moments."""
    of_inputs = [moments(x, norm.running_mean) for x, norm in zip(inputs, norms, strict=True)]
    return FeatureDistribution(norms, multiplier, bn_scale, slack)(of_inputs)


def gaps(norm: Any, x: Tensor) -> Any:
    """The one layer's gaps: of its means, of its variances."""
    return FeatureDistribution([norm]).gaps([moments(x, norm.running_mean)])


def layers(dtype: torch.dtype = torch.float32) -> Any:
    """The BatchNorms of three layers of different widths, and an input for each."""
    norms, inputs = [], []
    for seed, shape in enumerate(SHAPES):
        norms.append(
            remembering(
                values(shape[1], seed=seed).to(dtype), 1 + values(shape[1], seed=9 + seed).to(dtype).abs()
            )
        )
        inputs.append(3 * values(*shape, seed=20 + seed, dtype=dtype) + values(shape[1], 1, 1, seed=seed))
    return norms, inputs


@pytest.mark.parametrize(
    ("multiplier", "bn_scale", "slack"),
    [(1.0, "published", 0.0), (7.0, "published", 0.0), (7.0, "teacher", 0.0), (1.0, "teacher", 0.8)],
)
def test_it_is_the_definition(multiplier: float, bn_scale: str, slack: float) -> None:
    norms, inputs = layers()
    inputs = [x.requires_grad_() for x in inputs]
    definition = feature_distribution(
        inputs, norms, first_bn_multiplier=multiplier, bn_scale=bn_scale, slack=slack
    )
    expected = torch.autograd.grad(definition, inputs)
    ours = distance(norms, inputs, multiplier, bn_scale, slack)
    torch.testing.assert_close(ours, definition, rtol=2e-6, atol=0)
    for gradient, wanted in zip(torch.autograd.grad(ours, inputs), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-7)


def test_the_gradient_is_the_derivative() -> None:
    norms, inputs = layers(torch.float64)
    inputs = [x[:2, :, :2, :2].clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(lambda *xs: distance(norms, xs, 2.0), inputs)
    assert torch.autograd.gradcheck(lambda *xs: distance(norms, xs, slack=0.5), inputs)


def test_a_mean_far_from_zero_costs_nothing_where_the_teacher_remembers_it() -> None:
    x = 1000 + 0.1 * values(8, 2, 8, 8, dtype=torch.float64)
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    mean_gaps, var_gaps = gaps(remembering(torch.full((2,), 1000.05), torch.zeros(2)), x.float())
    torch.testing.assert_close(var_gaps.double(), var, rtol=1e-3, atol=0)
    torch.testing.assert_close(mean_gaps.double(), mean - 1000.05, rtol=0, atol=1e-4)
    far = gaps(remembering(torch.zeros(2), torch.zeros(2)), x.float())[1]
    assert not torch.allclose(far.double(), var, rtol=0.1)


def test_a_variance_is_never_below_zero() -> None:
    norm = remembering(torch.tensor([0.3]), torch.tensor([2.0]))
    mean_gaps, var_gaps = gaps(norm, torch.full((4, 1, 3, 3), 0.1))
    assert float(var_gaps) == pytest.approx(-2, abs=1e-7)
    assert float(var_gaps) >= -2
    assert float(mean_gaps) == pytest.approx(-0.2)


def test_where_nothing_is_amiss_the_gradient_is_zero() -> None:
    x = torch.tensor([-1.0, 1.0]).repeat(8).view(4, 1, 2, 2).requires_grad_()
    r_bn = distance([remembering(torch.zeros(1), torch.ones(1))], [x])
    assert float(r_bn.detach()) == 0
    torch.autograd.backward(r_bn)
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_sixteen_bit_input_is_summed_in_float32_and_gets_a_sixteen_bit_gradient() -> None:
    norms, inputs = layers()
    inputs = [x.bfloat16().requires_grad_() for x in inputs]
    r_bn = distance(norms, inputs)
    assert r_bn.dtype == torch.float32
    exact = feature_distribution([x.detach().double().float() for x in inputs], norms)
    torch.testing.assert_close(r_bn, exact, rtol=1e-5, atol=1e-6)
    torch.autograd.backward(r_bn)
    assert {x.grad.dtype for x in inputs} == {torch.bfloat16}


# opcheck looks at the gradients of copies that are no leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_the_operator_keeps_torchs_contract() -> None:
    of_layers = [values(3, 2, 4).requires_grad_(), values(3, 2, 5, seed=1).requires_grad_()]
    torch.library.opcheck(torch.ops.nisynth.sum_over_images.default, (of_layers,))
    expected = torch.cat([of_images.sum(0) for of_images in of_layers], 1)
    torch.testing.assert_close(sum_over_images(of_layers), expected)
