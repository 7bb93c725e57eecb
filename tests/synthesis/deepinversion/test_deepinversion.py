"""DeepInversion through its public door, in both loops."""

import math
from typing import Any

import pytest
import torch

from nisynth.errors import ConfigError
from nisynth.synthesis import METHODS, DeepInversionConfig, EngineConfig, make_synthesizer
from nisynth.synthesis.deepinversion.pixels import Pixels
from nisynth.synthesis.inversion.model import blank
from nisynth.synthesis.inversion.schedule import warm_up_and_cosine
from nisynth.teachers import Teacher, load_teacher
from tests.engines import FLOAT32_ENGINE
from tests.synthesis.conftest import MakeTask

IMAGENET: dict[str, Any] = {
    "iterations": 6,
    "half_size_iterations": 4,
    "schedule": "cosine",
    "betas": (0.5, 0.9),
    "jitter_px": 4,
    "flip": True,
    "clip": True,
}


@pytest.mark.parametrize(
    "options",
    [{}, {"select": "last", "tv": "l1", "flip": True}, {"schedule": "cosine", "clip": True}, IMAGENET],
)
def test_the_engine_follows_the_plain_loop(
    odd_teacher: Teacher, make_task: MakeTask, options: dict[str, Any]
) -> None:
    config = DeepInversionConfig(**{"iterations": 5, **options})
    plain, fast = (
        make_synthesizer(config, engine, odd_teacher, log_every=1).synthesize(make_task(6))
        for engine in (EngineConfig(), FLOAT32_ENGINE)
    )
    assert fast.figures["engine"] == "fast, float32"
    assert [p["iteration"] for p in fast.curve] == list(range(1, config.iterations + 1))
    for ours, wanted in zip(fast.curve, plain.curve, strict=True):
        assert ours == pytest.approx(wanted, rel=2e-2)
    assert fast.figures["best_iteration"] == plain.figures["best_iteration"]
    assert float((fast.images - plain.images).norm() / plain.images.norm()) < 0.05


def test_the_images_start_as_normal_noise_and_end_where_the_loss_was_lowest(
    odd_teacher: Teacher, make_task: MakeTask
) -> None:
    batch = make_synthesizer(DeepInversionConfig(iterations=1), EngineConfig(), odd_teacher).synthesize(
        make_task(64)
    )
    assert abs(float(batch.images.mean())) < 0.02
    assert abs(float(batch.images.std()) - 1) < 0.02
    config = DeepInversionConfig(iterations=40)
    longer = make_synthesizer(config, EngineConfig(), odd_teacher, log_every=1).synthesize(make_task(64))
    totals = [point["total"] for point in longer.curve]
    assert longer.figures["best_total"] == min(totals) < 0.85 * totals[0]


def test_a_batch_keeps_its_images_when_the_next_task_runs(odd_teacher: Teacher, make_task: MakeTask) -> None:
    for engine in (EngineConfig(), FLOAT32_ENGINE):
        synthesizer = make_synthesizer(DeepInversionConfig(iterations=2), engine, odd_teacher)
        first = synthesizer.synthesize(make_task(4, seed=1)).images
        before = first.clone()
        second = synthesizer.synthesize(make_task(4, seed=2)).images
        assert torch.equal(first, before)
        assert not torch.equal(first, second)


def test_clipped_images_decode_without_a_value_out_of_range(
    odd_teacher: Teacher, make_task: MakeTask
) -> None:
    def extremes(clip: bool) -> tuple[float, float]:
        config = DeepInversionConfig(iterations=4, clip=clip, select="last")
        images = make_synthesizer(config, EngineConfig(), odd_teacher).synthesize(make_task(4)).images
        unit = images * 0.25 + 0.5
        return float(unit.min()), float(unit.max())

    low, high = extremes(clip=True)
    assert low == pytest.approx(0.0, abs=1e-6)
    assert high == pytest.approx(1.0, abs=1e-6)
    low, high = extremes(clip=False)
    assert low < -0.1
    assert high > 1.1


