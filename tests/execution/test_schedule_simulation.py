"""Thousands of virtual tasks on virtual workers that die, hang, fail and are taken away, by seed.

The world below keeps its own books (who computes, who committed), so that the scheduler is judged by
what happened and not by what it believes.
"""

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from nisynth.errors import Stalled
from nisynth.execution.schedule import Attempt, Rules, Scheduler

TICK_S = 1.0
UPLOAD_S = 3.0


@dataclass
class VirtualWorker:
    """Runs its attempts first come, first served: compute under a lock, then upload beside the next."""

    attempts: list[Attempt] = field(default_factory=list)
    computing_since_s: float = 0.0
    uploads: list[tuple[float, Attempt]] = field(default_factory=list)
    back_s: float | None = 0.0


class World:
    """Tasks with a nature each, workers in slots, and a store that holds the first commit of a task."""

    def __init__(self, seed: int, num_tasks: int, num_slots: int, broken_slots: int = 0) -> None:
        self.draw = random.Random(seed)
        kinds = ["good"] * 88 + ["not_finite"] * 3 + ["raised"] * 3 + ["kills"] * 3 + ["hangs"] * 3
        self.nature = ["good", *(self.draw.choice(kinds) for _ in range(num_tasks - 1))]
        self.broken = set(range(broken_slots))
        self.workers = [VirtualWorker() for _ in range(num_slots)]
        self.commits: set[int] = set()
        self.quarantined: set[int] = set()
        self.deaths: Counter[int] = Counter()
        self.failures: Counter[int] = Counter()
        self.scheduler = Scheduler(
            num_tasks,
            num_slots,
            Rules(max_failed_tasks=num_tasks, deadline_floor_s=60.0, no_progress_s=3600.0),
            seed=seed,
            new_id=lambda: str(self.draw.random()),
        )

    def run(self, until_s: float = 200_000.0) -> float:
        """Drives the scheduler to its end as an executor would; returns the virtual seconds it took."""
        now_s = 0.0
        while not self.scheduler.done:
            now_s += TICK_S
            assert now_s < until_s, "no end"
            for number in range(len(self.workers)):
                self._advance(number, now_s)
            self._preempt_somebody(now_s)
            for number, kind, reason in self.scheduler.to_kill(now_s):
                computing = self.workers[number].attempts
                if kind == "deadline" and computing:
                    self.deaths[computing[0].task] += 1
                self._end_worker(number, kind, reason, now_s)
            for task in list(self.scheduler.condemned):
                self._quarantine(task)
            if self.draw.random() < 0.01:
                self._somebody_else_commits(now_s)
            self.scheduler.check(now_s)
            for attempt in self.scheduler.assign(now_s):
                self._accept(attempt, now_s)
        return now_s

    def _accept(self, attempt: Attempt, now_s: float) -> None:
        worker = self.workers[attempt.slot]
        assert worker.back_s is None, "assigned to a slot without a worker"
        assert attempt.task not in self.quarantined
        aboard = [*worker.attempts, *(a for _, a in worker.uploads)]
        assert len(aboard) < 2, "more than two in flight"
        everywhere = [a.task for w in self.workers for a in [*w.attempts, *(u for _, u in w.uploads)]]
        assert everywhere.count(attempt.task) < 2, "the same task three times at once"
        if 0 not in self.commits | self.quarantined:
            assert attempt.task == 0
            assert not everywhere
        if not worker.attempts:
            worker.computing_since_s = now_s
        worker.attempts.append(attempt)

    def _advance(self, number: int, now_s: float) -> None:
        worker = self.workers[number]
        if worker.back_s is not None:
            if now_s >= worker.back_s:
                worker.back_s = None
                self.scheduler.joined(number, now_s)
            return
        for done_s, attempt in [u for u in worker.uploads if u[0] <= now_s]:
            worker.uploads.remove((done_s, attempt))
            self.commits.add(attempt.task)
            self.scheduler.finished(attempt, 10.0, now_s)
        if worker.attempts:
            self._compute(number, worker, now_s)

    def _compute(self, number: int, worker: VirtualWorker, now_s: float) -> None:
        attempt, elapsed_s = worker.attempts[0], now_s - worker.computing_since_s
        nature = self.nature[attempt.task]
        if number in self.broken:
            self._die(number, now_s)
        elif nature == "kills" and elapsed_s > 2.0:
            self.deaths[attempt.task] += 1
            self._die(number, now_s)
        elif nature in ("not_finite", "raised") and elapsed_s > 5.0:
            self.failures[attempt.task] += 1
            self._next(worker, now_s)
            self.scheduler.failed(attempt, nature, nature, now_s)
        elif nature == "good" and elapsed_s > self.draw.choice([8.0, 10.0, 12.0]):
            worker.uploads.append((now_s + UPLOAD_S, attempt))
            self._next(worker, now_s)
        if worker.back_s is None and worker.attempts:
            current_s = now_s - worker.computing_since_s
            self.scheduler.progress(number, worker.attempts[0].task, int(current_s), current_s, now_s)

    def _next(self, worker: VirtualWorker, now_s: float) -> None:
        worker.attempts.pop(0)
        worker.computing_since_s = now_s

    def _die(self, number: int, now_s: float) -> None:
        self._end_worker(number, "worker_died", "exit code 139", now_s)

    def _end_worker(self, number: int, kind: str, reason: str, now_s: float) -> None:
        replace = self.scheduler.lost(number, kind, reason, now_s)
        back_s = now_s + self.draw.choice([5.0, 30.0]) if replace else float("inf")
        self.workers[number] = VirtualWorker(back_s=back_s)

    def _preempt_somebody(self, now_s: float) -> None:
        live = [n for n, worker in enumerate(self.workers) if worker.back_s is None]
        if live and self.draw.random() < 0.005:
            self._end_worker(self.draw.choice(live), self.draw.choice(["preempted", "node_died"]), "", now_s)

    def _quarantine(self, task: int) -> None:
        if task in self.commits:
            self.scheduler.committed([task], 0.0)
        else:
            self.quarantined.add(task)
            self.scheduler.quarantined([task])

    def _somebody_else_commits(self, now_s: float) -> None:
        task = self.draw.randrange(len(self.nature))
        if self.nature[task] == "good":
            self.commits.add(task)
            self.scheduler.committed([task], now_s)


@pytest.mark.parametrize("seed", range(40))
def test_no_task_is_lost_whatever_happens(seed):
    draw = random.Random(1000 + seed)
    world = World(seed, num_tasks=draw.choice([1, 2, 30, 150]), num_slots=draw.choice([1, 2, 3, 8]))
    world.run()
    good = {task for task, nature in enumerate(world.nature) if nature == "good"}
    assert world.commits == good
    assert world.quarantined == set(range(len(world.nature))) - good
    assert world.scheduler.num_committed == len(good)
    for task in world.quarantined:
        nature = world.nature[task]
        if nature in ("kills", "hangs"):
            assert world.deaths[task] == 3
        else:
            assert world.failures[task] == {"not_finite": 2, "raised": 3}[nature]


@pytest.mark.parametrize("seed", range(10))
def test_broken_slots_are_given_up_and_blamed_on_no_task(seed):
    world = World(seed, num_tasks=120, num_slots=8, broken_slots=2)
    world.nature = ["good"] * 120
    world.run()
    assert len(world.commits) == 120
    assert not world.quarantined


def test_only_broken_slots_end_the_run():
    world = World(0, num_tasks=30, num_slots=2, broken_slots=2)
    world.nature = ["good"] * 30
    with pytest.raises(Stalled, match="every worker given up"):
        world.run()
