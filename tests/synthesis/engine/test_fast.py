"""The fast engine against the plain loop, which checks it: same draws, same losses, same images.

Float32 sums in another order differ by rounding, and Adam's first steps divide a gradient by its own
size, so that the two drift apart: by 1e-6 at the first iteration and a few thousandths at the fifth.
"""

import functools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from nisynth.batch import Task
from nisynth.errors import TaskFailure
from nisynth.synthesis import EngineConfig, NaturalInversionConfig
from nisynth.synthesis.engine.fused import FusedTeacher
from nisynth.synthesis.engine.loop import Inversion
from nisynth.synthesis.engine.precision import FLOAT32, Arithmetic
from nisynth.synthesis.engine.shortcuts import Shortcuts
from nisynth.synthesis.inversion.draws import draw
from nisynth.teachers import Teacher, load_teacher
from tests.engines import ON_CPU, SIXTEEN_BIT, fast, inversion_of, synthesizers
from tests.synthesis.conftest import MakeTask, MakeTeacher

TERMS = ("total", "ce", "r_bn", "tv", "l2")


def assert_follows(fast_batch: Any, plain_batch: Any) -> None:
    for point, wanted in zip(fast_batch.curve, plain_batch.curve, strict=True):
        iteration = wanted["iteration"]
        assert point["iteration"] == iteration
        for term in TERMS:
            error = abs(point[term] - wanted[term]) / abs(wanted[term])
            assert error < {1: 2e-6, 2: 5e-4}.get(iteration, 2e-2), (iteration, term)
    distance = (fast_batch.images - plain_batch.images).norm() / plain_batch.images.norm()
    assert float(distance) < 0.1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"feature_gradient": True},
        {"head": "sum", "flip": False, "rescale_priors": False, "first_bn_multiplier": 3.0},
        {"select": "last", "jitter_px": 0},
    ],
)
def test_it_follows_the_plain_loop(
    odd_teacher: Teacher, make_task: MakeTask, options: dict[str, Any]
) -> None:
    plain, engine = (s.synthesize(make_task(6)) for s in synthesizers(odd_teacher, **options))
    assert_follows(engine, plain)
    assert engine.figures["best_iteration"] == plain.figures["best_iteration"]
    assert torch.equal(engine.labels, plain.labels)
    assert engine.figures["engine"] == "fast, float32"


def test_it_follows_the_plain_loop_on_the_shipped_teacher(
    shipped_teacher: Teacher, make_task: MakeTask
) -> None:
    task = make_task(4, num_classes=10)
    plain, engine = (s.synthesize(task) for s in synthesizers(shipped_teacher, latent_dim=1024))
    assert_follows(engine, plain)


@pytest.mark.parametrize("name", ["cifar10_resnet34", "cifar10_vgg11", "cifar100_resnet34"])
def test_it_follows_the_plain_loop_on_real_teachers(shared: Any, make_task: MakeTask, name: str) -> None:
    arch = name.rpartition("_")[2]
    teacher = load_teacher(arch=arch, weights=str(shared / "teachers" / f"{name}.safetensors"))
    task = make_task(2, num_classes=teacher.num_classes)
    plain, engine = (s.synthesize(task) for s in synthesizers(teacher, iterations=3))
    assert_follows(engine, plain)


def test_the_first_gradient_of_every_weight_is_the_plain_loops(
    odd_teacher: Teacher, make_task: MakeTask
) -> None:
    task, config = make_task(6), NaturalInversionConfig(iterations=1, latent_dim=16)
    gradients = []
    for shortcuts in (PLAIN_STEPS, ON_CPU):
        inversion = begun(odd_teacher, task, config, shortcuts)
        inversion.step()
        gradients.append([p.grad.clone() for p in inversion.model.parameters()])
    for ours, wanted in zip(*reversed(gradients), strict=True):
        # A bias before a batch-mode BatchNorm has no influence; its gradient is rounding alone.
        assert float((ours - wanted).norm()) < 1e-4 * float(wanted.norm()) + 1e-3


PLAIN_STEPS = Shortcuts(
    folded=False,
    activations=False,
    identities=False,
    statistics=False,
    normalization=False,
    channels_last=False,
    compiled=False,
    captured=False,
)


