"""One batch of images from a classifier in memory, to use or to judge a config by; nothing is stored."""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nisynth.batch import ImageBatch
from nisynth.config import RunConfig, load_config
from nisynth.device import default_device
from nisynth.plan import make_plan
from nisynth.synthesis import StepCallback, load_artefacts, make_synthesizer
from nisynth.synthesis.diagnosis import more_classes, progress_made, what_to_change
from nisynth.synthesis.judgement import Judgement, class_balance, judge
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
        teacher = load_teacher(teacher, default_device(), **described)
    task = make_plan(config, teacher.identity)[0]
    return make_synthesizer(config.method, config.engine, teacher, log_every=log_every).synthesize(
        task, on_step
    )


PROBE_IMAGES = 32
TIMED_ITERATIONS = 4
LEAST_ITERATIONS = 20


@dataclass(frozen=True, eq=False)
class Probe:
    """A small batch of a config's, and what it says of a whole run.

    pixels: `(N, 3, H, W)` uint8. labels: `(N,)` int64. classes: names in label order. curve: loss terms by
    iteration. on_its_way: whether the teacher recognises the images, as the quality gate wants, or the losses
    still come down to that; of observed labels, whether they are as balanced as the gate wants. verdict: the
    same in words, or which loss never fell and what to change.
    planned: the config's iterations.
    """

    pixels: Tensor
    labels: Tensor
    classes: Sequence[str]
    curve: Sequence[Mapping[str, float]]
    judgement: Judgement
    iterations: int
    planned: int
    on_its_way: bool
    verdict: str

    def __repr__(self) -> str:
        ran = f"{self.iterations:,} of {self.planned:,} iterations"
        return f"Probe({len(self.labels)} images, {ran}: {self.verdict})"


def probe(
    config: RunConfig, seconds: float = 60.0, *, say: Callable[[str], None] = lambda line: None
) -> Probe:
    """Returns what a batch of at most 32 images says of a config, in about `seconds` of its own method.

    It runs as many of the method's iterations as fit into the time, at least 20, with a schedule of that
    length. say: hears in one line what is about to run. Raises ConfigError, TeacherError, TaskFailure.
    """
    chosen: Any = config.method
    if getattr(chosen, "exchange", 0):  # it is the optimized images that tell, by their planned labels
        config = replace(config, method=replace(chosen, exchange=0))
    device = default_device()
    torch.set_num_threads(config.execution.cpu_threads)
    num_images = min(PROBE_IMAGES, config.run.batch_size, config.run.num_images)
    size = replace(config.run, num_images=num_images, batch_size=num_images)
    teacher = load_teacher(config.teacher, device)
    artefacts = load_artefacts(config.method, teacher)
    plan = make_plan(replace(config, run=size), teacher.identity, artefacts)
    task = plan[0]

    def batch_of(method: Any, on_step: StepCallback | None = None) -> ImageBatch:
        made = make_synthesizer(method, config.engine, teacher, log_every=1, artefacts=artefacts)
        return made.synthesize(task, on_step)

    method, planned = config.method, config.method.iterations
    if planned > LEAST_ITERATIONS:
        ticks: list[float] = []
        batch_of(_shortened(method, TIMED_ITERATIONS), lambda *_: ticks.append(time.perf_counter()))
        step_s = statistics.median(b - a for a, b in itertools.pairwise(ticks))
        method = _shortened(method, min(planned, max(LEAST_ITERATIONS, int(seconds / step_s))))
        say(
            f"{num_images} images, {method.iterations:,} of {planned:,} iterations at {1 / step_s:.3g} a"
            f" second: about {method.iterations * step_s:.0f} s"
        )
    batch = batch_of(method)
    images, labels = batch.committed_part
    pixels = teacher.normalization.to_pixels(images, config.output.pixels)
    judgement = judge(teacher, pixels, labels)
    if plan.observes_labels:
        on_its_way, verdict = _verdict_of_observed(config, labels, teacher.num_classes)
    else:
        on_its_way, verdict = _verdict(config, method, batch, judgement, teacher.num_classes)
    return Probe(
        pixels,
        labels,
        teacher.classes,
        batch.curve,
        judgement,
        method.iterations,
        planned,
        on_its_way,
        verdict,
    )


def _shortened(method: Any, iterations: int) -> Any:
    """Returns a method's config of that many iterations, each of its stages as much shorter as the whole."""
    parts = {
        name: value * iterations // method.iterations
        for name, value in vars(method).items()
        if name.endswith("_iterations")
    }
    return replace(method, iterations=iterations, **parts)


def _verdict_of_observed(config: RunConfig, labels: Tensor, num_classes: int) -> tuple[bool, str]:
    """Returns what the quality gate will say. That the teacher recognises every image says nothing here."""
    balance, gate = class_balance(labels, num_classes), config.execution.quality_gate
    balanced = (
        f"the labels are what the teacher says of the images; they have {balance:.0%} of the entropy of"
        f" balanced classes (the quality gate wants {gate:.0%})"
    )
    if balance >= gate:
        return True, f"on its way, as far as labels can tell: {balanced}; look at the images, too"
    return False, f"not on its way: {balanced}; {more_classes(config.method)}"


def _verdict(
    config: RunConfig, method: Any, batch: ImageBatch, judgement: Judgement, num_classes: int
) -> tuple[bool, str]:
    accuracy, gate = judgement.teacher_accuracy, config.execution.quality_gate
    recognised = f"the teacher recognises {accuracy:.0%} of the images (the quality gate wants {gate:.0%})"
    if accuracy >= gate:
        return True, f"on its way: {recognised}"
    progress = progress_made(batch.curve, num_classes)
    if method.iterations < config.method.iterations and progress is not None:
        return True, f"on its way, not there yet: {recognised}, and {progress}"
    return (
        False,
        f"not on its way: {recognised}; {what_to_change(batch.curve, judgement, num_classes, method)}",
    )
