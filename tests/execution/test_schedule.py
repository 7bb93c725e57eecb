"""Who gets which task when, what a run's clock says, and how it ends."""

import random
import sys
import tracemalloc
from collections import deque

import pytest

from nisynth.errors import BudgetExceeded, Stalled, StorageError, TaskFailure
from nisynth.execution.ledger import shuffled
from nisynth.execution.schedule import Attempt, Rules, Scheduler
from tests.schedulers import fail_until_condemned, look_and_begin, make, run_out


class TestOrder:
    def test_an_idle_worker_gets_its_first_task_before_any_worker_gets_its_second(self) -> None:
        scheduler = make(num_tasks=10, num_slots=3)
        assert [attempt.slot for attempt in scheduler.assign(0.0)] == [0, 1, 2, 0, 1, 2]
        assert scheduler.assign(0.0) == []

    def test_a_slot_without_a_worker_gets_nothing(self) -> None:
        scheduler = Scheduler(10, 2)
        assert scheduler.assign(0.0) == []
        scheduler.joined(1, 0.0)
        assert [attempt.slot for attempt in scheduler.assign(0.0)] == [1]

    def test_every_task_is_assigned_once_and_each_seed_walks_in_its_own_order(self) -> None:
        orders = []
        for seed in range(3):
            scheduler = Scheduler(97, 1, seed=seed)
            scheduler.joined(0, 0.0)
            order = [attempt.task for attempt in run_out(scheduler)]
            assert order[0] == 0
            assert sorted(order) == list(range(97))
            orders.append(order)
        assert orders[0] != orders[1] != orders[2] != orders[0]

    def test_the_same_seed_and_reports_give_the_same_decisions(self) -> None:
        first, second = (run_out(make(50, 3)) for _ in range(2))
        assert first == second

    def test_one_task_alone_is_a_whole_run(self) -> None:
        scheduler = make(num_tasks=1, num_slots=2, canary=True)
        (attempt,) = scheduler.assign(0.0)
        scheduler.finished(attempt, 1.0, 1.0)
        assert scheduler.done

    def test_tasks_that_others_committed_are_dropped(self) -> None:
        scheduler = make(num_tasks=10, num_slots=1)
        first = scheduler.assign(0.0)
        scheduler.committed(range(9), 0.0)
        assert {attempt.task for attempt in run_out(scheduler)} | {9} == {9}
        for attempt in first:
            scheduler.finished(attempt, 1.0, 1.0)
        run_out(scheduler)
        assert scheduler.done
        assert scheduler.num_committed == 10

    @pytest.mark.parametrize("num_tasks", [1, 2, 3, 40, 64, 65, 1000])
    def test_an_order_holds_every_task_once(self, num_tasks: int) -> None:
        for seed in range(20):
            assert sorted(shuffled(num_tasks, random.Random(seed))) == list(range(num_tasks))

    def test_two_drivers_on_one_run_never_walk_in_step(self) -> None:
        """Both do a task when they hold it at once: by chance, so seldom, and mostly towards the end."""

        def done_twice(seed: int, num_tasks: int = 40) -> int:
            drivers = [make(num_tasks, 1, canary=True, in_flight=1, seed=2 * seed + n) for n in range(2)]
            commits: list[int] = []
            while not all(driver.done for driver in drivers):
                flying = [look_and_begin(driver, set(commits)) for driver in drivers]
                for driver, attempt in zip(drivers, flying, strict=True):
                    if attempt is not None:
                        commits.append(attempt.task)
                        driver.finished(attempt, 1.0, 0.0)
            return len(commits) - num_tasks

        found = [done_twice(seed) for seed in range(300)]
        assert max(found) <= 14
        assert sum(found) / len(found) < 6


class TestCanary:
    def test_task_0_goes_first_and_alone(self) -> None:
        scheduler = make(canary=True)
        (canary,) = scheduler.assign(0.0)
        assert canary.task == 0
        assert scheduler.assign(0.0) == []
        scheduler.finished(canary, 1.0, 1.0)
        assert len(scheduler.assign(1.0)) == 4

    def test_a_canary_under_the_quality_gate_stops_the_run(self) -> None:
        scheduler = make(canary=True, max_failed_tasks=5)
        (canary,) = scheduler.assign(0.0)
        scheduler.failed(canary, "quality_gate", "task 0: 12 % recognised", 1.0)
        with pytest.raises(TaskFailure, match=r"12 % recognised.*canary"):
            scheduler.check(1.0)

    def test_a_canary_lost_with_its_worker_goes_again_to_the_other(self) -> None:
        scheduler = make(canary=True)
        (canary,) = scheduler.assign(0.0)
        scheduler.lost(canary.slot, "worker_died", "exit 1", 1.0)
        (again,) = scheduler.assign(1.0)
        assert (again.task, again.slot) == (0, 1)
        assert again.id != canary.id

    def test_a_quarantined_canary_lets_the_others_go_when_the_budget_allows(self) -> None:
        scheduler = make(canary=True, max_failed_tasks=1)
        fail_until_condemned(scheduler, 0, "raised")
        assert scheduler.assign(0.0) == []
        scheduler.quarantined([0])
        scheduler.check(0.0)
        assert len(scheduler.assign(0.0)) == 4

    def test_a_resumed_run_whose_task_0_is_committed_needs_no_canary(self) -> None:
        assert len(make().assign(0.0)) == 4


