"""Convolution, bias, residual sum and ReLU as one cuDNN call, for the pass that needs no gradient.

cuDNN runs the four as one kernel, which touches its output once. The calls are custom operators, so that
torch.compile takes them as they are; on a CPU they are the plain operations, for the tests.
"""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

_RELU: tuple[Any, ...] = (F.relu, torch.relu, "relu", "relu_")
_ADD: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")


@torch.library.custom_op("nisynth::conv_relu", mutates_args=())
def conv_relu(
    x: Tensor, weight: Tensor, bias: Tensor, stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """Returns relu(conv(x) + bias)."""
    if x.is_cuda:
        return torch.cudnn_convolution_relu(x, weight, bias, stride, padding, dilation, groups)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups).relu_()


@torch.library.custom_op("nisynth::conv_add_relu", mutates_args=())
def conv_add_relu(
    x: Tensor, other: Tensor, weight: Tensor, bias: Tensor, stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """Returns relu(conv(x) + bias + other)."""
    if x.is_cuda:
        return torch.cudnn_convolution_add_relu(
            x, weight, other, 1.0, bias, stride, padding, dilation, groups
        )
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups).add_(other).relu_()


@conv_relu.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


@conv_add_relu.register_fake
def _(
    x: Tensor, other: Tensor, weight: Tensor, bias: Tensor, stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def fuse_activations(traced: fx.GraphModule) -> None:
    """Replaces relu(conv(x)) and relu(conv(x) + other) of a graph by one call each."""
    for relu in list(traced.graph.nodes):
        if not is_relu(traced, relu):
            continue
        before = relu.args[0]
        if is_add(before) and len(before.users) == 1:
            # The later of the two operands is the convolution that may swallow the sum.
            order = {node: i for i, node in enumerate(traced.graph.nodes)}
            left, right = sorted(before.args, key=lambda node: order[node])
            if _is_lone_convolution(traced, right) and left is not right:
                _replace(traced, relu, right, torch.ops.nisynth.conv_add_relu.default, left)
        elif _is_lone_convolution(traced, before):
            _replace(traced, relu, before, torch.ops.nisynth.conv_relu.default)
    traced.graph.eliminate_dead_code()
    traced.recompile()


def is_relu(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Returns whether a node is a ReLU, in any of torch's spellings."""
    if node.op == "call_module":
        return type(traced.get_submodule(str(node.target))) is nn.ReLU
    return node.op in ("call_function", "call_method") and node.target in _RELU


def is_add(node: Any) -> bool:
    """Returns whether this is a node that adds two nodes."""
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method"):
        return False
    nodes = all(isinstance(arg, fx.Node) for arg in node.args)
    return node.target in _ADD and nodes and len(node.args) == 2 and not node.kwargs


def _is_lone_convolution(traced: fx.GraphModule, node: Any) -> bool:
    """Returns whether this is a convolution with one reader, of a shape that cuDNN fuses.

    That is: no groups, and numbers of channels that fill the 16 bytes which its 16-bit kernels read at once.
    """
    if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.users) > 1:
        return False
    conv = traced.get_submodule(str(node.target))
    if type(conv) is not nn.Conv2d or conv.bias is None or conv.padding_mode != "zeros":
        return False
    aligned = conv.in_channels % 8 == 0 and conv.out_channels % 8 == 0
    return aligned and conv.groups == 1 and not isinstance(conv.padding, str)


def _replace(traced: fx.GraphModule, relu: fx.Node, conv_node: fx.Node, call: Any, *others: fx.Node) -> None:
    conv = traced.get_submodule(str(conv_node.target))
    assert isinstance(conv, nn.Conv2d)
    with traced.graph.inserting_before(relu):
        weight = traced.graph.get_attr(f"{conv_node.target}.weight")
        bias = traced.graph.get_attr(f"{conv_node.target}.bias")
        shape: Any = (list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups)
        fused = traced.graph.call_function(call, (conv_node.args[0], *others, weight, bias, *shape))
    relu.replace_all_uses_with(fused)
    traced.graph.erase_node(relu)
