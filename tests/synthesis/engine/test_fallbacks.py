"""What the engine does without: memory, a compiler, a CUDA graph, a teacher that is a graph, itself."""

import functools
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nisynth.errors import TaskFailure
from nisynth.images import Normalization
from nisynth.synthesis import EngineConfig
from nisynth.synthesis.engine import capture
from nisynth.synthesis.engine import loop as engine_module
from nisynth.synthesis.inversion.memory import out_of_memory
from nisynth.teachers import Teacher
from tests.engines import ON_CPU, SIXTEEN_BIT, fast, synthesizers
from tests.synthesis.conftest import MakeTask, MakeTeacher


class Hungry(nn.Module):
    """Asks for an exabyte when there are six images."""

    def forward(self, x: Tensor) -> Any:
        return _hungry(x)


@torch.fx.wrap
def _hungry(x: Tensor) -> Any:
    return x + torch.empty(2**59)[0] if len(x) == 6 else x


def test_out_of_memory_names_the_batch_size_and_the_next_task_runs(
    make_teacher: MakeTeacher, make_task: MakeTask
) -> None:
    teacher = make_teacher()
    teacher.network.stages.append(Hungry())
    engine = fast(teacher)
    assert not engine.notes
    with pytest.raises(TaskFailure, match=r"task 3: run\.batch_size 6 .*try run\.batch_size 3") as failure:
        engine.synthesize(make_task(6, index=3))
    assert failure.value.kind == "out_of_memory"
    assert failure.value.__context__ is None
    engine.synthesize(make_task(4))


class Branching(nn.Module):
    """Decides by what it sees, which no graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.bn(self.conv(x)))
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


def test_a_teacher_that_is_no_graph_runs_in_the_plain_loop_with_one_line(
    make_task: MakeTask, caplog: pytest.LogCaptureFixture
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = Teacher(
            Branching(),
            normalization=Normalization((0.5,) * 3, (0.25,) * 3),
            classes=list("abcd"),
            input_px=16,
        )
    with caplog.at_level(logging.WARNING):
        plain, engine = synthesizers(teacher)
        batch = engine.synthesize(make_task(4))
    assert torch.equal(batch.images, plain.synthesize(make_task(4)).images)
    assert batch.figures["engine"] == "plain, float32"
    (note,) = engine.notes
    assert note.startswith("engine.name fast: torch.fx cannot trace the teacher: ")
    assert note.endswith("; tasks run in the plain loop")
    assert "\n" not in note
    assert [record.getMessage() for record in caplog.records] == [note]


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, the capture does not fail")
def test_a_capture_that_fails_is_done_without(odd_teacher: Teacher, make_task: MakeTask) -> None:
    engine = fast(odd_teacher, shortcuts=replace(ON_CPU, captured=True))
    batch = engine.synthesize(make_task(4))
    assert torch.equal(batch.images, fast(odd_teacher).synthesize(make_task(4)).images)
    assert batch.figures["engine"] == "fast, float32"
    (note,) = engine.notes
    assert note.startswith("engine.name fast: its step failed as a CUDA graph (")


def test_a_compiler_that_fails_is_done_without(
    odd_teacher: Teacher, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(graph: Any, inputs: Any) -> None:
        raise FileNotFoundError("no such compiler")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=no_compiler))
    engine = fast(odd_teacher, shortcuts=replace(ON_CPU, compiled=True))
    batch = engine.synthesize(make_task(4))
    torch._dynamo.reset()
    assert torch.equal(batch.images, fast(odd_teacher).synthesize(make_task(4)).images)
    (note,) = engine.notes
    assert note.startswith("engine.name fast: its step failed with torch.compile (")
    assert note.endswith("; it runs without")


def test_one_image_that_does_not_fit_is_told_of_no_smaller_batch(make_task: MakeTask) -> None:
    failure = out_of_memory(make_task(1), torch.device("cpu"))
    assert str(failure).endswith("run.batch_size 1 does not fit the memory of cpu; it needs more memory")


def test_a_capture_that_fails_leaves_the_step_compiled(
    odd_teacher: Teacher, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(function: Any) -> Any:
        return function

    def captured(step: Any, rewind: Any) -> None:
        raise capture.NotCaptured from RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(engine_module, "compiled", compiled)
    monkeypatch.setattr(engine_module, "captured", captured)
    engine = fast(odd_teacher, shortcuts=replace(ON_CPU, compiled=True, captured=True))
    batch = engine.synthesize(make_task(4))
    assert batch.figures["engine"] == "fast, float32, compiled"
    assert engine.notes == [
        "engine.name fast: its step failed as a CUDA graph (RuntimeError: operation not permitted when stream"
        " is capturing); it runs without"
    ]


class Mixed(nn.Module):
    """Takes float32 beside whatever comes in, which is an error where that is of 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.register_buffer("start", torch.zeros(4, 1, 1))

    def forward(self, x: Tensor) -> Any:
        return torch.lerp(self.start, torch.relu(self.bn(self.conv(x))), 0.9).mean((2, 3))


@pytest.mark.skipif(SIXTEEN_BIT != "bfloat16", reason="this CPU has no bfloat16")
def test_a_teacher_whose_step_fails_runs_in_the_plain_loop_with_one_line(make_task: MakeTask) -> None:
    normalization = Normalization((0.5,) * 3, (0.25,) * 3)
    teacher = Teacher(Mixed(), normalization=normalization, classes=list("abcd"), input_px=16)
    plain, _ = synthesizers(teacher)
    engine = fast(teacher, engine=EngineConfig(name="fast", precision="bfloat16"))
    batch = engine.synthesize(make_task(4))
    assert torch.equal(batch.images, plain.synthesize(make_task(4)).images)
    assert batch.figures["engine"] == "plain, float32"
    (note,) = engine.notes
    assert note.startswith("engine.name fast: its step failed (RuntimeError: ")
    assert note.endswith("); tasks run in the plain loop")


COMPILE = """
import torch
from torch import nn
from torch._dynamo.utils import counters
from nisynth.synthesis.engine.capture import compiled
from nisynth.synthesis.inversion.jitter import apply_jitter
from nisynth.synthesis.engine.statistics import FeatureDistribution, moments

norm = nn.BatchNorm2d(3)
r_bn = FeatureDistribution([norm])
step = compiled(lambda x, offsets: r_bn([moments(apply_jitter(x, offsets), norm.running_mean)]))
x = torch.randn(2, 3, 8, 8, requires_grad=True)
torch.autograd.backward(step(x, torch.tensor([1, -1, 1])))
print(counters["aot_autograd"]["autograd_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


def test_the_next_process_on_a_node_finds_compiled_what_has_a_backward_pass_of_our_own(
    tmp_path: Path,
) -> None:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.getcwd()}
    seen = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        seen.append(done.stdout.split())
    (_, cold_misses), warm = seen
    assert int(cold_misses) > 0
    assert warm == ["1", "0"]