class TestTime:
    def test_without_a_duration_there_is_no_deadline(self) -> None:
        scheduler = make(canary=True)
        scheduler.assign(0.0)
        assert scheduler.to_kill(1e9) == []

    def test_the_deadline_is_five_times_the_95th_percentile(self) -> None:
        scheduler = make(num_tasks=200, num_slots=1, in_flight=1)
        for duration_s in range(1, 101):
            (attempt,) = scheduler.assign(0.0)
            scheduler.finished(attempt, float(duration_s), 0.0)
        assert scheduler.deadline_s == 5 * 95

    def test_the_deadline_has_a_floor(self) -> None:
        scheduler = make(num_slots=1, deadline_floor_s=60.0)
        run_out(scheduler)
        assert scheduler.deadline_s == 60.0

    def test_a_task_over_its_deadline_has_its_worker_killed_and_goes_again(self) -> None:
        scheduler = make(num_slots=2, in_flight=1)
        first, second = scheduler.assign(0.0)
        scheduler.finished(second, 10.0, 10.0)
        assert scheduler.to_kill(50.0) == []
        ((slot, kind, reason),) = scheduler.to_kill(50.1)
        assert (slot, kind) == (first.slot, "deadline")
        assert f"task {first.task} " in reason
        scheduler.lost(slot, kind, reason, 50.1)
        assert first.task in [attempt.task for attempt in scheduler.assign(50.1)]

    def test_time_counts_from_the_compute_lock(self) -> None:
        scheduler = make(num_slots=1)
        first, second = scheduler.assign(0.0)
        scheduler.finished(first, 10.0, 20.0)
        scheduler.progress(0, second.task, 1, 15.0, 60.0)
        assert scheduler.to_kill(94.0) == []
        assert scheduler.to_kill(96.0)

    def test_the_queued_task_does_not_age_while_it_waits(self) -> None:
        scheduler = make(num_slots=1)
        first, _ = scheduler.assign(0.0)
        scheduler.finished(first, 10.0, 40.0)
        assert scheduler.to_kill(89.0) == []
        assert scheduler.to_kill(91.0)

    def test_no_progress_names_the_stuck_tasks(self) -> None:
        scheduler = make(canary=True, no_progress_s=100.0)
        scheduler.assign(0.0)
        scheduler.check(100.0)
        with pytest.raises(Stalled, match=r"no progress for 101 s, 10 tasks left; stuck: task 0 \(101 s\)"):
            scheduler.check(101.0)

    def test_an_iteration_further_is_progress_and_the_same_iteration_is_none(self) -> None:
        scheduler = make(canary=True, no_progress_s=100.0)
        scheduler.assign(0.0)
        scheduler.progress(0, 0, 50, 90.0, 90.0)
        scheduler.check(180.0)
        scheduler.progress(0, 0, 50, 180.0, 180.0)
        with pytest.raises(Stalled):
            scheduler.check(191.0)

    def test_no_progress_without_workers_says_so(self) -> None:
        scheduler = Scheduler(10, 3, Rules(no_progress_s=100.0))
        with pytest.raises(Stalled, match="0 of 3 workers up; has not started"):
            scheduler.check(101.0)

    def test_the_guard_waits_for_deadlines_to_do_their_work(self) -> None:
        scheduler = make(num_slots=1, no_progress_s=100.0, deadline_floor_s=200.0)
        first, _ = scheduler.assign(0.0)
        scheduler.finished(first, 1.0, 0.0)
        scheduler.check(400.0)
        with pytest.raises(Stalled):
            scheduler.check(401.0)


