"""The methods that turn a teacher into images, behind one seam: `synthesize(task) -> ImageBatch`.

A method is a frozen Config and a Synthesizer; adding one costs a file here and a line in `Method` and
`make_synthesizer`. Nothing in this package knows of storage or of Ray.
"""

from collections.abc import Mapping
from typing import Any

import torch

from nisynth.synthesis import naturalinversion, noise
from nisynth.synthesis.naturalinversion import NaturalInversionConfig
from nisynth.synthesis.noise import NoiseConfig
from nisynth.synthesis.protocol import EngineConfig, StepCallback, Synthesizer
from nisynth.teachers import Teacher

__all__ = [
    "PRESETS",
    "EngineConfig",
    "Method",
    "NaturalInversionConfig",
    "NoiseConfig",
    "StepCallback",
    "Synthesizer",
    "check_engine",
    "make_synthesizer",
]

Method = NaturalInversionConfig | NoiseConfig
"""Every method's Config; `name` tells them apart."""

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {"naturalinversion": naturalinversion.PRESETS}
"""Fields of published experiments, by method and preset."""


def check_engine(method: Method, engine: EngineConfig, device: torch.device) -> None:
    """Raises ConfigError when the engine, or the device, lacks what `make_synthesizer` would need of it."""
    if not isinstance(method, NoiseConfig):
        naturalinversion.check_engine(engine, device)


def make_synthesizer(
    method: Method, engine: EngineConfig, teacher: Teacher, *, log_every: int = 50
) -> Synthesizer:
    """Returns the synthesizer that runs `method` on `teacher` with `engine`, on the teacher's device.

    `log_every` is the number of iterations between two points of the loss curve. `noise` has no loop and
    ignores engine and `log_every`. Raises ConfigError when the engine cannot run the method.
    """
    if isinstance(method, NoiseConfig):
        return noise.NoiseSynthesizer(teacher)
    return naturalinversion.make_synthesizer(method, engine, teacher, log_every=log_every)
