"""Engines of a few iterations, for tests."""

from typing import Any

import torch

from nisynth.batch import Task
from nisynth.synthesis import EngineConfig, NaturalInversionConfig, make_synthesizer
from nisynth.synthesis.deepinversion.pixels import Pixels
from nisynth.synthesis.engine.fast import FastSynthesizer
from nisynth.synthesis.engine.shortcuts import Shortcuts
from nisynth.synthesis.inversion.draws import draw
from nisynth.synthesis.inversion.method import InversionMethod
from nisynth.synthesis.naturalinversion.renderer import Renderer
from nisynth.teachers import Teacher

ON_CPU = Shortcuts.on(torch.device("cpu"))
FLOAT32_ENGINE = EngineConfig(name="fast", precision="float32")
MODELS = {"naturalinversion": Renderer, "deepinversion": Pixels}
SIXTEEN_BIT = "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


def synthesizers(teacher: Teacher, log_every: int = 1, **options: Any) -> Any:
    config = NaturalInversionConfig(**{"iterations": 5, "latent_dim": 16, **options})
    return tuple(
        make_synthesizer(config, engine, teacher, log_every=log_every)
        for engine in (EngineConfig(), FLOAT32_ENGINE)
    )


def fast(
    teacher: Teacher, log_every: int = 1, shortcuts: Any = None, engine: Any = FLOAT32_ENGINE, **options: Any
) -> Any:
    config = NaturalInversionConfig(**{"iterations": 5, "latent_dim": 16, **options})
    return FastSynthesizer(inversion_of(config, teacher), engine, log_every=log_every, shortcuts=shortcuts)


def inversion_of(config: Any, teacher: Teacher) -> Any:
    """The method that `config` is of, on a teacher."""
    return InversionMethod(config, teacher, MODELS[config.name])


def drawn(task: Task, config: Any, teacher: Teacher) -> Any:
    """A model that holds a task's draws, on the teacher's device, and its jitter table."""
    model = inversion_of(config, teacher).blank_model(len(task.labels), teacher.device)
    draws = draw(task, config, model)
    model.load_state_dict(draws.weights)
    return model, draws