class TestDuplicates:
    def tail(self, median_s: float = 10.0) -> tuple[Scheduler, Attempt]:
        """One task left, running in slot 0 since 0 s; slot 1 idle."""
        scheduler = make(num_tasks=12, num_slots=2, in_flight=1, deadline_floor_s=1e9)
        straggler, other = scheduler.assign(0.0)
        scheduler.committed(set(range(12)) - {straggler.task, other.task}, 0.0)
        scheduler.finished(other, median_s, 0.0)
        return scheduler, straggler

    def test_a_task_over_twice_the_median_gets_one_duplicate_elsewhere(self) -> None:
        scheduler, straggler = self.tail()
        assert scheduler.assign(20.0) == []
        (twin,) = scheduler.assign(20.1)
        assert (twin.task, twin.slot) == (straggler.task, 1)
        assert scheduler.assign(1e6) == []

    def test_a_task_of_a_moment_is_no_straggler_for_being_stored(self) -> None:
        scheduler, _ = self.tail(median_s=0.1)
        assert scheduler.assign(9.9) == []
        assert len(scheduler.assign(10.1)) == 1

    def test_what_waits_behind_a_straggler_gets_a_duplicate_too(self) -> None:
        scheduler = make(num_tasks=4, num_slots=2)
        straggler, other, behind = scheduler.assign(0.0)
        assert behind.slot == straggler.slot
        scheduler.finished(other, 10.0, 10.0)
        assert scheduler.assign(20.0) == []
        twins = scheduler.assign(20.1)
        assert [(twin.task, twin.slot) for twin in twins] == [(straggler.task, other.slot)]
        scheduler.finished(twins[0], 10.0, 30.0)
        assert [twin.task for twin in scheduler.assign(30.1)] == [behind.task]

    def test_the_first_of_the_twins_ends_the_run_and_the_second_is_harmless(self) -> None:
        scheduler, straggler = self.tail()
        (twin,) = scheduler.assign(21.0)
        scheduler.finished(twin, 1.0, 22.0)
        assert scheduler.done
        scheduler.failed(straggler, "raised", "too late", 23.0)
        assert scheduler.done
        assert not scheduler.condemned
        assert not scheduler.ledger.records

    def test_a_failed_twin_leaves_the_other_to_finish(self) -> None:
        scheduler, straggler = self.tail()
        (twin,) = scheduler.assign(21.0)
        scheduler.failed(twin, "raised", "", 22.0)
        assert not scheduler.ledger.retries
        scheduler.finished(straggler, 30.0, 30.0)
        assert scheduler.done

    def test_while_the_queue_holds_a_task_there_is_no_duplicate(self) -> None:
        scheduler = make(num_tasks=3, num_slots=1, in_flight=1)
        (attempt,) = scheduler.assign(0.0)
        scheduler.finished(attempt, 1.0, 1.0)
        (last,) = scheduler.assign(1.0)
        assert last.task != attempt.task
        assert scheduler.assign(1e6) == []


class TestEnds:
    def test_a_commit_that_turns_up_saves_a_condemned_task(self) -> None:
        scheduler = make()
        fail_until_condemned(scheduler, 7, "not_finite")
        scheduler.committed([7], 0.0)
        assert not scheduler.condemned
        assert scheduler.ledger.num_quarantined == 0

    def test_a_commit_beats_a_quarantine_and_no_quarantine_beats_a_commit(self) -> None:
        scheduler = make(num_tasks=2)
        scheduler.quarantined([1])
        with pytest.raises(BudgetExceeded, match=r"1 task failed for good, .* allows 0"):
            scheduler.check(0.0)
        scheduler.committed([1], 0.0)
        scheduler.quarantined([1])
        scheduler.check(0.0)
        assert (scheduler.num_committed, scheduler.ledger.num_quarantined) == (2, 0)

    def test_within_the_budget_the_run_goes_on_to_its_end(self) -> None:
        scheduler = make(max_failed_tasks=1)
        fail_until_condemned(scheduler, 7, "not_finite")
        scheduler.quarantined([7])
        run_out(scheduler)
        scheduler.check(0.0)
        assert scheduler.done
        assert scheduler.num_committed == 9

    def test_a_store_that_keeps_failing_ends_the_run_with_its_last_words(self) -> None:
        scheduler = make(num_tasks=40, storage_failures=6)
        for _ in range(3):
            scheduler.check(0.0)
            for attempt in scheduler.assign(0.0)[:2]:
                scheduler.failed(attempt, "storage", "s3://b/x: connection refused", 0.0)
        with pytest.raises(StorageError, match="s3://b/x: connection refused"):
            scheduler.check(0.0)

    def test_a_success_between_forgives_the_store(self) -> None:
        scheduler = make(num_tasks=40, storage_failures=3)
        for _ in range(10):
            first, *others = scheduler.assign(0.0)
            scheduler.failed(first, "storage", "503", 0.0)
            scheduler.storage_failed("503")
            scheduler.check(0.0)
            for attempt in others:
                scheduler.finished(attempt, 1.0, 0.0)
            if scheduler.done:
                break

    def test_a_decision_costs_the_same_with_ten_workers_and_with_a_thousand(self) -> None:
        def calls(num_slots: int) -> int:
            """The Python functions entered in 500 turns of a driver's loop whose workers are all busy."""
            scheduler, entered = make(num_tasks=10_000, num_slots=num_slots), 0
            flying = deque(scheduler.assign(0.0))

            def count_calls(frame: object, event: str, argument: object) -> None:
                nonlocal entered
                entered += event == "call"

            sys.setprofile(count_calls)
            try:
                for turn in range(500):
                    scheduler.check(turn / 100)
                    scheduler.finished(flying.popleft(), 17.0, turn / 100)
                    flying.extend(scheduler.assign(turn / 100))
                    assert not scheduler.to_kill(turn / 100)
            finally:
                sys.setprofile(None)
            assert len(flying) == 2 * num_slots
            return entered

        assert calls(1000) < 1.1 * calls(10)

    def test_a_million_tasks_cost_megabytes(self) -> None:
        tracemalloc.start()
        try:
            scheduler = make(num_tasks=1_000_000, num_slots=8)
            scheduler.committed(range(0, 1_000_000, 2), 0.0)
            for _ in range(1_000):
                for attempt in scheduler.assign(0.0):
                    scheduler.finished(attempt, 1.0, 0.0)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert scheduler.num_committed > 500_000
        assert peak_bytes < 8_000_000
