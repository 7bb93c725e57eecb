"""Which task goes to which worker next, when to try again and when to give up.

Every decision of an executor is made here and nothing else is: no Ray, no storage, no clock (time is
passed in), no randomness but a seed. So each rule is tested in microseconds, and the executors keep only
the plumbing. The rules are those of the Ray pattern: two tasks in flight per slot, task 0 alone first,
failures of the machinery counted apart from failures of the task, one duplicate of a straggler.

A slot is a place for one worker; workers in it come and go, and a slot without one is waiting for it.
What is asked at every turn (`assign`, `to_kill`, `check`) walks the slots only when it may find something:
a decision costs the same with ten workers and with thousands.
"""

import random
import statistics
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf
from uuid import uuid4

from nisynth.errors import (
    BudgetExceeded,
    FailureKind,
    LossKind,
    Stalled,
    StorageError,
    TaskFailure,
    counted,
    first_line,
)
from nisynth.execution.ledger import COMMITTED, DEATHS, FAULTS, QUARANTINED, Attempt, Failure, Ledger

__all__ = ["Attempt", "Failure", "Rules", "Scheduler"]

BLAMELESS: frozenset[LossKind] = frozenset({"preempted", "node_died", "unavailable", "storage"})
"""Ends of a worker that say nothing against its task or its slot."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The limits that decisions go by; the defaults are for tasks of seconds to hours.

    failures, deaths: of one task, before it is quarantined. slot_failures: in a row, before the worker is
    replaced. slot_deaths: in a row, before the slot is given up. storage_failures: with no success between,
    before the run ends; a worker whose storage failed gets nothing for storage_pause_s while another's works,
    and the run goes on, as it does for so long where another worker still starts. The deadline of a task is
    max(deadline_floor_s, deadline_factor * p95), a straggler one that takes over max(duplicate_floor_s,
    duplicate_factor * median).
    """

    max_failed_tasks: int = 0
    in_flight: int = 2
    failures: int = 3
    deaths: int = 3
    slot_failures: int = 3
    slot_deaths: int = 4
    storage_failures: int = 6
    storage_pause_s: float = 60.0
    deadline_floor_s: float = 600.0
    deadline_factor: float = 5.0
    duplicate_floor_s: float = 10.0
    duplicate_factor: float = 2.0
    no_progress_s: float = 3600.0


@dataclass
class _Slot:
    given_up: bool = False
    attempts: list[Attempt] = field(default_factory=list)
    reported: int | None = None
    iteration: int = 0
    since_s: float = 0.0
    failures: int = 0
    deaths: int = 0
    storage_failures: int = 0
    storage_failed_s: float = 0.0
    storage_fails_since_s: float = 0.0
    last: str = "has not started"

    @property
    def computing(self) -> Attempt | None:
        """The attempt that holds the compute lock: the reported one, else the first in line."""
        reported = (attempt for attempt in self.attempts if attempt.task == self.reported)
        return next(reported, self.attempts[0] if self.attempts else None)

    @property
    def waiting(self) -> list[Attempt]:
        """The attempts that wait for the compute lock; those before the one that holds it are stored."""
        return self.attempts[self.attempts.index(self.computing) + 1 :] if self.computing else []


