"""Which filters go, what is left of the network, and what it costs, against values computed by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nisynth.consumers.filters import cost, num_kept, prunable_layers, remove_filters, widths
from nisynth.errors import ConfigError
from nisynth.teachers import build_network

RESNET34 = ((64, 3, 32), (128, 4, 16), (256, 6, 8), (512, 3, 4))
"""(channels, blocks, side in px) of the four stages on 32-px images."""


def resnet34_by_hand(kept: dict[int, int]) -> tuple[int, int]:
    """Parameters and MACs of ResNet-34, 10 classes, whose first convolutions keep `kept[channels]` filters.

    Written from the paper's table of layers: stem, two 3x3 convolutions with BatchNorm a block, a 1x1
    projection with BatchNorm where a stage begins with more channels, one linear layer.
    """
    parameters, macs = 3 * 64 * 9 + 2 * 64, 3 * 64 * 9 * 32 * 32
    inputs = 64
    for channels, blocks, side in RESNET34:
        middle = kept[channels]
        for block in range(blocks):
            weights = 9 * inputs * middle + 9 * middle * channels
            parameters += weights + 2 * middle + 2 * channels
            macs += weights * side * side
            if block == 0 and inputs != channels:
                parameters += inputs * channels + 2 * channels
                macs += inputs * channels * side * side
            inputs = channels
    return parameters + 512 * 10 + 10, macs + 512 * 10


@pytest.mark.parametrize(
    ("ratio", "kept", "parameters", "macs"),
    [
        (0.5, (32, 64, 128, 256), 10_735_242, 583_734_272),
        (0.6, (25, 51, 102, 204), 8_591_176, 465_032_192),
        (0.7, (19, 38, 76, 153), 6_475_922, 350_274_560),
        (0.8, (12, 25, 51, 102), 4_383_714, 233_673_728),
        (0.9, (6, 12, 25, 51), 2_268_460, 118_916_096),
    ],
)
def test_resnet34_by_the_papers_protocol(
    ratio: float, kept: tuple[int, ...], parameters: int, macs: int
) -> None:
    network = build_network("resnet34", 10).eval().requires_grad_(False)
    layers = prunable_layers(network, 32)
    assert layers == tuple(
        f"layer{stage}.{block}.conv1" for stage, (_, n, _) in enumerate(RESNET34, 1) for block in range(n)
    )
    pruned = remove_filters(network, ratio, layers, 32)
    by_channels = {channels: width for (channels, _, _), width in zip(RESNET34, kept, strict=True)}
    inputs = 64
    for stage, (channels, blocks, _) in enumerate(RESNET34, 1):
        for block in range(blocks):
            middle = by_channels[channels]
            found = pruned.get_submodule(f"layer{stage}.{block}")
            assert found.conv1.weight.shape == (middle, inputs, 3, 3)
            assert found.bn1.weight.shape == found.bn1.running_var.shape == (middle,)
            assert found.conv2.weight.shape == (channels, middle, 3, 3)
            inputs = channels
    left = cost(pruned, 32)
    assert (left.parameters, left.macs) == resnet34_by_hand(by_channels) == (parameters, macs)
    assert pruned(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_unpruned_cost() -> None:
    whole = cost(build_network("resnet34", 10), 32)
    assert (whole.parameters, whole.macs) == resnet34_by_hand({c: c for c, _, _ in RESNET34})
    assert (whole.parameters, whole.macs) == (21_282_122, 1_159_402_496)


def test_filters_kept_are_counted_in_decimals() -> None:
    assert [num_kept(64, ratio) for ratio in (0.5, 0.6, 0.7, 0.8, 0.9)] == [32, 25, 19, 12, 6]
    assert int(20 * (1 - 0.9)) == 1  # what binary floats make of it
    assert num_kept(20, 0.9) == 2
    assert num_kept(3, 0.9) == 1


def test_the_smallest_l1_norms_go_and_the_rest_computes_as_before() -> None:
    network = build_network("resnet20", 4).eval().requires_grad_(False)
    block = network.get_submodule("layer2.1")
    weight = block.conv1.weight
    weight[5:9] = 0.0
    block.bn1.bias[5:9] = -1.0  # what is left of a zeroed filter is cut off by the ReLU
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    pruned = remove_filters(network, 0.125, ["layer2.1.conv1"], 32)
    x = torch.randn(3, 3, 32, 32)
    assert widths(pruned, ["layer2.1.conv1"]) == {"layer2.1.conv1": 28}
    assert torch.allclose(pruned(x), network(x), atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())

    pruned = remove_filters(network, 0.5, ["layer2.1.conv1"], 32)
    norms = weight.abs().sum(dim=(1, 2, 3)).tolist()
    kept = sorted(sorted(range(32), key=lambda i: -norms[i])[:16])
    assert torch.equal(pruned.get_submodule("layer2.1").conv1.weight, weight[kept])
    assert torch.equal(pruned.get_submodule("layer2.1").conv2.weight, block.conv2.weight[:, kept])


@pytest.mark.parametrize(("arch", "first", "last", "count"), [
    ("vgg11", "features.0", "features.25", 8),
    ("mobilenetv2", "conv1", "conv2", 19),
    ("resnet20", "layer1.0.conv1", "layer3.2.conv1", 9),
])  # fmt: skip
def test_other_architectures(arch: str, first: str, last: str, count: int) -> None:
    network = build_network(arch, 10).eval()
    layers = prunable_layers(network, 32)
    assert (layers[0], layers[-1], len(layers)) == (first, last, count)
    pruned = remove_filters(network, 0.7, layers, 32)
    assert pruned(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert cost(pruned, 32).macs < 0.4 * cost(network, 32).macs
    for name, width in widths(pruned, layers).items():
        assert width == num_kept(network.get_submodule(name).out_channels, 0.7)


def test_layers_by_pattern() -> None:
    network = build_network("resnet20", 10)
    assert prunable_layers(network, 32, ["layer3.*", "layer1.0.*"]) == (
        "layer1.0.conv1", "layer3.0.conv1", "layer3.1.conv1", "layer3.2.conv1",
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"layers: 'layer9\.\*' matches none of layer1\.0\.conv1, "):
        prunable_layers(network, 32, ["layer9.*"])


class AllTied(nn.Module):
    """Two convolutions whose outputs are added to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.one(x) + self.other(x)).mean((2, 3))


def test_a_network_that_additions_tie_together() -> None:
    with pytest.raises(ConfigError, match=r"additions tie every convolution of this network to another"):
        prunable_layers(AllTied(), 16)


class Breaks(AllTied):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no such size\nat all")


def test_a_network_that_cannot_be_followed() -> None:
    with pytest.raises(
        ConfigError, match=r"torch-pruning cannot follow this network \(RuntimeError: no such size\)"
    ):
        prunable_layers(Breaks(), 16)
