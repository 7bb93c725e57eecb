"""`normalization: reference`: the same network with another mean and std gives the same images."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nisynth.batch import ImageBatch, Task
from nisynth.images import Normalization
from nisynth.synthesis import EngineConfig, NaturalInversionConfig, RivalConfig, make_synthesizer
from nisynth.synthesis.inversion.reference_units import (
    REFERENCE_NORMALIZATION,
    Renormalization,
    in_reference_units,
)
from nisynth.synthesis.inversion.rival import Rival
from nisynth.teachers import Teacher
from tests.golden.record import tiny_teacher

PIXELS = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CPU = torch.device("cpu")


def in_units_of(teacher: Teacher, normalization: Normalization) -> Teacher:
    """The same function of pixels, by a layer in front of the network."""
    layer = Renormalization(normalization, teacher.normalization, CPU)
    return Teacher(
        nn.Sequential(layer, teacher.network),
        normalization=normalization,
        classes=teacher.classes,
        input_px=teacher.input_px,
        taps=[f"1.{tap.name}" for tap in teacher.taps],
    )


def synthesized(
    teacher: Teacher, engine: str, normalization: str, rival: nn.Module | None = None
) -> ImageBatch:
    config = NaturalInversionConfig(
        iterations=3,
        latent_dim=8,
        normalization=normalization,  # type: ignore[arg-type]
        tv_weight=0.1,
        l2_weight=0.1,
        rival=None if rival is None else RivalConfig(arch="tests.tiny:TinyNet", weights="not read"),
    )
    task = Task(index=0, seed=3, labels=np.arange(4, dtype=np.int64), rows=4)
    arithmetic = EngineConfig(name=engine, precision="float32")  # type: ignore[arg-type]
    artefacts = {} if rival is None else {"rival": Rival(rival, "", teacher.num_classes)}
    made = make_synthesizer(config, arithmetic, teacher, log_every=1, artefacts=artefacts)
    return made.synthesize(task)


def pixel_values(batch: ImageBatch, teacher: Teacher) -> Tensor:
    mean, std = teacher.normalization.columns(CPU)
    return batch.images * std + mean


@pytest.mark.parametrize("engine", ["plain", "fast"])
def test_another_mean_and_std_gives_the_same_losses_and_images(engine: str) -> None:
    teacher = tiny_teacher()
    other = in_units_of(teacher, PIXELS)
    ours, theirs = (synthesized(made, engine, "reference") for made in (teacher, other))
    assert len(ours.curve) == 3
    for mine, yours in zip(ours.curve, theirs.curve, strict=True):
        assert yours == pytest.approx(mine, rel=1e-3)
    torch.testing.assert_close(pixel_values(theirs, other), pixel_values(ours, teacher), rtol=0, atol=1e-2)
    published = synthesized(other, engine, "teacher")
    assert published.curve[0]["total"] != pytest.approx(ours.curve[0]["total"], rel=0.05)


def test_a_teacher_of_the_reference_is_left_as_it_is() -> None:
    teacher = in_units_of(tiny_teacher(), REFERENCE_NORMALIZATION)
    ours, theirs = (synthesized(teacher, "plain", units) for units in ("teacher", "reference"))
    assert torch.equal(ours.images, theirs.images)
    assert ours.curve == theirs.curve


def test_a_rival_sees_the_images_in_its_own_units() -> None:
    teacher = tiny_teacher()
    twin = synthesized(teacher, "plain", "reference", rival=teacher.network)
    other = in_units_of(teacher, PIXELS)
    same = synthesized(other, "plain", "reference", rival=other.network)
    assert same.curve[-1]["competition"] == pytest.approx(twin.curve[-1]["competition"], rel=1e-3)
    assert twin.figures["disagreement"] == pytest.approx(0.0, abs=1e-3)


def test_the_renormalized_teacher_answers_the_same() -> None:
    teacher = tiny_teacher()
    pixels = torch.randint(0, 256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    seen = in_reference_units(teacher)
    x, y = teacher.normalization.normalize(pixels), seen.normalization.normalize(pixels)
    torch.testing.assert_close(seen.logits(y), teacher.logits(x), rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(teacher.features(x), seen.features(y), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
