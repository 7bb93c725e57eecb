"""What the default weights give on many teachers: equal iterations, one line a batch.

    python benchmarks/teachers.py resnet20 small_vgg=small_vgg.safetensors --judge vgg11=vgg11.safetensors

A teacher is `resnet20` (which ships), NAME=FILE (architecture and normalization from the file's metadata),
or NAME=ARCH@FILE. Per teacher and seed: the accuracy of the teacher on the decoded images, that of an
independent network (--judge), R_BN in units of Y, the share of clamped values, the share of images with more
than a fifth of them, CPU seconds. The method is what a config of so many iterations gets by default; `--set
bn_scale=published` and the like change it.
"""

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from nisynth.batch import Task
from nisynth.config import load_config
from nisynth.synthesis import EngineConfig, Method, make_synthesizer
from nisynth.synthesis.judgement import judge
from nisynth.teachers import Teacher, load_teacher

CROWDED = 0.2
"""Of an image's places: more of them clamped is a flat blob."""


def named_teacher(word: str) -> tuple[str, Teacher]:
    """Returns a teacher and its name."""
    name, _, place = word.partition("=")
    if not place:
        return name, load_teacher(arch=name)
    arch, _, file = place.rpartition("@")
    if not arch:
        with safe_open(file, "pt") as opened:
            arch = (opened.metadata() or {})["arch"]
    return name, load_teacher(arch=arch, weights=file)


def measured(
    teacher: Teacher, independent: Teacher, seed: int, method: Method, batch_size: int
) -> dict[str, float]:
    """Returns the figures of one batch."""
    labels = ((np.arange(batch_size) + seed * batch_size) % teacher.num_classes).astype(np.int64)
    task = Task(index=0, seed=seed * 7919 + 1, labels=labels, rows=batch_size)
    synthesizer = make_synthesizer(method, EngineConfig(name="fast"), teacher)
    began = time.process_time()
    batch = synthesizer.synthesize(task)
    cpu_s = time.process_time() - began
    pixels, wanted = teacher.normalization.to_pixels(batch.images), torch.from_numpy(labels)
    judgement = judge(teacher, pixels, wanted)
    clamped = (pixels == 0) | (pixels == 255)
    blobs = clamped.any(1).float().mean((1, 2)) > CROWDED
    same = teacher.num_classes == independent.num_classes
    return {
        "teacher": judgement.teacher_accuracy,
        "independent": independent.accuracy(at_32_px(pixels), wanted) if same else float("nan"),
        "r_bn_in_y": judgement.r_bn_in_y,
        "clamped": float(clamped.float().mean()),
        "blobs": float(blobs.float().mean()),
        "cpu_s": cpu_s,
    }


def at_32_px(pixels: Tensor) -> Tensor:
    """Returns uint8 images as the independent network takes them."""
    times = pixels.shape[-1] // 32
    return pixels if times == 1 else F.avg_pool2d(pixels.float(), times).round().to(torch.uint8)


def lines(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields the figures of every teacher and seed."""
    overrides = [f"method.iterations={options.iterations}", *(f"method.{word}" for word in options.set)]
    method = load_config({"teacher": {"arch": "given by name"}}, overrides).method
    _, independent = named_teacher(options.judge)
    for word in options.names:
        name, teacher = named_teacher(word)
        for seed in range(options.seeds):
            yield {"name": name, "seed": seed} | measured(
                teacher, independent, seed, method, options.batch_size
            )


def main() -> None:
    """Prints one JSON line a batch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="+", metavar="TEACHER")
    parser.add_argument("--judge", required=True, metavar="NAME=FILE")
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE")
    torch.set_num_threads(1)
    for line in lines(parser.parse_args()):
        print(json.dumps({name: round(v, 4) if isinstance(v, float) else v for name, v in line.items()}))


if __name__ == "__main__":
    main()
