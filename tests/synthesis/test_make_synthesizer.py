"""The engine's name and precision are refused where they cannot be had."""

from typing import Any

import pytest

from nisynth.errors import ConfigError
from nisynth.synthesis import METHODS, EngineConfig, NaturalInversionConfig, make_synthesizer
from nisynth.teachers import Teacher
from tests.synthesis.conftest import MakeTask


def test_the_engine_is_chosen_by_name(odd_teacher: Teacher, make_task: MakeTask) -> None:
    config = NaturalInversionConfig(iterations=1, latent_dim=4)
    plain, fast = (
        make_synthesizer(config, EngineConfig(name=name, precision="float32"), odd_teacher)
        for name in ("plain", "fast")
    )
    assert "engine" not in plain.synthesize(make_task(2)).figures
    assert fast.synthesize(make_task(2)).figures["engine"] == "fast, float32"


@pytest.mark.parametrize("precision", ["tf32", "bfloat16", "float16"])
def test_the_plain_engine_is_float32(odd_teacher: Teacher, precision: str) -> None:
    with pytest.raises(ConfigError, match=rf"engine\.precision '{precision}' .*auto or float32"):
        make_synthesizer(NaturalInversionConfig(), EngineConfig(precision=precision), odd_teacher)


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_the_plain_engine_takes_its_own_precision(odd_teacher: Teacher, precision: str) -> None:
    make_synthesizer(NaturalInversionConfig(), EngineConfig(precision=precision), odd_teacher)


def test_presets_are_the_papers_experiments() -> None:
    presets = METHODS["naturalinversion"].presets
    cifar10 = NaturalInversionConfig(**presets["cifar10"])
    cifar100 = NaturalInversionConfig(**presets["cifar100"])
    assert cifar10 == NaturalInversionConfig()
    assert (cifar100.iterations, cifar100.bn_weight) == (4000, 3.0)
    for config in (cifar10, cifar100):
        assert (config.lr_generator, config.lr_pyramid, config.lr_alpha) == (1e-3, 5e-4, 5e-2)
        assert (config.tv_weight, config.l2_weight) == (6e-3, 1.5e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("iterations", 0),
        ("latent_dim", 0),
        ("jitter_px", -1),
        ("bn_weight", float("nan")),
        ("tv_weight", -1e-3),
        ("lr_alpha", float("inf")),
    ],
)
def test_a_value_that_cannot_be_used_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"method\.{field}: {value} .*; give "):
        NaturalInversionConfig(**{field: value})
