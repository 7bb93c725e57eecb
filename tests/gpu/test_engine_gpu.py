"""The engine on a real GPU: what it computes, that nothing waits, and what it says when it cannot.

`pytest tests/gpu --confcutdir=tests/gpu` runs these where only torch is installed.
"""

from typing import Any

import numpy as np
import pytest
import torch

from nisynth.batch import Task
from nisynth.errors import TaskFailure
from nisynth.synthesis import EngineConfig, NaturalInversionConfig, make_synthesizer
from nisynth.synthesis.engine.fast import FastSynthesizer
from nisynth.synthesis.engine.fused import FusedTeacher
from nisynth.synthesis.engine.loop import Inversion
from nisynth.synthesis.engine.precision import FLOAT32, resolve
from nisynth.synthesis.engine.shortcuts import Shortcuts
from nisynth.synthesis.inversion.draws import draw
from nisynth.synthesis.inversion.method import InversionMethod
from nisynth.synthesis.naturalinversion.renderer import Renderer
from nisynth.teachers import Teacher, load_teacher

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
    # torch.compile of some versions warns of its own code.
    pytest.mark.filterwarnings("default"),
]

EAGER = Shortcuts(compiled=False, captured=False)
CAPTURED = Shortcuts(compiled=False)


@pytest.fixture(scope="module")
def teacher() -> Any:
    return load_teacher(arch="resnet20", device="cuda")


def task(batch_size: int = 16, index: int = 0) -> Any:
    labels = np.arange(batch_size, dtype=np.int64) % 10
    return Task(index=index, seed=index + 1, labels=labels, rows=batch_size)


def fast(
    teacher: Teacher, shortcuts: Any = None, precision: str = "float32", iterations: int = 5, **options: Any
) -> Any:
    config = NaturalInversionConfig(iterations=iterations, **options)
    engine = EngineConfig(name="fast", precision=precision)
    method = InversionMethod(config, teacher, Renderer)
    return FastSynthesizer(method, engine, log_every=1, shortcuts=shortcuts)


def totals(batch: Any) -> Any:
    return [point["total"] for point in batch.curve]


@pytest.mark.parametrize("shortcuts", [EAGER, CAPTURED, None], ids=["eager", "captured", "compiled"])
def test_float32_follows_the_plain_loop(teacher: Teacher, shortcuts: Any) -> None:
    plain = make_synthesizer(NaturalInversionConfig(iterations=5), EngineConfig(), teacher, log_every=1)
    engine = fast(teacher, shortcuts)
    expected, batch = plain.synthesize(task()), engine.synthesize(task())
    assert engine.notes == []
    assert totals(batch)[0] == pytest.approx(totals(expected)[0], rel=1e-5)
    assert totals(batch) == pytest.approx(totals(expected), rel=2e-2)
    assert float((batch.images - expected.images).norm() / expected.images.norm()) < 0.1


@pytest.mark.parametrize("precision", ["tf32", "bfloat16", "float16"])
def test_other_precisions_stay_near(teacher: Teacher, precision: str) -> None:
    try:
        resolve(precision, teacher.device)
    except Exception as lacking:
        pytest.skip(str(lacking))
    expected, engine = fast(teacher, EAGER).synthesize(task()), fast(teacher, precision=precision)
    batch = engine.synthesize(task())
    assert engine.notes == []
    assert totals(batch) == pytest.approx(totals(expected), rel=5e-2)
    assert batch.figures["gpu_memory_bytes"] > 0


@pytest.mark.parametrize("option", [{"feature_gradient": True}, {"select": "last"}, {"head": "sum"}])
def test_options(teacher: Teacher, option: dict[str, Any]) -> None:
    expected = fast(teacher, EAGER, **option).synthesize(task())
    engine = fast(teacher, CAPTURED, **option)
    assert totals(engine.synthesize(task())) == pytest.approx(totals(expected), rel=2e-2)
    assert engine.notes == []


def test_a_long_lived_engine_gives_what_a_fresh_one_gives(teacher: Teacher) -> None:
    long_lived = fast(teacher, CAPTURED)
    for index in (0, 1, 0):
        again = long_lived.synthesize(task(index=index))
        fresh = fast(teacher, CAPTURED).synthesize(task(index=index))
        assert totals(again)[0] == pytest.approx(totals(fresh)[0], rel=1e-5)
        assert totals(again) == pytest.approx(totals(fresh), rel=2e-2)
        assert again.figures["best_iteration"] == fresh.figures["best_iteration"]


def test_a_replay_counts_its_iterations_and_keeps_the_best(teacher: Teacher) -> None:
    batch = fast(teacher, CAPTURED, iterations=40).synthesize(task())
    best = min(batch.curve, key=lambda point: point["total"])
    assert batch.figures["best_iteration"] == best["iteration"]
    assert batch.figures["best_total"] == pytest.approx(best["total"])
    assert len({point["total"] for point in batch.curve}) == 40


def test_no_step_waits_for_the_device(teacher: Teacher) -> None:
    config = NaturalInversionConfig(iterations=4)
    with FLOAT32.applied(teacher.device):
        fused = FusedTeacher(teacher, torch.float32, torch.channels_last, statistics=True, normalization=True)
        assert fused.notes == []
        inversion = Inversion(InversionMethod(config, teacher, Renderer), fused, 16, FLOAT32, EAGER)
        inversion.begin(draw(task(), config, inversion.model), torch.from_numpy(task().labels))
        inversion.step()  # allocates Adam's state
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                inversion.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_fused_graphs_are_as_near_to_float32_as_separate_ones(teacher: Teacher, dtype: torch.dtype) -> None:
    """cuDNN's fused activations (in 16 bits), normalization in one read, and its gradient."""
    exact = FusedTeacher(teacher, torch.float32, torch.channels_last, statistics=True)
    options = {"activations": dtype != torch.float32, "normalization": True}
    separate = FusedTeacher(teacher, dtype, torch.channels_last, statistics=True)
    fused = FusedTeacher(teacher, dtype, torch.channels_last, statistics=True, **options)
    assert fused.notes == []
    with FLOAT32.applied(teacher.device):
        wanted, near, given = (values_and_gradient(graphs, dtype) for graphs in (exact, separate, fused))
    for value, other, true in zip(given, near, wanted, strict=True):
        assert error(value, true) < 1.5 * error(other, true) + 1e-3


def values_and_gradient(fused: Any, dtype: torch.dtype) -> Any:
    """Features, logits, moments, and the image's gradient of the last two."""
    x = torch.randn((16, 3, 32, 32), generator=torch.Generator().manual_seed(0)).cuda().requires_grad_()
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        with torch.no_grad():
            features = fused.features(x)
        logits, of_layers = fused.logits_and_bn_inputs(x)
    loss = logits.float().square().sum() + sum(m.square().sum() for m in of_layers)
    return [*features, logits, *of_layers, *torch.autograd.grad(loss, [x])]


def error(value: Any, wanted: Any) -> Any:
    return float((value.float() - wanted.float()).norm() / wanted.float().norm())


def test_out_of_memory_proposes_half_until_it_fits(teacher: Teacher) -> None:
    engine = fast(teacher, CAPTURED, iterations=1)
    allowed = 1.2e9 / torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(allowed)
    try:
        with pytest.raises(TaskFailure, match=r"1024 does not fit .*; try run\.batch_size 512$"):
            engine.synthesize(task(1024))
        assert len(engine.synthesize(task(16)).images) == 16
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
