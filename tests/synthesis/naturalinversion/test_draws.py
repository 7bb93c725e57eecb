"""All randomness of a task comes from its seed, in one order, on the CPU."""

import dataclasses
from typing import Any

import torch

from nisynth.batch import Task
from nisynth.synthesis import NaturalInversionConfig
from nisynth.synthesis.inversion.draws import draw as draw_for
from nisynth.teachers import Teacher
from tests.engines import inversion_of
from tests.synthesis.conftest import MakeTask

CONFIG = NaturalInversionConfig(iterations=6, latent_dim=8)
CPU, META = torch.device("cpu"), torch.device("meta")


def draw(task: Task, config: Any, teacher: Teacher) -> Any:
    """Draws for shapes alone: a model on the meta device holds no number."""
    return draw_for(task, config, inversion_of(config, teacher).blank_model(len(task.labels), META))


def z(draws: Any) -> Any:
    return draws.weights["z"]


def equal(a: Any, b: Any) -> Any:
    return all(
        torch.equal(a.weights[name], b.weights[name]) for name in a.weights | b.weights
    ) and torch.equal(a.jitter, b.jitter)


def test_equal_tasks_draw_equally_and_leave_the_global_generator_alone(
    odd_teacher: Teacher, make_task: MakeTask
) -> None:
    before = torch.get_rng_state()
    first = draw(make_task(4, seed=11), CONFIG, odd_teacher)
    torch.rand(3)
    assert equal(first, draw(make_task(4, seed=11), CONFIG, odd_teacher))
    assert not equal(first, draw(make_task(4, seed=12), CONFIG, odd_teacher))
    torch.set_rng_state(before)
    draw(make_task(4), CONFIG, odd_teacher)
    inversion_of(CONFIG, odd_teacher).blank_model(4, CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_fill_a_renderer_in_place(odd_teacher: Teacher, make_task: MakeTask) -> None:
    renderer = inversion_of(CONFIG, odd_teacher).blank_model(4, CPU)
    addresses = [p.data_ptr() for p in renderer.parameters()]
    for seed in (1, 2):
        draws = draw(make_task(4, seed=seed), CONFIG, odd_teacher)
        renderer.load_state_dict(draws.weights)
        assert draws.weights.keys() == renderer.state_dict().keys()
        assert all(torch.equal(p, draws.weights[name]) for name, p in renderer.named_parameters())
    assert [p.data_ptr() for p in renderer.parameters()] == addresses


def test_the_order_is_generator_pyramid_z_alpha_jitter(odd_teacher: Teacher, make_task: MakeTask) -> None:
    """What is drawn later does not change what was drawn before it."""
    base = draw(make_task(4), CONFIG, odd_teacher)
    longer = draw(make_task(4), dataclasses.replace(CONFIG, iterations=9), odd_teacher)
    still = draw(make_task(4), dataclasses.replace(CONFIG, jitter_px=0, flip=False), odd_teacher)
    for other in (longer, still):
        assert torch.equal(z(other), z(base))
        assert all(torch.equal(other.weights[name], base.weights[name]) for name in base.weights)
    assert torch.equal(longer.jitter[:6], base.jitter)
    bigger = draw(make_task(8), CONFIG, odd_teacher)
    names = [name for name in base.weights if name not in ("scaling.alpha", "z")]
    assert all(torch.equal(bigger.weights[name], base.weights[name]) for name in names)
    bare = draw(make_task(4), dataclasses.replace(CONFIG, head="sum"), odd_teacher)
    names = [name for name in base.weights if name.startswith("generator.")]
    assert all(torch.equal(bare.weights[name], base.weights[name]) for name in names)


def test_z_and_alpha_are_normal(odd_teacher: Teacher, make_task: MakeTask) -> None:
    draws = draw(make_task(400), dataclasses.replace(CONFIG, latent_dim=50), odd_teacher)
    alpha = draws.weights["scaling.alpha"]
    assert alpha.shape == (400, 3, 1, 1)
    assert abs(float(alpha.mean()) - 5) < 0.1
    assert abs(float(alpha.std()) - 1) < 0.1
    assert abs(float(z(draws).mean())) < 0.03
    assert abs(float(z(draws).std()) - 1) < 0.03
