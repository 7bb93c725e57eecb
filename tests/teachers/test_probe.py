"""Networks that run and would still be inverted wrongly: what is refused, mended, or said of them."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nisynth.errors import TeacherError
from nisynth.images import Normalization
from nisynth.teachers import Teacher

HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def same(x: Any) -> Any:
    return x


class Net(nn.Module):
    """Two convolutions with BatchNorms; `first`, `middle` and `last` are what a test is about."""

    def __init__(
        self,
        *,
        first: Callable[[Tensor], Tensor] = same,
        middle: Callable[[Tensor], Tensor] = same,
        last: Callable[[Tensor], Any] = same,
        norm: type[nn.Module] = nn.BatchNorm2d,
        num_logits: int = 4,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1), norm(6)
        self.middle = middle
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, 2, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, num_logits)
        self.first, self.last = first, last
        for module in self.modules():
            if isinstance(getattr(module, "running_var", None), Tensor):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.3)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.middle(x)
        x = F.relu(self.bn2(self.conv2(x)))
        return self.last(self.head(x.mean((2, 3))))


def teacher_of(network: nn.Module, num_classes: int = 4, input_px: int = 16, **fields: Any) -> Teacher:
    classes = [f"class {i}" for i in range(num_classes)]
    return Teacher(network, normalization=HALF, classes=classes, input_px=input_px, **fields)


def images(batch: int = 3, side_px: int = 16) -> Tensor:
    return torch.randn(batch, 3, side_px, side_px, generator=torch.Generator().manual_seed(1))


def refusal(network: nn.Module, **fields: Any) -> str:
    with pytest.raises(TeacherError) as caught:
        teacher_of(network, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What a network writes into is its own copy of the images.


def standardize_in_place(x: Tensor) -> Tensor:
    mean = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    return x.sub_(mean).div_(0.5)


def write_through_data(x: Tensor) -> Tensor:
    x.data.clamp_(-1, 1)
    return x


@pytest.mark.parametrize("write", [lambda x: x.clamp_(-2, 2), standardize_in_place, write_through_data])
def test_a_network_that_writes_into_its_input_gets_a_copy(write: Callable[[Tensor], Tensor]) -> None:
    teacher, x = teacher_of(Net(first=write)), images()
    expected = teacher_of(Net(first=lambda x: write(x.clone()))).logits(x)
    for call in (teacher.logits, teacher.features, teacher.logits_and_bn_inputs):
        call(x)
        assert torch.equal(x, images()), call
    torch.testing.assert_close(teacher.logits(x), expected, rtol=0, atol=0)


# A gradient path, from the logits and from every BatchNorm's input.


class NoGrad(Net):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


class InferenceMode(Net):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


class Checkpointed(Net):
    """Runs its first half in a checkpoint, of the kind that `reentrant` says."""

    reentrant = True

    def forward(self, x: Tensor) -> Any:
        half = checkpoint(lambda x: F.relu(self.bn1(self.conv1(x))), x, use_reentrant=self.reentrant)
        return self.head(F.relu(self.bn2(self.conv2(half))).mean((2, 3)))


class CheckpointedToday(Checkpointed):
    reentrant = False


@pytest.mark.parametrize(
    ("network", "what"),
    [
        (NoGrad(), "the logits have no gradient path to the image"),
        (InferenceMode(), "the logits have no gradient path to the image"),
        (Net(last=lambda y: y.detach()), "the logits have no gradient path to the image"),
        (Net(last=lambda y: y.argmax(1, keepdim=True) + torch.zeros(4)), "the logits have no gradient path"),
        (Net(first=lambda x: x.detach()), "the logits have no gradient path to the image"),
        (Checkpointed(), "the input of BatchNorm2d 'bn1' has no gradient path to the image"),
        (Net(first=torch.sign), "the gradient of the logits at the image is zero everywhere"),
    ],
)
def test_no_gradient_path_is_refused(network: nn.Module, what: str) -> None:
    assert what in refusal(network)


class BesideTheGraph(Net):
    """A BatchNorm that only a detached branch runs."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) + self.bn1(self.conv1(x.detach())).mean((2, 3))[:, :4]


def test_a_batch_norm_without_a_gradient_path_is_named() -> None:
    assert "the input of BatchNorm2d 'bn1#1' has no gradient path" in refusal(BesideTheGraph())


def test_a_checkpoint_that_keeps_the_graph_is_taken() -> None:
    plain, checkpointed = teacher_of(Net()), teacher_of(CheckpointedToday())
    torch.testing.assert_close(checkpointed.logits(images()), plain.logits(images()))


