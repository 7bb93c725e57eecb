"""What a person sees while a run, or a verification, goes on: a live display, or plain lines.

Each is a listener (nisynth.execution.events): it hears what happens and decides alone what is shown. Nothing
here touches storage or decides anything about the run.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOBase
from typing import TextIO, cast

from nisynth.errors import counted
from nisynth.execution.events import (
    Ended,
    Event,
    Listed,
    Listener,
    ShardsChecked,
    Stepped,
    TaskDone,
)
from nisynth.progress.rates import (
    Clock,
    Rate,
    Tally,
    format_rate,
    format_seconds,
    format_step,
    printable,
)

__all__ = [
    "PlainLines",
    "Rate",
    "format_rate",
    "format_seconds",
    "in_notebook",
    "make_progress",
    "printable",
    "shown_shards",
]

LINES_EVERY_S = 10.0
WORTH_A_LINE_S = 2.0
"""Seconds after which it is worth saying how far a look through shards is."""


class PlainLines:
    """Lines for a log file: no control codes, few enough to read, and none that says what the last one said.

    Steps come at most every 10 s; finished tasks each while a run has at most 100, else every 1 %;
    failures and notes always; shards as tasks, once two seconds have passed.
    """

    def __init__(self, stream: TextIO, unit: str = "tasks", clock: Clock = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._lock = threading.Lock()
        self._tally = Tally(unit, clock)
        self._began_s = clock()
        self._next_step_s = self._began_s + LINES_EVERY_S
        self._last_step = (-1, -1)
        self._announced = False

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._tally.hear(event)
            line = self._line(event)
            if line is not None:
                print(printable(line), file=self._stream, flush=True)

    def _line(self, event: Event) -> str | None:
        match event:
            case Listed() if not self._announced:
                self._announced = True
                tasks, images = counted(event.total_tasks, "task"), counted(event.total_images, "image")
                return f"{tasks}, {images}; {event.committed:,} done before"
            case Stepped() if self._is_news(event):
                return f"{format_step(event)}; {self._tally.line()}"
            case TaskDone() if self._tally.is_milestone():
                return f"task {event.receipt.task} done; {self._tally.line()}"
            case ShardsChecked() if self._tally.is_milestone() and self._lasts():
                return self._tally.line()
        return self._tally.message(event)

    def _lasts(self) -> bool:
        return self._clock() - self._began_s >= WORTH_A_LINE_S

    def _is_news(self, step: Stepped) -> bool:
        """True for a step that is further than the last one shown, and that has its 10 s."""
        now_s, place = self._clock(), (step.task, step.iteration)
        if step.iteration == 0 or place == self._last_step or now_s < self._next_step_s:
            return False
        self._next_step_s, self._last_step = now_s + LINES_EVERY_S, place
        return True


class Unbreakable(TextIOBase):
    """A text stream that goes on when the one behind it is closed or full: progress never ends a run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        return not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding


def make_progress(stream: TextIO | None = None, unit: str = "tasks") -> Listener:
    """Returns the listener that suits `stream`: a display on a terminal, lines elsewhere.

    stream: stderr by default, stdout in a notebook, which shows stderr as if it were an error.
    unit: what is counted, `tasks` of a run or `shards` of a verification.
    """
    if stream is None:
        stream = sys.stdout if in_notebook() else sys.stderr
    unbreakable = cast(TextIO, Unbreakable(stream))
    if unbreakable.isatty() and os.environ.get("TERM") != "dumb":
        from nisynth.progress.terminal import TerminalDisplay

        return TerminalDisplay(unbreakable, unit)
    return PlainLines(unbreakable, unit)


@contextmanager
def shown_shards() -> Iterator[Callable[[int, int], None]]:
    """Gives a function that shows `number` of `total` shards done, until the end of the block."""
    progress = make_progress(unit="shards")
    try:
        yield lambda number, total: progress(ShardsChecked(number, total))
    finally:
        progress(Ended())


def in_notebook() -> bool:
    """True in a process that runs the cells of a notebook."""
    return "ipykernel" in sys.modules
