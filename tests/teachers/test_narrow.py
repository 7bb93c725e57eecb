"""A pruned network's file rebuilds it; without the mark, or where it does not fit, it is refused."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from nisynth.errors import TeacherError
from nisynth.images import Normalization
from nisynth.teachers import build_network, load_teacher
from nisynth.teachers.narrow import PRUNED
from nisynth.teachers.save import network_bytes

NORMALIZATION = Normalization((0.5, 0.4, 0.3), (0.25, 0.2, 0.15))
CLASSES = ("cat", "dog", "frog", "ship")


def by_hand() -> nn.Module:
    """A ResNet-20 whose first block keeps 5 of the 16 filters of its first convolution."""
    network = build_network("resnet20", 4).eval()
    block = network.get_submodule("layer1.0")
    block.conv1 = nn.Conv2d(16, 5, 3, padding=1, bias=False)
    block.bn1 = nn.BatchNorm2d(5).eval()
    block.conv2 = nn.Conv2d(5, 16, 3, padding=1, bias=False)
    return network


def write(path: Path, network: nn.Module, arch: str = "resnet20", **more: str) -> str:
    data = network_bytes(
        network, arch=arch, normalization=NORMALIZATION, classes=CLASSES, input_px=32, more=more
    )
    path.write_bytes(data)
    return str(path)


def test_a_narrowed_network_comes_back(tmp_path: Path) -> None:
    network = by_hand()
    path = write(tmp_path / "w.safetensors", network, **{PRUNED: json.dumps({"layer1.0.conv1": 5})})
    teacher = load_teacher(arch="resnet20", weights=path)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(teacher.logits(x), network(x))
    assert teacher.network.get_submodule("layer1.0.conv2").in_channels == 5
    assert teacher.network.get_submodule("layer1.0.bn1").num_features == 5
    assert (teacher.normalization, teacher.classes, teacher.input_px) == (NORMALIZATION, CLASSES, 32)


def test_vgg_and_depthwise_layers_come_back(tmp_path: Path) -> None:
    vgg = build_network("vgg11", 4).eval()
    vgg.get_submodule("features")[25] = nn.Conv2d(512, 7, 3, padding=1)
    vgg.get_submodule("features")[26] = nn.BatchNorm2d(7).eval()
    vgg.get_submodule("classifier")[1] = nn.Linear(7, 512)
    mobile = build_network("mobilenetv2", 4).eval()
    block = mobile.get_submodule("layers.3")
    hidden, kept = block.conv1.out_channels, 9
    assert block.conv2.groups == hidden
    block.conv1 = nn.Conv2d(block.conv1.in_channels, kept, 1, bias=False)
    block.conv2 = nn.Conv2d(kept, kept, 3, block.conv2.stride, 1, groups=kept, bias=False)
    block.conv3 = nn.Conv2d(kept, block.conv3.out_channels, 1, bias=False)
    block.bn1, block.bn2 = nn.BatchNorm2d(kept).eval(), nn.BatchNorm2d(kept).eval()
    x = torch.randn(2, 3, 32, 32)
    for arch, network in (("vgg11", vgg), ("mobilenetv2", mobile)):
        path = write(tmp_path / f"{arch}.safetensors", network, arch, **{PRUNED: "{}"})
        with torch.no_grad():
            assert torch.equal(load_teacher(arch=arch, weights=path).logits(x), network(x))


def test_without_the_mark_a_shape_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", by_hand())
    with pytest.raises(TeacherError, match=r"do not fit arch 'resnet20'"):
        load_teacher(arch="resnet20", weights=path)


def test_the_mark_excuses_no_other_architecture_and_no_other_class_count(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", by_hand(), **{PRUNED: "{}"})
    with pytest.raises(TeacherError, match=r"do not fit arch 'resnet18'"):
        load_teacher(arch="resnet18", weights=path)
    with pytest.raises(TeacherError, match=r"built with 10 classes, but weights .* have 4"):
        load_teacher(arch="resnet20", weights=path, num_classes=10, classes=tuple("abcdefghij"))