def begun(
    teacher: Teacher, task: Task, config: Any, shortcuts: Any = PLAIN_STEPS, precision: Any = FLOAT32
) -> Any:
    fused = FusedTeacher(teacher, folded=shortcuts.folded, statistics=shortcuts.statistics)
    method = inversion_of(config, teacher)
    inversion = Inversion(method, fused, len(task.labels), precision, shortcuts)
    inversion.begin(draw(task, config, inversion.model), torch.from_numpy(task.labels))
    return inversion


@pytest.mark.parametrize("left_out", ["folded", "identities", "statistics", "normalization", "channels_last"])
def test_it_does_without_each_shortcut(odd_teacher: Teacher, make_task: MakeTask, left_out: str) -> None:
    every = {"activations": False, "channels_last": True, "compiled": False, "captured": False}
    plain, _ = synthesizers(odd_teacher)
    engine = fast(odd_teacher, shortcuts=Shortcuts(**{**every, left_out: False}))
    assert_follows(engine.synthesize(make_task(4)), plain.synthesize(make_task(4)))


def test_task_after_task_is_what_fresh_engines_give_bit_for_bit(
    odd_teacher: Teacher, make_task: MakeTask
) -> None:
    """Nothing of a task is left for the next: no weight, moment, step count, kept iterate or loss."""
    tasks = [make_task(6, index=i, seed=seed) for i, seed in enumerate((1, 2, 3))]
    long_lived = fast(odd_teacher)
    for task in (*tasks, tasks[0]):
        torch.rand(3)
        again, fresh = long_lived.synthesize(task), fast(odd_teacher).synthesize(task)
        assert torch.equal(again.images, fresh.images)
        assert again.curve == fresh.curve
        assert again.figures == fresh.figures


def test_labels_are_the_tasks_own(odd_teacher: Teacher, make_task: MakeTask) -> None:
    engine = fast(odd_teacher)
    first = engine.synthesize(make_task(4))
    shifted = make_task(4)
    shifted.labels[:] = (shifted.labels + 1) % 4
    second = engine.synthesize(shifted)
    assert first.labels.tolist() == [0, 1, 2, 3]
    assert second.labels.tolist() == [1, 2, 3, 0]
    assert first.curve[0]["ce"] != second.curve[0]["ce"]
    assert torch.equal(second.images, fast(odd_teacher).synthesize(shifted).images)


def test_batches_of_another_size_take_turns(odd_teacher: Teacher, make_task: MakeTask) -> None:
    engine = fast(odd_teacher)
    for batch_size in (4, 1, 4):
        batch = engine.synthesize(make_task(batch_size))
        assert torch.equal(batch.images, fast(odd_teacher).synthesize(make_task(batch_size)).images)


def test_a_task_that_was_aborted_leaves_nothing_behind(odd_teacher: Teacher, make_task: MakeTask) -> None:
    def stop(done: Any, terms: Any) -> None:
        if done == 3:
            raise KeyboardInterrupt

    engine = fast(odd_teacher)
    with pytest.raises(KeyboardInterrupt):
        engine.synthesize(make_task(4), stop)
    expected = fast(odd_teacher).synthesize(make_task(4, seed=7))
    assert torch.equal(engine.synthesize(make_task(4, seed=7)).images, expected.images)


@pytest.mark.parametrize("listening", [False, True])
def test_the_curve_is_the_same_whether_somebody_listens(
    odd_teacher: Teacher, make_task: MakeTask, listening: bool
) -> None:
    calls = []
    engine = fast(odd_teacher, log_every=3, iterations=7)
    batch = engine.synthesize(make_task(4), (lambda *call: calls.append(call)) if listening else None)
    assert [point["iteration"] for point in batch.curve] == [1, 3, 6, 7]
    heard = [{"iteration": done, **terms} for done, terms in calls]
    assert heard == (batch.curve if listening else [])


def test_best_is_the_last_iterate_of_a_run_that_stops_there(
    odd_teacher: Teacher, make_task: MakeTask
) -> None:
    task = make_task(4)

    def run(**options: Any) -> Any:
        return fast(odd_teacher, lr_alpha=3.0, **options).synthesize(task)

    totals = [point["total"] for point in run(iterations=12).curve]
    k = next(i for i in range(2, 12) if totals[i] > totals[i - 1] == min(totals[: i + 1]))
    best, last = (run(iterations=k + 1, select=select) for select in ("best", "last"))
    assert best.figures["best_iteration"] == last.figures["best_iteration"] == k
    assert torch.equal(best.images, run(iterations=k, select="last").images)
    assert not torch.equal(best.images, last.images)


