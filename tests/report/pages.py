"""Runs as their storage would show them, for pages: any number of tasks and classes, no storage at all."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nisynth.commits.logs import Failed, TaskLog
from nisynth.evaluation.figures import Figure
from nisynth.evaluation.pixels import PixelStatistics
from nisynth.evaluation.quality import (
    PRECISION_MISLEADS,
    ClassQuality,
    Copies,
    Pair,
    Quality,
    Recognition,
)
from nisynth.evaluation.scores import Calibration
from nisynth.report.facts import RunFacts, TaskFacts
from nisynth.report.inline import Pictures
from nisynth.report.losses import loss_bands
from nisynth.report.page import RunPage

LAYERS = ("tap1", "tap2", "tap3", "tap4", "pool", "hidden", "logits")
HOSTILE = '</script><img src=x onerror="document.title=1">'


def facts(num_tasks: int = 12, num_classes: int = 4, **changes: Any) -> RunFacts:
    """Returns the facts of a finished run of 256 images a task, made by eight workers."""
    tasks = [_task(number, num_tasks) for number in range(num_tasks)]
    curve = [{"iteration": i, "ce": 5.0 / (i + 1), "r_bn": 90.0 / (i + 1), "total": 95.0} for i in range(20)]
    values: dict[str, Any] = {
        "name": "s3://bucket/run",
        "fingerprint": "ab" * 32,
        "complete": True,
        "planned": num_tasks,
        "planned_images": 256 * num_tasks,
        "classes": tuple(f"class {label}" for label in range(num_classes)),
        "input_px": 32,
        "format": "parquet",
        "batch_size": 256,
        "identity": {
            "method": {"name": "naturalinversion", "iterations": 2000},
            "teacher": {"arch": "resnet34", "classes": ["a", "b"], "kwargs": {}},
        },
        "plan_versions": {},
        "tasks": tuple(tasks),
        "damage": (),
        "quarantined": (),
        "bands": loss_bands([curve] * 3),
        "versions": Counter({"torch 2.14.1": num_tasks}),
    }
    return RunFacts(**{**values, **changes})


def _task(number: int, num_tasks: int) -> TaskFacts:
    worker, turn = number % 8, number // 8
    return TaskFacts(
        task=number,
        attempt=f"{number:08x}-0000-4000-8000-000000000000",
        seed=(number * 0x9E3779B97F4A7C15) % 2**64,
        sha256=f"{(number * 0x9E3779B97F4A7C15) % 2**64:016x}" * 4,
        rows=256,
        bytes=600_000 + 37 * number,
        teacher_accuracy=0.99 - 0.3 * (number == 5),
        r_bn_in_y=0.4 + number / 1e3,
        losses={"r_bn": 3.0 + (number * 7 % 11) / 10, "ce": 0.1 + number / 1e4, "total": 40.0},
        timings_s={"synthesize": 700.0 + number % 13, "encode": 1.5, "put": 0.4},
        device="NVIDIA H100",
        worker=f"node-{worker}/4711",
        started_at=1.8e9 + 710 * turn,
        finished_at=1.8e9 + 710 * turn + 705,
    )


def pictures(num_classes: int, per_class: int = 10, side_px: int = 32) -> Pictures:
    """Returns noise, which no lossless picture is larger than."""
    rng = torch.Generator().manual_seed(0)
    shape = (num_classes * per_class, 3, side_px, side_px)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)
    return Pictures(pixels, torch.arange(num_classes).repeat_interleave(per_class))


def quality(num_classes: int) -> Quality:
    """Returns a quality in which nothing is missing, with figures of as many digits as there can be."""
    names = [("fd", None), ("fd_mean_term", None), ("kid_x1000", None), ("c_t", None)]
    names += [(name, k) for name in ("precision", "recall", "density", "coverage") for k in (3, 5)]
    figures = [
        Figure(name, layer, 1 / 3, 10_000, 5_000, k, 1 / 7, 1 / 11) for layer in LAYERS for name, k in names
    ]
    seen = Recognition("vgg11 (cifar10_vgg11.safetensors)", *(Calibration(1 / 3, 1 / 7, 1 / 11),) * 2)
    pixels = PixelStatistics((127.1,) * 3, (63.2,) * 3, (0.01,) * 3, 16.5, 3)
    return Quality(
        synthetic="s3://bucket/run",
        synthetic_split="run ababababab",
        num_images=256_000,
        embedding="vgg11 (cifar10_vgg11.safetensors)",
        embedding_sha256="cd" * 32,
        resize="none",
        independent=True,
        real="/home/someone/cifar.parquet",
        real_split="test",
        num_real=10_000,
        figures=tuple(figures),
        recognition={"teacher": seen, "independent": seen},
        agreement=1 / 3,
        classes=tuple(
            ClassQuality(f"class {label}", 2560, 1 / 3, 1 / 7, 100, *(1 / 11,) * 8)
            for label in range(num_classes)
        ),
        copies=Copies(3, 10_000, 1 / 3, 9_000, 1 / 7, 9_500),
        closest=tuple(Pair(number, number + 1, 1 / 3, 1 / 7, 63.4) for number in range(20)),
        pixels=pixels,
        real_pixels=pixels,
        notes=(PRECISION_MISLEADS,),
    )


def page(num_tasks: int = 12, num_classes: int = 4, **changes: Any) -> RunPage:
    """Returns a run's page without a quality."""
    return RunPage(facts(num_tasks, num_classes, **changes), pictures(num_classes))


def hostile_page() -> RunPage:
    """Returns the page of a run whose every text comes from somebody who means harm."""
    log = TaskLog(3, "quarantined", failures=(Failed("raised", f"task 3: {HOSTILE}\nTraceback\n{HOSTILE}"),))
    base = facts()
    return page(
        classes=(HOSTILE, "b", "c", "d"),
        name=f"s3://bucket/{HOSTILE}",
        quarantined=(log,),
        complete=False,
        identity={**base.identity, "engine": {"name": HOSTILE}},
        versions=Counter({HOSTILE: 12}),
    )


def real_folder(path: Path, plan_classes: tuple[str, ...]) -> str:
    """Returns a folder of noise, six images of 16 px in a folder per class, as a real set."""
    rng = np.random.default_rng(0)
    for name in plan_classes:
        (path / name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
                path / name / f"{number}.png"
            )
    return str(path)
