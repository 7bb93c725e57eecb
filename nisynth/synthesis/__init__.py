"""The methods that turn a teacher into images, behind one seam: `synthesize(task) -> ImageBatch`.

A method is a row of METHODS. An inversion method's row has a Config and an `inversion.model.ImageModel`:
the plain loop and the engine serve it as they are. Nothing in this package knows of storage or of Ray.
"""

from nisynth.synthesis.methods import METHODS, MethodRow, check_engine, make_synthesizer
from nisynth.synthesis.naturalinversion.config import NaturalInversionConfig
from nisynth.synthesis.noise import NoiseConfig
from nisynth.synthesis.protocol import EngineConfig, Method, StepCallback, Synthesizer

__all__ = [
    "METHODS",
    "EngineConfig",
    "Method",
    "MethodRow",
    "NaturalInversionConfig",
    "NoiseConfig",
    "StepCallback",
    "Synthesizer",
    "check_engine",
    "make_synthesizer",
]
