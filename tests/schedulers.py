"""Schedulers that tests drive by hand: tasks without work, workers that end as told."""

from itertools import count
from typing import Any

from nisynth.execution.schedule import Attempt, Rules, Scheduler


def make(
    num_tasks: int = 10, num_slots: int = 2, *, canary: bool = False, seed: int = 0, **rules: Any
) -> Scheduler:
    """A scheduler with every slot live; task 0 is committed already unless the canary is the point."""
    numbers = count()
    limits = Rules(**{"deadline_floor_s": 0.0, **rules})
    scheduler = Scheduler(num_tasks, num_slots, limits, seed=seed, new_id=lambda: str(next(numbers)))
    for slot in range(num_slots):
        scheduler.joined(slot, 0.0)
    if not canary:
        scheduler.committed([0], 0.0)
    return scheduler


def run_out(scheduler: Scheduler, now_s: float = 0.0, duration_s: float = 1.0) -> list[Attempt]:
    """Finishes whatever is assigned until nothing is; returns the attempts in order."""
    attempts = []
    while batch := scheduler.assign(now_s):
        for attempt in batch:
            scheduler.finished(attempt, duration_s, now_s)
        attempts += batch
    return attempts


def fail_until_condemned(scheduler: Scheduler, task: int, kind: str, now_s: float = 0.0) -> list[int]:
    """Fails one task wherever it goes, finishes all others; returns the slots it failed in."""
    slots = []
    while task not in scheduler.condemned:
        batch = scheduler.assign(now_s)
        assert batch, "the task waits for ever"
        for attempt in batch:
            if attempt.task == task:
                slots.append(attempt.slot)
                scheduler.failed(attempt, kind, f"{kind} in slot {attempt.slot}", now_s)
            else:
                scheduler.finished(attempt, 1.0, now_s)
    return slots


def only(scheduler: Scheduler, num_tasks: int, task: int) -> None:
    """Leaves one task to do."""
    scheduler.committed(set(range(num_tasks)) - {task}, 0.0)


def look_and_begin(driver: Scheduler, committed: set[int]) -> Attempt | None:
    """Returns the first attempt whose task nobody has committed yet, as a worker of one slot finds it."""
    while batch := driver.assign(0.0):
        (attempt,) = batch
        if attempt.task not in committed:
            return attempt
        driver.finished(attempt, None, 0.0)
    return None
