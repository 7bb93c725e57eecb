"""Eq. 8 over a real network, and the choice of the iterate."""

from typing import Any

import pytest
import torch
from torch import nn

from nisynth.synthesis import NaturalInversionConfig
from nisynth.synthesis.inversion.iterate import KeptIterate
from nisynth.synthesis.inversion.objective import image_terms, losses
from nisynth.teachers import Teacher


def test_r_bn_reads_the_input_of_every_batch_norm_shortcuts_included(odd_teacher: Teacher) -> None:
    """Against inputs recomputed layer by layer, outside any hook."""
    x = torch.randn((4, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    expected, count, a = 0.0, 0, x
    for block in odd_teacher.network.stages:
        for norm, z in ((block.bn, block.conv(a)), (block.shortcut[1], block.shortcut[0](a))):
            flat = z.permute(1, 0, 2, 3).reshape(z.shape[1], -1)
            mean, var = flat.mean(1), ((flat - flat.mean(1, keepdim=True)) ** 2).mean(1)
            expected += float(((mean - norm.running_mean) ** 2).sum().sqrt())
            expected += float(((var - norm.running_var) ** 2).sum().sqrt())
            count += 1
        a = block(a)
    assert count == sum(isinstance(m, nn.BatchNorm2d) for m in odd_teacher.network.modules()) == 6
    config = NaturalInversionConfig(bn_scale="published")
    terms = losses(image_terms(config, odd_teacher), odd_teacher, x, torch.arange(4))
    assert float(terms["r_bn"]) == pytest.approx(expected, rel=1e-5)


def test_the_total_is_the_weighted_sum_of_the_terms(odd_teacher: Teacher) -> None:
    x = torch.randn((4, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    config = NaturalInversionConfig(bn_weight=2.0, tv_weight=0.3, l2_weight=0.05)
    terms = losses(image_terms(config, odd_teacher), odd_teacher, x, torch.arange(4))
    total, ce, r_bn, tv, l2 = (float(terms[name]) for name in ("total", "ce", "r_bn", "tv", "l2"))
    assert total == pytest.approx(ce + 2.0 * r_bn + 0.3 * tv + 0.05 * l2, rel=1e-6)
    assert l2 == pytest.approx(8 * float((x**2).sum().sqrt()), rel=1e-5)


@pytest.mark.parametrize(("select", "expected"), [("best", 2.0), ("last", 5.0)])
def test_the_kept_iterate(select: str, expected: float) -> None:
    theta = [torch.zeros(2), torch.zeros(1, 3)]
    kept = KeptIterate(theta, select)
    for iteration, total in enumerate([4.0, 1.5, 1.5, 3.0, 2.0], start=1):
        for parameter in theta:
            parameter.fill_(iteration)
        kept.consider(torch.tensor(total), iteration)
    for parameter in theta:
        parameter.fill_(-1)
    kept.restore()
    assert all((parameter == expected).all() for parameter in theta)
    assert (int(kept.best_iteration), float(kept.best_total)) == (2, 1.5)
    assert bool(kept.finite)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_loss_that_is_not_finite_is_remembered(bad: Any) -> None:
    kept = KeptIterate([torch.zeros(2)], "best")
    for iteration, total in enumerate([4.0, bad, 1.0], start=1):
        kept.consider(torch.tensor(total), iteration)
    assert not kept.finite
    assert int(kept.best_iteration) == 3
