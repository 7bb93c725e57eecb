"""The engine's step on a GPU that is not there: every tensor's device is CUDA, and no number exists.

Fake tensors have shapes, types and devices, and raise where two devices meet or where the host asks for a
value, which on a GPU would wait for it. What they cannot do is autograd, whose engine asks the driver;
gradients are put in its place. tests/gpu shows the rest where a GPU is.
"""

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from nisynth.synthesis import NaturalInversionConfig
from nisynth.synthesis.engine.fused import FusedTeacher
from nisynth.synthesis.engine.loop import Inversion
from nisynth.synthesis.engine.precision import FLOAT32, Arithmetic
from nisynth.synthesis.engine.shortcuts import Shortcuts
from nisynth.synthesis.inversion import model as model_module
from nisynth.synthesis.inversion.draws import draw
from nisynth.teachers import load_teacher
from tests.engines import inversion_of
from tests.synthesis.conftest import MakeTask

GPU = torch.device("cuda", 0)
STEP = Shortcuts(compiled=False, captured=False)
BFLOAT16 = Arithmetic("bfloat16", torch.bfloat16)


class Outputs(TorchDispatchMode):
    """Notes the name of each operation that runs inside it, and the devices of what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        parts = out if isinstance(out, (tuple, list)) else (out,)
        devices = {part.device for part in parts if isinstance(part, torch.Tensor)}
        self.seen.setdefault(func.overloadpacket.__name__, set()).update(devices)
        return out


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Autocast asks the driver; a blank renderer is moved in a way that fake tensors do not take."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)

    def blank(make: Any, device: Any) -> Any:
        with torch.device(device):
            return make()

    monkeypatch.setattr(model_module, "blank", blank)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def begun(monkeypatch: pytest.MonkeyPatch, make_task: MakeTask, precision: Arithmetic, **options: Any) -> Any:
    """An Inversion of the shipped teacher on the fake GPU, at a task's start."""
    config = NaturalInversionConfig(iterations=3, latent_dim=16, **options)
    task = make_task(8, num_classes=10)
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        teacher = load_teacher(arch="resnet20")
        activations = precision.dtype != torch.float32 and not config.feature_gradient
        options = {"activations": activations, "statistics": True, "normalization": True}
        fused = FusedTeacher(teacher, precision.dtype, torch.channels_last, **options)
        method = inversion_of(config, teacher)
        draws = draw(task, config, method.blank_model(8, torch.device("cpu")))
    assert fused.notes == []
    for part in (teacher.network, fused._features, fused._observing):
        to_fake_gpu(part)
    teacher.device = GPU
    inversion = Inversion(method, fused, 8, precision, STEP)
    inversion.begin(draws, torch.from_numpy(task.labels))

    def backward(loss: Any) -> None:
        for parameter in inversion.model.parameters():
            parameter.grad = torch.empty_like(parameter)

    monkeypatch.setattr(torch.autograd, "backward", backward)
    return inversion


def to_fake_gpu(network: nn.Module) -> None:
    for layer in network.modules():
        for name, weight in layer.named_parameters(recurse=False):
            layer.register_parameter(name, torch.nn.Parameter(weight.detach().to(GPU), requires_grad=False))
        for name, value in layer.named_buffers(recurse=False):
            layer.register_buffer(name, value.to(GPU))


@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "options", [{}, {"feature_gradient": True}, {"select": "last"}, {"head": "sum"}], ids=str
)
def test_a_step_never_asks_the_gpu_for_a_number(
    monkeypatch: pytest.MonkeyPatch,
    fake_gpu: Any,
    make_task: MakeTask,
    precision: Arithmetic,
    options: dict[str, Any],
) -> None:
    inversion = begun(monkeypatch, make_task, precision, **options)
    inversion.step()  # allocates Adam's state
    with Outputs() as outputs:
        inversion.step()
    assert set().union(*outputs.seen.values()) == {GPU}
    assert {"norm_relu", "convolution", "_fused_adam_", "index_copy_", "index_select"} <= outputs.seen.keys()
    assert ("conv_add_relu" in outputs.seen) == (precision is BFLOAT16 and "feature_gradient" not in options)


def test_a_step_that_asked_would_be_found(
    monkeypatch: pytest.MonkeyPatch, fake_gpu: Any, make_task: MakeTask
) -> None:
    inversion = begun(monkeypatch, make_task, FLOAT32)
    with pytest.raises(DataDependentOutputException):
        float(inversion.losses_at(1)["total"])


def test_what_a_task_leaves_behind_stays_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch, fake_gpu: Any, make_task: MakeTask
) -> None:
    inversion = begun(monkeypatch, make_task, BFLOAT16)
    inversion.step()
    images = inversion.render(torch.Generator())
    assert (images.device, images.dtype, images.shape) == (GPU, torch.float32, (8, 3, 32, 32))
    assert {term.device for term in inversion.losses_at(1).values()} == {GPU}
