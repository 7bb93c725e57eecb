"""What one driver knows of each task: open, tried, committed or given up on, and how it failed.

One byte holds the state of a task, and only a task that is in flight or has failed has a record, so a
million tasks cost a megabyte. Open tasks are walked in a random order of each driver's own, so that two
drivers on one run rarely meet, and without a list of it.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from nisynth.errors import FailureKind, LossKind

OPEN, TRIED, QUARANTINED, COMMITTED = range(4)

NUMERIC: frozenset[FailureKind | LossKind] = frozenset({"not_finite", "quality_gate"})
"""Failures that come out the same every time, since the seed is fixed."""

FAULTS: frozenset[FailureKind | LossKind] = frozenset({"out_of_memory", "raised"})
"""Failures that may be the task's or the worker's: a GPU whose context is broken raises for every task."""

APPLICATION = NUMERIC | FAULTS
"""Failures that count towards a task's quarantine. Other kinds are failures of machines, network or store."""

DEATHS: frozenset[FailureKind | LossKind] = frozenset({"worker_died", "deadline"})
"""Ends of a worker that its computing task may have caused."""


@dataclass(frozen=True)
class Attempt:
    """One execution of a task in a slot; `id` is the uuid4 that names its shard."""

    id: str
    task: int
    slot: int


@dataclass(frozen=True)
class Failure:
    """One failed attempt: rules go by `kind`, people by `message`, which may hold a traceback."""

    kind: FailureKind | LossKind
    message: str
    slot: int


@dataclass
class Record:
    """One task that is in flight or has failed. alone: it shares a worker with no other task."""

    attempts: list[Attempt] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    alone: bool = False

    @property
    def slots(self) -> set[int]:
        """Where the task failed."""
        return {failure.slot for failure in self.failures}

    def count(self, kinds: frozenset[FailureKind | LossKind]) -> int:
        """Returns how many of its failures are of these kinds."""
        return sum(failure.kind in kinds for failure in self.failures)

    def failed_alike(self) -> bool:
        """True when two failures are the same numeric one."""
        numeric = [failure.kind for failure in self.failures if failure.kind in NUMERIC]
        return len(numeric) > len(set(numeric))


def shuffled(size: int, draw: random.Random) -> Iterator[int]:
    """Yields 0..size-1 in a random order that takes no memory: a Feistel network over two halves of the bits.

    Not `(start + i * stride) mod size`: two drivers whose strides are alike walk in step once they meet, and
    do all the rest twice.
    """
    bits = ((size - 1).bit_length() + 1) // 2
    keys = [(draw.getrandbits(64), draw.getrandbits(64)) for _ in range(4)]
    for index in range(1 << 2 * bits):
        left, right = index >> bits, index & (1 << bits) - 1
        for factor, offset in keys:
            # The high bits of a product are the mixed ones.
            left, right = right, left ^ ((right * factor + offset) % (1 << 64) >> (64 - bits))
        task = left << bits | right
        if task < size:
            yield task


class Ledger:
    """The tasks of one run. The queue is the retries, oldest first, then the open tasks.

    condemned: tasks to quarantine, unless somebody committed them meanwhile.
    """

    def __init__(self, num_tasks: int, draw: random.Random, max_failures: int, max_deaths: int) -> None:
        self.num_tasks = num_tasks
        self.num_committed = 0
        self.num_quarantined = 0
        self.records: dict[int, Record] = {}
        self.retries: dict[int, None] = {}
        self.condemned: dict[int, list[Failure]] = {}
        self._max_failures, self._max_deaths = max_failures, max_deaths
        self._state = bytearray(num_tasks)
        self._order = shuffled(num_tasks, draw)
        self._fresh = next(self._order, None)

    @property
    def num_left(self) -> int:
        """The number of tasks that are neither committed nor quarantined."""
        return self.num_tasks - self.num_committed - self.num_quarantined

    def is_settled(self, task: int) -> bool:
        """True when the task is committed or quarantined."""
        return self._state[task] >= QUARANTINED

    def is_queued(self, task: int) -> bool:
        """True when the task waits for a worker."""
        return self._state[task] == OPEN or task in self.retries

    def next_open(self) -> int | None:
        """Returns the first task, in this driver's order, that nobody has tried yet."""
        while self._fresh is not None and self._state[self._fresh] != OPEN:
            self._fresh = next(self._order, None)
        return self._fresh

    def queue(self) -> Iterator[int]:
        """Yields the retries, then the first open task."""
        yield from self.retries
        fresh = self.next_open()
        if fresh is not None:
            yield fresh

    def begin(self, attempt: Attempt) -> None:
        """Takes the task off the queue, into flight."""
        self._state[attempt.task] = TRIED
        self.retries.pop(attempt.task, None)
        self.records.setdefault(attempt.task, Record()).attempts.append(attempt)

    def end(self, attempt: Attempt, failure: Failure | None = None) -> None:
        """Takes the attempt out of flight; a task with another attempt in flight waits for that one."""
        record = self.records[attempt.task]
        record.attempts.remove(attempt)
        if failure is not None and failure.kind in APPLICATION | DEATHS:
            record.failures.append(failure)
        self._route(attempt.task)

    def settle(self, task: int, state: int) -> bool:
        """Moves a task up to QUARANTINED or COMMITTED, never down; returns whether it moved."""
        before = self._state[task]
        if before >= state:
            return False
        self.num_quarantined += (state == QUARANTINED) - (before == QUARANTINED)
        self.num_committed += state == COMMITTED
        self._state[task] = state
        self.retries.pop(task, None)
        self.condemned.pop(task, None)
        self._route(task)
        return True

    def _route(self, task: int) -> None:
        """Decides what becomes of a task without an attempt in flight: forgotten, condemned or retried."""
        record = self.records.get(task)
        if record is None or record.attempts:
            return
        if self._state[task] != TRIED:
            del self.records[task]  # settled: records are kept only of what is in flight or has failed
        elif self._is_hopeless(record):
            self.condemned[task] = record.failures
        elif record.count(DEATHS):
            # It may have killed a worker. Tried first, it is cleared or condemned soon: each further death
            # counts against a slot too, until that is given up.
            self.retries = {task: None} | self.retries
        else:
            self.retries[task] = None  # last: later, or on another worker, it may succeed

    def _is_hopeless(self, record: Record) -> bool:
        too_often = record.count(APPLICATION) >= self._max_failures
        return too_often or record.count(DEATHS) >= self._max_deaths or record.failed_alike()
