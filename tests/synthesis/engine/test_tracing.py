"""Networks as people write them, which the engine's graphs stand for: default arguments, sizes, outputs."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nisynth.images import Normalization
from nisynth.synthesis.engine.fused import FusedTeacher
from nisynth.synthesis.engine.tracing import Untraceable
from nisynth.teachers import Teacher


class Net(nn.Module):
    """A convolution, a BatchNorm, and a head; subclasses write forward in their own way."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(8, 4)
        self.bn.running_mean.normal_(0, 0.3)
        self.bn.running_var.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x).mean((2, 3)))

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class WithDefaults(Net):
    def forward(self, x: Tensor, out_feature: bool = False, scale: float | None = None, *more: Any) -> Any:
        feature = self.body(x) if scale is None else self.body(x) * scale
        feature = feature.mean((2, 3))
        return (self.head(feature), feature) if out_feature else self.head(feature)


class WithKeywords(Net):
    def forward(self, x: Tensor, **options: Any) -> Any:
        return {"feature": self.body(x)} | {"logits": super().forward(x)} if not options else None


class Padded(Net):
    """Padding computed from sizes, as for strided convolutions with `same` padding."""

    def body(self, x: Tensor) -> Tensor:
        missing = -(-x.shape[-1] // 3) * 3 - x.size(-1)
        if missing > 0:
            x = F.pad(x, [missing // 2, missing - missing // 2] * 2)
        assert x.shape[1] == 3
        assert x.dim() == 4
        return super().body(F.avg_pool2d(x, 3))


class Grouped(Net):
    """A shuffle of channels, a loop over them, and sums of maps of equal shape."""

    def body(self, x: Tensor) -> Tensor:
        x = super().body(x)
        batch, channels, height, width = x.size()
        y = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)
        if y.shape != x.shape or len(x.shape) != 4:
            raise ValueError(f"{y.shape} is not {x.shape}")
        parts = [y[:, i : i + 1] for i in range(y.size(1))]
        return torch.cat(parts, 1) + torch.arange(height, device=x.device).float()


class ForgottenResult(Net):
    """Writes in place and reads through the old name."""

    def body(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        x.mul_(2.0)
        self.relu(x)
        return x


class ByKeyword(Net):
    def body(self, x: Tensor) -> Tensor:
        return F.relu(input=self.bn(input=self.conv(input=x)))


class MadeOnTheWay(Net):
    """A module that forward makes, and sizes of `.data`."""

    def body(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.data.size()
        x = nn.ReLU(inplace=True)(self.bn(self.conv(x)))
        return x.view(batch, int(8 / channels * 3), height, width)


class WritesIntoItsInput(Net):
    def body(self, x: Tensor) -> Tensor:
        return super().body(x.clamp_(-1, 1))


class Remembering(Net):
    """Keeps what it computed in a buffer and an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(8), persistent=False)

    def body(self, x: Tensor) -> Tensor:
        x = super().body(x)
        self.seen = x
        return x


class Pair(NamedTuple):
    logits: Tensor
    feature: Tensor


@dataclass
class Answer:
    logits: Tensor
    loss: Tensor | None = None


class Wrapped(Net):
    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(super().forward(x))


def scripted(module: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and in use
        return torch.jit.script(module)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    kind.__name__: kind
    for kind in (
        WithDefaults, WithKeywords, Padded, Grouped, ForgottenResult, ByKeyword, WritesIntoItsInput,
        Remembering, MadeOnTheWay,
    )
} | {
    "NamedTuple": lambda: Wrapped(lambda y: Pair(y, y + 1)),
    "dataclass": lambda: Wrapped(Answer),
    "nested": lambda: Wrapped(lambda y: {"heads": [y]}),
    "scripted activation": lambda: Wrapped(scripted(nn.Hardtanh(-9.0, 9.0))),
}  # fmt: skip


def teacher_of(network: nn.Module, input_px: int = 16) -> Teacher:
    half = (0.5, 0.5, 0.5)
    return Teacher(network, normalization=Normalization(half, half), classes=list("abcd"), input_px=input_px)


def images(batch: int, side_px: int = 16) -> Tensor:
    return torch.randn(batch, 3, side_px, side_px, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [2, 5])
def test_the_graphs_give_what_the_network_gives(name: str, batch: int) -> None:
    teacher = teacher_of(NETWORKS[name]())
    fused, x = FusedTeacher(teacher, activations=True), images(batch)
    torch.testing.assert_close(fused.features(x), teacher.features(x), rtol=1e-4, atol=1e-4)
    logits, inputs = fused.logits_and_bn_inputs(x)
    expected_logits, expected_inputs = teacher.logits_and_bn_inputs(x)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(inputs, expected_inputs, rtol=1e-4, atol=1e-4)
    assert torch.equal(x, images(batch))


class OfTheBatch(Net):
    def body(self, x: Tensor) -> Tensor:
        return super().body(x) * (2.0 if x.shape[0] > 4 else 1.0)


class Folding(Net):
    """Two halves of each image, folded into the batch."""

    def body(self, x: Tensor) -> Tensor:
        x = torch.cat(x.chunk(2, 2), 0)
        x = F.relu(self.bn(self.conv(x)))
        return torch.cat(x.chunk(2, 0), 2).contiguous()


def test_what_depends_on_the_batch_size_is_no_constant() -> None:
    with pytest.raises(Untraceable, match="control flow"):
        FusedTeacher(teacher_of(OfTheBatch()))


def test_batch_norms_that_read_parts_of_images_are_left_to_the_plain_loop() -> None:
    teacher = Teacher(
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), Folding()),
        normalization=Normalization((0.5,) * 3, (0.5,) * 3),
        classes=list("abcd"),
        input_px=16,
    )
    FusedTeacher(teacher)
    with pytest.raises(Untraceable, match=r"BatchNorm2d '3.bn' reads windows or views folded into the batch"):
        FusedTeacher(teacher, statistics=True)