def test_a_teacher_that_gives_nan_fails_the_task_and_only_that(
    make_teacher: MakeTeacher, make_task: MakeTask
) -> None:
    teacher = make_teacher()
    engine = fast(teacher)
    expected = engine.synthesize(make_task(4)).images
    remembered = float(teacher.batch_norms[0].running_mean[0])
    teacher.batch_norms[0].running_mean[0] = math.nan
    with pytest.raises(TaskFailure, match="task 7: the loss is not finite from the first") as failure:
        engine.synthesize(make_task(4, index=7))
    assert failure.value.kind == "not_finite"
    teacher.batch_norms[0].running_mean[0] = remembered
    assert torch.equal(engine.synthesize(make_task(4)).images, expected)


@pytest.mark.filterwarnings("default")  # torch.compile of some versions warns of its own code
def test_the_whole_step_is_one_graph_for_a_compiler(
    odd_teacher: Teacher, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced whole, forward and backward, as on a GPU; the code that would be generated is left out."""
    operations = set()

    def record(graph: Any, inputs: Any) -> Any:
        operations.update(str(node.target).removeprefix("aten.") for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=record)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    config = EngineConfig(name="fast", precision=SIXTEEN_BIT)
    engine = fast(odd_teacher, shortcuts=Shortcuts(captured=False), engine=config)
    eager = fast(odd_teacher, shortcuts=Shortcuts(compiled=False, captured=False), engine=config)
    batch, expected = (e.synthesize(make_task(4)) for e in (engine, eager))
    torch._dynamo.reset()
    assert not engine.notes
    assert batch.figures["engine"] == f"fast, {SIXTEEN_BIT}, compiled"
    wanted = [point["total"] for point in expected.curve]
    assert [point["total"] for point in batch.curve] == pytest.approx(wanted, rel=1e-2)
    # The true backward passes of jitter and upsampling leave nothing that adds into a zeroed tensor.
    assert {"convolution_backward.default", "index_select.default"} <= operations
    adding = ("index_put", "_unsafe_index_put", "index_add", "upsample")
    assert not [name for name in operations if name.startswith(adding)]


@pytest.mark.filterwarnings("default")
def test_tasks_of_one_size_are_compiled_once(
    odd_teacher: Teacher, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = []

    def record(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=record)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    engine = fast(odd_teacher, shortcuts=replace(ON_CPU, compiled=True))
    for index in range(3):
        engine.synthesize(make_task(4, index=index, seed=index))
    torch._dynamo.reset()
    assert engine.notes == []
    assert len(graphs) == 2  # forward and backward


def test_a_scaled_loss_takes_the_same_steps(odd_teacher: Teacher, make_task: MakeTask) -> None:
    """As float16 needs it: the scale is a power of two, and Adam's epsilon is scaled along."""
    task, config = make_task(4), NaturalInversionConfig(iterations=4, latent_dim=16)
    assert Arithmetic("float32", loss_scale=4096.0).scale(4) == 256.0
    images = []
    for scale in (1.0, 4096.0):
        inversion = begun(odd_teacher, task, config, precision=Arithmetic("float32", loss_scale=scale))
        for _ in range(4):
            inversion.step()
        images.append(inversion.render(torch.Generator()))
    torch.testing.assert_close(images[1], images[0], rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(SIXTEEN_BIT != "bfloat16", reason="this CPU has no bfloat16")
def test_bfloat16_stays_near(odd_teacher: Teacher, make_task: MakeTask) -> None:
    plain, _ = synthesizers(odd_teacher)
    engine = fast(odd_teacher, engine=EngineConfig(name="fast", precision="bfloat16"))
    batch, wanted = engine.synthesize(make_task(8)), plain.synthesize(make_task(8))
    assert batch.images.dtype == torch.float32
    assert len(batch.images.unique()) > 1000  # rendered in float32, not in steps of 2^-8
    expected = [point["total"] for point in wanted.curve]
    assert [point["total"] for point in batch.curve] == pytest.approx(expected, rel=5e-2)


@pytest.mark.parametrize("input_px", [32, 64, 224])
def test_image_sizes(make_teacher: MakeTeacher, make_task: MakeTask, input_px: int) -> None:
    plain, engine = (
        s.synthesize(make_task(2)) for s in synthesizers(make_teacher(input_px=input_px), iterations=2)
    )
    assert_follows(engine, plain)
    assert engine.images.shape == (2, 3, input_px, input_px)
