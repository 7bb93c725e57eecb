"""`method.exchange`: mixed images of a finished batch, with labels that are observed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nisynth
from nisynth.config import load_config
from nisynth.errors import ConfigError
from nisynth.execution.run import plan_run
from nisynth.synthesis import EngineConfig, NaturalInversionConfig, make_synthesizer
from nisynth.synthesis.naturalinversion.exchange import draw_masks
from nisynth.synthesis.naturalinversion.generator import Generator
from nisynth.teachers import Teacher
from tests.engines import FLOAT32_ENGINE
from tests.synthesis.conftest import MakeTask

WIDTHS = [128, 128, 64]


def rng(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generator_and_inputs() -> tuple[Generator, torch.Tensor, torch.Tensor]:
    generator = Generator(4, 32, latent_dim=8)
    generator.load_state_dict(generator.draw_weights(rng()))
    return generator, torch.randn((5, 8), generator=rng(1)), torch.eye(4)[torch.arange(5) % 4]


def test_an_image_takes_half_of_the_channels_of_one_map() -> None:
    masks = draw_masks(3000, WIDTHS, rng())
    assert [mask.shape for mask in masks] == [(3000, width, 1, 1) for width in WIDTHS]
    taken = torch.stack([mask.flatten(1).sum(1) for mask in masks], 1)
    in_one_map = taken.count_nonzero(1)
    assert bool((in_one_map == 1).all())
    assert [set(column.unique().tolist()) for column in taken.T] == [{0, 64}, {0, 64}, {0, 32}]
    shares = (taken > 0).double().mean(0)
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.04)
    of_channels = masks[0].flatten(1)[taken[:, 0] > 0].double().mean(0)  # no channel is favoured
    assert of_channels.tolist() == pytest.approx([0.5] * 128, abs=0.1)


@torch.no_grad()
def test_nothing_exchanged_is_the_image_and_everything_the_partners() -> None:
    generator, z, y = generator_and_inputs()
    none = [torch.zeros((5, width, 1, 1), dtype=torch.bool) for width in generator.map_widths()]
    torch.testing.assert_close(generator.forward_exchanged(z, y, none), generator(z, y))
    for index, width in enumerate(generator.map_widths()):
        every = [*none[:index], torch.ones((5, width, 1, 1), dtype=torch.bool), *none[index + 1 :]]
        torch.testing.assert_close(generator.forward_exchanged(z, y, every), generator(z, y).flip(0))


@torch.no_grad()
def test_mixed_maps_are_normalized_by_the_statistics_of_the_batch() -> None:
    """One image alone exchanges: it must come out as it does beside others that exchange."""
    generator, z, y = generator_and_inputs()
    masks = draw_masks(5, generator.map_widths(), rng(7))
    together = generator.forward_exchanged(z, y, masks)
    for image in range(5):
        alone = [mask & (torch.arange(5) == image)[:, None, None, None] for mask in masks]
        torch.testing.assert_close(generator.forward_exchanged(z, y, alone)[image], together[image])
    assert not torch.allclose(together[0], generator(z, y)[0])


@pytest.mark.parametrize(("batch_size", "exchange", "optimized"), [(6, 1, 3), (7, 1, 4), (8, 3, 2)])
def test_the_first_images_are_those_of_a_smaller_batch(
    odd_teacher: Teacher, make_task: MakeTask, batch_size: int, exchange: int, optimized: int
) -> None:
    def images(size: int, **options: Any) -> torch.Tensor:
        config = NaturalInversionConfig(iterations=3, latent_dim=8, **options)
        batch = make_synthesizer(config, EngineConfig(), odd_teacher).synthesize(make_task(size))
        expected = odd_teacher.predict(odd_teacher.normalization.to_pixels(batch.images))
        if options:
            assert batch.labels.tolist() == expected.tolist()
            hits = expected[:optimized] == torch.arange(optimized) % 4
            assert batch.figures["planned_accuracy"] == pytest.approx(hits.double().mean())
        return batch.images

    mixed = images(batch_size, exchange=exchange)
    assert len(mixed) == batch_size
    assert torch.equal(mixed[:optimized], images(optimized))
    assert torch.equal(mixed, images(batch_size, exchange=exchange))
    assert len(mixed.flatten(1).unique(dim=0)) > optimized


def test_both_loops_render_it(odd_teacher: Teacher, make_task: MakeTask) -> None:
    config = NaturalInversionConfig(iterations=3, latent_dim=8, exchange=1)
    plain, fast = (
        make_synthesizer(config, engine, odd_teacher).synthesize(make_task(6))
        for engine in (EngineConfig(), FLOAT32_ENGINE)
    )
    assert fast.figures["engine"] == "fast, float32"
    assert len(fast.images) == len(plain.images) == 6
    torch.testing.assert_close(fast.images, plain.images, rtol=0.1, atol=0.1)


def test_a_run_of_it_is_read_with_observed_labels(tmp_path: Path) -> None:
    options = ["method.exchange=1", "method.iterations=2", "run.num_images=10", "run.batch_size=8"]
    config = load_config("smoke_cpu", [*options, "execution.quality_gate=0"])
    plan = plan_run(config)
    assert plan.observes_labels
    nisynth.run(config, str(tmp_path / "run"))
    assert nisynth.verify(str(tmp_path / "run"), deep=True).problems == ()
    images = nisynth.open_dataset(str(tmp_path / "run"))
    assert len(images) == 10
    teacher = nisynth.load_teacher(arch="resnet20")
    pixels = torch.stack([torch.as_tensor(np.asarray(images[i][0])) for i in range(10)])
    assert teacher.predict(pixels).tolist() == [int(images[i][1]) for i in range(10)]


def test_a_probe_judges_the_optimized_images_by_their_planned_labels() -> None:
    options = ["method.exchange=20", "method.iterations=2", "run.batch_size=64", "run.num_images=64"]
    config = load_config("smoke_cpu", options)
    probed = nisynth.probe(config)
    assert len(probed.labels) == 32
    assert probed.labels.tolist() == plan_run(config)[0].labels[:32].tolist()


def test_it_changes_the_fingerprint_only_when_it_is_on() -> None:
    def fingerprint(*overrides: str) -> str:
        return plan_run(load_config("smoke_cpu", list(overrides))).fingerprint

    assert fingerprint("method.exchange=0") == fingerprint()
    assert len({fingerprint(), fingerprint("method.exchange=1"), fingerprint("method.exchange=2")}) == 3


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["method.exchange=-1"], "method.exchange: -1 cannot be used; give a finite number, 0 or more"),
        (
            ["method.exchange=3", "run.batch_size=4"],
            "method.exchange: 3 leaves 1 of run.batch_size 4 images to optimize;"
            " give run.batch_size 5 or more, or lower it",
        ),
    ],
)
def test_what_cannot_be_mixed_is_refused(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config("smoke_cpu", overrides)
    assert str(refused.value) == line