class Scheduler:
    """Tells an executor what to do next, and learns from it what happened.

    The executor reports `joined`, `progress`, `finished`, `failed`, `lost`, `committed`, `quarantined`
    and `storage_failed`; it asks `assign`, `to_kill`, `condemned` and `done`, and lets `check` raise when
    the run cannot go on. A commit, whoever made it, beats everything else that is known of a task.
    """

    def __init__(
        self,
        num_tasks: int,
        num_slots: int,
        rules: Rules | None = None,
        *,
        seed: int = 0,
        now_s: float = 0.0,
        new_id: Callable[[], str] = lambda: str(uuid4()),
    ) -> None:
        self.rules = rules or Rules()
        self.ledger = Ledger(num_tasks, random.Random(seed), self.rules.failures, self.rules.deaths)
        self._slots = [_Slot() for _ in range(num_slots)]
        self._live: set[int] = set()
        self._sick: set[int] = set()
        self._free: list[set[int]] = [set() for _ in range(self.rules.in_flight)]  # by attempts aboard
        self._oldest_s = inf  # nothing computes since before
        self._durations: deque[float] = deque(maxlen=256)
        self._storage_failures: list[str] = []
        self._progress_s = now_s
        self._canary_failed: TaskFailure | None = None
        self._new_id = new_id

    @property
    def done(self) -> bool:
        """True when every task is committed or quarantined."""
        return self.ledger.num_left == 0

    @property
    def num_committed(self) -> int:
        """The number of tasks that are known to be committed."""
        return self.ledger.num_committed

    @property
    def condemned(self) -> dict[int, list[Failure]]:
        """Tasks to quarantine, with what happened; answered by `quarantined` or `committed`."""
        return self.ledger.condemned

    @property
    def num_live(self) -> int:
        """The number of slots that have a worker now."""
        return len(self._live)

    @property
    def deadline_s(self) -> float:
        """The time that a task may compute; unlimited while no duration is known."""
        if not self._durations:
            return inf
        p95_s = sorted(self._durations)[(len(self._durations) * 95 - 1) // 100]
        return max(self.rules.deadline_floor_s, self.rules.deadline_factor * p95_s)

    def joined(self, number: int, now_s: float) -> None:
        """Learns that a worker is ready in the slot."""
        self._live.add(number)
        self._file(number)
        self._progress_s = now_s

    def progress(self, number: int, task: int, iteration: int, elapsed_s: float, now_s: float) -> None:
        """Learns that the slot's worker began to compute `task` `elapsed_s` ago and is at `iteration`."""
        slot = self._slots[number]
        if not any(attempt.task == task for attempt in slot.attempts):
            return
        if (slot.reported, slot.iteration) != (task, iteration):
            self._progress_s = now_s
        slot.reported, slot.iteration = task, iteration
        self._since(slot, now_s - elapsed_s)

    def finished(self, attempt: Attempt, duration_s: float | None, now_s: float) -> None:
        """Learns that the attempt ended with its task committed, by it or by another.

        duration_s: None when the worker found the commit there and did not compute.
        """
        slot = self._slots[attempt.slot]
        slot.failures = slot.deaths = slot.storage_failures = 0
        self._sick.discard(attempt.slot)
        self._storage_failures.clear()
        if duration_s is not None:
            self._durations.append(duration_s)
        self.committed([attempt.task], now_s)
        self._end(attempt, now_s)

    def failed(self, attempt: Attempt, kind: FailureKind, message: str, now_s: float) -> None:
        """Learns that the attempt ended without a commit, in a worker that lives on."""
        self._progress_s = now_s
        slot = self._slots[attempt.slot]
        slot.failures += kind in FAULTS
        if slot.failures >= self.rules.slot_failures:
            self._sick.add(attempt.slot)
        if kind == "storage":
            self._storage_failed_in(slot, message, now_s)
        if kind == "quality_gate" and attempt.task == 0 and self._canary_pending:
            self._canary_failed = TaskFailure(
                kind, f"{message} (task 0 is the canary: nothing else was started)"
            )
        self._end(attempt, now_s, Failure(kind, message, attempt.slot))

    def lost(self, number: int, kind: LossKind, message: str, now_s: float) -> bool:
        """Learns that the slot's worker is gone; returns whether to start another one there.

        A death has one of three causes, and which of them is not known: the task that was computing, the
        slot (its machine, its GPU), or chance. So both the task and the slot count it. A task that is
        condemned by its third death clears the slots that it died in, and a slot is cleared by the next
        commit that it brings.
        """
        slot = self._slots[number]
        slot.failures, slot.last = 0, f"{kind}: {first_line(message)}"
        self._live.discard(number)
        self._sick.discard(number)
        self._file(number)
        if kind == "storage":
            self._storage_failed_in(slot, message, now_s)
        slot.deaths += kind not in BLAMELESS
        # Only the task that held the compute lock can have killed the worker or have run over its deadline.
        culprit = slot.computing if kind in DEATHS else None
        for attempt in list(slot.attempts):
            # A task that was in a worker that died has a worker to itself from now on: then the next death
            # can be the fault of one task only.
            self.ledger.records[attempt.task].alone |= kind in DEATHS
            self._end(attempt, now_s, Failure(kind, message, number) if attempt is culprit else None)
        if culprit and culprit.task in self.condemned and self._durations:
            # Other tasks finish in this run and this one never did, so its deaths were its own fault.
            for failure in self.condemned[culprit.task]:
                self._slots[failure.slot].deaths = 0
        slot.given_up = slot.deaths >= self.rules.slot_deaths
        return not slot.given_up

    def committed(self, tasks: Iterable[int], now_s: float) -> None:
        """Learns that the tasks are committed in storage, by this driver or another: they are done."""
        for task in tasks:
            if self.ledger.settle(task, COMMITTED):
                self._progress_s = now_s

    def quarantined(self, tasks: Iterable[int]) -> None:
        """Learns that the tasks are quarantined in storage."""
        for task in tasks:
            self.ledger.settle(task, QUARANTINED)

    def _storage_failed_in(self, slot: _Slot, message: str, now_s: float) -> None:
        if not slot.storage_failures:
            slot.storage_fails_since_s = now_s
        slot.storage_failures += 1
        slot.storage_failed_s = now_s
        self.storage_failed(message)

    def storage_failed(self, message: str) -> None:
        """Learns that a request to the store failed, in a worker or in the driver."""
        self._storage_failures.append(message)

    def assign(self, now_s: float) -> list[Attempt]:
        """Returns the attempts to start now, an idle worker's first task before any worker's second.

        A worker whose storage just failed waits while that of another one works, or may once it is up: the
        fault may be its machine's alone (a wrong clock, a cut line), and the others can do what it cannot.
        """
        started = []
        for numbers in self._free:
            for number in sorted(numbers, key=self._doubt) if self._work_waits else ():
                if self._waits_for_its_storage(number, now_s):
                    continue
                task = self._next_task(number)
                if task is not None:
                    started.append(self._begin(task, number, now_s))
        return started + self._duplicates(now_s)

    def to_kill(self, now_s: float) -> list[tuple[int, LossKind, str]]:
        """Returns (slot, kind, reason) of each worker to kill and then to report as `lost`."""
        deadline_s = self.deadline_s
        doomed: dict[int, tuple[LossKind, str]] = {
            number: ("sick", f"{self._slots[number].failures} tasks in a row failed on this worker")
            for number in self._sick
        }
        for _, task, number in self._computing_for(deadline_s, now_s):
            doomed[number] = ("deadline", f"task {task} ran over its deadline of {deadline_s:.0f} s")
        return [(number, *why) for number, why in sorted(doomed.items())]

    def check(self, now_s: float) -> None:
        """Raises why the run cannot go on: TaskFailure, BudgetExceeded, StorageError or Stalled."""
        failed, allowed = self.ledger.num_quarantined, self.rules.max_failed_tasks
        if self._canary_failed:
            raise self._canary_failed
        if failed > allowed:
            raise BudgetExceeded(
                f"{counted(failed, 'task')} failed for good, execution.max_failed_tasks allows {allowed};"
                " `nisynth logs URL` says why; mend the cause, then `nisynth retry URL`, and run again"
            )
        if self.done:
            return
        many = len(self._storage_failures) >= max(self.rules.storage_failures, 2 * self.num_live)
        working = any(not self._slots[number].storage_failures for number in self._live)
        if many and not working and not self._another_may_come(now_s):
            raise StorageError(self._storage_failures[-1])
        if all(slot.given_up for slot in self._slots):
            raise Stalled(
                f"{counted(self.ledger.num_left, 'task')} left and every worker given up; {self._last_words}"
            )
        idle_s = now_s - self._progress_s
        patience_s = 2 * self.deadline_s if self._durations else 0.0
        if idle_s > max(self.rules.no_progress_s, patience_s):
            raise Stalled(
                f"no progress for {idle_s:.0f} s, {counted(self.ledger.num_left, 'task')} left;"
                f" {self._stuck(now_s)}"
            )

    @property
    def _canary_pending(self) -> bool:
        return not self.ledger.is_settled(0)

    @property
    def _work_waits(self) -> bool:
        return next(self.ledger.queue(), None) is not None

    @property
    def _last_words(self) -> str:
        return "; ".join(sorted({slot.last for slot in self._slots}))

    def _stuck(self, now_s: float) -> str:
        busy = self._computing_for(-inf, now_s)[:5]
        if not busy:
            return f"{self.num_live} of {counted(len(self._slots), 'worker')} up; {self._last_words}"
        return "stuck: " + ", ".join(f"task {task} ({now_s - since_s:.0f} s)" for since_s, task, _ in busy)

    def _next_task(self, number: int) -> int | None:
        if self._canary_pending:
            return 0 if self.ledger.is_queued(0) and self._may_run(0, number) else None
        aboard = self._slots[number].attempts
        if any(self.ledger.records[attempt.task].alone for attempt in aboard):
            return None
        task = next((task for task in self.ledger.queue() if self._may_run(task, number)), None)
        record = self.ledger.records.get(-1 if task is None else task)
        return None if aboard and record and record.alone else task

    def _waits_for_its_storage(self, number: int, now_s: float) -> bool:
        slot = self._slots[number]
        if not slot.storage_failures or now_s - slot.storage_failed_s > self.rules.storage_pause_s:
            return False
        working = any(not self._slots[other].storage_failures for other in self._live)
        return working or self._another_may_come(now_s)

    def _another_may_come(self, now_s: float) -> bool:
        """Returns whether a worker still starts while a live one's storage has failed for at most a pause."""
        starting = sum(not slot.given_up for slot in self._slots) > self.num_live
        return starting and any(
            now_s - self._slots[number].storage_fails_since_s <= self.rules.storage_pause_s
            for number in self._live
        )

    def _doubt(self, number: int) -> tuple[int, int]:
        return self._slots[number].storage_failures, number

    def _may_run(self, task: int, number: int) -> bool:
        """Returns whether a task may run in a slot: not where it failed, while a live slot is left to try."""
        record = self.ledger.records.get(task)
        tried = record.slots if record else ()
        return number not in tried or self._live.issubset(tried)

    def _duplicates(self, now_s: float) -> list[Attempt]:
        """Begins second attempts, once the queue is empty, at tasks that a straggler holds up.

        These are its own task and the one that waits behind it on the same worker; not what failed before.
        """
        if not self._free[0] or not self._durations or self._work_waits:
            return []
        # Durations are of the compute; what is waited for here is also stored. The floor is for that.
        late_s = self.rules.duplicate_factor * statistics.median(self._durations)
        late_s = max(self.rules.duplicate_floor_s, late_s)
        late = self._computing_for(late_s, now_s)
        behind = [attempt.task for _, _, number in late for attempt in self._slots[number].waiting]
        doubtful = [task for task in [*(task for _, task, _ in late), *behind] if self._may_double(task)]
        idle = sorted(self._free[0])
        return [self._begin(task, number, now_s) for task, number in zip(doubtful, idle, strict=False)]

    def _computing_for(self, longer_than_s: float, now_s: float) -> list[tuple[float, int, int]]:
        """Returns (since, task, slot) of what computes for longer than that, oldest first."""
        if now_s - self._oldest_s <= longer_than_s:
            return []
        slots = enumerate(self._slots)
        busy = sorted((s.since_s, s.computing.task, number) for number, s in slots if s.computing)
        self._oldest_s = busy[0][0] if busy else inf
        return [entry for entry in busy if now_s - entry[0] > longer_than_s]

    def _may_double(self, task: int) -> bool:
        record = self.ledger.records[task]
        return not self.ledger.is_settled(task) and len(record.attempts) == 1 and not record.failures

    def _begin(self, task: int, number: int, now_s: float) -> Attempt:
        slot, attempt = self._slots[number], Attempt(self._new_id(), task, number)
        if not slot.attempts:
            slot.reported = None
            self._since(slot, now_s)
        slot.attempts.append(attempt)
        self._file(number)
        self.ledger.begin(attempt)
        return attempt

    def _end(self, attempt: Attempt, now_s: float, failure: Failure | None = None) -> None:
        slot = self._slots[attempt.slot]
        if slot.computing is attempt:
            slot.reported = None
            self._since(slot, now_s)
        slot.attempts.remove(attempt)
        self._file(attempt.slot)
        self.ledger.end(attempt, failure)

    def _since(self, slot: _Slot, began_s: float) -> None:
        slot.since_s, self._oldest_s = began_s, min(self._oldest_s, began_s)

    def _file(self, number: int) -> None:
        """Keeps the slot where `assign` looks for it: under the number of attempts that its worker has."""
        for numbers in self._free:
            numbers.discard(number)
        aboard = len(self._slots[number].attempts)
        if number in self._live and aboard < len(self._free):
            self._free[aboard].add(number)
