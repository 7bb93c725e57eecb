"""Counts, speeds and times to come, and how they are written. No output, no clock but the injected one."""

import time
from collections import deque
from collections.abc import Callable
from math import inf

from nisynth.errors import counted, first_line
from nisynth.execution.events import (
    AttemptFailed,
    Event,
    Listed,
    Note,
    ShardsChecked,
    Stepped,
    TaskDone,
    TaskQuarantined,
    WorkerLost,
)

Clock = Callable[[], float]
WINDOW_S = 120.0
SAMPLE_S = 1.0


class Rate:
    """Speed since `start`: amounts done against an injected clock. Pure but for that clock."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._began_s = clock()

    def per_s(self, amount: float) -> float | None:
        """Returns amount per second since the start, None while there is nothing to tell."""
        elapsed_s = self._clock() - self._began_s
        return amount / elapsed_s if amount > 0 and elapsed_s > 0 else None

    def eta_s(self, amount: float, left: float) -> float | None:
        """Returns the seconds that `left` takes at the speed of `amount` so far, None when unknown."""
        if left <= 0:
            return 0.0
        per_s = self.per_s(amount)
        return None if per_s is None else left / per_s


class _WindowedRate:
    """Speed over about the last two minutes, of an amount that grows; unknown in the first second.

    It counts from the first amount that it is given, so that no start-up is in it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, float]] = deque()
        self._newest_began_s = -inf

    def add(self, amount: float) -> None:
        """Learns how much is done by now."""
        now_s = self._clock()
        # One sample a second: what many workers say at once is one moment, not a leap.
        if now_s - self._newest_began_s < SAMPLE_S:
            self._samples.pop()
        else:
            self._newest_began_s = now_s
        self._samples.append((now_s, amount))
        # One sample older than the window stays, for work whose steps are minutes apart.
        while len(self._samples) > 2 and now_s - self._samples[1][0] > WINDOW_S:
            self._samples.popleft()

    def per_s(self) -> float | None:
        """Returns amount per second, None while there is nothing to tell."""
        if not self._samples:
            return None
        (began_s, before), (_, amount) = self._samples[0], self._samples[-1]
        elapsed_s = self._clock() - began_s
        return (amount - before) / elapsed_s if amount > before and elapsed_s >= SAMPLE_S else None


