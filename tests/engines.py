"""Engines of a few iterations, for tests."""

import torch

from nisynth.synthesis import EngineConfig, NaturalInversionConfig, make_synthesizer
from nisynth.synthesis.engine.fast import FastSynthesizer
from nisynth.synthesis.engine.shortcuts import Shortcuts

ON_CPU = Shortcuts.on(torch.device("cpu"))
FLOAT32_ENGINE = EngineConfig(name="fast", precision="float32")
SIXTEEN_BIT = "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


def synthesizers(teacher, log_every=1, **options):
    config = NaturalInversionConfig(**{"iterations": 5, "latent_dim": 16, **options})
    return tuple(
        make_synthesizer(config, engine, teacher, log_every=log_every)
        for engine in (EngineConfig(), FLOAT32_ENGINE)
    )


def fast(teacher, log_every=1, shortcuts=None, engine=FLOAT32_ENGINE, **options):
    config = NaturalInversionConfig(**{"iterations": 5, "latent_dim": 16, **options})
    return FastSynthesizer(config, engine, teacher, log_every=log_every, shortcuts=shortcuts)
