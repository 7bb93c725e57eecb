"""The one loop that drives a run: asks the scheduler, commands a crew, tells what happens.

Local, Ray and virtual runs go through it alike. It has no rules of its own (those are the scheduler's), no
workers (a crew's) and keeps nothing that matters: losing it costs what is in flight.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol

from nisynth.commits import Outcome, Receipt
from nisynth.errors import StorageError
from nisynth.execution.crew import Crew
from nisynth.execution.events import (
    AttemptFailed,
    AttemptStarted,
    Listed,
    Listener,
    Note,
    Report,
    Stepped,
    TaskDone,
    TaskQuarantined,
    WorkerLost,
    WorkerReady,
)
from nisynth.execution.ledger import Failure
from nisynth.execution.schedule import Rules, Scheduler


class Commits(Protocol):
    """What counts: the committed tasks, as far as the loop asks. In storage, or in a simulation's memory."""

    def now(self) -> tuple[set[int], set[int]]:
        """Returns the committed and the quarantined tasks. Raises StorageError."""

    def fresh(self) -> Iterable[set[int] | StorageError]:
        """Returns the committed tasks listed since the last call, or why they could not be; never waits."""

    def outcome(self, receipt: Receipt) -> Outcome:
        """Returns whose commit the receipt's task has. Raises StorageError."""

    def quarantine(self, task: int, failures: list[dict[str, Any]]) -> bool:
        """Records that the task is given up on; False when it is committed after all. Raises StorageError."""


class Drive:
    """One driver's part in a run of `num_tasks` tasks and `num_images` images.

    rules: the limits that decisions go by. tell: hears every event; must not raise. clock: the crew's
    seconds. seed: of the order in which this driver walks the tasks; another one each by default, so that
    two drivers on one URL rarely meet.
    """

    def __init__(
        self,
        commits: Commits,
        num_tasks: int,
        num_images: int,
        num_slots: int,
        rules: Rules,
        tell: Listener,
        *,
        clock: Callable[[], float] = time.monotonic,
        seed: int | None = None,
    ) -> None:
        self._commits, self._tell, self._clock = commits, tell, clock
        self._num_images, self._num_slots = num_images, num_slots
        seed = time.time_ns() if seed is None else seed
        self.scheduler = Scheduler(num_tasks, num_slots, rules, seed=seed, now_s=clock())
        committed, quarantined = commits.now()
        self.scheduler.quarantined(quarantined)
        self.scheduler.committed(committed, clock())
        self._workers: dict[int, str] = {}
        self._introduced: set[str] = set()
        self._executed = 0

    @property
    def settled(self) -> bool:
        """True when every task is committed or quarantined."""
        return self.scheduler.done

    def check(self) -> None:
        """Raises why the run cannot go on, as the scheduler's `check` does."""
        self.scheduler.check(self._clock())

    def execute(self, crew: Crew) -> int:
        """Drives the crew until every task is settled; returns how many tasks it committed.

        Raises what the scheduler ends a run with (BudgetExceeded, TaskFailure for the canary, StorageError,
        Stalled) and what the crew does. The crew's workers are ended in any case.
        """
        self._list()
        try:
            for slot in range(self._num_slots):
                crew.start(slot)
            while not self.settled:
                self.check()
                self._relist()
                for attempt in self.scheduler.assign(self._clock()):
                    self._tell(AttemptStarted(attempt))
                    crew.submit(attempt)
                crew.wait(lambda report: self._hear(report, crew))
                for slot, kind, reason in self.scheduler.to_kill(self._clock()):
                    self._lose(WorkerLost(slot, kind, reason), crew)
                for task, failures in list(self.scheduler.condemned.items()):
                    self._give_up(task, failures)
            self.check()
        finally:
            for slot in range(self._num_slots):
                crew.kill(slot)
        return self._executed

    def _hear(self, report: Report, crew: Crew) -> None:
        now_s = self._clock()
        match report:
            case WorkerReady():
                self._workers[report.slot] = report.worker
                self.scheduler.joined(report.slot, now_s)
            case Stepped():
                self.scheduler.progress(report.slot, report.task, report.iteration, report.elapsed_s, now_s)
            case AttemptFailed():
                self.scheduler.failed(report.attempt, report.kind, report.message, now_s)
            case TaskDone():
                return self._settle(report, crew)
            case WorkerLost():
                return self._lose(report, crew)
        return self._tell(report)

    def _settle(self, done: TaskDone, crew: Crew) -> None:
        """Counts a task as done once storage has its commit; a receipt alone is only a claim."""
        attempt, receipt = done.attempt, done.receipt
        try:
            outcome = self._commits.outcome(receipt)
        except StorageError as error:
            return self._hear(AttemptFailed(attempt, "storage", str(error)), crew)
        if outcome == "unknown":
            unclear = f"task {attempt.task}: its commit got no clear answer"
            return self._hear(AttemptFailed(attempt, "storage", unclear), crew)
        self._executed += outcome == "mine"
        self.scheduler.finished(attempt, receipt.compute_s, self._clock())
        self._introduce(receipt)
        return self._tell(done)

    def _lose(self, lost: WorkerLost, crew: Crew) -> None:
        crew.kill(lost.slot)
        name = self._workers.pop(lost.slot, f"worker {lost.slot}")
        again = self.scheduler.lost(lost.slot, lost.kind, f"{name}: {lost.message}", self._clock())
        self._tell(replace(lost, worker=name, given_up=not again))
        if again:
            crew.start(lost.slot)

    def _give_up(self, task: int, failures: list[Failure]) -> None:
        """Quarantines a task in storage and tells the scheduler, unless it turns out to be committed."""
        records = [{"kind": f.kind, "message": f.message, "slot": f.slot} for f in failures]
        if self._commits.quarantine(task, records):
            self.scheduler.quarantined([task])
            self._tell(TaskQuarantined(task, failures[-1].kind, failures[-1].message))
        else:
            self.scheduler.committed([task], self._clock())

    def _relist(self) -> None:
        """Drops what another driver did."""
        for found in self._commits.fresh():
            if isinstance(found, StorageError):
                self.scheduler.storage_failed(str(found))
            else:
                self.scheduler.committed(found, self._clock())
                self._list()

    def _list(self) -> None:
        num_tasks, committed = self.scheduler.ledger.num_tasks, self.scheduler.num_committed
        self._tell(Listed(num_tasks, committed, self._num_images))

    def _introduce(self, receipt: Receipt) -> None:
        """Notes, once a worker, which engine it runs, in how much GPU memory, and what it does without."""
        figures = receipt.figures
        if receipt.outcome == "other" or receipt.worker in self._introduced or "engine" not in figures:
            return
        self._introduced.add(receipt.worker)
        memory = figures.get("gpu_memory_bytes")
        size = f", {memory / 2**30:.1f} GiB of GPU memory" if memory else ""
        notes = "".join(f"; {note}" for note in figures.get("engine_notes", ()))
        self._tell(Note(f"worker {receipt.worker}: engine {figures['engine']}{size}{notes}"))
