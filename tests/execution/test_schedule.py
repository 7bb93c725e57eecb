import tracemalloc
from itertools import count

import pytest

from nisynth.errors import BudgetExceeded, Stalled, StorageError, TaskFailure
from nisynth.execution.schedule import Attempt, Rules, Scheduler


def make(num_tasks: int = 10, num_slots: int = 2, *, canary: bool = False, **rules) -> Scheduler:
    """A scheduler with every slot live; task 0 is committed already unless the canary is the point."""
    numbers = count()
    scheduler = Scheduler(
        num_tasks, num_slots, Rules(**{"deadline_floor_s": 0.0, **rules}), new_id=lambda: str(next(numbers))
    )
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


class TestOrder:
    def test_an_idle_worker_gets_its_first_task_before_any_worker_gets_its_second(self):
        scheduler = make(num_tasks=10, num_slots=3)
        assert [attempt.slot for attempt in scheduler.assign(0.0)] == [0, 1, 2, 0, 1, 2]
        assert scheduler.assign(0.0) == []

    def test_a_slot_without_a_worker_gets_nothing(self):
        scheduler = Scheduler(10, 2)
        assert scheduler.assign(0.0) == []
        scheduler.joined(1, 0.0)
        assert [attempt.slot for attempt in scheduler.assign(0.0)] == [1]

    def test_every_task_is_assigned_once_and_each_seed_walks_in_its_own_order(self):
        orders = []
        for seed in range(3):
            scheduler = Scheduler(97, 1, seed=seed)
            scheduler.joined(0, 0.0)
            order = [attempt.task for attempt in run_out(scheduler)]
            assert order[0] == 0
            assert sorted(order) == list(range(97))
            orders.append(order)
        assert orders[0] != orders[1] != orders[2] != orders[0]

    def test_the_same_seed_and_reports_give_the_same_decisions(self):
        first, second = (run_out(make(50, 3)) for _ in range(2))
        assert first == second

    def test_one_task_alone_is_a_whole_run(self):
        scheduler = make(num_tasks=1, num_slots=2, canary=True)
        (attempt,) = scheduler.assign(0.0)
        scheduler.finished(attempt, 1.0, 1.0)
        assert scheduler.done

    def test_tasks_that_others_committed_are_dropped(self):
        scheduler = make(num_tasks=10, num_slots=1)
        first = scheduler.assign(0.0)
        scheduler.committed(range(9), 0.0)
        assert {attempt.task for attempt in run_out(scheduler)} | {9} == {9}
        for attempt in first:
            scheduler.finished(attempt, 1.0, 1.0)
        run_out(scheduler)
        assert scheduler.done
        assert scheduler.num_committed == 10


class TestCanary:
    def test_task_0_goes_first_and_alone(self):
        scheduler = make(canary=True)
        (canary,) = scheduler.assign(0.0)
        assert canary.task == 0
        assert scheduler.assign(0.0) == []
        scheduler.finished(canary, 1.0, 1.0)
        assert len(scheduler.assign(1.0)) == 4

    def test_a_canary_under_the_quality_gate_stops_the_run(self):
        scheduler = make(canary=True, max_failed_tasks=5)
        (canary,) = scheduler.assign(0.0)
        scheduler.failed(canary, "quality_gate", "task 0: 12 % recognised", 1.0)
        with pytest.raises(TaskFailure, match=r"12 % recognised.*canary"):
            scheduler.check(1.0)

    def test_a_canary_lost_with_its_worker_goes_again_to_the_other(self):
        scheduler = make(canary=True)
        (canary,) = scheduler.assign(0.0)
        scheduler.lost(canary.slot, "worker_died", "exit 1", 1.0)
        (again,) = scheduler.assign(1.0)
        assert (again.task, again.slot) == (0, 1)
        assert again.id != canary.id

    def test_a_quarantined_canary_lets_the_others_go_when_the_budget_allows(self):
        scheduler = make(canary=True, max_failed_tasks=1)
        fail_until_condemned(scheduler, 0, "raised")
        assert scheduler.assign(0.0) == []
        scheduler.quarantined([0])
        scheduler.check(0.0)
        assert len(scheduler.assign(0.0)) == 4

    def test_a_resumed_run_whose_task_0_is_committed_needs_no_canary(self):
        assert len(make().assign(0.0)) == 4


