"""One batch of images from a classifier in memory: no store, no run, nothing written."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from nisynth.batch import ImageBatch
from nisynth.config import load_config
from nisynth.plan import make_plan
from nisynth.synthesis import StepCallback, make_synthesizer
from nisynth.teachers import Teacher, load_teacher


def synthesize(
    teacher: Teacher | nn.Module,
    num_images: int = 256,
    *,
    method: Mapping[str, Any] | None = None,
    engine: Mapping[str, Any] | None = None,
    seed: int = 0,
    log_every: int = 50,
    on_step: StepCallback | None = None,
    **described: Any,
) -> ImageBatch:
    """Returns one batch of `num_images` synthesized images, those of a run's first task of that size.

    teacher: of `load_teacher`, or a module, which `described` tells of as there (num_classes, mean, std,
    input_px); a module goes to a GPU where there is one. method, engine: those sections of a run's config;
    by default NaturalInversion as published, in the fast engine. on_step(iteration, losses) is called every
    `log_every` iterations.
    `images` of the result is `(N, 3, H, W)` float32 in the teacher's normalized space, `labels` `(N,)` int64;
    `Teacher.normalization.to_pixels` makes uint8 of them.
    Raises ConfigError, TeacherError, TaskFailure (`not_finite`, `out_of_memory`).
    """
    config = load_config(
        {
            "run": {"num_images": num_images, "batch_size": num_images, "seed": seed},
            "teacher": {"arch": "in memory"},
            "method": dict(method or {"name": "naturalinversion"}),
            "engine": dict(engine or {"name": "fast"}),
        }
    )
    if not isinstance(teacher, Teacher):
        teacher = load_teacher(teacher, "cuda" if torch.cuda.is_available() else "cpu", **described)
    task = make_plan(config, teacher.identity)[0]
    return make_synthesizer(config.method, config.engine, teacher, log_every=log_every).synthesize(
        task, on_step
    )
