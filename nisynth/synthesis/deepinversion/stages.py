"""The published ImageNet recipe: half the size first."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nisynth.batch import ImageBatch, Task
from nisynth.synthesis.deepinversion.config import DeepInversionConfig
from nisynth.synthesis.deepinversion.pixels import HalfSizePixels, Pixels
from nisynth.synthesis.inversion.method import Loop, MakeLoop
from nisynth.synthesis.protocol import StepCallback, Synthesizer


def make_stages(config: DeepInversionConfig, loop: MakeLoop) -> Synthesizer:
    """Returns the synthesizer of a config: one loop, or one at half the size and one at the full size."""
    first = config.half_size_iterations
    if not first:
        return loop(config, Pixels)
    half = replace(config, iterations=first, half_size_iterations=0, jitter_px=config.jitter_px // 2)
    full = replace(config, iterations=config.iterations - first, half_size_iterations=0)
    return TwoStages(loop(half, HalfSizePixels), loop(full, Pixels), first)


class TwoStages:
    """Runs one loop, and a second one from its images; counts their iterations as those of one."""

    def __init__(self, half: Loop, full: Loop, half_iterations: int) -> None:
        self._half, self._full, self._half_iterations = half, full, half_iterations

    @property
    def notes(self) -> Sequence[str]:
        """Returns what the loops do without on this machine, each line once."""
        return list(dict.fromkeys([*self._half.notes, *self._full.notes]))

    def synthesize(self, task: Task, on_step: StepCallback | None = None) -> ImageBatch:
        """Returns the second loop's batch, with the curves of both. Raises TaskFailure."""

        def later(iteration: int, terms: Mapping[str, float]) -> None:
            if on_step is not None:
                on_step(self._half_iterations + iteration, terms)

        half = self._half.synthesize(task, on_step)
        full = self._full.synthesize(task, None if on_step is None else later, {"x": half.images})
        shifted = [{**point, "iteration": point["iteration"] + self._half_iterations} for point in full.curve]
        best = full.figures["best_iteration"] + self._half_iterations
        figures = {**full.figures, "best_iteration": best}
        return replace(full, curve=[*half.curve, *shifted], figures=figures)
