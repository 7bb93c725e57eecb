"""What a Teacher shows of its network: logits, taps, BatchNorm inputs, and no trace of having looked."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nisynth.errors import TeacherError
from nisynth.images import Normalization
from nisynth.teachers import Tap, Teacher, load_teacher

HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def teacher_of(network: nn.Module, num_classes: int = 4, **fields: object) -> Teacher:
    fields = {"input_px": 16, "classes": [f"class {i}" for i in range(num_classes)], **fields}
    return Teacher(network, normalization=HALF, **fields)


def images(batch: int = 3, side_px: int = 16) -> Tensor:
    return torch.randn(batch, 3, side_px, side_px, generator=torch.Generator().manual_seed(1))


class OddNet(nn.Module):
    """Three stages of odd widths; what it does between and behind them is the test's choice."""

    def __init__(
        self,
        inplace: bool = False,
        wrap: Callable[[Tensor], object] = lambda logits: logits,
        tail: nn.Module | None = None,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace))
        self.b = nn.Sequential(nn.Conv2d(5, 7, 3, 2, padding=1), nn.BatchNorm2d(7), nn.ReLU(inplace))
        self.c = nn.Sequential(nn.Conv2d(7, 11, 3, 2, padding=1), nn.BatchNorm2d(11), nn.ReLU(inplace))
        self.head = nn.Linear(11, 4)
        self.tail = tail
        self.wrap = wrap
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> object:
        out = self.c(self.b(self.a(x)))
        if self.tail is not None:
            out = self.tail(out)
        return self.wrap(self.head(out.mean((2, 3))))


