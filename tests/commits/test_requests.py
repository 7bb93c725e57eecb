"""How many requests the verbs make: a store far away answers each in tens of milliseconds."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from nisynth.commits import Run
from nisynth.commits.audit import gc, redo, verify
from nisynth.commits.seal import seal
from nisynth.commits.status import status
from nisynth.storage import ObjectInfo
from nisynth.storage.memory import MemoryStore
from tests.tiny import commit_all, fake_commit, tiny_plan

TASKS = 40


class Counting(MemoryStore):
    """A store in memory that counts its requests by verb and folder, and how many run at once."""

    def __init__(self) -> None:
        super().__init__(f"memory://{uuid4()}")
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._company = threading.Barrier(2)

    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        return self._counted("get", key, lambda: MemoryStore.get(self, key, max_bytes))

    def size_bytes(self, key: str) -> int:
        return self._counted("size", key, lambda: len(MemoryStore.get(self, key)))

    def delete(self, key: str) -> None:
        self._counted("delete", key, lambda: MemoryStore.delete(self, key))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(self._counted("list", prefix, lambda: list(MemoryStore.list(self, prefix))))

    def _counted(self, verb: str, key: str, really: Callable[[], Any]) -> Any:
        with self._lock:
            self.counts[f"{verb} {key.split('/')[0]}"] += 1
        return really()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.join(Counting(), tiny_plan(tmp_path, run={"num_images": 4 * TASKS}))


def counts_of(run: Run, act: Callable[[Run], object]) -> dict[str, int]:
    assert isinstance(run.store, Counting)
    run.store.counts.clear()
    act(run)
    return dict(run.store.counts)


def test_verify_of_a_sealed_run_reads_each_commit_once(run: Run) -> None:
    commit_all(run)
    seal(run)
    documents = {"get _SUCCESS": 2, "get _MANIFEST": 1}
    listings = {"list commits": 1, "list data": 1}
    assert counts_of(run, verify) == {"get commits": TASKS} | documents | listings
    deep = counts_of(run, lambda run: verify(run, deep=True))
    assert deep == {"get commits": TASKS, "get data": TASKS, "list commits": 1} | documents


def test_gc_reads_only_the_commits_of_tasks_that_have_several_shards(run: Run) -> None:
    losers = [fake_commit(run, task, str(uuid4())) for task in (3, 5)]
    commit_all(run)
    counted = counts_of(run, lambda run: gc(run) == sorted(loser.shard for loser in losers))
    assert counted == {"list data": 1, "get commits": 4, "delete data": 2}
    assert counts_of(run, gc) == {"list data": 1}


def test_sealing_reads_each_commit_once_lists_the_shards_once_and_looks_again_at_the_end(run: Run) -> None:
    commit_all(run)
    counted = counts_of(run, seal)
    assert counted == {"list commits": 2, "list data": 1, "get commits": TASKS}


def test_status_lists_each_folder_once(run: Run) -> None:
    commit_all(run)
    counted = counts_of(run, status)
    listings = {"list commits": 1, "list quarantine": 1, "list data": 1}
    assert counted == {**listings, "get commits": 32, "get _SUCCESS": 1}
    seal(run)
    sealed = {"get commits": 32, "get _SUCCESS": 2, "get _MANIFEST": 1}
    assert counts_of(run, status) == {**listings, **sealed}


class Meeting(Counting):
    """A store whose deletes wait until a second one is under way: one after another, they never end."""

    def delete(self, key: str) -> None:
        if key.startswith("quarantine/"):
            self._company.wait(timeout=60)
        super().delete(key)


@pytest.mark.parametrize("act", [Run.retry, lambda run: redo(run, range(TASKS))], ids=["retry", "redo"])
def test_deletes_are_made_at_once(tmp_path: Path, act: Callable[[Run], object]) -> None:
    store = Meeting()
    run = Run.join(store, tiny_plan(tmp_path, run={"num_images": 4 * TASKS}))
    for task in range(TASKS):
        run.quarantine(task, [])
    act(run)
    assert run.quarantined() == set()
