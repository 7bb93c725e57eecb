"""The virtual crew: workers without work, in virtual time, for simulations of a run.

The drive loop, the scheduler and their rules are the real ones; workers, store and clock are simulated. A
run of a thousand tasks takes milliseconds. The planner predicts with it, and the tests check every rule in
simulations in which tasks fail, workers die and nodes are taken away.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from math import inf
from typing import Any

from nisynth.commits import Outcome, Receipt
from nisynth.errors import FailureKind, LossKind
from nisynth.execution.events import AttemptFailed, Report, Stepped, TaskDone, WorkerLost, WorkerReady
from nisynth.execution.ledger import Attempt

POLL_S = 1.0
TICK_S = 300.0
"""Between two reports of a long compute: the scheduler takes silence for no progress."""

Hear = Callable[[Report], None]


@dataclass(frozen=True)
class Act:
    """What one attempt does on a virtual worker.

    compute_s: it holds the compute lock; infinite for one that hangs. store_s: then it encodes, uploads and
    commits, beside the next task's compute. fails: it fails so, instead of that. kills: it ends its worker.
    """

    compute_s: float
    store_s: float = 0.0
    fails: FailureKind | None = None
    kills: LossKind | None = None


@dataclass
class _Worker:
    """One life of a worker. The first in line computes; those that store have left the line."""

    number: int
    line: deque[Attempt] = field(default_factory=deque)
    since_s: float = 0.0
    computes: bool = False


class VirtualCommits:
    """The commits of a virtual run: the first of a task counts."""

    def __init__(self) -> None:
        self.tasks: set[int] = set()
        self.quarantined: set[int] = set()
        self._by_others: list[set[int]] = []

    def now(self) -> tuple[set[int], set[int]]:
        return set(self.tasks), set(self.quarantined)

    def fresh(self) -> Iterable[set[int]]:
        found, self._by_others = self._by_others, []
        return found

    def outcome(self, receipt: Receipt) -> Outcome:
        if receipt.task in self.tasks:
            return "other"
        self.tasks.add(receipt.task)
        return "mine"

    def quarantine(self, task: int, failures: list[dict[str, Any]]) -> bool:
        if task in self.tasks:
            return False
        self.quarantined.add(task)
        return True

    def commit_by_another(self, task: int) -> None:
        """Another driver commits a task; this one's next listing shows it."""
        self.tasks.add(task)
        self._by_others.append({task})


