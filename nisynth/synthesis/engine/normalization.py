"""BatchNorm, residual sum, ReLU and the moments for R_BN in one read of the map.

torch's compiler makes two kernels of these, one that writes every value and one that sums over them, and so
reads each BatchNorm's input twice. This operator is one Triton kernel on a GPU (`normalization_kernel`) and
the plain operations on a CPU, for the tests. Its backward pass is plain operations everywhere, which the
compiler joins with their neighbours.
"""

import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from nisynth.synthesis.engine.activations import is_add, is_relu
from nisynth.synthesis.engine.statistics import moments
from nisynth.synthesis.inversion.priors import at_least_float32
from nisynth.teachers.trace import Site


@torch.library.custom_op("nisynth::norm_relu", mutates_args=())
def norm_relu(
    x: Tensor, other: Tensor | None, mean: Tensor, scale: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns relu(d * scale + bias [+ other]) with d = x - mean, and what `moments(x, mean)` returns.

    x, other: `(B, C, H, W)`; the result has x's type and the channels innermost. The others: `(C,)` float32.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    if other is not None:
        other = other.contiguous(memory_format=torch.channels_last)
    if x.is_cuda:
        from nisynth.synthesis.engine.normalization_kernel import launch

        return launch(x, other, mean, scale, bias)
    y = _affine(_distance(x, mean), scale, bias)
    y = (y if other is None else y + other).relu().to(x.dtype)
    return y.contiguous(memory_format=torch.channels_last), moments(x, mean)


@norm_relu.register_fake
def _(x: Tensor, other: Tensor | None, mean: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=torch.channels_last)
    dtype = torch.promote_types(x.dtype, torch.float32)
    return y, x.new_empty((x.shape[0], 2, x.shape[1]), dtype=dtype)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, other, mean, scale, bias = inputs
    ctx.save_for_backward(x, None if other is None else output[0], mean, scale, bias)


def _gradients(ctx: Any, of_y: Tensor, of_moments: Tensor) -> tuple[Tensor | None, ...]:
    """Returns the gradients of x and other, from those of relu(d * scale + bias + other) and of the moments.

    With M = HW pixels, first = sum(d) / M and second = sum(d^2) / M, so that d first / dx = 1 / M and
    d second / dx = 2 d / M: a constant and a multiple of d for each image and channel.
    """
    x, y, mean, scale, bias = ctx.saved_tensors
    d = _distance(x, mean)
    # Where the ReLU let a value through. Without `other` that follows from x, which must be read anyway for
    # d; so y need not be kept. With `other`, keeping y is cheaper than keeping `other`.
    passed = _affine(d, scale, bias) > 0 if y is None else y > 0
    of_sum = torch.where(passed, of_y, 0.0)  # of the ReLU's argument
    offset, slope = (of_moments / (x.shape[2] * x.shape[3]))[..., None, None].unbind(1)
    # x reaches the loss in two ways: through the ReLU's argument, of slope scale, and through the moments.
    of_x = of_sum * scale[:, None, None] + (offset + 2 * slope * d)
    return of_x.to(x.dtype), None if y is None else of_sum, None, None, None


norm_relu.register_autograd(_gradients, setup_context=_keep_inputs)


def _distance(x: Tensor, mean: Tensor) -> Tensor:
    return at_least_float32(x) - mean[:, None, None]


def _affine(d: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return d * scale[:, None, None] + bias[:, None, None]


def return_moments(traced: fx.GraphModule, sites: Sequence[Site], *, fused: bool) -> None:
    """Makes a graph that returns (logits, each site's BatchNorm input) return their `moments` instead.

    fused: where a ReLU follows, directly or behind a sum, `norm_relu` computes them with both.
    """
    (output,) = traced.graph.find_nodes(op="output")
    calls = dict(_calls(traced))
    for i, site in enumerate(sites, 1):
        assert isinstance(site.module, nn.BatchNorm2d)
        x = output.args[0][i]
        found = _activation(traced, calls.get((site.module, site.call))) if fused else None
        at = output if found is None else found[0]
        with traced.graph.inserting_before(at):
            mean, scale, bias = (
                _constant(traced, f"_{name}_{i}", value) for name, value in _remembered(site.module).items()
            )
            if found is None:
                of_x = traced.graph.call_function(moments, (x, mean))
            else:
                both = traced.graph.call_function(
                    torch.ops.nisynth.norm_relu.default, (x, found[1], mean, scale, bias)
                )
                y, of_x = (traced.graph.call_function(operator.getitem, (both, part)) for part in (0, 1))
                at.replace_all_uses_with(y)
        ends = output.args[0]
        output.args = ((*ends[:i], of_x, *ends[i + 1 :]),)
    traced.graph.eliminate_dead_code()
    traced.recompile()


def _remembered(norm: nn.BatchNorm2d) -> dict[str, Tensor]:
    """Returns a frozen BatchNorm as d * scale + bias, with d the distance from its running mean."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight.detach()
    bias = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias.detach()
    scale = weight * torch.rsqrt(norm.running_var + norm.eps)
    return {"mean": norm.running_mean, "scale": scale, "bias": bias}


def _constant(traced: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    traced.register_buffer(name, value, persistent=False)
    return traced.graph.get_attr(name)


def _calls(traced: fx.GraphModule) -> Iterator[tuple[tuple[nn.Module, int], fx.Node]]:
    """Yields (module, how many calls of it came before) and the node of each BatchNorm2d's call."""
    calls: Counter[nn.Module] = Counter()
    for node in traced.graph.find_nodes(op="call_module"):
        module = traced.get_submodule(str(node.target))
        if type(module) is nn.BatchNorm2d:
            yield (module, calls[module]), node
        calls[module] += 1


def _activation(traced: fx.GraphModule, call: fx.Node | None) -> tuple[fx.Node, fx.Node | None] | None:
    """Returns the ReLU that alone reads the call, and what is added to it before, if anything is."""
    after = _only_user(call)
    if after is None or is_relu(traced, after):
        return None if after is None else (after, None)
    relu = _only_user(after)
    if not is_add(after) or relu is None or not is_relu(traced, relu):
        return None
    others = [arg for arg in after.all_input_nodes if arg is not call]
    return (relu, others[0]) if len(others) == 1 else None


def _only_user(node: fx.Node | None) -> fx.Node | None:
    users = [] if node is None else list(node.users)
    return users[0] if len(users) == 1 else None
