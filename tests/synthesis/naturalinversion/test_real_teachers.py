"""The published experiments' teachers run, with the parameter counts of the paper's parts."""

from typing import Any

import pytest
import torch

from nisynth.synthesis import EngineConfig, NaturalInversionConfig, make_synthesizer
from nisynth.teachers import load_teacher
from tests.engines import inversion_of
from tests.synthesis.conftest import MakeTask


@pytest.mark.parametrize(
    ("arch", "file", "num_classes", "parameters"),
    [
        ("resnet34", "cifar10_resnet34", 10, 8_702_467 + 947_279),
        ("vgg11", "cifar10_vgg11", 10, 8_702_467 + 947_279),
        ("resnet34", "cifar100_resnet34", 100, 9_439_747 + 947_279),
    ],
)
def test_a_few_iterations(
    shared: Any, make_task: MakeTask, arch: str, file: str, num_classes: int, parameters: Any
) -> None:
    teacher = load_teacher(arch=arch, weights=str(shared / "teachers" / f"{file}.safetensors"))
    config = NaturalInversionConfig(iterations=2)
    renderer = inversion_of(config, teacher).blank_model(32, torch.device("meta"))
    assert sum(p.numel() for p in renderer.parameters()) == parameters + 32 * 3
    batch = make_synthesizer(config, EngineConfig(), teacher).synthesize(make_task(32, num_classes))
    assert batch.images.shape == (32, 3, 32, 32)
    assert batch.curve[-1]["total"] < batch.curve[0]["total"]
