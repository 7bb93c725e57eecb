"""The registry's networks against the literature, and networks from anywhere else."""

import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nisynth.errors import ConfigError
from nisynth.teachers import Tap, architectures, build_network

# At 10 classes. ResNet-18/34, MobileNetV2: the figures published with the common CIFAR code; ResNet-20/56:
# 269,722 and 853,018 with parameter-free shortcuts (He et al. give 0.27 and 0.85 million), and 2,752 more
# in the two 1x1 shortcuts; VGG: 9,225,984 and 14,723,136 in the features, 530,442 in 512-512-10.
PARAMETERS = {
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "resnet20": 269_722 + 2_752,
    "resnet56": 853_018 + 2_752,
    "vgg11": 9_225_984 + 530_442,
    "vgg16": 14_723_136 + 530_442,
    "mobilenetv2": 2_296_922,
}
BATCH_NORMS = {  # stem + two per block + shortcuts; one per convolution; three per block + shortcuts + two
    "resnet18": 1 + 16 + 3,
    "resnet34": 1 + 32 + 3,
    "resnet20": 1 + 18 + 2,
    "resnet56": 1 + 54 + 2,
    "vgg11": 8,
    "vgg16": 13,
    "mobilenetv2": 1 + 51 + 4 + 1,
}
WIDTHS = {
    "resnet18": [(64, 32), (128, 16), (256, 8), (512, 4)],
    "resnet34": [(64, 32), (128, 16), (256, 8), (512, 4)],
    "resnet20": [(16, 32), (32, 16), (64, 8)],
    "resnet56": [(16, 32), (32, 16), (64, 8)],
    "vgg11": [(64, 32), (128, 16), (256, 8), (512, 4)],
    "vgg16": [(64, 32), (128, 16), (256, 8), (512, 4)],
    # The first 1x1 convolution of a stride-2 block still works on the larger image.
    "mobilenetv2": [(144, 32), (192, 16), (576, 8), (1280, 4)],
}


def test_registry_is_complete() -> None:
    assert [info.name for info in architectures()] == list(PARAMETERS)


@pytest.mark.parametrize("info", architectures(), ids=lambda info: info.name)
def test_parameters_and_taps_are_the_published_ones(info: Any) -> None:
    assert info.parameters == PARAMETERS[info.name]
    assert [(tap.channels, tap.side_px) for tap in info.taps] == WIDTHS[info.name]


@pytest.mark.parametrize("arch", PARAMETERS)
def test_batch_norm_count(arch: str) -> None:
    with torch.device("meta"):
        network = build_network(arch, 10)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == BATCH_NORMS[arch]


@pytest.mark.parametrize("arch", PARAMETERS)
@pytest.mark.parametrize("side_px", [32, 64])
def test_any_image_size_gives_logits(arch: str, side_px: int) -> None:
    with torch.device("meta"):
        network = build_network(arch, 7)
        assert network(torch.empty(2, 3, side_px, side_px)).shape == (2, 7)


@pytest.mark.parametrize("arch", PARAMETERS)
def test_no_operation_works_in_place(arch: str) -> None:
    network = build_network(arch, 10)
    assert not any(getattr(module, "inplace", False) for module in network.modules())


def test_tap_names_are_stages_and_activations() -> None:
    taps = {info.name: info.taps for info in architectures()}
    assert taps["resnet34"][0] == Tap("layer1", channels=64, side_px=32)
    assert [tap.name for tap in taps["resnet34"]] == ["layer1", "layer2", "layer3", "layer4"]
    # Behind the activation, before the pooling.
    assert [tap.name for tap in taps["vgg11"]] == ["features.2", "features.6", "features.13", "features.20"]


@pytest.mark.parametrize(
    ("arch", "name", "fan_in"),
    [
        ("resnet20", "layer3.2.conv2", 64 * 9),
        ("vgg11", "features.8", 128 * 9),
        ("mobilenetv2", "layers.9.conv2", 9),
    ],
)
def test_convolutions_start_from_kaiming_normal(arch: str, name: str, fan_in: int) -> None:
    torch.manual_seed(0)
    weight = build_network(arch, 10).get_submodule(name).weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.03)
    assert abs(weight.mean().item()) < 0.05 * weight.std().item()


def test_same_seed_builds_the_same_student() -> None:
    torch.manual_seed(3)
    first = build_network("resnet20", 10).state_dict()
    torch.manual_seed(3)
    second = build_network("resnet20", 10).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_dropout_of_vgg_is_an_argument() -> None:
    network = build_network("vgg11", 10, dropout=0.1)
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.1, 0.1]


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """An importable module named `elsewhere`, empty."""
    module = types.ModuleType("elsewhere")
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    return module


def test_factory_gets_num_classes_where_it_can_take_it(elsewhere: Any) -> None:
    elsewhere.named = lambda num_classes, width: nn.Linear(width, num_classes)
    elsewhere.fixed = lambda width: nn.Linear(width, 3)
    elsewhere.anything = lambda **kwargs: nn.Linear(kwargs["width"], kwargs["num_classes"])
    sizes = {
        arch: build_network(f"elsewhere:{arch}", 5, width=4).out_features
        for arch in ("named", "fixed", "anything")
    }
    assert sizes == {"named": 5, "fixed": 3, "anything": 5}


def refusal(arch: str, **kwargs: object) -> str:
    with pytest.raises(ConfigError) as caught:
        build_network(arch, 10, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert repr(arch) in message
    return message


def test_unknown_name_gets_the_nearest_one() -> None:
    assert "did you mean 'resnet34'?" in refusal("resnet-34")
    assert "did you mean 'vgg16'?" in refusal("VGG16_bn")
    message = refusal("transformer")
    assert "did you mean" not in message
    assert "mobilenetv2" in message
    assert "package.module:factory" in message


def test_missing_module_and_attribute(elsewhere: Any) -> None:
    assert "there is no module 'no_such_module'" in refusal("no_such_module:build")
    assert "there is no module 'torch.no_such_part'" in refusal("torch.no_such_part:build")
    elsewhere.build_net = nn.Identity
    message = refusal("elsewhere:build")
    assert "'elsewhere' has no attribute 'build'; did you mean 'build_net'?" in message
    assert "importing '' failed" in refusal(":build")
    elsewhere.width = 3
    assert "'width' is a int, not a factory" in refusal("elsewhere:width")


def test_module_that_fails_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "needs_more.py").write_text("import not_installed_here\n")
    (tmp_path / "broken.py").write_text("raise RuntimeError('first line\\nsecond line')\n")
    assert "importing 'needs_more' failed: No module named 'not_installed_here'" in refusal(
        "needs_more:build"
    )
    assert "importing 'broken' failed: RuntimeError: first line" in refusal("broken:build")


def test_arguments_and_results_that_do_not_fit(elsewhere: Any) -> None:
    assert "no argument 'depth' in kwargs; it takes num_classes" in refusal("resnet20", depth=3)
    elsewhere.build = lambda width: nn.Linear(width, 3)
    assert "TypeError" in refusal("elsewhere:build")
    elsewhere.build = lambda: "a string"
    assert "returned a str" in refusal("elsewhere:build")
    assert "is a function of Python itself" in refusal("builtins:dict")
