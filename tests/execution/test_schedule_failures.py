"""Whom a failure or a death is blamed on: the task, the worker, the slot or nobody."""

import pytest

from nisynth.errors import Stalled, StorageError
from nisynth.execution.schedule import Rules, Scheduler
from tests.schedulers import fail_until_condemned, make, only, run_out


class TestApplicationFailures:
    def test_three_on_three_different_workers_condemn(self) -> None:
        scheduler = make(num_tasks=40, num_slots=4)
        slots = fail_until_condemned(scheduler, 7, "raised")
        assert len(slots) == len(set(slots)) == 3
        assert [failure.kind for failure in scheduler.condemned[7]] == ["raised"] * 3

    def test_one_worker_alone_gets_the_task_three_times(self) -> None:
        assert fail_until_condemned(make(num_slots=1), 7, "out_of_memory") == [0, 0, 0]

    def test_with_two_workers_both_try_it_before_one_tries_again(self) -> None:
        slots = fail_until_condemned(make(num_tasks=40, num_slots=2), 7, "raised")
        assert set(slots[:2]) == {0, 1}
        assert len(slots) == 3

    @pytest.mark.parametrize("kind", ["not_finite", "quality_gate"])
    def test_the_same_numeric_failure_twice_condemns_at_once(self, kind: str) -> None:
        assert len(fail_until_condemned(make(num_tasks=40, num_slots=4), 7, kind)) == 2

    def test_two_different_numeric_failures_leave_a_third_try(self) -> None:
        scheduler = make(num_slots=1, in_flight=1)
        only(scheduler, 10, 7)
        for kind in ("not_finite", "quality_gate"):
            (attempt,) = scheduler.assign(0.0)
            scheduler.failed(attempt, kind, kind, 0.0)
        assert len(scheduler.assign(0.0)) == 1
        assert not scheduler.condemned

    @pytest.mark.parametrize("kind", ["storage", "unavailable", "bystander"])
    def test_failures_of_the_machinery_never_condemn(self, kind: str) -> None:
        scheduler = make(num_slots=1, in_flight=1)
        only(scheduler, 10, 7)
        for _ in range(20):
            (attempt,) = scheduler.assign(0.0)
            scheduler.failed(attempt, kind, kind, 0.0)
        assert not scheduler.condemned

    def test_a_run_begins_on_a_worker_whose_storage_works(self) -> None:
        scheduler = Scheduler(10, 2, Rules(), seed=0, now_s=0.0)
        for slot in (0, 1):
            scheduler.joined(slot, 0.0)
        (canary,) = scheduler.assign(0.0)
        scheduler.failed(canary, "storage", "this machine's clock and the server's differ too much", 0.0)
        (again,) = scheduler.assign(0.0)
        assert (canary.task, again.task) == (0, 0)
        assert {canary.slot, again.slot} == {0, 1}

    def test_one_worker_without_storage_does_not_end_a_run_that_another_can_do(self) -> None:
        scheduler, broken = make(num_tasks=10, num_slots=2, in_flight=1), 0
        for turn in range(200):
            now_s = 100.0 * turn  # longer than the pause: it is tried again and again
            slow = turn % 10 < 9
            for attempt in scheduler.assign(now_s):
                if attempt.slot == 0:
                    broken += 1
                    scheduler.failed(attempt, "storage", "the clocks differ", now_s)
                elif slow:
                    scheduler.failed(attempt, "unavailable", "", now_s)
                else:
                    scheduler.finished(attempt, 1.0, now_s)
            scheduler.check(now_s)
        assert scheduler.done
        assert broken > 12

    def test_a_worker_without_storage_waits_for_one_that_still_starts(self) -> None:
        scheduler = Scheduler(10, 2, Rules(storage_failures=1, in_flight=1), seed=0, now_s=0.0)
        scheduler.joined(0, 0.0)
        (canary,) = scheduler.assign(0.0)
        scheduler.failed(canary, "storage", "the clocks differ", 0.0)
        scheduler.check(1.0)
        assert scheduler.assign(1.0) == []
        scheduler.joined(1, 30.0)
        (again,) = scheduler.assign(30.0)
        assert (again.task, again.slot) == (0, 1)
        scheduler.finished(again, 1.0, 31.0)
        scheduler.check(31.0)
        assert [attempt.slot for attempt in scheduler.assign(31.0)] == [1]

    def test_a_worker_that_never_starts_is_waited_for_no_longer_than_a_pause(self) -> None:
        scheduler = Scheduler(10, 2, Rules(in_flight=1), seed=0, now_s=0.0)
        scheduler.joined(0, 0.0)
        for now_s in (0.0, *range(61, 66)):
            (attempt,) = scheduler.assign(now_s)
            scheduler.failed(attempt, "storage", "unreachable", now_s)
        with pytest.raises(StorageError, match="unreachable"):
            scheduler.check(65.0)

    def test_a_run_ends_when_no_worker_has_storage(self) -> None:
        scheduler = make(num_tasks=40, num_slots=2)
        for _ in range(4):
            for attempt in scheduler.assign(0.0):
                scheduler.failed(attempt, "storage", "unreachable", 0.0)
        with pytest.raises(StorageError, match="unreachable"):
            scheduler.check(0.0)

    def test_a_worker_on_which_three_tasks_in_a_row_fail_is_replaced(self) -> None:
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

    def test_the_computing_task_is_blamed_in_the_third_death_and_the_bystander_is_not(self) -> None:
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

    def test_the_report_of_the_compute_lock_says_who_is_blamed(self) -> None:
        scheduler = make(num_slots=1, deaths=1)
        first, second = scheduler.assign(0.0)
        scheduler.progress(0, second.task, 50, 1.0, 1.0)
        self.die(scheduler, 0)
        assert set(scheduler.condemned) == {second.task}
        assert first.task not in scheduler.condemned

    def test_a_report_about_a_task_that_is_not_aboard_is_ignored(self) -> None:
        scheduler = make(num_slots=1, deaths=1)
        first, _ = scheduler.assign(0.0)
        scheduler.progress(0, 0, 50, 1.0, 1.0)
        self.die(scheduler, 0)
        assert set(scheduler.condemned) == {first.task}

    def test_whoever_was_aboard_flies_alone_afterwards(self) -> None:
        scheduler = make(num_tasks=20, num_slots=1)
        suspects = {attempt.task for attempt in scheduler.assign(0.0)}
        self.die(scheduler, 0)
        for _ in range(2):
            (attempt,) = scheduler.assign(0.0)
            assert attempt.task in suspects
            scheduler.finished(attempt, 1.0, 0.0)
        assert len(scheduler.assign(0.0)) == 2

    def test_a_busy_worker_drains_for_a_suspect_that_waits(self) -> None:
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
    def test_a_preempted_worker_costs_neither_the_task_nor_the_slot_anything(self, kind: str) -> None:
        scheduler = make(num_slots=1)
        for _ in range(20):
            assert scheduler.assign(0.0)
            assert scheduler.lost(0, kind, "", 0.0)
            scheduler.joined(0, 0.0)
        assert not scheduler.condemned
        assert len(scheduler.assign(0.0)) == 2

    def test_a_slot_that_dies_four_times_in_a_row_is_given_up(self) -> None:
        scheduler = make(num_slots=2, in_flight=1)
        alive = [scheduler.lost(0, "start_failed", "no CUDA device", 0.0) for _ in range(4)]
        assert alive == [True, True, True, False]
        scheduler.check(0.0)
        assert {attempt.slot for attempt in run_out(scheduler)} == {1}
        assert scheduler.done

    def test_a_commit_between_deaths_clears_the_slot(self) -> None:
        scheduler = make(num_tasks=20, num_slots=1, in_flight=1)
        for _ in range(8):
            assert scheduler.lost(0, "start_failed", "", 0.0)
            scheduler.joined(0, 0.0)
            (attempt,) = scheduler.assign(0.0)
            scheduler.finished(attempt, 1.0, 0.0)

    def test_tasks_that_kill_are_blamed_before_the_only_slot_is(self) -> None:
        scheduler = make(num_tasks=7, num_slots=1, max_failed_tasks=5)
        first, _ = scheduler.assign(0.0)
        scheduler.finished(first, 1.0, 0.0)
        while not scheduler.done:
            assert scheduler.assign(0.0)
            self.die(scheduler, 0)
            scheduler.quarantined(list(scheduler.condemned))
            scheduler.check(0.0)
        assert scheduler.ledger.num_quarantined == 5

    def test_work_left_and_every_slot_given_up_is_stalled_with_the_reason(self) -> None:
        scheduler = make(num_slots=1)
        for _ in range(4):
            scheduler.lost(0, "start_failed", "no CUDA device\nTraceback", 0.0)
        with pytest.raises(Stalled, match=r"9 tasks left .* start_failed: no CUDA device$"):
            scheduler.check(0.0)