def literal_resnet20(state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """ResNet-20 written out: logits, stage outputs, and every BatchNorm's input by name."""
    inputs: dict[str, Tensor] = {}

    def norm(name: str, y: Tensor) -> Tensor:
        inputs[name] = y
        mean, var, weight, bias = (
            state[f"{name}.{part}"].view(1, -1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / (var + 1e-5).sqrt() * weight + bias

    out = norm("bn1", F.conv2d(x, state["conv1.weight"], padding=1)).clamp(min=0)
    stages = []
    for stage in (1, 2, 3):
        for block in (0, 1, 2):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = norm(f"{at}.bn1", F.conv2d(out, state[f"{at}.conv1.weight"], stride=stride, padding=1))
            y = norm(f"{at}.bn2", F.conv2d(y.clamp(min=0), state[f"{at}.conv2.weight"], padding=1))
            if stride == 2:
                out = norm(f"{at}.shortcut.1", F.conv2d(out, state[f"{at}.shortcut.0.weight"], stride=2))
            out = (y + out).clamp(min=0)
        stages.append(out)
    return out.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"], stages, inputs


@pytest.fixture(scope="module")
def resnet20() -> Teacher:
    return load_teacher(arch="resnet20")


def test_resnet20_against_a_forward_written_out(resnet20: Teacher) -> None:
    x = images(2, 32)
    logits, stages, inputs = literal_resnet20(resnet20.network.state_dict(), x)
    seen_logits, seen_inputs = resnet20.logits_and_bn_inputs(x)
    torch.testing.assert_close(seen_logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(resnet20.features(x), stages, rtol=1e-4, atol=1e-4)
    assert set(resnet20.batch_norm_names) == set(inputs)
    for name, seen in zip(resnet20.batch_norm_names, seen_inputs, strict=True):
        torch.testing.assert_close(seen, inputs[name], rtol=1e-4, atol=1e-4)


def test_batch_norms_are_in_module_order(resnet20: Teacher) -> None:
    modules = dict(resnet20.network.named_modules())
    expected = [name for name, module in modules.items() if isinstance(module, nn.BatchNorm2d)]
    assert list(resnet20.batch_norm_names) == expected
    assert expected[7:10] == ["layer2.0.bn1", "layer2.0.bn2", "layer2.0.shortcut.1"]
    assert all(modules[name] is norm for name, norm in zip(expected, resnet20.batch_norms, strict=True))


def test_frozen_and_in_eval_mode(resnet20: Teacher) -> None:
    assert not any(module.training for module in resnet20.network.modules())
    assert not any(parameter.requires_grad for parameter in resnet20.network.parameters())
    before = {name: value.clone() for name, value in resnet20.network.state_dict().items()}
    x = images(4, 32).requires_grad_()
    logits, inputs = resnet20.logits_and_bn_inputs(x)
    (logits.sum() + sum(value.mean() for value in inputs)).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in resnet20.network.parameters())
    after = resnet20.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_features_follow_the_callers_gradient(resnet20: Teacher) -> None:
    x = images(2, 32).requires_grad_()
    assert all(feature.requires_grad for feature in resnet20.features(x))
    with torch.no_grad():
        assert not any(feature.requires_grad for feature in resnet20.features(x))


def num_hooks(network: nn.Module) -> int:
    return sum(
        len(hooks)
        for module in network.modules()
        for name, hooks in vars(module).items()
        if name.endswith("_hooks") and hooks
    )


def test_hooks_leave_no_trace() -> None:
    network = OddNet()
    teacher = teacher_of(network)
    assert num_hooks(network) == 0
    teacher.features(images())
    teacher.logits_and_bn_inputs(images())
    assert num_hooks(network) == 0
    for call in (teacher.features, teacher.logits_and_bn_inputs):
        with pytest.raises(RuntimeError):
            call(torch.zeros(1, 4, 16, 16))
        assert num_hooks(network) == 0
    with pytest.raises(TeacherError):
        teacher_of(OddNet(), input_px=0)


def test_odd_widths_are_traced() -> None:
    teacher = teacher_of(OddNet())
    assert teacher.taps == (Tap("a", 5, 16), Tap("b", 7, 8), Tap("c", 11, 4))
    assert teacher.num_classes == 4
    assert [tuple(feature.shape) for feature in teacher.features(images())] == [
        (3, 5, 16, 16),
        (3, 7, 8, 8),
        (3, 11, 4, 4),
    ]


def test_sides_under_4_px_are_not_tapped() -> None:
    assert [tap.side_px for tap in teacher_of(OddNet(tail=nn.MaxPool2d(2))).taps] == [16, 8, 4]
    assert [tap.side_px for tap in teacher_of(OddNet(), input_px=12).taps] == [12, 6]


def test_the_last_output_of_a_size_is_the_tap() -> None:
    tail = nn.Sequential(nn.Conv2d(11, 13, 1), nn.ReLU(), nn.Conv2d(13, 11, 1))
    assert teacher_of(OddNet(tail=tail)).taps[-1] == Tap("tail", 11, 4)
    # A size that returns deeper in the network is tapped there, and taps stay in execution order.
    teacher = teacher_of(OddNet(tail=nn.Upsample(scale_factor=2)))
    assert teacher.taps == (Tap("a", 5, 16), Tap("c", 11, 4), Tap("tail", 11, 8))


def test_named_taps_come_shallow_to_deep_whatever_their_order() -> None:
    teacher = teacher_of(OddNet(), taps=["c", "a.0", "b.1"])
    assert teacher.taps == (Tap("a.0", 5, 16), Tap("b.1", 7, 8), Tap("c", 11, 4))
    assert teacher.identity["taps"] == ["a.0", "b.1", "c"]


@pytest.mark.parametrize("name", ["a.0", "a.1", "a.2", "b.1"])
def test_a_tap_is_the_value_at_its_point_whatever_is_written_over_it(name: str) -> None:
    plain, inplace = OddNet(inplace=False), OddNet(inplace=True)
    results = []
    for network in (plain, inplace):
        teacher = teacher_of(network, taps=[name])
        x = images().requires_grad_()
        (feature,) = teacher.features(x)
        feature.square().sum().backward()
        results.append((feature.detach(), x.grad))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert name == "a.2" or (results[0][0] < 0).any()


class Overwriting(nn.Module):
    """A BatchNorm2d whose input is overwritten after it was read, which its backward pass needs."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(11)

    def forward(self, x: Tensor) -> Tensor:
        x = x - 1.0
        out = self.bn(x)
        x += out
        return x


def test_a_network_that_has_no_backward_pass_is_refused() -> None:
    with pytest.raises(
        TeacherError, match=r"arch: the network's backward pass raised RuntimeError: .*inplace"
    ):
        teacher_of(OddNet(tail=Overwriting()))


class Sharing(nn.Module):
    """One activation and one BatchNorm, each run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.unused = nn.BatchNorm2d(9)
        self.bn = nn.BatchNorm2d(6)
        self.act = nn.ReLU()
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn(self.stem(x)))
        out = self.act(self.bn(self.pool(out)))
        return self.head(out.mean((2, 3)))


def test_modules_that_run_twice_are_read_call_by_call() -> None:
    teacher = teacher_of(Sharing())
    assert teacher.taps == (Tap("act#0", 6, 16), Tap("act#1", 6, 8))
    assert teacher.batch_norm_names == ("bn#0", "bn#1")  # and not the one that never runs
    assert teacher.batch_norms == (teacher.network.bn,) * 2
    _, inputs = teacher.logits_and_bn_inputs(images())
    features = teacher.features(images())
    assert [value.shape[2] for value in inputs] == [16, 8]
    torch.testing.assert_close(teacher.network.pool(features[0]), inputs[1], rtol=0, atol=0)
    with pytest.raises(TeacherError, match=r"'act' does not name .* it runs 2 times, name .*: act#0, act#1"):
        teacher_of(Sharing(), taps=["act"])


@pytest.mark.parametrize(
    "wrap",
    [lambda y: (y, None), lambda y: [y, y + 1], lambda y: {"loss": None, "logits": y}],
    ids=["tuple", "list", "dict"],
)
def test_logits_are_the_first_tensor(wrap: Callable[[Tensor], object]) -> None:
    plain = teacher_of(OddNet()).logits(images())
    torch.testing.assert_close(teacher_of(OddNet(wrap=wrap)).logits(images()), plain, rtol=0, atol=0)
    torch.testing.assert_close(
        teacher_of(OddNet(wrap=wrap)).logits_and_bn_inputs(images())[0], plain, rtol=0, atol=0
    )


def test_accuracy_normalizes_and_counts_in_any_batch_size() -> None:
    teacher = teacher_of(OddNet())
    pixels = torch.randint(256, (10, 3, 16, 16), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    guess = teacher.network((pixels.float() / 255 - 0.5) / 0.5).argmax(1)
    wrong = torch.where(torch.arange(10) < 3, (guess + 1) % 4, guess)
    for batch_size in (1, 3, 10, 256):
        assert teacher.accuracy(pixels, wrong, batch_size) == pytest.approx(0.7)


def no_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def without_statistics() -> nn.Module:
    network = OddNet()
    network.b[1] = nn.BatchNorm2d(7, track_running_stats=False)
    return network


@pytest.mark.parametrize(
    ("network", "fields", "message"),
    [
        (no_batch_norm, {}, "no BatchNorm2d"),
        (without_statistics, {}, "BatchNorm2d 'b.1' keeps no running statistics"),
        (OddNet, {"num_classes": 5}, "teacher.num_classes: the network gives 4 logits, not 5"),
        (OddNet, {"classes": ["a", "b", "c", "a"]}, "teacher.classes names 'a' 2 times"),
        (OddNet, {"taps": []}, "teacher.taps is an empty list"),
        (
            OddNet,
            {"taps": ["a", "d"]},
            "teacher.taps: 'd' does not name a module with a 4-D output; nearest: ",
        ),
        (OddNet, {"taps": ["head"]}, "teacher.taps: 'head' does not name a module with a 4-D output"),
        (lambda: OddNet(tail=nn.AvgPool2d((1, 2))), {"taps": ["tail"]}, "'tail' gives 4x2 features"),
        (
            OddNet,
            {"input_px": 3},
            "no module gives square features of side >= 4 px, one map for each image; raise",
        ),
        (OddNet, {"taps": ["a", "c", "a"]}, "teacher.taps names 'a' 2 times"),
        (lambda: OddNet(wrap=lambda y: "logits"), {}, "the network's output holds no tensor"),
        (lambda: OddNet(wrap=lambda y: y[0]), {}, "give an output of (4,)"),
        (lambda: OddNet(wrap=lambda y: y / 0), {}, "the logits of noise images are not finite"),
        (
            lambda: OddNet(tail=nn.Conv2d(12, 11, 1)),
            {},
            "forward of (2, 3, 16, 16) RGB images raised RuntimeError",
        ),
    ],
)
def test_networks_that_cannot_be_inverted(network: nn.Module, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TeacherError) as caught:
        teacher_of(network(), **fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
