"""The methods that turn a teacher into images, behind one seam: `synthesize(task) -> ImageBatch`.

A method is a row of METHODS. An inversion method's row has a Config and an `inversion.model.ImageModel`:
the plain loop and the engine serve it as they are. Nothing in this package knows of storage or of Ray.
"""

from nisynth.synthesis.deepinversion.config import DeepInversionConfig
from nisynth.synthesis.inversion.rival import RivalConfig
from nisynth.synthesis.methods import (
    METHODS,
    Artefacts,
    MethodRow,
    check_engine,
    inverting,
    load_artefacts,
    make_synthesizer,
)
from nisynth.synthesis.naturalinversion.config import NaturalInversionConfig
from nisynth.synthesis.noise import NoiseConfig
from nisynth.synthesis.protocol import EngineConfig, Method, StepCallback, Synthesizer

__all__ = [
    "METHODS",
    "Artefacts",
    "DeepInversionConfig",
    "EngineConfig",
    "Method",
    "MethodRow",
    "NaturalInversionConfig",
    "NoiseConfig",
    "RivalConfig",
    "StepCallback",
    "Synthesizer",
    "check_engine",
    "inverting",
    "load_artefacts",
    "make_synthesizer",
]
