"""The losses of DAFL, DFAD and WGAN-GP against values computed by hand, in float64; the published sizes."""

import math

import pytest
import torch
from torch import Tensor

from nisynth.fitting.critics import DCGANCritic, ResNetCritic
from nisynth.fitting.dafl import activation_loss, balance_loss, distillation_loss, one_hot_loss
from nisynth.fitting.dfad import discrepancy
from nisynth.fitting.wgan_gp import critic_loss, generator_loss, gradient_penalty
from nisynth.images import Normalization
from nisynth.synthesis.generators import FittedGenerator, GeneratorSpec

LN3 = math.log(3)


def of(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_dafl() -> None:
    t, f, s = of((LN3, 0), (0, LN3)), of((1, -3), (0, 2)), of((0, 0), (0, 0))
    oh, act = float(one_hot_loss(t)), float(activation_loss(f))
    ie = float(balance_loss(t))
    assert oh == pytest.approx(0.2876820725, abs=1e-9)
    assert ie == pytest.approx(-0.3010299957, abs=1e-9)
    assert float(balance_loss(t, "e")) == pytest.approx(-0.6931471806, abs=1e-9)
    assert act == -1.5
    assert float(distillation_loss(t, s)) == pytest.approx(0.1308120359, abs=1e-9)
    assert 0.05 * oh + 5 * ie + 0.01 * act == pytest.approx(-1.5057658747, abs=1e-9)
    assert 0.5 * oh + 20 * ie + 0.1 * act == pytest.approx(-6.0267588771, abs=1e-9)
    assert float(balance_loss(of((LN3, 0), (LN3, 0)))) == pytest.approx(-0.2442190503, abs=1e-9)


def test_dfad() -> None:
    assert float(discrepancy(of((0, 2), (5, 1)), of((1, 2), (3, 4)))) == 1.5


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_penalty_of_a_linear_critic_is_that_of_its_slope(share: float) -> None:
    slope, x = torch.tensor([3.0, 4.0], dtype=torch.float64), of((1, 2), (5, -1))
    penalty = gradient_penalty(lambda x: x @ slope, x, -x, torch.full((2,), share, dtype=torch.float64))
    assert float(10 * penalty) == pytest.approx(160)
    unit = gradient_penalty(lambda x: x @ (slope / 5), x, -x, torch.full((2,), share, dtype=torch.float64))
    assert float(unit) == pytest.approx(0, abs=1e-12)


def test_wgan_gp() -> None:
    def score(x: Tensor) -> Tensor:
        return x.square().sum(1) / 2

    real, fake = of((0, 0)), of((2, 0))
    penalty = gradient_penalty(score, real, fake, torch.tensor([0.25], dtype=torch.float64)).detach()
    assert float(10 * penalty) == pytest.approx(2.5)
    assert float(critic_loss(score(real), score(fake), penalty)) == pytest.approx(4.5)
    assert float(generator_loss(score(fake))) == -2


@pytest.mark.parametrize(
    ("arch", "latent_dim", "width", "classes", "parameters"),
    [
        ("dafl", 1000, 0, None, 8_423_939),
        ("dafl", 100, 0, None, 1_051_139),
        ("dfad", 256, 0, None, 2_329_091),
        ("datafree", 512, 0, None, 8_776_259),
        ("datafree", 256, 0, None, 4_581_955),
        ("wgan_resnet", 128, 128, None, 1_204_483),
        ("wgan_resnet", 128, 128, 10, 1_218_307),
        ("wgan_resnet", 128, 128, 100, 1_356_547),
        ("wgan_dcgan", 128, 64, None, 1_565_955),
        ("wgan_dcgan", 128, 128, None, 5_179_907),
    ],
)
def test_generators_have_the_published_sizes(
    arch: str, latent_dim: int, width: int, classes: int | None, parameters: int
) -> None:
    spec = GeneratorSpec(
        arch=arch,
        num_classes=classes or 10,
        image_px=32,
        latent_dim=latent_dim,
        width=width,
        conditional=classes is not None,
    )
    network = FittedGenerator(spec, Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
    assert sum(weights.numel() for weights in network.parameters()) == parameters
    images = network(torch.randn(2, latent_dim), torch.tensor([0, 1]))
    assert images.shape == (2, 3, 32, 32)
    if arch not in ("dafl", "dfad"):  # their last layer is a BatchNorm; the others stay within the pixels
        assert float(images.detach().abs().max()) <= 2.0


def test_critics_have_the_published_sizes() -> None:
    critics = (
        ResNetCritic(128, None),
        ResNetCritic(128, 10),
        ResNetCritic(128, 100),
        DCGANCritic(64, None, 32),
        DCGANCritic(128, None, 32),
    )
    sizes = [sum(weights.numel() for weights in critic.parameters()) for critic in critics]
    assert sizes == [1_053_825, 1_055_115, 1_066_725, 1_033_345, 4_114_689]
    scores, logits = critics[1](torch.randn(2, 3, 32, 32))
    assert scores.shape == (2,)
    assert logits is not None
    assert logits.shape == (2, 10)
