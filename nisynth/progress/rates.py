"""Counts, speeds and times to come, and how they are written. No output, no clock but the injected one."""

import time
from collections.abc import Callable, Mapping

Clock = Callable[[], float]


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


class Tally:
    """Counts of one session. A batch at work counts by its share of iterations, so the ETA comes early."""

    def __init__(self, unit: str, clock: Clock) -> None:
        self._unit = unit
        self._clock = clock
        self._rate: Rate | None = None
        self.total = 0
        self.failures = 0
        self.active: dict[int, tuple[int, int, Mapping[str, float]]] = {}
        self._listed = 0
        self._done_since: set[int] = set()
        self._session_tasks = 0
        self._session_images = 0
        self._images_per_task = 0.0

    def started(self, total: int, done: int, total_images: int) -> None:
        self.total, self._listed = total, done
        self._done_since.clear()
        self._images_per_task = total_images / max(total, 1)
        self._rate = self._rate or Rate(self._clock)

    def step(self, task: int, iteration: int, iterations: int, losses: Mapping[str, float]) -> None:
        self.active[task] = (iteration, iterations, losses)

    def task_done(self, task: int, rows: int, ours: bool) -> None:
        self.active.pop(task, None)
        self._done_since.add(task)
        if ours:
            self._session_tasks += 1
            self._session_images += rows

    def task_failed(self, task: int) -> None:
        self.active.pop(task, None)
        self.failures += 1

    def checked(self, number: int, total: int) -> None:
        if self._rate is None:
            self.started(total, 0, 0)
        self._listed = self._session_tasks = number

    @property
    def done(self) -> int:
        """Tasks done: those of the last listing and each one heard of since, duplicates once."""
        return min(self._listed + len(self._done_since), self.total)

    @property
    def equivalent(self) -> float:
        """Tasks done, those at work by their share; never more than there are."""
        return min(self.done + self._at_work, float(self.total))

    @property
    def _at_work(self) -> float:
        return sum(iteration / max(iterations, 1) for iteration, iterations, _ in self.active.values())

    def is_milestone(self) -> bool:
        return self.done % max(1, self.total // 100) == 0 or self.done >= self.total

    def line(self) -> str:
        """Returns e.g. `312/1,000 tasks, 31%, 15.1 images/s, ETA 3h12m, 2 failures`."""
        rate = self._rate or Rate(self._clock)
        share = int(100 * self.equivalent / self.total) if self.total else 100
        parts = [f"{self.done:,}/{self.total:,} {self._unit}", f"{share}%"]
        session = self._session_tasks + self._at_work
        images = self._session_images + self._at_work * self._images_per_task
        per_s = rate.per_s(images if self._images_per_task else session)
        if per_s is not None:
            parts.append(format_rate(per_s, "images" if self._images_per_task else self._unit))
        eta_s = rate.eta_s(session, self.total - self.equivalent)
        if self.done < self.total:
            parts.append("ETA unknown" if eta_s is None else f"ETA {format_seconds(eta_s)}")
        if self.failures:
            parts.append(f"{self.failures:,} failure{'s' if self.failures > 1 else ''}")
        return ", ".join(parts)


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


def format_step(task: int, iteration: int, iterations: int, losses: Mapping[str, float]) -> str:
    """Returns e.g. `task 7: iteration 150/2,000, total 3.21, ce 0.012`."""
    terms = [f"{name} {value:.3g}" for name, value in losses.items() if name != "iteration"]
    return ", ".join([f"task {task}: iteration {iteration:,}/{iterations:,}", *terms])


def format_failure(task: int, kind: str, message: str) -> str:
    """Returns one line that names the task and the kind of failure, whatever the message holds."""
    first = (message.strip().splitlines() or [""])[0].removeprefix(f"task {task}: ")
    return f"task {task} failed ({kind}): {first}"
