"""The table of methods, and how a row becomes a synthesizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from nisynth.errors import ConfigError
from nisynth.synthesis.engine.fast import FastSynthesizer
from nisynth.synthesis.engine.precision import resolve
from nisynth.synthesis.inversion.config import InversionConfig
from nisynth.synthesis.inversion.method import InversionMethod, MakeModel
from nisynth.synthesis.inversion.plain import PlainSynthesizer
from nisynth.synthesis.naturalinversion import config as naturalinversion
from nisynth.synthesis.naturalinversion.renderer import Renderer
from nisynth.synthesis.noise import NoiseConfig, NoiseSynthesizer
from nisynth.synthesis.protocol import EngineConfig, Method, Synthesizer
from nisynth.teachers import Teacher


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """What a method brings.

    config: its frozen dataclass. presets: fields of published experiments, by preset. Then one of two:
    model: constructs its ImageModel; the loop that `engine` names runs it.
    synthesizer: constructs what makes its images without a loop, and without an engine.
    """

    config: type[Any]
    presets: Mapping[str, Mapping[str, Any]]
    model: MakeModel | None = None
    synthesizer: Callable[[Any, Teacher], Synthesizer] | None = None


METHODS: dict[str, MethodRow] = {
    "naturalinversion": MethodRow(
        config=naturalinversion.NaturalInversionConfig, presets=naturalinversion.PRESETS, model=Renderer
    ),
    "noise": MethodRow(
        config=NoiseConfig, presets={}, synthesizer=lambda config, teacher: NoiseSynthesizer(teacher)
    ),
}
"""Every method by the name that its config states; the first is the default. Adding one is a row here."""


def check_engine(method: Method, engine: EngineConfig, device: torch.device) -> None:
    """Raises ConfigError when the engine, or the device, lacks what `make_synthesizer` would need of it."""
    if METHODS[method.name].model is None:
        return  # no loop, no engine
    if engine.name == "fast":
        resolve(engine.precision, device)
    elif engine.precision not in ("auto", "float32"):
        raise ConfigError(
            f"engine.precision {engine.precision!r} needs engine.name: fast; "
            "the plain engine is float32, so set engine.precision to auto or float32"
        )


def make_synthesizer(
    method: Method, engine: EngineConfig, teacher: Teacher, *, log_every: int = 50
) -> Synthesizer:
    """Returns the synthesizer that runs `method` on `teacher` with `engine`, on the teacher's device.

    `log_every` is the number of iterations between two points of the loss curve. `noise` has no loop and
    ignores engine and `log_every`. Raises ConfigError when the engine cannot run the method.
    """
    row = METHODS[method.name]
    if row.model is None:
        assert row.synthesizer is not None
        return row.synthesizer(method, teacher)
    check_engine(method, engine, teacher.device)
    inversion = InversionMethod(cast(InversionConfig, method), teacher, row.model)
    if engine.name == "fast":
        return FastSynthesizer(inversion, engine, log_every=log_every)
    return PlainSynthesizer(inversion, log_every=log_every)
