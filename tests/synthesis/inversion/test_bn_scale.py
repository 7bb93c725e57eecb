"""R_BN in the teacher's own scale: the yardstick's literals, and what a rescaled network leaves as it is."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nisynth.batch import Task
from nisynth.images import Normalization
from nisynth.synthesis import EngineConfig, NaturalInversionConfig, make_synthesizer
from nisynth.synthesis.inversion.bn_scale import REFERENCE, BNScale, sampling_noise, scale_of_norms
from nisynth.synthesis.inversion.priors import feature_distribution
from nisynth.teachers import Teacher, load_teacher
from tests.tiny import TinyNet


def remembering(*variances: list[float]) -> list[nn.BatchNorm2d]:
    """BatchNorms that remember these variances."""
    norms = [nn.BatchNorm2d(len(values)) for values in variances]
    for norm, values in zip(norms, variances, strict=True):
        norm.running_var = torch.tensor(values)
    return norms


def rescaled(teacher: Teacher, factor: float) -> Teacher:
    """The same function, every BatchNorm's input `factor` times as large."""
    network = copy.deepcopy(teacher.network)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data *= factor
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            variance = layer.running_var * factor**2
            layer.weight.data *= ((variance + layer.eps) / (layer.running_var + layer.eps)).sqrt() / factor
            layer.running_mean *= factor
            layer.running_var = variance
    return Teacher(network, normalization=teacher.normalization, classes=teacher.classes, input_px=16)


def tiny_teacher() -> Teacher:
    torch.manual_seed(5)
    network = TinyNet()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = torch.randn(layer.num_features)
            layer.running_var = torch.rand(layer.num_features) + 0.5
    normalization = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return Teacher(network, normalization=normalization, classes=list("0123"), input_px=16)


def r_bn(teacher: Teacher, images: Tensor, bn_scale: BNScale) -> float:
    _, inputs = teacher.logits_and_bn_inputs(images)
    return float(feature_distribution(inputs, teacher.batch_norms, bn_scale=bn_scale))


def test_sampling_noise_from_running_variances() -> None:
    noise = sampling_noise(remembering([9.0, 16.0], [4.0]))
    assert noise.means == pytest.approx(5 + 2)
    assert noise.variances == pytest.approx(math.sqrt(2) * (math.hypot(9, 16) + 4))
    assert noise.y(4) == pytest.approx((noise.means + noise.variances) / 2)


def test_the_reference_is_the_papers_resnet34(shared: Path) -> None:
    weights = shared / "teachers" / "cifar10_resnet34.safetensors"
    norms = load_teacher(arch="resnet34", weights=str(weights)).batch_norms
    assert sampling_noise(norms) == pytest.approx(REFERENCE, rel=1e-6)
    torch.testing.assert_close(
        scale_of_norms(norms, "teacher"), scale_of_norms(norms, "published"), rtol=1e-6, atol=0
    )


def test_y_of_the_teacher_that_ships() -> None:
    assert sampling_noise(load_teacher(arch="resnet20").batch_norms).y(256) == pytest.approx(
        4.30474, rel=1e-5
    )


def test_the_loss_is_unchanged_when_activations_are_rescaled() -> None:
    teacher = tiny_teacher()
    larger = rescaled(teacher, 10.0)
    images = torch.randn((8, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(larger.logits(images), teacher.logits(images))
    assert r_bn(larger, images, "teacher") == pytest.approx(r_bn(teacher, images, "teacher"), rel=1e-5)
    assert r_bn(larger, images, "published") > 9 * r_bn(teacher, images, "published")


@pytest.mark.parametrize("engine", ["plain", "fast"])
def test_a_rescaled_teacher_gives_the_same_losses(engine: str) -> None:
    config = NaturalInversionConfig(iterations=2, latent_dim=8, bn_scale="teacher", bn_slack=0.3)
    arithmetic = EngineConfig(name=engine, precision="float32")  # type: ignore[arg-type]
    task = Task(index=0, seed=3, labels=np.arange(4, dtype=np.int64), rows=4)
    teacher = tiny_teacher()
    curves = [
        make_synthesizer(config, arithmetic, made, log_every=1).synthesize(task).curve
        for made in (teacher, rescaled(teacher, 10.0))
    ]
    for ours, theirs in zip(*curves, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3)


def test_a_network_that_remembers_no_variance_has_a_finite_scale() -> None:
    assert bool(torch.isfinite(scale_of_norms(remembering([0.0, 0.0]), "teacher")).all())
