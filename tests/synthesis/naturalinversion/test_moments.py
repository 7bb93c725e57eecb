"""R_BN's mean and variance, against float64 and against the derivative taken numerically."""

import pytest
import torch

from nisynth.synthesis.naturalinversion.moments import shifted_moments
from nisynth.synthesis.priors import biased_moments


def values(*shape, seed=0, **options):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **options)


def test_both_ways_agree_with_float64():
    x = 3 * values(5, 7, 6, 6) + values(7, 1, 1, seed=1)
    guess = values(7, seed=2)
    flat = x.double().transpose(0, 1).flatten(1)
    mean = flat.mean(1)
    var = ((flat - mean[:, None]) ** 2).mean(1)
    for moments in (biased_moments, shifted_moments):
        own_var, own_mean = moments(x, guess)
        torch.testing.assert_close(own_var, var.float(), rtol=2e-6, atol=0)
        torch.testing.assert_close(own_mean, mean.float(), rtol=1e-5, atol=1e-6)


def test_a_mean_far_from_zero_costs_nothing_where_the_guess_is_near():
    x = 1000 + 0.1 * values(8, 2, 8, 8, dtype=torch.float64)
    expected = x.var((0, 2, 3), correction=0)
    var, _ = shifted_moments(x.float(), torch.full((2,), 1000.05))
    torch.testing.assert_close(var.double(), expected, rtol=1e-3, atol=0)
    far, _ = shifted_moments(x.float(), torch.zeros(2))
    assert not torch.allclose(far.double(), expected, rtol=0.1)


def test_a_constant_channel_has_variance_zero_and_never_less():
    var, mean = shifted_moments(torch.full((4, 1, 3, 3), 0.1), torch.tensor([0.3]))
    assert float(var) >= 0
    assert float(var) == pytest.approx(0, abs=1e-8)
    assert float(mean) == pytest.approx(0.1)


def test_the_gradient_is_the_derivative():
    x = values(3, 2, 4, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(shifted_moments, (x, values(2, seed=1, dtype=torch.float64)))


def test_sixteen_bit_input_is_summed_in_float32_and_gets_a_sixteen_bit_gradient():
    x = values(64, 3, 16, 16).bfloat16().requires_grad_()
    var, mean = shifted_moments(x, torch.zeros(3))
    assert (var.dtype, mean.dtype) == (torch.float32, torch.float32)
    expected = biased_moments(x.detach().double().float(), torch.zeros(3))
    torch.testing.assert_close((var, mean), expected, rtol=1e-5, atol=1e-6)
    torch.autograd.backward((var + mean).sum())
    assert x.grad.dtype == torch.bfloat16