def test_half_the_size_comes_first_and_the_second_stage_starts_from_its_images(
    odd_teacher: Teacher, make_task: MakeTask
) -> None:
    heard: list[int] = []
    options = {**IMAGENET, "schedule": "constant", "lr": 0.0, "clip": False}
    synthesizer = make_synthesizer(DeepInversionConfig(**options), EngineConfig(), odd_teacher, log_every=1)
    batch = synthesizer.synthesize(make_task(8), lambda iteration, terms: heard.append(iteration))
    assert heard == [1, 2, 3, 4, 5, 6]
    alone = DeepInversionConfig(iterations=1, lr=0.0)
    expected = make_synthesizer(alone, EngineConfig(), odd_teacher).synthesize(make_task(8)).images
    assert torch.equal(batch.images, expected)  # nothing moved: noise of the first stage, at full size
    norms = [point["l2"] for point in batch.curve]
    # The mean of four independent values has half their spread, and there are a quarter as many.
    assert norms[0] / norms[-1] == pytest.approx(0.25, rel=0.1)


def test_the_schedule_rises_and_falls_as_published() -> None:
    factors = warm_up_and_cosine(2000)
    assert factors[0] == 0.01
    assert factors[99] == factors[100] == 1.0
    assert factors[1050] == pytest.approx(0.5)
    assert factors[1999] == pytest.approx(0.5 * (1 + math.cos(math.pi * 1899 / 1900)))
    assert warm_up_and_cosine(1) == [1.0]


def test_presets_are_the_published_settings() -> None:
    presets = METHODS["deepinversion"].presets
    assert DeepInversionConfig(**presets["cifar10"]) == DeepInversionConfig()
    paper = DeepInversionConfig(**presets["cifar10_paper"])
    assert (paper.lr, paper.tv_weight, paper.l2_weight, paper.bn_weight) == (0.05, 2.5e-5, 3e-8, 10.0)
    imagenet = DeepInversionConfig(**presets["imagenet"])
    assert (imagenet.iterations, imagenet.half_size_iterations, imagenet.betas) == (3000, 2000, (0.5, 0.9))
    assert all(not DeepInversionConfig(**presets[name]).flip for name in ("cifar10", "cifar100"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("half_size_iterations", 2000),
        ("betas", (0.9, 1.0)),
        ("lr", -1.0),
        ("iterations", 0),
        ("jitter_px", -1),
    ],
)
def test_a_value_that_cannot_be_used_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"method\.{field}: "):
        DeepInversionConfig(**{field: value})


def test_blank_pixels_hold_no_constant_that_a_blank_model_would_lose(odd_teacher: Teacher) -> None:
    model = blank(lambda: Pixels(DeepInversionConfig(clip=True), odd_teacher, 2), torch.device("cpu"))
    model.load_state_dict({"x": torch.full((2, 3, 16, 16), 9.0)})
    model.constrain()
    assert torch.equal(model(torch.zeros(2, dtype=torch.int64)), torch.full((2, 3, 16, 16), 2.0))


@pytest.mark.slow  # 300 iterations of the shipped teacher: two minutes on one core
def test_the_cpu_gates(make_task: MakeTask, shared: Any) -> None:
    """What a right implementation shows on the shipped ResNet-20 at B=32 (preset cifar10)."""
    teacher = load_teacher(arch="resnet20")
    judge = load_teacher(arch="vgg11", weights=str(shared / "teachers/cifar10_vgg11.safetensors"))
    for iterations, r_bn, transfer in ((100, 5.5, 0.25), (300, 4.2, 0.35)):
        config = DeepInversionConfig(iterations=iterations)
        batch = make_synthesizer(config, FLOAT32_ENGINE, teacher, log_every=1).synthesize(
            make_task(32, num_classes=10, seed=3)
        )
        best = batch.curve[batch.figures["best_iteration"] - 1]
        assert 50 < batch.curve[0]["r_bn"] < 75
        assert best["r_bn"] < r_bn
        assert best["ce"] < 0.15
        pixels = teacher.normalization.to_pixels(batch.images)
        assert teacher.accuracy(pixels, batch.labels) >= 31 / 32
        assert judge.accuracy(pixels, batch.labels) >= transfer
