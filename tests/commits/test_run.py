"""The commit protocol: first wins, losers clean up, nothing is believed that was not read."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from nisynth.commits import Run
from nisynth.commits.records import commit_key, parse_task_key
from nisynth.errors import DataError, PlanMismatch, StorageError
from nisynth.plan import Plan
from nisynth.storage import OutcomeUnknown, Store, open_store
from nisynth.storage.memory import MemoryStore
from tests.tiny import commit_all, fake_commit, keys, tiny_plan


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return tiny_plan(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "run"))


class FlakyStore(MemoryStore):
    """A store whose `create` answers as told: the k-th call does `script[k](call)` instead."""

    def __init__(self, *script: Callable[[Callable[[], None]], None]) -> None:
        super().__init__(f"memory://{uuid4()}")
        self.script = list(script)

    def create(self, key: str, data: bytes) -> None:
        def really() -> None:
            MemoryStore.create(self, key, data)

        if self.script and key.startswith("commits/"):
            self.script.pop(0)(really)
        else:
            really()


def done_but_answer_lost(really: Callable[[], None]) -> None:
    really()
    raise OutcomeUnknown("no answer")


def not_done_and_no_answer(really: Callable[[], None]) -> None:
    raise OutcomeUnknown("no answer")


def test_join_begins_then_joins(store: Store, plan: Plan) -> None:
    assert Run.join(store, plan).plan.fingerprint == plan.fingerprint
    assert Run.join(store, plan).committed() == set()
    assert Run.open(store).plan.identity == json.loads(json.dumps(plan.identity))


def test_another_config_is_refused_with_the_differing_fields(
    store: Store, plan: Plan, tmp_path: Path
) -> None:
    Run.join(store, plan)
    other = tiny_plan(tmp_path, method={"iterations": 3}, run={"seed": 5})
    with pytest.raises(
        PlanMismatch, match=r"method\.iterations: 2 there, 3 here; run\.seed: 0 there, 5 here"
    ):
        Run.join(store, other)


def test_commits_without_a_plan_are_refused(store: Store, plan: Plan) -> None:
    store.create(commit_key(plan.fp12, 0), b"{}")
    with pytest.raises(PlanMismatch, match=r"no plan\.json"):
        Run.join(store, plan)


def test_no_run_at_the_url(store: Store) -> None:
    with pytest.raises(PlanMismatch, match=r"no run there \(no plan.json\)"):
        Run.open(store)


def test_a_damaged_plan_is_one_line(store: Store) -> None:
    for data in (b"{", b"[" * 100_000):
        store.put("plan.json", data)
        with pytest.raises(DataError, match="plan is damaged"):
            Run.open(store)


def test_the_first_commit_wins_and_the_loser_deletes_its_shard(store: Store, plan: Plan) -> None:
    run = Run.join(store, plan)
    first, second = fake_commit(run, 1, str(uuid4())), fake_commit(run, 1, str(uuid4()))
    assert run.commit(first) == "mine"
    assert run.commit(second) == "other"
    assert run.read(1) == first
    assert keys(store, "data/") == [first.shard]
    assert run.commit(first) == "mine"  # a repeated call is no loss


def test_many_at_once_one_wins(store: Store, plan: Plan) -> None:
    run = Run.join(store, plan)
    records = [fake_commit(run, 2, str(uuid4())) for _ in range(12)]
    with ThreadPoolExecutor(12) as pool:
        outcomes = list(pool.map(run.commit, records))
    assert sorted(outcomes) == ["mine"] + ["other"] * 11
    assert keys(store, "data/") == [records[outcomes.index("mine")].shard]


def test_a_lost_answer_is_looked_up(plan: Plan) -> None:
    run = Run.join(FlakyStore(done_but_answer_lost), plan)
    assert run.commit(fake_commit(run, 0, str(uuid4()))) == "mine"


def test_a_create_that_never_happened_is_tried_again(plan: Plan) -> None:
    run = Run.join(FlakyStore(not_done_and_no_answer, not_done_and_no_answer), plan)
    assert run.commit(fake_commit(run, 0, str(uuid4()))) == "mine"


def test_unknown_leaves_the_shard(plan: Plan) -> None:
    run = Run.join(FlakyStore(*[not_done_and_no_answer] * 10), plan)
    record = fake_commit(run, 0, str(uuid4()))
    assert run.commit(record) == "unknown"
    assert keys(run.store, "data/") == [record.shard]


def test_an_attempt_that_no_reader_can_settle_is_unknown(plan: Plan) -> None:
    class Unreadable(FlakyStore):
        def get(self, key: str, max_bytes: int | None = None) -> bytes:
            if key.startswith("commits/"):
                raise StorageError("503")
            return super().get(key, max_bytes)

    run = Run.join(Unreadable(*[done_but_answer_lost] * 5), plan)
    record = fake_commit(run, 0, str(uuid4()))
    assert run.commit(record) == "unknown"
    assert keys(run.store, "data/") == [record.shard]


def test_keys_of_others_are_ignored(store: Store, plan: Plan) -> None:
    run = Run.join(store, plan)
    commit_all(run, [0])
    store.create("commits/000000000000-00000001.json", b"{}")  # another fingerprint
    store.create(commit_key(plan.fp12, 99), b"{}")  # outside the plan
    store.create(f"commits/{plan.fp12}-1.json", b"{}")  # not the pattern
    assert run.committed() == {0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": "4"}, "rows is not int"),
        ({"task": True}, "task is not int"),
        ({"fingerprint": "0" * 64}, "of another fingerprint"),
        ({"task": 2}, "says it is task 2"),
        ({"shard": "../../etc/passwd"}, "names shard '../../etc/passwd'"),
        ({"sha256": "x"}, "sha256 is not 64 hex digits"),
        ({"sha256": None}, "sha256 is not str"),
        ({"schema_version": 9}, "schema_version 9, this version reads 1"),
        ({"figures": []}, "figures is not dict"),
        ({"seed": "00"}, "its rows or seed are not the plan's"),
        ({"seed": "a seed"}, "not a commit (damaged JSON)"),
        ({"figures": {"teacher_accuracy": "high"}}, "a figure holds a value that is not a finite number"),
        ({"finished_at": None}, "a time or a figure holds a value that is not a finite number"),
        ({"started_at": "noon"}, "a time or a figure holds a value that is not a finite number"),
        ({"worker": 7}, "worker is not str"),
        ({"finished_at": 10**400}, "a time or a figure holds a value that is not a finite number"),
        ({"timings_s": {"put": float("inf")}}, "curve, timings_s, a time or a figure"),
        ({"curve": [3]}, "curve is not a list of points"),
        ({"curve": [{"iteration": 1, "total": "\x1b[2J"}]}, "curve, timings_s"),
    ],
)
def test_a_damaged_commit_is_named(store: Store, plan: Plan, change: dict[str, Any], message: str) -> None:
    run = Run.join(store, plan)
    document = json.loads(fake_commit(run, 0, str(uuid4())).to_json()) | change
    store.create(commit_key(plan.fp12, 0), json.dumps(document).encode())
    with pytest.raises(DataError, match="redo URL --bad") as caught:
        run.read(0)
    assert message in str(caught.value)


def test_digits_of_other_scripts_are_no_key(plan: Plan) -> None:
    assert parse_task_key(commit_key(plan.fp12, 12), plan.fp12) == 12
    arabic = "\u0660" * 6 + "\u0661\u0662"
    assert parse_task_key(f"commits/{plan.fp12}-{arabic}.json", plan.fp12) is None


@pytest.mark.parametrize("data", [b"", b"<html>", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_bytes_that_are_no_commit(store: Store, plan: Plan, data: bytes) -> None:
    run = Run.join(store, plan)
    store.create(commit_key(plan.fp12, 0), data)
    with pytest.raises(DataError, match="damaged JSON"):
        run.read(0)


def test_a_commit_beats_a_quarantine(store: Store, plan: Plan) -> None:
    run = Run.join(store, plan)
    assert run.quarantine(1, [{"kind": "raised", "message": "boom"}])
    assert run.quarantined() == {1}
    assert run.read_quarantine(1)["failures"] == [{"kind": "raised", "message": "boom"}]  # type: ignore[index]
    commit_all(run, [1])
    assert run.quarantined() == set()
    assert not run.quarantine(1, [])


def test_retry_lifts_quarantines(store: Store, plan: Plan) -> None:
    run = Run.join(store, plan)
    run.quarantine(1, [])
    run.quarantine(3, [])
    assert run.retry() == [1, 3]
    assert run.quarantined() == set()


def test_a_commit_of_an_older_version_is_sound(store: Store, plan: Plan) -> None:
    run = Run.join(store, plan)
    document = json.loads(fake_commit(run, 0, str(uuid4())).to_json())
    assert document["seed"] == f"{plan[0].seed:016x}"
    document["seed"] = plan[0].seed
    del document["worker"], document["started_at"]
    store.create(commit_key(plan.fp12, 0), json.dumps(document).encode())
    found = run.read(0)
    assert found is not None
    assert (found.worker, found.started_at, found.seed) == ("", 0.0, plan[0].seed)