def test_gradients_that_are_not_finite_are_refused() -> None:
    network = Net(middle=lambda x: x + (x - x).abs().sqrt())  # the slope of a root at 0
    assert "the gradients of the network at a noise image are not finite" in refusal(network)


# What the output means.


@pytest.mark.parametrize("squeeze", [same, lambda z: z.squeeze(1)])
@pytest.mark.parametrize("num_classes", [1, 2])
def test_a_binary_head_is_refused_with_its_cure(
    squeeze: Callable[[Tensor], Tensor], num_classes: int
) -> None:
    line = refusal(Net(num_logits=1, last=squeeze), num_classes=num_classes)
    assert "one logit an image" in line
    assert "torch.stack([torch.zeros_like(z), z], 1)" in line
    cured = Net(num_logits=1, last=lambda z: torch.stack([torch.zeros_like(z[:, 0]), z[:, 0]], 1))
    teacher, z = teacher_of(cured, num_classes=2), Net(num_logits=1).eval()(images())
    torch.testing.assert_close(teacher.logits(images()).softmax(1)[:, 1:], torch.sigmoid(z))


def test_a_softmax_is_refused_and_a_log_softmax_is_not() -> None:
    assert "ends in a softmax" in refusal(Net(last=lambda y: y.softmax(1)))
    teacher = teacher_of(Net(last=lambda y: y.log_softmax(1)))
    assert teacher.notes == ()


def test_outputs_within_0_and_1_are_noted() -> None:
    assert "all outputs lie within 0 to 1" in "".join(teacher_of(Net(last=torch.sigmoid)).notes)


class Pair(NamedTuple):
    features: Tensor
    logits: Tensor


@dataclass
class Answer:
    logits: Tensor
    loss: Tensor | None = None


@pytest.mark.parametrize(
    ("wrap", "label"),
    [
        (same, "output"),
        (lambda y: (y, y + 1), "output[0], not output[1], of the same shape"),
        (lambda y: {"features": y + 1, "logits": y}, "output['logits'], not output['features'], of the same"),
        (lambda y: (y.repeat(1, 2), y), "output[1]"),
        (lambda y: ((y.repeat(1, 2), [y]), y.sum()), "output[0][1][0]"),
        (lambda y: Pair(y.repeat(1, 2), y), "output[1]"),
        (lambda y: Answer(y), "output['logits']"),
        (lambda y: {"loss": None, "heads": {"main": y}}, "output['heads']['main']"),
    ],
)
def test_the_logits_are_found_and_said(wrap: Callable[[Tensor], Any], label: str) -> None:
    teacher = teacher_of(Net(last=wrap))
    torch.testing.assert_close(teacher.logits(images()), teacher_of(Net()).logits(images()))
    torch.testing.assert_close(teacher.logits_and_bn_inputs(images())[0], teacher_of(Net()).logits(images()))
    assert teacher.describe()["logits"].startswith(label)
    pixels = torch.randint(256, (5, 3, 16, 16), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    assert torch.equal(teacher.predict(pixels), teacher_of(Net()).predict(pixels))


# Taps are feature maps.


class Attention(nn.Module):
    """Attention over an 8x8 map; its scores (B, 2, 64, 64) are the output of a module of their own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qk, self.v = nn.Linear(channels, 2 * channels), nn.Linear(channels, channels)
        self.scores = nn.Softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, side, _ = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k = self.qk(tokens).view(batch, side * side, 2, 2, channels // 2).permute(2, 0, 3, 1, 4)
        scores = self.scores(q @ k.transpose(-1, -2) / 2)
        v = self.v(tokens).view(batch, side * side, 2, channels // 2).transpose(1, 2)
        return (scores @ v).transpose(2, 3).reshape(batch, channels, side, side)


class ChannelsLast(nn.Module):
    """A layer over tokens (B, H, W, C) with W = C, which looks like a square map."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(channels, side), nn.Linear(side, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.widen(x.permute(0, 2, 3, 1)).relu()).permute(0, 3, 1, 2)


class Windows(nn.Module):
    """A convolution over four windows of each image, folded into the batch dimension."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, side, half = *x.shape[:3], x.shape[2] // 2
        parts = x.view(batch, channels, 2, half, 2, half).permute(0, 2, 4, 1, 3, 5)
        parts = self.conv(parts.reshape(4 * batch, channels, half, half))
        parts = parts.view(batch, 2, 2, channels, half, half).permute(0, 3, 1, 4, 2, 5)
        return parts.reshape(batch, channels, side, side)


class PooledUp(nn.Module):
    """Repeats one value 7 x 7 and flattens that, as VGG does with small images."""

    def __init__(self) -> None:
        super().__init__()
        self.pools = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(7))
        self.linear = nn.Linear(6 * 49, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.pools(x).flatten(1))[:, :, None, None]


@pytest.mark.parametrize(
    ("middle", "input_px", "taps"),
    [
        (nn.Identity(), 16, [("middle", 16), ("bn2", 8)]),
        (nn.Sequential(nn.MaxPool2d(4), Attention(6), nn.Upsample(scale_factor=4)), 64, None),
        (ChannelsLast(6, 16), 16, [("middle", 16), ("bn2", 8)]),
        (Windows(6), 16, [("middle", 16), ("bn2", 8)]),
        # Larger than the image; then back to its size.
        (nn.Sequential(nn.Upsample(scale_factor=2), nn.MaxPool2d(2)), 16, [("middle", 16), ("bn2", 8)]),
        (PooledUp(), 16, [("middle", 16), ("bn2", 8)]),
    ],
)
def test_only_feature_maps_become_taps(
    middle: nn.Module, input_px: int, taps: list[tuple[str, int]] | None
) -> None:
    teacher = teacher_of(Net(middle=middle), input_px=input_px)
    for tap, feature in zip(teacher.taps, teacher.features(images(3, input_px)), strict=True):
        assert feature.shape == (3, tap.channels, tap.side_px, tap.side_px)
        assert tap.side_px <= input_px
        assert "scores" not in tap.name
    if taps is not None:
        assert [(tap.name, tap.side_px) for tap in teacher.taps] == taps


def test_windows_in_the_batch_dimension_cannot_be_named_as_a_tap() -> None:
    line = refusal(Net(middle=Windows(6)), taps=["bn1", "middle.conv"])
    assert "teacher.taps: 'middle.conv' gives 8 maps for 2 images" in line


# BatchNorms of every kind.


class Frozen(nn.Module):
    """A BatchNorm as detection libraries freeze it: four buffers."""

    eps = 1e-5

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.ones(channels))
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class FrozenWithoutEpsilon(Frozen):
    eps = 0.0


class Otherwise(Frozen):
    """It remembers the same and computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).abs()


