"""NaturalInversion (AAAI-22): one generator per batch, features of the teacher, learned channel scales.

The defaults follow the published code, which made the published images; where the paper says otherwise
the difference is an option of `NaturalInversionConfig`, documented there. The parts are `generator`,
`pyramid` and `scaling`, put together by `renderer`; `objective` is Eq. 8; `draws` is all randomness of a
task; `inversion` is Algorithm 1. Every engine shares all of these and differs only in the loop.
"""

import torch

from nisynth.errors import ConfigError
from nisynth.synthesis.engine.fast import FastSynthesizer
from nisynth.synthesis.engine.precision import resolve
from nisynth.synthesis.inversion.plain import PlainSynthesizer
from nisynth.synthesis.naturalinversion.config import PRESETS, NaturalInversionConfig
from nisynth.synthesis.protocol import EngineConfig, Synthesizer
from nisynth.teachers import Teacher

__all__ = ["PRESETS", "NaturalInversionConfig", "check_engine", "make_synthesizer"]


def check_engine(engine: EngineConfig, device: torch.device) -> None:
    """Raises ConfigError when this engine has no such precision, or the device none."""
    if engine.name == "fast":
        resolve(engine.precision, device)
    elif engine.precision not in ("auto", "float32"):
        raise ConfigError(
            f"engine.precision {engine.precision!r} needs engine.name: fast; "
            "the plain engine is float32, so set engine.precision to auto or float32"
        )


def make_synthesizer(
    config: NaturalInversionConfig, engine: EngineConfig, teacher: Teacher, *, log_every: int = 50
) -> Synthesizer:
    """Returns the loop that `engine` names. Raises ConfigError when it cannot run as asked."""
    check_engine(engine, teacher.device)
    if engine.name == "fast":
        return FastSynthesizer(config, engine, teacher, log_every=log_every)
    return PlainSynthesizer(config, teacher, log_every=log_every)
