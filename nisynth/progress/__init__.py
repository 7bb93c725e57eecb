"""What a person sees while a run, or a verification, goes on: a live display, plain lines, or nothing.

An executor tells an Observer what happens; what is shown is decided here alone. Nothing here touches
storage or decides anything. Every observer may be called from several threads.
"""

import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from io import TextIOBase
from typing import TYPE_CHECKING, Protocol, TextIO, cast

from nisynth.progress.rates import (
    Clock,
    Rate,
    Tally,
    format_failure,
    format_rate,
    format_seconds,
    format_step,
    printable,
)

if TYPE_CHECKING:
    from nisynth.commits import Receipt

__all__ = [
    "Observer",
    "PlainObserver",
    "Rate",
    "SilentObserver",
    "format_rate",
    "format_seconds",
    "make_observer",
    "printable",
]

STEP_LINES_EVERY_S = 10.0


class Observer(Protocol):
    """Hears of a run in the order in which things happen."""

    def started(self, total_tasks: int, done_tasks: int, total_images: int) -> None:
        """The run has `done_tasks` committed; called again whenever a new listing says so."""

    def step(self, task: int, iteration: int, iterations: int, losses: Mapping[str, float]) -> None:
        """A task's batch is at `iteration`; 0, with no losses, when its compute begins."""

    def task_done(self, receipt: "Receipt") -> None:
        """A task has its commit, this attempt's or another's."""

    def task_failed(self, task: int, kind: str, message: str, attempt: str) -> None:
        """One attempt at a task failed; the task may be tried again."""

    def note(self, text: str) -> None:
        """Something a person should read, once."""

    def checked(self, number: int, total: int) -> None:
        """`number` of `total` shards are verified."""

    def finished(self) -> None:
        """The end, good or bad: takes the display down. May be repeated."""


class SilentObserver:
    """Shows nothing."""

    def started(self, total_tasks: int, done_tasks: int, total_images: int) -> None:
        pass

    def step(self, task: int, iteration: int, iterations: int, losses: Mapping[str, float]) -> None:
        pass

    def task_done(self, receipt: "Receipt") -> None:
        pass

    def task_failed(self, task: int, kind: str, message: str, attempt: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def checked(self, number: int, total: int) -> None:
        pass

    def finished(self) -> None:
        pass


class PlainObserver:
    """Lines for a log file: no control codes, few enough to read.

    Steps come at most every 10 s; finished tasks each while a run has at most 100, else every 1 %;
    failures and notes always.
    """

    def __init__(self, stream: TextIO, unit: str = "tasks", clock: Clock = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._lock = threading.Lock()
        self._tally = Tally(unit, clock)
        self._next_step_s = clock() + STEP_LINES_EVERY_S
        self._announced = False

    def started(self, total_tasks: int, done_tasks: int, total_images: int) -> None:
        with self._lock:
            self._tally.started(total_tasks, done_tasks, total_images)
            if not self._announced:
                self._print(f"{total_tasks:,} tasks, {total_images:,} images; {done_tasks:,} done before")
            self._announced = True

    def step(self, task: int, iteration: int, iterations: int, losses: Mapping[str, float]) -> None:
        with self._lock:
            self._tally.step(task, iteration, iterations, losses)
            if iteration > 0 and self._clock() >= self._next_step_s:
                self._next_step_s = self._clock() + STEP_LINES_EVERY_S
                self._print(f"{format_step(task, iteration, iterations, losses)}; {self._tally.line()}")

    def task_done(self, receipt: "Receipt") -> None:
        with self._lock:
            self._tally.task_done(receipt.task, receipt.rows, receipt.outcome != "other")
            if self._tally.is_milestone():
                self._print(f"task {receipt.task} done; {self._tally.line()}")

    def task_failed(self, task: int, kind: str, message: str, attempt: str) -> None:
        with self._lock:
            self._tally.task_failed(task)
            self._print(format_failure(task, kind, message))

    def note(self, text: str) -> None:
        with self._lock:
            self._print(text)

    def checked(self, number: int, total: int) -> None:
        with self._lock:
            self._tally.checked(number, total)
            if self._tally.is_milestone():
                self._print(self._tally.line())

    def finished(self) -> None:
        pass

    def _print(self, line: str) -> None:
        print(printable(line), file=self._stream, flush=True)


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


def make_observer(stream: TextIO | None = None, unit: str = "tasks") -> Observer:
    """Returns the observer that suits `stream` (default stderr): a display on a terminal, lines elsewhere.

    unit: what is counted, `tasks` of a run or `shards` of a verification.
    """
    unbreakable = cast(TextIO, Unbreakable(stream or sys.stderr))
    if unbreakable.isatty() and os.environ.get("TERM") != "dumb":
        from nisynth.progress.terminal import TerminalObserver

        return TerminalObserver(unbreakable, unit)
    return PlainObserver(unbreakable, unit)
