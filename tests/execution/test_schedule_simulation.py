"""Thousands of virtual tasks on virtual workers that die, hang, fail and are taken away, by seed.

The world below keeps its own books (who computes, who committed), so that the scheduler is judged by what
happened and not by what it believes. What drives it is the loop that drives Ray's actors.
"""

import random
from collections import Counter
from collections.abc import Callable
from math import inf

import pytest

from nisynth.errors import Stalled
from nisynth.execution.drive import Drive
from nisynth.execution.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    Listener,
    Stepped,
    TaskDone,
    WorkerLost,
)
from nisynth.execution.ledger import Attempt
from nisynth.execution.schedule import Rules
from nisynth.execution.virtual import Act, VirtualCommits, VirtualCrew

NATURES = ["good"] * 88 + ["not_finite"] * 3 + ["raised"] * 3 + ["kills"] * 3 + ["hangs"] * 3


class Judge:
    """Hears every event and holds the scheduler to what it promises of each assignment."""

    def __init__(self, commits: VirtualCommits) -> None:
        self.deaths: Counter[int] = Counter()
        self.failures: Counter[int] = Counter()
        self._commits = commits
        self._flying: dict[str, Attempt] = {}
        self._computing: dict[int, int] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case AttemptStarted():
                self._accept(event.attempt)
            case TaskDone():
                del self._flying[event.attempt.id]
            case AttemptFailed():
                del self._flying[event.attempt.id]
                self.failures[event.attempt.task] += 1
            case WorkerLost():
                if event.kind in ("worker_died", "deadline"):
                    self.deaths[self._computing[event.slot]] += 1
                aboard = [attempt for attempt in self._flying.values() if attempt.slot == event.slot]
                for attempt in aboard:
                    del self._flying[attempt.id]
            case Stepped():
                self._computing[event.slot] = event.task

    def _accept(self, attempt: Attempt) -> None:
        flying = list(self._flying.values())
        assert attempt.task not in self._commits.quarantined
        assert sum(other.slot == attempt.slot for other in flying) < 2, "more than two in flight"
        assert sum(other.task == attempt.task for other in flying) < 2, "the same task three times at once"
        if 0 not in self._commits.tasks | self._commits.quarantined:
            assert attempt.task == 0
            assert not flying
        self._flying[attempt.id] = attempt


class World:
    """Tasks with a nature each, workers that come and go, and another driver that commits now and then."""

    def __init__(self, seed: int, num_tasks: int, num_slots: int, broken_slots: int = 0) -> None:
        self.draw = random.Random(seed)
        self.nature = ["good", *(self.draw.choice(NATURES) for _ in range(num_tasks - 1))]
        self.broken = range(broken_slots)
        self.commits = VirtualCommits()
        self.judge = Judge(self.commits)
        self.crew = VirtualCrew(
            self.act, start_s=lambda slot: self.draw.choice([5.0, 30.0]), on_turn=self.disturb
        )
        self.drive = Drive(
            self.commits,
            num_tasks,
            num_tasks,
            num_slots,
            Rules(max_failed_tasks=num_tasks, deadline_floor_s=60.0),
            self.judge,
            clock=self.crew.now_s,
            seed=seed,
        )

    def act(self, attempt: Attempt) -> Act:
        acts = {
            "good": Act(self.draw.choice([8.0, 10.0, 12.0]), 3.0),
            "not_finite": Act(5.0, fails="not_finite"),
            "raised": Act(5.0, fails="raised"),
            "kills": Act(2.0, kills="worker_died"),
            "hangs": Act(inf),
        }
        broken = Act(0.5, kills="worker_died")
        return broken if attempt.slot in self.broken else acts[self.nature[attempt.task]]

    def disturb(self, crew: VirtualCrew) -> None:
        assert crew.now_s() < 200_000, "no end"
        if crew.live and self.draw.random() < 0.005:
            crew.lose(self.draw.choice(crew.live), self.draw.choice(["preempted", "node_died"]))
        if self.draw.random() < 0.01:
            task = self.draw.randrange(len(self.nature))
            if self.nature[task] == "good":
                self.commits.commit_by_another(task)

    def run(self) -> None:
        self.drive.execute(self.crew)