class TestApplicationFailures:
    def test_three_on_three_different_workers_condemn(self):
        scheduler = make(num_tasks=40, num_slots=4)
        slots = fail_until_condemned(scheduler, 7, "raised")
        assert len(slots) == len(set(slots)) == 3
        assert [failure.kind for failure in scheduler.condemned[7]] == ["raised"] * 3

    def test_one_worker_alone_gets_the_task_three_times(self):
        assert fail_until_condemned(make(num_slots=1), 7, "out_of_memory") == [0, 0, 0]

    def test_with_two_workers_both_try_it_before_one_tries_again(self):
        slots = fail_until_condemned(make(num_tasks=40, num_slots=2), 7, "raised")
        assert set(slots[:2]) == {0, 1}
        assert len(slots) == 3

    @pytest.mark.parametrize("kind", ["not_finite", "quality_gate"])
    def test_the_same_numeric_failure_twice_condemns_at_once(self, kind):
        assert len(fail_until_condemned(make(num_tasks=40, num_slots=4), 7, kind)) == 2

    def test_two_different_numeric_failures_leave_a_third_try(self):
        scheduler = make(num_slots=1, in_flight=1)
        only(scheduler, 10, 7)
        for kind in ("not_finite", "quality_gate"):
            (attempt,) = scheduler.assign(0.0)
            scheduler.failed(attempt, kind, kind, 0.0)
        assert len(scheduler.assign(0.0)) == 1
        assert not scheduler.condemned

    @pytest.mark.parametrize("kind", ["storage", "unavailable", "bystander"])
    def test_failures_of_the_machinery_never_condemn(self, kind):
        scheduler = make(num_slots=1, in_flight=1)
        only(scheduler, 10, 7)
        for _ in range(20):
            (attempt,) = scheduler.assign(0.0)
            scheduler.failed(attempt, kind, kind, 0.0)
        assert not scheduler.condemned

    def test_a_worker_on_which_three_tasks_in_a_row_fail_is_replaced(self):
        scheduler = make(num_tasks=40, num_slots=2, in_flight=1)
        for _ in range(3):
            assert scheduler.to_kill(0.0) == []
            for attempt in scheduler.assign(0.0):
                if attempt.slot == 0:
                    scheduler.failed(attempt, "raised", "CUDA error: illegal memory access", 0.0)
                else:
                    scheduler.finished(attempt, 1.0, 0.0)
        ((slot, kind, _),) = scheduler.to_kill(0.0)
        assert (slot, kind) == (0, "sick")
        assert scheduler.lost(0, kind, "", 0.0)
        scheduler.joined(0, 0.0)
        assert scheduler.to_kill(0.0) == []


