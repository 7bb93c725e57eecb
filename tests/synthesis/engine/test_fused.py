"""The teacher's graphs against the teacher: equal values, fewer operations, and refusals in one line."""

import functools
import math
from collections import Counter
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nisynth.images import Normalization
from nisynth.synthesis.engine.activations import fuse_activations
from nisynth.synthesis.engine.fused import FusedTeacher
from nisynth.synthesis.engine.precision import Arithmetic
from nisynth.synthesis.engine.tracing import Untraceable
from nisynth.teachers import Teacher, build_network
from nisynth.teachers.registry import REGISTRY
from tests.synthesis.conftest import MakeTeacher


class Operations(TorchDispatchMode):
    """Counts the operations that run inside it, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def wrap(network: nn.Module, input_px: int = 16, taps: Any = None) -> Any:
    """A teacher around a network whose BatchNorms have something to remember."""
    rng = torch.Generator().manual_seed(3)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3, generator=rng)
            layer.running_var.uniform_(0.5, 2.0, generator=rng)
            layer.weight.data.uniform_(0.5, 1.5, generator=rng)
            layer.bias.data.normal_(0, 0.3, generator=rng)
    with torch.no_grad():
        num_classes = network.eval()(torch.zeros(1, 3, input_px, input_px)).shape[1]
    return Teacher(
        network,
        normalization=Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        classes=[str(c) for c in range(num_classes)],
        input_px=input_px,
        taps=taps,
    )


def images(side_px: int = 16, batch_size: int = 4) -> Any:
    return torch.randn((batch_size, 3, side_px, side_px), generator=torch.Generator().manual_seed(1))


def assert_close(actual: Any, expected: Any, error: float = 1e-4) -> None:
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        assert float((a.float() - b).norm() / b.norm()) < error


def assert_stands_for(fused: Any, teacher: Teacher, error: float = 1e-4) -> None:
    x = images(teacher.input_px)
    with torch.no_grad():
        assert_close(fused.features(x), teacher.features(x), error)
        (logits, inputs), (wanted, wanted_inputs) = (
            fused.logits_and_bn_inputs(x),
            teacher.logits_and_bn_inputs(x),
        )
    assert_close([logits, *inputs], [wanted, *wanted_inputs], error)


def operations(run: Any) -> Any:
    with torch.no_grad(), Operations() as seen:
        run()
    return seen.count


@pytest.mark.parametrize("arch", list(REGISTRY))
def test_registered_teachers_lose_every_batch_norm_in_the_feature_pass(arch: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = wrap(build_network(arch, 10), input_px=32)
    fused = FusedTeacher(teacher)
    assert_stands_for(fused, teacher)
    own = operations(lambda: teacher.features(images(32)))
    assert own["native_batch_norm"] == len(teacher.batch_norms)
    assert operations(lambda: fused.features(images(32)))["native_batch_norm"] == 0
    assert operations(lambda: fused.logits_and_bn_inputs(images(32)))["native_batch_norm"] == len(
        teacher.batch_norms
    )


def test_the_feature_pass_ends_at_the_deepest_tap() -> None:
    teacher = wrap(build_network("vgg11", 10), input_px=32)
    assert [tap.side_px for tap in teacher.taps] == [32, 16, 8, 4]
    fused = FusedTeacher(teacher)
    count = operations(lambda: fused.features(images(32)))
    assert (count["convolution"], count["addmm"]) == (6, 0)  # of 8 convolutions and 3 linear layers


def test_a_network_of_an_odd_shape(odd_teacher: Teacher) -> None:
    assert_stands_for(FusedTeacher(odd_teacher), odd_teacher)


def test_without_folding_nothing_changes_but_the_hooks(odd_teacher: Teacher) -> None:
    x, fused = images(), FusedTeacher(odd_teacher, folded=False)
    with torch.no_grad():
        pairs = zip(fused.features(x), odd_teacher.features(x), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_gradients_reach_the_image_and_no_weight(odd_teacher: Teacher) -> None:
    x = images().requires_grad_()
    fused = FusedTeacher(odd_teacher)
    for graph, own in (
        (fused.features, odd_teacher.features),
        (fused.logits_and_bn_inputs, odd_teacher.logits_and_bn_inputs),
    ):
        flat = [torch.utils._pytree.tree_leaves(f(x)) for f in (graph, own)]
        given, wanted = (torch.autograd.grad(sum((t**2).sum() for t in part), x)[0] for part in flat)
        torch.testing.assert_close(given, wanted, rtol=1e-3, atol=1e-3)
    assert not any(p.requires_grad for p in odd_teacher.network.parameters())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_sixteen_bit_weights_are_a_copy(odd_teacher: Teacher, memory_format: torch.memory_format) -> None:
    fused = FusedTeacher(odd_teacher, torch.bfloat16, memory_format)
    with torch.autocast("cpu", torch.bfloat16):
        assert_stands_for_roughly(fused, odd_teacher)
    assert all(p.dtype == torch.float32 for p in odd_teacher.network.parameters())


def test_fused_activations_give_the_same_features(shipped_teacher: Teacher) -> None:
    fused = FusedTeacher(shipped_teacher, activations=True)
    assert_stands_for(fused, shipped_teacher)
    count = operations(lambda: fused.features(images(32)))
    assert count["conv_relu"] + count["conv_add_relu"] == 18  # of 19 ReLUs: the stem has 3 channels


def assert_stands_for_roughly(fused: Any, teacher: Teacher) -> None:
    with torch.no_grad():
        values = fused.features(images())
        with torch.autocast("cpu", enabled=False):
            wanted = teacher.features(images())
    assert all(value.dtype == torch.bfloat16 for value in values)
    assert_close(values, wanted, error=0.05)


class PreActivation(nn.Module):
    """BatchNorm before its convolution, after a sum, and after a convolution that something else reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv1 = nn.Conv2d(6, 6, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(6)
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out))) + x
        return self.linear(F.relu(self.bn3(out)).mean((2, 3)))


