"""Feature exchange: further images of a finished batch, with half of the generator's channels swapped.

The exchange of SpaceshipNet ("Data-Free Knowledge Distillation via Feature Exchange and Activation Region
Constraint", CVPR-23), here between the images of one optimized batch: for each further image, one of the
generator's maps takes a random half of its channels from the map of image B-1-i. No image has the planned
class any more for certain, so all labels of such a run are the teacher's verdict on the decoded images.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nisynth.batch import ImageBatch, Task
from nisynth.errors import ConfigError
from nisynth.synthesis.protocol import StepCallback, Synthesizer
from nisynth.teachers import Teacher
from nisynth.teachers.predict import share


def num_optimized(batch_size: int, exchange: int) -> int:
    """Returns how many images of a batch are optimized where each is followed by `exchange` mixed ones."""
    return -(-batch_size // (1 + exchange))


def check_exchange(batch_size: int, exchange: int) -> None:
    """Raises ConfigError when a batch leaves fewer than 2 images to optimize: nothing to mix."""
    if exchange and num_optimized(batch_size, exchange) < 2:
        raise ConfigError(
            f"method.exchange: {exchange} leaves 1 of run.batch_size {batch_size} images to optimize;"
            f" give run.batch_size {2 + exchange} or more, or lower it"
        )


def draw_masks(num_images: int, widths: Sequence[int], rng: torch.Generator) -> list[Tensor]:
    """Returns for each map of `widths` channels which of them each image takes from its partner.

    One `(num_images, C, 1, 1)` bool a map, on the CPU: an image has C // 2 of them set in one map, drawn
    uniformly, and none in the others.
    """
    chosen = torch.randint(len(widths), (num_images,), generator=rng)
    masks = []
    for index, width in enumerate(widths):
        order = torch.rand((num_images, width), generator=rng, dtype=torch.float64).argsort(1).argsort(1)
        masks.append(((order < width // 2) & (chosen == index)[:, None])[:, :, None, None])
    return masks


class ObservedLabels:
    """A synthesizer whose labels are the class that the teacher gives to each decoded image.

    figures: `planned_accuracy`, 0 to 1, of the images that were optimized: how many are of the planned class.
    """

    def __init__(self, synthesizer: Synthesizer, teacher: Teacher, exchange: int) -> None:
        self._synthesizer, self._teacher, self._exchange = synthesizer, teacher, exchange

    @property
    def notes(self) -> Sequence[str]:
        """Returns those of the synthesizer."""
        return self._synthesizer.notes

    def synthesize(self, task: Task, on_step: StepCallback | None = None) -> ImageBatch:
        """Returns the task's batch with observed labels; the optimized images come first."""
        batch = self._synthesizer.synthesize(task, on_step)
        labels = self._teacher.predict(self._teacher.normalization.to_pixels(batch.images))
        first = slice(num_optimized(len(labels), self._exchange))
        hits = labels[first] == batch.labels[first]
        return replace(batch, labels=labels, figures={**batch.figures, "planned_accuracy": share(hits)})