class Functional(Frozen):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.mean, self.var = self._buffers.pop("running_mean"), self._buffers.pop("running_var")

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias)


@pytest.mark.parametrize("norm", [nn.SyncBatchNorm, Frozen, FrozenWithoutEpsilon])
def test_batch_norms_of_other_classes_are_matched(norm: type[nn.Module]) -> None:
    network = Net(norm=norm).eval()
    expected = network(images())
    before = {name: value for name, value in network.state_dict().items() if "batches" not in name}
    teacher = teacher_of(network)
    assert teacher.batch_norm_names == ("bn1", "bn2")
    assert teacher.describe()["BatchNorms"] == "2 of 2"
    assert teacher.notes == ()
    torch.testing.assert_close(teacher.logits(images()), expected, rtol=1e-5, atol=1e-5)
    after = teacher.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(teacher.batch_norms[0].running_mean, before["bn1.running_mean"])


def test_the_hash_of_a_network_does_not_depend_on_the_class_of_its_batch_norms() -> None:
    hashes = {teacher_of(Net(norm=norm)).identity["weights_sha256"] for norm in (nn.SyncBatchNorm, Frozen)}
    assert hashes == {teacher_of(Net()).identity["weights_sha256"]}


@pytest.mark.parametrize(
    ("norm", "note"),
    [
        (Otherwise, "R_BN matches 1 of 2 BatchNorms; it leaves out Otherwise 'bn1'"),
        (
            Functional,
            "R_BN matches 1 of 2 BatchNorms; it leaves out 1 by F.batch_norm, .forward() or scripted, which "
            "hooks cannot read",
        ),
    ],
)
def test_batch_norms_that_are_missed_are_counted(norm: type[nn.Module], note: str) -> None:
    teacher = teacher_of(Net(norm=norm))
    assert teacher.notes == (note,)
    assert teacher.describe()["BatchNorms"] == "1 of 2"


def test_without_any_that_can_be_matched_the_others_are_named() -> None:
    network = Net(norm=Otherwise)
    network.bn2 = nn.Identity()
    assert "no BatchNorm2d, whose statistics the inversion matches (R_BN); it has Otherwise 'bn1'" in refusal(
        network
    )
    network.bn1 = Functional(6)
    assert "it has BatchNorms by F.batch_norm, .forward() or scripted: call nn.BatchNorm2d" in refusal(
        network
    )