def test_only_what_directly_follows_its_own_convolution_is_folded() -> None:
    teacher = wrap(PreActivation(), taps=["bn3"])
    fused = FusedTeacher(teacher)
    assert_stands_for(fused, teacher)
    # bn1: the stem's output is read twice; bn3: behind a sum. Only bn2 goes.
    assert operations(lambda: fused.features(images()))["native_batch_norm"] == 2


class Reused(nn.Module):
    """One convolution that runs twice, each time before another BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Any:
        return self.second(self.conv(self.first(self.conv(x)))).mean((2, 3))


def test_a_convolution_that_runs_twice_keeps_its_weights() -> None:
    teacher = wrap(Reused())
    assert_stands_for(FusedTeacher(teacher), teacher)


def test_a_convolution_that_is_a_tap_keeps_its_output() -> None:
    teacher = wrap(PreActivation(), taps=["conv1", "bn3"])
    fused = FusedTeacher(teacher)
    assert_stands_for(fused, teacher)
    assert operations(lambda: fused.features(images()))["native_batch_norm"] == 3


class InPlace(nn.Module):
    """In-place ReLUs, one of which writes over a tap."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn1 = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.bn2, self.relu = nn.BatchNorm2d(5), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Any:
        y = self.bn1(self.conv(x))
        z = self.bn2(y * 1) + self.relu(y)
        return self.relu(z).mean((2, 3))


def test_a_value_that_is_overwritten_is_read_before() -> None:
    teacher = wrap(InPlace(), taps=["bn1"])
    assert teacher.tap_sites[0].copied
    assert_stands_for(FusedTeacher(teacher), teacher)


class Head(nn.Module):
    """A network whose output is not a bare tensor."""

    def __init__(self, wrap_output: Any) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.wrap_output = wrap_output

    def forward(self, x: Tensor) -> Any:
        x = self.bn(self.conv(x))
        return self.wrap_output(x.mean((2, 3)), x)


@pytest.mark.parametrize("wrap_output", [lambda a, b: (a, b), lambda a, b: {"logits": a, "map": b}])
def test_logits_may_lie_in_a_tuple_or_a_mapping(wrap_output: Any) -> None:
    network = Head(wrap_output).eval()
    teacher = Teacher(
        network, normalization=Normalization((0.5,) * 3, (0.25,) * 3), classes=list("abcd"), input_px=16
    )
    assert_stands_for(FusedTeacher(teacher), teacher)


class Branching(Head):
    def forward(self, x: Tensor) -> Any:
        x = self.bn(self.conv(x))
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


class WrittenView(Head):
    """Writes in place through a view, which a graph of values cannot say."""

    def forward(self, x: Tensor) -> Any:
        x = self.bn(self.conv(x))
        x.view(-1).relu_()
        return x.mean((2, 3))


