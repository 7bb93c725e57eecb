"""The seam between a method and everything around it: `synthesize(task) -> ImageBatch`.

The engine is chosen here and not by the method: the same mathematics runs in a readable loop or in a
compiled one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from nisynth.batch import ImageBatch, Task

StepCallback = Callable[[int, Mapping[str, float]], None]
"""Called with (iterations done, loss terms) every `log_every` iterations; may raise to abort the task."""


class Method(Protocol):
    """A method's config: a frozen dataclass whose `name` is its row of METHODS."""

    @property
    def name(self) -> str:
        """Returns the method's name, as `method.name` of a config has it."""

    @property
    def iterations(self) -> int:
        """Returns the steps of one task, of which progress counts a share; 1 for a method without a loop."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Which loop runs the method, and in which arithmetic.

    name: `plain` is the readable loop (float32, deterministic: the reference), `fast` the compiled one.
    precision: of `fast`; `auto` is what suits the device.
    """

    name: Literal["plain", "fast"] = "plain"
    precision: Literal["auto", "float32", "tf32", "bfloat16", "float16"] = "auto"


class Synthesizer(Protocol):
    """Holds a teacher and a method; long-lived, one task at a time."""

    @property
    def notes(self) -> Sequence[str]:
        """Returns one line for each thing that the engine does without on this machine."""

    def synthesize(self, task: Task, on_step: StepCallback | None = None) -> ImageBatch:
        """Returns the task's full batch. Raises TaskFailure (`not_finite`, `out_of_memory`)."""
