"""BatchNorm, sum, ReLU and moments as one operator: values, gradient, kernel, and its place in a graph.

The kernel runs in Triton's interpreter here, which needs no GPU, and is compiled for GPUs not at hand.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nisynth.images import Normalization
from nisynth.synthesis.engine.fused import FusedTeacher
from nisynth.synthesis.engine.normalization import norm_relu
from nisynth.synthesis.engine.statistics import moments
from nisynth.teachers import Teacher

SHAPE = (3, 40, 6, 5)


def values(*shape: Any, seed: int = 0) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(with_other: Any, dtype: torch.dtype = torch.float32) -> Any:
    """x, other, mean, scale and bias of a layer whose map has the channels innermost."""
    x, other = (values(*SHAPE, seed=i).to(dtype, memory_format=torch.channels_last) for i in (1, 2))
    mean, scale, bias = (values(SHAPE[1], seed=i) for i in (3, 4, 5))
    return [x.requires_grad_(), other.requires_grad_() if with_other else None, mean, scale, bias]


def separate(x: Tensor, other: Any, mean: Any, scale: Any, bias: Any) -> Any:
    """The same by torch's own operations."""
    var = torch.ones_like(mean)
    y = F.batch_norm(x, mean, var, scale, bias, eps=0.0)
    return F.relu(y if other is None else y + other), moments(x, mean)


@pytest.mark.parametrize("with_other", [False, True])
def test_values_and_gradients_are_those_of_the_separate_operations(with_other: bool) -> None:
    given, ours = [], inputs(with_other)
    leaves = [t for t in ours if t is not None and t.requires_grad]
    weights = values(*SHAPE, seed=6), values(SHAPE[0], 2, SHAPE[1], seed=7)
    for function in (norm_relu, separate):
        y, of_images = function(*ours)
        loss = (y * weights[0]).sum() + (of_images * weights[1]).sum()
        given.append([y, of_images, *torch.autograd.grad(loss, leaves)])
    assert len(given[0]) == 3 + with_other
    for value, wanted in zip(*given, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)
    assert given[0][0].is_contiguous(memory_format=torch.channels_last)


# opcheck looks at the gradients of copies that are no leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("with_other", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_keeps_torchs_contract(with_other: bool, dtype: torch.dtype) -> None:
    torch.library.opcheck(torch.ops.nisynth.norm_relu.default, inputs(with_other, dtype))


def test_nan_stays() -> None:
    x, _, mean, scale, bias = inputs(False)
    x = x.detach().clone()
    x[0, 0, 0, 0] = torch.nan
    y, of_images = norm_relu(x, None, mean, scale, bias)
    assert y[0, 0, 0, 0].isnan()
    assert of_images[0, :, 0].isnan().all()


KERNEL = """
import itertools, torch
from nisynth.synthesis.engine.normalization import norm_relu
from nisynth.synthesis.engine.normalization_kernel import launch

rng = torch.Generator().manual_seed(0)
shapes = (3, 40, 9, 8), (2, 130, 2, 3), (1, 3, 1, 1)
for shape, dtype, with_other in itertools.product(shapes, (torch.float32, torch.bfloat16), (False, True)):
    x, other = (torch.randn(shape, generator=rng).to(dtype, memory_format=torch.channels_last) for _ in "xo")
    if shape[2] > 2:
        x[0, 0, 0, 0] = torch.nan
    layer = [torch.randn(shape[1], generator=rng) for _ in range(3)]
    given = launch(x, other if with_other else None, *layer)
    wanted = norm_relu(x, other if with_other else None, *layer)
    assert given[0].dtype == dtype and given[1].dtype == torch.float32
    assert given[0].is_contiguous(memory_format=torch.channels_last)
    rounding = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(given[0], wanted[0], rtol=rounding, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(given[1], wanted[1], rtol=1e-5, atol=1e-5, equal_nan=True)
"""

