"""L1-norm filter pruning: which filters go, and the narrower network that is left.

Li et al. (ICLR-17) rank the filters of a convolution by the sum of their absolute weights; Liu et al.
(ICLR-19), whose protocol the paper follows, remove the same share in every layer that no addition ties to
another one. In a ResNet of basic blocks that is the first 3x3 convolution of every block, in VGG every
convolution, in MobileNetV2 every expansion with its depthwise filter. torch-pruning's dependency graph
finds those layers and takes the channels out of everything that reads them.
"""

import copy
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import torch
import torch_pruning
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nisynth.errors import ConfigError, one_line


@dataclass(frozen=True)
class Cost:
    """Parameters, and the multiply-accumulates that convolutions and linear layers take for one image."""

    parameters: int
    macs: int


def cost(network: nn.Module, input_px: int) -> Cost:
    """Returns the cost for one `(3, input_px, input_px)` image; bias, BatchNorm and pooling count no MACs."""
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, input_px, input_px, device=device))
    return Cost(sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2)


def prunable_layers(network: nn.Module, input_px: int, patterns: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns the names of the convolutions that can lose filters, in module order.

    patterns: shell patterns such as `layer*.conv1` that a name must match; none: all. Raises ConfigError
    for a network that torch-pruning cannot follow, and for a pattern that matches nothing.
    """
    ours = copy.deepcopy(network).eval().requires_grad_(True)
    graph = _graph(ours, input_px)
    free = [
        name
        for name, layer in ours.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and _is_free(graph, layer)
    ]
    for pattern in patterns:
        if not fnmatch.filter(free, pattern):
            raise ConfigError(f"layers: {pattern!r} matches none of {', '.join(free) or 'no layer'}")
    chosen = [name for name in free if not patterns or any(fnmatch.fnmatch(name, p) for p in patterns)]
    if not chosen:
        raise ConfigError(
            "teacher.arch: additions tie every convolution of this network to another; none can lose filters"
        )
    return tuple(chosen)


def num_kept(num_filters: int, ratio: float) -> int:
    """Returns int(n (1 - ratio)), at least 1; in decimals, since binary floats keep 1 of 20 at 0.9, not 2."""
    return max(1, int(num_filters * (1 - Decimal(str(ratio)))))


def remove_filters(network: nn.Module, ratio: float, layers: Sequence[str], input_px: int) -> nn.Module:
    """Returns a copy of the network whose named layers keep their `num_kept` filters of largest L1 norm.

    The norms are those of the network given, so the order of the layers changes nothing. The network itself
    is left alone; of equal norms the earlier filter stays.
    """
    pruned = copy.deepcopy(network).eval().requires_grad_(True)
    graph = _graph(pruned, input_px)
    for name in layers:
        layer = pruned.get_submodule(name)
        original = network.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        assert isinstance(original, nn.Conv2d)
        norms = original.weight.detach().abs().flatten(1).sum(1)
        order = norms.argsort(descending=True, stable=True)
        lost = sorted(order[num_kept(len(norms), ratio) :].tolist())
        if lost:
            graph.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, idxs=lost).prune()
    return pruned.requires_grad_(False)


def widths(network: nn.Module, layers: Sequence[str]) -> dict[str, int]:
    """Returns the number of filters of every layer named."""
    return {name: len(network.get_submodule(name).get_parameter("weight")) for name in layers}


def _graph(network: nn.Module, input_px: int) -> Any:
    """Returns the dependency graph; tracing follows gradients, so the network's parameters must take them."""
    device = next(network.parameters()).device
    image = torch.zeros(1, 3, input_px, input_px, device=device)
    try:
        return torch_pruning.DependencyGraph().build_dependency(network, example_inputs=image)
    except Exception as error:  # the user's network runs in there, and may raise anything
        raise ConfigError(
            f"teacher.arch: torch-pruning cannot follow this network ({one_line(error)})"
        ) from error


def _is_free(graph: Any, layer: nn.Conv2d) -> bool:
    """Returns whether no other convolution or linear layer must lose the same output channels."""
    outputs = (torch_pruning.prune_conv_out_channels, torch_pruning.prune_linear_out_channels)
    group = graph.get_pruning_group(layer, outputs[0], idxs=list(range(layer.out_channels)))
    return {edge.target.module for edge, _ in group if edge.handler in outputs} == {layer}