class VirtualCrew:
    """Workers that do as `act` says, in time that passes only while the loop waits.

    act: what an attempt does. start_s: from the start of a worker in a slot until it is ready; infinite for
    a worker that never is. loss_per_hour: the probability, by hour, that a worker's node is lost. draw: the
    source of randomness. on_turn: called with the crew at every turn of the loop, for anything else.
    """

    def __init__(
        self,
        act: Callable[[Attempt], Act],
        *,
        start_s: Callable[[int], float] = lambda slot: 0.0,
        loss_per_hour: float = 0.0,
        draw: random.Random | None = None,
        rows: int = 1,
        on_turn: Callable[["VirtualCrew"], None] = lambda crew: None,
    ) -> None:
        self._act, self._start_s, self._on_turn, self._rows = act, start_s, on_turn, rows
        self._loss_per_s, self._draw = loss_per_hour / 3600.0, draw or random.Random(0)
        self._now_s = 0.0
        self._workers: dict[int, _Worker] = {}
        self._coming: list[tuple[float, int, _Worker, Callable[[Hear], None]]] = []
        self._numbers = count()
        self._lost: list[WorkerLost] = []
        self.busy_s = 0.0
        """Seconds of compute so far, lost compute included."""

    def now_s(self) -> float:
        """Returns the virtual seconds since the crew was made."""
        return self._now_s

    @property
    def live(self) -> list[int]:
        """The slots that have a worker, ready or starting."""
        return sorted(self._workers)

    def start(self, slot: int) -> None:
        worker = self._workers[slot] = _Worker(next(self._numbers))
        self._after(self._start_s(slot), worker, lambda hear: self._join(slot, worker, hear))

    def submit(self, attempt: Attempt) -> None:
        worker = self._workers[attempt.slot]
        worker.line.append(attempt)
        if len(worker.line) == 1:
            # Not at once: the loop hears of it where it waits.
            self._after(0.0, worker, lambda hear: self._compute(attempt.slot, worker, hear))

    def wait(self, hear: Hear) -> None:
        """Moves on to the next thing that happens, or by a second, and reports all that happens then."""
        self._on_turn(self)
        due_s = self._coming[0][0] if self._coming else inf
        self._now_s = max(self._now_s, min(due_s, self._now_s + POLL_S))
        while self._coming and self._coming[0][0] <= self._now_s:
            _, _, worker, happen = heapq.heappop(self._coming)
            if worker.number >= 0:  # else it was killed since
                happen(hear)
        lost, self._lost = self._lost, []
        for report in lost:
            if report.slot in self._workers:
                hear(report)

    def kill(self, slot: int) -> None:
        worker = self._workers.pop(slot, None)
        if worker is not None:
            if worker.line and worker.computes:
                self.busy_s += self._now_s - worker.since_s
            worker.number = -1

    def lose(self, slot: int, kind: LossKind, message: str = "") -> None:
        """Ends the worker of a slot from outside, as the loss of its node would; reported in this turn."""
        self._lost.append(WorkerLost(slot, kind, message))

    def _after(self, seconds: float, worker: _Worker, happen: Callable[[Hear], None]) -> None:
        if seconds < inf:
            heapq.heappush(self._coming, (self._now_s + seconds, next(self._numbers), worker, happen))

    def _join(self, slot: int, worker: _Worker, hear: Hear) -> None:
        hear(WorkerReady(slot, _name(slot, worker)))
        if self._loss_per_s > 0:
            lost = WorkerLost(slot, "node_died", "its node is gone")
            self._after(self._draw.expovariate(self._loss_per_s), worker, lambda hear: hear(lost))

    def _compute(self, slot: int, worker: _Worker, hear: Hear) -> None:
        attempt = worker.line[0]
        act = self._act(attempt)
        worker.since_s, worker.computes = self._now_s, True
        hear(Stepped(slot, attempt.task, 0, 1))
        self._after(act.compute_s, worker, lambda hear: self._computed(attempt, act, worker, hear))
        if TICK_S < act.compute_s < inf:
            self._after(TICK_S, worker, lambda hear: self._tick(attempt, act, worker, hear))

    def _tick(self, attempt: Attempt, act: Act, worker: _Worker, hear: Hear) -> None:
        if worker.line and worker.line[0] is attempt:
            elapsed_s = self._now_s - worker.since_s
            share = int(1000 * elapsed_s / act.compute_s)
            hear(Stepped(attempt.slot, attempt.task, share, 1000, elapsed_s=elapsed_s))
            self._after(TICK_S, worker, lambda hear: self._tick(attempt, act, worker, hear))

    def _computed(self, attempt: Attempt, act: Act, worker: _Worker, hear: Hear) -> None:
        self.busy_s += act.compute_s
        worker.computes = False
        if act.kills is not None:
            return hear(WorkerLost(attempt.slot, act.kills, f"during task {attempt.task}"))
        worker.line.popleft()
        if act.fails is None:
            self._after(act.store_s, worker, lambda hear: self._committed(attempt, act, worker, hear))
        else:
            hear(AttemptFailed(attempt, act.fails, f"task {attempt.task}: {act.fails}"))
        if worker.line and worker.number >= 0:
            self._compute(attempt.slot, worker, hear)
        return None

    def _committed(self, attempt: Attempt, act: Act, worker: _Worker, hear: Hear) -> None:
        seconds = {"synthesize": act.compute_s, "put": act.store_s}
        name = _name(attempt.slot, worker)
        hear(TaskDone(attempt, Receipt(attempt.task, attempt.id, "mine", self._rows, seconds, {}, name)))


def _name(slot: int, worker: _Worker) -> str:
    return f"virtual-{slot}/{worker.number}"