COMPILE = """
import itertools, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from nisynth.synthesis.engine.normalization_kernel import (
    NARROW, NUM_WARPS, ROWS, WIDE, norm_relu_kernel,
)

floats = dict.fromkeys(("mean", "scale", "bias", "moments"), "*fp32")
sizes = dict.fromkeys(("pixels", "channels"), "i32")
cards, types, widths = (80, 90), ("*bf16", "*fp32"), (NARROW, WIDE)
for card, of_map, columns, has_other in itertools.product(cards, types, widths, (False, True)):
    constants = {"has_other": has_other, "rows": ROWS, "columns": columns}
    maps = dict.fromkeys(("x", "other", "y"), of_map)
    signature = floats | sizes | maps | dict.fromkeys(constants, "constexpr")
    source = ASTSource(norm_relu_kernel, signature, constants)
    kernel = triton.compile(source, target=GPUTarget("cuda", card, 32), options={"num_warps": NUM_WARPS})
    assert kernel.asm["cubin"]
    assert ".local" not in kernel.asm["ptx"]
"""


def run(script: Any, tmp_path: Path, **environment: Any) -> None:
    pytest.importorskip("triton", reason="no Triton for this platform")
    variables = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_kernel_computes_what_the_operator_does(tmp_path: Path) -> None:
    run(KERNEL, tmp_path, TRITON_INTERPRET="1")


def test_the_kernel_compiles_for_ampere_and_hopper(tmp_path: Path) -> None:
    run(COMPILE, tmp_path)


def teacher_of(network: nn.Module, input_px: int = 16) -> Any:
    rng = torch.Generator().manual_seed(3)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3, generator=rng)
            layer.running_var.uniform_(0.5, 2.0, generator=rng)
            if layer.affine:
                layer.weight.data.uniform_(-1.5, 1.5, generator=rng)
                layer.bias.data.normal_(0, 0.3, generator=rng)
    normalization = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return Teacher(network.eval(), normalization=normalization, classes=list("abcd"), input_px=input_px)


def observed(teacher: Teacher, **options: Any) -> Any:
    """Logits and moments, and the gradient of their sum, of one way to observe."""
    fused = FusedTeacher(teacher, torch.float32, torch.channels_last, statistics=True, **options)
    assert fused.notes == []
    x = values(4, 3, teacher.input_px, teacher.input_px, seed=1).requires_grad_()
    logits, of_layers = fused.logits_and_bn_inputs(x)
    loss = logits.square().sum() + sum(m.square().sum() for m in of_layers)
    return fused, [logits, *of_layers, *torch.autograd.grad(loss, [x])]


def operators(fused: Any) -> Any:
    """How many BatchNorms of the loss pass take the operator."""
    return sum("norm_relu" in str(node.target) for node in fused._observing.graph.nodes)


class Shapes(nn.Module):
    """Every place of a BatchNorm: before a ReLU, a sum, two readers, another activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ModuleList(nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1) for i in range(6))
        self.norm = nn.ModuleList(nn.BatchNorm2d(6, affine=i != 1) for i in range(6))
        self.relu = nn.ReLU(inplace=True)
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.relu(self.norm[0](self.conv[0](x)))  # fused
        y = self.norm[1](self.conv[1](x))
        y += x
        x = self.relu(y)  # fused, with a sum in place
        x = F.relu(self.norm[2](self.conv[2](x)) + self.norm[3](self.conv[3](x)))  # one of the two
        x = F.leaky_relu(self.norm[4](self.conv[4](x)))  # not
        y = self.norm[5](self.conv[5](x))
        return self.linear((F.relu(y) + y).mean((2, 3)))  # not: two readers


def test_only_a_batch_norm_before_a_relu_takes_the_operator() -> None:
    teacher = teacher_of(Shapes())
    _, wanted = observed(teacher)
    fused, given = observed(teacher, normalization=True)
    assert operators(fused) == 3
    assert len(given) == len(wanted) == 8
    for value, expected in zip(given, wanted, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_all_batch_norms_of_a_residual_network_but_those_beside_it_take_the_operator(
    shipped_teacher: Teacher,
) -> None:
    _, wanted = observed(shipped_teacher)
    fused, given = observed(shipped_teacher, normalization=True)
    assert operators(fused) == 19
    for value, expected in zip(given, wanted, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-3)


def test_a_device_that_cannot_run_it_does_without_and_says_so(
    shipped_teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr("nisynth.synthesis.engine.normalization._affine", broken)
    fused = FusedTeacher(shipped_teacher, statistics=True, normalization=True)
    assert fused.notes == ["no normalization in one read (RuntimeError: no kernel image is available)"]
    logits, _ = fused.logits_and_bn_inputs(values(2, 3, 32, 32))
    assert logits.shape == (2, 10)