@pytest.mark.parametrize("seed", range(40))
def test_no_task_is_lost_whatever_happens(seed: int) -> None:
    draw = random.Random(1000 + seed)
    world = World(seed, num_tasks=draw.choice([1, 2, 30, 150]), num_slots=draw.choice([1, 2, 3, 8]))
    world.run()
    good = {task for task, nature in enumerate(world.nature) if nature == "good"}
    assert world.commits.tasks == good
    assert world.commits.quarantined == set(range(len(world.nature))) - good
    assert world.drive.scheduler.num_committed == len(good)
    for task in world.commits.quarantined:
        nature = world.nature[task]
        if nature in ("kills", "hangs"):
            assert world.judge.deaths[task] == 3
        else:
            assert world.judge.failures[task] == {"not_finite": 2, "raised": 3}[nature]


@pytest.mark.parametrize("seed", range(10))
def test_broken_slots_are_given_up_and_blamed_on_no_task(seed: int) -> None:
    world = World(seed, num_tasks=120, num_slots=8, broken_slots=2)
    world.nature = ["good"] * 120
    world.run()
    assert len(world.commits.tasks) == 120
    assert not world.commits.quarantined


def test_only_broken_slots_end_the_run() -> None:
    world = World(0, num_tasks=30, num_slots=2, broken_slots=2)
    world.nature = ["good"] * 30
    with pytest.raises(Stalled, match="every worker given up"):
        world.run()


def driven(
    num_tasks: int,
    num_slots: int,
    act: Callable[[Attempt], Act],
    tell: Listener = lambda event: None,
    **crew: float,
) -> tuple[VirtualCrew, VirtualCommits]:
    """Drives a run of virtual workers to its end."""
    workers, commits = VirtualCrew(act, **crew), VirtualCommits()  # type: ignore[arg-type]
    drive = Drive(commits, num_tasks, num_tasks, num_slots, Rules(), tell, clock=workers.now_s, seed=0)
    assert drive.execute(workers) == num_tasks
    return workers, commits


def test_a_thousand_tasks_with_node_losses_go_through_the_drive_loop_that_ray_uses() -> None:
    losses: list[WorkerLost] = []

    def tell(event: Event) -> None:
        if isinstance(event, WorkerLost):
            losses.append(event)

    crew, commits = driven(1000, 8, lambda attempt: Act(17.5, 1.0), tell, loss_per_hour=10.0)
    assert commits.tasks == set(range(1000))
    assert len(losses) > 20
    assert {loss.kind for loss in losses} == {"node_died"}
    # Without a loss 8 workers take 2,187.5 s and the canary; a loss costs at most two tasks of one worker.
    assert 1000 / 8 * 17.5 < crew.now_s() < 1000 / 8 * 17.5 + 17.5 + len(losses) * 2 * 17.5


def test_an_upload_overlaps_the_next_compute() -> None:
    crew, _ = driven(100, 1, lambda attempt: Act(10.0, 9.0))
    # The canary is alone: nothing is handed out before its commit. From then on only the last upload counts.
    assert crew.now_s() == pytest.approx(10 + 9 + 99 * 10 + 9)


def test_a_compute_longer_than_the_guard_against_no_progress_is_no_stall() -> None:
    crew, _ = driven(2, 1, lambda attempt: Act(3 * 3600.0))
    assert crew.now_s() == pytest.approx(6 * 3600.0)


def test_a_straggler_is_overtaken_by_its_duplicate() -> None:
    slow: set[int] = set()

    def act(attempt: Attempt) -> Act:
        first = attempt.task == 5 and not slow
        slow.add(5) if first else None
        return Act(500.0 if first else 10.0)

    crew, _ = driven(16, 4, act)
    assert crew.now_s() < 100


def test_the_store_of_a_virtual_run_knows_who_was_first() -> None:
    done: list[TaskDone] = []

    def tell(event: Event) -> None:
        if isinstance(event, TaskDone):
            done.append(event)

    driven(4, 2, lambda attempt: Act(10.0), tell)
    assert [event.receipt.compute_s for event in done] == [10.0] * 4
