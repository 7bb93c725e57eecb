"""Algorithm 1 through its public door: determinism, what it returns, how it fails."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nisynth.batch import Task
from nisynth.errors import TaskFailure
from nisynth.synthesis import EngineConfig, NaturalInversionConfig, make_synthesizer
from nisynth.teachers import Teacher
from tests.engines import drawn
from tests.synthesis.conftest import MakeTask, MakeTeacher


def synthesizer(teacher: Teacher, log_every: int = 50, **options: Any) -> Any:
    config = NaturalInversionConfig(**{"iterations": 4, "latent_dim": 16, **options})
    return make_synthesizer(config, EngineConfig(), teacher, log_every=log_every)


def test_a_task_gives_equal_bits_whoever_runs_it_and_after_whatever(
    odd_teacher: Teacher, make_task: MakeTask
) -> None:
    a, b = make_task(6, index=0, seed=1), make_task(6, index=1, seed=2)
    first, second = synthesizer(odd_teacher), synthesizer(odd_teacher)
    image_a, image_b = first.synthesize(a).images, first.synthesize(b).images
    torch.rand(5)
    assert torch.equal(second.synthesize(b).images, image_b)
    assert torch.equal(second.synthesize(a).images, image_a)
    assert torch.equal(first.synthesize(a).images, image_a)
    assert not torch.equal(image_a, image_b)


def test_the_loss_falls_on_the_shipped_teacher_whose_weights_take_no_gradient(
    shipped_teacher: Teacher, make_task: MakeTask
) -> None:
    before = {name: value.clone() for name, value in shipped_teacher.network.state_dict().items()}
    engine = synthesizer(shipped_teacher, log_every=10, iterations=30, latent_dim=1024)
    batch = engine.synthesize(make_task(8, num_classes=10))
    total = [point["total"] for point in batch.curve]
    assert [point["iteration"] for point in batch.curve] == [1, 10, 20, 30]
    assert total[0] > 2 * total[1] > 2 * total[-1]
    assert batch.figures["best_total"] <= min(total)
    assert all(p.grad is None and not p.requires_grad for p in shipped_teacher.network.parameters())
    after = shipped_teacher.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_curve_holds_the_unweighted_terms_at_the_first_every_nth_and_last_iteration(
    odd_teacher: Teacher, make_task: MakeTask
) -> None:
    calls = []
    engine = synthesizer(odd_teacher, log_every=3, iterations=7)
    batch = engine.synthesize(make_task(4), lambda done, terms: calls.append((done, dict(terms))))
    assert [done for done, _ in calls] == [1, 3, 6, 7]
    assert [{"iteration": done, **terms} for done, terms in calls] == batch.curve
    for _, t in calls:
        weighted = t["ce"] + 10 * t["r_bn"] + 6e-3 * t["tv"] + 1.5e-5 * t["l2"]
        assert t["total"] == pytest.approx(weighted, rel=1e-6)
    last = batch.curve[-1]
    assert {k: v for k, v in batch.figures.items() if k.startswith("final_")} == {
        f"final_{name}": last[name] for name in ("total", "ce", "r_bn", "tv", "l2")
    }


def test_a_step_callback_may_abort_the_task(odd_teacher: Teacher, make_task: MakeTask) -> None:
    def stop(done: Any, terms: Any) -> None:
        raise KeyboardInterrupt

    engine = synthesizer(odd_teacher)
    with pytest.raises(KeyboardInterrupt):
        engine.synthesize(make_task(4), stop)
    assert not torch.are_deterministic_algorithms_enabled()
    engine.synthesize(make_task(4))


@pytest.mark.parametrize("head", ["tanh", "sum"])
def test_the_result_is_rendered_without_jitter(odd_teacher: Teacher, make_task: MakeTask, head: str) -> None:
    """After one iteration the kept iterate is the initial one: render it by hand, layer by layer."""
    task = make_task(5)
    engine = synthesizer(odd_teacher, iterations=1, head=head)
    batch = engine.synthesize(task)
    config = NaturalInversionConfig(iterations=1, latent_dim=16, head=head)
    parts, draws = drawn(task, config, odd_teacher)
    with torch.no_grad():
        x_hat = parts.generator(parts.z, torch.eye(4)[batch.labels])
        f_1 = odd_teacher.network.stages[0](x_hat)
        f_2 = odd_teacher.network.stages[1](f_1)
        f_3 = odd_teacher.network.stages[2](f_2)
        joined = parts.pyramid([f_1, f_2, f_3]) + x_hat
        if head == "tanh":
            joined = torch.tanh(parts.pyramid.head(joined))
        expected = draws.weights["scaling.alpha"] * joined
    assert torch.allclose(batch.images, expected, rtol=1e-5, atol=1e-5)
    assert batch.images.shape == (5, 3, 16, 16)
    assert batch.figures["best_iteration"] == 1


def test_best_is_the_last_iterate_of_a_run_that_stops_there(
    odd_teacher: Teacher, make_task: MakeTask
) -> None:
    """The jitter makes the loss rise now and then: a run that ends after such a rise tells them apart."""
    task = make_task(4)
    totals = [point["total"] for point in run(odd_teacher, task, iterations=12, lr_alpha=3.0).curve]
    k = next(i for i in range(2, 12) if totals[i] > totals[i - 1] == min(totals[: i + 1]))
    best, last, stopped = (
        run(odd_teacher, task, iterations=iterations, select=select, lr_alpha=3.0)
        for iterations, select in ((k + 1, "best"), (k + 1, "last"), (k, "last"))
    )
    for batch in (best, last):
        assert batch.figures["best_iteration"] == k
        assert batch.figures["best_total"] == totals[k - 1]
    assert torch.equal(best.images, stopped.images)
    assert not torch.equal(best.images, last.images)


def run(teacher: Teacher, task: Task, **options: Any) -> Any:
    return synthesizer(teacher, log_every=1, **options).synthesize(task)


@pytest.mark.parametrize("feature_gradient", [False, True])
def test_gradient_through_the_features_is_an_option(
    odd_teacher: Teacher, make_task: MakeTask, feature_gradient: bool
) -> None:
    config = NaturalInversionConfig(latent_dim=16, iterations=1, feature_gradient=feature_gradient)
    parts, _ = drawn(make_task(4), config, odd_teacher)
    image = parts(torch.arange(4))
    with torch.no_grad():  # what reaches the image past the pyramid: d image / d x_hat with m_L fixed
        x_hat = parts.generator(parts.z, torch.eye(4))
        m_l = parts.pyramid(odd_teacher.features(x_hat))
    parts.generator.zero_grad()
    torch.autograd.backward(image.sum())
    actual = parts.generator.linear.weight.grad.clone()
    parts.generator.zero_grad()
    direct = parts.scaling(parts.pyramid.join(parts.generator(parts.z, torch.eye(4)), m_l))
    torch.autograd.backward(direct.sum())
    only_direct = torch.allclose(actual, parts.generator.linear.weight.grad, rtol=1e-4, atol=1e-4)
    assert only_direct is (not feature_gradient)


def test_a_teacher_that_gives_nan_fails_the_task(make_teacher: MakeTeacher, make_task: MakeTask) -> None:
    teacher = make_teacher()
    teacher.batch_norms[0].running_mean[0] = math.nan
    with pytest.raises(
        TaskFailure, match="task 7: the loss is not finite from the first iteration"
    ) as failure:
        synthesizer(teacher).synthesize(make_task(4, index=7))
    assert failure.value.kind == "not_finite"


def test_out_of_memory_names_the_batch_size_and_the_next_task_runs(
    make_teacher: MakeTeacher, make_task: MakeTask
) -> None:
    class Hungry(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x + torch.empty(2**59)[0] if len(x) == 6 else x

    teacher = make_teacher()
    teacher.network.stages.append(Hungry())
    engine = synthesizer(teacher)
    with pytest.raises(TaskFailure, match=r"task 3: run\.batch_size 6 .*try run\.batch_size 3") as failure:
        engine.synthesize(make_task(6, index=3))
    assert failure.value.kind == "out_of_memory"
    assert failure.value.__context__ is None
    engine.synthesize(make_task(4))


@pytest.mark.parametrize("input_px", [32, 64, 224])
def test_image_sizes(make_teacher: MakeTeacher, make_task: MakeTask, input_px: int) -> None:
    teacher = make_teacher(input_px=input_px)
    batch = synthesizer(teacher, iterations=2).synthesize(make_task(2))
    assert batch.images.shape == (2, 3, input_px, input_px)
    assert batch.curve[-1]["total"] < batch.curve[0]["total"]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_any_batch_size(odd_teacher: Teacher, make_task: MakeTask, batch_size: int) -> None:
    assert len(synthesizer(odd_teacher).synthesize(make_task(batch_size)).images) == batch_size
