"""The live display of a terminal; the only importer of rich's live parts."""

import atexit
import threading
import time
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nisynth.execution.events import AttemptFailed, Ended, Event, ShardsChecked
from nisynth.progress.rates import Clock, Tally, format_step, printable

WORKERS_SHOWN = 4


class TerminalDisplay:
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

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._tally.hear(event)
            message = self._tally.message(event)
        if message is not None:
            style = "red" if isinstance(event, AttemptFailed) else ""
            self._console.print(Text(printable(message), style), soft_wrap=True)
        elif isinstance(event, Ended) or event == ShardsChecked(self._tally.total, self._tally.total):
            self._show(False)
        else:
            self._show(True)

    def _show(self, shown: bool) -> None:
        """Puts the display up, or takes it down for good."""
        if shown and not self._live.is_started and not self._ended:
            self._live.start()
        elif not shown:
            self._live.refresh()
            self._ended = True
            self._live.stop()

    def _render(self) -> Group:
        with self._lock:
            tally = self._tally
            bar = Table.grid(padding=(0, 1))
            bar.add_row(
                ProgressBar(total=max(tally.total, 1), completed=tally.equivalent, width=30), tally.line()
            )
            active = list(tally.active.values())
            lines = [Text(f"  {format_step(step)}", style="dim") for step in active[:WORKERS_SHOWN]]
            if len(active) > WORKERS_SHOWN:
                lines.append(Text(f"  and {len(active) - WORKERS_SHOWN} more", style="dim"))
            return Group(bar, *lines)