class WithoutGradient(Head):
    """A part of forward that a graph would give a gradient."""

    def forward(self, x: Tensor) -> Any:
        x = self.bn(self.conv(x))
        with torch.no_grad():
            gate = x.sigmoid()
        return (x * gate).mean((2, 3))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Branching, "torch.fx cannot trace the teacher: TraceError: .*control flow"),
        (WrittenView, "the teacher's graph and its forward pass give different values"),
        (WithoutGradient, "the gradient of the teacher's graph is not that of its forward"),
    ],
)
def test_what_cannot_be_a_graph_is_refused_in_one_line(network: nn.Module, message: str) -> None:
    with pytest.raises(Untraceable, match=message) as refusal:
        FusedTeacher(wrap(network(None)))
    assert "\n" not in str(refusal.value)


def test_a_teacher_that_gives_nan_is_still_a_graph(make_teacher: MakeTeacher) -> None:
    """Its tasks fail by their loss, as in the plain loop."""
    teacher = make_teacher()
    teacher.batch_norms[0].running_mean[0] = math.nan
    FusedTeacher(teacher)


class Residual(nn.Module):
    """The shapes of conv-add-relu: an identity beside, a convolution beside, a doubled sum, a lone ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Any:
        y = self.relu(self.a(x) + x)
        y = F.relu(self.c(y) + self.b(y))
        z = self.b(y).relu()
        z = torch.relu(z + z)
        kept = self.c(z)
        return F.relu(kept) + kept


def test_activations_move_into_their_convolutions() -> None:
    network = Residual().requires_grad_(False)
    traced = fx.symbolic_trace(network)
    x = torch.randn((2, 8, 6, 6), generator=torch.Generator().manual_seed(0))
    expected = network(x)
    fuse_activations(traced)
    torch.testing.assert_close(traced(x), expected)
    calls = Counter(str(node.target) for node in traced.graph.nodes)
    assert (calls["nisynth.conv_relu.default"], calls["nisynth.conv_add_relu.default"]) == (1, 2)
    names = [node.name for node in traced.graph.nodes if "relu" in node.name and "conv" not in node.name]
    assert len(names) == 2  # of a doubled sum, and of a convolution that is read once more


@pytest.mark.parametrize("op", ["conv_relu", "conv_add_relu"])
def test_the_operators_keep_torchs_contract(op: str) -> None:
    x, weight, bias = torch.randn(2, 4, 6, 6), torch.randn(4, 4, 3, 3), torch.randn(4)
    inputs = (x, torch.randn(2, 4, 6, 6)) if op == "conv_add_relu" else (x,)
    torch.library.opcheck(
        getattr(torch.ops.nisynth, op).default, (*inputs, weight, bias, [1, 1], [1, 1], [1, 1], 1)
    )


def rounded_to_tf32(convolve: Any, x: Tensor, weight: Tensor, bias: Any) -> Any:
    """A convolution of factors with TF32's 10 bits of fraction."""

    def short(value: Any) -> Any:
        scale = torch.exp2(10 - torch.floor(torch.log2(value.abs().clamp_min(1e-30))))
        return (value * scale).round() / scale

    return convolve(short(x), short(weight), bias)


def test_graphs_are_compared_in_float32_whatever_the_engine_computes_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU: between a folded BatchNorm and a separate one, TF32's rounding alone differs by 2e-3."""
    convolve, backends = nn.Conv2d._conv_forward, cast(Any, torch.backends)

    def forward(self: Any, x: Tensor, weight: Tensor, bias: Any) -> Any:
        if backends.cudnn.conv.fp32_precision != "tf32":
            return convolve(self, x, weight, bias)
        return rounded_to_tf32(functools.partial(convolve, self), x, weight, bias)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = wrap(build_network("resnet56", 10), input_px=32)
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", forward)
    with Arithmetic("tf32").applied(torch.device("cpu")):
        fused = FusedTeacher(teacher)
        x = images(32)
        with torch.no_grad():
            separate, folded = teacher.features(x)[-1], fused.features(x)[-1]
    assert float((folded - separate).norm() / separate.norm()) > 1e-3


def test_sixteen_bits_are_judged_by_their_distance_from_float32() -> None:
    """Deep networks round by more than 5 %, however they are computed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = wrap(build_network("resnet56", 10), input_px=32)
    options = {"activations": True, "statistics": True, "normalization": True}
    fused = FusedTeacher(teacher, torch.bfloat16, torch.channels_last, **options)
    assert fused.notes == []


def test_a_fused_graph_that_is_wrong_is_left_out(
    shipped_teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(traced: Any) -> None:
        next(traced.parameters()).data *= 1.1

    monkeypatch.setattr("nisynth.synthesis.engine.fused.fuse_activations", wrong)
    fused = FusedTeacher(shipped_teacher, torch.bfloat16, activations=True)
    (note,) = fused.notes
    assert note == "no cuDNN's fused activations (its values differ from those of the separate operations)"