def scripted(module: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and in use
        return torch.jit.script(module.eval())


def test_scripted_parts_are_taken_and_their_batch_norms_counted() -> None:
    network = Net(middle=nn.Identity())
    network.bn1 = scripted(network.bn1)
    teacher = teacher_of(network)
    assert teacher.batch_norm_names == ("bn2",)
    assert (
        "R_BN matches 1 of 2 BatchNorms; it leaves out 1 by F.batch_norm, .forward() or" in teacher.notes[0]
    )
    torch.testing.assert_close(teacher.logits(images()), teacher_of(Net()).logits(images()))


def test_a_scripted_network_is_refused() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert "the network is scripted or traced (TorchScript)" in refusal(scripted(layers))


def quantized() -> nn.Module:
    network = Net()
    network.extra = torch.ao.nn.quantized.Linear(3, 3)
    return network


def sparse() -> nn.Module:
    network = Net()
    network.head.weight = nn.Parameter(network.head.weight.data.to_sparse())
    return network


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("build", "line"),
    [
        (quantized, "is quantized; build the network in float"),
        (sparse, "arch: head.weight is sparse; build the network with dense weights"),
        (lambda: Net().to("meta"), "arch: conv1.weight is on the meta device, without values"),
    ],
)
def test_modules_whose_weights_cannot_be_read(build: Callable[[], nn.Module], line: str) -> None:
    assert line in refusal(build())


class ByForward(Net):
    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.bn1.forward(self.conv1(x)))
        return self.head(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


class WithBatchNorm1d(Net):
    def __init__(self) -> None:
        super().__init__()
        self.bn3 = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.head(self.bn3(x.mean((2, 3))))


@pytest.mark.parametrize(
    ("network", "note"),
    [
        (
            ByForward(),
            "R_BN matches 1 of 2 BatchNorms; it leaves out 1 by F.batch_norm, .forward() or scripted",
        ),
        (WithBatchNorm1d(), "R_BN matches 2 of 3 BatchNorms; it leaves out BatchNorm1d 'bn3'"),
    ],
)
def test_batch_norms_that_no_hook_or_map_shows_are_counted(network: nn.Module, note: str) -> None:
    assert note in teacher_of(network).notes[0]


def test_a_weight_that_was_computed_is_frozen_like_others() -> None:
    network = Net()
    network._parameters["scale"] = torch.ones(1, requires_grad=True) * 2.0
    assert not any(parameter.requires_grad for parameter in teacher_of(network).network.parameters())


class StaysInTraining(nn.BatchNorm2d):
    def train(self, mode: bool = True) -> "StaysInTraining":
        return super().train(True)


class TrainsInForward(Net):
    def forward(self, x: Tensor) -> Any:
        self.bn2.train()
        return super().forward(x)


@pytest.mark.parametrize(
    ("network", "name"), [(Net(norm=StaysInTraining), "'bn1'"), (TrainsInForward(), "BatchNorm2d 'bn2'")]
)
def test_a_batch_norm_in_train_mode_is_refused(network: nn.Module, name: str) -> None:
    assert f"{name} is in train mode although the network is in eval mode" in refusal(network)


def test_a_forward_that_is_not_deterministic_is_noted() -> None:
    network = Net(middle=lambda x: F.dropout(x, 0.5))
    before = torch.get_rng_state()
    teacher = teacher_of(network)
    assert "forward is not deterministic: two passes of the same images differ by" in teacher.notes[0]
    assert torch.equal(torch.get_rng_state(), before)


# Ways of calling and of standardizing.


class ByKeyword(Net):
    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.bn1(input=self.conv1(input=x)))
        return self.head(F.relu(self.bn2(input=self.conv2(x))).mean((2, 3)))


def test_modules_may_be_called_by_keyword() -> None:
    teacher, plain = teacher_of(ByKeyword()), teacher_of(Net())
    for seen, expected in zip(
        teacher.logits_and_bn_inputs(images())[1], plain.logits_and_bn_inputs(images())[1], strict=True
    ):
        torch.testing.assert_close(seen, expected, rtol=0, atol=0)


def test_images_may_be_standardized_one_by_one() -> None:
    def standardize(x: Tensor) -> Tensor:
        return (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)

    assert torch.isfinite(teacher_of(Net(first=standardize)).logits(images())).all()


class Exiting(Net):
    def forward(self, x: Tensor) -> Any:
        raise SystemExit(1)


def test_the_size_is_only_blamed_for_errors_about_sizes() -> None:
    assert refusal(Exiting()).endswith("RGB images raised SystemExit: 1")
    fixed = Net()
    fixed.forward = lambda x: nn.Linear(9, 4)(x.flatten(1))  # type: ignore[method-assign]
    assert refusal(fixed).endswith("; see teacher.input_px")
    grey = Net()
    grey.conv1 = nn.Conv2d(1, 6, 3)
    assert refusal(grey).endswith("; its images must be RGB")