class TestDeaths:
    def die(self, scheduler: Scheduler, slot: int, kind: str = "worker_died") -> None:
        if scheduler.lost(slot, kind, "exit code 139", 0.0):
            scheduler.joined(slot, 0.0)

    def test_the_computing_task_is_blamed_in_the_third_death_and_the_bystander_is_not(self):
        scheduler = make(num_tasks=4, num_slots=1)
        scheduler.committed([3], 0.0)
        culprit, bystander = scheduler.assign(0.0)
        self.die(scheduler, 0)
        for _ in range(2):
            (alone,) = scheduler.assign(0.0)
            while alone.task != culprit.task:
                scheduler.finished(alone, 1.0, 0.0)
                (alone,) = scheduler.assign(0.0)
            self.die(scheduler, 0)
        assert set(scheduler.condemned) == {culprit.task}
        scheduler.quarantined([culprit.task])
        assert bystander.task in [attempt.task for attempt in run_out(scheduler)] or scheduler.done

    def test_the_report_of_the_compute_lock_says_who_is_blamed(self):
        scheduler = make(num_slots=1, deaths=1)
        first, second = scheduler.assign(0.0)
        scheduler.progress(0, second.task, 50, 1.0, 1.0)
        self.die(scheduler, 0)
        assert set(scheduler.condemned) == {second.task}
        assert first.task not in scheduler.condemned

    def test_a_report_about_a_task_that_is_not_aboard_is_ignored(self):
        scheduler = make(num_slots=1, deaths=1)
        first, _ = scheduler.assign(0.0)
        scheduler.progress(0, 0, 50, 1.0, 1.0)
        self.die(scheduler, 0)
        assert set(scheduler.condemned) == {first.task}

    def test_whoever_was_aboard_flies_alone_afterwards(self):
        scheduler = make(num_tasks=20, num_slots=1)
        suspects = {attempt.task for attempt in scheduler.assign(0.0)}
        self.die(scheduler, 0)
        for _ in range(2):
            (attempt,) = scheduler.assign(0.0)
            assert attempt.task in suspects
            scheduler.finished(attempt, 1.0, 0.0)
        assert len(scheduler.assign(0.0)) == 2

    def test_a_busy_worker_drains_for_a_suspect_that_waits(self):
        scheduler = make(num_tasks=20, num_slots=2)
        batch = scheduler.assign(0.0)
        suspects = {attempt.task for attempt in batch if attempt.slot == 0}
        scheduler.lost(0, "worker_died", "", 0.0)
        first, second = (attempt for attempt in batch if attempt.slot == 1)
        scheduler.finished(first, 1.0, 0.0)
        assert scheduler.assign(0.0) == []
        scheduler.finished(second, 1.0, 0.0)
        (attempt,) = scheduler.assign(0.0)
        assert attempt.task in suspects

    @pytest.mark.parametrize("kind", ["preempted", "node_died", "unavailable"])
    def test_a_preempted_worker_costs_neither_the_task_nor_the_slot_anything(self, kind):
        scheduler = make(num_slots=1)
        for _ in range(20):
            assert scheduler.assign(0.0)
            assert scheduler.lost(0, kind, "", 0.0)
            scheduler.joined(0, 0.0)
        assert not scheduler.condemned
        assert len(scheduler.assign(0.0)) == 2

    def test_a_slot_that_dies_four_times_in_a_row_is_given_up(self):
        scheduler = make(num_slots=2, in_flight=1)
        alive = [scheduler.lost(0, "start_failed", "no CUDA device", 0.0) for _ in range(4)]
        assert alive == [True, True, True, False]
        scheduler.check(0.0)
        assert {attempt.slot for attempt in run_out(scheduler)} == {1}
        assert scheduler.done

    def test_a_commit_between_deaths_clears_the_slot(self):
        scheduler = make(num_tasks=20, num_slots=1, in_flight=1)
        for _ in range(8):
            assert scheduler.lost(0, "start_failed", "", 0.0)
            scheduler.joined(0, 0.0)
            (attempt,) = scheduler.assign(0.0)
            scheduler.finished(attempt, 1.0, 0.0)

    def test_tasks_that_kill_are_blamed_before_the_only_slot_is(self):
        scheduler = make(num_tasks=7, num_slots=1, max_failed_tasks=5)
        first, _ = scheduler.assign(0.0)
        scheduler.finished(first, 1.0, 0.0)
        while not scheduler.done:
            assert scheduler.assign(0.0)
            self.die(scheduler, 0)
            scheduler.quarantined(list(scheduler.condemned))
            scheduler.check(0.0)
        assert scheduler.ledger.num_quarantined == 5

    def test_work_left_and_every_slot_given_up_is_stalled_with_the_reason(self):
        scheduler = make(num_slots=1)
        for _ in range(4):
            scheduler.lost(0, "start_failed", "no CUDA device\nTraceback", 0.0)
        with pytest.raises(Stalled, match=r"9 tasks left .* start_failed: no CUDA device$"):
            scheduler.check(0.0)


