"""The live display of a terminal; the only importer of rich's live parts."""

import atexit
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nisynth.progress.rates import Clock, Tally, format_failure, format_step, printable

if TYPE_CHECKING:
    from nisynth.commits import Receipt

WORKERS_SHOWN = 4


class TerminalObserver:
    """One bar for the run, a line for each of the first few batches at work; failures and notes above."""

    def __init__(self, stream: TextIO, unit: str = "tasks", clock: Clock = time.monotonic) -> None:
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._lock = threading.Lock()
        self._tally = Tally(unit, clock)
        # stdout stays the program's own: it may be a pipe that a machine reads
        self._live = Live(
            console=self._console, get_renderable=self._render, redirect_stdout=False, refresh_per_second=4
        )
        self._ended = False
        atexit.register(self._live.stop)  # a cursor left hidden would outlive the process

    def started(self, total_tasks: int, done_tasks: int, total_images: int) -> None:
        with self._shown():
            self._tally.started(total_tasks, done_tasks, total_images)

    def step(self, task: int, iteration: int, iterations: int, losses: Mapping[str, float]) -> None:
        with self._shown():
            self._tally.step(task, iteration, iterations, losses)

    def task_done(self, receipt: "Receipt") -> None:
        with self._shown():
            self._tally.task_done(receipt.task, receipt.rows, receipt.outcome != "other")

    def task_failed(self, task: int, kind: str, message: str, attempt: str) -> None:
        with self._shown():
            self._tally.task_failed(task)
        self._print(format_failure(task, kind, message), "red")

    def note(self, text: str) -> None:
        self._print(text, "")

    def checked(self, number: int, total: int) -> None:
        with self._shown():
            self._tally.checked(number, total)
        if number == total:
            self.finished()

    def finished(self) -> None:
        self._ended = True
        self._live.stop()

    def _print(self, line: str, style: str) -> None:
        self._console.print(Text(printable(line), style), soft_wrap=True)

    @contextmanager
    def _shown(self) -> Iterator[None]:
        with self._lock:
            yield
        if not self._live.is_started and not self._ended:
            self._live.start()

    def _render(self) -> Group:
        with self._lock:
            tally = self._tally
            bar = Table.grid(padding=(0, 1))
            bar.add_row(
                ProgressBar(total=max(tally.total, 1), completed=tally.equivalent, width=30), tally.line()
            )
            active = list(tally.active.items())
            lines = [
                Text(f"  {format_step(task, *state)}", style="dim") for task, state in active[:WORKERS_SHOWN]
            ]
            if len(active) > WORKERS_SHOWN:
                lines.append(Text(f"  and {len(active) - WORKERS_SHOWN} more", style="dim"))
            return Group(bar, *lines)
