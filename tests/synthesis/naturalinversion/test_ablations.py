"""The rows of Table 3: without the pyramid, without the scaling, without both."""

from typing import Any

import pytest
import torch

from nisynth.config import load_config
from nisynth.synthesis import EngineConfig, NaturalInversionConfig, make_synthesizer
from nisynth.synthesis.naturalinversion.renderer import Renderer
from nisynth.teachers import Teacher
from tests.engines import FLOAT32_ENGINE, drawn, inversion_of
from tests.synthesis.conftest import MakeTask

ROWS: list[dict[str, Any]] = [{"pyramid": False}, {"scaling": False}, {"pyramid": False, "scaling": False}]


@pytest.mark.parametrize("options", ROWS, ids=str)
def test_both_loops_run_it(odd_teacher: Teacher, make_task: MakeTask, options: dict[str, Any]) -> None:
    config = NaturalInversionConfig(iterations=5, latent_dim=16, **options)
    plain, fast = (
        make_synthesizer(config, engine, odd_teacher, log_every=1).synthesize(make_task(6))
        for engine in (EngineConfig(), FLOAT32_ENGINE)
    )
    assert fast.figures["engine"] == "fast, float32"
    totals = [point["total"] for point in plain.curve]
    assert [point["total"] for point in fast.curve] == pytest.approx(totals, rel=2e-2)
    assert totals[-1] < totals[0]


@pytest.mark.parametrize("options", [{}, *ROWS], ids=str)
def test_the_image_is_what_is_left_of_the_parts(
    odd_teacher: Teacher, make_task: MakeTask, options: dict[str, Any]
) -> None:
    whole, _ = drawn(make_task(4), NaturalInversionConfig(latent_dim=16), odd_teacher)
    part, _ = drawn(make_task(4), NaturalInversionConfig(latent_dim=16, **options), odd_teacher)
    assert isinstance(whole, Renderer)
    assert isinstance(part, Renderer)
    part.load_state_dict({name: whole.state_dict()[name] for name in part.state_dict()})
    y = torch.arange(4)
    with torch.no_grad():
        image = whole.generator(whole.z, torch.eye(4)[y])
        if options.get("pyramid", True):
            assert whole.pyramid is not None
            image = whole.pyramid.join(image, whole.pyramid(odd_teacher.features(image)))
        if options.get("scaling", True):
            assert whole.scaling is not None
            image = whole.scaling.alpha * image
        torch.testing.assert_close(part(y), image)


def test_what_is_left_out_has_no_weights(odd_teacher: Teacher) -> None:
    def names(**options: Any) -> set[str]:
        config = NaturalInversionConfig(latent_dim=16, **options)
        model = inversion_of(config, odd_teacher).blank_model(4, torch.device("meta"))
        return {name.split(".")[0] for name, _ in model.named_parameters()}

    assert names() == {"generator", "pyramid", "scaling"}
    assert names(pyramid=False) == {"generator", "scaling"}
    assert names(scaling=False) == {"generator", "pyramid"}


@pytest.mark.parametrize(
    ("taps", "parameters"),
    [
        (["layer4"], 1_551),
        (["layer3", "layer4"], 722_191),
        (["layer2", "layer3", "layer4"], 902_287),
        (["layer1", "layer2", "layer3", "layer4"], 947_279),
    ],
)
def test_fewer_taps_are_a_smaller_pyramid(shared: Any, taps: list[str], parameters: int) -> None:
    """Table 4 for the paper's ResNet-34."""
    from nisynth.teachers import load_teacher

    weights = str(shared / "teachers/cifar10_resnet34.safetensors")
    teacher = load_teacher(arch="resnet34", weights=weights, taps=taps)
    model = inversion_of(NaturalInversionConfig(), teacher).blank_model(2, torch.device("meta"))
    pyramid = [p.numel() for name, p in model.named_parameters() if name.startswith("pyramid.")]
    assert sum(pyramid) == parameters


def test_an_ablation_changes_the_fingerprint_and_a_default_does_not() -> None:
    from nisynth.execution.run import plan_run

    def fingerprint(*overrides: str) -> str:
        return plan_run(load_config("smoke_cpu", list(overrides))).fingerprint

    defaults = ("method.pyramid=true", "method.scaling=true", "method.tv=l2")
    assert fingerprint(*defaults) == fingerprint()
    changed = {fingerprint(o) for o in ("method.pyramid=false", "method.scaling=false", "method.tv=l1")}
    assert len(changed | {fingerprint()}) == 4