class TestTime:
    def test_without_a_duration_there_is_no_deadline(self):
        scheduler = make(canary=True)
        scheduler.assign(0.0)
        assert scheduler.to_kill(1e9) == []

    def test_the_deadline_is_five_times_the_95th_percentile(self):
        scheduler = make(num_tasks=200, num_slots=1, in_flight=1)
        for duration_s in range(1, 101):
            (attempt,) = scheduler.assign(0.0)
            scheduler.finished(attempt, float(duration_s), 0.0)
        assert scheduler.deadline_s == 5 * 95

    def test_the_deadline_has_a_floor(self):
        scheduler = make(num_slots=1, deadline_floor_s=60.0)
        run_out(scheduler)
        assert scheduler.deadline_s == 60.0

    def test_a_task_over_its_deadline_has_its_worker_killed_and_goes_again(self):
        scheduler = make(num_slots=2, in_flight=1)
        first, second = scheduler.assign(0.0)
        scheduler.finished(second, 10.0, 10.0)
        assert scheduler.to_kill(50.0) == []
        ((slot, kind, reason),) = scheduler.to_kill(50.1)
        assert (slot, kind) == (first.slot, "deadline")
        assert f"task {first.task} " in reason
        scheduler.lost(slot, kind, reason, 50.1)
        assert first.task in [attempt.task for attempt in scheduler.assign(50.1)]

    def test_time_counts_from_the_compute_lock(self):
        scheduler = make(num_slots=1)
        first, second = scheduler.assign(0.0)
        scheduler.finished(first, 10.0, 20.0)
        scheduler.progress(0, second.task, 1, 15.0, 60.0)
        assert scheduler.to_kill(94.0) == []
        assert scheduler.to_kill(96.0)

    def test_the_queued_task_does_not_age_while_it_waits(self):
        scheduler = make(num_slots=1)
        first, _ = scheduler.assign(0.0)
        scheduler.finished(first, 10.0, 40.0)
        assert scheduler.to_kill(89.0) == []
        assert scheduler.to_kill(91.0)

    def test_no_progress_names_the_stuck_tasks(self):
        scheduler = make(canary=True, no_progress_s=100.0)
        scheduler.assign(0.0)
        scheduler.check(100.0)
        with pytest.raises(Stalled, match=r"no progress for 101 s, 10 tasks left; stuck: task 0 \(101 s\)"):
            scheduler.check(101.0)

    def test_an_iteration_further_is_progress_and_the_same_iteration_is_none(self):
        scheduler = make(canary=True, no_progress_s=100.0)
        scheduler.assign(0.0)
        scheduler.progress(0, 0, 50, 90.0, 90.0)
        scheduler.check(180.0)
        scheduler.progress(0, 0, 50, 180.0, 180.0)
        with pytest.raises(Stalled):
            scheduler.check(191.0)

    def test_no_progress_without_workers_says_so(self):
        scheduler = Scheduler(10, 3, Rules(no_progress_s=100.0))
        with pytest.raises(Stalled, match="0 of 3 workers are up; has not started"):
            scheduler.check(101.0)

    def test_the_guard_waits_for_deadlines_to_do_their_work(self):
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

    def test_a_task_over_twice_the_median_gets_one_duplicate_elsewhere(self):
        scheduler, straggler = self.tail()
        assert scheduler.assign(20.0) == []
        (twin,) = scheduler.assign(20.1)
        assert (twin.task, twin.slot) == (straggler.task, 1)
        assert scheduler.assign(1e6) == []

    def test_the_first_of_the_twins_ends_the_run_and_the_second_is_harmless(self):
        scheduler, straggler = self.tail()
        (twin,) = scheduler.assign(21.0)
        scheduler.finished(twin, 1.0, 22.0)
        assert scheduler.done
        scheduler.failed(straggler, "raised", "too late", 23.0)
        assert scheduler.done
        assert not scheduler.condemned
        assert not scheduler.ledger.records

    def test_a_failed_twin_leaves_the_other_to_finish(self):
        scheduler, straggler = self.tail()
        (twin,) = scheduler.assign(21.0)
        scheduler.failed(twin, "raised", "", 22.0)
        assert not scheduler.ledger.retries
        scheduler.finished(straggler, 30.0, 30.0)
        assert scheduler.done

    def test_while_the_queue_holds_a_task_there_is_no_duplicate(self):
        scheduler = make(num_tasks=3, num_slots=1, in_flight=1)
        (attempt,) = scheduler.assign(0.0)
        scheduler.finished(attempt, 1.0, 1.0)
        (last,) = scheduler.assign(1.0)
        assert last.task != attempt.task
        assert scheduler.assign(1e6) == []


class TestEnds:
    def test_a_commit_that_turns_up_saves_a_condemned_task(self):
        scheduler = make()
        fail_until_condemned(scheduler, 7, "not_finite")
        scheduler.committed([7], 0.0)
        assert not scheduler.condemned
        assert scheduler.ledger.num_quarantined == 0

    def test_a_commit_beats_a_quarantine_and_no_quarantine_beats_a_commit(self):
        scheduler = make(num_tasks=2)
        scheduler.quarantined([1])
        with pytest.raises(BudgetExceeded, match=r"1 tasks failed for good, .* allows 0"):
            scheduler.check(0.0)
        scheduler.committed([1], 0.0)
        scheduler.quarantined([1])
        scheduler.check(0.0)
        assert (scheduler.num_committed, scheduler.ledger.num_quarantined) == (2, 0)

    def test_within_the_budget_the_run_goes_on_to_its_end(self):
        scheduler = make(max_failed_tasks=1)
        fail_until_condemned(scheduler, 7, "not_finite")
        scheduler.quarantined([7])
        run_out(scheduler)
        scheduler.check(0.0)
        assert scheduler.done
        assert scheduler.num_committed == 9

    def test_a_store_that_keeps_failing_ends_the_run_with_its_last_words(self):
        scheduler = make(num_tasks=40, storage_failures=6)
        for _ in range(3):
            scheduler.check(0.0)
            for attempt in scheduler.assign(0.0)[:2]:
                scheduler.failed(attempt, "storage", "s3://b/x: connection refused", 0.0)
        with pytest.raises(StorageError, match="s3://b/x: connection refused"):
            scheduler.check(0.0)

    def test_a_success_between_forgives_the_store(self):
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

    def test_a_million_tasks_cost_megabytes(self):
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
