"""`status --watch`: a display that follows a run on a terminal, elsewhere a line for every change."""

import dataclasses
import json
import time
from collections.abc import Callable

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nisynth.batch import REAL_R_BN_IN_Y
from nisynth.commits import Run
from nisynth.commits.status import Status, watch
from nisynth.errors import counted
from nisynth.progress import format_seconds, printable

SHOWN_DAMAGE = 5


def describe(found: Status) -> list[str]:
    """Returns a status in two lines, then what was checked, what to do, and the images' quality."""
    lines = [
        f"{found.url}: {_state(found)}",
        *([found.step] if found.step else []),
        f"{found.committed:,} of {counted(found.planned, 'task')} committed,"
        f" {found.quarantined:,} quarantined, {counted(found.images, 'image')},"
        f" fingerprint {found.fingerprint[:12]}",
    ]
    lines += found.damaged[:SHOWN_DAMAGE]
    if len(found.damaged) > SHOWN_DAMAGE:
        lines.append(f"and {len(found.damaged) - SHOWN_DAMAGE:,} more: `nisynth verify {found.url} --deep`")
    elif found.checked and not found.damaged:
        lines.append(
            f"checked: {counted(found.checked, 'shard')}, by size alone;"
            f" `nisynth verify {found.url} --deep` reads all of them"
        )
    if found.canary:
        lines.append(f"the canary failed: {found.canary}; `nisynth preview {found.url}` draws its images")
    if found.quarantined:
        lines.append(
            f"given up on: {counted(found.quarantined, 'task')}; `nisynth logs {found.url}` says why;"
            f" mend the cause, then `nisynth retry {found.url}`, and run again"
        )
    if found.teacher_accuracy is not None and found.r_bn_in_y is not None:
        lines.append(
            f"in the last commits the teacher recognises {found.teacher_accuracy:.1%} of the images,"
            f" and R_BN is {found.r_bn_in_y:.2f} Y (real images: {REAL_R_BN_IN_Y})"
        )
    return lines


def _state(found: Status) -> str:
    if found.damaged:
        return f"damaged; `nisynth redo {found.url} --bad`, then run again, makes it sound"
    if found.complete:
        return "complete"
    eta = "unknown" if found.eta_s is None else format_seconds(found.eta_s)
    return f"incomplete, ETA {eta} at the last commits' pace"


def follow(
    run: Run, console: Console, every_s: float, as_json: bool, sleep: Callable[[float], None] = time.sleep
) -> Status:
    """Shows the run until it is settled and returns its last status. Raises StorageError as `watch` does.

    as_json: one JSON document a line instead, whenever something changed.
    """
    if as_json or not console.is_terminal:
        return watch(run, _Lines(console, as_json).show, every_s=every_s, sleep=sleep)
    with Live(console=console, auto_refresh=False) as live:
        return watch(
            run,
            lambda found, trouble: live.update(_display(found, trouble), refresh=True),
            every_s=every_s,
            sleep=sleep,
        )


class _Lines:
    """Prints what is new, so that a log of a week's run stays readable."""

    def __init__(self, console: Console, as_json: bool) -> None:
        self._console, self._as_json = console, as_json
        self._last: tuple[object, ...] = ()

    def show(self, found: Status | None, trouble: str) -> None:
        counts = found and (found.committed, found.quarantined, found.complete)
        if (counts, trouble) == self._last:
            return
        self._last = (counts, trouble)
        if self._as_json:
            document = dataclasses.asdict(found) if found else {}
            line = json.dumps({**document, "trouble": trouble or None})
        else:
            line = printable(trouble or (found and "; ".join(describe(found))) or "")
        self._console.out(line, highlight=False)


def _display(found: Status | None, trouble: str) -> Group:
    lines = [Text(printable(line)) for line in describe(found)] if found is not None else []
    if trouble:
        lines.append(Text(printable(trouble), style="red"))
    bar = Table.grid(padding=(0, 1))
    if found is not None:
        share = found.committed / found.planned
        bar.add_row(ProgressBar(total=found.planned, completed=found.committed, width=40), f"{share:.0%}")
    return Group(bar, *lines)