class Tally:
    """Counts of one session. A batch at work counts by its share of iterations, so the ETA comes early."""

    def __init__(self, unit: str, clock: Clock) -> None:
        self._unit = unit
        self._rate = _WindowedRate(clock)
        self.total = 0
        self.failures = 0
        self.active: dict[int, Stepped] = {}
        self._listed = 0
        self._done_since: set[int] = set()
        self._session_tasks = 0
        self._session_images = 0
        self._images_per_task = 0.0
        self._told: dict[int, str | None] = {}

    def hear(self, event: Event) -> None:
        """Counts what an event of a run or of a verification says."""
        match event:
            case Listed():
                self.total, self._listed = event.total_tasks, event.committed
                self._done_since.clear()
                self._images_per_task = event.total_images / max(self.total, 1)
            case Stepped():
                self.active[event.task] = event
                if event.iteration > 0:
                    self._rate.add(self._session)
            case TaskDone():
                self._count(event)
                self._rate.add(self._session)
            case AttemptFailed():
                self.active.pop(event.attempt.task, None)
                self.failures += 1
            case WorkerLost():
                self.active = {task: step for task, step in self.active.items() if step.slot != event.slot}
            case ShardsChecked():
                self.total = event.total
                self._listed = self._session_tasks = event.number
                self._rate.add(self._session)

    @property
    def done(self) -> int:
        """Tasks done: those of the last listing and each one heard of since, duplicates once."""
        return min(self._listed + len(self._done_since), self.total)

    @property
    def equivalent(self) -> float:
        """Tasks done, those at work by their share; never more than there are."""
        return min(self.done + self._at_work, float(self.total))

    def message(self, event: Event) -> str | None:
        """Returns what a person should read of an event besides counts; None for most events.

        A failure is told in full once: in short where it is the last one again, and where it ends the run,
        whose error says the same.
        """
        text = message_of(event)
        if not isinstance(event, AttemptFailed):
            return text
        task = event.attempt.task
        if event.kind == "quality_gate" and task == 0 and self.done == 0:
            return f"task {task}, the canary, failed the quality gate"
        if self._told.get(task) == text:
            return f"task {task} failed in the same way again ({event.kind})"
        self._told[task] = text
        return text

    def is_milestone(self) -> bool:
        """True for every task of a small run, for every 1 % of a large one."""
        return self.done % max(1, self.total // 100) == 0 or self.done >= self.total

    def line(self) -> str:
        """Returns e.g. `312/1,000 tasks, 31%, 15.1 images/s, ETA 3h12m, 2 failures`."""
        share = int(100 * self.equivalent / self.total) if self.total else 100
        parts = [f"{self.done:,}/{self.total:,} {self._unit}", f"{share}%"]
        per_s = self._rate.per_s()
        if per_s is not None:
            size = self._images_per_task or 1.0
            parts.append(format_rate(per_s * size, "images" if self._images_per_task else self._unit))
        if self.done < self.total:
            left = self.total - self.equivalent
            parts.append("ETA unknown" if per_s is None else f"ETA {format_seconds(left / per_s)}")
        if self.failures:
            parts.append(counted(self.failures, "failure"))
        return ", ".join(parts)

    @property
    def _session(self) -> float:
        """Tasks' worth of work that this session has done, whole ones by their images."""
        whole = self._session_images / self._images_per_task if self._images_per_task else self._session_tasks
        return whole + self._at_work

    @property
    def _at_work(self) -> float:
        return sum(step.iteration / max(step.iterations, 1) for step in self.active.values())

    def _count(self, done: TaskDone) -> None:
        receipt = done.receipt
        self.active.pop(receipt.task, None)
        self._done_since.add(receipt.task)
        if receipt.outcome != "other":
            self._session_tasks += 1
            self._session_images += receipt.rows


def message_of(event: Event) -> str | None:
    """Returns an event's own words; None for those that only count."""
    match event:
        case AttemptFailed():
            return format_failure(event.attempt.task, event.kind, event.message)
        case WorkerLost():
            end = "; its slot is given up" if event.given_up else ""
            return f"{event.worker} is gone ({event.kind}): {first_line(event.message)}{end}"
        case TaskQuarantined():
            return f"task {event.task} is quarantined: {event.kind}, and no attempt is left"
        case Note():
            return event.text
    return None


def printable(text: str) -> str:
    """Returns text on one line that a terminal shows and never obeys: control characters become spaces."""
    return "".join(character if character.isprintable() else " " for character in text)


def format_seconds(seconds: float) -> str:
    """Returns `3.2s`, `42s`, `3m05s`, `1h02m` or `4d03h`."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    hours = round(seconds / 3600)
    return f"{hours // 24}d{hours % 24:02d}h"


def format_rate(per_s: float, unit: str = "images") -> str:
    """Returns `1,234 images/s`, `15.1 images/s`, `0.83 images/s`, or per minute where that reads better."""
    if per_s < 0.1:
        return f"{per_s * 60:.2g} {unit}/min"
    digits = 0 if per_s >= 99.95 else 1 if per_s >= 9.995 else 2
    return f"{per_s:,.{digits}f} {unit}/s"


def format_step(step: Stepped) -> str:
    """Returns e.g. `task 7: iteration 150/2,000, total 3.21, ce 0.012`."""
    terms = [f"{name} {value:.3g}" for name, value in step.losses.items() if name != "iteration"]
    return ", ".join([f"task {step.task}: iteration {step.iteration:,}/{step.iterations:,}", *terms])


def format_failure(task: int, kind: str, message: str) -> str:
    """Returns one line that names the task and the kind of failure, whatever the message holds."""
    return f"task {task} failed ({kind}): {first_line(message).removeprefix(f'task {task}: ')}"
